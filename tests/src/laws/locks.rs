//! Locks of records, and what watches a file.

use std::mem::MaybeUninit;

use rustix::fs::OFlags;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;

use super::plot::{
    Done, Holds, Plot, call, from_now_on, holds, nothing_more, refused, same, write_at,
};
use super::raw::{Owner, as_another_process, lock};

super::laws! {
    41 => record_locks_exclude_each_other;
    41 => watcher_hears_of_every_change;
}

fn record_locks_exclude_each_other(plot: &Plot) -> Done<Holds> {
    let (first, second) = (plot.open("big", OFlags::RDWR)?, plot.open("big", OFlags::RDWR)?);
    for owner in [Owner::Process, Owner::Description] {
        let what = |what: &str| format!("{owner:?}: {what}");
        lock(&first, owner, libc::F_WRLCK, (0, 100))?;
        // The lock is the object's, whatever becomes of its layer. (Closing any descriptor of it
        // would give a process's locks back.)
        write_at(&second, 200_000, b"up")?;
        plot.rename("big", "moved")?;
        let another = || -> Done {
            let file = plot.open("moved", OFlags::RDWR)?;
            let taken = lock(&file, owner, libc::F_RDLCK, (50, 10));
            refused(&what("a shared lock in the range"), taken, Errno::AGAIN)?;
            lock(&file, owner, libc::F_WRLCK, (100, 10))
        };
        match owner {
            Owner::Process => as_another_process(another)?,
            Owner::Description => another()?,
        }
        lock(&first, owner, libc::F_UNLCK, (0, 100))?;
        lock(&second, owner, libc::F_WRLCK, (50, 10))?;
        lock(&second, owner, libc::F_UNLCK, (0, 0))?;
        plot.rename("moved", "big")?;
    }
    nothing_more()
}

fn watcher_hears_of_every_change(plot: &Plot) -> Done<Holds> {
    let watcher = call("inotify_init", inotify::init(CreateFlags::NONBLOCK))?;
    for name in ["", "big", "dir"] {
        let flags = WatchFlags::ALL_EVENTS;
        call("inotify_add_watch", inotify::add_watch(&watcher, plot.at(name), flags))?;
    }
    plot.patch("big", 0, b"!")?;
    plot.chmod("big", 0o600)?;
    plot.rename("file", "dir/moved")?;
    plot.create("dir/new", b"")?;
    plot.unlink("dir/a")?;
    plot.unlink("big")?;
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(&watcher, &mut buffer);
    let mut seen = Vec::new();
    loop {
        match reader.next() {
            Ok(event) => {
                let name = event.file_name().map(|name| name.to_string_lossy().into_owned());
                seen.push((event.events(), name));
            }
            Err(Errno::AGAIN) => break,
            Err(error) => return call("read of inotify", Err(error)),
        }
    }
    let has = |flag: ReadFlags, name: Option<&str>| {
        seen.iter().any(|(flags, seen)| flags.contains(flag) && seen.as_deref() == name)
    };
    let rows = [
        (ReadFlags::MODIFY, None),
        (ReadFlags::ATTRIB, None),
        (ReadFlags::MODIFY, Some("big")),
        (ReadFlags::MOVED_FROM, Some("file")),
        (ReadFlags::MOVED_TO, Some("moved")),
        (ReadFlags::CREATE, Some("new")),
        (ReadFlags::DELETE, Some("a")),
        (ReadFlags::DELETE, Some("big")),
        (ReadFlags::DELETE_SELF, None),
    ];
    for (flag, name) in rows {
        holds(&format!("{flag:?} of {name:?} is heard of"), has(flag, name))?;
    }
    let plot = plot.clone();
    from_now_on(move || same("dir/moved", plot.read("dir/moved")?, b"lower\n"))
}
