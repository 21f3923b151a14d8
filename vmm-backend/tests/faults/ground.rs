//! A small base with something of every kind, and a fresh upper over it for each point.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use thinroot::layer::index::LayerKind;
use thinroot::layer::lower::{Lower, LowerPolicy, Strictness};
use thinroot::layer::mark::MarkSpace;
use thinroot::layer::owner::Ownership;
use thinroot::layer::seal::{LowerSpec, open_or_seal, open_roots};
use thinroot::layer::upper::{Upper, UpperConfig};
use thinroot::layer::view::UpperView;
use thinroot::life::check::{Damage, Finding, Subject, check};
use thinroot::sys::attachment::Attachment;
use thinroot::sys::fault;
use thinroot::union::Union;

use super::guest::Guest;
use super::matrix::Change;
use super::rows::LARGE_BYTES;

/// How an upper is kept.
pub struct Form {
    pub name: &'static str,
    space: MarkSpace,
    ownership: Ownership,
    attachment: Option<Attachment>,
}

/// Root's, on a disk that outlives the process as disks do; and an ordinary user's, on one of which
/// it cannot be told.
pub const FORMS: [Form; 2] = [
    Form {
        name: "root's",
        space: MarkSpace::Trusted,
        ownership: Ownership::Native,
        attachment: Some(Attachment([7; 32])),
    },
    Form {
        name: "a user's",
        space: MarkSpace::User,
        ownership: Ownership::Override,
        attachment: None,
    },
];

fn make_base(base: &Path) {
    fs::create_dir_all(base.join("a/sub")).unwrap();
    fs::create_dir(base.join("b")).unwrap();
    for file in ["a/one", "a/two", "a/sub/deep"] {
        fs::write(base.join(file), file).unwrap();
    }
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(base.join("a/two"), "user.old", b"v", flags).unwrap();
    std::os::unix::fs::symlink("one", base.join("a/symlink")).unwrap();
    let (fifo, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o644));
    rustix::fs::mknodat(rustix::fs::CWD, base.join("a/fifo"), fifo, mode, 0).unwrap();
    fs::write(base.join("hard1"), "hard").unwrap();
    fs::hard_link(base.join("hard1"), base.join("hard2")).unwrap();
    fs::hard_link(base.join("hard1"), base.join("a/hard3")).unwrap();
    fs::write(base.join("large"), vec![b'l'; LARGE_BYTES]).unwrap();
}

/// A base with its index, and a fresh upper for each point.
pub struct Ground {
    temp: tempfile::TempDir,
}

impl Ground {
    pub fn new() -> Self {
        // In memory, unless somebody says on which disk.
        let memory = Path::new("/dev/shm");
        let temp = if memory.is_dir() && std::env::var_os("TMPDIR").is_none() {
            tempfile::tempdir_in(memory).unwrap()
        } else {
            tempfile::tempdir().unwrap()
        };
        fs::create_dir(temp.path().join("base")).unwrap();
        make_base(&temp.path().join("base"));
        Self { temp }
    }

    pub fn path(&self) -> &Path {
        self.temp.path()
    }

    /// What `thinroot check` finds damaged.
    pub fn damage(&self, form: &Form) -> Vec<Finding> {
        self.findings(form).into_iter().filter(Finding::is_harm).collect()
    }

    /// What a start should have swept. A whiteout that hides nothing, in a directory that was about to
    /// be replaced, stays in its place: nobody sees it, and it goes with the directory.
    pub fn leftovers(&self, form: &Form) -> Vec<Finding> {
        let stays = |finding: &Finding| finding.damage == Damage::HidesNothing;
        self.findings(form).into_iter().filter(|finding| !stays(finding)).collect()
    }

    fn findings(&self, form: &Form) -> Vec<Finding> {
        let open = |name: &str| OwnedFd::from(fs::File::open(self.at(name)).unwrap());
        let view = UpperView::new(open("upper"), form.space, form.ownership);
        let (lower, work) = (open_lower(self.path()).unwrap(), open("work"));
        let subject = Subject { lower: &lower, upper: &view, work: Some(work.as_fd()) };
        check(subject, false).unwrap().findings
    }

    fn at(&self, path: &str) -> PathBuf {
        self.temp.path().join(path)
    }

    /// A fresh union after what comes before the change.
    pub fn begin(&self, change: &Change) -> Union {
        let union = self.begin_empty(change.form);
        (change.row.before)(&Guest(&union)).unwrap();
        union
    }

    /// A union that shows the lower.
    pub fn begin_empty(&self, form: &Form) -> Union {
        for dir in ["upper", "work"] {
            let path = self.at(dir);
            if path.exists() {
                fs::remove_dir_all(&path).unwrap();
            }
            fs::create_dir(&path).unwrap();
        }
        join(self.temp.path(), form).unwrap()
    }

    /// The tree after a remount, which leaves nothing of an operation that is over.
    pub fn tree_after_remount(&self, form: &Form) -> BTreeMap<String, String> {
        let union = join(self.temp.path(), form).unwrap();
        for dir in ["work/work", "work/orphans"] {
            let left = fs::read_dir(self.at(dir)).unwrap().map(|row| row.unwrap().file_name());
            let left: Vec<_> = left.filter(|name| name != "spare").collect();
            assert!(left.is_empty(), "{dir} holds {left:?}");
        }
        Guest(&union).tree()
    }
}

/// A start over what is there. As the daemon, whose umask takes nothing from what a guest makes.
pub fn join(temp: &Path, form: &Form) -> Result<Union, Box<dyn Error>> {
    rustix::process::umask(rustix::fs::Mode::empty());
    let lower = open_lower(temp)?;
    let open = |name: &str| OwnedFd::from(fs::File::open(temp.join(name)).unwrap());
    let Form { space, ownership, attachment, .. } = *form;
    let config = UpperConfig { space, ownership, is_volatile: false, attachment };
    let upper = Upper::open(open("upper"), open("work").as_fd(), config)?;
    Ok(Union::new(lower, upper, false)?)
}

/// Not orderly: nothing that comes with an end has any effect.
pub fn end_at_once(union: Union) {
    fault::freeze_at(1);
    drop(union);
    fault::disarm();
}

fn open_lower(temp: &Path) -> Result<Lower, Box<dyn Error>> {
    let specs = [LowerSpec { path: temp.join("base"), kind: LayerKind::Plain }];
    let (index, _) = open_or_seal(&specs, &temp.join("index"), &mut |_| {})?;
    let policy = LowerPolicy { strictness: Strictness::Strict, on_change: Box::new(|_| {}) };
    Ok(Lower::new(index, open_roots(&specs)?, policy)?)
}
