//! File rules: what a path may be opened for, as one pure question.
//!
//! The broker asks it of the path that the host requested, the opener of the
//! path that the kernel resolved, `postern policy test` of both.
//!
//! Trust: the rules come from the checked policy; the path comes from the host
//! and is bytes, not a file: nothing here touches the filesystem.

use std::fmt;
use std::path::{Component, Path, PathBuf};

/// What a file rule lets a host do. A set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rights(u8);

impl Rights {
    /// No right.
    pub const NONE: Self = Self(0);
    /// Read what stands in a file.
    pub const READ: Self = Self(1);
    /// Overwrite and truncate an existing file.
    pub const WRITE: Self = Self(2);
    /// Make a file that is not there, and write the new one.
    pub const CREATE: Self = Self(4);
    /// Add to the end of an existing file, never overwrite.
    pub const APPEND: Self = Self(8);

    /// Every right with its name in a policy file.
    pub const NAMED: [(Self, &'static str); 4] =
        [(Self::READ, "read"), (Self::WRITE, "write"), (Self::CREATE, "create"), (Self::APPEND, "append")];

    /// The set with these bits; `None` if one stands for no right.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        if bits & !0b1111 == 0 { Some(Self(bits)) } else { None }
    }

    /// The bits of the set.
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Both sets together.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether every right of `other` is in this set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl fmt::Display for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names = Self::NAMED.iter().filter(|(right, _)| self.contains(*right)).map(|(_, name)| *name);
        if let Some(first) = names.next() {
            f.write_str(first)?;
        }
        names.try_for_each(|name| write!(f, ", {name}"))
    }
}

/// Which kinds of object a rule lets a host open. A set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Types(u8);

impl Types {
    /// Regular files: what every rule means unless it says otherwise.
    pub const REGULAR: Self = Self(1);
    /// Named pipes.
    pub const FIFO: Self = Self(2);
    /// Character devices.
    pub const CHARACTER: Self = Self(4);
    /// Block devices.
    pub const BLOCK: Self = Self(8);

    /// Every type with its name in a policy file.
    pub const NAMED: [(Self, &'static str); 4] = [
        (Self::REGULAR, "regular"),
        (Self::FIFO, "fifo"),
        (Self::CHARACTER, "character-device"),
        (Self::BLOCK, "block-device"),
    ];

    /// The set with these bits; `None` if empty or if one stands for no type.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        if bits != 0 && bits & !0b1111 == 0 { Some(Self(bits)) } else { None }
    }

    /// The bits of the set.
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Both sets together.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether every type of `other` is in this set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The type of an object with this `st_mode`; `None` for directories,
    /// sockets and links, which are never opened.
    #[must_use]
    pub const fn of_mode(st_mode: u32) -> Option<Self> {
        match st_mode & libc::S_IFMT {
            libc::S_IFREG => Some(Self::REGULAR),
            libc::S_IFIFO => Some(Self::FIFO),
            libc::S_IFCHR => Some(Self::CHARACTER),
            libc::S_IFBLK => Some(Self::BLOCK),
            _ => None,
        }
    }
}

impl Default for Types {
    fn default() -> Self {
        Self::REGULAR
    }
}

impl fmt::Display for Types {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names = Self::NAMED.iter().filter(|(kind, _)| self.contains(*kind)).map(|(_, name)| *name);
        if let Some(first) = names.next() {
            f.write_str(first)?;
        }
        names.try_for_each(|name| write!(f, ", {name}"))
    }
}

/// How a host asks to open a file: an `fopen` mode without its `b`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Mode {
    /// `r`: read.
    Read,
    /// `w`: write, truncated or created.
    Write,
    /// `a`: append, created if missing.
    Append,
    /// `r+`: read and write.
    ReadPlus,
    /// `w+`: read and write, truncated or created.
    WritePlus,
    /// `a+`: read and append, created if missing.
    AppendPlus,
}

impl Mode {
    /// Every mode, by number.
    pub const ALL: [Self; 6] =
        [Self::Read, Self::Write, Self::Append, Self::ReadPlus, Self::WritePlus, Self::AppendPlus];

    /// The mode that an `fopen` text means; `b` is allowed where C allows it.
    #[must_use]
    pub fn from_fopen(text: &str) -> Option<Self> {
        Some(match text {
            "r" | "rb" => Self::Read,
            "w" | "wb" => Self::Write,
            "a" | "ab" => Self::Append,
            "r+" | "rb+" | "r+b" => Self::ReadPlus,
            "w+" | "wb+" | "w+b" => Self::WritePlus,
            "a+" | "ab+" | "a+b" => Self::AppendPlus,
            _ => return None,
        })
    }

    /// The mode as `fopen` text, without `b`.
    #[must_use]
    pub const fn fopen(self) -> &'static str {
        match self {
            Self::Read => "r",
            Self::Write => "w",
            Self::Append => "a",
            Self::ReadPlus => "r+",
            Self::WritePlus => "w+",
            Self::AppendPlus => "a+",
        }
    }

    /// Whether the descriptor can be read.
    #[must_use]
    pub const fn reads(self) -> bool {
        matches!(self, Self::Read | Self::ReadPlus | Self::WritePlus | Self::AppendPlus)
    }

    /// Whether the descriptor can be written.
    #[must_use]
    pub const fn writes(self) -> bool {
        !matches!(self, Self::Read)
    }

    /// Whether every write goes to the end.
    #[must_use]
    pub const fn appends(self) -> bool {
        matches!(self, Self::Append | Self::AppendPlus)
    }

    /// Whether an existing file is emptied.
    #[must_use]
    pub const fn truncates(self) -> bool {
        matches!(self, Self::Write | Self::WritePlus)
    }

    /// Whether a missing file is made.
    #[must_use]
    pub const fn creates(self) -> bool {
        self.truncates() || self.appends()
    }

    /// Whether `rights` suffice to open a file that exists.
    #[must_use]
    pub const fn allowed_on_existing(self, rights: Rights) -> bool {
        let read = !self.reads() || rights.contains(Rights::READ);
        let write = match self {
            Self::Read => true,
            Self::Append | Self::AppendPlus => rights.contains(Rights::WRITE) || rights.contains(Rights::APPEND),
            Self::Write | Self::ReadPlus | Self::WritePlus => rights.contains(Rights::WRITE),
        };
        read && write
    }

    /// Whether `rights` suffice to make the file and open it.
    #[must_use]
    pub const fn allowed_on_missing(self, rights: Rights) -> bool {
        self.creates() && rights.contains(Rights::CREATE) && (!self.reads() || rights.contains(Rights::READ))
    }
}

/// One `[[files]]` rule, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileRule {
    /// Absolute, no `.`, `..` or doubled slash. A directory means all beneath it.
    pub path: PathBuf,
    /// What a host may do there.
    pub rights: Rights,
    /// Paths beneath `path`, in the same form, that the rule does not reach.
    pub except: Vec<PathBuf>,
    /// Whether postern starts although `path` is not there.
    pub optional: bool,
    /// What kinds of object may be opened.
    pub types: Types,
}

impl FileRule {
    /// Whether the rule reaches `path`, its exceptions left out.
    #[must_use]
    pub fn reaches(&self, path: &Path) -> bool {
        path.starts_with(&self.path) && !self.except.iter().any(|except| path.starts_with(except))
    }
}

/// The answer to "may this path be opened so?".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// Rule number `rule` (from 0) allows it: on an existing file, on a
    /// missing one, or both.
    Allowed {
        /// Index of the rule.
        rule: usize,
        /// An existing file may be opened so.
        existing: bool,
        /// A missing file may be made and opened so.
        missing: bool,
    },
    /// The path is relative, or has a `..`, a NUL or an empty name in it.
    NotCanonical,
    /// No rule reaches the path.
    Unreached,
    /// A rule's `except` takes the path out.
    Excepted {
        /// Index of the rule.
        rule: usize,
    },
    /// Rules reach the path, none gives the rights that the mode needs.
    LacksRight {
        /// Index of the closest rule.
        rule: usize,
    },
}

/// Whether `path` names exactly one place: absolute, no `.`, no `..`, no NUL.
/// A rule can only match such a path. Repeated or trailing slashes are
/// refused too: what was asked is then what is on record.
#[must_use]
pub fn is_canonical(path: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let bytes = path.as_os_str().as_bytes();
    let plain = path.components().skip(1).all(|part| matches!(part, Component::Normal(_)));
    bytes.first() == Some(&b'/')
        && plain
        && !bytes.contains(&0)
        && (bytes.len() == 1 || bytes[1..].split(|&byte| byte == b'/').all(|name| !name.is_empty() && name != b"."))
}

/// Asks the rules whether `path` may be opened in `mode`. The longest rule path
/// wins; among rules for the same path, the first that grants the mode.
pub fn decide(rules: &[FileRule], path: &Path, mode: Mode) -> Verdict {
    if !is_canonical(path) {
        return Verdict::NotCanonical;
    }
    let mut excepted = None;
    let mut lacking: Option<usize> = None;
    let mut granted: Option<usize> = None;
    let longer = |best: Option<usize>, index: usize| {
        best.is_none_or(|best| rules[index].path.as_os_str().len() > rules[best].path.as_os_str().len())
    };
    for (index, rule) in rules.iter().enumerate() {
        if !path.starts_with(&rule.path) {
            continue;
        }
        if !rule.reaches(path) {
            if longer(excepted, index) {
                excepted = Some(index);
            }
        } else if mode.allowed_on_existing(rule.rights) || mode.allowed_on_missing(rule.rights) {
            if longer(granted, index) {
                granted = Some(index);
            }
        } else if longer(lacking, index) {
            lacking = Some(index);
        }
    }
    // An exception holds against every rule for the same place or above it: a
    // broader rule elsewhere in the policy does not undo it.
    if let Some(rule) = excepted
        && granted.is_none_or(|granted| !longer(Some(rule), granted))
    {
        return Verdict::Excepted { rule };
    }
    match (granted, lacking) {
        (Some(rule), _) => {
            let rights = rules[rule].rights;
            Verdict::Allowed {
                rule,
                existing: mode.allowed_on_existing(rights),
                missing: mode.allowed_on_missing(rights),
            }
        }
        (None, Some(rule)) => Verdict::LacksRight { rule },
        (None, None) => Verdict::Unreached,
    }
}
