//! Laws of objects: copy-up, attributes, special files, data, times.

use rustix::io::Errno;
use tests::laws::ground::{BIG_BYTES, access_acl, default_acl, file_capability};
use tests::laws::plot::pattern;
use tests::requests::{Change, ROOT};

use super::{Root, Row, refused};

/// falloc.h: FALLOC_FL_KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE.
const KEEP_SIZE: u32 = 1;
const PUNCH: u32 = 2 | KEEP_SIZE;
const ZERO: u32 = 16;

pub const ROWS: &[Row] = &[
    Row {
        law: 22,
        name: "copy up",
        change: |root| {
            let before = root.entry("owned")?.attr;
            root.mount.setxattr(root.node("owned")?, b"user.color", b"green", 2)?;
            let after = root.entry("owned")?.attr;
            assert_eq!((before.mtime, before.atime), (after.mtime, after.atime));
            root.write("sparse", 0, b"X")?;
            let (before, after) = (before.blocks, root.entry("sparse")?.attr.blocks);
            assert!(after < before + 100, "holes stay: {after} blocks");
            for name in ["fifo", "device", "disk", "socket", "dangling", "marked_dir"] {
                root.chown(name, 9, 9)?;
            }
            Ok(())
        },
        shows: &[
            (
                "owned",
                "f640 1000:1001 x1 owned\\n security.note=\\xff system.posix_acl_access=\
              44 bytes, 85f291c7 trusted.shape=round\\x00 user.color=green user.empty=",
            ),
            ("fifo", "p644 9:9 x1 "),
            ("device", "c644 9:9 x1 61447"),
            ("disk", "b644 9:9 x1 61447"),
            ("socket", "s644 9:9 x1 "),
            ("dangling", "l777 9:9 x1 nowhere"),
            ("marked_dir", "d750 9:9 x2 child user.color=red"),
        ],
    },
    Row {
        law: 23,
        name: "kinds copied up",
        change: |root| {
            let kinds = ["fifo", "device", "disk", "zero", "socket", "dangling", "marked_dir"];
            for name in kinds {
                if name != "marked_dir" {
                    root.link(name, &format!("{name} again"))?;
                }
                root.set(name, Change { mtime: Some((9, 9)), ..Change::default() })?;
                assert_eq!(root.entry(name)?.attr.mtime, (9, 9), "{name}");
            }
            Ok(())
        },
        shows: &[
            ("fifo", "p644 0:0 x2 "),
            ("device", "c644 0:0 x2 61447"),
            ("disk", "b644 0:0 x2 61447"),
            ("zero", "c644 0:0 x2 0"),
            ("socket", "s644 0:0 x2 "),
            ("dangling", "l777 1000:1001 x2 nowhere"),
            ("marked_dir", "d750 1000:1001 x2 child user.color=red"),
            ("fifo again", "p644 0:0 x2 "),
            ("zero again", "c644 0:0 x2 0"),
        ],
    },
    Row {
        law: 24,
        name: "writers at once",
        change: |root| {
            let big = root.node("big")?;
            let part = BIG_BYTES / 8;
            std::thread::scope(|scope| {
                let writers: Vec<_> = (0..8_u8)
                    .map(|n| {
                        let mount = root.mount.clone();
                        let offset = u64::try_from(usize::from(n) * part).unwrap();
                        scope.spawn(move || mount.write_all(big, offset, &vec![n; part]))
                    })
                    .collect();
                writers.into_iter().try_for_each(|writer| writer.join().unwrap())
            })?;
            let mut expected = pattern(BIG_BYTES);
            for (n, part) in expected.chunks_exact_mut(part).enumerate().take(8) {
                part.fill(u8::try_from(n).unwrap());
            }
            assert!(root.mount.read_all(big)? == expected);
            Ok(())
        },
        shows: &[],
    },
    Row {
        law: 25,
        name: "who held it before it was copied up",
        change: |root| {
            let held = root.node("big")?;
            let mut content = pattern(BIG_BYTES);
            assert!(root.mount.read_all(held)? == content);
            root.write("big", 100_000, b"changed")?;
            content[100_000..100_007].copy_from_slice(b"changed");
            assert!(root.mount.read_all(held)? == content);
            root.unlink("big")?;
            root.mount.write_all(held, 0, b"!")?;
            content[0] = b'!';
            assert!(root.mount.read_all(held)? == content);
            Ok(())
        },
        shows: &[("big", "-")],
    },
    Row {
        law: 26,
        name: "changes without a name",
        change: |root| {
            let (held, name) = (root.node("owned")?, &b"user.late"[..]);
            root.unlink("owned")?;
            root.mount.setxattr(held, name, b"1", 0)?;
            assert_eq!(root.mount.getxattr(held, name)?, b"1");
            assert_eq!(root.mount.getxattr(held, b"trusted.shape")?, b"round\0");
            let change = Change { uid: Some(7), mode: Some(0o604), ..Change::default() };
            let attr = root.mount.setattr(held, Change { mtime: Some((3, 4)), ..change })?;
            assert_eq!((attr.uid, attr.mode & 0o7777, attr.mtime), (7, 0o604, (3, 4)));
            assert_eq!((attr.nlink, attr.size), (0, 6));
            root.mount.fsync(held)?;
            assert_eq!(root.mount.read_all(held)?, b"owned\n");
            Ok(())
        },
        shows: &[("owned", "-")],
    },
    Row {
        law: 27,
        name: "attributes of every namespace",
        change: |root| {
            for name in ["file", "dir", "symlink", "fifo"] {
                root.set_xattr(name, "trusted.t", b"\0t")?;
                root.set_xattr(name, "security.s", b"s")?;
            }
            for name in ["file", "dir"] {
                root.set_xattr(name, "user.u", b"")?;
            }
            root.set_xattr("file", "user.u", b"again")?;
            root.mount.removexattr(root.node("owned")?, b"user.empty")?;
            root.rename("dir", "moved", 0)
        },
        shows: &[
            ("file", "f644 0:0 x1 lower\\n security.s=s trusted.t=\\x00t user.u=again"),
            ("moved", "d755 0:0 x3 a b link sub security.s=s trusted.t=\\x00t user.u="),
            ("symlink", "l777 0:0 x1 file security.s=s trusted.t=\\x00t"),
            ("fifo", "p644 0:0 x1  security.s=s trusted.t=\\x00t"),
        ],
    },
    Row {
        law: 28,
        name: "attributes refused",
        change: |root| {
            let file = root.node("file")?;
            refused(
                "create",
                root.mount.setxattr(root.node("owned")?, b"user.color", b"", 1),
                Errno::EXIST,
            );
            refused("replace", root.mount.setxattr(file, b"user.x", b"", 2), Errno::NODATA);
            refused("remove", root.mount.removexattr(file, b"user.x"), Errno::NODATA);
            refused("on a FIFO", root.set_xattr("fifo", "user.x", b""), Errno::PERM);
            root.mount.removexattr(root.node("owned")?, b"trusted.shape")?;
            root.mount.removexattr(root.node("owned")?, b"system.posix_acl_access")?;
            root.mount.removexattr(root.node("owned")?, b"security.note")?;
            root.set_xattr("symlink", "trusted.x", b"2")
        },
        shows: &[
            ("owned", "f640 1000:1001 x1 owned\\n user.color=blue user.empty="),
            ("symlink", "l777 0:0 x1 file trusted.x=2"),
        ],
    },
    Row {
        law: 29,
        name: "attributes named as marks",
        change: |root| {
            root.set_xattr("dir", "trusted.overlay.opaque", b"y")?;
            root.set_xattr("dir2", "trusted.overlay.redirect", b"/dir")?;
            root.set_xattr("file", "trusted.overlay.metacopy", b"")?;
            root.set_xattr("empty_dir", "user.overlay.opaque", b"y")
        },
        shows: &[
            ("dir", "d755 0:0 x3 a b link sub trusted.overlay.opaque=y"),
            ("dir2", "d755 0:0 x3 a sub trusted.overlay.redirect=/dir"),
            ("file", "f644 0:0 x1 lower\\n trusted.overlay.metacopy="),
            ("empty_dir", "d755 0:0 x2  user.overlay.opaque=y"),
        ],
    },
    Row {
        law: 30,
        name: "access lists",
        change: |root| {
            // The mask is the group's bits.
            root.chmod("owned", 0o666)?;
            root.set_xattr("file", "system.posix_acl_access", &access_acl())?;
            root.mount.removexattr(root.node("other")?, b"system.posix_acl_access")?;
            root.set_xattr("dir", "system.posix_acl_default", &default_acl())?;
            root.create("dir/heir", b"")?;
            root.mount.removexattr(root.node("acl")?, b"system.posix_acl_default")
        },
        shows: &[
            (
                "owned",
                "f666 1000:1001 x1 owned\\n security.note=\\xff system.posix_acl_access=\
              44 bytes, 53eb38bf trusted.shape=round\\x00 user.color=blue user.empty=",
            ),
            ("file", "f640 0:0 x1 lower\\n system.posix_acl_access=44 bytes, 85f291c7"),
            ("dir", "d755 0:0 x3 a b heir link sub system.posix_acl_default=44 bytes, 14bd9d20"),
            ("dir/heir", "f640 0:0 x1  system.posix_acl_access=44 bytes, dd1a3a4"),
            ("acl", "d755 0:0 x2 "),
        ],
    },
    Row {
        law: 31,
        name: "special files",
        change: |root| {
            for name in ["fifo", "socket", "device"] {
                root.chmod(name, 0o606)?;
                root.rename(name, &format!("dir/{name}"), 0)?;
            }
            root.mknod("fifo", 0o010_600, 0)?;
            root.mknod("socket", 0o140_755, 0)?;
            root.mknod("device", 0o060_660, 0x802)?;
            root.unlink("disk")?;
            root.mknod("disk", 0o020_640, 0x501)
        },
        shows: &[
            ("dir/fifo", "p606 0:0 x1 "),
            ("dir/socket", "s606 0:0 x1 "),
            ("dir/device", "c606 0:0 x1 61447"),
            ("fifo", "p600 0:0 x1 "),
            ("socket", "s755 0:0 x1 "),
            ("device", "b640 0:0 x1 2050"),
            ("disk", "c640 0:0 x1 1281"),
        ],
    },
    Row {
        law: 32,
        name: "device of number zero",
        change: |root| {
            root.mknod("dir/zero", 0o020_644, 0)?;
            root.unlink("dir/a")?;
            root.mknod("dir/a", 0o020_600, 0)?;
            root.rename("zero", "moved", 0)?;
            root.link("dir/zero", "linked")?;
            refused("create over it", root.create("dir/zero", b""), Errno::EXIST);
            root.mknod("dir/pipe", 0o010_644, 0)?;
            root.mknod("dir/null", 0o020_666, 0x103)
        },
        shows: &[
            ("dir", "d755 0:0 x3 a b link null pipe sub zero"),
            ("dir/a", "c600 0:0 x1 0"),
            ("linked", "c644 0:0 x2 0"),
            ("moved", "c644 0:0 x1 0"),
            ("zero", "-"),
            ("dir/null", "c644 0:0 x1 259"),
        ],
    },
    Row {
        law: 33,
        name: "symlinks",
        change: |root| {
            root.symlink(&[b't'; 4095], "long")?;
            root.symlink(b"\xff/x", "bytes")
        },
        shows: &[("long", "l777 0:0 x1 4095 bytes, 5a07def4"), ("bytes", "l777 0:0 x1 \\xff/x")],
    },
    Row {
        law: 34,
        name: "times and owners",
        change: |root| {
            for (name, mtime) in [("file", (5_000_000_000, 7)), ("dir", (1, 1)), ("fifo", (0, 0))] {
                root.set(name, Change { mtime: Some(mtime), ..Change::default() })?;
                assert_eq!(root.entry(name)?.attr.mtime, mtime, "{name}");
            }
            root.chown("file", 0x1234_5678, 0xffff_fffe)?;
            root.chmod("", 0o751)
        },
        shows: &[("file", "f644 305419896:4294967294 x1 lower\\n")],
    },
    Row {
        law: 35,
        name: "privileges",
        change: |root| {
            let user = root.mount.as_task(2000, 2000, 7);
            // fuse.h: FUSE_WRITE_KILL_SUIDGID.
            user.write_with(root.node("suid")?, 0, b"S", 4)?;
            root.set_xattr("executable", "security.capability", &file_capability())?;
            root.chmod("executable", 0o6755)?;
            let cut = Change { size: Some(2), kills_privileges: true, ..Change::default() };
            user.setattr(root.node("executable")?, cut)?;
            root.write("capable", 0, b"C")?;
            root.chmod("file", 0o6755)?;
            root.chown("file", 3, 4)
        },
        shows: &[
            ("suid", "f777 1000:1001 x1 Suid\\n"),
            ("executable", "f755 0:0 x1 #!"),
            ("file", "f755 3:4 x1 lower\\n"),
        ],
    },
    Row {
        law: 36,
        name: "births",
        change: |root| {
            let user = Root { mount: &root.mount.as_task(2000, 2000, 7), plot: root.plot.clone() };
            root.chmod("setgid", 0o2777)?;
            user.create("setgid/file", b"")?;
            user.mkdir("setgid/dir")?;
            user.symlink(b"x", "setgid/link")?;
            user.create("open/file", b"")?;
            root.mkdir("acl/dir")
        },
        shows: &[
            ("setgid/file", "f644 2000:1001 x1 "),
            ("setgid/dir", "d2755 2000:1001 x2 "),
            ("setgid/link", "l777 2000:1001 x1 x"),
            ("open/file", "f644 2000:2000 x1 "),
            (
                "acl/dir",
                "d750 0:0 x2  system.posix_acl_access=44 bytes, 510209e2 \
              system.posix_acl_default=44 bytes, 14bd9d20",
            ),
        ],
    },
    Row {
        law: 38,
        name: "data",
        change: |root| {
            root.write("big", 131_071, b"abc")?;
            root.cut_to("big", 200_000)?;
            root.cut_to("big", 250_000)?;
            root.write("file", 10, b"far")?;
            root.cut_to("other", 0)?;
            root.write("empty", 0, &pattern(70_000))?;
            let content = root.mount.read_all(root.node("big")?)?;
            let mut expected = pattern(200_000);
            expected[131_071..131_074].copy_from_slice(b"abc");
            expected.resize(250_000, 0);
            assert!(content == expected);
            Ok(())
        },
        shows: &[
            ("file", "f644 0:0 x1 lower\\n\\x00\\x00\\x00\\x00far"),
            ("other", "f644 0:0 x1 "),
        ],
    },
    Row {
        law: 39,
        name: "ranges",
        change: |root| {
            let big = root.node("big")?;
            let mut expected = pattern(BIG_BYTES);
            root.mount.fallocate(big, PUNCH, 5000, 20_000)?;
            expected[5000..25_000].fill(0);
            root.mount.fallocate(big, ZERO, 299_000, 10_000)?;
            expected.resize(309_000, 0);
            expected[299_000..].fill(0);
            root.mount.fallocate(big, KEEP_SIZE, 0, 1 << 20)?;
            assert!(root.mount.read_all(big)? == expected);
            let file = root.node("file")?;
            root.mount.fallocate(file, 0, 0, 20)?;
            refused("nothing", root.mount.fallocate(file, 0, 0, 0), Errno::INVAL);
            Ok(())
        },
        shows: &[(
            "file",
            "f644 0:0 x1 lower\\n\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00",
        )],
    },
    Row {
        law: 40,
        name: "ranges copied",
        change: |root| {
            let (file, other) = (root.node("file")?, root.node("other")?);
            assert_eq!(root.mount.copy_file_range((file, 0), (other, 3), 6), Ok(6));
            let new = root.create("new", b"")?;
            assert_eq!(root.mount.copy_file_range((other, 0), (new, 0), 100), Ok(9));
            Ok(())
        },
        shows: &[("other", "f644 0:0 x1 othlower\\n"), ("new", "f644 0:0 x1 othlower\\n")],
    },
    Row {
        law: 41,
        name: "syncing",
        change: |root| {
            root.write("file", 0, b"L")?;
            for name in ["file", "other", "dir"] {
                root.mount.fsync(root.node(name)?)?;
            }
            root.mount.syncfs()?;
            let (blocks, free, available) = root.mount.statfs()?;
            assert!(blocks >= free && free >= available);
            Ok(())
        },
        shows: &[("file", "f644 0:0 x1 Lower\\n")],
    },
    Row {
        law: 42,
        name: "times of directories",
        change: |root| {
            let old = root.entry("dir")?.attr.mtime;
            root.write("dir/a", 0, b"D")?;
            root.chmod("dir/sub", 0o700)?;
            assert_eq!(root.entry("dir")?.attr.mtime, old, "only a child changed");
            root.unlink("dir/a")?;
            assert!(root.entry("dir")?.attr.mtime > old, "a name is gone");
            Ok(())
        },
        shows: &[("dir", "d755 0:0 x3 b link sub"), ("dir/sub", "d700 0:0 x3 c deeper")],
    },
    Row {
        law: 43,
        name: "access times",
        change: |root| {
            let before = root.entry("file")?.attr;
            root.mount.read_all(before.ino)?;
            let after = root.mount.getattr(before.ino)?;
            assert!(after.atime > before.atime, "it was read");
            assert_eq!((after.mtime, after.ctime), (before.mtime, before.ctime));
            root.mount.read_all(before.ino)?;
            assert_eq!(root.mount.getattr(before.ino)?.atime, after.atime, "once is enough");
            root.chmod("file", 0o600)?;
            assert_eq!(root.mount.getattr(before.ino)?.atime, after.atime, "copied up");
            assert_eq!(root.mount.getattr(ROOT)?.ino, 1);
            Ok(())
        },
        shows: &[("file", "f600 0:0 x1 lower\\n")],
    },
    Row {
        law: 48,
        name: "large file by block",
        change: |root| {
            let (big, mut expected) = (root.node("big")?, pattern(BIG_BYTES));
            root.chmod("big", 0o600)?;
            root.link("big", "dir/big")?;
            for at in [0, 8_191, 200_000] {
                root.mount.write_all(big, at, b"12")?;
                let at = usize::try_from(at).unwrap();
                expected[at..at + 2].copy_from_slice(b"12");
                assert!(root.mount.read_all(big)? == expected, "{at}");
            }
            Ok(())
        },
        shows: &[
            ("big", "f600 0:0 x2 300001 bytes, 1959545"),
            ("dir/big", "f600 0:0 x2 300001 bytes, 1959545"),
        ],
    },
    Row {
        law: 49,
        name: "what was cut off",
        change: |root| {
            root.write("big", 299_000, b"end")?;
            root.cut_to("big", 10_000)?;
            root.cut_to("big", 20_000)?;
            root.write("big", 30_000, b"x")?;
            let big = root.mount.read_all(root.node("big")?)?;
            assert!(big[..10_000] == pattern(BIG_BYTES)[..10_000]);
            assert!(big[10_000..30_000].iter().all(|byte| *byte == 0));
            assert_eq!(&big[30_000..], b"x");
            Ok(())
        },
        shows: &[("big", "f644 0:0 x1 30001 bytes, d4d001f0")],
    },
];
