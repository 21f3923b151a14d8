//! What lies below a name: the search for the further directories a merged directory is made of,
//! and for the data of a metacopy file, along redirects.

use std::os::fd::{AsFd, OwnedFd};

use super::SealError;
use super::draft::Draft;
use super::found::{Found, LayerRoot, Marks, Spot, redirect_names};
use crate::filesystem::Kind;
use crate::layer::index::format::{NONE, PartRecord};
use crate::layer::index::stat::witness;
use crate::sys::fs::Statx;
use crate::sys::scan::{self, Scanner};

/// A real directory that will be or is a part of a merged one.
#[derive(Debug, Clone)]
pub struct PartAt {
    /// Its position in the draft.
    pub part: u32,
    /// Its layer.
    pub layer: usize,
    /// Its path below the layer's root.
    pub path: Vec<u8>,
}

/// A part opened for reading, and what it was then.
#[derive(Debug)]
pub struct OpenPart {
    /// Which.
    pub at: PartAt,
    /// Its descriptor.
    pub fd: OwnedFd,
    /// Its attributes before its names were read.
    pub stat: Statx,
}

/// An object found below.
#[derive(Debug)]
pub struct Hit {
    /// The directory that holds it.
    pub parent: PartAt,
    /// Its name there.
    pub name: Vec<u8>,
    /// What it is.
    pub found: Found,
}

/// Where the search goes on.
#[derive(Debug)]
enum Below {
    /// By this name, in the further parts of the same merged directory.
    Name(Vec<u8>),
    /// By these names from the root of each further layer.
    Path(Vec<Vec<u8>>),
    /// Nowhere.
    Nothing,
}

/// A search downwards from one object. Source: fs/overlayfs/namei.c, `ovl_lookup`.
#[derive(Debug)]
pub struct Search<'a> {
    /// The merged directory that holds the object.
    pub open: &'a [OpenPart],
    /// The parts in which the object's own name is listed, ascending.
    pub listed: &'a [usize],
    name: &'a [u8],
    below: Below,
    next_part: usize,
    next_layer: usize,
}

/// What a search works with.
#[derive(Debug)]
pub struct Ground<'a> {
    /// The lowers, top first.
    pub layers: &'a [LayerRoot],
    /// The part that is each layer's root.
    pub roots: &'a [u32],
    /// Where parts are added that only a redirect leads to.
    pub draft: &'a mut Draft,
    /// Memory to read into.
    pub scanner: &'a mut Scanner,
}

impl<'a> Search<'a> {
    /// Begins below `name`, which the first of `listed` shows.
    pub fn new(open: &'a [OpenPart], listed: &'a [usize], name: &'a [u8]) -> Self {
        let top = listed.first().copied().unwrap_or(0);
        let next_layer = open.get(top).map_or(0, |part| part.at.layer) + 1;
        let below = Below::Name(name.to_vec());
        Self { open, listed, name, below, next_part: top + 1, next_layer }
    }

    /// Takes in the marks of the object found last, whose merged path is `path`.
    pub fn follow(&mut self, marks: &Marks, path: &[u8]) -> Result<(), SealError> {
        if marks.is_opaque {
            self.below = Below::Nothing;
        } else if let Some(redirect) = &marks.redirect {
            let names = redirect_names(redirect, path)?;
            let owned = || names.iter().map(|name| name.to_vec());
            match &mut self.below {
                _ if redirect.starts_with(b"/") => self.below = Below::Path(owned().collect()),
                Below::Name(name) => *name = redirect.clone(),
                Below::Path(path) => {
                    path.pop();
                    path.extend(owned());
                }
                Below::Nothing => {}
            }
        }
        Ok(())
    }

    /// The next object below; `None` where there is none. A whiteout ends the search.
    pub fn next(&mut self, ground: &mut Ground<'_>) -> Result<Option<Hit>, SealError> {
        let hit = match std::mem::replace(&mut self.below, Below::Nothing) {
            Below::Nothing => None,
            Below::Name(name) => {
                let hit = self.next_by_name(&name, ground)?;
                self.below = Below::Name(name);
                hit
            }
            Below::Path(path) => self.next_by_path(path, ground)?,
        };
        match hit {
            Some(hit) if !hit.found.marks.is_whiteout => {
                self.next_layer = hit.parent.layer + 1;
                Ok(Some(hit))
            }
            _ => {
                self.below = Below::Nothing;
                Ok(None)
            }
        }
    }

    fn next_by_name(
        &mut self,
        name: &[u8],
        ground: &mut Ground<'_>,
    ) -> Result<Option<Hit>, SealError> {
        while let Some(part) = self.open.get(self.next_part) {
            let here = self.next_part;
            self.next_part += 1;
            // The listings have told already where the object's own name is.
            if name == self.name && self.listed.binary_search(&here).is_err() {
                continue;
            }
            if let Some(found) = ground.look(part.at.layer, &part.fd, (&part.at.path, name))? {
                return Ok(Some(Hit { parent: part.at.clone(), name: name.to_vec(), found }));
            }
        }
        Ok(None)
    }

    fn next_by_path(
        &mut self,
        mut path: Vec<Vec<u8>>,
        ground: &mut Ground<'_>,
    ) -> Result<Option<Hit>, SealError> {
        for layer in self.next_layer..ground.layers.len() {
            let mut lookup = PathLookup { layer, path: path.clone(), is_last_layer: false };
            let hit = lookup.run(ground)?;
            path = lookup.path;
            if hit.is_some() {
                self.below = Below::Path(path);
                return Ok(hit);
            }
            if lookup.is_last_layer {
                break;
            }
        }
        Ok(None)
    }
}

/// One path looked up in one layer. Source: fs/overlayfs/namei.c, `ovl_lookup_layer`.
struct PathLookup {
    layer: usize,
    /// The path; redirects on the way change it for the layers below.
    path: Vec<Vec<u8>>,
    /// Something on the way hides all layers below.
    is_last_layer: bool,
}

impl PathLookup {
    fn run(&mut self, ground: &mut Ground<'_>) -> Result<Option<Hit>, SealError> {
        let names = self.path.clone();
        let mut parent =
            PartAt { part: ground.root(self.layer)?, layer: self.layer, path: Vec::new() };
        for (depth, name) in names.iter().enumerate() {
            let Some(found) = ground.look_beneath(&parent, name)? else {
                return Ok(None);
            };
            if found.marks.is_whiteout {
                self.is_last_layer = true;
                return Ok(None);
            }
            if depth + 1 == names.len() {
                return Ok(Some(Hit { parent, name: name.clone(), found }));
            }
            if found.kind != Kind::Directory || found.is_mount_point {
                self.is_last_layer = true;
                return Ok(None);
            }
            self.pass(&found.marks, &names[..depth], &names[depth + 1..], &parent.path)?;
            parent = ground.step(&parent, name, &found)?;
        }
        Ok(None)
    }

    /// Takes in the marks of a directory on the way.
    fn pass(
        &mut self,
        marks: &Marks,
        before: &[Vec<u8>],
        after: &[Vec<u8>],
        path: &[u8],
    ) -> Result<(), SealError> {
        if marks.is_opaque {
            self.is_last_layer = true;
        } else if let Some(redirect) = &marks.redirect {
            let names = redirect_names(redirect, path)?.into_iter().map(<[u8]>::to_vec);
            let is_absolute = redirect.starts_with(b"/");
            let before = if is_absolute { &[] } else { before };
            self.is_last_layer &= !is_absolute;
            self.path = before.iter().cloned().chain(names).chain(after.iter().cloned()).collect();
        }
        Ok(())
    }
}

impl Ground<'_> {
    fn root(&self, layer: usize) -> Result<u32, SealError> {
        self.roots.get(layer).copied().ok_or(SealError::TooLarge)
    }

    /// Looks at `place.1` in the directory `dir`, whose path is `place.0`.
    fn look(
        &mut self,
        layer: usize,
        dir: &OwnedFd,
        place: (&[u8], &[u8]),
    ) -> Result<Option<Found>, SealError> {
        let layer = &self.layers[layer];
        let spot = Spot { layer, dir: dir.as_fd(), name: place.1 };
        spot.look(self.scanner, |_| None)
            .map_err(|error| SealError::reading(layer, &[place.0, place.1], error))
    }

    fn look_beneath(&mut self, parent: &PartAt, name: &[u8]) -> Result<Option<Found>, SealError> {
        let layer = &self.layers[parent.layer];
        let dir = scan::open_directory(layer.fd.as_fd(), &parent.path)
            .map_err(|error| SealError::reading(layer, &[&parent.path], error))?;
        self.look(parent.layer, &dir, (&parent.path, name))
    }

    /// The directory `name` in `parent` as a part.
    fn step(&mut self, parent: &PartAt, name: &[u8], found: &Found) -> Result<PartAt, SealError> {
        let record = PartRecord {
            layer: super::draft::position(parent.layer)?.into(),
            parent: parent.part.into(),
            name: self.draft.name(name)?.into(),
            witness: witness(&found.stat),
        };
        debug_assert_ne!(parent.part, NONE, "every part has a position");
        Ok(PartAt {
            part: self.draft.part(record)?,
            layer: parent.layer,
            path: join(&parent.path, name),
        })
    }
}

/// `parent/name`.
pub fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() { name.to_vec() } else { [parent, b"/", name].concat() }
}
