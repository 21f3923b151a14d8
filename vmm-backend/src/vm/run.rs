//! `thinroot run`: the road from what is asked for to an exit status.

use std::io::{self, Write as _};

use super::config::{AccelChoice, Accelerator, OnCrash, RunConfig, UpperArgument};
use super::daemon;
use super::discard::{ScratchDirectory, scratch_parent, upper_parent};
use super::error::{RunError, say};
use super::ground::{Ground, Vmm};
use super::lines::command_lines;
use super::outcome::{End, Outcome, STATUS_OURS};
use super::places::Places;
use super::supervise::{Attempt, attempt};

/// Runs a guest and gives the exit status of `thinroot run`: the command's (128+n for signals), or
/// one of [`STATUS_OURS`], [`STATUS_TIMEOUT`](super::outcome::STATUS_TIMEOUT),
/// [`STATUS_VANISHED`](super::outcome::STATUS_VANISHED).
///
/// Standard output carries only the command's bytes (or the console, without a command); one line
/// on standard error says accelerator, kernel and boot time.
///
/// Call it from the main thread: children die with the thread that started them.
pub fn run(config: &RunConfig) -> u8 {
    match run_on_ground(config) {
        Ok(status) => status,
        Err(cause) => {
            say(&cause.to_string());
            STATUS_OURS
        }
    }
}

fn run_on_ground(config: &RunConfig) -> Result<u8, RunError> {
    let mut ground = Ground::find(config)?;
    if config.print {
        return print(config, &ground);
    }
    let mut outcome = once(config, &ground)?;
    if outcome.end == End::Silent && can_fall_back(config, &ground) {
        ground.accelerator = Accelerator::Tcg;
        ground.accelerator_reason = "KVM gave no sign of life".to_owned();
        say("no sign of life from the guest on KVM: trying again with TCG");
        outcome = once(config, &ground)?;
    }
    outcome.report(config, &ground);
    Ok(outcome.end.status())
}

fn can_fall_back(config: &RunConfig, ground: &Ground) -> bool {
    config.accel == AccelChoice::Auto
        && ground.accelerator == Accelerator::Kvm
        && matches!(ground.vmm, Vmm::Qemu(_))
}

/// One attempt in directories of its own, which vanish with it.
fn once(config: &RunConfig, ground: &Ground) -> Result<Outcome, RunError> {
    let scratch = ScratchDirectory::make(&scratch_parent(), "thinroot-run-")?;
    let discarded = match &config.upper {
        UpperArgument::Keep { .. } => None,
        UpperArgument::Discard { parent } => {
            let parent = upper_parent(parent.as_deref(), &config.lowers)?;
            Some(ScratchDirectory::make(&parent, "thinroot-discard-")?)
        }
    };
    let places =
        Places::new(config, scratch.path(), discarded.as_ref().map(ScratchDirectory::path))?;
    let outcome = attempt(&Attempt { config, ground, places: &places })?;
    if let Some(discarded) = discarded
        && outcome.end.is_crash()
        && config.on_crash == OnCrash::Keep
    {
        say(&format!("the crashed guest's upper is kept: {}", discarded.keep().display()));
    }
    Ok(outcome)
}

fn print(config: &RunConfig, ground: &Ground) -> Result<u8, RunError> {
    let places = Places::example(config)?;
    let [daemon, vmm] = command_lines(config, ground, &places)?;
    let text = format!(
        "# {}: {}; descriptors from {} on are made by thinroot run\n{daemon}\n{vmm}\n",
        ground.accelerator.name(),
        ground.accelerator_reason,
        daemon::DESCRIPTORS_FROM
    );
    io::stdout().lock().write_all(text.as_bytes()).map_err(RunError::system("standard output"))?;
    Ok(0)
}
