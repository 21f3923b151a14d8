//! Laws that take the daemon's side: its death, failing calls, and a lower changed underneath.
#![allow(clippy::unwrap_used, reason = "a test's panic is its report")]

use std::path::Path;

use rustix::fs::OFlags;
use tests::laws::ground;
use tests::laws::plot::{Plot, call, write_at};
use tests::mount::{Site, may_mount};

fn prepared() -> (Site, Plot) {
    let site = Site::new();
    let lower = Plot::new(site.lower());
    ground::lay_out(&lower).unwrap();
    ground::age(&lower, Path::new("")).unwrap();
    let plot = Plot::new(site.point());
    (site, plot)
}

fn sync(plot: &Plot, name: &str) {
    let open = plot.open(name, OFlags::RDONLY).unwrap();
    call("fsync", rustix::fs::fsync(&open)).unwrap();
}

#[test]
fn synced_changes_survive_the_death_of_the_daemon() {
    if !may_mount("synced_changes_survive_the_death_of_the_daemon") {
        return;
    }
    let (site, plot) = prepared();
    let mount = site.mount(&[]);
    plot.append("file", b"more\n").unwrap();
    sync(&plot, "file");
    plot.patch("big", 150_000, b"changed").unwrap();
    sync(&plot, "big");
    plot.create("dir/new", b"new\n").unwrap();
    sync(&plot, "dir/new");
    plot.rename("dir2", "dir/moved").unwrap();
    plot.unlink("other").unwrap();
    plot.chmod("hard/b", 0o600).unwrap();
    let held = plot.open("empty", OFlags::RDWR).unwrap();
    plot.unlink("empty").unwrap();
    write_at(&held, 0, b"held").unwrap();
    mount.crash();

    let mount = site.mount(&[]);
    let mut big = tests::laws::plot::pattern(ground::BIG_BYTES);
    big[150_000..150_007].copy_from_slice(b"changed");
    assert_eq!(plot.read("file").unwrap(), b"lower\nmore\n");
    assert_eq!(plot.read("big").unwrap(), big);
    assert_eq!(plot.read("dir/new").unwrap(), b"new\n");
    assert_eq!(plot.read("dir/moved/sub/e").unwrap(), b"dir2/sub/e");
    assert_eq!(plot.mode("hard/far/c").unwrap(), 0o600);
    ["dir2", "other", "empty"].iter().try_for_each(|name| plot.is_missing(name)).unwrap();
    mount.unmount();
    for left in ["work", "orphans"] {
        let names = Plot::new(site.work()).names(left).unwrap();
        let is_tidy = names.iter().all(|name| name == "whiteout");
        assert!(is_tidy, "left behind in {left}: {names:?}");
    }
}
