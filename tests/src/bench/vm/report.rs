//! What the guests' figures say: a table for the eye, JSON for machines, Markdown with a chart.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::super::BenchError;
use super::super::chart::{self, Row};
use super::super::host;
use super::super::report::Spread;
use super::Options;
use super::guest::{Sample, Timing};
use super::rival::{RIVALS, Rival};
use super::workload::{Clock, Phase, Workload};

/// All rounds of one workload.
#[derive(Debug)]
pub struct Outcome {
    workload: &'static Workload,
    samples: BTreeMap<Rival, Vec<Sample>>,
    /// Why a rival gave nothing.
    pub failures: BTreeMap<Rival, String>,
}

/// Everything of one call.
#[derive(Debug)]
pub struct Report {
    about: String,
    is_busy: bool,
    /// By workload.
    pub outcomes: Vec<Outcome>,
}

const COLOURS: [(Rival, &str); 5] = [
    (Rival::Thinroot, "#1b7f5c"),
    (Rival::Virtiofsd, "#c0504d"),
    (Rival::NineP, "#d9a441"),
    (Rival::Qcow2, "#4f81bd"),
    (Rival::Erofs, "#a0a0a0"),
];

impl Phase {
    fn seconds(&self, timing: &Timing) -> f64 {
        match self.clock {
            Clock::FromStart => timing.since_start,
            Clock::Command => timing.guest,
        }
    }
}

impl Outcome {
    /// Nothing measured yet.
    pub const fn new(workload: &'static Workload) -> Self {
        Self { workload, samples: BTreeMap::new(), failures: BTreeMap::new() }
    }

    /// Takes a round's figures, unless the guest saw another tree than the others' guests.
    pub fn add(&mut self, rival: Rival, sample: Sample) {
        let values = |sample: &Sample| -> Vec<String> {
            sample.timings.values().map(|timing| timing.value.clone()).collect()
        };
        let first = self.samples.values().flatten().next();
        if let Some(first) = first.filter(|first| values(first) != values(&sample)) {
            let failure = format!("printed {:?}, others {:?}", values(&sample), values(first));
            self.failures.insert(rival, failure);
        } else {
            self.samples.entry(rival).or_default().push(sample);
        }
    }

    /// One round's figures in a line.
    pub fn told(&self, sample: &Sample) -> String {
        let phases = self.workload.phases.iter().filter_map(|phase| {
            let timing = sample.timings.get(phase.name)?;
            let cpu = timing.vmm_cpu + timing.daemon_cpu;
            Some(format!("{} {:.2} s, CPU {cpu:.2} s", phase.name, phase.seconds(timing)))
        });
        phases.collect::<Vec<_>>().join("; ")
    }

    fn spread(&self, rival: Rival, figure: impl Fn(&Sample) -> Option<f64>) -> Option<Spread> {
        if self.failures.contains_key(&rival) {
            return None;
        }
        let figures: Option<Vec<f64>> = self.samples.get(&rival)?.iter().map(figure).collect();
        Spread::of(figures?.into_iter())
    }

    fn timing(
        &self,
        rival: Rival,
        phase: &Phase,
        figure: impl Fn(&Timing) -> f64,
    ) -> Option<Spread> {
        self.spread(rival, |sample| sample.timings.get(phase.name).map(&figure))
    }

    /// The median of ours over the rival's, round by round; nothing where a run failed.
    fn ratio(&self, rival: Rival, phase: &Phase, figure: impl Fn(&Timing) -> f64) -> Option<f64> {
        if [Rival::Thinroot, rival].iter().any(|rival| self.failures.contains_key(rival)) {
            return None;
        }
        let ours = self.samples.get(&Rival::Thinroot)?;
        let pairs = ours.iter().zip(self.samples.get(&rival)?);
        let ratios = pairs.filter_map(|(ours, theirs)| {
            let of = |sample: &Sample| sample.timings.get(phase.name).map(&figure);
            Some(of(ours)? / of(theirs)?)
        });
        Spread::of(ratios.filter(|ratio| ratio.is_finite())).map(|spread| spread.median)
    }

    /// Prints its rows.
    pub fn print(&self) {
        print!("{}", self.markdown());
    }

    fn markdown(&self) -> String {
        let mut text = format!("\n## {}\n\n{}\n", self.workload.name, self.workload.about);
        for phase in self.workload.phases {
            text.push_str(&self.table(phase));
        }
        text.push_str(
            "\n| root | memory (PSS), MiB | disk, KiB | FUSE requests | of them, MiB |\n\
             |---|---|---|---|---|\n",
        );
        for rival in RIVALS {
            let cell = |figure: Option<Spread>| {
                figure.map_or_else(String::new, |spread| format!("{:.0}", spread.median))
            };
            let memory = cell(self.spread(rival, |sample| Some(as_f64(sample.pss_kib) / 1024.0)));
            if memory.is_empty() {
                continue;
            }
            let disk = cell(self.spread(rival, |sample| Some(as_f64(sample.disk_kib))));
            let requests = cell(self.spread(rival, |sample| all(sample, |row| row.0)));
            let moved =
                cell(self.spread(rival, |sample| Some(all(sample, |row| row.1 >> 10)? / 1024.0)));
            let name = rival.name();
            writeln!(text, "| {name} | {memory} | {disk} | {requests} | {moved} |")
                .unwrap_or_default();
        }
        text.push_str(&self.kinds());
        for (rival, failure) in &self.failures {
            let failure = failure.replace('\n', "\n  ");
            writeln!(text, "\n- {} FAILED: {failure}", rival.name()).unwrap_or_default();
        }
        text
    }

    /// What our guest asked for, the most frequent first: the whole of its life.
    fn kinds(&self) -> String {
        let samples = self.samples.get(&Rival::Thinroot).map_or(&[][..], Vec::as_slice);
        let Some(sample) = samples.last() else { return String::new() };
        let mut kinds: Vec<_> = sample.requests.iter().map(|(name, row)| (row.0, name)).collect();
        kinds.sort_by(|one, other| other.cmp(one));
        let words: Vec<_> = kinds.iter().map(|(count, name)| format!("{name} {count}")).collect();
        format!("\nRequests of the last round, boot included: {}.\n", words.join(", "))
    }

    fn table(&self, phase: &Phase) -> String {
        let clock = match phase.clock {
            Clock::FromStart => "s since the VMM's start",
            Clock::Command => "s in the guest",
        };
        let mut text = format!(
            "\n| {} | {clock} | thinroot is, times | CPU s of VMM and daemon | thinroot is, times \
             | of it the daemon | bar |\n|---|---|---|---|---|---|---|\n",
            phase.name
        );
        for rival in RIVALS {
            let Some(wall) = self.timing(rival, phase, |timing| phase.seconds(timing)) else {
                continue;
            };
            let cpu = |timing: &Timing| timing.vmm_cpu + timing.daemon_cpu;
            let cell = |spread: Option<Spread>| spread.map_or_else(String::new, |s| s.to_string());
            let times = |ratio: Option<f64>| match ratio.filter(|_| rival != Rival::Thinroot) {
                Some(ratio) => format!("{ratio:.2}"),
                None => String::new(),
            };
            writeln!(
                text,
                "| {} | {wall} | {} | {} | {} | {} | {} |",
                rival.name(),
                times(self.ratio(rival, phase, |timing| phase.seconds(timing))),
                cell(self.timing(rival, phase, cpu)),
                times(self.ratio(rival, phase, cpu)),
                cell(self.timing(rival, phase, |timing| timing.daemon_cpu)),
                self.verdict(rival, phase).unwrap_or_default()
            )
            .unwrap_or_default();
        }
        text
    }

    fn verdict(&self, rival: Rival, phase: &Phase) -> Option<String> {
        let (_, most) = phase.bars.iter().find(|(barred, _)| *barred == rival)?;
        Some(match self.ratio(rival, phase, |timing| phase.seconds(timing)) {
            Some(ratio) if ratio <= *most => format!("<= {most}: holds"),
            Some(_) => format!("<= {most}: MISSED"),
            None => format!("<= {most}: no figure"),
        })
    }

    fn json(&self) -> Value {
        let rounds = |rival: Rival| -> Vec<Value> {
            let samples = self.samples.get(&rival).map_or(&[][..], Vec::as_slice);
            samples.iter().map(sample_json).collect()
        };
        let rivals = RIVALS.map(|rival| {
            json!({
                "rival": rival.word(),
                "failure": self.failures.get(&rival),
                "rounds": rounds(rival),
            })
        });
        let phases = self.workload.phases.iter().map(|phase| {
            let ratios = RIVALS.map(|rival| {
                json!({
                    "rival": rival.word(),
                    "ratio": self.ratio(rival, phase, |timing| phase.seconds(timing)),
                    "bar": self.verdict(rival, phase),
                })
            });
            json!({"phase": phase.name, "command": phase.command, "thinroot_over": ratios})
        });
        json!({
            "workload": self.workload.name,
            "about": self.workload.about,
            "phases": phases.collect::<Vec<_>>(),
            "rivals": rivals,
        })
    }

    fn rows(&self) -> Vec<Row> {
        let row = |phase: &Phase| Row {
            name: phase.name.to_owned(),
            figures: COLOURS
                .iter()
                .map(|(rival, _)| {
                    Some(self.timing(*rival, phase, |timing| phase.seconds(timing))?.median)
                })
                .collect(),
        };
        self.workload.phases.iter().map(row).collect()
    }
}

fn sample_json(sample: &Sample) -> Value {
    let timing = |timing: &Timing| {
        json!({
            "guest_s": timing.guest,
            "since_start_s": timing.since_start,
            "vmm_cpu_s": timing.vmm_cpu,
            "daemon_cpu_s": timing.daemon_cpu,
            "printed": timing.value,
        })
    };
    let timings: BTreeMap<_, _> =
        sample.timings.iter().map(|(name, row)| (name.clone(), timing(row))).collect();
    json!({
        "phases": timings,
        "pss_kib": sample.pss_kib,
        "disk_kib": sample.disk_kib,
        "requests": sample.requests.iter().map(|(name, (count, bytes))| {
            (name.clone(), json!({"count": count, "bytes": bytes}))
        }).collect::<serde_json::Map<_, _>>(),
    })
}

/// The sum over all kinds of requests; nothing where nobody counts them.
fn all(sample: &Sample, figure: impl Fn(&(u64, u64)) -> u64) -> Option<f64> {
    let sum = sample.requests.values().map(figure).sum();
    (!sample.requests.is_empty()).then(|| as_f64(sum))
}

fn as_f64(count: u64) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

impl Report {
    /// Nothing measured yet; `busy` is the share of the machine in use by others.
    pub fn new(options: &Options, kernel: &str, busy: f64) -> Self {
        let is_busy = host::is_too_busy(busy);
        let about = format!(
            "{}; guests without KVM, {} MiB, {} CPUs, Linux {kernel} (9p: the generic kernel of \
             the same release); {} alternating rounds, medians (least..greatest); {:.0} % of the machine was in use by others{}",
            host::machine(),
            options.memory_mib,
            options.cpus,
            options.rounds,
            busy * 100.0,
            if is_busy { ": it was BUSY, times are soft, CPU times less so" } else { "" }
        );
        Self { about, is_busy, outcomes: Vec::new() }
    }

    /// Writes `vm.json`, `vm.md` and `vm.svg` into a directory.
    pub fn write(&self, directory: &Path) -> Result<(), BenchError> {
        let json = json!({
            "about": self.about,
            "is_busy": self.is_busy,
            "workloads": self.outcomes.iter().map(Outcome::json).collect::<Vec<_>>(),
        });
        let mut text = format!("# thinroot in real guests\n\n{}.\n\n![bars](vm.svg)\n", self.about);
        self.outcomes.iter().for_each(|outcome| text.push_str(&outcome.markdown()));
        let legend = COLOURS.map(|(rival, colour)| (rival.name(), colour));
        let rows: Vec<Row> = self.outcomes.iter().flat_map(Outcome::rows).collect();
        let files = [
            ("vm.json", format!("{json:#}\n")),
            ("vm.md", text),
            ("vm.svg", chart::draw(&legend, &rows, "s")),
        ];
        for (name, text) in files {
            let path = directory.join(name);
            fs::write(&path, text).map_err(BenchError::file(&path))?;
        }
        Ok(())
    }

    /// Says where the report is; fails if any of our own runs did.
    pub fn end(&self, directory: &Path) -> Result<(), BenchError> {
        println!("\n{}\nreport: {}", self.about, directory.join("vm.md").display());
        let is_ours = |outcome: &&Outcome| outcome.failures.contains_key(&Rival::Thinroot);
        match self.outcomes.iter().filter(is_ours).count() {
            0 => Ok(()),
            failures => Err(BenchError::Failed(failures)),
        }
    }
}
