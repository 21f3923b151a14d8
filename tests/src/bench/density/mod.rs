//! Density: what one more guest costs a host, and one more node, how a great base is sealed, and many guests at once.
//!
//! Unlike the workloads these have no rounds of one request; each part prints what it found and
//! leaves it in `density.json` and `density.md`.

mod crowd;
mod nodes;
mod seal;
mod storm;

use std::fmt::Write as _;
use std::fs;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Args;
use serde_json::{Map, Value, json};

use super::host;
use super::{BenchError, Programs};

/// What to measure, and with what.
#[derive(Clone, Debug, Args)]
pub struct DensityOptions {
    /// Parts by name; all if there is none.
    #[arg(value_name = "PART")]
    pub parts: Vec<String>,
    /// Our daemon, and the rival of `crowd`.
    #[command(flatten)]
    pub programs: Programs,
    /// A base for guests.
    #[arg(long, value_name = "DIR")]
    pub base: PathBuf,
    /// The boot image for it.
    #[arg(long, value_name = "DIR")]
    pub image: PathBuf,
    /// Where everything goes, on a disk.
    #[arg(long, value_name = "DIR")]
    pub directory: PathBuf,
    /// `crowd`: how many daemons.
    #[arg(long, value_name = "N", default_value = "100")]
    pub daemons: NonZeroUsize,
    /// `seal`: how many entries.
    #[arg(long, value_name = "N", default_value = "1000000")]
    pub entries: NonZeroUsize,
    /// `seal`: how often, each side.
    #[arg(long, value_name = "N", default_value = "3")]
    pub rounds: NonZeroUsize,
    /// `storm`: how many guests.
    #[arg(long, value_name = "N", default_value = "10")]
    pub guests: NonZeroUsize,
}

/// What one part found: a line for a person each, and the same for machines.
#[derive(Debug, Default)]
struct Findings {
    lines: Vec<String>,
    figures: Map<String, Value>,
}

impl Findings {
    fn say(&mut self, line: String) {
        println!("  {line}");
        self.lines.push(line);
    }

    fn figure(&mut self, name: &str, value: impl Into<Value>) {
        self.figures.insert(name.to_owned(), value.into());
    }
}

type Part = fn(&DensityOptions) -> Result<Findings, BenchError>;

/// The parts, and what each is about.
pub const PARTS: [(&str, &str); 4] = [
    ("crowd", "what each of many daemons on one base holds, and how fast it is there"),
    ("nodes", "what a daemon holds for a thousand known nodes, and for a million"),
    ("seal", "a great base sealed, beside find -ls"),
    ("storm", "many guests booting at once"),
];

const BODIES: [Part; 4] = [crowd::crowd, nodes::nodes, seal::seal, storm::storm];

/// Measures, prints, and leaves JSON and Markdown in `options.directory`.
///
/// Errors: an unknown part; whatever keeps a part from a figure.
pub fn density(options: &DensityOptions) -> Result<(), BenchError> {
    let is_known = |name: &&String| PARTS.iter().any(|(known, _)| known == name);
    if let Some(name) = options.parts.iter().find(|name| !is_known(name)) {
        let known = PARTS.map(|(name, _)| name).join(" ");
        return Err(BenchError::Unknown { name: name.clone(), known });
    }
    if !rustix::process::geteuid().is_root() {
        return Err(BenchError::NotRoot);
    }
    fs::create_dir_all(&options.directory).map_err(BenchError::file(&options.directory))?;
    let busy = super::wait_for_quiet(true)?;
    if !host::take_precedence() {
        println!(
            "this process may not be made more important: times are softer than they could be"
        );
    }
    let mut figures = Map::new();
    let heading = format!("{}; {:.0} % of it in use by others", host::machine(), busy * 100.0);
    let mut text = format!("# Density\n\n{heading}.\n");
    for ((name, about), body) in PARTS.into_iter().zip(BODIES) {
        if !options.parts.is_empty() && !options.parts.iter().any(|part| part == name) {
            continue;
        }
        println!("\n{name}: {about}");
        let found = body(options)?;
        write!(text, "\n## {name}\n\n{about}\n\n").unwrap_or_default();
        for line in &found.lines {
            writeln!(text, "- {line}").unwrap_or_default();
        }
        figures.insert(name.to_owned(), Value::Object(found.figures));
    }
    let json = json!({"machine": host::machine(), "busy_share": busy, "parts": figures});
    for (name, text) in [("density.json", format!("{json:#}\n")), ("density.md", text)] {
        let path = options.directory.join(name);
        fs::write(&path, text).map_err(BenchError::file(&path))?;
    }
    println!("\nreport: {}", options.directory.join("density.md").display());
    Ok(())
}
