//! The manual page of the policy file: `policy/REFERENCE.md`, set as roff.
//!
//! Trust: our own text. Reads the Markdown that the reference uses (headings,
//! paragraphs, one level of bullets, one table, `code`, links), no other.

use std::fmt::Write as _;

use clap_mangen::roff::{Inline, Roff, bold, roman};
use postern_tools::policy::reference;

/// The page, as roff.
pub(crate) fn page(date: &str, source: &str, manual: &str) -> String {
    let mut page = Roff::new();
    page.control("TH", ["POSTERN-POLICY.TOML", "5", date, source, manual])
        .control("SH", ["NAME"])
        .text([roman("postern-policy.toml - what a host may do with a guest")])
        .control("SH", ["SYNOPSIS"])
        .text([bold("/etc/postern/policy.toml")])
        .control("br", [])
        .text([bold("/etc/postern/policy.d/*.toml"), roman(", "), bold("/run/postern/policy.d/*.toml")])
        .control("br", [])
        .text([bold("/usr/lib/postern/policy.d/*.toml")])
        .control("SH", ["DESCRIPTION"])
        .text([roman(
            "TOML. What is not allowed is refused. The main file comes first, then the drop-ins sorted by name; of two with the \
             same name the one in /etc counts before that in /run, and that before the one in /usr/lib. Values are replaced, \
             lists of commands and file rules add up, and deny wins. Each file begins with version = 1, must belong to \
             root and must not be writable by others. Check with:",
        )])
        .control("PP", [])
        .control("nf", [])
        .text([roman("postern policy check && postern policy explain")])
        .control("fi", []);
    let text = reference::text();
    // What stands above the first heading is about the file itself.
    let body = text.find("\n## ").map_or("", |start| &text[start..]);
    for line in body.lines() {
        set(&mut page, line);
    }
    page.control("SH", ["SEE ALSO"]).text([bold("postern-policy"), roman("(1), "), bold("postern-run"), roman("(1)")]);
    page.render()
}

fn set(page: &mut Roff, line: &str) {
    if let Some(heading) = line.strip_prefix("## ") {
        page.control("SH", [heading.to_uppercase().as_str()]);
    } else if let Some(key) = line.strip_prefix("### ") {
        page.control("SS", [key.trim_matches('`')]);
    } else if let Some(item) = line.strip_prefix("* ") {
        page.control("IP", ["\\(bu", "2"]).text(inline(item));
    } else if let Some(row) = line.strip_prefix("| ") {
        let cells: Vec<&str> = row.trim_end_matches(" |").split(" | ").collect();
        if let [name, what, commands] = cells.as_slice()
            && *name != "profile"
        {
            let mut text = inline(what);
            text.push(roman(" Commands: "));
            text.extend(inline(commands));
            page.control("TP", []).text(inline(name)).text(text);
        }
    } else if !line.is_empty() && !line.starts_with("|--") {
        page.text(inline(line));
    }
}

/// `code` in bold; a link as its text.
fn inline(text: &str) -> Vec<Inline> {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, link)) = rest.split_once('[') {
        let Some((name, after)) =
            link.split_once("](").and_then(|(name, after)| Some((name, after.split_once(')')?.1)))
        else {
            break;
        };
        // Writing to a string cannot fail.
        let _ = write!(plain, "{before}{name}");
        rest = after;
    }
    plain.push_str(rest);
    plain
        .split('`')
        .enumerate()
        .filter(|(_, piece)| !piece.is_empty())
        .map(|(number, piece)| if number % 2 == 1 { bold(piece) } else { roman(piece) })
        .collect()
}
