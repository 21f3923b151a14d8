//! Numbers.

use std::collections::HashMap;
use std::path::Path;

use rustix::fs::{FileType, OFlags};

use super::plot::{
    Done, Failure, Holds, LONG_AGO, Plot, from_now_on, holds, list, nothing_more, same, stat_of,
};

super::laws! {
    4 => number_survives_copy_up;
    4 => number_survives_rename_and_link;
    4 => number_of_a_new_object_lasts;
    5 => whole_tree_is_one_device;
    5 => listing_shows_the_numbers_of_the_objects;
    5 => no_two_objects_share_a_number;
    6 => number_is_not_given_again_while_the_object_is_held;
}

const EVERY_KIND: [&str; 9] =
    ["file", "big", "dir", "symlink", "fifo", "device", "socket", "zero", "hard/a"];

fn number_survives_copy_up(plot: &Plot) -> Done<Holds> {
    let mut numbers = Vec::new();
    for name in EVERY_KIND {
        numbers.push((name, plot.number(name)?));
        plot.chown(name, 12, 34)?;
        plot.set_times(name, LONG_AGO)?;
    }
    plot.append("file", b"!")?;
    plot.patch("big", 5, b"!")?;
    plot.create("dir/new", b"")?;
    numbers.push(("dir/sub", plot.number("dir/sub")?));
    let plot = plot.clone();
    from_now_on(move || {
        for (name, number) in &numbers {
            same(&format!("number of {name}"), plot.number(name)?, *number)?;
        }
        Ok(())
    })
}

fn number_survives_rename_and_link(plot: &Plot) -> Done<Holds> {
    let mut numbers = Vec::new();
    for name in EVERY_KIND {
        let moved = format!("empty_dir/{}", name.replace('/', "-"));
        numbers.push((moved.clone(), plot.number(name)?));
        plot.rename(name, &moved)?;
    }
    let child = plot.number("empty_dir/dir/sub/c")?;
    numbers.push(("empty_dir/linked".to_owned(), plot.number("other")?));
    numbers.push(("other".to_owned(), plot.number("other")?));
    numbers.push(("empty_dir/dir/sub/c".to_owned(), child));
    plot.link("other", "empty_dir/linked")?;
    let plot = plot.clone();
    from_now_on(move || {
        for (name, number) in &numbers {
            same(&format!("number of {name}"), plot.number(name)?, *number)?;
        }
        Ok(())
    })
}

fn number_of_a_new_object_lasts(plot: &Plot) -> Done<Holds> {
    plot.create("dir/new", b"")?;
    plot.mkdir("dir/new_dir")?;
    plot.symlink("x", "dir/new_link")?;
    let names = ["dir/new", "dir/new_dir", "dir/new_link"];
    let numbers = names.iter().map(|name| plot.number(name)).collect::<Done<Vec<_>>>()?;
    let plot = plot.clone();
    from_now_on(move || {
        for (name, number) in names.iter().zip(&numbers) {
            same(&format!("number of {name}"), plot.number(name)?, *number)?;
        }
        Ok(())
    })
}

/// Every object below `name`, as path, number and device.
fn walk(plot: &Plot, name: &Path, visit: &mut dyn FnMut(&Path, &rustix::fs::Stat) -> Done) -> Done {
    for entry in plot.entries(name)? {
        let child = name.join(&entry.name);
        visit(&child, &plot.stat(&child)?)?;
        if entry.kind == FileType::Directory {
            walk(plot, &child, visit)?;
        }
    }
    Ok(())
}

fn whole_tree_is_one_device(plot: &Plot) -> Done<Holds> {
    plot.append("file", b"!")?;
    plot.create("dir/new", b"")?;
    plot.mkdir("new")?;
    let plot = plot.clone();
    from_now_on(move || {
        let device = plot.stat("")?.st_dev;
        walk(&plot, Path::new(""), &mut |path, stat| {
            same(&format!("device of {}", path.display()), stat.st_dev, device)
        })
    })
}

fn listing_shows_the_numbers_of_the_objects(plot: &Plot) -> Done<Holds> {
    plot.append("dir/a", b"!")?;
    plot.create("dir/new", b"")?;
    plot.rename("dir2", "dir/moved")?;
    plot.chmod("dir/sub", 0o700)?;
    plot.unlink("dir/b")?;
    let plot = plot.clone();
    from_now_on(move || {
        for directory in ["", "dir", "dir/sub", "dir/moved", "dir/moved/sub", "hard", "hard/far"] {
            let open = plot.open(directory, OFlags::RDONLY | OFlags::DIRECTORY)?;
            for row in list(&open)? {
                // The kernel resolves `.` and `..` by itself.
                let path = Path::new(directory).join(&row.name);
                let what = format!("d_ino of {}", path.display());
                same(&what, row.number, plot.number(&path)?)?;
            }
        }
        Ok(())
    })
}

fn no_two_objects_share_a_number(plot: &Plot) -> Done<Holds> {
    plot.append("file", b"!")?;
    plot.rename("dir", "dir3")?;
    plot.mkdir("dir")?;
    for n in 0..50 {
        plot.create(format!("dir/{n}"), b"")?;
    }
    plot.unlink("other")?;
    plot.create("other", b"")?;
    let plot = plot.clone();
    from_now_on(move || {
        let mut seen: HashMap<u64, (std::path::PathBuf, u64)> = HashMap::new();
        walk(&plot, Path::new(""), &mut |path, stat| {
            let known = seen.entry(stat.st_ino).or_insert_with(|| (path.to_owned(), 0));
            known.1 += 1;
            if known.1 > stat.st_nlink
                || stat.st_nlink > 1 && stat.st_mode & 0o170_000 == 0o040_000 && known.1 > 1
            {
                let (path, known) = (path.display(), known.0.display());
                return Err(Failure::new(format!("{path} and {known} are both {}", stat.st_ino)));
            }
            Ok(())
        })
    })
}

fn number_is_not_given_again_while_the_object_is_held(plot: &Plot) -> Done<Holds> {
    plot.create("new", b"")?;
    let names = ["new", "file", "dir/a"];
    let mut held = Vec::new();
    for name in names {
        plot.chmod(name, 0o600)?;
        let file = plot.open(name, OFlags::RDWR)?;
        held.push((stat_of(&file)?.st_ino, file));
        plot.unlink(name)?;
    }
    for n in 0..50 {
        let name = format!("dir/{n}");
        plot.create(&name, b"")?;
        let number = plot.number(&name)?;
        holds("a new number", held.iter().all(|(held, _)| *held != number))?;
    }
    for (number, file) in &held {
        same("number of what is held", stat_of(file)?.st_ino, *number)?;
    }
    nothing_more()
}
