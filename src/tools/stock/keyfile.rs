//! Stock's configuration file: groups, keys, values, as `GLib`'s key files have
//! them. Pure.
//!
//! Lines are `[group]`, `key = value`, comments that begin with `#`, or blank.
//! Blanks before a line, around the `=` and behind a group are nothing; behind a
//! value they belong to it. The last of several values of a key counts.
//!
//! Trust: the file's owner and mode were checked by who read it.

/// What a file says, in its order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyFile {
    entries: Vec<Entry>,
}

/// One line with a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The group above it.
    pub group: String,
    /// Its key.
    pub key: String,
    /// Its value, escapes and all.
    raw: String,
}

impl KeyFile {
    /// Reads a file's text.
    ///
    /// # Errors
    /// A line that is none of the four kinds, or a value before the first
    /// group: where, and what to write.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut entries = Vec::new();
        let mut group = None;
        for (number, line) in (1..).zip(text.split('\n')) {
            let line = line.trim_end_matches('\r').trim_ascii_start();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Some(rest) = line.strip_prefix('[') {
                let name = rest.trim_end_matches([' ', '\t']).strip_suffix(']').filter(|name| is_group(name));
                group = Some(name.ok_or_else(|| format!("line {number}: no group; write [general]"))?.to_owned());
                continue;
            }
            let (key, value) = line.split_once('=').map_or(("", ""), |(key, value)| (key.trim_ascii_end(), value));
            if key.is_empty() {
                return Err(format!("line {number}: neither a group, nor key=value, nor a comment with # in front"));
            }
            let Some(group) = &group else {
                return Err(format!("line {number}: a value before the first group; write [general] above it"));
            };
            entries.push(Entry { group: group.clone(), key: key.to_owned(), raw: value.trim_ascii_start().to_owned() });
        }
        Ok(Self { entries })
    }

    /// Every value, in the file's order.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }
}

fn is_group(name: &str) -> bool {
    !name.is_empty() && !name.contains(|c: char| c == '[' || c == ']' || c.is_control())
}

impl Entry {
    /// The value as text, escapes resolved: `\s` (space), `\n`, `\t`, `\r`, `\\`.
    ///
    /// # Errors
    /// Another escape, or a lone `\` at the end.
    pub fn text(&self) -> Result<String, String> {
        let mut text = String::with_capacity(self.raw.len());
        let mut characters = self.raw.chars();
        while let Some(character) = characters.next() {
            if character != '\\' {
                text.push(character);
                continue;
            }
            text.push(match characters.next() {
                Some('s') => ' ',
                Some('n') => '\n',
                Some('t') => '\t',
                Some('r') => '\r',
                Some('\\') => '\\',
                _ => return Err(format!("{}: write a backslash as \\\\", self.key)),
            });
        }
        Ok(text)
    }

    /// The value as yes or no.
    ///
    /// # Errors
    /// Anything but `true`, `false`, `1` and `0`.
    pub fn flag(&self) -> Result<bool, String> {
        match self.raw.trim_ascii_end() {
            "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            other => Err(format!("{}: '{other}' is neither true nor false", self.key)),
        }
    }
}

/// A text as it stands behind `key=`: what [`Entry::text`] reads back.
#[must_use]
pub fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    let mut leading = true;
    for character in text.chars() {
        match character {
            ' ' if leading => escaped.push_str("\\s"),
            '\t' if leading => escaped.push_str("\\t"),
            '\n' => escaped.push_str("\\n"),
            '\r' => escaped.push_str("\\r"),
            '\\' => escaped.push_str("\\\\"),
            _ => escaped.push(character),
        }
        leading &= matches!(character, ' ' | '\t');
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(line: &str) -> Entry {
        let file = KeyFile::parse(&format!("[general]\n{line}\n")).unwrap();
        let [entry] = file.entries.as_slice() else { panic!("{file:?}") };
        entry.clone()
    }

    #[test]
    fn blanks_count_where_glib_counts_them() {
        let entry = one("  path = /a b ");
        assert_eq!((entry.key.as_str(), entry.text().unwrap().as_str()), ("path", "/a b "));
        assert_eq!(one("path=/a\r").text().unwrap(), "/a");
        assert_eq!(one("verbose=1 ").flag(), Ok(true));
        // As stock 7.2: a form feed is a blank, what only Unicode or C calls so
        // belongs to the value.
        assert_eq!(one("path=\x0c/a").text().unwrap(), "/a");
        assert_eq!(one("path=\x0b/a").text().unwrap(), "\x0b/a");
        assert_eq!(one("path=\u{a0}/a").text().unwrap(), "\u{a0}/a");
        assert_eq!(one("verbose=true\x0c").flag(), Ok(true));
        assert!(one("verbose=true\x0b").flag().is_err());
        assert!(KeyFile::parse("[general]\x0c\n").is_err());
        let file = KeyFile::parse("\n  # hi\n  [general]  \nverbose=0").unwrap();
        assert_eq!(file.entries[0].group, "general");
        assert_eq!(file.entries[0].flag(), Ok(false));
    }

    #[test]
    fn what_is_no_line_is_refused_with_its_number() {
        for (text, line) in [
            ("garbage\n", 1),
            ("[general]\ngarbage\n", 2),
            ("[general]\n=x\n", 2),
            ("verbose=1\n[general]\n", 1),
            ("[general] x\n", 1),
            ("[gene ral\n", 1),
            ("[general]\npath=/a # no comment\n; x\n", 3),
        ] {
            let error = KeyFile::parse(text).unwrap_err();
            assert!(error.starts_with(&format!("line {line}:")), "{text:?}: {error}");
        }
        assert_eq!(KeyFile::parse("").unwrap(), KeyFile::default());
    }

    #[test]
    fn values_that_cannot_be_read_are_refused() {
        for bad in ["verbose=yes", "verbose=TRUE", "verbose=2", "verbose=true false", "verbose="] {
            assert!(one(bad).flag().is_err(), "{bad}");
        }
        for bad in ["path=/a\\qb", "path=/a\\", "path=a\\;b"] {
            assert!(one(bad).text().is_err(), "{bad}");
        }
        assert_eq!(one("path=/a\\sb\\tc\\\\d\\n").text().unwrap(), "/a b\tc\\d\n");
    }

    #[test]
    fn what_is_written_reads_back() {
        for text in ["", "/a b", "  \t/x\ty ", "a\\b\nc\r", "\\s", "ä"] {
            assert_eq!(one(&format!("path={}", escaped(text))).text().unwrap(), text);
        }
        assert_eq!(escaped(" /a\tb "), "\\s/a\tb ");
    }
}
