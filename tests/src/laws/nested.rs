//! The kernel's overlayfs inside the guest, with its layers in our root.

use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use super::ground::BIG_BYTES;
use super::plot::{
    Done, Failure, Holds, Plot, call, from_now_on, pattern, refused, same, stat_of, write_at,
};

super::laws! {
    32 => overlayfs_keeps_its_upper_in_the_union with nest;
    32 => overlayfs_takes_a_layer_of_the_union_for_its_lower with layer;
}

fn nest(plot: &Plot) -> Done {
    for name in ["nest", "nest/point"] {
        plot.mkdir(name)?;
    }
    Ok(())
}

/// A mounted overlayfs, unmounted however its law ends.
#[derive(Debug)]
struct Nested {
    plot: Plot,
    point: PathBuf,
}

impl Nested {
    /// `lowers` from the top; the upper with its work directory, if it is to be written.
    fn mount(plot: &Plot, lowers: &[&str], upper: Option<(&str, &str)>) -> Done<Self> {
        let at = |name: &str| plot.at(name).display().to_string();
        let lowers: Vec<_> = lowers.iter().map(|name| at(name)).collect();
        let mut options = format!("lowerdir={}", lowers.join(":"));
        if let Some((upper, work)) = upper {
            options += &format!(",upperdir={},workdir={}", at(upper), at(work));
        }
        let options = call("options", std::ffi::CString::new(options).map_err(|_| Errno::INVAL))?;
        let point = plot.at("nest/point");
        let flags = MountFlags::empty();
        match rustix::mount::mount("overlay", &point, "overlay", flags, options.as_c_str()) {
            Err(Errno::NODEV) => Err(Failure::skip("this kernel has no overlayfs")),
            Err(Errno::PERM) => Err(Failure::skip("nothing may be mounted here")),
            done => call("mount overlay", done)
                .map(|()| Self { plot: Plot::new(&point), point: point.clone() }),
        }
    }
}

impl Drop for Nested {
    fn drop(&mut self) {
        if let Err(error) = rustix::mount::unmount(&self.point, UnmountFlags::empty()) {
            eprintln!("unmounting {}: {error}", self.point.display());
        }
    }
}

const UPPER: Option<(&str, &str)> = Some(("nest/upper", "nest/work"));

fn overlayfs_keeps_its_upper_in_the_union(plot: &Plot) -> Done<Holds> {
    plot.mkdir("nest/upper")?;
    plot.mkdir("nest/work")?;
    let nested = Nested::mount(plot, &["marked_dir", "dir", "hard"], UPPER)?;
    let inner = &nested.plot;
    inner.append("a", b"!")?;
    inner.append("child", b"!")?;
    inner.unlink("b")?;
    inner.rename("sub/c", "moved")?;
    inner.create("sub/new", b"new\n")?;
    inner.remove_tree("far")?;
    inner.mkdir("far")?;
    inner.chmod("link", 0o600).or_else(|_| inner.chown("link", 1, 1))?;
    let unnamed = inner.open("", OFlags::TMPFILE | OFlags::RDWR);
    let born = match unnamed {
        Err(failure) if failure.errno == Some(Errno::OPNOTSUPP) => false,
        unnamed => {
            let unnamed = unnamed?;
            write_at(&unnamed, 0, b"late\n")?;
            let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&unnamed));
            let into = inner.at("late");
            let named = rustix::fs::linkat(CWD, &path, CWD, &into, AtFlags::SYMLINK_FOLLOW);
            call("linkat", named)?;
            same("links", stat_of(&unnamed)?.st_nlink, 1_u64)?;
            true
        }
    };
    drop(nested);
    let plot = plot.clone();
    from_now_on(move || {
        let nested = Nested::mount(&plot, &["marked_dir", "dir", "hard"], UPPER)?;
        let inner = &nested.plot;
        same("a", inner.read("a")?, b"dir/a!")?;
        same("child", inner.read("child")?, b"child\n!")?;
        inner.is_missing("b")?;
        inner.is_missing("sub/c")?;
        same("moved", inner.read("moved")?, b"dir/sub/c")?;
        same("sub/new", inner.read("sub/new")?, b"new\n")?;
        inner.names_are("far", &[])?;
        if born {
            same("late", inner.read("late")?, b"late\n")?;
        }
        drop(nested);
        let whiteout = plot.stat("nest/upper/b")?;
        let kind = FileType::from_raw_mode(whiteout.st_mode);
        same("a whiteout of its own", (kind, whiteout.st_rdev), (FileType::CharacterDevice, 0))?;
        let opaque = plot.xattr("nest/upper/far", "trusted.overlay.opaque")?;
        same("an opaque mark of its own", opaque, b"y")?;
        plot.names_are("dir", &["a", "b", "sub", "link"])
    })
}

/// A layer as docker unpacks it: whiteouts and opaque marks, all of them in the lower.
fn layer(plot: &Plot) -> Done {
    nest(plot)?;
    plot.mkdir("layer")?;
    plot.mkdir("layer/sub")?;
    plot.create("layer/sub/only", b"only\n")?;
    plot.set_xattr("layer/sub", "trusted.overlay.opaque", b"y")?;
    plot.mknod("layer/b", FileType::CharacterDevice, 0)?;
    plot.create("layer/big", &pattern(BIG_BYTES))
}

fn overlayfs_takes_a_layer_of_the_union_for_its_lower(plot: &Plot) -> Done<Holds> {
    plot.mkdir("nest/upper")?;
    plot.mkdir("nest/work")?;
    // A layer made now, over one of the lower.
    plot.mkdir("made")?;
    plot.mknod("made/a", FileType::CharacterDevice, 0)?;
    let lowers = ["made", "layer", "dir"];
    let shows = |inner: &Plot| -> Done {
        refused("a whiteout made now", inner.stat("a"), Errno::NOENT)?;
        refused("a whiteout of the lower", inner.stat("b"), Errno::NOENT)?;
        inner.names_are("sub", &["only"])?;
        inner.names_are("", &["sub", "big", "link"])
    };
    shows(&Nested::mount(plot, &lowers, None)?.plot)?;
    let nested = Nested::mount(plot, &lowers, UPPER)?;
    shows(&nested.plot)?;
    // It copies our file up, into our root.
    nested.plot.patch("big", 100, b"copied up")?;
    nested.plot.unlink("sub/only")?;
    drop(nested);
    let plot = plot.clone();
    from_now_on(move || {
        let mut content = pattern(BIG_BYTES);
        same("layer/big", &plot.read("layer/big")?, &content)?;
        content[100..109].copy_from_slice(b"copied up");
        same("nest/upper/big", &plot.read(Path::new("nest/upper/big"))?, &content)?;
        let nested = Nested::mount(&plot, &lowers, UPPER)?;
        same("big", &nested.plot.read("big")?, &content)?;
        nested.plot.names_are("sub", &[])
    })
}
