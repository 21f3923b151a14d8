//! The `thinroot` program: wiring only.

use std::error::Error;
use std::io::Write as _;
use std::process::ExitCode;

use thinroot::life::reset::reset;
use thinroot::vm;

mod cli;
mod config;
mod wiring;

use config::{Command, Config, ImageConfig, ImageKernel};
use wiring::base::Base;
use wiring::check::check;
use wiring::diff::diff;
use wiring::export::export;
use wiring::ground::Ground;
use wiring::helper::{self, HelperError};
use wiring::import::import;
use wiring::logger;
use wiring::mount::mount;
use wiring::serve::serve;

/// A wrong command line.
const USAGE: u8 = 2;
/// Everything else that goes wrong.
const FAILED: u8 = 1;
/// mount(8), "exit status": a mount or an unmounting failed.
const MOUNT_FAILED: u8 = 32;

fn main() -> ExitCode {
    match cli::parse(std::env::args_os()) {
        Err(cli::Stop::Said(text)) => {
            // A reader that wants no more of it has what it wanted.
            std::io::stdout().write_all(text.as_bytes()).ok();
            ExitCode::SUCCESS
        }
        Err(cli::Stop::Usage(text)) => fail(&text, USAGE),
        Ok(config) => {
            logger::start(config.log_level);
            match dispatch(config) {
                Ok(status) => status,
                Err(error) => fail(&chain(error.as_ref()), FAILED),
            }
        }
    }
}

fn fail(text: &str, status: u8) -> ExitCode {
    eprintln!("thinroot: {text}");
    ExitCode::from(status)
}

/// As mount(8) reads it.
fn helper_status(done: Result<(), HelperError>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&chain(&error), MOUNT_FAILED),
    }
}

/// An error and its causes in one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text.replace('\n', " ")
}

fn dispatch(config: Config) -> Result<ExitCode, Box<dyn Error>> {
    thinroot::sys::fault::arm_from_environment()?;
    match config.command {
        Command::Run(run) => return Ok(ExitCode::from(vm::run::run(&run))),
        Command::KvmProbe => return Ok(vm::kvm::probe_child()),
        Command::Doctor(doctor) => {
            let is_well = vm::doctor::doctor(&doctor, &mut std::io::stdout().lock())?;
            return Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::from(FAILED) });
        }
        Command::Reset(config) => reset(&config.upper, &config.work, config.wait)?,
        Command::Settle(config) => settle(&config)?,
        Command::Seal(config) => Base::check(&config.base)?.seal().map(drop)?,
        Command::Image(config) => build_image(config)?,
        Command::Serve(config) => serve(&config)?,
        Command::Mount(config) => mount(&config)?,
        Command::MountHelper(config) => return Ok(helper_status(helper::mount(&config))),
        Command::UnmountHelper(config) => return Ok(helper_status(helper::unmount(&config))),
        Command::Diff(config) => diff(&config)?,
        Command::Export(config) => export(&config)?,
        Command::Import(config) => import(&config)?,
        Command::Check(config) => {
            return Ok(if check(&config)? { ExitCode::SUCCESS } else { ExitCode::from(FAILED) });
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Takes along what files of the upper still have in the base alone.
fn settle(config: &config::UnionConfig) -> Result<(), Box<dyn Error>> {
    if !config.upper.is_dir() {
        return Err(
            format!("{}: no such upper; expected its directory", config.upper.display()).into()
        );
    }
    let ground = Ground::prepare(config, None)?;
    let index = ground.open_index()?;
    let (union, _lock) = ground.join(index, config, Box::new(|_| {}))?;
    let files = union.settle_all()?;
    log::info!("settle: {files} files of {} took their data along", config.upper.display());
    Ok(())
}

fn build_image(config: ImageConfig) -> Result<(), Box<dyn Error>> {
    let kernel = match config.kernel {
        ImageKernel::Here(source) => source,
        ImageKernel::Suite { suite, cache } => {
            let cloud = images::kernels::Flavour::Cloud;
            images::KernelSource::Packages(images::kernels::fetch(&suite, cloud, &cache)?)
        }
    };
    let guest_init = match config.guest_init {
        Some(path) => path,
        None => std::env::current_exe()?.with_file_name("guest-init"),
    };
    if !guest_init.is_file() {
        let path = guest_init.display();
        return Err(format!(
            "--guest-init {path}: no such file; expected the static guest-init (cargo xtask builds \
             it)"
        )
        .into());
    }
    let image =
        images::build(&images::BuildImage { kernel, guest_init, directory: config.directory })?;
    log::info!("image: kernel {} in {}", image.version(), image.directory().display());
    Ok(())
}
