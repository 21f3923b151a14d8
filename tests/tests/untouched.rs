//! What an untouched base costs a daemon: no file-system call for what it was shown once, and few
//! descriptors, however many objects the guest knows.
#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use tests::mount::{Mount, Site, may_mount};
use tests::trace::{Calls, Trace};

const DIRECTORIES: usize = 200;
const FILES: usize = 96;
const LINKS: usize = 4;

/// Waiting for the guest and answering it: reading and writing /dev/fuse, threads among themselves,
/// and what the allocator asks of the kernel now and then. All else is a call on a file system, or
/// one that should not be there.
const SERVING: [&str; 14] = [
    "read",
    "write",
    "writev",
    "epoll_pwait",
    "epoll_wait",
    "ppoll",
    "futex",
    "sched_yield",
    "restart_syscall",
    "brk",
    "mmap",
    "munmap",
    "mprotect",
    "madvise",
];

fn make_base(lower: &Path) {
    for directory in 0..DIRECTORIES {
        let directory = lower.join(format!("d{directory}"));
        fs::create_dir(&directory).unwrap();
        for file in 0..FILES {
            fs::write(directory.join(format!("f{file}")), file.to_string()).unwrap();
        }
        for link in 0..LINKS {
            symlink(format!("f{link}"), directory.join(format!("l{link}"))).unwrap();
        }
    }
}

/// Lists, looks at and reads the links of everything, as `find -ls` does. Gives how much there was.
fn find(root: &Path) -> usize {
    let mut seen = 0;
    for row in fs::read_dir(root).unwrap() {
        let path = row.unwrap().path();
        let found = fs::symlink_metadata(&path).unwrap();
        seen += 1;
        if found.is_dir() {
            seen += find(&path);
        } else if found.is_symlink() {
            fs::read_link(&path).unwrap();
        }
    }
    seen
}

/// What the guest's kernel knows is forgotten, so that it asks again.
fn forget_everything() {
    fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
}

fn descriptors(mount: &Mount) -> usize {
    fs::read_dir(Path::new("/proc").join(mount.daemon().to_string()).join("fd")).unwrap().count()
}

fn others(calls: &Calls) -> Vec<String> {
    let others = calls.iter().filter(|(name, _)| !SERVING.contains(&name.as_str()));
    others.map(|(name, count)| format!("{count} {name}")).collect()
}

/// Issue 2, acceptance 8.
#[test]
fn what_was_shown_once_costs_no_call_and_few_descriptors() {
    const TEST: &str = "what_was_shown_once_costs_no_call_and_few_descriptors";
    if !may_mount(TEST) {
        return;
    }
    let site = Site::new();
    // The root itself is the upper's, always.
    fs::create_dir(site.lower().join("top")).unwrap();
    make_base(&site.lower().join("top"));
    let mount = site.mount(&[]);
    let top = mount.root().join("top");
    let all = DIRECTORIES * (1 + FILES + LINKS);
    assert!(all >= 20_000, "{all}");
    assert_eq!(find(&top), all);

    // Known to the guest: its kernel's cache may answer, or ask us.
    let Some(trace) = Trace::of(TEST, mount.daemon()) else { return };
    assert_eq!(find(&top), all);
    let calls = trace.calls();
    assert!(others(&calls).is_empty(), "known objects: {:?}", others(&calls));

    // Forgotten by the guest: looked up, listed and read again.
    forget_everything();
    let Some(trace) = Trace::of(TEST, mount.daemon()) else { return };
    assert_eq!(find(&top), all);
    let calls = trace.calls();
    let asked =
        calls.get("write").copied().unwrap_or(0) + calls.get("writev").copied().unwrap_or(0);
    let least = u64::try_from(DIRECTORIES * LINKS).unwrap();
    assert!(asked > least, "the guest asked nothing: {calls:?}");
    assert!(others(&calls).is_empty(), "indexed objects: {:?}", others(&calls));

    // Every file is opened and read: the daemon opens them too, and keeps few.
    for directory in 0..DIRECTORIES {
        for file in 0..FILES {
            let path = top.join(format!("d{directory}/f{file}"));
            assert_eq!(fs::read_to_string(path).unwrap(), file.to_string());
        }
    }
    let open = descriptors(&mount);
    assert!(open < 600, "{open} descriptors with {all} known nodes");
    println!("{open} descriptors with {all} known nodes; {asked} replies without another call");
    mount.unmount();
}
