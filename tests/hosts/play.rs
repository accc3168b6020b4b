//! Plays a client's transcript to an agent, as the client's own source does it:
//! how it connects, synchronises, takes a reply, and lets go.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use memchr::{memchr, memrchr};
use serde_json::Value;

use super::script::{Keep, Kind, Script, Step, Sync, Way};

/// Waited for a reply, or so many times a client's own patience: no time is
/// asserted, on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(60);
const TIMES: u32 = 10;

/// Where a transcript is played.
pub(crate) struct Stage<'a> {
    pub(crate) kind: Kind,
    pub(crate) way: Way,
    /// A new connection, as the client's.
    pub(crate) connect: &'a dyn Fn() -> UnixStream,
    /// `DIR`, `MNT`.
    pub(crate) names: BTreeMap<String, String>,
}

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Played {
    /// Replies looked at.
    pub(crate) replies: usize,
    /// Checks that were made.
    pub(crate) checks: usize,
    /// What the client would not have taken.
    pub(crate) wrong: Vec<String>,
}

/// Plays it to the end, or to the first step with which the client is not content.
pub(crate) fn play(script: &Script, stage: &Stage<'_>) -> Played {
    let mut player = Player { script, stage, names: stage.names.clone(), link: None, commands: 0 };
    let mut played = Played::default();
    for step in script.steps.iter().filter(|step| step.is_for(stage.kind, stage.way)) {
        if let Err(why) = player.step(step, &mut played) {
            played.wrong.push(format!("{:?}, {}: {why}", stage.kind, step.title));
            break;
        }
    }
    played
}

struct Player<'a> {
    script: &'a Script,
    stage: &'a Stage<'a>,
    names: BTreeMap<String, String>,
    link: Option<Link>,
    /// Sent so far; Proxmox's counter.
    commands: u64,
}

impl Player<'_> {
    fn step(&mut self, step: &Step, played: &mut Played) -> Result<(), String> {
        let mut gathered = Vec::new();
        loop {
            let request = self.fill(&step.send);
            let Some(reply) = self.ask(&request, step)? else { return Ok(()) };
            played.replies += 1;
            let kind = self.stage.kind;
            for check in step.checks.iter().filter(|check| check.of.is_none_or(|of| of == kind)) {
                played.checks += 1;
                if !check.holds(&reply) {
                    let said: String = reply.to_string().chars().take(600).collect();
                    return Err(format!("does not hold: {}\n  got {said}", check.text));
                }
            }
            for Keep { name, at, .. } in step.keeps.iter().filter(|keep| keep.of.is_none_or(|of| of == kind)) {
                let value = reply.pointer(at).ok_or_else(|| format!("there is no {at}"))?;
                self.names.insert(name.clone(), value.to_string());
            }
            let limit = step.gather.as_ref().map_or(usize::MAX, |(_, limit)| *limit);
            if step.gather.is_some() {
                let text = reply.pointer("/return/buf-b64").and_then(Value::as_str).unwrap_or_default();
                gathered.extend(STANDARD.decode(text).map_err(|why| format!("buf-b64: {why}"))?);
            }
            let over = step.until.as_ref().is_none_or(|at| reply.pointer(at) == Some(&Value::Bool(true)));
            if !over && step.gather.is_some() && reply.pointer("/return/count") == Some(&Value::from(0)) {
                return Err("the client would read nothing for ever".to_owned());
            }
            if over || gathered.len() >= limit {
                break;
            }
        }
        match &step.gather {
            Some((name, limit)) if gathered != self.content(name, *limit) => {
                Err(format!("{} bytes were read, and are not those of {name}", gathered.len()))
            }
            _ => Ok(()),
        }
    }

    /// What reading this must have given.
    fn content(&self, name: &str, limit: usize) -> Vec<u8> {
        match (self.script.bytes.get(name), self.script.files.get(name)) {
            (Some(bytes), _) => bytes[..bytes.len().min(limit)].to_vec(),
            (None, Some(size)) => vec![0; (*size).min(limit)],
            (None, None) => panic!("{}: what is {name}?", self.script.file),
        }
    }

    /// Sends a request as the client does; `None` if it does not read the reply.
    fn ask(&mut self, request: &str, step: &Step) -> Result<Option<Value>, String> {
        self.commands += 1;
        let mut link = match self.link.take() {
            Some(link) => link,
            None => Link::new(self.stage, self.script)?,
        };
        let number: u64 = format!("{}0{}", std::process::id(), self.commands).parse().expect("a number");
        let bytes = match self.script.sync {
            Sync::First => request.to_owned(),
            Sync::Delimited => {
                format!("{{\"arguments\":{{\"id\":{number}}},\"execute\":\"guest-sync-delimited\"}}\n{request}")
            }
        };
        link.send(bytes.as_bytes())?;
        if step.hangs_up {
            return Ok(None);
        }
        if step.silent {
            if self.script.sync == Sync::Delimited {
                link.only_sync(number)?;
            }
            return Ok(None);
        }
        let reply = match self.script.sync {
            Sync::First => link.reply()?,
            Sync::Delimited => link.reply_after(number)?,
        };
        if self.script.one_connection {
            self.link = Some(link);
        }
        Ok(Some(reply))
    }

    /// The bytes that a text of the transcript stands for.
    fn fill(&self, text: &str) -> String {
        let mut out = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("%{") {
            let (inside, after) = after.split_once('}').expect("a closed placeholder");
            out.push_str(before);
            let words: Vec<&str> = inside.split(' ').collect();
            match words[..] {
                [name] => {
                    let value = self.names.get(name).unwrap_or_else(|| panic!("nothing is named {name}: {text}"));
                    out.push_str(value);
                }
                [name, from, length, ref line @ ..] => {
                    let number = |word: &str| word.parse::<usize>().expect("a number");
                    let slice = &self.script.bytes[name][number(from)..][..number(length)];
                    out.push_str(&encode(slice, line.first().map(|word| number(word))));
                }
                _ => panic!("not understood: %{{{inside}}}"),
            }
            rest = after;
        }
        out + rest
    }
}

/// Base64; in a JSON string, `\n` after each line of so many characters.
fn encode(bytes: &[u8], line: Option<usize>) -> String {
    let text = STANDARD.encode(bytes);
    let Some(line) = line else { return text };
    let lines = text.as_bytes().chunks(line).map(|line| str::from_utf8(line).expect("base64"));
    lines.flat_map(|line| [line, "\\n"]).collect()
}

/// A connection of the client.
struct Link {
    stream: UnixStream,
    pending: Vec<u8>,
    longest: usize,
    patience: Duration,
}

impl Link {
    /// Connects, and synchronises if the client does that once.
    fn new(stage: &Stage<'_>, script: &Script) -> Result<Self, String> {
        let patience = PATIENCE.max(Duration::from_secs(script.seconds) * TIMES);
        let stream = (stage.connect)();
        stream.set_read_timeout(Some(patience)).expect("a time limit");
        stream.set_write_timeout(Some(patience)).expect("a time limit");
        let mut link = Self { stream, pending: Vec::new(), longest: script.longest, patience };
        if script.sync == Sync::First {
            link.synchronise()?;
        }
        Ok(link)
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.stream.write_all(bytes).map_err(|why| format!("the agent takes no bytes: {why}"))
    }

    /// As libvirt: one line of garbage is left over, and asked over once; what
    /// returns another number, or none, is an earlier command's.
    fn synchronise(&mut self) -> Result<(), String> {
        for first in [true, false] {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock");
            let number = u64::try_from(now.as_millis()).expect("a number");
            self.send(format!("{{\"execute\":\"guest-sync\", \"arguments\":{{\"id\":{number}}}}}\n").as_bytes())?;
            loop {
                let line = self.line()?;
                match serde_json::from_slice::<Value>(&line) {
                    Ok(reply) if reply["return"] == number => return Ok(()),
                    Ok(Value::Object(_)) => {}
                    _ if first => break,
                    _ => return Err(format!("no sync, but {}", line.escape_ascii())),
                }
            }
        }
        Err("garbage twice".to_owned())
    }

    /// As libvirt: the next line is the reply.
    fn reply(&mut self) -> Result<Value, String> {
        let line = self.line()?;
        let reply: Value = serde_json::from_slice(&line).map_err(|why| format!("{why}: {}", line.escape_ascii()))?;
        let known = reply.get("return").is_some() != reply.get("error").is_some();
        if known { Ok(reply) } else { Err(format!("neither return nor error: {reply}")) }
    }

    /// As Proxmox: after the last 0xFF two whole lines, the first with the number;
    /// with a smaller one they are an earlier command's.
    fn reply_after(&mut self, number: u64) -> Result<Value, String> {
        let started = Instant::now();
        while started.elapsed() < self.patience {
            let Some(mark) = memrchr(0xff, &self.pending) else {
                self.more()?;
                continue;
            };
            let after = &self.pending[mark + 1..];
            let end = memchr(b'\n', after).map(|end| (end, memchr(b'\n', &after[end + 1..])));
            let Some((end, Some(next))) = end else {
                self.more()?;
                continue;
            };
            let [sync, reply] = [&after[..end], &after[end + 1..][..next]].map(|line| {
                serde_json::from_slice::<Value>(line).map_err(|why| format!("{why}: {}", line.escape_ascii()))
            });
            let found = sync?["return"].as_u64().ok_or("the sync returns no number")?;
            if found == number {
                return reply;
            }
            if found > number {
                return Err(format!("the number is {found}, not {number}"));
            }
            self.pending.drain(..=mark);
        }
        Err("no reply".to_owned())
    }

    /// After the last 0xFF the line with the number, and nothing behind it.
    fn only_sync(&mut self, number: u64) -> Result<(), String> {
        while !self.pending.contains(&0xff) || self.pending.last() != Some(&b'\n') {
            self.more()?;
        }
        let mark = memrchr(0xff, &self.pending).ok_or("no 0xFF")?;
        self.pending.drain(..=mark);
        let line = self.line()?;
        let reply: Value = serde_json::from_slice(&line).map_err(|why| format!("{why}: {}", line.escape_ascii()))?;
        if reply["return"] == number { Ok(()) } else { Err(format!("no sync, but {reply}")) }
    }

    fn line(&mut self) -> Result<Vec<u8>, String> {
        loop {
            if let Some(end) = memchr(b'\n', &self.pending).filter(|end| *end < self.longest) {
                let rest = self.pending.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.pending, rest);
                line.pop();
                return Ok(line);
            }
            self.more()?;
        }
    }

    fn more(&mut self) -> Result<(), String> {
        if self.pending.len() >= self.longest {
            return Err(format!("no whole reply in {} bytes", self.longest));
        }
        let mut bytes = [0; 16384];
        match self.stream.read(&mut bytes) {
            Ok(0) => Err("the agent closed the connection".to_owned()),
            Ok(read) => {
                self.pending.extend_from_slice(&bytes[..read]);
                Ok(())
            }
            Err(why) if why.kind() == ErrorKind::Interrupted => Ok(()),
            Err(why) => Err(format!("no reply: {why}")),
        }
    }
}
