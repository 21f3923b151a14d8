//! Listings of large directories that others change meanwhile.

use std::collections::HashSet;
use std::ffi::OsString;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::OFlags;

use super::plot::{Done, Failure, Holds, Listed, Plot, call, from_now_on, holds, list, same};

super::laws! {
    11 => five_thousand_entries_removed_while_read_are_all_shown with five_thousand;
    11 => listing_loses_nothing_while_threads_change_it with crowd;
    12 => position_leads_on_after_a_restart with crowd;
}

const CROWD: usize = 600;

fn crowd(plot: &Plot) -> Done {
    fill(plot, CROWD)
}

fn five_thousand(plot: &Plot) -> Done {
    fill(plot, 5000)
}

fn fill(plot: &Plot, count: usize) -> Done {
    plot.mkdir("crowd")?;
    (0..count).try_for_each(|n| plot.create(format!("crowd/{n}"), b""))
}

fn five_thousand_entries_removed_while_read_are_all_shown(plot: &Plot) -> Done<Holds> {
    let directory = plot.open("crowd", OFlags::RDONLY | OFlags::DIRECTORY)?;
    let mut stream = call("opendir", rustix::fs::Dir::new(directory))?;
    let mut seen = 0;
    while let Some(entry) = stream.read() {
        let entry = call("getdents64", entry)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name != "." && name != ".." {
            plot.unlink(format!("crowd/{name}"))?;
            seen += 1;
        }
    }
    same("names seen", seen, 5000)?;
    plot.rmdir("crowd")?;
    let plot = plot.clone();
    from_now_on(move || plot.is_missing("crowd"))
}

/// Makes, moves and removes names of its own until it is told to stop.
fn disturb(plot: &Plot, who: usize, stop: &AtomicBool) -> Done {
    let mut round = 0;
    while !stop.load(Ordering::Relaxed) {
        let name = |what: &str| format!("crowd/{what}-{who}-{}", round % 50);
        plot.create(name("new"), b"")?;
        plot.rename(name("new"), name("moved"))?;
        plot.link(name("moved"), name("linked"))?;
        plot.unlink(name("moved"))?;
        plot.unlink(name("linked"))?;
        // Copied up in its place: neither lost nor shown twice by it.
        plot.chmod(format!("crowd/{}", (round * 2 + who) % CROWD), 0o600)?;
        round += 1;
    }
    Ok(())
}

fn shows_all(rows: &[Listed]) -> Done {
    let stays = |name: &&OsString| name.to_str().is_some_and(|name| name.parse::<usize>().is_ok());
    let names: Vec<_> = rows.iter().map(|row| &row.name).filter(stays).collect();
    let distinct: HashSet<_> = names.iter().collect();
    same("names that stay", distinct.len(), CROWD)?;
    same("names shown twice", names.len() - distinct.len(), 0_usize)
}

fn listing_loses_nothing_while_threads_change_it(plot: &Plot) -> Done<Holds> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let others: Vec<_> = (0..2)
            .map(|who| {
                let stop = &stop;
                scope.spawn(move || disturb(plot, who, stop))
            })
            .collect();
        let listed = (0..20).try_for_each(|_| {
            shows_all(&list(plot.open("crowd", OFlags::RDONLY | OFlags::DIRECTORY)?)?)
        });
        stop.store(true, Ordering::Relaxed);
        let done = others.into_iter().try_for_each(|other| {
            other.join().unwrap_or_else(|_| Err(Failure::new("a disturber panicked")))
        });
        listed.and(done)
    })?;
    let plot = plot.clone();
    from_now_on(move || {
        same("names", plot.names("crowd")?.len(), CROWD)?;
        shows_all(&list(plot.open("crowd", OFlags::RDONLY | OFlags::DIRECTORY)?)?)
    })
}

/// A position taken before the restart, given to a descriptor opened after it.
fn position_leads_on_after_a_restart(plot: &Plot) -> Done<Holds> {
    plot.chmod("crowd/7", 0o600)?;
    plot.unlink("crowd/8")?;
    for n in 0..60 {
        plot.create(format!("crowd/new{n}"), b"")?;
    }
    (0..60).step_by(3).try_for_each(|n| plot.unlink(format!("crowd/new{n}")))?;
    let rows = list(plot.open("crowd", OFlags::RDONLY | OFlags::DIRECTORY)?)?;
    let plot = plot.clone();
    from_now_on(move || {
        let open = plot.open("crowd", OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut stream = call("opendir", rustix::fs::Dir::new(open))?;
        for (row, next) in rows.iter().zip(&rows[1..]).step_by(11) {
            call("seekdir", stream.seek(row.offset))?;
            let found = stream.read().ok_or_else(|| Failure::new("nothing after a position"))?;
            let found = call("getdents64", found)?.file_name().to_bytes().to_vec();
            same("name after a position", found, next.name.as_encoded_bytes())?;
        }
        call("rewinddir", stream.seek(0))?;
        let first = stream.read().ok_or_else(|| Failure::new("nothing after rewinddir"))?;
        let first = call("getdents64", first)?.file_name().to_bytes().to_vec();
        holds("rewinddir leads to the first", first == rows[0].name.as_encoded_bytes())
    })
}
