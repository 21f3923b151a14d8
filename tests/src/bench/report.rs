//! What the samples say: a table for the eye, JSON for machines, Markdown with charts for a report.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::BenchError;
use super::chart::{self, Row};
use super::host;
use super::run::{Bar, Sample, Workload};
use super::subject::Kind;

const COLOURS: [(Kind, &str); 3] =
    [(Kind::Thinroot, "#1b7f5c"), (Kind::Overlayfs, "#c0504d"), (Kind::Plain, "#a0a0a0")];

/// All rounds of one workload.
#[derive(Debug)]
pub struct Outcome {
    /// What ran.
    pub workload: Workload,
    /// What each daemon gave, round by round.
    pub samples: BTreeMap<Kind, Vec<Sample>>,
    /// Why a daemon gave nothing.
    pub failures: BTreeMap<Kind, String>,
}

/// Everything of one call.
#[derive(Debug)]
pub struct Report {
    rounds: usize,
    busy: f64,
    disk: String,
    client_watch: Duration,
    /// By workload.
    pub outcomes: Vec<Outcome>,
}

/// The middle of some figures, the least and the greatest.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The greatest.
    pub greatest: f64,
}

impl Spread {
    /// Of at least one figure.
    pub fn of(figures: impl Iterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = figures.collect();
        sorted.sort_by(f64::total_cmp);
        let median = *sorted.get(sorted.len() / 2)?;
        Some(Self { median, least: *sorted.first()?, greatest: *sorted.last()? })
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let digits = if self.median >= 1000.0 { 0 } else { 2 };
        let Self { median, least, greatest } = self;
        write!(f, "{median:.digits$} ({least:.digits$}..{greatest:.digits$})")
    }
}

/// A duration per operation, in microseconds.
fn each(whole: Duration, operations: u64) -> f64 {
    let operations = u32::try_from(operations.max(1)).unwrap_or(u32::MAX);
    whole.as_secs_f64() * 1e6 / f64::from(operations)
}

impl Sample {
    fn wall_us(&self) -> f64 {
        each(self.wall, self.operations)
    }

    fn cpu_us(&self) -> f64 {
        each(self.cpu, self.operations)
    }
}

/// What became of a bar.
struct Verdict {
    text: String,
    /// `None` where there is no figure.
    holds: Option<bool>,
}

impl Outcome {
    fn spread(&self, kind: Kind, figure: impl Fn(&Sample) -> f64) -> Option<Spread> {
        Spread::of(self.samples.get(&kind)?.iter().map(figure))
    }

    /// Time per operation.
    pub fn wall(&self, kind: Kind) -> Option<Spread> {
        self.spread(kind, Sample::wall_us)
    }

    /// CPU time per operation; nothing where none was measured.
    pub fn cpu(&self, kind: Kind) -> Option<Spread> {
        self.spread(kind, Sample::cpu_us).filter(|spread| spread.greatest > 0.0)
    }

    /// The median of ours over the rival's, pair by pair; nothing where a run failed.
    fn ratio(&self, figure: impl Fn(&Sample) -> Option<f64>) -> Option<f64> {
        if self.failures.contains_key(&Kind::Thinroot)
            || self.failures.contains_key(&Kind::Overlayfs)
        {
            return None;
        }
        let ours = self.samples.get(&Kind::Thinroot)?;
        let theirs = self.samples.get(&Kind::Overlayfs)?;
        let pairs: Option<Vec<f64>> = ours
            .iter()
            .zip(theirs)
            .map(|(ours, theirs)| Some(figure(ours)? / figure(theirs)?))
            .collect();
        Spread::of(pairs?.into_iter()).map(|spread| spread.median)
    }

    fn own(&self, figure: impl Fn(&Sample) -> Option<f64>) -> Option<f64> {
        let figures: Option<Vec<f64>> =
            self.samples.get(&Kind::Thinroot)?.iter().map(figure).collect();
        Spread::of(figures?.into_iter()).map(|spread| spread.median)
    }

    fn verdict(&self, bar: Bar) -> Verdict {
        let wall = |sample: &Sample| Some(sample.wall_us());
        let named = |name| move |sample: &Sample| sample.figures.get(name).copied();
        let at_most = |what: &str, figure: Option<f64>, most: f64, unit: &str| Verdict {
            text: told(what, figure, &format!("<= {most}{unit}"), unit),
            holds: figure.map(|figure| figure <= most),
        };
        match bar {
            Bar::Cpu(most) => at_most("CPU", self.ratio(|sample| Some(sample.cpu_us())), most, "x"),
            Bar::Wall(most) => at_most("time", self.ratio(wall), most, "x"),
            Bar::AboveEmpty(most) => at_most("CPU above empty", self.above_empty(), most, " us"),
            Bar::Milliseconds(most) => {
                at_most("time", self.own(wall).map(|us| us / 1000.0), most, " ms")
            }
            Bar::Share(name, most) => at_most(name, self.ratio(named(name)), most, "x"),
            Bar::Most(name, most) => at_most(name, self.own(named(name)), most, ""),
            Bar::Faster(least) => {
                let figure = self.ratio(wall).map(|ratio| 1.0 / ratio);
                Verdict {
                    text: told("speed", figure, &format!(">= {least}x"), "x"),
                    holds: figure.map(|figure| figure >= least),
                }
            }
        }
    }

    fn above_empty(&self) -> Option<f64> {
        self.own(|sample| Some(sample.cpu_us() - sample.empty.as_ref()?.cpu_us()))
    }

    /// Prints its rows.
    pub fn print(&self) {
        print!("{}", self.table());
    }

    fn table(&self) -> String {
        let mut text = format!("\n{}: {}\n", self.workload.name, self.workload.about);
        for kind in [Kind::Thinroot, Kind::Overlayfs, Kind::Plain] {
            if let Some(failure) = self.failures.get(&kind) {
                writeln!(text, "  {:<24} FAILED: {failure}", kind.name()).unwrap_or_default();
                continue;
            }
            let Some(wall) = self.wall(kind) else { continue };
            let cpu = self.cpu(kind).map_or_else(String::new, |cpu| format!("cpu {cpu} us"));
            write!(text, "  {:<24} wall {:<28} {cpu}", kind.name(), format!("{wall} us"))
                .unwrap_or_default();
            for (name, figure) in self.figures(kind) {
                write!(text, "  {name}: {figure:.1}").unwrap_or_default();
            }
            text.push('\n');
        }
        for bar in self.workload.bars {
            let verdict = self.verdict(*bar);
            writeln!(text, "  {}: {}", mark(verdict.holds), verdict.text).unwrap_or_default();
        }
        text
    }

    /// Medians of the other figures.
    fn figures(&self, kind: Kind) -> BTreeMap<&'static str, f64> {
        let samples = self.samples.get(&kind).map_or(&[][..], Vec::as_slice);
        let names = samples.first().map(|sample| sample.figures.keys().copied());
        let median = |name| {
            let figures = samples.iter().filter_map(|sample| sample.figures.get(name).copied());
            Some((name, Spread::of(figures)?.median))
        };
        names.into_iter().flatten().filter_map(median).collect()
    }

    fn json(&self) -> Value {
        let spread = |spread: Option<Spread>| {
            spread.map(|s| json!({"median": s.median, "least": s.least, "greatest": s.greatest}))
        };
        let daemon = |kind: Kind| {
            let first = self.samples.get(&kind).and_then(|samples| samples.first());
            json!({
                "failure": self.failures.get(&kind),
                "operations": first.map(|sample| sample.operations),
                "requests": first.map(|sample| sample.requests),
                "interrupts": first.map(|sample| sample.interrupts),
                "wall_us": spread(self.wall(kind)),
                "cpu_us": spread(self.cpu(kind)),
                "figures": self.figures(kind),
            })
        };
        let bar = |bar: &Bar| {
            let verdict = self.verdict(*bar);
            json!({"text": verdict.text, "holds": verdict.holds})
        };
        json!({
            "workload": self.workload.name,
            "about": self.workload.about,
            "thinroot": daemon(Kind::Thinroot),
            "virtiofsd_overlayfs": daemon(Kind::Overlayfs),
            "virtiofsd_plain": daemon(Kind::Plain),
            "bars": self.workload.bars.iter().map(bar).collect::<Vec<_>>(),
        })
    }
}

/// How a client waits for replies.
pub fn waiting(watch: Duration) -> String {
    if watch.is_zero() {
        return "the client sleeps as soon as it waits".to_owned();
    }
    format!(
        "the client watches for {watch:?} before it sleeps, as KVM polls for a halted vCPU \
         (--client-poll-us)"
    )
}

fn told(what: &str, figure: Option<f64>, bar: &str, unit: &str) -> String {
    match figure {
        Some(figure) => format!("{what} {figure:.4}{unit}, bar {bar}"),
        None => format!("{what}: no figure, for a run failed or gave none; bar {bar}"),
    }
}

const fn mark(holds: Option<bool>) -> &'static str {
    match holds {
        Some(true) => "holds",
        Some(false) => "MISSED",
        None => "no figure",
    }
}

impl Report {
    /// Nothing measured yet; `busy` is the share of the machine in use by others, `disk` what lower
    /// and uppers are on, `client_watch` how long a client watches before it sleeps.
    pub fn new(rounds: usize, busy: f64, disk: &str, client_watch: Duration) -> Self {
        Self { rounds, busy, disk: disk.to_owned(), client_watch, outcomes: Vec::new() }
    }

    /// How many of our own daemon's workloads failed.
    pub fn failures(&self) -> usize {
        self.outcomes
            .iter()
            .filter(|outcome| outcome.failures.contains_key(&Kind::Thinroot))
            .count()
    }

    /// Writes `bench.json`, `bench.md` and `bench.svg` into a directory.
    pub fn write(&self, directory: &Path) -> Result<(), BenchError> {
        let json = json!({
            "machine": host::machine(),
            "rounds": self.rounds,
            "busy_share": self.busy,
            "disk": self.disk,
            "client_poll_us": self.client_watch.as_secs_f64() * 1e6,
            "workloads": self.outcomes.iter().map(Outcome::json).collect::<Vec<_>>(),
        });
        let files = [
            ("bench.json", format!("{json:#}\n")),
            ("bench.md", self.markdown()),
            ("bench.svg", self.chart()),
        ];
        for (name, text) in files {
            let path = directory.join(name);
            fs::write(&path, text).map_err(BenchError::file(&path))?;
        }
        println!("\n{}", self.summary());
        println!("report: {}", directory.join("bench.md").display());
        Ok(())
    }

    fn chart(&self) -> String {
        let legend = COLOURS.map(|(kind, colour)| (kind.name(), colour));
        let row = |outcome: &Outcome| Row {
            name: outcome.workload.name.to_owned(),
            figures: COLOURS.map(|(kind, _)| Some(outcome.wall(kind)?.median)).to_vec(),
        };
        chart::draw(&legend, &self.outcomes.iter().map(row).collect::<Vec<_>>(), "us")
    }

    fn summary(&self) -> String {
        let count = |wanted: Option<bool>| {
            let bars = self.outcomes.iter().flat_map(|outcome| {
                outcome.workload.bars.iter().map(|bar| outcome.verdict(*bar).holds)
            });
            bars.filter(|holds| *holds == wanted).count()
        };
        let soft = if host::is_too_busy(self.busy) {
            "; the machine was BUSY: times are soft, CPU times less so"
        } else {
            ""
        };
        format!(
            "{} bars hold, {} are missed, {} have no figure{soft}",
            count(Some(true)),
            count(Some(false)),
            count(None)
        )
    }

    fn markdown(&self) -> String {
        let mut text = format!(
            "# thinroot beside virtiofsd\n\n{}; {} alternating rounds, medians (least..greatest); \
             {:.0} % of the machine was in use by others; lower and uppers on {}; {}.\n{}.\n\n\
             ![bars](bench.svg)\n",
            host::machine(),
            self.rounds,
            self.busy * 100.0,
            self.disk,
            waiting(self.client_watch),
            self.summary()
        );
        for outcome in &self.outcomes {
            text.push_str(&markdown_of(outcome));
        }
        text
    }
}

fn markdown_of(outcome: &Outcome) -> String {
    let mut text = format!("\n## {}\n\n{}\n\n", outcome.workload.name, outcome.workload.about);
    text.push_str(
        "| daemon | time per operation, us | daemon CPU, us | other |\n|---|---|---|---|\n",
    );
    for kind in [Kind::Thinroot, Kind::Overlayfs, Kind::Plain] {
        let failure = outcome.failures.get(&kind);
        let cell =
            |spread: Option<Spread>| spread.map_or_else(String::new, |spread| spread.to_string());
        let mut other: Vec<_> = outcome
            .figures(kind)
            .into_iter()
            .map(|(name, figure)| format!("{name} {figure:.1}"))
            .collect();
        other.extend(failure.map(|failure| format!("failed: {failure}")));
        if failure.is_none() && outcome.wall(kind).is_none() {
            continue;
        }
        let (wall, cpu) = (cell(outcome.wall(kind)), cell(outcome.cpu(kind)));
        let other = other.join("; ").replace('\n', " ");
        writeln!(text, "| {} | {wall} | {cpu} | {other} |", kind.name()).unwrap_or_default();
    }
    text.push('\n');
    for bar in outcome.workload.bars {
        let verdict = outcome.verdict(*bar);
        writeln!(text, "- {}: {}", mark(verdict.holds), verdict.text).unwrap_or_default();
    }
    text
}
