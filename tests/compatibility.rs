//! The same transcripts against stock `qemu-ga` and against postern.
//!
//! `tests/transcripts/*.txt` hold requests and the replies to them, recorded
//! from stock; `DIFFERENCES.md` beside them is the one list of where postern
//! means to differ. Each agent must give exactly the lines of the transcripts,
//! handles apart, and nothing else. Works as root and as an ordinary user;
//! `frozen.txt` needs root, for it freezes a scratch filesystem on a loop device;
//! `unprivileged.txt` needs that one is not.
//!
//! A line of a transcript:
//!
//! ```text
//! == title             a new conversation; "[chunked]": repeated byte by byte and in every two pieces
//! > text               sent, with a newline
//! >> text              sent as it is
//! < text               the next reply
//! <stock:NAME text     a reply of stock only, <postern:NAME of postern only: a difference by NAME
//! = file text          what the file now holds
//! %{ff 0a}             these bytes          %{12*ab}   ab twelve times
//! %{=h}, %{h}          a number that a reply has, and the same later
//! %{DIR}, %{MNT}       the scratch directory, the scratch filesystem
//! ```

#[path = "support/binary.rs"]
mod binary;
#[path = "support/records.rs"]
mod records;

use binary::BINARY;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long an agent may take before the test says that it does not answer.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Stock,
    Postern,
}

/// A running agent; killed when dropped.
struct Agent {
    kind: Kind,
    child: Child,
    host: UnixStream,
    /// Read and not yet taken.
    pending: Vec<u8>,
    /// What placeholders stand for.
    names: BTreeMap<String, String>,
    directory: tempfile::TempDir,
    asked: u64,
}

impl Agent {
    fn start(kind: Kind) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        // The kernel's word for a path is compared with the policy's.
        let base = directory.path().canonicalize().expect("its real path");
        let (worker, broker) = accounts();
        fs::set_permissions(&base, Permissions::from_mode(0o755)).expect("chmod");
        for (name, owner) in [("files", worker), ("state", broker), ("log", broker)] {
            let path = base.join(name);
            fs::create_dir(&path).expect("mkdir");
            fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("chmod");
            if is_root() {
                chown(&path, Some(owner), Some(owner)).expect("chown");
            }
        }
        let files = base.join("files");
        fs::write(files.join("hello"), "hello world").expect("a file to read");
        let socket = base.join("socket");
        let mut command = match kind {
            Kind::Stock => stock(&base, &socket),
            Kind::Postern => postern(&base, &socket, worker, broker),
        };
        let log = fs::File::create(base.join("stderr")).expect("a log");
        let child = command.current_dir(&base).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
        let mut child = child
            .unwrap_or_else(|why| panic!("cannot start {command:?}: {why}; stock is in the package qemu-guest-agent"));
        let host = connect(&socket, &mut child).unwrap_or_else(|| {
            let said = fs::read_to_string(base.join("stderr")).unwrap_or_default();
            let _ = child.kill();
            panic!("{kind:?} does not listen; it said: {said}")
        });
        host.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let names = BTreeMap::from([("DIR".to_owned(), files.display().to_string())]);
        Self { kind, child, host, pending: Vec::new(), names, directory, asked: 0 }
    }

    /// The next reply; `None` if there is none for too long, or no agent.
    fn line(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(end) = self.pending.iter().position(|&byte| byte == b'\n') {
                let rest = self.pending.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.pending, rest);
                line.pop();
                return Some(line);
            }
            let mut more = [0; 8192];
            match self.host.read(&mut more) {
                Ok(read) if read > 0 => self.pending.extend_from_slice(&more[..read]),
                _ => return None,
            }
        }
    }

    /// Every reply up to that to a question of our own, which ends a line first.
    fn rest(&mut self) -> Vec<Vec<u8>> {
        self.asked += 1;
        let mark = format!("{{\"return\": {}}}", 7_000_000_000 + self.asked);
        let ask = format!("\n{{\"execute\":\"guest-sync\",\"arguments\":{{\"id\":{}}}}}\n", 7_000_000_000 + self.asked);
        self.host.write_all(ask.as_bytes()).expect("the agent takes bytes");
        let mut lines = Vec::new();
        while let Some(line) = self.line() {
            if line == mark.as_bytes() {
                return lines;
            }
            lines.push(line);
        }
        lines.push(b"(and then it fell silent)".to_vec());
        lines
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // postern's broker ends its family in order on SIGTERM.
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE && matches!(self.child.try_wait(), Ok(None)) {
            sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        if !std::thread::panicking() && self.kind == Kind::Postern {
            let base = self.directory.path();
            records::check_home(&base.join("log"), &base.join("stderr"));
        }
    }
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0)
}

/// Accounts for one postern, in effect as root only. It refuses accounts that
/// other processes use, such as another test's.
fn accounts() -> (u32, u32) {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let first = 1_000_000 + std::process::id() * 100 + NEXT.fetch_add(2, Ordering::Relaxed);
    (first, first + 1)
}

fn stock(base: &Path, socket: &Path) -> Command {
    let mut command = Command::new("/usr/sbin/qemu-ga");
    let withheld: Vec<_> =
        postern_core::catalogue::CATALOGUE.iter().filter(|e| e.command.is_none()).map(|e| e.name).collect();
    command.args(["-m", "unix-listen", "-b", &withheld.join(",")]);
    command.arg("-p").arg(socket).arg("-t").arg(base).arg("-f").arg(base.join("pid"));
    command
}

fn postern(base: &Path, socket: &Path, worker: u32, broker: u32) -> Command {
    let policy = base.join("policy.toml");
    // All but the freeze of everything, for the test machine's sake.
    let allowed: Vec<&str> = postern_core::catalogue::Command::all()
        .filter(|command| *command != postern_core::catalogue::Command::FsfreezeFreeze)
        .map(postern_core::catalogue::Command::name)
        .collect();
    let text = format!(
        "version = 1\nprofile = \"files\"\n\n\
         [commands]\nallow = {allowed:?}\n\n\
         [shutdown]\nmodes = [\"halt\"]\nmethod = \"auto\"\n\n\
         [[files]]\npath = \"{0}/files\"\nrights = [\"read\", \"write\", \"create\"]\n\n\
         [identities]\nworker = {worker}\nbroker = {broker}\n\n\
         [audit]\nlog = \"{0}/log/audit.jsonl\"\n\n[state]\ndirectory = \"{0}/state\"\n",
        base.display()
    );
    fs::write(&policy, text).expect("a policy");
    fs::set_permissions(&policy, Permissions::from_mode(0o644)).expect("chmod");
    let mut command = Command::new(BINARY);
    command.arg("run").arg("--policy").arg(policy);
    command.arg("--channel").arg(format!("unix-listen:{}", socket.display()));
    command
}

fn connect(socket: &Path, child: &mut Child) -> Option<UnixStream> {
    let begin = Instant::now();
    while begin.elapsed() < PATIENCE && matches!(child.try_wait(), Ok(None)) {
        if let Ok(host) = UnixStream::connect(socket) {
            return Some(host);
        }
        sleep(Duration::from_millis(10));
    }
    None
}

/// One line of a transcript that is not a title or comment.
#[derive(Debug)]
enum Step {
    Send(String),
    Expect(String),
    Differ { of: Kind, name: String, text: String },
    File { name: String, text: String },
}

#[derive(Debug)]
struct Conversation {
    title: String,
    chunked: bool,
    steps: Vec<Step>,
}

fn transcripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts")
}

fn read_transcript(name: &str) -> Vec<Conversation> {
    let text = fs::read_to_string(transcripts().join(name)).expect("a transcript");
    let mut conversations: Vec<Conversation> = Vec::new();
    // Not lines(): a carriage return would be part of what is sent.
    for line in text.split('\n').filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(title) = line.strip_prefix("== ") {
            let chunked = title.ends_with("[chunked]");
            conversations.push(Conversation { title: format!("{name}: {title}"), chunked, steps: Vec::new() });
            continue;
        }
        let (mark, text) = line.split_once(' ').unwrap_or((line, ""));
        let step = match mark.split_once(':') {
            None if mark == ">" => Step::Send(format!("{text}\n")),
            None if mark == ">>" => Step::Send(text.to_owned()),
            None if mark == "<" => Step::Expect(text.to_owned()),
            None if mark == "=" => {
                let (name, text) = text.split_once(' ').unwrap_or((text, ""));
                Step::File { name: name.to_owned(), text: text.to_owned() }
            }
            Some((of @ ("<stock" | "<postern"), name)) => {
                let of = if of == "<stock" { Kind::Stock } else { Kind::Postern };
                Step::Differ { of, name: name.to_owned(), text: text.to_owned() }
            }
            _ => panic!("{name}: no line begins with '{mark}'"),
        };
        conversations.last_mut().unwrap_or_else(|| panic!("{name} begins without a title")).steps.push(step);
    }
    conversations
}

/// The bytes that a transcript's text stands for.
fn bytes(text: &str, names: &BTreeMap<String, String>) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("%{") {
        let (inside, after) = after.split_once('}').expect("a closed placeholder");
        out.extend_from_slice(before.as_bytes());
        let hex: Option<Vec<u8>> =
            inside.split(' ').map(|pair| u8::from_str_radix(pair, 16).ok().filter(|_| pair.len() == 2)).collect();
        match (inside.split_once('*'), hex) {
            (Some((times, unit)), _) => out.extend(unit.repeat(times.parse().expect("a number")).bytes()),
            (None, Some(hex)) => out.extend(hex),
            (None, None) => {
                let value = names.get(inside).unwrap_or_else(|| panic!("nothing is named '{inside}' in: {text}"));
                out.extend_from_slice(value.as_bytes());
            }
        }
        rest = after;
    }
    out.extend_from_slice(rest.as_bytes());
    out
}

/// Whether `line` is what `text` says; remembers the number that it names.
fn matches(line: &[u8], text: &str, names: &mut BTreeMap<String, String>) -> bool {
    let Some((before, after)) = text.split_once("%{=") else { return line == bytes(text, names) };
    let (name, after) = after.split_once('}').expect("a closed placeholder");
    let (before, after) = (bytes(before, names), bytes(after, names));
    let number = line.strip_prefix(before.as_slice()).and_then(|line| line.strip_suffix(after.as_slice()));
    let Some(number) = number.and_then(|number| str::from_utf8(number).ok()) else { return false };
    names.insert(name.to_owned(), number.to_owned());
    number.parse::<u64>().is_ok()
}

/// Holds one conversation; appends what was wrong. Gives the number of replies.
fn hold(agent: &mut Agent, conversation: &Conversation, pieces: &[usize], wrong: &mut Vec<String>) -> usize {
    let mut replies = 0;
    let mut steps = conversation.steps.iter().peekable();
    let mut complain = |what: String, agent: &Agent| {
        wrong.push(format!("{:?}, {}, in pieces of {pieces:?}: {what}", agent.kind, conversation.title));
    };
    while let Some(step) = steps.next() {
        let expected = match step {
            Step::Send(text) => {
                let sent = bytes(text, &agent.names);
                send(&mut agent.host, &sent, pieces);
                None
            }
            Step::Expect(text) => Some(text),
            Step::Differ { of, text, .. } if *of == agent.kind => Some(text),
            Step::Differ { .. } => None,
            Step::File { name, text } => {
                let found = fs::read(agent.directory.path().join("files").join(name)).unwrap_or_default();
                if found != bytes(text, &agent.names) {
                    complain(format!("file {name} holds {:?}", found.escape_ascii().to_string()), agent);
                }
                None
            }
        };
        if let Some(text) = expected {
            replies += 1;
            // Waited for before anything more is sent: the reply needs none.
            let line = agent.line().unwrap_or_else(|| b"(nothing)".to_vec());
            if !matches(&line, text, &mut agent.names) {
                complain(format!("\n  wanted {text}\n  got    {}", line.escape_ascii()), agent);
            }
        }
        // After the last reply to what was sent, no other may come. Not before
        // it, nor within a request in pieces.
        let over = !matches!(step, Step::Send(_)) && matches!(steps.peek(), None | Some(Step::Send(_)));
        if over || steps.peek().is_none() {
            for line in agent.rest() {
                complain(format!("unexpected reply {}", line.escape_ascii()), agent);
            }
        }
    }
    replies
}

/// Writes in pieces of the given lengths, the last one repeated; pauses between
/// them, so that most are read one by one.
fn send(host: &mut UnixStream, mut bytes: &[u8], pieces: &[usize]) {
    let mut pieces = pieces.iter().copied();
    let mut piece = usize::MAX;
    while !bytes.is_empty() {
        piece = pieces.next().unwrap_or(piece);
        let (now, later) = bytes.split_at(piece.min(bytes.len()));
        host.write_all(now).expect("the agent takes bytes");
        bytes = later;
        if !bytes.is_empty() {
            sleep(Duration::from_micros(300));
        }
    }
}

fn converse(agent: &mut Agent, conversations: &[Conversation]) -> usize {
    let mut wrong = Vec::new();
    let mut replies = 0;
    for conversation in conversations {
        replies += hold(agent, conversation, &[], &mut wrong);
        if conversation.chunked {
            let Some(Step::Send(text)) = conversation.steps.first() else { panic!("nothing to cut") };
            hold(agent, conversation, &[1], &mut wrong);
            for at in 1..bytes(text, &agent.names).len() {
                hold(agent, conversation, &[at, usize::MAX], &mut wrong);
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {replies} replies:\n{}", wrong.len(), wrong.join("\n"));
    replies
}

fn ordinary() -> Vec<Conversation> {
    let files = ["framing", "syntax", "strings", "ids", "requests", "files", "base64", "limits"];
    let unprivileged = (!is_root()).then_some(&"unprivileged");
    files.iter().chain(unprivileged).flat_map(|name| read_transcript(&format!("{name}.txt"))).collect()
}

#[test]
fn stock_answers_as_recorded_and_postern_answers_as_stock() {
    let conversations = ordinary();
    for kind in [Kind::Stock, Kind::Postern] {
        let replies = converse(&mut Agent::start(kind), &conversations);
        assert!(replies >= 400, "{replies} replies of {kind:?}");
    }
}

/// The tests of acts, which hold that what they name is in the list and shows.
const ACTS: &str = concat!(include_str!("acts/beside.rs"), include_str!("vm/acts.rs"), include_str!("vm/virsh.rs"));

/// The names that the two parts of the list have: of replies, of acts.
fn parts(list: &str) -> [BTreeSet<&str>; 2] {
    let (replies, acts) = list.split_once("\n## Of acts\n").expect("two parts");
    [replies, acts].map(|part| {
        part.lines().filter_map(|line| line.strip_prefix("* `")?.split_once("`: ").map(|(name, _)| name)).collect()
    })
}

#[test]
fn every_difference_is_listed_and_every_listed_one_is_real() {
    let list = fs::read_to_string(transcripts().join("DIFFERENCES.md")).expect("the list");
    let [of_replies, of_acts] = parts(&list);
    let unshown: Vec<_> = of_acts.into_iter().filter(|name| !ACTS.contains(&format!("\"{name}\""))).collect();
    assert!(unshown.is_empty(), "no test of acts names {unshown:?}");
    let conversations: Vec<_> =
        ["frozen.txt", "unprivileged.txt"].map(read_transcript).into_iter().flatten().chain(ordinary()).collect();
    let mut shown = BTreeSet::new();
    for conversation in &conversations {
        let of = |kind| -> Vec<_> {
            let text = |step: &_| match step {
                Step::Differ { of, text, .. } if *of == kind => Some(text.clone()),
                _ => None,
            };
            conversation.steps.iter().filter_map(text).collect()
        };
        let (stock, postern) = (of(Kind::Stock), of(Kind::Postern));
        let same = stock.iter().any(|text| postern.contains(text));
        assert!(!same, "{}: a difference that is none", conversation.title);
        shown.extend(conversation.steps.iter().filter_map(|step| match step {
            Step::Differ { name, .. } => Some(name.as_str()),
            _ => None,
        }));
    }
    assert_eq!(shown, of_replies);
}

/// What `guest-info` lists, by name.
fn info(agent: &mut Agent) -> BTreeMap<String, serde_json::Value> {
    agent.host.write_all(b"{\"execute\":\"guest-info\"}").expect("the agent takes bytes");
    let info: serde_json::Value = serde_json::from_slice(&agent.line().expect("a reply")).expect("JSON");
    let version = info["return"]["version"].as_str().expect("a version");
    assert_eq!(version.split('.').filter(|part| part.parse::<u32>().is_ok()).count(), 3, "{version}");
    let entries = info["return"]["supported_commands"].as_array().expect("commands").clone();
    let named = |entry: serde_json::Value| (entry["name"].as_str().expect("a name").to_owned(), entry);
    entries.into_iter().map(named).collect()
}

/// Holds that `ours` says of every command what `stock` says, in the same three keys.
fn assert_same_info(mut stock: BTreeMap<String, serde_json::Value>, ours: &BTreeMap<String, serde_json::Value>) {
    // 7.2 lists it, always disabled on Linux; 10.x does not.
    stock.remove("guest-get-devices");
    for (name, theirs) in &stock {
        let ours = ours.get(name).unwrap_or_else(|| panic!("{name} is not listed"));
        // The transcripts' policy withholds the freeze of everything, for the test machine's sake.
        if name == "guest-fsfreeze-freeze" {
            assert_eq!(ours["enabled"], false);
        } else {
            assert_eq!(ours, theirs);
        }
        assert_eq!(ours.as_object().map(serde_json::Map::len), Some(3), "{name}");
    }
}

#[test]
fn guest_info_lists_what_stock_lists() {
    let [stock, ours] = [Kind::Stock, Kind::Postern].map(|kind| info(&mut Agent::start(kind)));
    assert_same_info(stock, &ours);
}

#[test]
fn while_frozen_both_answer_alike() {
    if !is_root() {
        println!("SKIPPED: freezing a scratch filesystem needs root");
        return;
    }
    let conversations = read_transcript("frozen.txt");
    let (frozen, thaw) = conversations.split_at(3);
    let [stock, ours] = [Kind::Stock, Kind::Postern].map(|kind| {
        let scratch = Scratch::mount();
        let mut agent = Agent::start(kind);
        agent.names.insert("MNT".to_owned(), scratch.mount.display().to_string());
        let replies = converse(&mut agent, frozen);
        let info = info(&mut agent);
        assert!(replies + converse(&mut agent, thaw) >= 17);
        info
    });
    assert_same_info(stock, &ours);
}

/// A small ext4 on a loop device; thawed and unmounted when dropped.
struct Scratch {
    mount: PathBuf,
    _directory: tempfile::TempDir,
}

impl Scratch {
    fn mount() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let base = directory.path().canonicalize().expect("its real path");
        fs::set_permissions(&base, Permissions::from_mode(0o755)).expect("chmod");
        let (image, mount) = (base.join("image"), base.join("mount"));
        fs::File::create(&image).and_then(|file| file.set_len(8 << 20)).expect("an image");
        fs::create_dir(&mount).expect("mkdir");
        run(Command::new("mkfs.ext4").arg("-q").arg("-F").arg(&image));
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&mount));
        Self { mount, _directory: directory }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Fails, and may, where nothing is frozen any more.
        let _ = Command::new("fsfreeze").arg("-u").arg(&self.mount).stderr(Stdio::null()).status();
        let _ = Command::new("umount").arg(&self.mount).status();
    }
}

fn run(command: &mut Command) {
    let status = command.status().unwrap_or_else(|why| panic!("{command:?}: {why}"));
    assert!(status.success(), "{command:?}: {status}");
}
