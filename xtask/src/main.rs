//! Set-up, demo, tests, lanes and benches:
//! `cargo xtask demo|test|check|nightly|oracle|crash|bench|suites|filesystems|setup|licences`.

mod bench;
mod bench_vm;
mod build;
mod console;
mod crash;
mod demo;
mod density;
mod disk;
mod filesystems;
mod ground;
mod lanes;
mod oracle;
mod setup;
mod steps;
mod suites;

use std::process::ExitCode;

use ground::Ground;
use steps::{Step, StepError};

const USAGE: &str = "\
usage: cargo xtask COMMAND

  demo      tells the story: two VMs boot Debian from one base, and start clean again
  test      everything, set-up included
  check     the fast lane: format, lints, arrows and tests without VMs; under 2 minutes
  nightly   what takes longer: licences, optimised tests
  oracle    random scripts on a union and a private copy, and on the kernel's overlayfs:
            oracle [--seeds N] [--operations N] [--first SEED]; a million operations by default
  bench     measures beside virtiofsd: [--list] [--rounds N] [--even-busy]
            [--client-poll-us N] [--disk ext4|here|tmpfs] [WORKLOAD…];
            report in .thinroot/bench
            bench density [--list] [--daemons N] [--entries N] [--rounds N] [--guests N] [PART…]:
            what each of many guests adds, a million entries sealed, guests booting at once
  bench vm  the same in real guests, beside block devices too: [--list] [--rounds N]
            [--rivals LIST] [--even-busy] [WORKLOAD…]
  suites [SUITE…]
            foreign suites on a union, beside the same run on ext4; installs what it needs;
            all: the long ones too
  filesystems [KIND…]
            the laws with the upper on ext4, xfs, btrfs, tmpfs and tmpfs with huge pages
  crash     the whole crash matrix, and power losses
  setup     installs, builds and makes what the others need
  licences  checks licences, bans and sources of all dependencies with cargo-deny
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match dispatch(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(StepError::Wrong(text)) if text == USAGE => {
            eprint!("{text}");
            ExitCode::from(2)
        }
        Err(cause) => {
            eprintln!("xtask: {cause}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(words: &[&str]) -> Step {
    match words {
        ["demo"] => demo::demo(),
        ["test"] => lanes::test(),
        ["check"] => lanes::check(),
        ["nightly"] => lanes::nightly(),
        ["oracle", rest @ ..] => oracle::oracle(rest),
        ["bench", "density", words @ ..] => density::density(words),
        ["bench", "vm", words @ ..] => bench_vm::bench_vm(words),
        ["bench", words @ ..] => bench::bench(words),
        ["suites", names @ ..] => suites::suites(names),
        ["filesystems", names @ ..] => filesystems::filesystems(names),
        ["crash"] => crash::crash(),
        ["licences"] => lanes::licences(),
        ["setup"] => Ground::prepare_all().map(|ground| ground.say_what_lacks()),
        _ => Err(StepError::Wrong(USAGE.to_owned())),
    }
}
