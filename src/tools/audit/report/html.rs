//! A report as one page: no script, no reference to anything outside, readable
//! offline, on paper, by day and by night.
//!
//! Trust: cells are hostile. They become text only, in [`safe`]: markup is
//! escaped, what is not to be seen is written out and marked, and text stands
//! in the order of its characters, whatever its script. Should markup get
//! through all the same, the page's own policy lets it load and run nothing.

use std::fmt::Write as _;
use std::io::{self, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use postern_core::audit::{Hash, is_harmful};

use super::super::words::{bytes, number, time};
use super::tables::{self, Cell, Kind, OWN_WORD, Table};
use super::{Page, timeline};

const STYLE: &str = include_str!("style.css");

/// Writes it.
pub(super) fn write(page: &Page<'_>, out: &mut dyn Write) -> io::Result<()> {
    let period = tables::period(page);
    // Only these styles, by their hash, and nothing else of any kind.
    let styles = STANDARD.encode(Hash::of(STYLE.as_bytes()).0);
    write!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'sha256-{styles}'; \
         base-uri 'none'; form-action 'none'\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <meta name=\"referrer\" content=\"no-referrer\"/>\n<meta name=\"robots\" content=\"noindex\"/>\n\
         <meta name=\"color-scheme\" content=\"light dark\"/>\n\
         <title>postern audit report{}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n",
        period.as_ref().map_or_else(String::new, |period| format!(": {}", safe(period)))
    )?;
    writeln!(out, "<header>\n<p class=\"kind\">postern audit report</p>\n<h1>What the host did</h1>")?;
    if let Some(period) = &period {
        writeln!(out, "<p class=\"period\">{}</p>", safe(period))?;
    }
    writeln!(out, "</header>")?;
    verdict(page, out)?;
    writeln!(out, "<section class=\"figures\" aria-label=\"Figures\">")?;
    for (value, name, remark) in tables::figures(page) {
        write!(out, "<div><b>{}</b><span>{}</span>", safe(&value), safe(name))?;
        if !remark.is_empty() {
            write!(out, "<small>{}</small>", safe(&remark))?;
        }
        writeln!(out, "</div>")?;
    }
    writeln!(out, "</section>")?;
    let all = tables::all(page);
    if page.gathered.seen.count > 0 {
        writeln!(out, "<section>\n<h2>Timeline</h2>\n<div class=\"wide\">")?;
        timeline::write(page, out)?;
        writeln!(
            out,
            "</div>\n<p class=\"note\">A column is {}, UTC; each lane has a scale of its own. Point at a bar for its figure.</p>\n\
             </section>",
            timeline::column(page)
        )?;
    }
    for table in &all {
        write_table(table, out)?;
    }
    writeln!(
        out,
        "<footer>\n<p>{}</p>\n<p>Times are UTC. Who vouches for which field stands in audit/RECORDS.md.</p>\n</footer>\n\
         </main>\n</body>\n</html>",
        safe(OWN_WORD)
    )
}

fn verdict(page: &Page<'_>, out: &mut dyn Write) -> io::Result<()> {
    let (class, mark, word, said) = match page.verdict {
        Ok(verified) => ("whole", "M3.5 8.5 6.5 11.5 12.5 4.5", "The log is whole", verified.to_string()),
        Err(broken) => ("broken", "M4 4 12 12 M12 4 4 12", "The log is broken", broken.to_string()),
    };
    writeln!(
        out,
        "<section class=\"verdict {class}\">\n<svg viewBox=\"0 0 16 16\" aria-hidden=\"true\"><path d=\"{mark}\"/></svg>\n\
         <div>\n<h2>{word}</h2>"
    )?;
    for line in said.lines() {
        writeln!(out, "<p class=\"said\">{}</p>", safe(line))?;
    }
    let remark = if page.verdict.is_ok() {
        "No record was edited, removed or moved. A cut end, or a log that root wrote anew, shows only against a head that \
         left the machine: compare the one above."
    } else {
        "Somebody changed this log, or files are missing. What follows is what the lines say, and no evidence from the \
         first break on."
    };
    writeln!(out, "<p>{remark}</p>")?;
    let files: Vec<_> =
        page.files.iter().map(|file| format!("<code>{}</code>", safe(&file.display().to_string()))).collect();
    writeln!(out, "<p>Read: {}</p>\n</div>\n</section>", files.join(", "))
}

fn write_table(table: &Table<'_>, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "<section id=\"{}\">\n<h2>{}</h2>", table.id, safe(table.title))?;
    if table.rows.is_empty() {
        return writeln!(out, "<p class=\"none\">{}</p>\n</section>", safe(table.empty));
    }
    writeln!(out, "<div class=\"wide\">\n<table>\n<thead><tr>")?;
    for (name, kind) in table.columns {
        writeln!(out, "<th scope=\"col\" class=\"{}\">{}</th>", class(*kind), safe(name))?;
    }
    writeln!(out, "</tr></thead>\n<tbody>")?;
    for row in &table.rows {
        write!(out, "<tr>")?;
        for (cell, (_, kind)) in row.iter().zip(table.columns) {
            write!(out, "<td class=\"{}\">{}</td>", class(*kind), shown(cell))?;
        }
        writeln!(out, "</tr>")?;
    }
    writeln!(out, "</tbody>\n</table>\n</div>")?;
    let marked = table.is_own_word().then_some(OWN_WORD);
    for note in table.notes.iter().map(String::as_str).chain(marked) {
        writeln!(out, "<p class=\"note\">{}</p>", safe(note))?;
    }
    writeln!(out, "</section>")
}

const fn class(kind: Kind) -> &'static str {
    match kind {
        Kind::Words => "words",
        Kind::Name => "name",
        Kind::Numbers => "numbers",
    }
}

fn shown(cell: &Cell<'_>) -> String {
    match cell {
        Cell::Text(text) => safe(text),
        Cell::Path(path) => format!("<code>{}</code>", safe_bytes(path)),
        Cell::Count(0) | Cell::Bytes(0) | Cell::Time(None) => String::new(),
        Cell::Count(count) => number(*count),
        Cell::Bytes(amount) => bytes(*amount),
        Cell::Time(Some(at)) => time(*at),
    }
}

/// Text that is only text. A character that would not be seen as what it is
/// becomes its number, marked so that nobody can write the same.
fn safe(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&#38;"),
            '<' => out.push_str("&#60;"),
            '>' => out.push_str("&#62;"),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            _ if is_harmful(character) => {
                // Writing to a String cannot fail.
                _ = write!(out, "<i>U+{:04X}</i>", u32::from(character));
            }
            _ => out.push(character),
        }
    }
    out
}

/// [`safe`] for bytes that may be no UTF-8.
fn safe_bytes(bytes: &[u8]) -> String {
    let mut out = String::new();
    for chunk in bytes.utf8_chunks() {
        out.push_str(&safe(chunk.valid()));
        for byte in chunk.invalid() {
            _ = write!(out, "<i>{byte:02X}</i>");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_is_only_text() {
        assert_eq!(
            safe_bytes("/srv/<script>alert('1')&amp;\"\u{202e}\u{1b}\u{e9}".as_bytes()),
            "/srv/&#60;script&#62;alert(&#39;1&#39;)&#38;amp;&#34;<i>U+202E</i><i>U+001B</i>\u{e9}"
        );
        assert_eq!(safe_bytes(b"/\xff/a"), "/<i>FF</i>/a");
    }

    #[test]
    fn the_styles_end_where_they_end_and_refer_to_nothing() {
        for word in ["</", "url(", "@import", "http", "expression"] {
            assert!(!STYLE.contains(word), "{word}");
        }
    }
}
