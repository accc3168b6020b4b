//! The mount table: bytes → mounts → what a freeze takes.
//!
//! Behind a line that is `only` stand mountpoints, one a line, that the freeze is
//! to be of.

use std::collections::HashSet;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;

use postern_broker::fsfreeze::Stacking;
use postern_broker::fsfreeze::mounts::plan;
use postern_core::mountinfo::{Malformed, Mount, parse};

/// Takes an input.
///
/// # Panics
/// Where a table that was read is another one when it is written again, a mistake
/// is not where it is said to be, or a plan leaves out or repeats a filesystem.
pub fn run(input: &[u8]) {
    let end = input.windows(6).position(|window| window == b"\nonly\n");
    let (table, only) = end.map_or((input, None), |end| (&input[..=end], Some(&input[end + 6..])));
    match parse(table) {
        Ok(mounts) => {
            let written: Vec<u8> = mounts.iter().flat_map(line).collect();
            assert_eq!(parse(&written).as_ref(), Ok(&mounts));
            let only: Option<Vec<PathBuf>> = only.map(|only| {
                only.split(|&byte| byte == b'\n').map(|path| OsString::from_vec(path.to_vec()).into()).collect()
            });
            planned(&mounts, only.as_deref());
        }
        Err(Malformed(number)) => {
            let lines: Vec<_> = table.split(|&byte| byte == b'\n').collect();
            assert_eq!(parse(lines[number - 1]), Err(Malformed(1)));
            assert!(parse(&lines[..number - 1].join(&b'\n')).is_ok());
        }
    }
}

fn line(mount: &Mount) -> Vec<u8> {
    let field = |bytes: &[u8]| -> Vec<u8> {
        let escaped = |&byte: &u8| {
            if byte.is_ascii_graphic() && byte != b'\\' { vec![byte] } else { format!("\\{byte:03o}").into_bytes() }
        };
        bytes.iter().flat_map(escaped).collect()
    };
    let Mount { id, parent, device, root, mountpoint, kind, source } = mount;
    let mut line = format!("{id} {parent} {device} ").into_bytes();
    line.extend(field(root.as_os_str().as_bytes()));
    line.push(b' ');
    line.extend(field(mountpoint.as_os_str().as_bytes()));
    line.extend(b" rw - ");
    line.extend(field(kind.as_bytes()));
    line.push(b' ');
    line.extend(field(source.as_os_str().as_bytes()));
    line.extend(b" rw\n");
    line
}

fn planned(mounts: &[Mount], only: Option<&[PathBuf]>) {
    let targets = plan(mounts, only, &Stacking::default());
    let taken: HashSet<_> = targets.iter().map(|target| target.device).collect();
    assert_eq!(taken.len(), targets.len(), "each filesystem once");
    for target in &targets {
        assert_eq!(target.name(), target.candidates[0].mountpoint);
        let of: Vec<&Mount> = mounts.iter().filter(|mount| mount.device == target.device).collect();
        assert_eq!(target.candidates.len(), of.len(), "every way to it");
        let roots = target.candidates.iter().map(|candidate| {
            of.iter().find(|mount| mount.id == candidate.id && mount.mountpoint == candidate.mountpoint)
        });
        assert!(roots.clone().all(|mount| mount.is_some()));
    }
    for mount in mounts {
        let kind = mount.kind.as_bytes();
        let local = kind == b"btrfs" || mount.device.major != 0 && !kind.starts_with(b"fuseblk");
        let named = |only: &[PathBuf]| {
            mounts.iter().any(|other| other.device == mount.device && only.contains(&other.mountpoint))
        };
        if local && only.is_none_or(named) {
            assert!(taken.contains(&mount.device), "{mount:?} is left out");
        }
        if only.is_some_and(|only| !named(only)) {
            assert!(!taken.contains(&mount.device), "{mount:?} was not asked for");
        }
    }
}
