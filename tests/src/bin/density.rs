//! Measures density; `cargo xtask bench density` starts it.
//!
//! Exit status: 0 measured, 1 not, 2 wrong usage.

use std::process::ExitCode;

use clap::Parser;
use tests::bench::density::{DensityOptions, PARTS, density};

/// Measures density.
#[derive(Parser)]
struct Arguments {
    /// Lists the parts and ends.
    #[arg(long)]
    list: bool,
    #[command(flatten)]
    options: DensityOptions,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.list {
        PARTS.iter().for_each(|(name, about)| println!("{name:<22} {about}"));
        return ExitCode::SUCCESS;
    }
    match density(&arguments.options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("density: {error}");
            ExitCode::FAILURE
        }
    }
}
