//! Which change by whom takes setuid, setgid and file capabilities away.

use std::os::fd::OwnedFd;

use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::Errno;

use super::ground::{GROUP, USER, file_capability};
use super::plot::{
    Done, Failure, Holds, Plot, as_user, call, from_now_on, open_again, same, write_at,
};
use super::raw::Mapping;

super::laws! {
    35 => change_by_anyone_clears_privileges_as_linux_does with clearing;
    35 => change_by_root_keeps_setuid_and_setgid with roots;
    35 => change_by_the_owner_keeps_setgid_that_is_no_privilege;
    35 => setgid_that_is_no_privilege_goes_where_the_kernel_takes_it with idle_setgid;
    35 => store_through_a_mapping_keeps_file_capabilities;
}

/// A change of data through a descriptor.
type Change = (&'static str, fn(&Plot, &OwnedFd) -> Done);

const CHANGES: [Change; 8] = [
    ("write", |_, file| write_at(file, 0, b"S")),
    ("append", |_, file| {
        call("lseek", rustix::fs::seek(file, rustix::fs::SeekFrom::End(0)))?;
        call("write", rustix::io::write(file, b"!")).map(drop)
    }),
    ("ftruncate", |_, file| call("ftruncate", rustix::fs::ftruncate(file, 3))),
    ("growing ftruncate", |_, file| call("ftruncate", rustix::fs::ftruncate(file, 30_000))),
    ("fallocate", |_, file| {
        call("fallocate", rustix::fs::fallocate(file, FallocateFlags::empty(), 0, 5000))
    }),
    ("punch", |_, file| {
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        call("fallocate", rustix::fs::fallocate(file, punch, 0, 4096))
    }),
    ("copy_file_range", |plot, file| {
        let from = plot.open("big", OFlags::RDONLY)?;
        let copied = rustix::fs::copy_file_range(&from, None, file, Some(&mut 0), 3);
        same("bytes", call("copy_file_range", copied)?, 3_usize)
    }),
    ("O_TRUNC", |_, file| open_again(file, OFlags::WRONLY | OFlags::TRUNC).map(drop)),
];

/// setuid and setgid, and what is left of them when somebody without a right to them writes.
const MODES: [(u32, u32); 3] = [(0o6777, 0o777), (0o4767, 0o767), (0o2775, 0o775)];

fn name_of(change: usize, mode: u32, who: &str) -> String {
    format!("clearing/{change}-{mode:o}-{who}")
}

/// A file for each of them.
fn clearing(plot: &Plot) -> Done {
    plot.mkdir("clearing")?;
    for number in 0..CHANGES.len() {
        for (mode, _) in MODES {
            for who in ["owner", "member"] {
                let name = name_of(number, mode, who);
                plot.create(&name, b"suid\n")?;
                plot.chown(&name, USER, GROUP)?;
                plot.chmod(&name, mode)?;
                plot.set_xattr(&name, "security.capability", &file_capability())?;
            }
        }
    }
    Ok(())
}

fn change_by_anyone_clears_privileges_as_linux_does(plot: &Plot) -> Done<Holds> {
    let mut expected = Vec::new();
    for (number, (what, change)) in CHANGES.iter().enumerate() {
        for (mode, left) in MODES {
            for (who, uid, gid) in [("owner", USER, GROUP), ("member", 2000, GROUP)] {
                let name = name_of(number, mode, who);
                let what = format!("{what} of {mode:o} by the {who}");
                as_user(uid, gid, || change(plot, &plot.open(&name, OFlags::RDWR)?)).map_err(
                    |failure| Failure { text: format!("{what}: {}", failure.text), ..failure },
                )?;
                expected.push((what, name, left));
            }
        }
    }
    let plot = plot.clone();
    from_now_on(move || {
        let mut wrong = other_modes(&plot, &expected)?;
        for (what, name, _) in &expected {
            if plot.xattr(name, "security.capability").is_ok() {
                wrong.push(format!("{what}: capabilities stay"));
            }
        }
        same("what a change clears", wrong, Vec::<String>::new())
    })
}

/// What was done to which file, and the mode it is to have.
type Expected = (String, String, u32);

/// The files that have another mode, told.
fn other_modes(plot: &Plot, expected: &[Expected]) -> Done<Vec<String>> {
    let mut wrong = Vec::new();
    for (what, name, left) in expected {
        let mode = plot.mode(name)?;
        if mode != *left {
            wrong.push(format!("{what}: {mode:o} instead of {left:o}"));
        }
    }
    Ok(wrong)
}

fn name_of_roots(change: usize) -> String {
    format!("roots/{change}")
}

fn roots(plot: &Plot) -> Done {
    plot.mkdir("roots")?;
    for number in 0..CHANGES.len() {
        plot.create(name_of_roots(number), b"suid\n")?;
        plot.chmod(name_of_roots(number), 0o6777)?;
    }
    Ok(())
}

fn change_by_root_keeps_setuid_and_setgid(plot: &Plot) -> Done<Holds> {
    for (number, (_, change)) in CHANGES.iter().enumerate() {
        change(plot, &plot.open(name_of_roots(number), OFlags::RDWR)?)?;
    }
    let plot = plot.clone();
    from_now_on(move || {
        for (number, (what, _)) in CHANGES.iter().enumerate() {
            same(what, plot.mode(name_of_roots(number))?, 0o6777_u32)?;
        }
        Ok(())
    })
}

/// Modes whose group may not execute, and who changes a file of `USER` and `GROUP` that has them.
/// (By a member of the group, setuid beside it: see the known differences.)
const IDLE: [(u32, u32, u32); 5] = [
    (0o2666, USER, GROUP),
    (0o2666, 2000, GROUP),
    (0o2666, 2000, 2000),
    (0o6666, 2000, 2000),
    (0o6646, 2000, 2000),
];

fn name_of_idle(change: usize, (mode, uid, gid): (u32, u32, u32)) -> String {
    format!("idle/{change}-{mode:o}-{uid}-{gid}")
}

fn idle_setgid(plot: &Plot) -> Done {
    plot.mkdir("idle")?;
    for number in 0..CHANGES.len() {
        for row in IDLE {
            plot.create(name_of_idle(number, row), b"idle\n")?;
            plot.chown(name_of_idle(number, row), USER, GROUP)?;
            plot.chmod(name_of_idle(number, row), row.0)?;
        }
    }
    Ok(())
}

/// Linux 6.2 began to take it from files of groups that the writer is not in. What this kernel does
/// a file in its memory tells.
fn setgid_that_is_no_privilege_goes_where_the_kernel_takes_it(plot: &Plot) -> Done<Holds> {
    let mut expected = Vec::new();
    for row in IDLE {
        let (mode, uid, gid) = row;
        let memory = rustix::fs::memfd_create("idle", rustix::fs::MemfdFlags::CLOEXEC);
        let memory = call("memfd_create", memory)?;
        let owner = (rustix::fs::Uid::from_raw(USER), rustix::fs::Gid::from_raw(GROUP));
        call("fchown", rustix::fs::fchown(&memory, Some(owner.0), Some(owner.1)))?;
        call("fchmod", rustix::fs::fchmod(&memory, rustix::fs::Mode::from_raw_mode(mode)))?;
        as_user(uid, gid, || write_at(&memory, 0, b"I"))?;
        let left = call("fstat", rustix::fs::fstat(&memory))?.st_mode & 0o7777;
        for (number, (what, change)) in CHANGES.iter().enumerate() {
            if what.contains("TRUNC") || what.contains("truncate") {
                // A truncation says only that its caller is not root: see the known differences.
                continue;
            }
            let name = name_of_idle(number, row);
            as_user(uid, gid, || change(plot, &plot.open(&name, OFlags::RDWR)?))?;
            expected.push((format!("{what} of {mode:o} by {uid}:{gid}"), name, left));
        }
    }
    let plot = plot.clone();
    from_now_on(move || {
        same("what a change clears", other_modes(&plot, &expected)?, Vec::<String>::new())
    })
}

fn change_by_the_owner_keeps_setgid_that_is_no_privilege(plot: &Plot) -> Done<Holds> {
    // Written through a mapping, nobody asks who: the first store counts as a write.
    let file = plot.open("suid", OFlags::RDWR)?;
    let mapping = Mapping::new(&file, 5, true)?;
    same("a mapping alone clears nothing", plot.mode("suid")?, 0o6777_u32)?;
    drop(mapping);
    plot.chmod("owned", 0o2640)?;
    as_user(USER, GROUP, || {
        plot.append("owned", b"!")?;
        plot.chmod("owned", 0o2650)?;
        plot.set_xattr("owned", "user.x", b"1")
    })?;
    same("in the group", plot.mode("owned")?, 0o2650_u32)?;
    let refused = as_user(2000, 2000, || plot.chmod("owned", 0o6777));
    super::plot::refused("chmod by a stranger", refused, Errno::PERM)?;
    let plot = plot.clone();
    from_now_on(move || same("suid", plot.mode("suid")?, 0o6777_u32))
}

/// What was cached is written by nobody in particular, whenever that is.
fn store_through_a_mapping_keeps_file_capabilities(plot: &Plot) -> Done<Holds> {
    const KEY: &str = "security.capability";
    let file = plot.open("file", OFlags::RDWR)?;
    plot.set_xattr("file", KEY, &file_capability())?;
    let mapping = Mapping::new(&file, 5, true)?;
    mapping.write(0, b"L")?;
    mapping.sync()?;
    drop((mapping, file));
    let plot = plot.clone();
    from_now_on(move || {
        same("content", plot.read("file")?, b"Lower\n")?;
        same("capability", plot.xattr("file", KEY)?, file_capability())
    })
}
