//! Extended attributes.

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::ground::{access_acl, default_acl, file_capability};
use super::plot::{Done, Failure, Holds, Plot, from_now_on, holds, nothing_more, refused, same};

super::laws! {
    27 => xattrs_of_every_namespace_are_served;
    27 => changed_xattrs_last;
    27 => xattrs_of_directories_and_symlinks_last;
    28 => xattr_is_refused_where_a_copy_refuses_it;
    28 => value_of_any_size_comes_back;
    29 => overlay_names_are_ordinary_xattrs;
    29 => overlay_names_change_nothing;
    29 => names_in_which_xfs_keeps_acls_are_ordinary_xattrs;
    30 => acl_survives_copy_up_and_sets_the_mode;
}

fn xattrs_of_every_namespace_are_served(plot: &Plot) -> Done<Holds> {
    let plot = plot.clone();
    from_now_on(move || {
        let expected = [
            "security.note",
            "system.posix_acl_access",
            "trusted.shape",
            "user.color",
            "user.empty",
        ];
        same("names", plot.xattrs("owned")?, expected)?;
        let bytes = expected.iter().map(|name| name.len() + 1).sum::<usize>();
        same("size of the list", plot.xattrs_size("owned")?, bytes)?;
        same("trusted.shape", plot.xattr("owned", "trusted.shape")?, b"round\0")?;
        same("security.note", plot.xattr("owned", "security.note")?, b"\xff")?;
        same("user.empty", plot.xattr("owned", "user.empty")?, b"")?;
        same("acl", plot.xattr("owned", "system.posix_acl_access")?, access_acl())?;
        same("default acl", plot.xattr("acl", "system.posix_acl_default")?, default_acl())?;
        let capability = plot.xattr("capable", "security.capability")?;
        same("capability", capability, file_capability())?;
        same("none", plot.xattrs("file")?, Vec::<String>::new())
    })
}

fn changed_xattrs_last(plot: &Plot) -> Done<Holds> {
    plot.remove_xattr("owned", "user.color")?;
    plot.set_xattr("owned", "user.empty", b"no more")?;
    plot.set_xattr("owned", "trusted.new", b"\0\0")?;
    plot.remove_xattr("owned", "security.note")?;
    plot.remove_xattr("owned", "system.posix_acl_access")?;
    plot.remove_xattr("capable", "security.capability")?;
    let plot = plot.clone();
    from_now_on(move || {
        same("names", plot.xattrs("owned")?, ["trusted.new", "trusted.shape", "user.empty"])?;
        same("user.empty", plot.xattr("owned", "user.empty")?, b"no more")?;
        same("trusted.new", plot.xattr("owned", "trusted.new")?, b"\0\0")?;
        same("names", plot.xattrs("capable")?, Vec::<String>::new())?;
        same("content", plot.read("owned")?, b"owned\n")
    })
}

fn xattrs_of_directories_and_symlinks_last(plot: &Plot) -> Done<Holds> {
    plot.set_xattr("dir", "user.x", b"1")?;
    plot.remove_xattr("marked_dir", "user.color")?;
    for name in ["symlink", "fifo", "device", "socket"] {
        plot.set_xattr(name, "trusted.x", b"2")?;
        refused(name, plot.set_xattr(name, "user.x", b"2"), Errno::PERM)?;
    }
    let plot = plot.clone();
    from_now_on(move || {
        same("dir", plot.xattrs("dir")?, ["user.x"])?;
        same("marked_dir", plot.xattrs("marked_dir")?, Vec::<String>::new())?;
        for name in ["symlink", "fifo", "device", "socket"] {
            same(name, plot.xattrs(name)?, ["trusted.x"])?;
            same(name, plot.xattr(name, "trusted.x")?, b"2")?;
        }
        Ok(())
    })
}

fn xattr_is_refused_where_a_copy_refuses_it(plot: &Plot) -> Done<Holds> {
    let (create, replace) = (XattrFlags::CREATE, XattrFlags::REPLACE);
    refused("get of nothing", plot.xattr("file", "user.x").map(|_| ()), Errno::NODATA)?;
    refused("remove of nothing", plot.remove_xattr("file", "user.x"), Errno::NODATA)?;
    let result = plot.set_xattr_with("file", "user.x", b"", replace);
    refused("replace of nothing", result, Errno::NODATA)?;
    let result = plot.set_xattr_with("owned", "user.color", b"", create);
    refused("create of what a lower has", result, Errno::EXIST)?;
    plot.set_xattr_with("owned", "user.color", b"green", replace)?;
    plot.set_xattr_with("owned", "user.new", b"1", create)?;
    let result = plot.set_xattr_with("owned", "user.new", b"1", create);
    refused("create twice", result, Errno::EXIST)?;
    refused("no namespace", plot.set_xattr("file", "color", b"1"), Errno::OPNOTSUPP)?;
    let long = format!("user.{}", "x".repeat(251));
    refused("too long a name", plot.set_xattr("file", &long, b"1"), Errno::RANGE)?;
    plot.set_xattr("file", &long[..255], b"1")?;
    let small: &mut [u8] = &mut [0; 3];
    let result = rustix::fs::lgetxattr(plot.at("owned"), "user.color", small);
    same("a buffer too small", result, Err(Errno::RANGE))?;
    let plot = plot.clone();
    from_now_on(move || {
        same("user.color", plot.xattr("owned", "user.color")?, b"green")?;
        same("long name", plot.xattr("file", &long[..255])?, b"1")
    })
}

fn value_of_any_size_comes_back(plot: &Plot) -> Done<Holds> {
    // What a plain ext4 has room for beside the rest.
    let value: Vec<u8> = (0..3000_u32).map(|n| n.to_le_bytes()[0]).collect();
    plot.set_xattr("file", "user.large", &value)?;
    plot.set_xattr("dir", "user.large", &value)?;
    for n in 0..40 {
        plot.set_xattr("other", &format!("user.number{n}"), &[n])?;
    }
    let plot = plot.clone();
    from_now_on(move || {
        same("file", &plot.xattr("file", "user.large")?, &value)?;
        same("dir", &plot.xattr("dir", "user.large")?, &value)?;
        same("how many", plot.xattrs("other")?.len(), 40_usize)?;
        (0..40).try_for_each(|n| same("one", plot.xattr("other", &format!("user.number{n}"))?, [n]))
    })
}

const OVERLAY_NAMES: [&str; 6] = [
    "trusted.overlay.opaque",
    "trusted.overlay.redirect",
    "trusted.overlay.origin",
    "trusted.overlay.metacopy",
    "trusted.overlay.overlay.opaque",
    "user.overlay.whiteout",
];

fn overlay_names_are_ordinary_xattrs(plot: &Plot) -> Done<Holds> {
    for (n, key) in OVERLAY_NAMES.iter().enumerate() {
        plot.set_xattr("dir", key, format!("{n}").as_bytes())?;
        plot.set_xattr("file", key, format!("{n}").as_bytes())?;
    }
    plot.remove_xattr("dir", "trusted.overlay.origin")?;
    plot.remove_xattr("marks/opaque", "trusted.overlay.opaque")?;
    plot.append("file", b"!")?;
    let plot = plot.clone();
    from_now_on(move || {
        let mut expected = OVERLAY_NAMES.to_vec();
        expected.sort_unstable();
        same("file", plot.xattrs("file")?, expected.clone())?;
        expected.retain(|key| *key != "trusted.overlay.origin");
        same("dir", plot.xattrs("dir")?, expected)?;
        let gone = plot.xattr("dir", "trusted.overlay.origin").map(|_| ());
        refused("removed", gone, Errno::NODATA)?;
        same("value", plot.xattr("dir", "trusted.overlay.redirect")?, b"1")?;
        let left = ["trusted.overlay.redirect", "user.overlay.opaque"];
        same("marks/opaque", plot.xattrs("marks/opaque")?, left)
    })
}

fn overlay_names_change_nothing(plot: &Plot) -> Done<Holds> {
    plot.set_xattr("dir", "trusted.overlay.opaque", b"y")?;
    plot.set_xattr("dir2", "trusted.overlay.redirect", b"/dir")?;
    plot.set_xattr("file", "trusted.overlay.metacopy", b"")?;
    plot.create("new", b"content\n")?;
    plot.set_xattr("new", "trusted.overlay.metacopy", b"")?;
    plot.mkdir("new_dir")?;
    plot.set_xattr("new_dir", "trusted.overlay.redirect", b"dir")?;
    plot.create("empty_dir/hidden", b"")?;
    plot.set_xattr("empty_dir/hidden", "trusted.overlay.whiteout", b"y")?;
    plot.set_xattr("empty_dir", "trusted.overlay.opaque", b"x")?;
    let plot = plot.clone();
    from_now_on(move || {
        plot.names_are("dir", &["a", "b", "sub", "link"])?;
        plot.names_are("dir2", &["a", "sub"])?;
        plot.names_are("new_dir", &[])?;
        plot.names_are("empty_dir", &["hidden"])?;
        same("file", plot.read("file")?, b"lower\n")?;
        same("new", plot.read("new")?, b"content\n")
    })
}

/// On xfs itself such a value is an ACL, or takes the object away from everybody.
fn names_in_which_xfs_keeps_acls_are_ordinary_xattrs(plot: &Plot) -> Done<Holds> {
    const NAMES: [&str; 2] = ["trusted.SGI_ACL_DEFAULT", "trusted.SGI_ACL_FILE"];
    for path in ["file", "dir", "owned"] {
        for name in NAMES {
            plot.set_xattr(path, name, b"no ACL of xfs")?;
        }
    }
    plot.remove_xattr("dir", NAMES[1])?;
    let plot = plot.clone();
    from_now_on(move || {
        same("file", plot.xattrs("file")?, NAMES)?;
        same("dir", plot.xattrs("dir")?, &NAMES[..1])?;
        same("value", plot.xattr("file", NAMES[1])?, b"no ACL of xfs")?;
        refused("removed", plot.xattr("dir", NAMES[1]).map(|_| ()), Errno::NODATA)?;
        same("content", plot.read("file")?, b"lower\n")?;
        same("acl", plot.xattr("owned", "system.posix_acl_access")?, access_acl())
    })
}

fn acl_survives_copy_up_and_sets_the_mode(plot: &Plot) -> Done<Holds> {
    plot.append("owned", b"!")?;
    same("after copy-up", plot.xattr("owned", "system.posix_acl_access")?, access_acl())?;
    plot.chmod("owned", 0o600)?;
    let masked = plot.xattr("owned", "system.posix_acl_access")?;
    holds("chmod changes the mask", masked != access_acl())?;
    match plot.set_xattr("file", "system.posix_acl_access", &access_acl()) {
        Err(failure) if failure.errno == Some(Errno::OPNOTSUPP) => {
            return Err(Failure::skip("no ACLs here"));
        }
        result => result?,
    }
    // Where a mark holds the mode too.
    plot.set_xattr("zero", "system.posix_acl_access", &access_acl())?;
    same("mode under an ACL", plot.mode("zero")?, 0o640_u32)?;
    // Linux takes "no ACL" as what is set, not as something removed.
    plot.remove_xattr("other", "system.posix_acl_access")?;
    plot.remove_xattr("dir2", "system.posix_acl_default")?;
    plot.set_xattr("dir", "system.posix_acl_default", &default_acl())?;
    let result = plot.set_xattr("file", "system.posix_acl_default", &default_acl());
    refused("default ACL of a file", result, Errno::ACCESS)?;
    if masked.is_empty() {
        return nothing_more();
    }
    let plot = plot.clone();
    from_now_on(move || {
        same("mode", plot.mode("file")?, 0o640_u32)?;
        same("file", plot.xattr("file", "system.posix_acl_access")?, access_acl())?;
        same("owned", &plot.xattr("owned", "system.posix_acl_access")?, &masked)?;
        same("dir", plot.xattr("dir", "system.posix_acl_default")?, default_acl())
    })
}
