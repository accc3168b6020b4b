//! An ext4 image of the demo's own, on a loop device, to be frozen: and a
//! program of the guest that writes to it meanwhile.
//!
//! Trust: runs the system's own tools as root on files that the demo made. The
//! guard thaws, unmounts and gives the loop device back.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::stage::Stage;
use super::{DemoError, Interrupts, file, unexpected};

/// Room for an ext4 with its journal, in bytes. The file is sparse.
const SIZE: u64 = 16 << 20;

/// How long a writer may take to be stopped by the kernel, or to end. It takes
/// milliseconds; a busy machine more.
const PATIENCE: Duration = Duration::from_secs(20);

/// How often is looked whether it has.
const LOOK: Duration = Duration::from_millis(20);

/// What stands in the diary before the freeze, and what is added during it.
pub(super) const BEFORE: &str = "before\n";
pub(super) const DURING: &str = "during\n";

/// A mounted filesystem of the demo's own.
pub(super) struct Scratch {
    image: PathBuf,
    device: Option<String>,
    pub(super) mountpoint: PathBuf,
    mounted: bool,
    writer: Option<Child>,
}

impl Scratch {
    /// Makes and mounts it, or says why that cannot be done here.
    pub(super) fn make(stage: &Stage) -> Result<Self, String> {
        if !stage.cast.is_whole() {
            return Err("freezing takes an agent started as root".to_owned());
        }
        let mut scratch = Self {
            image: stage.at("scratch.ext4"),
            device: None,
            mountpoint: stage.at("scratch"),
            mounted: false,
            writer: None,
        };
        let failed = |why: std::io::Error| format!("no scratch filesystem: {why}");
        File::create_new(&scratch.image).and_then(|image| image.set_len(SIZE)).map_err(failed)?;
        fs::create_dir(&scratch.mountpoint).map_err(failed)?;
        run(tool("mkfs.ext4").args(["-q", "-F"]).arg(&scratch.image))?;
        let device = run(tool("losetup").args(["--find", "--show"]).arg(&scratch.image))?;
        scratch.device = Some(device.clone());
        run(tool("mount").args(["-t", "ext4", "-o", "nosuid,nodev,noexec"]).arg(&device).arg(&scratch.mountpoint))?;
        scratch.mounted = true;
        fs::write(scratch.diary(), BEFORE).map_err(failed)?;
        Ok(scratch)
    }

    fn diary(&self) -> PathBuf {
        self.mountpoint.join("diary.txt")
    }

    pub(super) fn read(&self) -> Result<String, DemoError> {
        let diary = self.diary();
        fs::read_to_string(&diary).map_err(file("reading", diary))
    }

    /// Starts a program that adds to the diary, and waits until the kernel has
    /// stopped it. Returns its process id.
    pub(super) fn write(&mut self, interrupts: &Interrupts) -> Result<u32, DemoError> {
        let script = format!("printf '{}' >> \"$1\"", DURING.replace('\n', "\\n"));
        let writer = tool("sh")
            .args(["-c", &script, "sh"])
            .arg(self.diary())
            .stdin(Stdio::null())
            .spawn()
            .map_err(|why| DemoError::Call("starting sh", why))?;
        let pid = writer.id();
        self.writer = Some(writer);
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            interrupts.check()?;
            if self.ended()? {
                return unexpected("the write went through");
            }
            if waits_in_kernel(pid) {
                return Ok(pid);
            }
            sleep(LOOK);
        }
        unexpected("the writer neither ended nor waits")
    }

    /// Waits until the writer has ended.
    pub(super) fn finish(&mut self, interrupts: &Interrupts) -> Result<(), DemoError> {
        let until = Instant::now() + PATIENCE;
        while !self.ended()? {
            interrupts.check()?;
            if Instant::now() > until {
                return unexpected("the write still waits");
            }
            sleep(LOOK);
        }
        Ok(())
    }

    fn ended(&mut self) -> Result<bool, DemoError> {
        let Some(writer) = &mut self.writer else { return Ok(true) };
        Ok(writer.try_wait().map_err(|why| DemoError::Call("waiting for the writer", why))?.is_some())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.mounted {
            // Only if the agent was killed while it was frozen; otherwise this
            // fails, and that is fine.
            _ = run(tool("fsfreeze").arg("--unfreeze").arg(&self.mountpoint));
        }
        if let Some(writer) = &mut self.writer {
            _ = writer.kill();
            _ = writer.wait();
        }
        if self.mounted && run(tool("umount").arg(&self.mountpoint)).is_err() {
            // Somebody looks into it: it goes when they leave.
            _ = run(tool("umount").arg("--lazy").arg(&self.mountpoint));
        }
        if let Some(device) = &self.device {
            _ = run(tool("losetup").arg("--detach").arg(device));
        }
        _ = fs::remove_dir(&self.mountpoint);
        _ = fs::remove_file(&self.image);
    }
}

/// State D: waiting, in a way that no signal ends.
fn waits_in_kernel(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name in brackets may hold anything.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('D'))
}

fn tool(name: &str) -> Command {
    let mut tool = Command::new(name);
    // `su` leaves root without the directories of system tools.
    let path = std::env::var("PATH").unwrap_or_default();
    tool.env("PATH", format!("{path}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin")).env("LC_ALL", "C");
    tool
}

/// Runs a tool; what it printed, or why it failed in one line.
fn run(command: &mut Command) -> Result<String, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().map_err(|why| format!("{name}: {why}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let line = said.lines().find(|line| !line.trim().is_empty()).unwrap_or("failed").trim();
    Err(if line.starts_with(&name) { line.to_owned() } else { format!("{name}: {line}") })
}
