//! The kernels of Debian 12, of Debian 13 and the newest: all boot, and in all every law is tried and
//! none is broken.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use tests::laws::{all, lay_out};
use tests::real_guest::RealGround;

#[test]
fn every_kernel_boots_into_the_union_alone_with_its_own_modules() {
    let Some(ground) = RealGround::find("every_kernel_boots_into_the_union_alone") else { return };
    let script = "uname -r; findmnt --noheadings --output TARGET,FSTYPE / ; \
                  findmnt --noheadings --output FSTYPE | sort -u | tr '\\n' ' '; echo; \
                  modprobe overlay && grep -c overlay /proc/filesystems";
    for image in ground.images() {
        let text = std::fs::read_to_string(image.join("image.txt")).unwrap();
        let version = text.lines().find_map(|line| line.strip_prefix("kernel ")).unwrap();
        let ended = ground.run().image(&image).to_end(&["sh", "-c", script], b"");
        let said = String::from_utf8_lossy(&ended.stdout).into_owned();
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines.first(), Some(&version), "{said} {}", ended.stderr);
        assert_eq!(
            lines.get(1).map(|line| line.split_whitespace().collect()),
            Some(vec!["/", "virtiofs"]),
            "{said}"
        );
        assert!(!lines.get(2).unwrap_or(&"").contains("rootfs"), "{said}");
        assert_eq!(lines.last(), Some(&"1"), "{said}");
    }
}

/// A kernel may lack what a few laws need, and says so; no more than one in ten.
#[test]
fn every_kernel_keeps_every_law() {
    let Some(ground) = RealGround::find("every_kernel_keeps_every_law") else { return };
    let top = tempfile::Builder::new().prefix("thinroot-laws-").tempdir_in("/var/tmp").unwrap();
    fs::set_permissions(top.path(), Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(top.path().join("plot")).unwrap();
    lay_out(&top.path().join("plot"), &all()).unwrap();
    fs::copy(env!("CARGO_BIN_EXE_laws"), top.path().join("laws")).unwrap();
    for image in ground.images() {
        let passed = try_laws(&ground, &image, top.path());
        let known = all().len();
        let shown = image.display();
        assert!(passed * 10 >= known * 9, "{shown}: only {passed} of {known} laws were tried");
    }
}

/// Tries all laws in a guest and gives how many held.
fn try_laws(ground: &RealGround, image: &Path, top: &Path) -> usize {
    let run = ground.run().image(image).options(&["--lower", top.to_str().unwrap()]);
    let ended = run.to_end(&["/laws", "/plot"], b"");
    let told = String::from_utf8_lossy(&ended.stdout).into_owned();
    let (passed, others): (Vec<_>, Vec<_>) = told.lines().partition(|row| row.starts_with("pass"));
    let shown = format!("{}:\n{}\n{}", image.display(), others.join("\n"), ended.stderr);
    assert_eq!(ended.status.code(), Some(0), "{shown}");
    eprintln!("{shown}");
    passed.len()
}
