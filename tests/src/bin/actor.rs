//! An actor of the oracles: `actor NUMBER ROOT` does below ROOT what it reads, a line an operation,
//! and writes a line for each (`tests::oracle::actor`).

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [number, root] = &arguments[..] else {
        eprintln!("usage: actor NUMBER ROOT");
        return ExitCode::from(2);
    };
    let Ok(number) = number.parse() else {
        eprintln!("actor: {number}: expected a number, 0, 1 or 2");
        return ExitCode::from(2);
    };
    match tests::oracle::actor::play(number, Path::new(root)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("actor {number}: {why}");
            ExitCode::FAILURE
        }
    }
}
