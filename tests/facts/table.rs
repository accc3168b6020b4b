//! `PLACES.md`: what comes of each command, with a column for each place and stock.
//! Each scene holds that its columns are as they stand there, or writes them
//! (`UPDATE=1`, one target at a time).

use std::env;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read, Seek, Write as _};
use std::path::Path;
use std::sync::OnceLock;

use nix::fcntl::{Flock, FlockArg};

use crate::agents;
use crate::intended::{INTENDED, Place, notes};
use crate::verdict::Column;

/// Place, how stock's version begins, and what stands above the column.
const COLUMNS: [(Place, &str, &str); 8] = [
    (Place::Cell, "7.2", "the machine of the tests"),
    (Place::Cell, "10.0", "the same"),
    (Place::Systemd, "7.2", "VM, Debian with systemd"),
    (Place::Systemd, "10.0", "the same"),
    (Place::Sysvinit, "7.2", "VM, Debian with sysvinit"),
    (Place::Sysvinit, "10.0", "the same"),
    (Place::Busybox, "7.2", "VM, busybox"),
    (Place::Busybox, "10.0", "the same"),
];

/// The file.
static FILE: OnceLock<File> = OnceLock::new();

/// What a process does that leaves the machine's own root before it publishes.
pub(crate) fn open() -> &'static File {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/facts/PLACES.md");
    let writes = env::var_os("UPDATE").is_some();
    let open = || File::options().read(true).write(writes).open(&path);
    FILE.get_or_init(|| open().unwrap_or_else(|why| panic!("{}: {why}", path.display())))
}

/// The cells of a line of a table.
fn cells(line: &str) -> Vec<&str> {
    line.trim_matches('|').split('|').map(str::trim).collect()
}

/// The page of these columns; others' are as they stand in `text`.
fn page(text: &str, columns: &[Column]) -> String {
    let mut page = String::from(
        "# Facts beside stock\n\n\
         What postern answers to each command that only reads, beside `qemu-ga` of the version at the column's head on\n\
         the same machine, at the same time. Made and held by the tests: `UPDATE=1 cargo test --test facts every_fact`,\n\
         `UPDATE=1 POSTERN_VM=all cargo test --test vm told_beside`.\n\n| command |",
    );
    for (_, version, title) in COLUMNS {
        let _ = write!(page, " {title}, {version} |");
    }
    let _ = writeln!(page, "\n|---{}|", "|---".repeat(COLUMNS.len()));
    for command in agents::compared() {
        let name = format!("`{command}`");
        let old = text.lines().map(cells).find(|cells| cells[0] == name).unwrap_or_default();
        let _ = write!(page, "| {name} |");
        for (number, (place, version, _)) in COLUMNS.iter().enumerate() {
            let made = columns.iter().find(|made| made.place == *place && made.version.starts_with(version));
            let cell = made.map(|made| made.cell(command));
            let _ = write!(page, " {} |", cell.as_deref().or(old.get(number + 1).copied()).unwrap_or("not yet asked"));
        }
        page.push('\n');
    }
    page.push_str("\nIntended differences, and there are no others:\n\n");
    for (number, note) in notes().iter().enumerate() {
        let needs = INTENDED.iter().find(|row| row.why == *note).and_then(|row| row.may);
        let needs = needs.map(|needs| format!(" (seen where there is {needs})")).unwrap_or_default();
        let _ = writeln!(page, "{}. {note}{needs}", number + 1);
    }
    page
}

/// Holds that the page has these columns, or writes them there.
pub(crate) fn publish(columns: &[Column]) {
    for column in columns {
        println!("\n    | command | {:?}, stock {} |\n    |---|---|", column.place, column.version);
        for command in column.found.keys() {
            println!("    | {command} | {} |", column.cell(command));
        }
    }
    columns.iter().for_each(Column::assert_right);
    let file = open().try_clone().expect("a second descriptor");
    let mut file = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, why)| why).expect("a lock");
    let mut text = String::new();
    file.rewind().and_then(|()| file.read_to_string(&mut text)).expect("PLACES.md");
    let page = page(&text, columns);
    if env::var_os("UPDATE").is_some() {
        file.set_len(0).and_then(|()| file.rewind()).expect("PLACES.md");
        file.write_all(page.as_bytes()).expect("PLACES.md");
    } else {
        assert!(page == text, "tests/facts/PLACES.md is another:\n{page}");
    }
}
