//! Many guests that boot at once from one base, beside one alone.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use serde_json::Value;
use thinroot::sys::process::die_with_parent;

use super::{DensityOptions, Findings};
use crate::bench::BenchError;
use crate::bench::Scratch;
use crate::bench::report::Spread;

/// Each guest's memory, as `--memory` takes it.
const MEMORY: &str = "256M";

/// Boots one guest, then all at once; each runs `/bin/true` and is gone.
pub(super) fn storm(options: &DensityOptions) -> Result<Findings, BenchError> {
    let scratch = Scratch::make(&options.directory)?;
    let mut found = Findings::default();
    for guests in [1, options.guests.get()] {
        let start = Instant::now();
        let mut running = (0..guests)
            .map(|number| Running::start(options, &scratch.0, number))
            .collect::<Result<Vec<_>, _>>()?;
        let reports = running.iter_mut().map(Running::report).collect::<Result<Vec<_>, _>>()?;
        let wall = start.elapsed().as_secs_f64();
        let ready =
            reports.iter().filter_map(|report| report.pointer("/stages_ms/ready")?.as_f64());
        let ready = Spread::of(ready.map(|ms| ms / 1000.0));
        let Some(ready) = ready else { continue };
        let requests = reports.iter().map(requests);
        let requests = Spread::of(requests).map_or(0.0, |spread| spread.median);
        found.say(format!(
            "{guests} guests at once, {MEMORY} each: ready after {ready} s, all done in {wall:.1} s, \
             {requests:.0} requests each"
        ));
        found.figure(&format!("{guests}: ready_s"), ready.median);
        found.figure(&format!("{guests}: last_ready_s"), ready.greatest);
        found.figure(&format!("{guests}: all_done_s"), wall);
    }
    Ok(found)
}

/// A guest of `thinroot run`; stopped when dropped.
struct Running {
    child: Child,
    json: std::path::PathBuf,
    log: std::path::PathBuf,
}

impl Running {
    fn start(options: &DensityOptions, scratch: &Path, number: usize) -> Result<Self, BenchError> {
        let json = scratch.join(format!("{number}.json"));
        let log = scratch.join(format!("{number}.log"));
        let output = File::create(&log).map_err(BenchError::file(&log))?;
        let mut command = Command::new(&options.programs.thinroot);
        command.arg("run").arg("--lower").arg(&options.base).arg("--image").arg(&options.image);
        command.arg("--discard-dir").arg(scratch).args(["--memory", MEMORY, "--cpus", "1"]);
        // A crowd on few processors takes its time.
        command.args(["--boot-timeout", "900", "--timeout", "1200"]).arg("--json").arg(&json);
        command.args(["--", "/bin/true"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(output);
        let child = die_with_parent(&mut command)
            .spawn()
            .map_err(BenchError::file(&options.programs.thinroot))?;
        Ok(Self { child, json, log })
    }

    /// Waits for its end; gives what `--json` said.
    fn report(&mut self) -> Result<Value, BenchError> {
        let status = self.child.wait().map_err(BenchError::file(&self.json))?;
        let text = fs::read_to_string(&self.json).unwrap_or_default();
        match serde_json::from_str(&text) {
            Ok(report) if status.success() => Ok(report),
            _ => {
                let log = fs::read_to_string(&self.log).unwrap_or_default();
                let what = format!("a guest of the storm: {status}");
                Err(BenchError::Subject { kind: "thinroot run", what, log })
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None))
            && let Some(pid) =
                i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw)
        {
            // It takes its daemon and its VMM with it.
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).ok();
            self.child.wait().ok();
        }
    }
}

fn requests(report: &Value) -> f64 {
    let counts = report.get("requests").and_then(Value::as_object);
    counts.map_or(0.0, |counts| counts.values().filter_map(Value::as_f64).sum())
}
