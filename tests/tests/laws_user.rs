//! The laws with an ordinary user's daemon, without any privilege: over an imported base, with
//! owners and types in marks, before and after a remount. What such a user cannot have is listed in
//! docs/UNION.md, and each of it is a law that fails here and nowhere else.
#![allow(clippy::unwrap_used, reason = "a test's panic is its report")]

use tests::disk::kind;
use tests::laws::listed::{Judged, Listed};
use tests::laws::{all, lay_out, try_all};
use tests::mount::{Mount, Site, may_mount};
use tests::unprivileged::{USER, import, listed};

#[test]
fn ordinary_user_keeps_every_law_but_those_that_are_listed() {
    if !may_mount("ordinary_user_keeps_every_law_but_those_that_are_listed") {
        return;
    }
    let listed = listed().and(Listed::on(kind().as_deref()).with_links_in_files());
    let site = Site::new();
    lay_out(&site.lower(), &all()).unwrap();
    let base = import(&site);
    let mut mount = Some(site.mount_of(USER, &base));
    let verdicts = try_all(&site.point(), &all(), &mut || {
        mount.take().into_iter().for_each(Mount::unmount);
        mount = Some(site.mount_of(USER, &base));
    });
    mount.into_iter().for_each(Mount::unmount);
    let Judged { held, skipped, wrong } = listed.judge(&verdicts);
    println!("{held} laws hold, {} are listed, {skipped} were not tried", listed.names().count());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let mut check = site.command_of(USER, "check");
    check.arg("--lower").arg(&base).arg("--upper").arg(site.upper());
    check.arg("--work").arg(site.work()).arg("--index").arg(site.path().join("index"));
    let output = check.output().unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && told.is_empty(), "{told}");
}
