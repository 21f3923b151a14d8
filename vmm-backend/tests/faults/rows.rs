//! The changes that are interrupted: every changing operation, on whatever it may meet.

use thinroot::filesystem::{Errno, Kind, NewKind};

use super::guest::{EXCHANGE, Guest, NO_REPLACE, PLAIN, WHITEOUT};

/// Above the size from which files are copied up by block.
pub const LARGE_BYTES: usize = 40 * 4096 + 77;

pub type Step = fn(&Guest<'_>) -> Result<(), Errno>;

/// What came before, and what is interrupted.
#[derive(Clone, Copy)]
pub struct Row {
    pub name: &'static str,
    pub before: Step,
    pub change: Step,
}

#[allow(clippy::too_many_lines, reason = "a table: one row for each change")]
pub fn rows() -> Vec<Row> {
    let row = |name, before, change| Row { name, before, change };
    vec![
        row("create", |_| Ok(()), |g| g.make("a/sub/new", NewKind::File)),
        row("create over a whiteout", |g| g.unlink("a/one"), |g| g.make("a/one", NewKind::File)),
        row("mkdir", |_| Ok(()), |g| g.make("a/new", NewKind::Directory)),
        row(
            "mkdir over a whiteout",
            |g| g.unlink("a/sub/deep").and_then(|()| g.rmdir("a/sub")),
            |g| g.make("a/sub", NewKind::Directory),
        ),
        row("symlink", |_| Ok(()), |g| g.make("a/new", NewKind::Symlink { target: b"x" })),
        row(
            "mknod 0:0",
            |_| Ok(()),
            |g| g.make("a/new", NewKind::Special { kind: Kind::CharDevice, rdev: 0 }),
        ),
        row("link", |_| Ok(()), |g| g.link("a/one", "b/new")),
        row("link of a hard link", |_| Ok(()), |g| g.link("hard1", "b/new")),
        row("link over a whiteout", |g| g.unlink("a/two"), |g| g.link("large", "a/two")),
        row("unlink of a lower file", |_| Ok(()), |g| g.unlink("a/one")),
        row("unlink of a copied-up file", |g| g.chmod("a/one"), |g| g.unlink("a/one")),
        row("unlink of an unsettled file", |g| g.write("large", 9, b"x"), |g| g.unlink("large")),
        row("unlink of a born file", |g| g.make("a/new", NewKind::File), |g| g.unlink("a/new")),
        row("unlink of a hard link", |_| Ok(()), |g| g.unlink("hard1")),
        row("unlink of an indexed link", |g| g.write("hard1", 0, b"H"), |g| g.unlink("a/hard3")),
        row(
            "unlink of the last hard link",
            |g| g.unlink("hard1").and_then(|()| g.unlink("hard2")),
            |g| g.unlink("a/hard3"),
        ),
        row("rmdir of a lower directory", |_| Ok(()), |g| g.rmdir("b")),
        row("rmdir of whiteouts", |g| g.unlink("a/sub/deep"), |g| g.rmdir("a/sub")),
        row("rmdir of a born one", |g| g.make("new", NewKind::Directory), |g| g.rmdir("new")),
        row("rename of a lower file", |_| Ok(()), |g| g.rename("a/one", "b/new", PLAIN)),
        row("rename onto a lower file", |_| Ok(()), |g| g.rename("a/one", "a/two", PLAIN)),
        row(
            "rename onto a large file",
            |g| g.chmod("large"),
            |g| g.rename("a/one", "large", PLAIN),
        ),
        row("rename of a hard link", |_| Ok(()), |g| g.rename("hard1", "b/new", PLAIN)),
        row("rename onto a hard link", |_| Ok(()), |g| g.rename("a/one", "hard1", PLAIN)),
        row("rename of a lower directory", |_| Ok(()), |g| g.rename("a/sub", "b/new", PLAIN)),
        row(
            "rename of a born directory onto a whiteout",
            |g| g.rmdir("b").and_then(|()| g.make("new", NewKind::Directory)),
            |g| g.rename("new", "b", PLAIN),
        ),
        row("rename onto an empty directory", |_| Ok(()), |g| g.rename("a", "b", PLAIN)),
        row(
            "rename onto a directory of whiteouts",
            |g| g.unlink("a/sub/deep"),
            |g| g.rename("b", "a/sub", PLAIN),
        ),
        row("exchange of files", |_| Ok(()), |g| g.rename("a/one", "hard2", EXCHANGE)),
        row("exchange of directories", |_| Ok(()), |g| g.rename("a/sub", "b", EXCHANGE)),
        row("exchange of both", |_| Ok(()), |g| g.rename("a/sub", "large", EXCHANGE)),
        row("rename that leaves a device", |_| Ok(()), |g| g.rename("a/one", "b/new", WHITEOUT)),
        row(
            "rename of a born one that leaves a device",
            |g| g.make("new", NewKind::File),
            |g| g.rename("new", "a/one", WHITEOUT),
        ),
        row(
            "rename of a directory onto a whiteout that leaves a device",
            |g| g.rmdir("b"),
            |g| g.rename("a/sub", "b", WHITEOUT),
        ),
        row("write", |_| Ok(()), |g| g.write("a/one", 1, b"written")),
        row("write to a hard link", |_| Ok(()), |g| g.write("hard2", 1, b"written")),
        row("write by block", |_| Ok(()), |g| g.write("large", 5000, b"written")),
        row(
            "write by block and sync",
            |_| Ok(()),
            |g| g.write("large", 5000, b"written").and_then(|()| g.sync("large")),
        ),
        row(
            "write of all blocks and sync",
            |_| Ok(()),
            |g| g.write("large", 0, &vec![b'w'; LARGE_BYTES]).and_then(|()| g.sync("large")),
        ),
        row("truncate", |_| Ok(()), |g| g.truncate("a/one", 1)),
        row("truncate of a large file", |_| Ok(()), |g| g.truncate("large", 9000)),
        row(
            "truncate of an unsettled file",
            |g| g.write("large", 9, b"x"),
            |g| g.truncate("large", 9000),
        ),
        row("truncate to nothing", |g| g.write("large", 9, b"x"), |g| g.truncate("large", 0)),
        row("chmod", |_| Ok(()), |g| g.chmod("a/one")),
        row("chmod of a large file", |_| Ok(()), |g| g.chmod("large")),
        row("chmod of a directory", |_| Ok(()), |g| g.chmod("a/sub")),
        row("setxattr", |_| Ok(()), |g| g.set_xattr("a/sub/deep")),
        row("removexattr", |_| Ok(()), |g| g.remove_xattr("a/two")),
        row("chown", |_| Ok(()), |g| g.chown("a/one")),
        row("chown of a hard link", |_| Ok(()), |g| g.chown("hard1")),
        row("times", |_| Ok(()), |g| g.set_times("a/two")),
        row("times of a directory", |_| Ok(()), |g| g.set_times("a/sub")),
        row("ACL", |_| Ok(()), |g| g.set_acl("a/two", "access")),
        row(
            "birth under a default ACL",
            |g| g.set_acl("b", "default"),
            |g| g.make("b/new", NewKind::Directory),
        ),
        row("birth without a name", |_| Ok(()), |g| g.unnamed("a/sub/new")),
        row(
            "unlink and forget",
            |_| Ok(()),
            |g| g.unlink("large").and_then(|()| g.forget("a/one")),
        ),
        row(
            "unlink and forget of an unsettled file",
            |g| g.write("large", 9, b"x"),
            |g| g.remove_and_forget("large"),
        ),
        row("unlink and forget of a file", |g| g.chmod("a/one"), |g| g.remove_and_forget("a/one")),
        row("rename without replacing", |_| Ok(()), |g| g.rename("a/one", "new", NO_REPLACE)),
        row(
            "rename of an unsettled file",
            |g| g.write("large", 9, b"x"),
            |g| g.rename("large", "a/new", PLAIN),
        ),
        row(
            "rename onto an unsettled file",
            |g| g.write("large", 9, b"x"),
            |g| g.rename("a/one", "large", PLAIN),
        ),
        row(
            "rename of a merged directory",
            |g| g.make("a/sub/new", NewKind::File).and_then(|()| g.unlink("a/sub/deep")),
            |g| g.rename("a/sub", "b/new", PLAIN),
        ),
        row(
            "rename back",
            |g| g.rename("a/sub", "b/new", PLAIN),
            |g| g.rename("b/new", "a/sub", PLAIN),
        ),
        row(
            "rename onto a name of the same object",
            |g| g.write("hard1", 0, b"H"),
            |g| g.rename("hard1", "hard2", PLAIN),
        ),
        row(
            "exchange of a born one and a lower one",
            |g| g.make("new", NewKind::Directory),
            |g| g.rename("new", "a", EXCHANGE),
        ),
        row("link of an unsettled file", |g| g.write("large", 9, b"x"), |g| g.link("large", "b/l")),
        row("chmod of an unsettled file", |g| g.write("large", 9, b"x"), |g| g.chmod("large")),
        row("range copied to a large file", |_| Ok(()), |g| g.copy("a/two", "large")),
        row("range copied from a large file", |_| Ok(()), |g| g.copy("large", "a/two")),
        row("allocation", |_| Ok(()), |g| g.allocate("a/one", 0)),
        // falloc.h: FALLOC_FL_ZERO_RANGE.
        row("zeroing", |_| Ok(()), |g| g.allocate("large", 0x10)),
        row("write and end", |_| Ok(()), |g| g.write("large", 9, b"x").and_then(|()| g.end())),
        row(
            "write and sync of all",
            |_| Ok(()),
            |g| g.write("large", 9, b"x").and_then(|()| g.sync_all()),
        ),
        row("settling", |g| g.write("large", 9, b"x").and_then(|()| g.sync_all()), |g| g.settle()),
        row("punch", |g| g.write("large", 9, b"x"), |g| g.punch("large")),
        row("write after chmod", |g| g.chmod("a/one"), |g| g.write("a/one", 1, b"written")),
        row("write by block after chmod", |g| g.chmod("large"), |g| g.write("large", 9, b"x")),
        row("truncate after chmod", |g| g.chmod("a/one"), |g| g.truncate("a/one", 1)),
        row(
            "truncate after chmod of a large file",
            |g| g.chmod("large"),
            |g| g.truncate("large", 9000),
        ),
        row("rename after chmod", |g| g.chmod("a/one"), |g| g.rename("a/one", "b/new", PLAIN)),
        row("link after rename", |g| g.rename("a/one", "new", PLAIN), |g| g.link("new", "b/l")),
        row("punch after chmod", |g| g.chmod("large"), |g| g.punch("large")),
        row("settling after chmod", |g| g.chmod("a/one"), |g| g.settle()),
    ]
}
