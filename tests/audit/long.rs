//! A log longer than the memory that its readers are given.
//!
//! `POSTERN_RECORDS=10000000 cargo test --release --test audit -- long --nocapture`
//! makes it as long as wished: it is on no disk.

use std::io::{self, Read as _, Write};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Instant;

use crate::binary::BINARY;
use crate::story::{Shapes, Story};

/// Address space of a reader, in KiB: programs and libraries too.
const ROOM: u64 = 64 << 10;

fn records() -> u64 {
    let usual = if cfg!(debug_assertions) { 60_000 } else { 300_000 };
    std::env::var("POSTERN_RECORDS").map_or(usual, |text| text.parse().expect("a number"))
}

/// A host that asks for ever other paths, among them some that it is given.
fn flood(out: &mut dyn Write, count: u64) -> io::Result<u64> {
    struct Counted<'a>(&'a mut dyn Write, u64);
    impl Write for Counted<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1 += bytes.len() as u64;
            self.0.write_all(bytes)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            self.0.flush()
        }
    }
    let shapes = Shapes::with(b"/srv/PATH");
    let refused = shapes.find("guest-file-open", &["/postern/stage=refused", "/postern/refused_by=opener"]);
    let granted = shapes.find("guest-file-open", &["/postern/stage=granted", "/postern/mode=r+"]);
    let closed = shapes.find("guest-file-close", &["/event/reason=closed by the host"]);
    let mut story = Story::new(Counted(out, 0));
    story.tell(0, shapes.find("log-opened", &["/event/reason=started"]))?;
    story.tell(1, shapes.find("host-connected", &["/postern/peer/uid=1000"]))?;
    // The first is what must be found among all the others.
    story.tell(1, &granted.replace("PATH", "needle"))?;
    while story.number < count {
        let number = story.number;
        match number % 10 {
            0..2 => story.tell(1, &granted.replace("PATH", &format!("file {}", number % 47)))?,
            2..4 => story.tell(0, &closed.replace("PATH", &format!("file {}", (number - 2) % 47)))?,
            // A backslash needs an escape: no string of these lines is plain.
            _ => story.tell(0, &refused.replace("PATH", &format!("{number:0>440}/\\\\n")))?,
        }
    }
    story.out.flush()?;
    Ok(story.out.1)
}

struct Reader {
    name: String,
    child: Child,
    output: thread::JoinHandle<Vec<u8>>,
}

/// Writes to all, one after another.
struct Tee(Vec<std::process::ChildStdin>);

impl Write for Tee {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.iter_mut().try_for_each(|pipe| pipe.write_all(bytes))?;
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Starts `postern audit` with bounded memory.
fn reader(arguments: &[&str]) -> Reader {
    let bounded = format!("ulimit -v {ROOM}; exec \"$0\" audit \"$@\" -");
    let mut command = Command::new("sh");
    command.args(["-c", &bounded, BINARY]).args(arguments);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it runs");
    let mut stdout = child.stdout.take().expect("a pipe");
    let output = thread::spawn(move || {
        // The first and last of it: a table of all is as long as the log.
        let (mut kept, mut part) = (Vec::new(), vec![0; 64 << 10]);
        while let Ok(length @ 1..) = stdout.read(&mut part) {
            if kept.len() > 4 << 20 {
                kept.drain(2 << 20..3 << 20);
            }
            kept.extend(&part[..length]);
        }
        kept
    });
    Reader { name: arguments.join(" "), child, output }
}

#[test]
fn a_long_log_is_read_in_bounded_memory() {
    let count = records();
    let verify: &[&str] = &["verify"];
    for together in [
        &[verify, &["show", "--event", "log-opened"], &["show", "--json", "--path", "*needle*", "--result", "granted"]]
            [..],
        &[&["report"], &["report", "--html", "--top", "20000"], &["show"]],
    ] {
        let begun = Instant::now();
        let mut readers: Vec<Reader> = together.iter().map(|arguments| reader(arguments)).collect();
        let pipes = readers.iter_mut().map(|reader| reader.child.stdin.take().expect("a pipe")).collect();
        let mut out = io::BufWriter::with_capacity(256 << 10, Tee(pipes));
        let bytes = flood(&mut out, count).expect("every reader reads to the end");
        assert!(bytes > ROOM << 10 || count < 60_000, "{bytes}: a reader that kept all would have had room");
        drop(out);
        for Reader { name, mut child, output } in readers {
            let output = String::from_utf8_lossy(&output.join().expect("read")).into_owned();
            let status = child.wait().expect("it ends");
            assert!(status.success(), "{name}: {status}");
            let first = output.lines().next().unwrap_or_default();
            match &*name {
                "verify" | "report" => assert!(first.starts_with(&format!("whole: {count} records")), "{first}"),
                "show --event log-opened" => assert_eq!(output.lines().count(), 2, "{output}"),
                "show" => assert!(output.lines().last().is_some_and(|last| last.contains(&count.to_string()))),
                name if name.starts_with("show") => {
                    assert_eq!((output.lines().count(), first.contains("needle")), (1, true), "{output}");
                }
                _ => assert!(output.ends_with("</html>\n")),
            }
            if name.starts_with("report") {
                // Asking for paths pushes no file out that was opened.
                assert!(output.contains("/srv/needle") && output.contains("/srv/file 46"), "{output}");
                assert!(output.contains("were given up"), "{output}");
            }
        }
        println!("{count} records, {} MiB, {} readers: {:?}", bytes >> 20, together.len(), begun.elapsed());
    }
}
