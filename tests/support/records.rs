//! What every log of the test suite must hold: records that the published schema
//! takes, and none of the strings that tests put where no record may take them
//! from.
//!
//! [`Home`](super::agent::Home) looks at all its logs when it goes; tests on
//! virtual machines hand over what they copied out.
#![allow(dead_code, reason = "each test target uses its part")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, PoisonError};

use jsonschema::Validator;
use serde_json::Value;

const SCHEMA: &str = include_str!("../../audit/record.schema.json");

static VALIDATOR: LazyLock<Validator> = LazyLock::new(|| {
    let schema: Value = serde_json::from_str(SCHEMA).expect("the schema is JSON");
    jsonschema::validator_for(&schema).expect("the schema is a schema")
});

/// What a test writes into files, sends as data, password, key or in broken JSON,
/// so that every home's logs can be searched for it.
pub(crate) const CANARY: &str = "canary-7Qm2-of-the-content";
/// [`CANARY`] in base64.
pub(crate) const CANARY_BASE64: &str = "Y2FuYXJ5LTdRbTItb2YtdGhlLWNvbnRlbnQ=";
/// What of either is enough to betray it.
const TRACES: [&str; 4] = ["canary-7Qm2", "7Qm2-of-the", "Y2FuYXJ5LTdRbTIt", "LTdRbTItb2YtdGhl"];

/// Whether a text holds anything of the canary.
pub(crate) fn betrays(text: &[u8]) -> Option<&'static str> {
    TRACES.into_iter().find(|trace| memchr::memmem::find(text, trace.as_bytes()).is_some())
}

/// Holds every line of a log against the schema. What a full disk or a test tore
/// is no record: `postern audit verify` tells of that.
pub(crate) fn check_log(name: &str, text: &[u8]) -> usize {
    let mut records = 0;
    for line in text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
        let Ok(record) = serde_json::from_slice::<Value>(line) else { continue };
        records += 1;
        if !VALIDATOR.is_valid(&record) {
            let errors: Vec<String> =
                VALIDATOR.iter_errors(&record).map(|error| format!("{}: {error}", error.instance_path())).collect();
            panic!("{name}: no record as audit/record.schema.json has it: {errors:#?}\n{record:#}");
        }
    }
    records
}

/// Checks whatever lines of a text look like records, such as what a guest's shell
/// printed.
pub(crate) fn check_printed(name: &str, text: &str) {
    let records = text.lines().filter(|line| line.starts_with("{\"@timestamp\":\""));
    records.for_each(|record| _ = check_log(name, record.as_bytes()));
}

/// How much of each file was looked at, by device and inode: agents of one home
/// end one after another, and logs of a test under load are long.
static SEEN: Mutex<BTreeMap<(u64, u64), usize>> = Mutex::new(BTreeMap::new());

/// Checks what agents have left behind since the last look: logs, also rotated
/// ones, and what they told their operator.
pub(crate) fn check_home(logs: &Path, stderr: &Path) {
    for path in files(logs).iter().map(PathBuf::as_path).chain([stderr]) {
        // Gone meanwhile, or on a filesystem that a test has taken away.
        let (Ok(facts), Ok(text)) = (fs::metadata(path), fs::read(path)) else { continue };
        let mut all_seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = all_seen.entry((facts.dev(), facts.ino())).or_default();
        let new = text.get(*seen..).unwrap_or(&text);
        // What is not yet a whole line is looked at again.
        *seen = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        drop(all_seen);
        let name = path.display().to_string();
        assert_eq!(betrays(new), None, "in {name}");
        // What logrotate compressed has lines by chance, and by chance one of a digit.
        let is_log = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("audit"));
        if path != stderr && is_log && path.extension().is_none_or(|extension| extension != "gz") {
            check_log(&name, new);
        }
    }
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|path| path.symlink_metadata().is_ok_and(|facts| facts.is_file())).collect()
}
