//! The demo's steps, in their order.
//!
//! Trust: what the agent answers is compared with what its policy wants; texts
//! of refusals come from the audit log, which the broker wrote.

use std::fs::{self, File};
use std::io::BufReader;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use super::paint::Paint;
use super::scratch::{BEFORE, DURING, Scratch};
use super::stage::{Agent, Stage};
use super::{DemoError, Interrupts, file, processes, unexpected};
use crate::audit;
use crate::client::{Client, Refusal};

const GREETING: &str = "Hello from the host.";
/// Where in the greeting the seek goes, and what stands there.
const SEEK: (usize, &str) = (6, "from the host.");

/// Tells the story. Returns how many steps did not end as expected.
pub(super) fn tell(keep: Option<&Path>, paint: &Paint) -> Result<usize, DemoError> {
    let interrupts = Interrupts::hold()?;
    let stage = Stage::set(keep)?;
    // Guards go in reverse: the agent ends, and thaws, before the filesystem is
    // taken away.
    let scratch = Scratch::make(&stage);
    Paint::line(&format!(
        "postern demo: the real agent in {}, and this program as its host",
        stage.directory.display()
    ));
    paint.heading("The agent starts");
    paint.remark(&format!(
        "  postern run --policy {} --channel unix-listen:{}",
        stage.at("policy.toml").display(),
        stage.socket().display()
    ));
    let (agent, client) = Agent::start(&stage, &interrupts)?;
    let mut story = Story { paint, stage: &stage, interrupts, client, wrong: 0 };
    story.told(agent, scratch)?;
    let wrong = story.wrong;
    if keep.is_some() {
        let directory = stage.directory.display();
        paint.heading(&format!("Kept in {directory}"));
        Paint::line("  policy.toml, log/audit.jsonl, agent.log (what the agent said), files/, secret.txt");
        Paint::line(&format!("  postern audit show {}", stage.log().display()));
    }
    Ok(wrong)
}

struct Story<'a> {
    paint: &'a Paint,
    stage: &'a Stage,
    interrupts: Interrupts,
    client: Client,
    wrong: usize,
}

impl Story<'_> {
    fn told(&mut self, mut agent: Agent, mut scratch: Result<Scratch, String>) -> Result<(), DemoError> {
        let opened = self.last_record("log-opened")?;
        let abi = &opened["postern"]["landlock_abi"];
        let cast = self.stage.cast.describe();
        self.good("started", &format!("broker, spawner, opener and worker; Landlock ABI {abi}, {cast}"));

        self.paint.heading("The host asks");
        self.step("guest-info", Self::info)?;
        let mut handle = Value::Null;
        self.step("write a file", |story| story.write(&mut handle))?;
        self.step("read it back", |story| story.read_back(&handle))?;
        self.step("seek in it", |story| story.seek(&handle))?;
        self.step("outside the policy", |story| story.refused("secret.txt", "policy"))?;
        self.step("a link out of it", |story| story.refused("files/link", "opener"))?;
        self.step("guest-shutdown", Self::shutdown)?;
        match &mut scratch {
            Ok(scratch) => {
                self.step("freeze", |story| story.freeze(scratch))?;
                self.step("a write meanwhile", |story| story.blocked(scratch))?;
                self.step("thaw", |story| story.thaw(scratch))?;
            }
            Err(why) => self.paint.left_out("freeze and thaw", why),
        }

        self.paint.heading("What each process may do, from /proc");
        self.processes(agent.pid())?;
        self.step("close", |story| {
            story.call("guest-file-close", &json!({"handle": handle})).map(|_| "the file".into())
        })?;

        self.paint.heading("The agent ends");
        self.step("SIGTERM", |_| {
            let status = agent.stop()?;
            if status.success() { Ok(format!("{status}")) } else { unexpected(format!("{status}\n{}", agent.said())) }
        })?;

        self.paint.heading("The audit log");
        let log = self.stage.log();
        let records = File::open(&log).map_err(file("opening", &log))?;
        let table = audit::table(BufReader::new(records)).map_err(file("reading", &log))?;
        // Nobody is left to tell if stdout is closed.
        Paint::line(table.trim_end());
        Paint::line("");
        self.step("the chain", |_| Ok(audit::verify(&[&log])?.to_string().replace('\n', "; ")))?;
        self.step("an edit", Self::tampered)
    }

    fn good(&self, name: &str, text: &str) {
        self.paint.good(name, text);
    }

    /// One step. Only what makes further steps pointless is an error.
    fn step(&mut self, name: &str, act: impl FnOnce(&mut Self) -> Result<String, DemoError>) -> Result<(), DemoError> {
        self.interrupts.check()?;
        match act(self) {
            Ok(text) => self.good(name, &text),
            Err(error @ (DemoError::Interrupted(_) | DemoError::Lost(_))) => return Err(error),
            Err(error) => {
                self.wrong += 1;
                self.paint.wrong(name, &error.to_string());
            }
        }
        Ok(())
    }

    /// Asks the agent; an error reply is an error.
    fn call(&mut self, command: &str, arguments: &Value) -> Result<Value, DemoError> {
        Ok(self.client.ask(command, Some(&arguments.to_string()))?.outcome?)
    }

    /// Asks the agent for what it must refuse.
    fn refusal(&mut self, command: &str, arguments: &Value) -> Result<Refusal, DemoError> {
        match self.client.ask(command, Some(&arguments.to_string()))?.outcome {
            Err(refusal) => Ok(refusal),
            Ok(value) => unexpected(format!("it was allowed, and returned {value}")),
        }
    }

    /// The newest record of an action.
    fn last_record(&self, action: &str) -> Result<Value, DemoError> {
        let log = self.stage.log();
        let text = fs::read_to_string(&log).map_err(file("reading", &log))?;
        let records = text.lines().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        match records.into_iter().find(|record| record["event"]["action"] == action) {
            Some(record) => Ok(record),
            None => unexpected(format!("there is no record of {action}")),
        }
    }

    fn info(&mut self) -> Result<String, DemoError> {
        let info = self.call("guest-info", &json!({}))?;
        let all = info["supported_commands"].as_array().cloned().unwrap_or_default();
        let is_on = |name: &str| all.iter().any(|one| one["name"] == name && one["enabled"] == true);
        if !is_on("guest-file-open") || is_on("guest-shutdown") || is_on("guest-exec") {
            return unexpected("it lists other commands than the policy allows");
        }
        let on = all.iter().filter(|one| one["enabled"] == true).count();
        let version = info["version"].as_str().unwrap_or_default();
        Ok(format!(
            "version {version}, {on} of {} commands on: what the policy allows, no exec, no shutdown",
            all.len()
        ))
    }

    fn open(&mut self, path: &Path, mode: &str) -> Result<Value, DemoError> {
        self.call("guest-file-open", &json!({"path": path.to_string_lossy(), "mode": mode}))
    }

    fn read(&mut self, handle: &Value) -> Result<Vec<u8>, DemoError> {
        let read = self.call("guest-file-read", &json!({"handle": handle}))?;
        match read["buf-b64"].as_str().map(|text| BASE64.decode(text)) {
            Some(Ok(bytes)) if read["eof"] == true => Ok(bytes),
            _ => unexpected(format!("no whole content in {read}")),
        }
    }

    fn rewind(&mut self, handle: &Value, offset: usize) -> Result<Value, DemoError> {
        let seek = json!({"handle": handle, "offset": offset, "whence": "set"});
        Ok(self.call("guest-file-seek", &seek)?["position"].clone())
    }

    fn write(&mut self, handle: &mut Value) -> Result<String, DemoError> {
        *handle = self.open(&self.stage.at("files/greeting.txt"), "w+")?;
        let written = self.call("guest-file-write", &json!({"handle": handle, "buf-b64": BASE64.encode(GREETING)}))?;
        let text = fs::read_to_string(self.stage.at("files/greeting.txt"))
            .map_err(file("reading", self.stage.at("files/greeting.txt")))?;
        if written["count"] != GREETING.len() || text != GREETING {
            return unexpected(format!("the file holds \"{text}\""));
        }
        Ok(format!("files/greeting.txt: created, handle {handle}, {} bytes written", text.len()))
    }

    fn read_back(&mut self, handle: &Value) -> Result<String, DemoError> {
        self.rewind(handle, 0)?;
        let bytes = self.read(handle)?;
        let text = String::from_utf8_lossy(&bytes);
        if text == GREETING { Ok(format!("\"{text}\"")) } else { unexpected(format!("\"{text}\"")) }
    }

    fn seek(&mut self, handle: &Value) -> Result<String, DemoError> {
        let (offset, rest) = SEEK;
        let position = self.rewind(handle, offset)?;
        let bytes = self.read(handle)?;
        let text = String::from_utf8_lossy(&bytes);
        let told = format!("to byte {position}: \"{text}\"");
        if position == offset && text == rest { Ok(told) } else { unexpected(told) }
    }

    /// Opens what must not be opened. The log tells who refused it and why.
    fn refused(&mut self, name: &str, by: &str) -> Result<String, DemoError> {
        let path = self.stage.at(name);
        let path = path.to_string_lossy();
        let refusal = self.refusal("guest-file-open", &json!({"path": path, "mode": "r"}))?;
        let record = self.last_record("guest-file-open")?;
        let ours = &record["postern"];
        if ours["requested"] != *path || ours["stage"] != "refused" || ours["refused_by"] != by {
            return unexpected(format!("refused ({}), but the record says {ours}", refusal.text));
        }
        let reason = record["event"]["reason"].as_str().unwrap_or_default();
        let errno = ours["errno"].as_str().unwrap_or_default();
        let leads = if by == "opener" { " → secret.txt" } else { ", which any account may read" };
        Ok(format!("{name}{leads}: {errno}, refused by the {by}: {reason}"))
    }

    fn shutdown(&mut self) -> Result<String, DemoError> {
        let refusal = self.refusal("guest-shutdown", &json!({}))?;
        Ok(format!("{}: {}", refusal.class, refusal.text))
    }

    fn status(&mut self, wanted: &str) -> Result<(), DemoError> {
        let status = self.call("guest-fsfreeze-status", &json!({}))?;
        if status == wanted { Ok(()) } else { unexpected(format!("guest-fsfreeze-status is {status}")) }
    }

    fn freeze(&mut self, scratch: &Scratch) -> Result<String, DemoError> {
        let mountpoint = scratch.mountpoint.to_string_lossy();
        let frozen = self.call("guest-fsfreeze-freeze-list", &json!({"mountpoints": [mountpoint]}))?;
        if frozen != 1 {
            return unexpected(format!("{frozen} filesystems were frozen"));
        }
        self.status("frozen")?;
        Ok("scratch/, an ext4 on a loop device: 1 filesystem frozen, the status says so".to_owned())
    }

    fn blocked(&mut self, scratch: &mut Scratch) -> Result<String, DemoError> {
        let pid = scratch.write(&self.interrupts)?;
        let diary = scratch.read()?;
        if diary != BEFORE {
            return unexpected(format!("the file holds {diary:?}"));
        }
        Ok(format!("process {pid} of the guest writes, and waits in the kernel (state D); reading goes on"))
    }

    fn thaw(&mut self, scratch: &mut Scratch) -> Result<String, DemoError> {
        let thawed = self.call("guest-fsfreeze-thaw", &json!({}))?;
        if thawed != 1 {
            return unexpected(format!("{thawed} filesystems were thawed"));
        }
        self.status("thawed")?;
        scratch.finish(&self.interrupts)?;
        let diary = scratch.read()?;
        if diary != format!("{BEFORE}{DURING}") {
            return unexpected(format!("the file holds {diary:?}"));
        }
        Ok("1 filesystem thawed; the write has gone through".to_owned())
    }

    fn processes(&mut self, broker: u32) -> Result<(), DemoError> {
        let family = processes::family(broker, &self.stage.directory)?;
        for process in &family {
            for line in process.lines() {
                Paint::line(&format!("  {line}"));
            }
        }
        self.step("compared", |story| {
            let names: Vec<&str> = family.iter().map(processes::Process::name).collect();
            if names != ["postern-broker", "postern-spawner", "postern-opener", "postern-worker"] {
                return unexpected(format!("these processes run: {}", names.join(", ")));
            }
            family.iter().try_for_each(|process| process.check(story.stage.cast.is_whole()))?;
            let broker = if story.stage.cast.is_whole() { " but the broker, for freezing" } else { "" };
            Ok(format!("none is root, none holds a capability{broker}; each has its filter"))
        })
    }

    /// Changes a copy of the log as somebody might who wants to hide a refusal.
    fn tampered(&mut self) -> Result<String, DemoError> {
        let copy = self.stage.at("log/edited.jsonl");
        let text = fs::read_to_string(self.stage.log()).map_err(file("reading", self.stage.log()))?;
        let edited = text.replacen("\"stage\":\"refused\"", "\"stage\":\"granted\"", 1);
        fs::write(&copy, &edited).map_err(file("writing", &copy))?;
        let found = audit::verify(&[&copy]);
        fs::remove_file(&copy).map_err(file("removing", &copy))?;
        match found {
            Err(audit::Problem::Broken(broken)) if edited != text => {
                Ok(format!("of a copy, that makes a refusal a grant: found in line {}", broken.place.line))
            }
            _ => unexpected("a changed copy of the log passes for whole"),
        }
    }
}
