//! `thinroot check`: what is wrong with an upper.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;

use thinroot::life::check::{
    CheckError, Fate, Finding, Report, Subject, check as look_through, write_json, write_text,
};

use super::diff::print;
use super::look::{Hold, Look, LookError};
use crate::config::CheckConfig;

/// Why nothing is told of an upper.
#[derive(Debug, thiserror::Error)]
pub enum CheckCommandError {
    /// Upper or base.
    #[error(transparent)]
    Look(#[from] LookError),
    /// The check.
    #[error("--upper {path}: {cause}")]
    Check {
        /// The upper.
        path: PathBuf,
        /// What failed.
        cause: CheckError,
    },
    /// The listing cannot be written.
    #[error("standard output: {0}")]
    Output(io::Error),
}

/// Prints what is wrong, and mends what can be mended if that was asked for. Says whether the
/// upper is clean now.
pub fn check(config: &CheckConfig) -> Result<bool, CheckCommandError> {
    let (path, repairs) = (&config.diff.upper, config.repair);
    let hold = if repairs { Hold::Exclusive } else { Hold::Shared };
    let look = Look::open(&config.diff.base, (path, &config.diff.work), hold)?;
    let work = look.work.as_ref().map(OwnedFd::as_fd);
    let subject = Subject { lower: &look.lower, upper: &look.upper, work };
    let report = look_through(subject, repairs)
        .map_err(|cause| CheckCommandError::Check { path: path.clone(), cause })?;
    let findings = &report.findings;
    let is_json = config.diff.json;
    print(|out| if is_json { write_json(findings, out) } else { write_text(findings, out) })
        .map_err(CheckCommandError::Output)?;
    log::info!("check: {}", summary(&report));
    Ok(report.is_clean())
}

fn summary(report: &Report) -> String {
    let count = |is: &dyn Fn(&Finding) -> bool| report.findings.iter().filter(|it| is(it)).count();
    format!(
        "{} objects; damaged: {}, left over: {}, repaired: {}",
        report.objects,
        count(&Finding::is_harm),
        count(&|it| it.damage.is_leftover() && it.fate != Fate::Repaired),
        count(&|it| it.fate == Fate::Repaired),
    )
}
