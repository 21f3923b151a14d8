//! Listings.

use std::collections::HashSet;
use std::ffi::OsString;
use std::mem::MaybeUninit;

use rustix::fs::{FileType, OFlags, RawDir, SeekFrom};
use rustix::io::Errno;

use super::plot::{Done, Failure, Holds, Plot, call, from_now_on, holds, list, nothing_more, same};

super::laws! {
    10 => each_name_is_listed_once;
    10 => listed_type_is_the_objects;
    10 => dot_and_dot_dot_are_listed;
    11 => directory_emptied_while_read_shows_every_name with crowd;
    11 => listing_loses_nothing_while_others_change_it with crowd;
    11 => rewound_listing_shows_what_is_there_now;
    12 => position_leads_to_the_next_entry with crowd;
    12 => position_survives_changes_before_it with crowd;
    12 => listing_of_a_file_is_refused;
}

/// Entries of `crowd`, in the lower; as many again are made by the laws.
const LOWER_CROWD: usize = 1000;

fn crowd(plot: &Plot) -> Done {
    plot.mkdir("crowd")?;
    (0..LOWER_CROWD).try_for_each(|n| plot.create(format!("crowd/lower{n}"), b""))
}

fn more(plot: &Plot) -> Done {
    (0..LOWER_CROWD).try_for_each(|n| plot.create(format!("crowd/upper{n}"), b""))?;
    plot.chmod("crowd/lower7", 0o600)
}

fn each_name_is_listed_once(plot: &Plot) -> Done<Holds> {
    plot.append("dir/a", b"!")?;
    plot.create("dir/new", b"")?;
    plot.unlink("dir/b")?;
    plot.create("dir/b", b"again")?;
    plot.rename("dir/link", "dir/renamed")?;
    plot.chmod("dir/sub", 0o700)?;
    plot.unlink("dir/new")?;
    plot.mkdir("dir/new")?;
    let plot = plot.clone();
    from_now_on(move || plot.names_are("dir", &["a", "b", "sub", "new", "renamed"]))
}

fn listed_type_is_the_objects(plot: &Plot) -> Done<Holds> {
    plot.chmod("fifo", 0o600)?;
    plot.chmod("device", 0o600)?;
    plot.chown("socket", 1, 1)?;
    plot.chown("symlink", 1, 1)?;
    plot.unlink("other")?;
    plot.mkdir("other")?;
    plot.mknod("dir/fifo", FileType::Fifo, 0)?;
    plot.rmdir("empty_dir")?;
    plot.symlink("x", "empty_dir")?;
    let plot = plot.clone();
    from_now_on(move || {
        for directory in ["", "dir", "hard"] {
            for row in plot.entries(directory)? {
                let path = std::path::Path::new(directory).join(&row.name);
                same(&format!("type of {}", path.display()), row.kind, plot.kind(&path)?)?;
            }
        }
        same("other", plot.kind("other")?, FileType::Directory)
    })
}

fn dot_and_dot_dot_are_listed(plot: &Plot) -> Done<Holds> {
    plot.create("dir/new", b"")?;
    plot.mkdir("dir/new_dir")?;
    let plot = plot.clone();
    from_now_on(move || {
        for name in ["dir", "dir/sub", "dir/new_dir", "empty_dir"] {
            let rows = list(plot.open(name, OFlags::RDONLY)?)?;
            for dots in [".", ".."] {
                let count = rows.iter().filter(|row| row.name == dots).count();
                same(&format!("{dots} in {name}"), count, 1_usize)?;
            }
        }
        Ok(())
    })
}

/// Reads a directory in small bites and calls `visit` for each name but the dots.
fn read_slowly(plot: &Plot, name: &str, visit: &mut dyn FnMut(OsString) -> Done) -> Done {
    use std::os::unix::ffi::OsStringExt;
    let directory = plot.open(name, OFlags::RDONLY | OFlags::DIRECTORY)?;
    let mut buffer = [MaybeUninit::uninit(); 512];
    let mut rows = RawDir::new(&directory, &mut buffer);
    while let Some(row) = rows.next() {
        let name = call("getdents64", row)?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            visit(OsString::from_vec(name))?;
        }
    }
    Ok(())
}

fn directory_emptied_while_read_shows_every_name(plot: &Plot) -> Done<Holds> {
    more(plot)?;
    let mut seen = HashSet::new();
    read_slowly(plot, "crowd", &mut |name| {
        plot.unlink(std::path::Path::new("crowd").join(&name))?;
        let is_new = seen.insert(name);
        holds("no name is shown twice", is_new)
    })?;
    same("names seen", seen.len(), 2 * LOWER_CROWD)?;
    plot.rmdir("crowd")?;
    let plot = plot.clone();
    from_now_on(move || plot.is_missing("crowd"))
}

/// It also ends, though each name read adds another.
fn listing_loses_nothing_while_others_change_it(plot: &Plot) -> Done<Holds> {
    more(plot)?;
    let mut seen: Vec<OsString> = Vec::new();
    let mut round = 0;
    read_slowly(plot, "crowd", &mut |name| {
        seen.push(name);
        // What is made, moved and removed meanwhile may show or not; the others must.
        plot.create(format!("crowd/new{round}"), b"")?;
        if round % 3 == 0 {
            plot.rename(format!("crowd/new{round}"), format!("crowd/other{round}"))?;
        } else if round % 7 == 0 {
            plot.unlink(format!("crowd/new{round}"))?;
        }
        if round < LOWER_CROWD {
            plot.chmod(format!("crowd/lower{round}"), 0o600)?;
        }
        round += 1;
        if round > 20 * LOWER_CROWD {
            return Err(Failure::new("the listing never ends"));
        }
        Ok(())
    })?;
    let stays = |name: &&OsString| {
        name.to_str().is_some_and(|name| name.starts_with("lower") || name.starts_with("upper"))
    };
    let seen: Vec<_> = seen.iter().filter(stays).collect();
    let distinct: HashSet<_> = seen.iter().collect();
    same("names seen", distinct.len(), 2 * LOWER_CROWD)?;
    same("names seen twice", seen.len() - distinct.len(), 0_usize)?;
    let plot = plot.clone();
    from_now_on(move || {
        let names = plot.names("crowd")?;
        let distinct: HashSet<_> = names.iter().collect();
        same("listed twice", names.len() - distinct.len(), 0_usize)?;
        same("names that stay", names.iter().filter(stays).count(), 2 * LOWER_CROWD)
    })
}

fn rewound_listing_shows_what_is_there_now(plot: &Plot) -> Done<Holds> {
    let directory = plot.open("dir", OFlags::RDONLY | OFlags::DIRECTORY)?;
    let names = |directory: &std::os::fd::OwnedFd| -> Done<HashSet<OsString>> {
        call("lseek", rustix::fs::seek(directory, SeekFrom::Start(0)))?;
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut rows = RawDir::new(directory, &mut buffer);
        let mut names = HashSet::new();
        while let Some(row) = rows.next() {
            let name = call("getdents64", row)?.file_name().to_string_lossy().into_owned();
            names.insert(OsString::from(name));
        }
        Ok(names)
    };
    let set = |names: &[&str]| names.iter().map(OsString::from).collect::<HashSet<_>>();
    same("at first", names(&directory)?, set(&[".", "..", "a", "b", "sub", "link"]))?;
    plot.create("dir/new", b"")?;
    plot.unlink("dir/a")?;
    plot.rename("dir/b", "dir/c")?;
    same("rewound", names(&directory)?, set(&[".", "..", "new", "c", "sub", "link"]))?;
    nothing_more()
}

fn position_leads_to_the_next_entry(plot: &Plot) -> Done<Holds> {
    more(plot)?;
    let plot = plot.clone();
    from_now_on(move || {
        let rows = list(plot.open("crowd", OFlags::RDONLY)?)?;
        let other = plot.open("crowd", OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut stream = call("opendir", rustix::fs::Dir::read_from(&other))?;
        for (row, next) in rows.iter().zip(&rows[1..]).step_by(37) {
            call("seekdir", stream.seek(row.offset))?;
            let found = stream.read().ok_or_else(|| Failure::new("nothing after a position"))?;
            let found = call("getdents64", found)?;
            same(
                "name after a position",
                found.file_name().to_bytes(),
                next.name.as_encoded_bytes(),
            )?;
        }
        let offsets: HashSet<_> = rows.iter().map(|row| row.offset).collect();
        same("positions", offsets.len(), rows.len())
    })
}

fn position_survives_changes_before_it(plot: &Plot) -> Done<Holds> {
    more(plot)?;
    let rows = list(plot.open("crowd", OFlags::RDONLY)?)?;
    let (before, after) = rows.split_at(rows.len() / 2);
    let position = before.last().map_or(0, |row| row.offset);
    for row in before.iter().filter(|row| row.name != "." && row.name != "..").step_by(2) {
        plot.unlink(std::path::Path::new("crowd").join(&row.name))?;
    }
    plot.chmod(std::path::Path::new("crowd").join(&after[1].name), 0o600)?;
    let open = plot.open("crowd", OFlags::RDONLY | OFlags::DIRECTORY)?;
    let mut stream = call("opendir", rustix::fs::Dir::read_from(&open))?;
    call("seekdir", stream.seek(position))?;
    let mut left = Vec::new();
    while let Some(entry) = stream.read() {
        left.push(call("getdents64", entry)?.file_name().to_bytes().to_vec());
    }
    let expected: Vec<_> = after.iter().map(|row| row.name.as_encoded_bytes().to_vec()).collect();
    same("names after the position", left, expected)?;
    nothing_more()
}

fn listing_of_a_file_is_refused(plot: &Plot) -> Done<Holds> {
    super::plot::refused("opendir", plot.names("file").map(|_| ()), Errno::NOTDIR)?;
    super::plot::refused("lookup", plot.stat("file/x").map(|_| ()), Errno::NOTDIR)?;
    nothing_more()
}
