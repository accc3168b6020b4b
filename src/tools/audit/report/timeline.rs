//! The timeline: what happened when, as an SVG that needs nothing but the
//! page's styles.
//!
//! Trust: times and counts are a log's; no text of a log is in here.

use std::io::{self, Write};

use super::super::words::{format, number, time};
use super::Page;
use super::bins::{LANES, Lane};

/// Widths that a column or the distance of two marks may have, in seconds.
const NICE: [i64; 25] = [
    1,
    2,
    5,
    10,
    15,
    30,
    60,
    120,
    300,
    600,
    900,
    1800,
    3600,
    7200,
    10_800,
    21_600,
    43_200,
    86_400,
    172_800,
    604_800,
    1_209_600,
    2_592_000,
    7_776_000,
    31_536_000,
    315_360_000,
];
const SECOND: i64 = 1_000_000;
const DAY: i64 = 86_400 * SECOND;
const MOST_COLUMNS: i64 = 120;
const MOST_MARKS: i64 = 8;

/// Units of the drawing: where the lanes begin and how wide all is.
const LEFT: f64 = 118.0;
const RIGHT: f64 = 1000.0;

/// Lanes with bars: name, class, height.
const BARS: [(&str, &str, Lane, f64); LANES] = [
    ("Opened", "opened", Lane::Opened, 72.0),
    ("Refused", "refused", Lane::Refused, 40.0),
    ("To look at", "alarm", Lane::Alarm, 24.0),
    ("Other records", "other", Lane::Other, 24.0),
];

/// Units between two lanes with bars, and those that a lane with spans takes.
const GAP: f64 = 14.0;
const SPAN: f64 = 18.0;

/// A lane of spans: name, class, from and to.
type Spans<'a> = (&'static str, &'static str, Vec<(i64, Option<i64>)>);

struct Scale {
    first: i64,
    /// Microseconds of a column.
    step: i64,
    columns: usize,
}

impl Scale {
    fn new(first: i64, last: i64, at_least: i64) -> Self {
        let length = last.saturating_sub(first);
        let fits = |step: &i64| length / step < MOST_COLUMNS && *step >= at_least;
        let most = length / MOST_COLUMNS + at_least;
        let step = NICE.iter().map(|step| step * SECOND).find(fits).unwrap_or(most);
        let first = first.div_euclid(step) * step;
        let columns = last.saturating_sub(first) / step + 1;
        Self { first, step, columns: usize::try_from(columns).unwrap_or(1) }
    }

    /// As few as 1 and as many as [`MOST_COLUMNS`] and one: exact as a float.
    #[allow(clippy::cast_precision_loss, reason = "at most 121")]
    fn width(&self) -> f64 {
        (RIGHT - LEFT) / self.columns as f64
    }

    /// Where a time stands.
    #[allow(clippy::cast_precision_loss, reason = "a hundredth of a unit is enough")]
    fn x(&self, at: i64) -> f64 {
        let share = at.saturating_sub(self.first) as f64 / self.step as f64;
        (LEFT + share * self.width()).clamp(LEFT, RIGHT)
    }

    fn column(&self, at: i64) -> usize {
        let column = at.saturating_sub(self.first) / self.step;
        usize::try_from(column).unwrap_or(0).min(self.columns - 1)
    }

    /// How far marks of time are apart.
    fn marks(&self) -> i64 {
        let length = self.begin(self.columns).saturating_sub(self.first);
        let fits = |step: &i64| length / step < MOST_MARKS && *step >= self.step;
        NICE.iter().map(|step| step * SECOND).find(fits).unwrap_or(length / MOST_MARKS + 1)
    }

    fn begin(&self, column: usize) -> i64 {
        self.first.saturating_add(i64::try_from(column).unwrap_or(i64::MAX).saturating_mul(self.step))
    }
}

/// Writes it; nothing where there is no record.
pub(super) fn write(page: &Page<'_>, out: &mut dyn Write) -> io::Result<()> {
    let all = page.gathered;
    if all.seen.count == 0 {
        return Ok(());
    }
    let scale = Scale::new(all.seen.first, all.seen.last, all.bins.width());
    let mut columns = vec![[0_u64; LANES]; scale.columns];
    for (at, counts) in all.bins.iter(all.seen.first) {
        let column = &mut columns[scale.column(at)];
        column.iter_mut().zip(counts).for_each(|(sum, more)| *sum += more);
    }
    let spans: [Spans<'_>; 3] = [
        ("Host there", "host", all.sessions.iter().filter_map(|one| Some((one.from?, one.to))).collect()),
        ("Frozen", "frozen", all.freezes.iter().map(|one| (one.from, one.to)).collect()),
        ("Postern runs", "run", all.runs.iter().map(|one| (one.from, one.to)).collect()),
    ];
    let bars: f64 = BARS.iter().map(|(.., height)| height + GAP).sum();
    let bottom = 8.0 + bars + SPAN * 3.0;
    let step = scale.marks();
    // Two lines below, the day below the time, or one.
    let height = bottom + if step < DAY { 40.0 } else { 24.0 };
    writeln!(
        out,
        "<svg viewBox=\"0 0 1008 {height}\" role=\"img\" aria-label=\"Timeline from {} to {} UTC\">",
        time(all.seen.first),
        time(all.seen.last)
    )?;
    write_marks(&scale, step, bottom, out)?;
    let mut top = 8.0;
    for (name, class, lane, height) in BARS {
        write_bars(&scale, &columns, (name, class, lane as usize), (top, height), out)?;
        top += height + GAP;
    }
    for (name, class, list) in spans {
        writeln!(out, "<text class=\"lane\" x=\"{}\" y=\"{}\">{name}</text>", LEFT - 12.0, top + 10.0)?;
        writeln!(out, "<line class=\"base\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{0}\" y2=\"{0}\"/>", top + 6.0)?;
        for (from, to) in list {
            let begin = scale.x(from);
            let end = to.map_or(scale.x(all.seen.last), |to| scale.x(to));
            let until = to.map_or_else(|| "no end on record".to_owned(), time);
            writeln!(
                out,
                "<rect class=\"{class}\" x=\"{begin:.2}\" y=\"{top}\" width=\"{:.2}\" height=\"12\" rx=\"2\"><title>{name}: \
                 {} to {until}</title></rect>",
                (end - begin).max(2.0),
                time(from)
            )?;
        }
        top += SPAN;
    }
    writeln!(out, "</svg>")
}

/// How long a column is, in words.
pub(super) fn column(page: &Page<'_>) -> String {
    let seen = page.gathered.seen;
    let scale = Scale::new(seen.first, seen.last, page.gathered.bins.width());
    match scale.step / SECOND {
        1 => "1 second".to_owned(),
        seconds if seconds < 60 => format!("{seconds} seconds"),
        60 => "1 minute".to_owned(),
        seconds if seconds < 3600 => format!("{} minutes", seconds / 60),
        3600 => "1 hour".to_owned(),
        seconds if seconds < 86_400 => format!("{} hours", seconds / 3600),
        86_400 => "1 day".to_owned(),
        seconds => format!("{} days", seconds / 86_400),
    }
}

fn write_bars(
    scale: &Scale,
    columns: &[[u64; LANES]],
    (name, class, lane): (&str, &str, usize),
    (top, height): (f64, f64),
    out: &mut dyn Write,
) -> io::Result<()> {
    let most = columns.iter().map(|counts| counts[lane]).max().unwrap_or(0);
    let base = top + height;
    writeln!(out, "<text class=\"lane\" x=\"{}\" y=\"{}\">{name}</text>", LEFT - 12.0, base - 1.0)?;
    if most > 0 {
        writeln!(
            out,
            "<text class=\"most\" x=\"{}\" y=\"{}\">{}</text>",
            LEFT - 12.0,
            base - 14.0,
            peak(most, height)
        )?;
    }
    writeln!(out, "<line class=\"base\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{base}\" y2=\"{base}\"/>")?;
    for (column, count) in columns.iter().map(|counts| counts[lane]).enumerate().filter(|(_, count)| *count > 0) {
        #[allow(clippy::cast_precision_loss, reason = "a share of a lane's height")]
        let tall = (count as f64 / most as f64 * height).max(2.5);
        let (from, to) = (scale.begin(column), scale.begin(column + 1));
        let width = scale.width();
        let gap = (width * 0.15).min(2.0);
        writeln!(
            out,
            "<rect class=\"{class}\" x=\"{:.2}\" y=\"{:.2}\" width=\"{:.2}\" height=\"{tall:.2}\" rx=\"1\"><title>{} to {}: \
             {} {}</title></rect>",
            scale.x(from) + gap / 2.0,
            base - tall,
            (width - gap).min(28.0),
            time(from),
            format(to, "%H:%M:%S"),
            number(count),
            name.to_lowercase(),
        )?;
    }
    Ok(())
}

/// What the tallest bar of a lane stands for.
fn peak(most: u64, height: f64) -> String {
    if height < 30.0 { String::new() } else { format!("up to {}", number(most)) }
}

/// Marks of time, and lines through all lanes.
fn write_marks(scale: &Scale, step: i64, bottom: f64, out: &mut dyn Write) -> io::Result<()> {
    let first = scale.first.div_euclid(step) * step;
    let mut day = String::new();
    for at in (0..=MOST_MARKS + 1).map(|mark| first.saturating_add(mark * step)) {
        let x = scale.x(at);
        if at < scale.first || at > scale.begin(scale.columns) {
            continue;
        }
        writeln!(out, "<line class=\"mark\" x1=\"{x:.2}\" x2=\"{x:.2}\" y1=\"4\" y2=\"{bottom}\"/>")?;
        // The last one would be cut off at the edge.
        if x > RIGHT - 40.0 {
            continue;
        }
        let today = format(at, "%Y-%m-%d");
        let clock = match step {
            step if step >= DAY => "",
            step if step < 60 * SECOND => "%H:%M:%S",
            _ => "%H:%M",
        };
        let (clock, date) = if clock.is_empty() { (today, String::new()) } else { (format(at, clock), today) };
        writeln!(out, "<text class=\"mark\" x=\"{x:.2}\" y=\"{}\">{clock}</text>", bottom + 16.0)?;
        if date != day && !date.is_empty() {
            writeln!(out, "<text class=\"day\" x=\"{x:.2}\" y=\"{}\">{date}</text>", bottom + 32.0)?;
            day = date;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use postern_core::audit::Timestamp;

    use super::*;

    #[test]
    fn a_scale_fits_any_times() {
        // The first and the last time that a record can have, among others.
        let [least, most] = [Timestamp::MIN, Timestamp::MAX].map(Timestamp::as_microsecond);
        let edges = [least, -1, 0, 1, 1_700_000_000 * SECOND, 1_700_000_000 * SECOND + 1, most];
        for first in edges {
            for last in edges.into_iter().filter(|last| *last >= first) {
                let scale = Scale::new(first, last, 1);
                assert!((1..=122).contains(&scale.columns), "{first} {last}: {}", scale.columns);
                assert!(scale.column(first) == 0 && scale.column(last) < scale.columns);
                assert!((LEFT..=RIGHT).contains(&scale.x(last)));
            }
        }
        let day = Scale::new(0, 86_400 * SECOND, 1);
        assert_eq!((day.step / SECOND, day.columns), (900, 97));
    }
}
