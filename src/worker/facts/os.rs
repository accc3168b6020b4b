//! `guest-get-osinfo`, of os-release(5) and what uname(2) says.
//!
//! Trust: root's bytes, of the distribution.

use std::borrow::Cow;

use nix::errno::Errno;
use nix::sys::utsname::uname;
use postern_core::ipc::bundle::Bundle;
use serde::Serialize;

use super::text::assignments;

/// The first that is there counts.
const RELEASES: [&str; 2] = ["/etc/os-release", "/usr/lib/os-release"];

/// What `guest-get-osinfo` returns.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct OsInfo {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kernel_release: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    variant: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pretty_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    variant_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kernel_version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    machine: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
}

impl OsInfo {
    /// What the distribution says of itself, and nothing of the kernel.
    #[must_use]
    pub fn of_release(bundle: &Bundle<'_>) -> Self {
        let mut info = Self::default();
        let release = RELEASES.iter().find_map(|path| bundle.content(path)).unwrap_or_default();
        for (key, value) in assignments(release) {
            let member = match key {
                b"ID" => &mut info.id,
                b"NAME" => &mut info.name,
                b"PRETTY_NAME" => &mut info.pretty_name,
                b"VERSION" => &mut info.version,
                b"VERSION_ID" => &mut info.version_id,
                b"VARIANT" => &mut info.variant,
                b"VARIANT_ID" => &mut info.variant_id,
                _ => continue,
            };
            *member = Some(String::from_utf8_lossy(&unquoted(value)).into_owned());
        }
        info
    }

    /// With what the kernel says of itself.
    ///
    /// # Errors
    /// Those of uname(2).
    pub fn and_kernel(mut self) -> Result<Self, Errno> {
        let kernel = uname()?;
        self.kernel_release = Some(kernel.release().to_string_lossy().into_owned());
        self.kernel_version = Some(kernel.version().to_string_lossy().into_owned());
        self.machine = Some(kernel.machine().to_string_lossy().into_owned());
        Ok(self)
    }

    /// Which distribution, and no more.
    #[must_use]
    pub fn reduced(self) -> Self {
        Self { id: self.id, ..Self::default() }
    }
}

/// A value as a shell would have it: what stands in quotes, or all to the next space.
/// A file may hold no more than that.
fn unquoted(written: &[u8]) -> Cow<'_, [u8]> {
    let until = |end: fn(&u8) -> bool, text: &'_ [u8]| text.iter().position(end).unwrap_or(text.len());
    match written {
        [b'\'', rest @ ..] => Cow::Borrowed(&rest[..until(|byte| *byte == b'\'', rest)]),
        [b'"', rest @ ..] => {
            let mut value = Vec::with_capacity(rest.len());
            let mut bytes = rest.iter().copied().peekable();
            while let Some(byte) = bytes.next().filter(|byte| *byte != b'"') {
                let escaped = bytes.next_if(|next| byte == b'\\' && br#"$`"\"#.contains(next));
                value.push(escaped.unwrap_or(byte));
            }
            Cow::Owned(value)
        }
        bare => Cow::Borrowed(&bare[..until(u8::is_ascii_whitespace, bare)]),
    }
}

#[cfg(test)]
mod tests {
    use postern_core::ipc::bundle::{Gathered, Kind};
    use proptest::prelude::*;

    use super::super::tests::json;
    use super::*;

    fn told(files: &[(&str, &[u8])]) -> OsInfo {
        let mut gathered = Gathered::default();
        for (path, content) in files {
            assert!(gathered.add(Kind::Content, path.as_bytes(), content));
        }
        OsInfo::of_release(&Bundle::read(gathered.bytes()).expect("a bundle"))
    }

    #[test]
    fn what_the_distribution_says_of_itself() {
        let fedora = b"NAME=\"Fedora Linux\"\nVERSION=\"42 (Server Edition)\"\nID=fedora\nVERSION_ID=42\n\
            PRETTY_NAME=\"Fedora Linux 42 (Server Edition)\"\nANSI_COLOR=\"0;34\"\nVARIANT='Server Edition'\n\
            # VARIANT_ID=desktop\n\nVARIANT_ID=server\n";
        let info = told(&[(RELEASES[0], fedora)]);
        let all = r#"{"name": "Fedora Linux", "version": "42 (Server Edition)", "variant": "Server Edition", "pretty-name": "Fedora Linux 42 (Server Edition)", "version-id": "42", "variant-id": "server", "id": "fedora"}"#;
        assert_eq!(json(&info), all);
        assert_eq!(json(&info.reduced()), r#"{"id": "fedora"}"#);
    }

    #[test]
    fn what_the_kernel_says_of_itself() {
        let told = OsInfo::default().and_kernel().expect("uname");
        let version = std::fs::read_to_string("/proc/sys/kernel/version").expect("a version");
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("a release");
        assert_eq!(told.kernel_version.as_deref(), Some(version.trim_end()));
        assert_eq!(told.kernel_release.as_deref(), Some(release.trim_end()));
        assert_eq!(told.machine.as_deref(), Some(std::env::consts::ARCH));
        assert_eq!(told.reduced(), OsInfo::default());
    }

    #[test]
    fn the_administrators_file_counts_before_the_distributions() {
        assert_eq!(json(&told(&[(RELEASES[0], b"ID=mine"), (RELEASES[1], b"ID=theirs")])), r#"{"id": "mine"}"#);
        assert_eq!(json(&told(&[(RELEASES[1], b"ID=theirs")])), r#"{"id": "theirs"}"#);
        assert_eq!(json(&told(&[])), "{}");
    }

    #[test]
    fn values_as_a_shell_has_them() {
        for (written, value) in [
            (r#""dou 'b\"l\$e \\ \n \` end" # rest"#, "dou 'b\"l$e \\ \\n ` end"),
            (r"'sin \ $x' rest", r"sin \ $x"),
            ("  \t spaced  ", "spaced"),
            (r"de\bi\$an x", r"de\bi\$an"),
            (r#"a"b"c"#, r#"a"b"c"#),
            ("\"unterminated", "unterminated"),
            ("'unterminated", "unterminated"),
            ("\"end\\", "end\\"),
            ("\"\"", ""),
            ("", ""),
            ("a=b\r", "a=b"),
        ] {
            let info = told(&[(RELEASES[0], format!("ID=first\nnonsense\n\tID ={written}\n").as_bytes())]);
            assert_eq!(info.id.as_deref(), Some(value), "{written}");
        }
        assert_eq!(told(&[(RELEASES[0], b"NAME=\"\xffx\"")]).name.as_deref(), Some("\u{FFFD}x"));
    }

    proptest! {
        #[test]
        fn what_is_quoted_comes_back(value in "[^\n\0]{0,60}") {
            let quoted: String = value
                .chars()
                .flat_map(|char| "$`\"\\".contains(char).then_some('\\').into_iter().chain([char]))
                .collect();
            let info = told(&[(RELEASES[0], format!("NAME=\"{quoted}\"\n").as_bytes())]);
            prop_assert_eq!(info.name, Some(value));
        }
    }
}
