//! Why there is no record, in words for the operator.
//!
//! Trust: paths are the policy's. Callers: the log, and whoever asks it.

use std::path::PathBuf;

use nix::errno::Errno;

/// Why there is no record. The texts are for the operator.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The log's directory is missing.
    #[error("audit directory {path} is not there; make it with: install -d -m 0700 -o {uid} {path}", path = path.display())]
    NoDirectory {
        /// The directory.
        path: PathBuf,
        /// Who has to own it.
        uid: u32,
    },
    /// The path names no file in a directory.
    #[error("'{path}' cannot be an audit log; write an absolute path to a file", path = .0.display())]
    NotAFile(PathBuf),
    /// Somebody else could write the log or lead it elsewhere.
    #[error("{path} cannot be trusted with the audit log: it {what}", path = path.display())]
    Unsafe {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong and what to do.
        what: String,
    },
    /// Opening, making or reading failed.
    #[error("cannot {what} {path}: {text}", path = path.display(), text = errno.desc())]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The kernel's error.
        errno: Errno,
    },
    /// There is no whole record near the end of the file.
    #[error("{path} does not end in audit records; it is evidence: move it away and start again", path = .0.display())]
    NoRecord(PathBuf),
    /// After a rotation the new file already holds something.
    #[error("{path} is not empty after its rotation; records still go to the old file", path = .0.display())]
    NotEmpty(PathBuf),
    /// The directory was removed under the log.
    #[error(
        "the directory of {path} was removed; make it again with: install -d -m 0700 -o {uid}, and restart postern",
        path = path.display()
    )]
    DirectoryGone {
        /// The log.
        path: PathBuf,
        /// Who has to own the directory.
        uid: u32,
    },
    /// A record could not be written.
    #[error("cannot write {path}: {text}", path = path.display(), text = errno.desc())]
    Write {
        /// The log.
        path: PathBuf,
        /// The kernel's error.
        errno: Errno,
    },
    /// A record is in the file, and the disk does not take it.
    #[error("cannot bring {path} to the disk: {text}", path = path.display(), text = errno.desc())]
    Sync {
        /// The log.
        path: PathBuf,
        /// The kernel's error.
        errno: Errno,
    },
    /// The policy's room for the log is spent.
    #[error(
        "audit.max_bytes is spent: {path} and its rotated files take {used} of {max} bytes; move old ones away, then \
         reload postern, or raise audit.max_bytes",
        path = path.display()
    )]
    Spent {
        /// The log.
        path: PathBuf,
        /// What they take.
        used: u64,
        /// What they may take.
        max: u64,
    },
    /// The ring of waiting records is full.
    #[error("too many audit records wait for the log")]
    Full,
}

impl LogError {
    /// The kernel's error, if there was one.
    #[must_use]
    pub const fn errno(&self) -> Option<Errno> {
        match self {
            Self::Io { errno, .. } | Self::Write { errno, .. } | Self::Sync { errno, .. } => Some(*errno),
            _ => None,
        }
    }
}
