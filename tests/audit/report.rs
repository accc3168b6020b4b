//! `postern audit report`: its figures are those of the log, its page is one
//! that can be opened, and hostile strings are only text.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use base64::Engine as _;
use postern_core::audit::{Hash, is_harmful};
use serde_json::Value;

use crate::log::{place, whole};
use crate::reading::run;
use crate::story::{HOSTILE, days};

fn report(arguments: &[&str], files: &[&Path]) -> (Option<i32>, String) {
    let output = run(&[&["report"], arguments].concat(), files);
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    (output.status.code(), String::from_utf8(output.stdout).expect("UTF-8"))
}

/// Rows of a table of the text and its notes, without the heading: cells are
/// apart by two spaces or more.
fn rows(text: &str, title: &str) -> Vec<Vec<String>> {
    let table = text.split(&format!("\n{title}\n")).nth(1).unwrap_or_else(|| panic!("{title}: {text}"));
    let table = table.split("\n\n").next().expect("one");
    let split =
        |line: &str| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).map(str::to_owned).collect();
    table.lines().skip(1).map(split).collect()
}

#[test]
fn figures_are_those_of_the_log() {
    let place = place();
    let mut bytes = Vec::new();
    days(&mut bytes);
    fs::write(&place.path, &bytes).expect("written");
    let records: Vec<Value> = bytes
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).expect("JSON"))
        .collect();
    let (status, text) = report(&[], &[&place.path]);
    assert_eq!(status, Some(0));
    assert!(text.starts_with(&whole(&[&place.path]).to_string()), "{text}");

    // Counted by the test itself: opens, refusals and bytes per path.
    let mut opened = BTreeMap::<&str, (u64, u64, u64)>::new();
    let mut refused = 0;
    for record in &records {
        let path = record["file"]["path"].as_str().unwrap_or_default();
        match (record["event"]["action"].as_str(), record["postern"]["stage"].as_str()) {
            (Some("guest-file-open"), Some("granted")) => opened.entry(path).or_default().0 += 1,
            (Some("guest-file-open"), Some("refused")) => refused += 1,
            (Some("guest-file-close"), _) => {
                let ours = &record["postern"]["self_reported"];
                let used = opened.entry(path).or_default();
                used.1 += ours["bytes_read"].as_u64().unwrap_or(0);
                used.2 += ours["bytes_written"].as_u64().unwrap_or(0);
            }
            _ => {}
        }
    }
    let table = rows(&text, "FILES THAT WERE OPENED");
    assert!(opened.len() >= 4);
    for (path, (count, read, _)) in opened.iter().filter(|(path, _)| !path.contains(['<', '"', '\u{1b}'])) {
        let row = table.iter().find(|row| row.last().is_some_and(|last| last == path));
        let row = row.unwrap_or_else(|| panic!("{path} is not in {text}"));
        if *count > 0 {
            assert_eq!(row[0], count.to_string(), "{row:?}");
        }
        // 1024 and less is written out.
        assert!(*read <= 1023 || row.iter().any(|cell| cell.ends_with("KiB") || cell.ends_with("MiB")), "{row:?}");
    }
    assert!(text.contains(&format!("{refused} opens refused")), "{text}");
    assert!(text.contains(&format!("{} records (", records.len())), "{text}");
    assert_eq!(rows(&text, "DAYS").len(), 5);
    assert_eq!(rows(&text, "HOST SESSIONS").len(), 5);
    assert_eq!(rows(&text, "FREEZES").len(), 5);
    let alarms: Vec<String> = rows(&text, "TO LOOK AT").into_iter().map(|row| row[0].clone()).collect();
    for expected in ["records lost", "forbidden system calls", "malformed frames", "thaws at the time limit"] {
        assert!(alarms.iter().any(|alarm| alarm == expected), "{expected}: {alarms:?}");
    }
    assert!(!text.chars().any(|character| character != '\n' && is_harmful(character)));
}

#[test]
fn the_same_log_makes_the_same_report() {
    let place = place();
    let mut bytes = Vec::new();
    days(&mut bytes);
    let half = bytes[..bytes.len() / 2].iter().rposition(|byte| *byte == b'\n').expect("a line") + 1;
    let older = place.path.with_extension("log.1");
    fs::write(&older, &bytes[..half]).expect("written");
    fs::write(&place.path, &bytes[half..]).expect("written");
    for form in [&[][..], &["--html"]] {
        let first = report(form, &[&older, &place.path]);
        assert_eq!(first, report(form, &[&older, &place.path]));
        // Files come in the order of their records, whatever a shell makes of it.
        assert_eq!(first, report(form, &[&place.path, &older]));
    }
    // The rest of a table is summed up.
    let (_, text) = report(&["--top", "2"], &[&older, &place.path]);
    assert_eq!(rows(&text, "FILES THAT WERE OPENED").len(), 2 + 1, "and a note");
    assert!(text.contains(" more, with "), "{text}");
}

#[test]
fn a_broken_log_is_reported_as_broken() {
    let place = place();
    let mut bytes = Vec::new();
    days(&mut bytes);
    let text = String::from_utf8(bytes).expect("UTF-8").replacen("access.log", "excess.log", 1);
    fs::write(&place.path, format!("{text}\u{1b}[2Jno record\n")).expect("written");
    let (status, text) = report(&[], &[&place.path]);
    assert_eq!(status, Some(1));
    assert!(text.starts_with("BROKEN: "), "{text}");
    assert!(text.contains("lines that are no record"), "lines behind the break are read, too: {text}");
    let (status, page) = report(&["--html"], &[&place.path]);
    assert_eq!(status, Some(1));
    assert!(page.contains("<section class=\"verdict broken\">") && !page.contains("verdict whole"));
    parse(&page);
    // Nothing at all is a report, too.
    fs::write(&place.path, "").expect("written");
    let (status, page) = report(&["--html"], &[&place.path]);
    assert_eq!(status, Some(1));
    parse(&page);
    assert_eq!(report(&[], &[&place.path]).0, Some(1));
}

/// Elements and attributes that a page may have: none of them loads, runs, or
/// leads anywhere.
const ELEMENTS: [&str; 38] = [
    "html", "head", "meta", "title", "style", "body", "main", "header", "footer", "section", "div", "p", "h1", "h2",
    "b", "i", "span", "small", "code", "table", "thead", "tbody", "tr", "th", "td", "svg", "path", "rect", "line",
    "text", "br", "ul", "li", "dl", "dt", "dd", "strong", "em",
];
const ATTRIBUTES: [&str; 24] = [
    "lang",
    "charset",
    "http-equiv",
    "content",
    "name",
    "class",
    "id",
    "scope",
    "viewBox",
    "role",
    "aria-label",
    "aria-hidden",
    "d",
    "x",
    "y",
    "x1",
    "x2",
    "y1",
    "y2",
    "width",
    "height",
    "rx",
    "cx",
    "cy",
];

/// Reads a page as XML, in which every element ends: texts by element.
fn parse(page: &str) -> Vec<(String, String)> {
    let rest = page.strip_prefix("<!DOCTYPE html>\n").expect("a doctype");
    let (mut texts, mut open) = (Vec::new(), Vec::<&str>::new());
    let mut rest = rest.trim_end();
    while let Some((text, tail)) = rest.split_once('<') {
        assert!(!text.contains('>'), "a bare > in {text}");
        if let Some(element) = open.last() {
            let entities = text.split('&').skip(1).all(|part| part.starts_with('#') && part.contains(';'));
            assert!(entities || *element == "style", "a bare & in {text}");
            texts.push(((*element).to_owned(), text.to_owned()));
        }
        let (tag, tail) = tail.split_once('>').expect("a tag ends");
        rest = tail;
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "elements end in order");
            continue;
        }
        let (tag, closed) = tag.strip_suffix('/').map_or((tag, false), |tag| (tag, true));
        let (name, mut attributes) = tag.split_once(' ').unwrap_or((tag, ""));
        assert!(ELEMENTS.contains(&name), "<{name}>");
        while !attributes.trim().is_empty() {
            let (attribute, tail) = attributes.split_once("=\"").expect("an attribute has a value");
            let (value, tail) = tail.split_once('"').expect("a value ends");
            assert!(ATTRIBUTES.contains(&attribute.trim()), "<{name} {attribute}>");
            assert!(!value.contains("://") && !value.contains("javascript"), "{attribute}={value}");
            attributes = tail;
        }
        if !closed {
            open.push(name);
        }
    }
    assert!(open.is_empty() && rest.is_empty(), "{open:?} {rest}");
    texts
}

#[test]
fn the_page_is_well_formed_loads_nothing_and_shows_hostile_names_as_text() {
    let place = place();
    let mut bytes = Vec::new();
    days(&mut bytes);
    fs::write(&place.path, &bytes).expect("written");
    let (status, page) = report(&["--html"], &[&place.path]);
    assert_eq!(status, Some(0));
    // For looking at it.
    if let Some(kept) = std::env::var_os("POSTERN_KEEP_REPORT") {
        fs::write(kept, &page).expect("kept");
    }
    let texts = parse(&page);
    assert!(page.contains("<svg viewBox=") && page.contains("class=\"frozen\""));
    assert!(!page.chars().any(|character| character != '\n' && is_harmful(character)));

    // Its styles are the only thing that its own policy lets in.
    let (_, style) = texts.iter().find(|(element, _)| element == "style").expect("styles");
    let hash = base64::engine::general_purpose::STANDARD.encode(Hash::of(style.as_bytes()).0);
    assert!(page.contains(&format!(
        "content=\"default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; form-action 'none'\""
    )));
    assert!(!["url(", "@import", "http:", "https:"].iter().any(|word| style.contains(word)));

    // Each hostile path is there, as text of one cell.
    let shown: String = page
        .split("<code>")
        .skip(1)
        .map(|code| code.split("</code>").next().expect("one"))
        .collect::<Vec<_>>()
        .join("\n");
    for path in HOSTILE {
        let mut expected = String::new();
        for chunk in path.utf8_chunks() {
            let shown = chunk.valid().chars().map(|character| match character {
                '&' | '<' | '>' | '"' | '\'' => format!("&#{};", u32::from(character)),
                _ if is_harmful(character) => format!("<i>U+{:04X}</i>", u32::from(character)),
                _ => character.to_string(),
            });
            expected.extend(shown.chain(chunk.invalid().iter().map(|byte| format!("<i>{byte:02X}</i>"))));
        }
        assert!(shown.contains(&expected), "{expected} is not in {shown}");
    }
}
