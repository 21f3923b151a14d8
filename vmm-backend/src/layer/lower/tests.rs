//! The laws of lowers that somebody changes while they are served.

use std::fs;
use std::io::Read;
use std::process::Command;

use super::*;
use crate::layer::testbed::{Bed, at, inode, is_root, plain, skip};

fn difference_of(changes: &crate::layer::testbed::Changes) -> Vec<(Vec<u8>, Difference, bool)> {
    let taken = std::mem::take(&mut *changes.lock().unwrap());
    taken.into_iter().map(|c| (c.path, c.difference, c.is_served)).collect()
}

#[test]
fn changed_directory_is_an_error_or_an_event() {
    let bed = Bed::new();
    let a = bed.tree("a", &["d/f", "e/g"]);
    let b = bed.tree("b", &["d/low"]);
    let specs = [plain(&a), plain(&b)];
    for strictness in [Strictness::Strict, Strictness::Lax] {
        let is_strict = strictness == Strictness::Strict;
        let (lower, changes) = bed.lower(&specs, strictness);
        assert_eq!(lower.child(ObjectId::ROOT, b"e").unwrap().unwrap().kind, Kind::Directory);
        let e = lower.resolve(b"e").unwrap().unwrap();
        let d = lower.resolve(b"d").unwrap().unwrap();
        lower.entries(e).unwrap();
        bed.shell("echo > b/d/new; echo > a/e/new");
        assert_eq!(lower.child(d, b"f").is_err(), is_strict);
        assert_eq!(lower.entries(d).map_or(0, |count| count), if is_strict { 0 } else { 2 });
        assert_eq!(difference_of(&changes), [(b"d".to_vec(), Difference::Contents, !is_strict)]);
        // What was already served stays.
        assert_eq!(lower.entries(e).unwrap(), 1);
        bed.shell("rm b/d/new a/e/new");
    }
}

#[test]
fn directory_that_went_is_an_error_with_any_policy() {
    let bed = Bed::new();
    let a = bed.tree("a", &["d/f"]);
    let (lower, changes) = bed.lower(&[plain(&a)], Strictness::Lax);
    let d = lower.resolve(b"d").unwrap().unwrap();
    bed.shell("mv a/d a/x; ln -s x a/d");
    assert_eq!(lower.entries(d).unwrap_err(), Errno::IO);
    assert_eq!(lower.entries(d).unwrap_err(), Errno::IO);
    assert_eq!(difference_of(&changes), [(b"d".to_vec(), Difference::Gone, false)]);
    bed.shell("rm a/d; mv a/x a/d");
    assert_eq!(lower.entries(d).unwrap(), 1);
}

#[test]
fn changed_file_is_an_error_or_an_event() {
    let bed = Bed::new();
    let a = bed.tree("a", &["f"]);
    for strictness in [Strictness::Strict, Strictness::Lax] {
        let is_strict = strictness == Strictness::Strict;
        let (lower, changes) = bed.lower(&[plain(&a)], strictness);
        let f = lower.resolve(b"f").unwrap().unwrap();
        let open = lower.open_file(f).unwrap();
        lower.verify_file(f, open.as_fd()).unwrap();
        bed.shell("echo longer than before > a/f");
        assert_eq!(lower.open_file(f).is_err(), is_strict);
        assert_eq!(lower.verify_file(f, open.as_fd()).is_err(), is_strict);
        assert_eq!(difference_of(&changes), [(b"f".to_vec(), Difference::Contents, !is_strict)]);
        let size = lower.attributes(f).unwrap().size;
        assert_eq!(size, if is_strict { 1 } else { 19 });
        fs::write(a.join("f"), "f").unwrap();
    }
}

#[test]
fn change_of_attributes_alone_is_read_again_and_reported() {
    let bed = Bed::new();
    let a = bed.tree("a", &["f", "d/g"]);
    let (lower, changes) = bed.lower(&[plain(&a)], Strictness::Strict);
    let id = |path| lower.resolve(path).unwrap().unwrap();
    let (f, d) = (id(b"f"), id(b"d"));
    bed.shell("chmod 640 a/f; ln a/f outside; chmod 750 a/d");
    let mut text = String::new();
    fs::File::from(lower.open_file(f).unwrap()).read_to_string(&mut text).unwrap();
    assert_eq!(text, "f");
    lower.entries(d).unwrap();
    lower.entries(d).unwrap();
    assert_eq!(
        difference_of(&changes),
        [
            (b"f".to_vec(), Difference::Attributes, true),
            (b"d".to_vec(), Difference::Attributes, true)
        ]
    );
    assert_eq!(lower.attributes(f).unwrap().mode, 0o100_640);
    assert_eq!(lower.attributes(f).unwrap().nlink, 1, "names in the merged view");
    assert_eq!(lower.attributes(d).unwrap().mode, 0o040_750);
}

#[test]
fn file_that_became_something_else_is_never_opened() {
    let bed = Bed::new();
    let a = bed.tree("a", &["f", "g", "d/h"]);
    let (lower, changes) = bed.lower(&[plain(&a)], Strictness::Lax);
    let ids = [b"f".as_slice(), b"g", b"d/h"].map(|path| lower.resolve(path).unwrap().unwrap());
    bed.shell("rm a/f a/g; mkfifo a/f; ln -s /etc/passwd a/g; rm -r a/d; ln -s /etc a/d");
    for id in ids {
        assert_eq!(lower.open_file(id).unwrap_err(), Errno::IO);
    }
    assert!(difference_of(&changes).iter().all(|(_, what, _)| *what == Difference::Gone));
}

#[test]
fn as_many_roots_are_needed_as_there_are_layers() {
    let bed = Bed::new();
    let a = bed.tree("a", &["f"]);
    let index = bed.seal(&[plain(&a)]);
    let policy = LowerPolicy { strictness: Strictness::Strict, on_change: Box::new(|_| {}) };
    let error = Lower::new(index, Vec::new(), policy).unwrap_err();
    assert!(matches!(error, LowerError::Roots { expected: 1, given: 0 }));
}

#[test]
fn nothing_is_opened_after_the_first_use_of_a_directory() {
    let bed = Bed::new();
    let a = bed.tree("a", &["d/f", "d/g"]);
    let (lower, _) = bed.lower(&[plain(&a)], Strictness::Strict);
    let d = lower.resolve(b"d").unwrap().unwrap();
    lower.entries(d).unwrap();
    // Had it looked again, it would miss the lower.
    fs::rename(&a, bed.path("elsewhere")).unwrap();
    fs::remove_dir_all(bed.path("elsewhere")).unwrap();
    assert_eq!(lower.child(d, b"f").unwrap().unwrap().kind, Kind::File);
    assert_eq!(lower.entries(d).unwrap(), 2);
}

#[test]
fn origin_is_what_the_kernel_writes_at_copy_up() {
    if !is_root() {
        return;
    }
    let bed = Bed::new();
    let a = bed.tree("lower", &["d/f", "top"]);
    bed.shell("mkdir upper work merged; ln -s x lower/s");
    // Its own mount namespace: the mount dies with the shell.
    let script = "mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work merged
        chmod 600 merged/d/f; chmod 700 merged/d; chown -h 1 merged/s";
    let mounted = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-ec", script])
        .current_dir(bed.path(""))
        .output()
        .unwrap();
    if !mounted.status.success() {
        skip(&format!("no overlayfs here: {}", String::from_utf8_lossy(&mounted.stderr)));
        return;
    }
    let (lower, _) = bed.lower(&[plain(&a)], Strictness::Strict);
    for path in ["d/f", "d", "s"] {
        let copy = bed.path("upper").join(path);
        assert_ne!(inode(&copy), inode(&a.join(path)), "{path} was copied up");
        let mut value = [0; 256];
        let bytes = rustix::fs::lgetxattr(&copy, "trusted.overlay.origin", &mut value[..]).unwrap();
        let ours = lower.origin_handle(at(lower.index(), path)).unwrap();
        assert_eq!(ours, value[..bytes], "{path}");
    }
}
