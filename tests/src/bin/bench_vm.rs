//! Measures thinroot beside its rivals in real guests; `cargo xtask bench vm` starts it.
//!
//! Exit status: 0 measured, 1 not, 2 wrong usage.

use std::process::ExitCode;

use clap::Parser;
use tests::bench::vm::{Options, WORKLOADS, bench};

/// Measures thinroot beside its rivals in real guests.
#[derive(Parser)]
struct Arguments {
    /// Lists the workloads and ends.
    #[arg(long)]
    list: bool,
    #[command(flatten)]
    options: Options,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.list {
        WORKLOADS.iter().for_each(|workload| println!("{:<18} {}", workload.name, workload.about));
        return ExitCode::SUCCESS;
    }
    match bench(&arguments.options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench vm: {error}");
            ExitCode::FAILURE
        }
    }
}
