//! The changes that are interrupted: every changing operation, on whatever it may meet.
//!
//! What is more than one change on a disk too is no row. A write that takes setuid or capabilities
//! takes them first, in a step of its own (ext4 does it in a transaction of its own:
//! `file_remove_privs`). One SETATTR of owner and mode at once is two steps: no call of a program
//! asks for both.

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
    /// The change cuts the large file to this size.
    pub cuts_to: Option<u64>,
}

#[allow(clippy::too_many_lines, reason = "a table: one row for each change")]
pub fn rows() -> Vec<Row> {
    let row = |name, before, change| Row { name, before, change, cuts_to: None };
    let cut = |name, before, change, size| Row { name, before, change, cuts_to: Some(size) };
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
        row("mknod 0:0", |_| Ok(()), |g| g.make_special("a/new", Kind::CharDevice, 0)),
        row("mknod of a device", |_| Ok(()), |g| g.make_special("a/new", Kind::BlockDevice, 0x803)),
        row("mknod of a FIFO", |_| Ok(()), |g| g.make_special("a/new", Kind::Fifo, 0)),
        row(
            "mknod of a socket over a whiteout",
            |g| g.unlink("a/one"),
            |g| g.make_special("a/one", Kind::Socket, 0),
        ),
        row(
            "symlink over a whiteout",
            |g| g.unlink("a/fifo"),
            |g| g.make("a/fifo", NewKind::Symlink { target: b"x" }),
        ),
        row(
            "create in a setgid directory",
            |g| g.set_mode("a/sub", 0o2755),
            |g| g.make("a/sub/new", NewKind::Directory),
        ),
        row("link of a symlink", |_| Ok(()), |g| g.link("a/symlink", "b/new")),
        row("link of a born file", |g| g.make("new", NewKind::File), |g| g.link("new", "b/l")),
        row("unlink of a lower symlink", |_| Ok(()), |g| g.unlink("a/symlink")),
        row("unlink of a copied-up FIFO", |g| g.chown("a/fifo"), |g| g.unlink("a/fifo")),
        row(
            "unlink of one name of two",
            |g| g.write("large", 9, b"x").and_then(|()| g.link("large", "b/l")),
            |g| g.unlink("large"),
        ),
        row(
            "unlink of an unsettled file that moved",
            |g| g.write("large", 9, b"x").and_then(|()| g.rename("large", "b/l", PLAIN)),
            |g| g.unlink("b/l"),
        ),
        row("rename of a symlink", |_| Ok(()), |g| g.rename("a/symlink", "b/new", PLAIN)),
        row("rename of a FIFO", |_| Ok(()), |g| g.rename("a/fifo", "a/one", PLAIN)),
        row(
            "rename of a born one onto a copied-up one",
            |g| g.make("new", NewKind::File).and_then(|()| g.chmod("a/one")),
            |g| g.rename("new", "a/one", PLAIN),
        ),
        row(
            "rename of an indexed link that leaves a device",
            |g| g.write("hard1", 0, b"H"),
            |g| g.rename("hard2", "b/new", WHITEOUT),
        ),
        row(
            "rename that leaves a device and replaces an unsettled file",
            |g| g.write("large", 9, b"x"),
            |g| g.rename("a/one", "large", WHITEOUT),
        ),
        row(
            "rename onto the last hard link",
            |g| g.unlink("hard1").and_then(|()| g.unlink("hard2")),
            |g| g.rename("a/one", "a/hard3", PLAIN),
        ),
        row(
            "exchange of unsettled files",
            |g| g.write("large", 9, b"x").and_then(|()| g.make("a/new", NewKind::File)),
            |g| g.rename("large", "a/new", EXCHANGE),
        ),
        row("exchange of hard links", |_| Ok(()), |g| g.rename("hard1", "a/symlink", EXCHANGE)),
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
        row("write after write", |g| g.write("a/one", 1, b"x"), |g| g.write("a/one", 3, b"yz")),
        row("write beyond the end", |_| Ok(()), |g| g.write("a/one", 5000, b"written")),
        row(
            "write by block after write",
            |g| g.write("large", 9, b"x"),
            |g| g.write("large", 9000, b"y"),
        ),
        row("write to a born file", |g| g.make("new", NewKind::File), |g| g.write("new", 0, b"n")),
        row(
            "write by block after sync, and sync",
            |g| g.write("large", 9, b"x").and_then(|()| g.sync("large")),
            |g| g.write("large", 9000, b"y").and_then(|()| g.sync("large")),
        ),
        row(
            "write by block, and another guest",
            |_| Ok(()),
            |g| g.write("large", 9, b"x").and_then(|()| g.begin_anew()),
        ),
        row("sync of a directory", |g| g.chmod("a/sub"), |g| g.sync("a/sub")),
        row(
            "write of all blocks and sync",
            |_| Ok(()),
            |g| g.write("large", 0, &vec![b'w'; LARGE_BYTES]).and_then(|()| g.sync("large")),
        ),
        row("truncate", |_| Ok(()), |g| g.truncate("a/one", 1)),
        cut("truncate of a large file", |_| Ok(()), |g| g.truncate("large", 9000), 9000),
        cut(
            "truncate of an unsettled file",
            |g| g.write("large", 9, b"x"),
            |g| g.truncate("large", 9000),
            9000,
        ),
        cut("truncate to nothing", |g| g.write("large", 9, b"x"), |g| g.truncate("large", 0), 0),
        row("chmod", |_| Ok(()), |g| g.chmod("a/one")),
        row("chmod of a large file", |_| Ok(()), |g| g.chmod("large")),
        row("chmod of a directory", |_| Ok(()), |g| g.chmod("a/sub")),
        row("setxattr", |_| Ok(()), |g| g.set_xattr("a/sub/deep", "user.new")),
        row("removexattr", |_| Ok(()), |g| g.remove_xattr("a/two", "user.old")),
        row("truncate that grows", |_| Ok(()), |g| g.truncate("a/one", 9000)),
        row("truncate of a large file that grows", |_| Ok(()), |g| g.truncate("large", 1 << 20)),
        row("truncate of a born file", |g| g.make("new", NewKind::File), |g| g.truncate("new", 9)),
        row("chmod with setuid", |_| Ok(()), |g| g.set_mode("a/one", 0o4711)),
        row("chmod after chmod", |g| g.chmod("a/one"), |g| g.set_mode("a/one", 0o644)),
        row("chmod of the root", |_| Ok(()), |g| g.chmod("")),
        row("chown that clears setuid", |g| g.set_mode("a/one", 0o4711), |g| g.chown("a/one")),
        row("chown of a symlink", |_| Ok(()), |g| g.chown("a/symlink")),
        row("chown of a directory", |_| Ok(()), |g| g.chown("a/sub")),
        row("times of a FIFO", |_| Ok(()), |g| g.set_times("a/fifo")),
        row("setxattr that replaces", |_| Ok(()), |g| g.set_xattr("a/two", "user.old")),
        row("setxattr of a directory", |_| Ok(()), |g| g.set_xattr("a/sub", "trusted.new")),
        row(
            "setxattr of a name like a mark's",
            |_| Ok(()),
            |g| g.set_xattr("a/two", "trusted.overlay.opaque"),
        ),
        row(
            "removexattr after setxattr",
            |g| g.set_xattr("a/sub", "user.new"),
            |g| g.remove_xattr("a/sub", "user.new"),
        ),
        row("default ACL", |_| Ok(()), |g| g.set_acl("a/sub", "default")),
        row("ACL after chmod", |g| g.chmod("a/two"), |g| g.set_acl("a/two", "access")),
        row("chmod under an ACL", |g| g.set_acl("a/two", "access"), |g| g.set_mode("a/two", 0o604)),
        row("chown under an ACL", |g| g.set_acl("a/two", "access"), |g| g.chown("a/two")),
        row(
            "removal of an ACL",
            |g| g.set_acl("a/two", "access"),
            |g| g.remove_xattr("a/two", "system.posix_acl_access"),
        ),
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
        row("birth that never gets a name", |_| Ok(()), |g| g.unnamed_and_forget("a/sub")),
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
        row("allocation of a large file", |_| Ok(()), |g| g.allocate("large", 0)),
        // falloc.h: FALLOC_FL_KEEP_SIZE.
        row("allocation after chmod", |g| g.chmod("a/one"), |g| g.allocate("a/one", 1)),
        row(
            "range copied between changed files",
            |g| g.chmod("a/one").and_then(|()| g.chmod("a/two")),
            |g| g.copy("a/one", "a/two"),
        ),
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
        cut(
            "truncate after chmod of a large file",
            |g| g.chmod("large"),
            |g| g.truncate("large", 9000),
            9000,
        ),
        row("rename after chmod", |g| g.chmod("a/one"), |g| g.rename("a/one", "b/new", PLAIN)),
        row("link after rename", |g| g.rename("a/one", "new", PLAIN), |g| g.link("new", "b/l")),
        row("punch after chmod", |g| g.chmod("large"), |g| g.punch("large")),
        row(
            "settling of an indexed link",
            |g| {
                g.write("hard1", 0, b"H")?;
                // As `thinroot settle` finds it: no union beside has it open.
                g.write("large", 9, b"x").and_then(|()| g.sync_all())
            },
            |g| g.settle(),
        ),
        row("settling after chmod", |g| g.chmod("a/one"), |g| g.settle()),
        cut(
            "truncate of an unsettled file that is on disk",
            |g| g.write("large", 9, b"x").and_then(|()| g.sync("large")),
            |g| g.truncate("large", 5000),
            5000,
        ),
        cut(
            "truncate of an unsettled file that was cut",
            |g| g.write("large", 9, b"x").and_then(|()| g.truncate("large", 9000)),
            |g| g.truncate("large", 4096),
            4096,
        ),
        // falloc.h: FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, and FALLOC_FL_ZERO_RANGE.
        row("punch within blocks", |g| g.write("large", 9, b"x"), |g| g.clear("large", 3)),
        row("zeroing within blocks", |_| Ok(()), |g| g.clear("large", 0x10)),
    ]
}
