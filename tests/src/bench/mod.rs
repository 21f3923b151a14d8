//! The bench: our daemon beside its rivals, workload by workload, on the virtual guest.
//!
//! Each round starts every daemon anew with an empty upper, runs the workload, checks everything
//! that came back, and ends it; rounds alternate between the daemons. `docs/SPECIFICATION.md` has
//! the figures that are promised.

mod change;
mod chart;
pub mod client;
mod data;
pub mod density;
mod ending;
mod ground;
mod host;
mod lane;
mod life;
mod metadata;
mod overlay;
mod place;
mod report;
mod run;
mod subject;
pub mod vm;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use rustix::io::Errno;

use ending::Ending;
use ground::Ground;
use host::Pins;
use lane::WATCH_US;
use place::Place;
pub use place::Storage;
use report::{Outcome, Report};
use run::{Run, Sample, Workload};
pub use subject::Programs;
use subject::{Kind, Site, Subject};

/// How long we wait for a busy machine to become quiet.
const PATIENCE: Duration = Duration::from_secs(60);

/// What to measure, and with what.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Workloads by name; all if there is none.
    #[arg(value_name = "WORKLOAD")]
    pub workloads: Vec<String>,
    /// Pairs of runs.
    #[arg(long, value_name = "N", default_value = "5")]
    pub rounds: NonZeroUsize,
    /// Measure on a busy machine, too, and say so in the report.
    #[arg(long)]
    pub even_busy: bool,
    /// Our daemon and the rival.
    #[command(flatten)]
    pub programs: Programs,
    /// Where lower, uppers and reports go.
    #[arg(long, value_name = "DIR")]
    pub directory: PathBuf,
    /// What lower and uppers are on.
    #[arg(long = "disk", value_enum, default_value_t = Storage::Ext4)]
    pub storage: Storage,
    /// How long a client watches for a reply before it sleeps; zero: it sleeps at once.
    #[arg(long, value_name = "N", default_value_t = WATCH_US)]
    pub client_poll_us: u64,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// Mounting overlayfs and reading other processes' memory takes root.
    #[error("the bench mounts overlayfs and pins daemons: run it as root")]
    NotRoot,
    /// A program is missing.
    #[error("{name} is not at {path}: {next}")]
    Missing {
        /// Whose.
        name: &'static str,
        /// Where it was expected.
        path: PathBuf,
        /// What to do.
        next: &'static str,
    },
    /// There is no such workload.
    #[error("no workload is called {name}; there are: {known}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// All of them.
        known: String,
    },
    /// Others use the machine.
    #[error(
        "this machine is too busy to measure: {percent:.0} % of its CPUs were in use for a minute; \
         end what runs, or say --even-busy for figures that are marked as soft"
    )]
    Busy {
        /// By others.
        percent: f64,
    },
    /// A file.
    #[error("{path}: {cause}")]
    File {
        /// Its path.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The disk to measure on.
    #[error(
        "no disk to measure on: {0}; --disk here measures on the file system of the bench's own \
         directory"
    )]
    Disk(String),
    /// The rival's overlayfs.
    #[error("mounting overlayfs at {point}: {errno}; the bench needs a kernel with overlayfs")]
    Overlay {
        /// Where.
        point: PathBuf,
        /// What the kernel said.
        errno: Errno,
    },
    /// A daemon did not do what it must.
    #[error("{kind}: {what}\n{log}")]
    Subject {
        /// Which one.
        kind: &'static str,
        /// What happened.
        what: String,
        /// What it logged.
        log: String,
    },
    /// Somebody asked us to end.
    #[error("ended by signal {0}")]
    Ended(i32),
    /// Some runs failed; the report says which.
    #[error("{0} of our own runs failed: see the report")]
    Failed(usize),
}

impl BenchError {
    /// Wraps what the system said about `path`.
    pub fn file(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |cause| Self::File { path, cause }
    }

    /// Wraps what is wrong with a boot image.
    pub fn image(cause: images::ImageError) -> Self {
        Self::Subject { kind: "the boot image", what: cause.to_string(), log: String::new() }
    }
}

/// Every workload.
pub fn workloads() -> impl Iterator<Item = Workload> {
    [metadata::WORKLOADS, data::WORKLOADS, change::WORKLOADS, life::WORKLOADS]
        .into_iter()
        .flatten()
        .copied()
}

/// Measures, prints a table, and leaves JSON, Markdown and SVG in `options.directory`.
pub fn bench(options: &Options) -> Result<(), BenchError> {
    let chosen = choose(&options.workloads)?;
    check(options)?;
    let busy = wait_for_quiet(options.even_busy)?;
    let ending = Ending::watch()?;
    let directory = &options.directory;
    fs::create_dir_all(directory).map_err(BenchError::file(directory))?;
    let place = Place::make(options.storage, directory)?;
    println!("disk: {}", place.name);
    let ground = Ground::make(place.path(), &options.programs)?;
    ending.check()?;
    let scratch = Scratch::make(place.path())?;
    let site = Site {
        programs: &options.programs,
        lower: &ground.lower,
        index: &ground.index,
        scratch: &scratch.0,
        pins: Pins::choose(),
        client_watch: Duration::from_micros(options.client_poll_us),
    };
    println!("client: {}", report::waiting(site.client_watch));
    Pins::move_to(site.pins.client);
    if !host::take_precedence() {
        println!(
            "this process may not be made more important: figures are softer than they could be"
        );
    }
    let rounds = options.rounds.get();
    let mut report = Report::new(rounds, busy, &place.name, site.client_watch);
    for workload in chosen {
        let outcome = measure(workload, (rounds, ending), site, &ground)?;
        outcome.print();
        report.outcomes.push(outcome);
    }
    report.write(directory)?;
    match report.failures() {
        0 => Ok(()),
        failures => Err(BenchError::Failed(failures)),
    }
}

fn choose(names: &[String]) -> Result<Vec<Workload>, BenchError> {
    let unknown = names.iter().find(|name| workloads().all(|known| known.name != **name));
    if let Some(name) = unknown {
        let known = workloads().map(|workload| workload.name).collect::<Vec<_>>().join(" ");
        return Err(BenchError::Unknown { name: name.clone(), known });
    }
    let is_asked =
        |workload: &Workload| names.is_empty() || names.iter().any(|name| name == workload.name);
    Ok(workloads().filter(is_asked).collect())
}

fn check(options: &Options) -> Result<(), BenchError> {
    if !rustix::process::geteuid().is_root() {
        return Err(BenchError::NotRoot);
    }
    let Programs { thinroot, virtiofsd } = &options.programs;
    let next = "run cargo xtask bench, which builds and installs both";
    for (name, path) in [("thinroot", thinroot), ("virtiofsd", virtiofsd)] {
        if !path.is_file() {
            return Err(BenchError::Missing { name, path: path.clone(), next });
        }
    }
    Ok(())
}

/// Waits until little else runs; gives the share of the machine that others use all the same.
fn wait_for_quiet(even_busy: bool) -> Result<f64, BenchError> {
    let end = Instant::now() + PATIENCE;
    loop {
        let share = host::busy_share(Duration::from_millis(1500));
        if even_busy || !host::is_too_busy(share) {
            return Ok(share);
        }
        if Instant::now() > end {
            return Err(BenchError::Busy { percent: share * 100.0 });
        }
    }
}

/// What only lives while the bench runs.
struct Scratch(PathBuf);

impl Scratch {
    fn make(directory: &Path) -> Result<Self, BenchError> {
        Self::at(directory.join(format!("run-{}", std::process::id())))
    }

    fn at(path: PathBuf) -> Result<Self, BenchError> {
        fs::create_dir_all(&path).map_err(BenchError::file(&path))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("bench: removing {}: {error}", self.0.display());
        }
    }
}

/// Errors: somebody asked us to end; the run under way has, and left nothing.
fn measure(
    workload: Workload,
    (rounds, ending): (usize, Ending),
    site: Site<'_>,
    ground: &Ground,
) -> Result<Outcome, BenchError> {
    let mut outcome = Outcome { workload, samples: BTreeMap::new(), failures: BTreeMap::new() };
    let mut kinds = vec![Kind::Thinroot, Kind::Overlayfs];
    if workload.is_reading {
        kinds.push(Kind::Plain);
    }
    for _ in 0..rounds {
        for &kind in &kinds {
            if outcome.failures.contains_key(&kind) {
                continue;
            }
            let sampled = sample(workload, kind, site, ground);
            ending.check()?;
            match sampled {
                Ok(sample) => outcome.samples.entry(kind).or_default().push(sample),
                Err(failure) => {
                    outcome.failures.insert(kind, failure.to_string());
                }
            }
        }
    }
    Ok(outcome)
}

fn sample(
    workload: Workload,
    kind: Kind,
    site: Site<'_>,
    ground: &Ground,
) -> Result<Sample, run::Failed> {
    let (subject, client, start) = Subject::start(kind, site)?;
    let mut run = Run { subject, client, start, ground, site };
    let sample = (workload.body)(&mut run)?;
    run.client.unmount();
    Ok(sample)
}
