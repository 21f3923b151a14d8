//! Tries the laws of docs/UNION.md on a directory: on a mount, or inside a guest.
//!
//! `laws --lay-out DIR` fills an empty directory with what every law starts from, to become a lower.
//! `laws DIR [NAME…]` tries the laws on it, or only those whose names contain one of NAME.
//! `laws --then-tell DIR` tries all, then tells the whole tree, as `laws --tell DIR` does: a line for
//! each object, by which a guest that boots again is compared with what it was.
//! `laws --list` lists them. Exit status: 0 all held, 1 some did not, 2 wrong usage.

use std::path::Path;
use std::process::ExitCode;

use tests::laws::{Law, all, lay_out, report, try_all};

const USAGE: &str = "\
usage: laws --list | laws --lay-out DIR | laws DIR [NAME…] | laws --then-tell DIR | laws --tell DIR";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["--list"] => {
            all().iter().for_each(|law| println!("{law:?}"));
            ExitCode::SUCCESS
        }
        ["--lay-out", directory] => match lay_out(Path::new(directory), &all()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => {
                eprintln!("laws: {directory}: {failure}");
                ExitCode::FAILURE
            }
        },
        ["--tell", directory] => tell(directory, ExitCode::SUCCESS),
        ["--then-tell", directory] => tell(directory, run(directory, &[])),
        [directory, ref names @ ..] if !directory.starts_with('-') => run(directory, names),
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn run(directory: &str, names: &[&str]) -> ExitCode {
    let is_asked = |law: &Law| names.is_empty() || names.iter().any(|name| law.name.contains(name));
    let laws: Vec<_> = all().into_iter().filter(is_asked).collect();
    let verdicts = try_all(Path::new(directory), &laws, &mut drop_caches);
    let mut text = String::new();
    let all_held = report(&verdicts, &mut text).unwrap_or(false);
    print!("{text}");
    if all_held { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn tell(directory: &str, status: ExitCode) -> ExitCode {
    drop_caches();
    print!("{}", tests::tree::told(Path::new(directory)));
    status
}

/// What the kernel knows of files is forgotten, so that a cache does not answer for the union.
fn drop_caches() {
    rustix::fs::sync();
    if let Err(error) = std::fs::write("/proc/sys/vm/drop_caches", "3") {
        eprintln!("laws: nothing is looked at again, for caches cannot be dropped: {error}");
    }
}
