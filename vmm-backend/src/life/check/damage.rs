//! What can be wrong with an upper, what is said of it, and how it can be mended.

use crate::filesystem::Errno;
use crate::layer::mark::Mark;

/// What is wrong with one object.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Damage {
    /// A mark of another program, or of a later version.
    #[error("carries the mark {0}, which this version does not read")]
    UnknownMark(String),
    /// A mark whose value means nothing.
    #[error("its mark {name} has a value that means nothing")]
    BadValue {
        /// The attribute.
        name: String,
        /// The mark it is.
        mark: Mark,
        /// The object needs no such mark.
        is_spare: bool,
    },
    /// A mark that says nothing on an object of this kind.
    #[error("carries the mark {name}, which means nothing on {kind}")]
    Misplaced {
        /// The attribute.
        name: String,
        /// The mark it is.
        mark: Mark,
        /// What the object is.
        kind: &'static str,
    },
    /// A mark of an unsettled file on one that has all its data.
    #[error("carries the mark {name}, which a file with all its data does not need")]
    Spent {
        /// The attribute.
        name: String,
        /// The mark it is.
        mark: Mark,
    },
    /// A redirect with steps that are no names.
    #[error("is redirected to {0:?}, which is no path below the base's root")]
    RedirectClimbs(String),
    /// A redirect to something that is no directory of the base.
    #[error("is redirected to {to:?}, which is no directory of this base")]
    RedirectDangles {
        /// The redirect.
        to: String,
        /// The lower directory that its origin names.
        home: Option<Vec<u8>>,
    },
    /// An origin of another base.
    #[error("names an origin in another base")]
    OriginElsewhere {
        /// It has all it shows without it.
        is_whole: bool,
    },
    /// An origin that is no object of the base which could have become this one.
    #[error("names object {object} of the base as its origin, which is none of its kind")]
    OriginOfNothing {
        /// The number.
        object: u32,
        /// It has all it shows without it.
        is_whole: bool,
    },
    /// Two objects that would have one number.
    #[error("names the same origin as /{with}: both would be one object to a guest")]
    OriginTwice {
        /// The other one.
        with: String,
        /// It has all it shows without it.
        is_whole: bool,
    },
    /// A file without data whose data is nowhere.
    #[error("is a metacopy, and its data is nowhere in this base")]
    NoData,
    /// The lower file that has the data cannot be used.
    #[error("is a metacopy of /{lower}, which cannot be read: {cause}")]
    LowerLost {
        /// The lower file.
        lower: String,
        /// Why not.
        cause: Errno,
    },
    /// The lower file that has the data is not what it was.
    #[error("is a metacopy of /{lower}, which has changed since")]
    LowerChanged {
        /// The lower file.
        lower: String,
    },
    /// The map of an unsettled file is not there.
    #[error("its map, blocks/{map} in the work directory, is gone")]
    NoMap {
        /// The map's name.
        map: String,
    },
    /// The map of an unsettled file has no bits for its end.
    #[error("its map, blocks/{map} in the work directory, is cut off")]
    ShortMap {
        /// The map's name.
        map: String,
    },
    /// Two files with one map.
    #[error("its map, blocks/{map} in the work directory, is that of /{with} too")]
    SharedMap {
        /// The map's name.
        map: String,
        /// The other file.
        with: String,
    },
    /// The owner cannot be read, or says that a file is a directory.
    #[error("its owner mark {0:?} cannot be read, or does not fit what it is on")]
    BadOwner(String),
    /// The kernel's overlayfs would show wrong numbers in a directory.
    #[error("is not marked as a directory that holds copied-up objects, and does hold some")]
    NotImpure,
    /// A whiteout that hides nothing.
    #[error("is a whiteout, and no lower has the name")]
    HidesNothing,
    /// An object that cannot be looked at.
    #[error("cannot be looked at: {0}")]
    Unreadable(Errno),
    /// What was on its way into the upper.
    #[error("was on its way into the upper")]
    Staged,
    /// What a guest held that is gone.
    #[error("has no name, and the guest that held it is gone")]
    Orphan,
    /// A map of nothing.
    #[error("is the map of no file")]
    LooseMap,
    /// Something that is not ours.
    #[error("is nothing that this version puts there")]
    Stranger,
    /// Another program's, or a later version's, way to say that it must not be served.
    #[error("says that this upper must not be used without knowing the feature {0:?}")]
    Feature(String),
    /// A hard link that no name leads to.
    #[error("is a copied-up hard link that no name of the union leads to")]
    LinkUnused,
    /// A hard link of something else.
    #[error("is a copied-up hard link of nothing in this base")]
    LinkOfNothing,
    /// A wrong count of names.
    #[error("counts {counted} names in the union, and has {names}")]
    WrongLinks {
        /// What its mark says.
        counted: u32,
        /// What there is.
        names: u32,
        /// What its mark has to say: names in the union beyond those in the upper.
        more: i32,
    },
}

/// How damage is mended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Remedy {
    /// Not without inventing something; what its owner can do.
    None(&'static str),
    /// The mark goes.
    RemoveMark(Mark),
    /// It goes.
    Remove,
    /// It is redirected to this lower path.
    SetRedirect(Vec<u8>),
    /// It is marked.
    MarkImpure,
    /// Its links are counted so.
    SetLinks(i32),
}

const DELETE: &str = "remove the object from the upper, or give the base it was made over";

impl Damage {
    /// How it is mended.
    pub fn remedy(&self) -> Remedy {
        match self {
            Self::BadValue { is_spare: true, mark, .. }
            | Self::Misplaced { mark, .. }
            | Self::Spent { mark, .. } => Remedy::RemoveMark(*mark),
            Self::OriginElsewhere { is_whole: true }
            | Self::OriginOfNothing { is_whole: true, .. }
            | Self::OriginTwice { is_whole: true, .. } => Remedy::RemoveMark(Mark::OwnOrigin),
            Self::RedirectDangles { home: Some(home), .. } => Remedy::SetRedirect(home.clone()),
            Self::NotImpure => Remedy::MarkImpure,
            Self::HidesNothing
            | Self::Staged
            | Self::Orphan
            | Self::LooseMap
            | Self::LinkUnused => Remedy::Remove,
            Self::WrongLinks { more, .. } => Remedy::SetLinks(*more),
            Self::UnknownMark(_) | Self::BadValue { .. } => {
                Remedy::None("use the program that wrote it, or remove the mark")
            }
            Self::Feature(_) => {
                Remedy::None("use the kernel that wrote it, or remove it if you accept the loss")
            }
            Self::Stranger | Self::LinkOfNothing => Remedy::None("look at it, and remove it"),
            Self::BadOwner(_) => Remedy::None("set it, or remove the object from the upper"),
            Self::Unreadable(_) => Remedy::None("look at it on the host"),
            Self::LowerLost { .. } | Self::LowerChanged { .. } => {
                Remedy::None("put the lower file back as it was, or remove the object")
            }
            _ => Remedy::None(DELETE),
        }
    }

    /// Whether a crash may leave it, and no guest ever sees it.
    pub const fn is_leftover(&self) -> bool {
        matches!(
            self,
            Self::Spent { .. }
                | Self::HidesNothing
                | Self::Staged
                | Self::Orphan
                | Self::LooseMap
                | Self::LinkUnused
        )
    }
}

impl Remedy {
    /// What a repair does, in words.
    pub fn told(&self) -> String {
        match self {
            Self::None(advice) => format!("cannot be repaired: {advice}"),
            Self::RemoveMark(Mark::OwnOrigin) => {
                "repair makes it an object of the upper alone, with a number of its own".to_owned()
            }
            Self::RemoveMark(_) => "repair removes the mark".to_owned(),
            Self::Remove => "repair removes it".to_owned(),
            Self::SetRedirect(path) => {
                format!("repair redirects it to its origin, /{}", path.escape_ascii())
            }
            Self::MarkImpure => "repair marks it".to_owned(),
            Self::SetLinks(_) => "repair sets the count".to_owned(),
        }
    }
}
