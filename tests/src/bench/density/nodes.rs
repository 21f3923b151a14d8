//! What a daemon holds for a guest that knows so many nodes.

use super::seal::tree;
use super::{DensityOptions, Findings};
use crate::bench::client::Client;
use crate::bench::host::Pins;
use crate::bench::subject::{Kind, Site, Subject};
use crate::bench::{BenchError, Scratch, ground, lane};

/// How many nodes are known when memory and descriptors are looked at; what does not fit into the
/// tree is left out.
const LOOKS: [usize; 3] = [1000, 100_000, 1_000_000];

/// Has a guest of ours, and of virtiofsd on the same tree, list it directory by directory.
pub(super) fn nodes(options: &DensityOptions) -> Result<Findings, BenchError> {
    let tree = tree(&options.directory, options.entries.get())?;
    let scratch = Scratch::make(&options.directory)?;
    let index = scratch.0.join("index");
    ground::seal(&options.programs, std::slice::from_ref(&tree), &index)?;
    let site = Site {
        programs: &options.programs,
        lower: &tree,
        index: &index,
        scratch: &scratch.0,
        pins: Pins::choose(),
        client_watch: lane::WATCH,
    };
    let mut found = Findings::default();
    for kind in [Kind::Thinroot, Kind::Plain] {
        watch(&mut found, kind, site, options.entries.get())?;
    }
    Ok(found)
}

fn watch(
    found: &mut Findings,
    kind: Kind,
    site: Site<'_>,
    entries: usize,
) -> Result<(), BenchError> {
    let (mut subject, mut client, _) = Subject::start(kind, site)?;
    let (idle, _) = subject.family().memory_and_descriptors();
    let mut known = 0;
    let mut directory = 0;
    for look in LOOKS.into_iter().filter(|look| *look <= entries) {
        // The top of the tree is known from the start.
        while known + 1 < look {
            match list(&mut client, directory) {
                Ok(rows) => known += rows,
                Err(errno) => {
                    let name = kind.name();
                    found.say(format!("{name}: no further node after {known}: {errno}"));
                    return Ok(());
                }
            }
            directory += 1;
        }
        let (private, descriptors) = subject.family().memory_and_descriptors();
        let count = u32::try_from(known).unwrap_or(u32::MAX);
        let each = (private - idle) * 1024.0 / f64::from(count);
        found.say(format!(
            "{}: {known} known nodes: {private} KiB of its own ({idle} idle), {each:.0} bytes a \
             node, {descriptors} descriptors",
            kind.name()
        ));
        for (figure, value) in
            [("private KiB", private), ("bytes per node", each), ("descriptors", descriptors)]
        {
            found.figure(&format!("{}: {look} nodes: {figure}", kind.name()), value);
        }
    }
    client.unmount();
    Ok(())
}

/// Has the guest learn a directory and all that is in it; says how many that are.
fn list(client: &mut Client, directory: usize) -> Result<usize, rustix::io::Errno> {
    let node = client.resolve(&format!("package-{directory:04}"))?;
    let rows = client.list(node)?.0;
    Ok(1 + rows.iter().filter(|row| row.entry.is_some()).count())
}
