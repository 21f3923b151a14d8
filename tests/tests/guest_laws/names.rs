//! Laws of names: identity, links, listings, removal, rename.

use std::collections::BTreeMap;

use rustix::io::Errno;
use tests::laws::ground::{BIG_BYTES, odd_names};
use tests::laws::plot::pattern;
use tests::requests::Change;

use super::{Row, refused};

/// fs.h: RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT.
const NOREPLACE: u32 = 1;
const EXCHANGE: u32 = 2;
const WHITEOUT: u32 = 4;

pub const ROWS: &[Row] = &[
    Row {
        law: 1,
        name: "names of any bytes",
        change: |root| {
            let odd = root.node("odd")?;
            for name in odd_names() {
                let found = root.mount.lookup(odd, &name)?;
                assert_eq!(root.mount.read_all(found.node)?, name);
                root.mount.write_all(found.node, 0, b"changed")?;
                let mut moved = name.clone();
                moved[0] ^= 0x80;
                root.mount.rename2((odd, &name), (root.node("dir2")?, &moved), 0)?;
                root.mount.create(odd, &name, 0o600)?;
            }
            let mut bytes = (1..=255).filter(|byte| *byte != b'/');
            let all: Vec<u8> = bytes.by_ref().collect();
            root.mount.create(root.node("empty_dir")?, &all, 0o600)?;
            for name in [&b""[..], b"a/b", b"..", b"/"] {
                assert!(root.mount.create(odd, name, 0o600).is_err(), "{name:?}");
            }
            Ok(())
        },
        shows: &[
            ("odd/with space", "f600 0:0 x1 "),
            ("odd/new\nline", "f600 0:0 x1 "),
            ("odd/-rf", "f600 0:0 x1 "),
            ("odd/...", "f600 0:0 x1 "),
        ],
    },
    Row {
        law: 2,
        name: "marks of a plain lower",
        change: |root| {
            root.create("marks/file", b"seen")?;
            root.create("dir/.wh.a", b"new")?;
            root.unlink("marks/.wh.")
        },
        shows: &[
            ("marks", "d755 0:0 x3 #1 .wh..wh..opq .wh.file file index opaque work"),
            (
                "marks/opaque",
                "d755 0:0 x2 inside trusted.overlay.opaque=y \
              trusted.overlay.redirect=elsewhere user.overlay.opaque=y",
            ),
            ("dir", "d755 0:0 x3 .wh.a a b link sub"),
        ],
    },
    Row {
        law: 3,
        name: "limits of names",
        change: |root| {
            let (longest, longer) = ([b'n'; 255], [b'n'; 256]);
            let node = root.node("dir")?;
            refused("to find", root.mount.lookup(node, &longer), Errno::NAMETOOLONG);
            refused("to make", root.mount.mkdir(node, &longer, 0o755), Errno::NAMETOOLONG);
            refused(
                "to link",
                root.mount.link(root.node("file")?, node, &longer),
                Errno::NAMETOOLONG,
            );
            let renamed = root.mount.rename2((node, b"a"), (node, &longer), 0);
            refused("to rename", renamed, Errno::NAMETOOLONG);
            // 20 of 255 bytes: a path longer than PATH_MAX.
            let depth =
                (0..20).try_fold(node, |at, _| Ok(root.mount.mkdir(at, &longest, 0o755)?.node))?;
            root.mount.write_new(depth, b"deep", 0o644, b"deep")?;
            let found =
                (0..20).try_fold(node, |at, _| Ok(root.mount.lookup(at, &longest)?.node))?;
            assert_eq!(found, depth);
            root.mount.rename2((depth, b"deep"), (root.node("")?, b"deep"), 0)
        },
        shows: &[("deep", "f644 0:0 x1 deep"), ("dir/a", "f644 0:0 x1 dir/a")],
    },
    Row {
        law: 4,
        name: "number and generation",
        change: |root| {
            let before = root.entry("file")?;
            root.write("file", 0, b"L")?;
            root.link("file", "dir/linked")?;
            root.rename("file", "dir/moved", 0)?;
            let after = root.entry("dir/moved")?;
            assert_eq!((before.node, before.generation), (after.node, after.generation));
            assert_eq!((after.attr.ino, after.attr.nlink), (before.node, 2));
            Ok(())
        },
        shows: &[("dir/moved", "f644 0:0 x2 Lower\\n"), ("dir/linked", "f644 0:0 x2 Lower\\n")],
    },
    Row {
        law: 5,
        name: "numbers of a listing",
        change: |root| {
            root.write("dir/a", 0, b"D")?;
            root.create("dir/new", b"")?;
            root.rename("hard/a", "dir/hard", 0)?;
            root.rename("dir2", "dir/dir2", 0)?;
            let mut seen = BTreeMap::new();
            for directory in ["", "dir", "dir/sub", "hard", "hard/far", "odd"] {
                for row in root.mount.readdir(root.node(directory)?, false)? {
                    let path = format!("{directory}/{}", String::from_utf8_lossy(&row.name));
                    if matches!(&row.name[..], b"." | b".." | b"acl") || path.starts_with("odd/") {
                        continue;
                    }
                    let attr = root.entry(path.trim_start_matches('/'))?.attr;
                    assert_eq!(row.ino, attr.ino, "{path}");
                    if attr.kind() == 0o040_000 || attr.nlink == 1 {
                        assert_eq!(seen.insert(row.ino, path.clone()), None, "{path}");
                    }
                }
            }
            assert_eq!(root.entry("dir/hard")?.attr.ino, root.entry("hard/b")?.attr.ino);
            Ok(())
        },
        shows: &[("dir", "d755 0:0 x4 a b dir2 hard link new sub")],
    },
    Row {
        law: 6,
        name: "what was forgotten",
        change: |root| {
            let node = root.create("new", b"new")?;
            let gone = root.create("gone", b"gone")?;
            root.unlink("gone")?;
            for node in [node, gone] {
                root.mount.forget(node, u64::from(u32::MAX));
            }
            // As open_by_handle_at has it: LOOKUP of "." in the object itself.
            refused("a removed one", root.mount.lookup(gone, b"."), Errno::STALE);
            Ok(())
        },
        shows: &[("new", "f644 0:0 x1 new"), ("gone", "-")],
    },
    Row {
        law: 7,
        name: "hard links",
        change: |root| {
            root.write("hard/far/c", 0, b"L")?;
            root.chown("hard/b", 5, 6)?;
            root.set_xattr("hard/a", "user.x", b"1")?;
            root.rename("hard/b", "dir/b2", 0)?;
            root.chown("hard/symlink2", 7, 8)
        },
        shows: &[
            ("hard/a", "f644 5:6 x3 Linked\\n user.x=1"),
            ("dir/b2", "f644 5:6 x3 Linked\\n user.x=1"),
            ("hard/far/c", "f644 5:6 x3 Linked\\n user.x=1"),
            ("hard/symlink", "l777 7:8 x2 a"),
        ],
    },
    Row {
        law: 8,
        name: "link counts",
        change: |root| {
            let held = root.node("hard/a")?;
            root.unlink("hard/b")?;
            root.rename("file", "hard/a", 0)?;
            assert_eq!(root.mount.getattr(held)?.nlink, 1);
            root.rename("dir2", "dir/dir2", 0)?;
            root.mkdir("dir/new")?;
            let node = root.node("other")?;
            root.unlink("other")?;
            assert_eq!(root.mount.getattr(node)?.nlink, 0);
            Ok(())
        },
        shows: &[
            ("hard/far/c", "f644 0:0 x1 linked\\n"),
            ("hard/a", "f644 0:0 x1 lower\\n"),
            ("dir", "d755 0:0 x5 a b dir2 link new sub"),
            ("other", "-"),
        ],
    },
    Row {
        law: 9,
        name: "links refused",
        change: |root| {
            refused("onto a name", root.link("file", "other"), Errno::EXIST);
            refused("of a directory", root.link("dir", "new"), Errno::PERM);
            root.rename("hard/a", "hard/b", 0)?;
            let node = root.node("other")?;
            root.unlink("other")?;
            let late = root.mount.link(node, root.node("")?, b"late");
            refused("of what has no name", late, Errno::NOENT);
            Ok(())
        },
        shows: &[
            ("hard/a", "f644 0:0 x3 linked\\n"),
            ("hard/b", "f644 0:0 x3 linked\\n"),
            ("late", "-"),
        ],
    },
    Row {
        law: 10,
        name: "listing",
        change: |root| {
            root.chmod("fifo", 0o600)?;
            root.unlink("other")?;
            root.mkdir("other")?;
            root.create("dir/new", b"")?;
            root.unlink("dir/b")?;
            for directory in ["", "dir"] {
                for row in root.mount.readdir(root.node(directory)?, true)? {
                    let Some(entry) = row.entry else { continue };
                    assert_eq!((row.ino, row.kind), (entry.attr.ino, entry.attr.kind() >> 12));
                }
            }
            Ok(())
        },
        shows: &[("dir", "d755 0:0 x3 a link new sub"), ("other", "d755 0:0 x2 ")],
    },
    Row {
        law: 11,
        name: "directory emptied while it is read",
        change: |root| {
            (0..300).try_for_each(|n| root.create(&format!("dir/{n}"), b"").map(drop))?;
            let node = root.node("dir")?;
            let (mut cookie, mut seen) = (0, 0);
            loop {
                let rows = root.mount.readdir_once(node, cookie, 512, false)?;
                let Some(last) = rows.last() else { break };
                cookie = last.cookie;
                for row in rows.iter().filter(|row| row.kind != 4) {
                    root.mount.unlink(node, &row.name)?;
                    seen += 1;
                }
            }
            assert_eq!(seen, 303);
            Ok(())
        },
        shows: &[("dir", "d755 0:0 x3 sub")],
    },
    Row {
        law: 12,
        name: "positions of a listing",
        change: |root| {
            (0..60).try_for_each(|n| root.create(&format!("dir/{n:02}"), b"").map(drop))?;
            let node = root.node("dir")?;
            let rows = root.mount.readdir(node, false)?;
            let half = rows.len() / 2;
            let rest: Vec<_> = rows[half + 1..].iter().map(|row| row.name.clone()).collect();
            root.unlink("dir/b")?;
            root.create("dir/late", b"")?;
            root.write("dir/a", 0, b"D")?;
            let later = root.mount.readdir_once(node, rows[half].cookie, 64 * 1024, false)?;
            let later: Vec<_> = later.into_iter().map(|row| row.name).collect();
            let kept: Vec<_> = rest.into_iter().filter(|name| name != b"b").collect();
            let old: Vec<_> = later.iter().filter(|name| *name != b"late").cloned().collect();
            assert_eq!(old, kept, "what comes after a position");
            (0..60).try_for_each(|n| root.unlink(&format!("dir/{n:02}")))
        },
        shows: &[("dir", "d755 0:0 x3 a late link sub")],
    },
    Row {
        law: 13,
        name: "what was removed",
        change: |root| {
            ["big", "fifo", "zero", "symlink"].iter().try_for_each(|name| root.unlink(name))?;
            refused("again", root.unlink("big"), Errno::NOENT);
            root.unlink("owned")?;
            root.create("owned", b"")?;
            root.remove_tree("dir")?;
            root.mkdir("dir")?;
            root.remove_tree("dir2")?;
            root.create("dir2", b"a file")?;
            root.unlink("file")?;
            root.mkdir("file")
        },
        shows: &[
            ("big", "-"),
            ("fifo", "-"),
            ("zero", "-"),
            ("symlink", "-"),
            ("owned", "f644 0:0 x1 "),
            ("dir", "d755 0:0 x2 "),
            ("dir2", "f644 0:0 x1 a file"),
            ("file", "d755 0:0 x2 "),
        ],
    },
    Row {
        law: 14,
        name: "emptiness",
        change: |root| {
            refused("a full one", root.rmdir("dir2"), Errno::NOTEMPTY);
            refused("a file", root.rmdir("file"), Errno::NOTDIR);
            refused("a directory", root.unlink("dir"), Errno::ISDIR);
            root.unlink("marked_dir/child")?;
            root.rmdir("marked_dir")?;
            root.create("empty_dir/new", b"")?;
            refused("one with a new name", root.rmdir("empty_dir"), Errno::NOTEMPTY);
            refused("a name", root.mkdir("file"), Errno::EXIST);
            Ok(())
        },
        shows: &[
            ("marked_dir", "-"),
            ("empty_dir", "d755 0:0 x2 new"),
            ("dir2", "d755 0:0 x3 a sub"),
        ],
    },
    Row {
        law: 15,
        name: "what is held without a name",
        change: |root| {
            for (name, content) in [("file", &b"lower\n"[..]), ("owned", b"owned\n")] {
                let node = root.node(name)?;
                root.unlink(name)?;
                assert_eq!(root.mount.read_all(node)?, content);
                root.mount.write_all(node, 0, b"#")?;
                let change = Change { mode: Some(0o604), size: Some(3), ..Change::default() };
                let attr = root.mount.setattr(node, change)?;
                assert_eq!((attr.mode & 0o777, attr.size, attr.nlink), (0o604, 3, 0));
                root.mount.setxattr(node, b"user.late", b"1", 0)?;
                root.mount.fsync(node)?;
                assert_eq!(root.mount.read_all(node)?, [b"#", &content[1..3]].concat());
            }
            let held = root.node("empty_dir")?;
            root.rmdir("empty_dir")?;
            refused("birth in it", root.mount.mkdir(held, b"x", 0o755), Errno::NOENT);
            refused("a name in it", root.mount.lookup(held, b"x"), Errno::NOENT);
            let node = root.node("dir/a")?;
            root.rename("other", "dir/a", 0)?;
            assert_eq!(root.mount.read_all(node)?, b"dir/a");
            Ok(())
        },
        shows: &[
            ("file", "-"),
            ("owned", "-"),
            ("empty_dir", "-"),
            ("dir/a", "f644 0:0 x1 other\\n"),
        ],
    },
    Row {
        law: 16,
        name: "unnamed files",
        change: |root| {
            let directory = root.node("dir")?;
            let born = root.mount.tmpfile(directory, 0o600)?;
            root.mount.tmpfile(directory, 0o600)?;
            root.mount.write_all(born.node, 0, b"late")?;
            assert_eq!(root.mount.getattr(born.node)?.nlink, 0);
            root.mount.link(born.node, directory, b"late").map(drop)
        },
        shows: &[("dir/late", "f600 0:0 x1 late"), ("dir", "d755 0:0 x3 a b late link sub")],
    },
    Row {
        law: 17,
        name: "objects that move",
        change: |root| {
            let kinds =
                ["file", "big", "fifo", "device", "disk", "zero", "socket", "symlink", "suid"];
            for name in kinds {
                let number = root.entry(name)?.attr.ino;
                root.rename(name, &format!("empty_dir/{name}"), 0)?;
                refused(name, root.entry(name), Errno::NOENT);
                assert_eq!(root.entry(&format!("empty_dir/{name}"))?.attr.ino, number, "{name}");
            }
            assert!(root.mount.read_all(root.node("empty_dir/big")?)? == pattern(BIG_BYTES));
            root.create("new", b"new")?;
            root.rename("new", "empty_dir/new", 0)?;
            root.rename("empty_dir/suid", "suid", 0)?;
            root.rename("empty_dir/new", "file", 0)
        },
        shows: &[
            ("empty_dir", "d755 0:0 x2 big device disk fifo file socket symlink zero"),
            ("empty_dir/file", "f644 0:0 x1 lower\\n"),
            ("empty_dir/fifo", "p644 0:0 x1 "),
            ("empty_dir/device", "c644 0:0 x1 61447"),
            ("empty_dir/disk", "b644 0:0 x1 61447"),
            ("empty_dir/zero", "c644 0:0 x1 0"),
            ("empty_dir/socket", "s644 0:0 x1 "),
            ("empty_dir/symlink", "l777 0:0 x1 file"),
            ("empty_dir/new", "-"),
            ("suid", "f6777 1000:1001 x1 suid\\n"),
            ("file", "f644 0:0 x1 new"),
            ("big", "-"),
        ],
    },
    Row {
        law: 18,
        name: "directories that move",
        change: |root| {
            let inside = root.node("dir/sub")?;
            root.write("dir/a", 0, b"D")?;
            root.unlink("dir/b")?;
            root.rename("dir", "dir2/moved", 0)?;
            root.mount.mkdir(inside, b"made inside", 0o755)?;
            root.mkdir("dir")?;
            root.rename("dir2", "empty_dir", 0)?;
            root.rename("empty_dir/moved/sub/deeper", "deeper", 0)
        },
        shows: &[
            ("dir", "d755 0:0 x2 "),
            ("dir2", "-"),
            ("empty_dir/moved", "d755 0:0 x3 a link sub"),
            ("empty_dir/moved/a", "f644 0:0 x1 Dir/a"),
            ("empty_dir/moved/sub", "d755 0:0 x3 c made inside"),
            ("deeper/d", "f644 0:0 x1 dir/sub/deeper/d"),
        ],
    },
    Row {
        law: 19,
        name: "renames refused",
        change: |root| {
            refused("into itself", root.rename("dir", "dir/sub/x", 0), Errno::INVAL);
            refused("onto a full one", root.rename("empty_dir", "dir", 0), Errno::NOTEMPTY);
            refused("nothing", root.rename("missing", "x", 0), Errno::NOENT);
            refused("onto a directory", root.rename("file", "empty_dir", 0), Errno::ISDIR);
            refused("onto a file", root.rename("empty_dir", "file", 0), Errno::NOTDIR);
            root.rename("dir", "dir2/moved", 0)?;
            let below = root.rename("dir2", "dir2/moved/sub/x", 0);
            refused("into what moved below", below, Errno::INVAL);
            Ok(())
        },
        shows: &[("dir2", "d755 0:0 x4 a moved sub"), ("file", "f644 0:0 x1 lower\\n")],
    },
    Row {
        law: 20,
        name: "flags of rename",
        change: |root| {
            root.create("new", b"new")?;
            refused("onto a lower name", root.rename("new", "dir", NOREPLACE), Errno::EXIST);
            root.unlink("other")?;
            root.rename("new", "other", NOREPLACE)?;
            refused("with nothing", root.rename("file", "new", EXCHANGE), Errno::NOENT);
            refused("with a child", root.rename("dir", "dir/sub", EXCHANGE), Errno::INVAL);
            root.rename("dir", "big", EXCHANGE)?;
            root.rename("file", "other", EXCHANGE)?;
            root.rename("hard", "empty_dir", EXCHANGE)?;
            root.rename("executable", "left", WHITEOUT)?;
            root.rename("dir2", "empty_dir/dir2", WHITEOUT)
        },
        shows: &[
            ("big", "d755 0:0 x3 a b link sub"),
            ("file", "f644 0:0 x1 new"),
            ("other", "f644 0:0 x1 lower\\n"),
            ("hard", "d755 0:0 x2 "),
            ("empty_dir", "d755 0:0 x4 a b dir2 far symlink symlink2"),
            ("executable", "c0 0:0 x1 0"),
            ("left", "f755 0:0 x1 #!/bin/true\\n"),
            ("dir2", "c0 0:0 x1 0"),
            ("empty_dir/dir2/sub/e", "f644 0:0 x1 dir2/sub/e"),
        ],
    },
    Row {
        law: 21,
        name: "what a rename replaces",
        change: |root| {
            let (lower, directory) = (root.node("other")?, root.node("empty_dir")?);
            let upper = root.create("upper", b"upper")?;
            root.rename("file", "other", 0)?;
            root.rename("executable", "upper", 0)?;
            root.rename("dir", "empty_dir", 0)?;
            for (held, said) in [(lower, &b"other\n"[..]), (upper, b"upper")] {
                assert_eq!(root.mount.getattr(held)?.nlink, 0);
                assert_eq!(root.mount.read_all(held)?, said);
                root.mount.write_all(held, 0, b"held")?;
                assert_eq!(&root.mount.read_all(held)?[..4], b"held");
                let mode = Change { mode: Some(0o600), ..Change::default() };
                assert_eq!(root.mount.setattr(held, mode)?.mode & 0o7777, 0o600);
            }
            assert_eq!(root.mount.getattr(directory)?.nlink, 0);
            assert_eq!(root.mount.names(directory)?.len(), 0);
            refused("in what is gone", root.mount.create(directory, b"x", 0o644), Errno::NOENT);
            Ok(())
        },
        shows: &[
            ("other", "f644 0:0 x1 lower\\n"),
            ("upper", "f755 0:0 x1 #!/bin/true\\n"),
            ("empty_dir", "d755 0:0 x3 a b link sub"),
        ],
    },
];
