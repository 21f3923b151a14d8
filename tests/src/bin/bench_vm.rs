//! Measures thinroot beside its rivals in real guests; `cargo xtask bench vm` starts it.
//!
//! `bench_vm --list` lists the workloads. Exit status: 0 measured, 1 not, 2 wrong usage.

use std::process::ExitCode;

use tests::bench::Programs;
use tests::bench::vm::{Options, RIVALS, WORKLOADS, bench};

const USAGE: &str = "\
usage: bench_vm --list
       bench_vm --thinroot PROGRAM --virtiofsd PROGRAM --image DIR --image-9p DIR
                --base DIR --work-base DIR --package FILE --directory DIR
                [--rounds N] [--rivals NAME,…] [--memory MIB] [--cpus N] [--even-busy] [WORKLOAD…]
rivals: thinroot, virtiofsd, 9p, qcow2, erofs";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.iter().any(|word| word == "--list") {
        WORKLOADS.iter().for_each(|workload| println!("{:<18} {}", workload.name, workload.about));
        return ExitCode::SUCCESS;
    }
    let Some(options) = parse(words.into_iter()) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match bench(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench vm: {error}");
            ExitCode::FAILURE
        }
    }
}

fn parse(mut words: impl Iterator<Item = String>) -> Option<Options> {
    let mut options = Options {
        workloads: Vec::new(),
        rivals: RIVALS.to_vec(),
        rounds: 3,
        even_busy: false,
        programs: Programs { thinroot: "".into(), virtiofsd: "".into() },
        image: "".into(),
        image_9p: "".into(),
        base: "".into(),
        work_base: "".into(),
        package: "".into(),
        directory: "".into(),
        memory_mib: 1024,
        cpus: 2,
    };
    while let Some(word) = words.next() {
        match word.as_str() {
            "--thinroot" => options.programs.thinroot = words.next()?.into(),
            "--virtiofsd" => options.programs.virtiofsd = words.next()?.into(),
            "--image" => options.image = words.next()?.into(),
            "--image-9p" => options.image_9p = words.next()?.into(),
            "--work-base" => options.work_base = words.next()?.into(),
            "--package" => options.package = words.next()?.into(),
            "--base" => options.base = words.next()?.into(),
            "--directory" => options.directory = words.next()?.into(),
            "--rounds" => options.rounds = words.next()?.parse().ok().filter(|n| *n > 0)?,
            "--memory" => options.memory_mib = words.next()?.parse().ok()?,
            "--cpus" => options.cpus = words.next()?.parse().ok()?,
            "--rivals" => {
                let named = |word: &str| RIVALS.iter().find(|rival| rival.word() == word).copied();
                options.rivals = words.next()?.split(',').map(named).collect::<Option<_>>()?;
            }
            "--even-busy" => options.even_busy = true,
            _ if word.starts_with('-') => return None,
            _ => options.workloads.push(word),
        }
    }
    (!options.directory.as_os_str().is_empty()).then_some(options)
}
