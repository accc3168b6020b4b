//! What is done to a log by somebody who can write it and knows its form.

use postern_core::audit::{Hash, Seal};

use super::real::{Files, Real};

/// Numbers that look random, the same each time: an LCG, its upper half.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// At least `from`, below `to`.
    pub(crate) fn between(&mut self, from: usize, to: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        from + usize::try_from(self.0 >> 33).expect("31 bits") % (to - from)
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.between(0, 256)).expect("a byte")
    }

    /// A stretch of at least one and at most `most` places within `from..to`.
    fn stretch(&mut self, from: usize, to: usize, most: usize) -> std::ops::Range<usize> {
        let start = self.between(from, to);
        start..self.between(start, to.min(start + most)) + 1
    }
}

/// A kind of tampering.
pub(crate) struct Act {
    pub(crate) name: &'static str,
    /// Whether the log is a whole chain afterwards, so that only a head shows it.
    pub(crate) hides: bool,
    pub(crate) does: fn(&mut Random, &Real, &mut Files),
}

/// As `audit/RECORDS.md` lists them. Two things are nobody's to find and in no
/// row: a missing beginning, which every rotation that removes old files makes
/// and which verifiers state, and records that are added behind the last head.
pub(crate) const ACTS: &[Act] = &[
    Act { name: "edit a byte", hides: false, does: edit_byte },
    Act { name: "edit a value", hides: false, does: edit_value },
    Act { name: "delete", hides: false, does: delete },
    Act { name: "insert", hides: false, does: insert },
    Act { name: "swap", hides: false, does: swap },
    Act { name: "truncate", hides: false, does: truncate },
    Act { name: "splice from another boot", hides: false, does: splice_boot },
    Act { name: "splice from another machine", hides: false, does: splice_foreign },
    Act { name: "replay of an older file", hides: false, does: replay },
    Act { name: "cut", hides: true, does: cut },
    Act { name: "re-chained tail", hides: true, does: rechain },
];

/// Any byte but the last record's, which no other record vouches for.
fn edit_byte(random: &mut Random, _: &Real, files: &mut Files) {
    let at = random.between(0, files.lines() - 1);
    let (byte, kind) = (random.byte(), random.between(0, 3));
    let line = files.line(at);
    let within = random.between(0, line.len());
    match kind {
        0 => line[within] = byte,
        1 => line.insert(within, byte),
        // A newline that is missing at a file's end is no harm.
        _ => _ = line.remove(within.min(line.len() - 2)),
    }
}

/// Another name, of the same length or not, in a line that stays JSON.
fn edit_value(random: &mut Random, _: &Real, files: &mut Files) {
    let at = random.between(0, files.lines() - 1);
    let line = files.line(at);
    *line = forged(random, line);
}

/// Words that somebody would want otherwise.
const WORDS: [(&str, &str); 6] = [
    ("shadow", "motd"),
    ("refused", "granted"),
    ("failure", "success"),
    ("/files/file", "/files/life"),
    ("guest-exec", "guest-ping"),
    ("postern", "Postern"),
];

fn forged(random: &mut Random, line: &[u8]) -> Vec<u8> {
    let text = String::from_utf8(line.to_vec()).expect("text");
    let (from, to) = WORDS[random.between(0, WORDS.len())];
    if text.contains(from) && from != "postern" {
        return text.replace(from, to).into_bytes();
    }
    let from = text.find('T').map_or(0, |at| at + 1);
    let hour = random.between(10, 24);
    format!("{}{hour}{}", &text[..from], &text[from + 2..]).into_bytes()
}

fn remove(files: &mut Files, range: std::ops::Range<usize>) {
    for at in range.rev() {
        let (file, line) = files.place(at);
        files.0[file].remove(line);
    }
}

/// Not the first, see [`ACTS`], and not the last.
fn delete(random: &mut Random, _: &Real, files: &mut Files) {
    let range = random.stretch(1, files.lines() - 1, 20);
    remove(files, range);
}

/// A record that was there already, or a forged one that names the one before.
fn insert(random: &mut Random, _: &Real, files: &mut Files) {
    let at = random.between(1, files.lines());
    let mut line = forged_record(random, files);
    if random.between(0, 2) == 0 {
        let before = files.line(at - 1).clone();
        if let Some(seal) = Seal::of(trimmed(&before)) {
            line = sealed(&line, seal.sequence + 1, Hash::of(trimmed(&before)));
        }
    }
    let (file, place) = files.place(at);
    files.0[file].insert(place, line);
}

fn forged_record(random: &mut Random, files: &mut Files) -> Vec<u8> {
    loop {
        let at = random.between(0, files.lines());
        let line = forged(random, &files.line(at).clone());
        if Seal::of(trimmed(&line)).is_some_and(|seal| seal.torn.is_none()) {
            return line;
        }
    }
}

fn swap(random: &mut Random, _: &Real, files: &mut Files) {
    let (one, other) = (random.between(0, files.lines()), random.between(0, files.lines()));
    let line = files.line(one).clone();
    let line = std::mem::replace(files.line(other), line);
    *files.line(one) = line;
}

/// The end of a file that others follow, or the middle of the last line.
fn truncate(random: &mut Random, _: &Real, files: &mut Files) {
    let file = random.between(0, files.len());
    let last = file == files.len() - 1;
    let lines = &mut files.0[file];
    if !last {
        let keep = random.between(usize::from(file == 0), lines.len());
        lines.truncate(keep);
    }
    if last || random.between(0, 2) == 0 {
        let line = lines.last_mut().map(|line| (random.between(1, line.len() - 1), line));
        if let Some((keep, line)) = line {
            line.truncate(keep);
        }
    }
}

/// Lines of one boot in the place of another's.
fn splice_boot(random: &mut Random, real: &Real, files: &mut Files) {
    let ends: Vec<usize> = real.boots.iter().skip(1).copied().chain([files.lines()]).collect();
    let from = random.between(0, ends.len());
    let to = (from + random.between(1, ends.len())) % ends.len();
    let taken = random.stretch(real.boots[from], ends[from], 40);
    let lines: Vec<Vec<u8>> = taken.map(|at| files.line(at).clone()).collect();
    let range = random.stretch(real.boots[to].max(1), ends[to], 40);
    splice(files, range, lines);
}

/// Lines of another machine's log, by number or not.
fn splice_foreign(random: &mut Random, real: &Real, files: &mut Files) {
    let range = random.stretch(1, files.lines(), 40);
    let start = if random.between(0, 2) == 0 { range.start } else { random.between(0, real.foreign.len()) };
    let lines: Vec<Vec<u8>> = real.foreign.iter().skip(start).take(range.len()).cloned().collect();
    splice(files, range, lines);
}

fn splice(files: &mut Files, range: std::ops::Range<usize>, lines: Vec<Vec<u8>>) {
    if lines.is_empty() {
        return;
    }
    let (file, line) = files.place(range.start);
    let behind = files.lines() - range.end;
    remove(files, range);
    files.0[file].splice(line..line, lines);
    assert!(files.lines() >= behind);
}

/// A file's older state in its place, or a whole older file in a newer's.
fn replay(random: &mut Random, real: &Real, files: &mut Files) {
    if random.between(0, 2) == 0 {
        let (file, lines) = &real.older[random.between(0, real.older.len())];
        files.0[*file].clone_from(lines);
    } else {
        let newer = random.between(1, files.len());
        let older = random.between(0, newer);
        files.0[newer] = files.0[older].clone();
    }
}

/// The end, of one file or with newer files too.
fn cut(random: &mut Random, _: &Real, files: &mut Files) {
    let torn = files.0.iter().flatten().position(|line| Seal::of(trimmed(line)).is_none()).expect("a torn line");
    let mut keep = random.between(1, files.lines());
    // What is torn is accounted for by the record behind it.
    if keep == torn + 1 {
        keep += 1;
    }
    let all = files.lines();
    remove(files, keep..all);
}

/// Anything, and every hash behind it made to fit, as root can.
fn rechain(random: &mut Random, real: &Real, files: &mut Files) {
    let torn = files.0.iter().flatten().position(|line| Seal::of(trimmed(line)).is_none()).expect("a torn line");
    let at = loop {
        let at = random.between(1, files.lines());
        if !(torn..=torn + 1).contains(&at) {
            break at;
        }
    };
    match random.between(0, 4) {
        0 => {
            let line = files.line(at);
            *line = forged(random, line);
        }
        1 => {
            let end = if at < torn { torn } else { files.lines() };
            let range = at..random.between(at, end.min(at + 20)) + 1;
            remove(files, range);
        }
        2 => {
            let line = forged_record(random, files);
            let (file, place) = files.place(at);
            files.0[file].insert(place, line);
        }
        _ => {
            let end = if at < torn { torn } else { files.lines() };
            let range = at..random.between(at, end.min(at + 20)) + 1;
            let lines = real.foreign.iter().skip(1).take(range.len()).cloned().collect();
            splice(files, range, lines);
        }
    }
    let mut before: Option<(u64, Hash)> = None;
    for (place, line) in files.0.iter_mut().flatten().enumerate() {
        let Some(own) = Seal::of(trimmed(line)).map(|seal| seal.sequence) else { continue };
        if let Some((number, hash)) = before.filter(|_| place >= at) {
            *line = sealed(line, number + 1, hash);
        }
        let number = if place >= at { before.map_or(1, |(number, _)| number + 1) } else { own };
        before = Some((number, Hash::of(trimmed(line))));
    }
}

fn trimmed(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\n").unwrap_or(line)
}

/// A record at another place of a chain.
fn sealed(line: &[u8], number: u64, previous: Hash) -> Vec<u8> {
    let line = trimmed(line);
    let seal = Seal::of(line).expect("a record");
    let text = String::from_utf8(line.to_vec()).expect("text");
    let (before, _) = text.split_once("\"sequence\":").expect("a number");
    let (_, after) = text.split_once(&format!("\"sequence\":{},", seal.sequence)).expect("a number");
    let after = &after[..after.len() - 64 - 3];
    format!("{before}\"sequence\":{number},{after}{previous}\"}}}}\n").into_bytes()
}
