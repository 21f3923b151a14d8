//! Measures thinroot beside its rivals on the virtual guest; `cargo xtask bench` starts it.
//!
//! Exit status: 0 measured, 1 not, 2 wrong usage.

use std::process::ExitCode;

use clap::Parser;
use tests::bench::{Options, bench, workloads};

/// Measures thinroot beside its rivals on the virtual guest.
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
        workloads().for_each(|workload| println!("{:<22} {}", workload.name, workload.about));
        return ExitCode::SUCCESS;
    }
    match bench(&arguments.options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}
