//! What a real guest wrote on a real root, read by the kernel's overlayfs on the host.

use std::process::Command;

use tests::mount::Site;
use tests::overlayfs::{Overlay, without_what_overlayfs_lacks};
use tests::real_guest::RealGround;
use tests::tree;

/// Edits, removals, births, links, nodes, attributes, renamed directories of the lower, and a part
/// of a large file.
const CHANGES: &str = "set -e
echo edited >> /etc/motd
rm /etc/issue; rm -r /usr/share/bug
mv /etc/apt /etc/moved; echo x > /etc/moved/made; mv /usr/share/doc /srv/doc
mv /etc/moved/apt.conf.d /srv/conf; rm -r /usr/share/misc; mkdir /usr/share/misc
chmod 0711 /srv; chown 7:8 /etc/debian_version; touch -d 2001-02-03 /etc/host.conf
ln /etc/passwd /etc/passwd-too; echo more >> /etc/passwd-too; ln /usr/bin/perl /srv/perl
mkdir -p /new/deep; ln -s ../x /new/link; mkfifo /new/pipe; mknod /new/node c 1 3
mv /usr/bin/gpgv /usr/bin/gpgv.moved; chmod 4755 /usr/bin/tac
large=$(find /usr -xdev -type f -size +1000k | sort | head -n 1)
echo part | dd of=$large bs=1 seek=500000 conv=notrunc 2> /dev/null
echo $large
sync";

/// Law U52, with a guest's upper: contents, attributes, link structure and counts.
#[test]
fn kernel_reads_what_a_guest_wrote() {
    let Some(ground) = RealGround::find("kernel_reads_what_a_guest_wrote") else { return };
    let image = ground.image();
    // The image keeps each module in two trees that are links of each other, and the kernel counts
    // what lies outside of the union too: a copy has no such links.
    let site = Site::new();
    let modules = site.lower();
    let copy = Command::new("cp")
        .args(["-r", "--preserve=mode,ownership,timestamps,xattr", "--no-target-directory"])
        .args([image.join("modules/merged"), modules.clone()])
        .status();
    assert!(copy.unwrap().success());
    let site = site.over(ground.base()).below(modules.clone());

    let (upper, work) = (site.upper(), site.work());
    let options = ["--lower", "--upper", "--work"];
    let paths = [&modules, &upper, &work];
    let options: Vec<_> = options
        .iter()
        .zip(paths)
        .flat_map(|(key, path)| [key.as_ref(), path.as_os_str()])
        .collect();
    let run = ground.run().kernel_of(&image).options(&options);
    let ended = run.to_end(&["sh", "-c", CHANGES], b"");
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    let large = String::from_utf8(ended.stdout).unwrap();
    assert!(large.starts_with("/usr/"), "no large file was written in part: {large:?}");

    let mount = site.mount(&[]);
    let mut ours = tree::read_short(mount.root());
    mount.unmount();
    assert!(ours.len() > 5_000, "{} objects are no Debian root", ours.len());
    // Until then the kernel answers an error for a file copied up by block.
    assert!(site.command("settle").args(["--log-level", "warn"]).status().unwrap().success());
    let Some(overlay) = Overlay::of(&site, "on") else { return };
    let mut theirs = tree::read_short(overlay.root());
    without_what_overlayfs_lacks(&mut ours, &mut theirs);
    let found = tree::compare(&ours, &theirs);
    assert!(found.is_empty(), "{} differences:\n{}", found.len(), found.join("\n"));
}
