//! Measures thinroot beside its rivals on the virtual guest; `cargo xtask bench` starts it.
//!
//! `bench --list` lists the workloads. With `--client-poll-us 0` its clients sleep as soon as they wait. Exit status: 0 measured, 1 not, 2 wrong usage.

use std::process::ExitCode;
use std::time::Duration;

use tests::bench::{Options, Programs, Storage, WATCH, bench, workloads};

const USAGE: &str = "\
usage: bench --list
       bench --thinroot PROGRAM --virtiofsd PROGRAM --directory DIR [--rounds N] [--even-busy]
             [--disk ext4|here|tmpfs] [--client-poll-us N] [WORKLOAD…]";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.iter().any(|word| word == "--list") {
        workloads().for_each(|workload| println!("{:<22} {}", workload.name, workload.about));
        return ExitCode::SUCCESS;
    }
    let Some(options) = parse(words.into_iter()) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match bench(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn parse(mut words: impl Iterator<Item = String>) -> Option<Options> {
    let mut options = Options {
        workloads: Vec::new(),
        rounds: 5,
        even_busy: false,
        programs: Programs { thinroot: "".into(), virtiofsd: "".into() },
        directory: "".into(),
        storage: Storage::Ext4,
        client_watch: WATCH,
    };
    while let Some(word) = words.next() {
        match word.as_str() {
            "--thinroot" => options.programs.thinroot = words.next()?.into(),
            "--virtiofsd" => options.programs.virtiofsd = words.next()?.into(),
            "--directory" => options.directory = words.next()?.into(),
            "--rounds" => options.rounds = words.next()?.parse().ok().filter(|n| *n > 0)?,
            "--disk" => options.storage = Storage::named(&words.next()?)?,
            "--client-poll-us" => {
                options.client_watch = Duration::from_micros(words.next()?.parse().ok()?);
            }
            "--even-busy" => options.even_busy = true,
            _ if word.starts_with('-') => return None,
            _ => options.workloads.push(word),
        }
    }
    (!options.directory.as_os_str().is_empty()).then_some(options)
}
