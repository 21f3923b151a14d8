//! An ordinary user's guest: his base, his upper, no privilege on the host.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tests::laws::{all, lay_out};
use tests::mount::{Site, copy_program};
use tests::real_guest::{Ended, RealGround, Run};
use tests::unprivileged::{USER, import, listed};

use crate::kernels::{ALL_LAWS, judge, tell_again};

/// A root with the laws, what they start from, and as little else as a guest needs for them.
fn lay_out_root(root: &Path) {
    for name in ["plot", "dev", "proc", "sys", "tmp", "run", "sbin"] {
        fs::create_dir(root.join(name)).unwrap();
    }
    lay_out(&root.join("plot"), &all()).unwrap();
    copy_program(Path::new(env!("CARGO_BIN_EXE_laws")), &root.join("laws"));
    // The kernel asks for overlayfs by it.
    let modprobe = Path::new("/usr/sbin/modprobe");
    fs::copy(modprobe, root.join("sbin/modprobe")).unwrap();
    // The laws start a program of the host.
    for program in [&root.join("laws"), modprobe, Path::new("/bin/sleep")] {
        for library in libraries(program) {
            let place = root.join(library.strip_prefix("/").unwrap());
            fs::create_dir_all(place.parent().unwrap()).unwrap();
            fs::copy(&library, place).unwrap();
        }
    }
}

/// What the program is linked with.
fn libraries(program: &Path) -> BTreeSet<PathBuf> {
    let told = Command::new("ldd").arg(program).output().unwrap().stdout;
    let told = String::from_utf8(told).unwrap();
    told.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect()
}

/// Laws U1 to U57 with an ordinary user's daemon, and again after the guest has booted again: the
/// tree is what it was, number for number.
#[test]
fn ordinary_users_guest_keeps_every_law_and_boots_again_into_what_it_left() {
    let test = "ordinary_users_guest_keeps_every_law_and_boots_again_into_what_it_left";
    let Some(ground) = RealGround::find(test) else { return };
    let site = Site::new();
    lay_out_root(&site.lower());
    let base = import(&site);
    // The workspace may lie where the user may not look.
    let image = site.path().join("image");
    let copied = Command::new("cp").arg("-rL").args([ground.image(), image.clone()]).status();
    assert!(copied.unwrap().success());
    let run = || -> Run {
        let mut command = site.command_of(USER, "run");
        command.arg("--lower").arg(&base).arg("--upper").arg(site.upper());
        command.arg("--work").arg(site.work()).arg("--index").arg(site.index());
        command.env("TMPDIR", site.path());
        RealGround::run_by(command, &image).options(&ALL_LAWS)
    };
    let ended: Ended = run().to_end(&["/laws", "--then-tell", "/plot"], b"");
    let tried = judge(&ended, &image, &listed());
    assert!(tried * 10 >= all().len() * 9, "only {tried} laws were tried");
    tell_again(run(), &ended);
}
