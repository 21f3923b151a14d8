//! The bench in real guests: the same kernel, machine and workload, and another root each time.
//!
//! Rounds alternate between the rivals. Every VM is new: its changes start empty, its caches cold;
//! the host's are warm, as where many guests boot from one base.

mod ground;
mod guest;
mod report;
mod rival;
mod workload;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use clap::Args;
use images::Image;

use super::ending::Ending;
use super::subject::Programs;
use super::{BenchError, Scratch, wait_for_quiet};
use ground::{Ground, Root};
use guest::{Guest, Machine, Sample};
use report::{Outcome, Report};
pub use rival::{RIVALS, Rival};
use workload::{Clock, Workload};
pub use workload::{WORKLOADS, script};

/// What to measure, and with what.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Workloads by name; all if there is none.
    #[arg(value_name = "WORKLOAD")]
    pub workloads: Vec<String>,
    /// Who takes part, in the order of a round.
    #[arg(long, value_name = "NAME,…", value_enum, value_delimiter = ',', default_values_t = RIVALS)]
    pub rivals: Vec<Rival>,
    /// Rounds.
    #[arg(long, value_name = "N", default_value = "3")]
    pub rounds: NonZeroUsize,
    /// Measure on a busy machine, too, and say so in the report.
    #[arg(long)]
    pub even_busy: bool,
    /// Our daemon and the rival.
    #[command(flatten)]
    pub programs: Programs,
    /// The boot image whose kernel every guest boots but 9p's.
    #[arg(long, value_name = "DIR")]
    pub image: PathBuf,
    /// One whose kernel has 9p, which cloud kernels have not.
    #[arg(long = "image-9p", value_name = "DIR")]
    pub image_9p: PathBuf,
    /// The base: a small Debian.
    #[arg(long, value_name = "DIR")]
    pub base: PathBuf,
    /// The same with git, gcc and make.
    #[arg(long, value_name = "DIR")]
    pub work_base: PathBuf,
    /// A package that guests install.
    #[arg(long, value_name = "FILE")]
    pub package: PathBuf,
    /// Where roots, uppers and reports go.
    #[arg(long, value_name = "DIR")]
    pub directory: PathBuf,
    /// Each guest's memory in MiB.
    #[arg(long = "memory", value_name = "MIB", default_value_t = 1024)]
    pub memory_mib: u32,
    /// Each guest's processors.
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub cpus: u32,
}

/// Measures, prints a table, and leaves JSON, Markdown and SVG in `options.directory`.
pub fn bench(options: &Options) -> Result<(), BenchError> {
    let chosen = choose(&options.workloads)?;
    if !rustix::process::geteuid().is_root() {
        return Err(BenchError::NotRoot);
    }
    let ending = Ending::watch()?;
    let image = Image::open(&options.image).map_err(BenchError::image)?;
    let image_9p = Image::open(&options.image_9p).map_err(BenchError::image)?;
    let directory = &options.directory;
    fs::create_dir_all(directory).map_err(BenchError::file(directory))?;
    let ground = Ground::new(options, &image)?;
    let mut roots = BTreeMap::new();
    for workload in &chosen {
        ending.check()?;
        if let Entry::Vacant(place) = roots.entry(workload.root) {
            place.insert(ground.root(workload.root)?);
        }
    }
    let busy = wait_for_quiet(options.even_busy)?;
    let scratch = Scratch::make(directory)?;
    let (memory_mib, cpus) = (options.memory_mib, options.cpus);
    let machine = |rival| {
        let image = if rival == Rival::NineP { &image_9p } else { &image };
        Machine { image, memory_mib, cpus, ending }
    };
    let mut report = Report::new(options, image.version(), busy);
    for workload in chosen {
        let Some(root) = roots.get(&workload.root) else { continue };
        let site =
            Site { machine: &machine, root, programs: &options.programs, scratch: &scratch.0 };
        let outcome = measure(workload, options, site);
        ending.check()?;
        outcome.print();
        report.outcomes.push(outcome);
        report.write(directory)?;
    }
    report.end(directory)
}

/// Where one VM finds everything.
#[derive(Clone, Copy)]
struct Site<'a> {
    machine: &'a dyn Fn(Rival) -> Machine<'a>,
    root: &'a Root,
    programs: &'a Programs,
    scratch: &'a Path,
}

fn choose(names: &[String]) -> Result<Vec<&'static Workload>, BenchError> {
    if let Some(name) = names.iter().find(|name| WORKLOADS.iter().all(|w| w.name != **name)) {
        let known = WORKLOADS.iter().map(|workload| workload.name).collect::<Vec<_>>().join(" ");
        return Err(BenchError::Unknown { name: name.clone(), known });
    }
    let is_asked =
        |workload: &&Workload| names.is_empty() || names.iter().any(|name| name == workload.name);
    Ok(WORKLOADS.iter().filter(is_asked).collect())
}

fn measure(workload: &'static Workload, options: &Options, site: Site<'_>) -> Outcome {
    let mut outcome = Outcome::new(workload);
    for round in 1..=options.rounds.get() {
        for &rival in &options.rivals {
            if outcome.failures.contains_key(&rival) {
                continue;
            }
            match sample_again(workload, rival, site) {
                Ok(sample) => {
                    let figures = outcome.told(&sample);
                    println!("{} round {round}, {}: {figures}", workload.name, rival.word());
                    outcome.add(rival, sample);
                }
                Err(BenchError::Ended(_)) => return outcome,
                Err(failure) => {
                    println!("{} round {round}, {}: {failure}", workload.name, rival.word());
                    outcome.failures.insert(rival, failure.to_string());
                }
            }
        }
    }
    outcome
}

/// Once more if the guest's kernel broke down: QEMU's translation lets it, on a busy machine, with
/// any root.
fn sample_again(workload: &Workload, rival: Rival, site: Site<'_>) -> Result<Sample, BenchError> {
    match sample(workload, rival, site) {
        Err(failure) if failure.to_string().contains("Kernel panic") => {
            println!("{}, {}: {failure}\nonce more", workload.name, rival.word());
            sample(workload, rival, site)
        }
        sampled => sampled,
    }
}

fn sample(workload: &Workload, rival: Rival, site: Site<'_>) -> Result<Sample, BenchError> {
    let directory = Scratch::at(site.scratch.join("vm"))?;
    let initramfs = directory.0.join("initramfs");
    let machine = (site.machine)(rival);
    let bytes = initramfs_of(workload, rival, machine.image)?;
    fs::write(&initramfs, bytes).map_err(BenchError::file(&initramfs))?;
    let side = rival.start(site.root, site.programs, &directory.0)?;
    let start = if workload.boots_init { "init" } else { "command" };
    let words =
        format!("BENCH_ROOT={} BENCH_START={start} systemd.unit=multi-user.target", rival.root());
    let mut guest = Guest::start(machine, &initramfs, &words, &side.device)?;
    let from_start = workload.phases.iter().all(|phase| phase.clock == Clock::FromStart);
    let sample = guest.finish(&side, from_start);
    drop(guest);
    let requests = side.end();
    Ok(Sample { requests, ..sample? })
}

fn initramfs_of(workload: &Workload, rival: Rival, image: &Image) -> Result<Vec<u8>, BenchError> {
    let busybox = Path::new("/bin/busybox");
    let programs = vec![
        ("init", include_bytes!("guest/init.sh").to_vec()),
        ("workload.service", include_bytes!("guest/workload.service").to_vec()),
        ("workload", script(workload).into_bytes()),
        ("bin/busybox", fs::read(busybox).map_err(BenchError::file(busybox))?),
    ];
    image.other_initramfs(rival.modules(), programs).map_err(|cause| BenchError::Subject {
        kind: "the guest's initramfs",
        what: cause.to_string(),
        log: String::new(),
    })
}
