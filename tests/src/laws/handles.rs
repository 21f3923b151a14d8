//! File handles, which name an object whatever is forgotten.

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::plot::{
    Done, Failure, Holds, Plot, call, from_now_on, nothing_more, read_all, refused, same, stat_of,
};
use super::raw::{Handle, handle_of, open_handle};

super::laws! {
    6 => handle_leads_to_its_object_while_it_is_known;
    4 => handle_of_an_object_stays_the_same;
    6 => handle_leads_to_its_object_when_nobody_holds_it;
    6 => handle_of_what_is_gone_is_stale;
}

const NAMES: [&str; 12] = [
    "file",
    "big",
    "dir",
    "dir/sub/deeper",
    "dir/sub/deeper/d",
    "hard/far/c",
    "empty_dir",
    "new",
    "new_dir",
    "new_dir/inside",
    "dir2",
    "dir2/sub/e",
];

fn handle_at(plot: &Plot, name: &str) -> Done<Handle> {
    match handle_of(plot.open(name, OFlags::PATH | OFlags::NOFOLLOW)?) {
        Err(failure) if failure.errno == Some(Errno::OPNOTSUPP) => {
            Err(Failure::skip("no file handles here"))
        }
        result => result,
    }
}

fn handle_leads_to_its_object_while_it_is_known(plot: &Plot) -> Done<Holds> {
    plot.create("new", b"new\n")?;
    plot.mkdir("new_dir")?;
    plot.create("new_dir/inside", b"inside\n")?;
    let mut known = Vec::new();
    for name in NAMES {
        known.push((handle_at(plot, name)?, plot.number(name)?));
    }
    plot.append("file", b"!")?;
    plot.chmod("dir", 0o711)?;
    plot.patch("big", 5, b"!")?;
    plot.append("hard/a", b"!")?;
    plot.unlink("hard/far/c")?;
    plot.rename("dir", "new_dir/moved")?;
    plot.rename("dir2/sub/e", "e")?;
    for (name, (handle, _)) in NAMES[..2].iter().zip(&known) {
        same(&format!("handle of {name}"), &handle_at(plot, name)?, handle)?;
    }
    let mount = plot.open("", OFlags::RDONLY)?;
    let mut content = Vec::new();
    for (name, (handle, number)) in NAMES.iter().zip(&known) {
        let open = open_handle(&mount, handle, libc::O_RDONLY);
        let open = open
            .map_err(|failure| Failure { text: format!("{name}: {}", failure.text), ..failure })?;
        same(name, stat_of(&open)?.st_ino, *number)?;
        if matches!(*name, "file" | "hard/far/c" | "new_dir/inside" | "dir2/sub/e") {
            content.push(String::from_utf8_lossy(&read_all(&open)?).into_owned());
        }
    }
    same("content", content, ["lower\n!", "linked\n!", "inside\n", "dir2/sub/e"])?;
    nothing_more()
}

/// Number and generation are what a handle is made of.
fn handle_of_an_object_stays_the_same(plot: &Plot) -> Done<Holds> {
    plot.create("new", b"new\n")?;
    plot.mkdir("new_dir")?;
    let rows = [
        ("file", "moved"),
        ("big", "dir2/sub/big"),
        ("dir", "new_dir/dir"),
        ("new", "new_dir/dir/sub/new"),
        ("empty_dir", "empty_dir"),
        ("hard/a", "hard/far/d"),
        ("symlink", "new_dir/symlink"),
        ("device", "device"),
    ];
    let handles = rows.map(|(name, _)| handle_at(plot, name));
    let handles = handles.into_iter().collect::<Done<Vec<_>>>()?;
    plot.append("file", b"!")?;
    plot.link("new", "linked")?;
    plot.create("empty_dir/new", b"")?;
    for (name, new_name) in rows {
        plot.chown(name, 5, 6)?;
        if name != new_name {
            plot.rename(name, new_name)?;
        }
    }
    let plot = plot.clone();
    from_now_on(move || {
        for ((_, name), handle) in rows.iter().zip(&handles) {
            same(&format!("handle of {name}"), &handle_at(&plot, name)?, handle)?;
        }
        same("handle of linked", &handle_at(&plot, "linked")?, &handles[3])
    })
}

fn handle_of_what_is_gone_is_stale(plot: &Plot) -> Done<Holds> {
    plot.create("new", b"")?;
    let names = ["file", "big", "empty_dir", "new"];
    let handles = names.iter().map(|name| handle_at(plot, name)).collect::<Done<Vec<_>>>()?;
    plot.chmod("file", 0o600)?;
    ["file", "big", "new"].iter().try_for_each(|name| plot.unlink(name))?;
    plot.rmdir("empty_dir")?;
    plot.create("file", b"another\n")?;
    let plot = plot.clone();
    from_now_on(move || {
        let mount = plot.open("", OFlags::RDONLY)?;
        for (name, handle) in names.iter().zip(&handles) {
            refused(name, open_handle(&mount, handle, libc::O_RDONLY), Errno::STALE)?;
        }
        Ok(())
    })
}

/// Whether a FUSE of this kernel keeps what a file handle may lead to from an overlayfs: it has
/// epochs, and none for such an entry, so that the daemon must not give any.
fn has_epochs(plot: &Plot) -> Done<bool> {
    /// statfs(2).
    const FUSE_SUPER_MAGIC: i64 = 0x6573_5546;
    let directory = plot.open("", OFlags::RDONLY)?;
    let kind = call("fstatfs", rustix::fs::fstatfs(&directory))?.f_type;
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    let mut numbers = release.split(['.', '-']).map(|number| number.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    Ok(kind == FUSE_SUPER_MAGIC && version >= (6, 16))
}

fn handle_leads_to_its_object_when_nobody_holds_it(plot: &Plot) -> Done<Holds> {
    plot.create("new", b"new\n")?;
    let rows = [
        ("file", "dir2/file", "lower\n"),
        ("dir/sub/deeper/d", "moved/sub/deeper/d", "dir/sub/deeper/d"),
        ("hard/far/c", "hard/far/c", "linked\n"),
        ("new", "moved/new", "new\n"),
        ("other", "other", "other\n"),
    ];
    let handles = rows.map(|(name, ..)| handle_at(plot, name));
    let handles = handles.into_iter().collect::<Done<Vec<_>>>()?;
    plot.rename("dir", "moved")?;
    plot.rename("file", "dir2/file")?;
    plot.rename("new", "moved/new")?;
    plot.unlink("hard/a")?;
    let plot = plot.clone();
    from_now_on(move || {
        let mount = plot.open("", OFlags::RDONLY)?;
        for ((_, name, content), handle) in rows.iter().zip(&handles) {
            let file = match open_handle(&mount, handle, libc::O_RDONLY) {
                Err(failure) if failure.errno == Some(Errno::STALE) && has_epochs(&plot)? => {
                    continue;
                }
                file => file?,
            };
            same(name, String::from_utf8_lossy(&read_all(&file)?).as_ref(), *content)?;
            same(name, stat_of(&file)?.st_ino, plot.number(name)?)?;
        }
        Ok(())
    })
}
