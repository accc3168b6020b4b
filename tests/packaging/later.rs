//! The same package of a later version, for tests of an upgrade.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Made in `directory`: version 9, with another policy and other log rotation,
/// each marked by the word "Later".
pub(crate) fn later(package: &Path, directory: &Path) -> PathBuf {
    let (tree, made) = (directory.join("later"), directory.join("later.deb"));
    dpkg_deb(Command::new("dpkg-deb").arg("-R").arg(package).arg(&tree));
    for (file, from, to) in [
        ("DEBIAN/control", "\nVersion: 0.", "\nVersion: 9."),
        ("etc/postern/policy.toml", "# The default policy", "# Later: the default policy"),
        ("etc/logrotate.d/postern", "# Rotation", "# Later: rotation"),
    ] {
        let text = fs::read_to_string(tree.join(file)).expect("a file of the package");
        assert!(text.contains(from), "{file}: {text}");
        fs::write(tree.join(file), text.replacen(from, to, 1)).expect("a file of the package");
    }
    dpkg_deb(Command::new("dpkg-deb").args(["-b", "--root-owner-group"]).arg(&tree).arg(&made));
    made
}

fn dpkg_deb(command: &mut Command) {
    let output = command.output().expect("dpkg-deb");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
