//! Measures density; `cargo xtask bench density` starts it.
//!
//! Exit status: 0 measured, 1 not, 2 wrong usage.

use std::process::ExitCode;

use tests::bench::density::{DensityOptions, PARTS, density};

const USAGE: &str = "\
usage: density --list
       density --thinroot PROGRAM --virtiofsd PROGRAM --base DIR --image DIR --directory DIR
               [--daemons N] [--entries N] [--rounds N] [--guests N] [PART…]";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.iter().any(|word| word == "--list") {
        PARTS.iter().for_each(|(name, about)| println!("{name:<22} {about}"));
        return ExitCode::SUCCESS;
    }
    let Some(options) = parse(words.into_iter()) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match density(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("density: {error}");
            ExitCode::FAILURE
        }
    }
}

fn parse(mut words: impl Iterator<Item = String>) -> Option<DensityOptions> {
    let mut options = DensityOptions {
        parts: Vec::new(),
        thinroot: "".into(),
        virtiofsd: "".into(),
        base: "".into(),
        image: "".into(),
        directory: "".into(),
        daemons: 100,
        entries: 1_000_000,
        rounds: 3,
        guests: 10,
    };
    while let Some(word) = words.next() {
        match word.as_str() {
            "--thinroot" => options.thinroot = words.next()?.into(),
            "--virtiofsd" => options.virtiofsd = words.next()?.into(),
            "--base" => options.base = words.next()?.into(),
            "--image" => options.image = words.next()?.into(),
            "--directory" => options.directory = words.next()?.into(),
            "--daemons" => options.daemons = count(words.next())?,
            "--entries" => options.entries = count(words.next())?,
            "--rounds" => options.rounds = count(words.next())?,
            "--guests" => options.guests = count(words.next())?,
            _ if word.starts_with('-') => return None,
            _ => options.parts.push(word),
        }
    }
    (!options.directory.as_os_str().is_empty()).then_some(options)
}

fn count(word: Option<String>) -> Option<usize> {
    word?.parse().ok().filter(|count| *count > 0)
}
