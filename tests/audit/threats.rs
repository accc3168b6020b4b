//! The threat model and the list of past flaws name the tests that prove them:
//! each of these is in the tree and is run, each cell has one, no id is idle.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Words of a cell that stand for no test: what is left, and who is trusted.
const WORDS: [&str; 1] = ["left"];

fn page(name: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join("audit").join(name)).unwrap_or_else(|why| panic!("{name}: {why}"))
}

/// The rows of each table, header first, without the line of dashes.
fn tables(text: &str) -> Vec<Vec<Vec<String>>> {
    let mut tables = vec![Vec::new()];
    for line in text.lines() {
        if !line.starts_with('|') {
            tables.push(Vec::new());
            continue;
        }
        let cells = line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned());
        if !line.starts_with("|---") {
            tables.last_mut().expect("one").push(cells.collect());
        }
    }
    tables.retain(|table| !table.is_empty());
    tables
}

/// Every id of a page's table of proofs, with its tests.
fn proofs(text: &str) -> BTreeMap<String, Vec<String>> {
    let all = tables(text);
    let table = all.iter().find(|table| table[0][0] == "id").expect("a table of proofs");
    let mut found = BTreeMap::new();
    for row in &table[1..] {
        let tests: Vec<String> = row[2].split(", ").map(|test| test.trim_matches('`').to_owned()).collect();
        assert!(found.insert(row[0].clone(), tests).is_none(), "{} is explained twice", row[0]);
    }
    found
}

/// Whether a test of this name, `file::test`, is in the tree and is run.
fn is_run(name: &str) -> Result<(), String> {
    let (file, test) = name.split_once("::").ok_or("not `file::test`")?;
    let path = if file.starts_with("src/") { format!("{file}.rs") } else { format!("tests/{file}.rs") };
    let path = Path::new(ROOT).join(path);
    let text = fs::read_to_string(&path).map_err(|why| format!("{}: {why}", path.display()))?;
    // Registered under this name with the runner.
    if text.contains(&format!("(\"{test}\",")) || text.contains(&format!("\"{test}\",\n")) {
        return Ok(());
    }
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let is = |line: &str| {
        line.trim_start_matches("pub(crate) ").trim_start_matches("pub(super) ").starts_with(&format!("fn {test}("))
    };
    let at = lines.iter().position(|line| is(line)).ok_or("no such test in that file")?;
    let attributes = lines[..at].iter().rev().take_while(|line| line.starts_with('#') || line.starts_with("//"));
    if attributes.clone().any(|line| *line == "#[test]") {
        return Ok(());
    }
    Err("it is neither registered nor a #[test]".to_owned())
}

/// The ids of a cell; panics at anything else but a word.
fn ids<'a>(cell: &'a str, known: &BTreeMap<String, Vec<String>>, place: &str) -> Vec<&'a str> {
    let ids: Vec<&str> = cell.split_whitespace().filter(|id| !WORDS.contains(id)).collect();
    for id in &ids {
        assert!(known.contains_key(*id), "{place}: {id} is explained nowhere");
    }
    ids
}

#[test]
fn every_test_that_is_named_is_in_the_tree() {
    let mut named = BTreeSet::new();
    for tests in proofs(&page("THREATS.md")).into_values() {
        named.extend(tests);
    }
    for row in &cves() {
        named.extend(row.tests.iter().cloned());
    }
    let wrong: Vec<String> = named.iter().filter_map(|name| Some(format!("{name}: {}", is_run(name).err()?))).collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    assert!(named.len() > 100, "the control: {} tests are named", named.len());
    for nonsense in ["hostile::no_such_test", "nowhere::no_name_leads_outside", "support/agent::eventually"] {
        assert!(is_run(nonsense).is_err(), "the control: {nonsense}");
    }
}

#[test]
fn no_cell_of_the_threat_model_lacks_a_test() {
    let text = page("THREATS.md");
    let known = proofs(&text);
    let mut used = BTreeSet::new();
    let mut cells = 0;
    for table in tables(&text) {
        let header = &table[0];
        let full = header[0].is_empty();
        let sparse = header.last().is_some_and(|last| last == "record");
        let proved = header.last().is_some_and(|last| last == "proof");
        for row in table.iter().skip(1).filter(|_| full || sparse || proved) {
            assert_eq!(row.len(), header.len(), "{}", row[0]);
            let from = if proved { row.len() - 1 } else { 1 };
            let mut of_row = 0;
            for (cell, column) in row[from..].iter().zip(&header[from..]) {
                let place = format!("{} × {column}", row[0]);
                let found = ids(cell, &known, &place);
                assert!(sparse || !cell.is_empty(), "{place} is empty");
                of_row += cell.split_whitespace().count();
                cells += usize::from(!found.is_empty());
                used.extend(found.into_iter().map(str::to_owned));
            }
            assert!(of_row > 0, "{}: nothing in the whole row", row[0]);
        }
    }
    let idle: Vec<&String> = known.keys().filter(|id| !used.contains(*id)).collect();
    assert!(idle.is_empty(), "explained and used nowhere: {idle:?}");
    assert!(cells > 100, "the control: {cells} cells");
}

/// A past flaw of somebody else's.
struct Flaw {
    id: String,
    source: String,
    verdict: String,
    tests: Vec<String>,
}

fn cves() -> Vec<Flaw> {
    let mut flaws = Vec::new();
    for table in tables(&page("CVES.md")) {
        if table[0][0] != "id" {
            continue;
        }
        for row in &table[1..] {
            assert_eq!(row.len(), 5, "{}", row[0]);
            let (id, source) = row[0].trim_start_matches('[').split_once("](").expect("an id with its source");
            let tests =
                row[4].split(", ").filter(|test| !test.is_empty()).map(|test| test.trim_matches('`').to_owned());
            flaws.push(Flaw {
                id: id.to_owned(),
                source: source.trim_end_matches(')').to_owned(),
                verdict: row[3].clone(),
                tests: tests.collect(),
            });
        }
    }
    flaws
}

#[test]
fn every_past_flaw_has_a_source_a_verdict_and_a_test() {
    let flaws = cves();
    let mut seen = BTreeSet::new();
    for Flaw { id, source, verdict, tests } in &flaws {
        assert!(seen.insert(id), "{id} stands twice");
        assert_eq!(*source, format!("https://www.cve.org/CVERecord?id={id}"), "{id}");
        assert!(verdict.len() > 40, "{id}: {verdict}");
        assert!(!tests.is_empty(), "{id} names no test");
    }
    assert!(flaws.len() >= 25, "{} flaws", flaws.len());
}

#[test]
fn the_pages_are_part_of_the_package() {
    let manifest = fs::read_to_string(PathBuf::from(ROOT).join("Cargo.toml")).expect("Cargo.toml");
    assert!(manifest.contains("audit/*.md"), "the package has them");
    assert!(page("THREATS.md").contains("(CVES.md)"), "they know of each other");
}
