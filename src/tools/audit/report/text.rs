//! A report as text.
//!
//! Trust: cells are hostile and escaped here.

use std::fmt::Write as _;
use std::io::{self, Write};

use super::super::words::{bytes, escape, escape_bytes, number, time};
use super::Page;
use super::tables::{self, Cell, Kind, OWN_WORD, Table};

/// Writes it.
pub(super) fn write(page: &Page<'_>, out: &mut dyn Write) -> io::Result<()> {
    match page.verdict {
        Ok(verified) => writeln!(out, "{verified}")?,
        Err(broken) => writeln!(out, "BROKEN: {}\nWhat follows is what the lines say.", escape(&broken.to_string()))?,
    }
    let files: Vec<_> = page.files.iter().map(|file| escape(&file.display().to_string())).collect();
    writeln!(out, "files: {}", files.join(" "))?;
    if let Some(period) = tables::period(page) {
        writeln!(out, "time: {period}")?;
    }
    writeln!(out)?;
    for (value, name, remark) in tables::figures(page) {
        let remark = if remark.is_empty() { remark } else { format!(" ({remark})") };
        writeln!(out, "{value:>12} {name}{remark}")?;
    }
    for table in tables::all(page) {
        write_table(&table, out)?;
    }
    writeln!(out, "\n{OWN_WORD}")
}

fn write_table(table: &Table<'_>, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "\n{}", table.title.to_uppercase())?;
    if table.rows.is_empty() {
        writeln!(out, "  {}", table.empty)?;
    } else {
        // What is longest stands last, so that the rest stays in line.
        let mut order: Vec<usize> = (0..table.columns.len()).collect();
        order.sort_by_key(|column| table.columns[*column].1 == Kind::Name);
        let rows: Vec<Vec<String>> = table.rows.iter().map(|row| row.iter().map(plain).collect()).collect();
        let heading = table.columns.iter().map(|(name, _)| (*name).to_owned()).collect();
        let width = |column: usize| {
            let cells = rows.iter().chain([&heading]).map(|row: &Vec<String>| row[column].chars().count());
            cells.max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..table.columns.len()).map(width).collect();
        for row in [&heading].into_iter().chain(&rows) {
            let mut line = String::new();
            for &column in &order {
                let (cell, width) = (&row[column], widths[column]);
                // Writing to a String cannot fail.
                _ = match table.columns[column].1 {
                    Kind::Numbers => write!(line, "  {cell:>width$}"),
                    Kind::Words | Kind::Name => write!(line, "  {cell:<width$}"),
                };
            }
            writeln!(out, "{}", line.trim_end())?;
        }
    }
    for note in &table.notes {
        writeln!(out, "  {note}")?;
    }
    Ok(())
}

fn plain(cell: &Cell<'_>) -> String {
    match cell {
        Cell::Text(text) => escape(text),
        Cell::Path(path) => escape_bytes(path),
        Cell::Count(0) | Cell::Bytes(0) | Cell::Time(None) => String::new(),
        Cell::Count(count) => number(*count),
        Cell::Bytes(amount) => bytes(*amount),
        Cell::Time(Some(at)) => time(*at),
    }
}
