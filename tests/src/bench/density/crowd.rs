//! Many daemons on one base: what each adds in memory and descriptors, and how fast it answers.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use thinroot::sys::process::die_with_parent;

use super::{DensityOptions, Findings};
use crate::bench::BenchError;
use crate::bench::Scratch;
use crate::bench::ground;
use crate::bench::host::Family;
use crate::bench::report::Spread;
use crate::bench::run::{Failed, verify};
use crate::guest::{GuestOptions, VirtualGuest};
use crate::requests::{Mount, ROOT};

/// How long a daemon may take to listen.
const DEADLINE: Duration = Duration::from_secs(30);

/// How many directories each of our guests lists, so that the daemon has served something.
const LISTED: usize = 50;

/// dirent.h: `DT_DIR`.
const DIRECTORY: u32 = 4;

/// Who serves.
#[derive(Clone, Copy)]
enum Server {
    Thinroot,
    Virtiofsd,
}

impl Server {
    const fn name(self) -> &'static str {
        match self {
            Self::Thinroot => "thinroot",
            Self::Virtiofsd => "virtiofsd on the base itself",
        }
    }

    /// A word for paths, which must be short (unix(7): `sun_path`).
    const fn short(self) -> &'static str {
        match self {
            Self::Thinroot => "t",
            Self::Virtiofsd => "v",
        }
    }

    const fn failed(self, what: String, log: String) -> BenchError {
        BenchError::Subject { kind: self.name(), what, log }
    }
}

/// A daemon and its guest; both are gone when dropped.
struct Member {
    child: Child,
    family: Family,
    start: Duration,
    guest: Option<Mount>,
}

/// What one daemon holds.
#[derive(Clone, Copy)]
struct Held {
    /// Memory that nobody else has, in KiB.
    private: f64,
    /// Its part of all memory, what is shared divided by who shares it, in KiB.
    proportional: f64,
    descriptors: f64,
}

/// Starts ours and the rival's in turn, lets each of our guests list directories, and looks at all
/// of them while all of them live.
pub(super) fn crowd(options: &DensityOptions) -> Result<Findings, BenchError> {
    let scratch = Scratch::make(&options.directory)?;
    let index = scratch.0.join("index");
    ground::seal(&options.programs, std::slice::from_ref(&options.base), &index)?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for number in 0..options.daemons.get() {
        for (server, members) in [(Server::Thinroot, &mut ours), (Server::Virtiofsd, &mut theirs)] {
            let directory = scratch.0.join(format!("{}-{number}", server.short()));
            std::fs::create_dir_all(&directory).map_err(BenchError::file(&directory))?;
            let command = command(server, options, &index, &directory);
            members.push(Member::start(command, server, &directory)?);
        }
    }
    let mut found = Findings::default();
    tell(&mut found, Server::Thinroot, "idle", &ours);
    tell(&mut found, Server::Virtiofsd, "idle", &theirs);
    tell_starts(&mut found, &ours, &theirs);
    // virtiofsd wants an OPENDIR first, which our guest does not speak: it stays idle.
    let known = ours.iter().map(Member::list).collect::<Result<Vec<_>, _>>();
    let known =
        known.map_err(|failed| Server::Thinroot.failed(failed.to_string(), String::new()))?;
    let each = known.first().copied().unwrap_or_default();
    tell(&mut found, Server::Thinroot, &format!("after listing {each} entries"), &ours);
    Ok(found)
}

/// The time from start to INIT of both, and pair by pair.
fn tell_starts(found: &mut Findings, ours: &[Member], theirs: &[Member]) {
    let ms = |member: &Member| member.start.as_secs_f64() * 1e3;
    let ratios = ours.iter().zip(theirs).map(|(ours, theirs)| ms(ours) / ms(theirs));
    if let (Some(ours), Some(theirs), Some(ratio)) =
        (Spread::of(ours.iter().map(ms)), Spread::of(theirs.iter().map(ms)), Spread::of(ratios))
    {
        found.say(format!(
            "start to INIT answered: ours {ours} ms, virtiofsd's {theirs} ms, {ratio}x"
        ));
        found.figure("thinroot: start_ms", ours.median);
        found.figure("virtiofsd: start_ms", theirs.median);
        found.figure("start beside virtiofsd", ratio.median);
    }
}

fn command(server: Server, options: &DensityOptions, index: &Path, directory: &Path) -> Command {
    let mut command;
    match server {
        Server::Thinroot => {
            command = Command::new(&options.programs.thinroot);
            command.arg("serve").arg("--lower").arg(&options.base).arg("--index").arg(index);
            command.arg("--upper").arg(directory.join("upper"));
            command.arg("--socket").arg(socket(directory)).args(["--log-level", "warn"]);
        }
        Server::Virtiofsd => {
            command = Command::new(&options.programs.virtiofsd);
            command.arg("--shared-dir").arg(&options.base).args(["--cache", "always"]);
            command.arg("--socket-path").arg(socket(directory)).args(["--log-level", "error"]);
        }
    }
    command
}

fn socket(directory: &Path) -> PathBuf {
    directory.join("s")
}

impl Member {
    fn start(mut command: Command, server: Server, directory: &Path) -> Result<Self, BenchError> {
        let log = directory.join("log");
        let output = File::create(&log).map_err(BenchError::file(&log))?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(output);
        let start = Instant::now();
        let child = die_with_parent(&mut command)
            .spawn()
            .map_err(BenchError::file(Path::new(command.get_program())))?;
        let family = Family::of(child.id());
        let mut member = Self { child, family, start: Duration::ZERO, guest: None };
        let stream = loop {
            if let Ok(stream) = UnixStream::connect(socket(directory)) {
                break stream;
            }
            if start.elapsed() > DEADLINE || !matches!(member.child.try_wait(), Ok(None)) {
                let log = std::fs::read_to_string(&log).unwrap_or_default();
                return Err(server.failed("does not listen".to_owned(), log));
            }
            std::thread::sleep(Duration::from_micros(100));
        };
        member.guest = Some(Mount::new(VirtualGuest::over(stream, GuestOptions::default())));
        member.start = start.elapsed();
        Ok(member)
    }

    /// Lists directories from the root on, each with its rows' attributes; says how many entries
    /// the guest knows then.
    fn list(&self) -> Result<usize, Failed> {
        let Some(guest) = &self.guest else { return Ok(0) };
        let mut waiting = vec![ROOT];
        let mut known = 0;
        for _ in 0..LISTED {
            let Some(node) = waiting.pop() else { break };
            let rows = guest.readdir(node, true)?;
            let entries = rows.iter().filter_map(|row| Some((row.kind, row.entry.as_ref()?.node)));
            let before = waiting.len();
            for (kind, node) in entries {
                known += 1;
                if kind == DIRECTORY {
                    waiting.push(node);
                }
            }
            // Each guest goes deep first, and in the same order.
            waiting[before..].reverse();
        }
        verify(known > 0, || "the base has no entries".to_owned())?;
        Ok(known)
    }

    fn held(&self) -> Held {
        let (private, descriptors) = self.family.memory_and_descriptors();
        let proportional = u32::try_from(self.family.pss_kib()).unwrap_or(u32::MAX);
        Held { private, proportional: f64::from(proportional), descriptors }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.guest = None;
        self.family.end();
        // Already gone is as good.
        self.child.wait().ok();
    }
}

/// A figure and its name.
type Column = (&'static str, fn(&Held) -> f64);

fn tell(found: &mut Findings, server: Server, when: &str, members: &[Member]) {
    let held: Vec<Held> = members.iter().map(Member::held).collect();
    let columns: [Column; 3] = [
        ("private KiB", |held| held.private),
        ("proportional KiB", |held| held.proportional),
        ("descriptors", |held| held.descriptors),
    ];
    let mut line = format!("{}, {} daemons, {when}: each", server.name(), members.len());
    for (name, figure) in columns {
        let Some(spread) = Spread::of(held.iter().map(figure)) else { continue };
        line.push_str(&format!(" {name} {spread};"));
        found.figure(&format!("{}: {when}: {name}", server.name()), spread.median);
    }
    found.say(line.trim_end_matches(';').to_owned());
}
