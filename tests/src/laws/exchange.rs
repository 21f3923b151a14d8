//! Exchange of any two kinds of any two layers, and directories that move with a process inside.

use std::collections::BTreeMap;

use rustix::fs::{OFlags, RenameFlags};

use super::ground::BIG_BYTES;
use super::plot::{Done, Failure, Holds, Plot, call, from_now_on, holds, pattern, same};
use super::raw::as_another_process;

super::laws! {
    20 => any_two_kinds_of_any_two_layers_are_exchanged;
    18 => working_directory_moves_along;
}

/// One of each kind of each layer, in directories of each layer.
const OBJECTS: [&str; 17] = [
    "file",
    "other",
    "big",
    "new",
    "dir/a",
    "new_dir/new",
    "dir2",
    "dir",
    "new_dir",
    "empty_dir",
    "made_again",
    "symlink",
    "fifo",
    "zero",
    "hard/a",
    "hard/far",
    "marked_dir/child",
];

fn any_two_kinds_of_any_two_layers_are_exchanged(plot: &Plot) -> Done<Holds> {
    plot.create("new", b"new\n")?;
    plot.mkdir("new_dir")?;
    plot.create("new_dir/new", b"inside\n")?;
    plot.append("other", b"!")?; // copied up
    plot.create("dir2/merged", b"")?;
    plot.rename("setgid", "made_again")?;
    plot.mkdir("setgid")?;
    let mut numbers = BTreeMap::new();
    for name in OBJECTS {
        numbers.insert(name, plot.number(name)?);
    }
    for (index, one) in OBJECTS.iter().enumerate() {
        for other in &OBJECTS[index + 1..] {
            let is_inside =
                other.starts_with(&format!("{one}/")) || one.starts_with(&format!("{other}/"));
            if is_inside {
                continue;
            }
            plot.rename_with(one, other, RenameFlags::EXCHANGE)?;
            same(&format!("{one}, exchanged with {other}"), plot.number(one)?, numbers[other])?;
            same(&format!("{other}, exchanged with {one}"), plot.number(other)?, numbers[one])?;
            // And back: those inside keep the paths by which they are known here.
            plot.rename_with(other, one, RenameFlags::EXCHANGE)?;
        }
    }
    plot.rename_with("dir", "new", RenameFlags::EXCHANGE)?;
    plot.rename_with("hard/a", "dir2", RenameFlags::EXCHANGE)?;
    plot.rename_with("empty_dir", "symlink", RenameFlags::EXCHANGE)?;
    plot.rename_with("big", "marked_dir", RenameFlags::EXCHANGE)?;
    let plot = plot.clone();
    from_now_on(move || {
        plot.names_are("new", &["a", "b", "sub", "link"])?;
        same("dir", plot.read("dir")?, b"new\n")?;
        plot.names_are("hard/a", &["a", "sub", "merged"])?;
        same("dir2", plot.read("dir2")?, b"linked\n")?;
        same("hard/far/c", plot.number("hard/far/c")?, plot.number("dir2")?)?;
        same("empty_dir", plot.target("empty_dir")?, "file")?;
        plot.names_are("symlink", &[])?;
        plot.names_are("big", &["child"])?;
        same("marked_dir", &plot.read("marked_dir")?, &pattern(BIG_BYTES))?;
        same("made_again", plot.mode("made_again")?, 0o2775_u32)?;
        for name in ["file", "other", "new_dir", "fifo", "zero", "hard/far", "made_again"] {
            same(&format!("number of {name}"), plot.number(name)?, numbers[name])?;
        }
        Ok(())
    })
}

fn working_directory_moves_along(plot: &Plot) -> Done<Holds> {
    as_another_process(|| {
        call("chdir", rustix::process::chdir(plot.at("dir/sub")))?;
        let here = |expected: &str| -> Done {
            let path = call("getcwd", rustix::process::getcwd(Vec::new()))?;
            let is_there = path.to_bytes().ends_with(expected.as_bytes());
            holds(&format!("the working directory is {expected}"), is_there)
        };
        let near = Plot::new("");
        here("dir/sub")?;
        plot.rename("dir", "dir2/moved")?;
        here("dir2/moved/sub")?;
        near.create("made inside", b"1\n")?;
        same("c", near.read("c")?, b"dir/sub/c")?;
        plot.rename_with("dir2", "new_dir", RenameFlags::empty())?;
        plot.rename("new_dir/moved/sub", "sub")?;
        here("sub")?;
        near.append("c", b"!")?;
        same("deeper", near.read("deeper/d")?, b"dir/sub/deeper/d")?;
        plot.rename("sub", "new_dir/moved/sub")?;
        plot.rename("new_dir/moved", "dir")?;
        here("dir/sub")?;
        near.unlink("deeper/d")?;
        near.rmdir("deeper")?;
        let above = near.open("..", OFlags::RDONLY | OFlags::DIRECTORY)?;
        let above = super::plot::stat_of(&above)?.st_ino;
        same("..", above, plot.number("dir")?)?;
        near.unlink("c")?;
        near.unlink("made inside")?;
        plot.rmdir("dir/sub")?;
        let born = near.create("too late", b"");
        super::plot::refused("birth in what is gone", born, rustix::io::Errno::NOENT)?;
        call("chdir", rustix::process::chdir("/"))
    })
    .map_err(|failure| Failure { text: format!("inside: {}", failure.text), ..failure })?;
    let plot = plot.clone();
    from_now_on(move || {
        plot.names_are("dir", &["a", "b", "link"])?;
        plot.names_are("new_dir", &["a", "sub"])?;
        plot.is_missing("dir2")
    })
}
