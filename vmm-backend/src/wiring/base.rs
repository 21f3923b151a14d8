//! The base: its lowers checked, its index opened or built.

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use thinroot::layer::index::{Index, LayerKind};
use thinroot::layer::seal::{
    LowerSpec, Progress, SealError, SealReport, default_cache, index_path, open_or_seal, seal,
};
use thinroot::vm::config::{BootSource, LowerArgument};
use thinroot::vm::error::RunError;

use crate::config::BaseConfig;

/// Why a base cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    /// A lower that is none.
    #[error("{option} {path}: {reason}; expected a directory with a tree of the base")]
    Lower {
        /// `--lower` or `--layer`.
        option: &'static str,
        /// Its value.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// `--image` is none, or does not go with the lowers.
    #[error(transparent)]
    Image(#[from] RunError),
    /// The index.
    #[error(transparent)]
    Seal(#[from] SealError),
}

/// A base whose lowers are there.
#[derive(Debug)]
pub struct Base {
    /// The lowers, the topmost first.
    pub specs: Vec<LowerSpec>,
    index: PathBuf,
}

impl Base {
    /// Looks at the lowers; changes nothing.
    pub fn check(config: &BaseConfig) -> Result<Self, BaseError> {
        let mut specs = config.lowers.iter().map(spec).collect::<Result<Vec<_>, _>>()?;
        if let Some(image) = &config.image {
            let files = BootSource::Image(image.clone()).open()?;
            let modules = files.modules_below(&config.lowers)?.map(LowerArgument::Tree);
            specs.extend(modules.as_ref().map(spec).transpose()?);
        }
        let index = match &config.index {
            Some(path) => path.clone(),
            None => index_path(&specs, &default_cache()?)?,
        };
        Ok(Self { specs, index })
    }

    /// Opens the index, and builds or refreshes it first where that is needed.
    pub fn open_index(&self) -> Result<Index, BaseError> {
        let mut bar = Bar::new();
        let opened = open_or_seal(&self.specs, &self.index, &mut |progress| bar.show(progress));
        bar.end();
        let (index, report) = opened?;
        if let Some(report) = report {
            tell(&report);
        }
        Ok(index)
    }

    /// Builds the index, or refreshes the one that is there.
    pub fn seal(&self) -> Result<SealReport, BaseError> {
        let mut bar = Bar::new();
        let sealed = seal(&self.specs, &self.index, &mut |progress| bar.show(progress));
        bar.end();
        let report = sealed?;
        tell(&report);
        Ok(report)
    }
}

fn spec(lower: &LowerArgument) -> Result<LowerSpec, BaseError> {
    let (option, kind) = match lower {
        LowerArgument::Tree(_) => ("--lower", LayerKind::Plain),
        LowerArgument::Layer(_) => ("--layer", LayerKind::Layer),
    };
    let path = lower.path();
    // Opened, since the right to search a directory is not the right to read it.
    match path.read_dir() {
        Ok(_) => Ok(LowerSpec { path: path.to_owned(), kind }),
        Err(error) => {
            Err(BaseError::Lower { option, path: path.to_owned(), reason: reason(&error, path) })
        }
    }
}

fn reason(error: &std::io::Error, path: &Path) -> String {
    match path.symlink_metadata() {
        Ok(data) if !data.is_dir() && !data.is_symlink() => "is no directory".to_owned(),
        _ => error.to_string(),
    }
}

fn tell(report: &SealReport) {
    log::info!(
        "index: {} objects in {:.1} s, {} KiB in {}",
        report.objects,
        report.elapsed.as_secs_f64(),
        report.file_bytes.div_ceil(1024),
        report.path.display()
    );
    for place in &report.mount_points {
        log::warn!("index: /{place} in a lower is a mount point; guests see it empty");
    }
    for warning in &report.warnings {
        log::warn!("index: {warning}");
    }
}

/// A line on a terminal that says how far the walk is.
struct Bar {
    is_terminal: bool,
    begun: Instant,
    shown: Option<Instant>,
}

impl Bar {
    fn new() -> Self {
        Self { is_terminal: std::io::stderr().is_terminal(), begun: Instant::now(), shown: None }
    }

    fn show(&mut self, progress: &Progress) {
        // A short walk needs no bar, and a bar that changes faster than the eye is a cost.
        let last = self.shown.unwrap_or(self.begun);
        if !self.is_terminal || last.elapsed() < Duration::from_millis(200) {
            return;
        }
        self.shown = Some(Instant::now());
        let share = match progress.objects_before {
            Some(before) if before > 0 => format!(" of about {before}"),
            _ => String::new(),
        };
        self.write(&format!(
            "\r\x1b[Kthinroot: indexing the base: {}{share} objects",
            progress.objects
        ));
    }

    fn end(&self) {
        if self.shown.is_some() {
            self.write("\r\x1b[K");
        }
    }

    fn write(&self, text: &str) {
        let mut terminal = std::io::stderr().lock();
        if terminal.write_all(text.as_bytes()).and_then(|()| terminal.flush()).is_err() {
            log::debug!("progress not shown");
        }
    }
}
