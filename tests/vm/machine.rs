//! One virtual machine: QEMU, a console kept in a file, a shell in the guest
//! on its second serial port, QMP, and the host's end of the agent's port.
//! Ended with all it has when it goes out of scope.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::guests::{self, Kernel, Processor, Userland};
use crate::shell::{Shell, dial};
use crate::support::agent::{Host, within};
use crate::support::runner;

/// What takes longer hangs. Emulated, on a busy machine, a boot takes a minute.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

/// Waits with [`PATIENCE`] until `look` sees something.
pub(crate) fn eventually<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    within(PATIENCE, Duration::from_millis(100), what, look)
}

/// The port's name, by which every host looks for it.
pub(crate) const PORT: &str = "org.qemu.guest_agent.0";

/// What to boot.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) kernel: Kernel,
    pub(crate) userland: Userland,
    /// Added to the kernel's command line.
    append: String,
    /// Files put into the root filesystem before its init starts.
    payload: Vec<(String, Vec<u8>, u32)>,
    /// Whether the stock agent, if the userland has it, may start.
    stock: bool,
    /// Added to QEMU's command line.
    devices: Vec<String>,
    /// MiB.
    pub(crate) memory: u32,
    /// Virtual processors.
    pub(crate) processors: u32,
}

impl Setup {
    /// A kernel and a userland, without postern.
    pub(crate) fn new(kernel: Kernel, userland: Userland) -> Self {
        let memory = if userland == Userland::Busybox { 256 } else { 512 };
        let (append, payload, devices) = (String::new(), Vec::new(), Vec::new());
        Self { kernel, userland, append, payload, stock: false, devices, memory, processors: 1 }
    }

    /// With a file in the guest.
    pub(crate) fn file(mut self, path: &str, content: impl Into<Vec<u8>>, mode: u32) -> Self {
        assert!(path.starts_with('/'), "{path}");
        self.payload.push((path.to_owned(), content.into(), mode));
        self
    }

    /// With the executable that ships and a policy; nothing starts it yet.
    pub(crate) fn with_postern(self, policy: &str) -> Self {
        let executable = fs::read(guests::executable(self.kernel.processor)).expect("the static executable");
        self.file("/usr/bin/postern", executable, 0o711).file("/etc/postern/policy.toml", policy, 0o644)
    }

    /// With the newer release's stock agent, wherever it finds its place; nothing
    /// starts it yet.
    pub(crate) fn with_newer_stock(mut self) -> Self {
        for entry in fs::read_dir(guests::newer_stock()).expect("the newer stock").flatten() {
            let content = fs::read(entry.path()).expect("a file of the newer stock");
            self = self.file(&format!("/stock/{}", entry.file_name().display()), content, 0o755);
        }
        self
    }

    /// With the stock agent running.
    pub(crate) fn with_stock(mut self) -> Self {
        self.stock = true;
        self
    }

    /// With more words on the kernel's command line.
    pub(crate) fn append(mut self, words: &str) -> Self {
        words.clone_into(&mut self.append);
        self
    }

    /// With more of QEMU's arguments.
    pub(crate) fn with_devices(mut self, arguments: &[&str]) -> Self {
        self.devices.extend(arguments.iter().map(|one| (*one).to_owned()));
        self
    }

    /// The kernel's command line.
    pub(crate) fn command_line(&self) -> String {
        let mask = if self.stock { "" } else { "systemd.mask=qemu-guest-agent.service" };
        let console = match self.kernel.processor {
            // Its timer is not looked for: where the host is busy it comes late, and the kernel panics.
            Processor::X86_64 => "ttyS0 no_timer_check",
            Processor::Aarch64 => "ttyAMA0",
        };
        format!("console={console} quiet panic=-1 {mask} {}", self.append)
    }

    /// The kernel's initrd with the payload as a second archive behind it.
    pub(crate) fn initrd(&self, kernel: &Path, scratch: &Path) -> PathBuf {
        let tree = scratch.join("payload");
        for (path, content, mode) in &self.payload {
            let path = tree.join("payload").join(path.trim_start_matches('/'));
            fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
            fs::write(&path, content).expect("a file of the payload");
            fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).expect("its mode");
        }
        let initrd = scratch.join("initrd");
        fs::copy(kernel.join("initrd"), &initrd).expect("the initrd");
        if !self.payload.is_empty() {
            let end = File::options().append(true).open(&initrd).expect("the initrd");
            let packed = Command::new("sh")
                .args(["-c", "find . | cpio --quiet -o -H newc -R 0:0"])
                .current_dir(&tree)
                .stdout(end)
                .status()
                .expect("sh");
            assert!(packed.success(), "cpio: {packed}");
        }
        initrd
    }
}

/// What the table of results shows of each test.
pub(crate) const COLUMNS: &[&str] = &["kernel", "userland", "Landlock ABI", "accelerator", "boot", "found"];

/// Notes a row with these. Of Landlock what the kernel must have, which
/// `boots` holds it to.
pub(crate) fn note(shell: &mut Shell, kernel: Kernel, userland: Userland, boot: Duration, found: &str) {
    let release = shell.sh("uname -r");
    runner::note(&format!(
        "{} | {} | {} | {} | {:.1} s | {found}",
        release.trim(),
        userland.name(),
        kernel.landlock,
        accelerator(),
        boot.as_secs_f64()
    ));
}

/// How QEMU runs a guest's code here, and why.
pub(crate) fn accelerator() -> &'static str {
    // An explicit wish; /dev/kvm may open and yet not run a guest.
    if std::env::var_os("POSTERN_VM_KVM").is_some() { "kvm" } else { "tcg" }
}

pub(crate) fn say_accelerator() {
    if !std::env::args().any(|argument| argument == "--in-namespace" || argument == "--list") {
        println!("QEMU's accelerator: {} (POSTERN_VM_KVM=1 asks for kvm)", accelerator());
    }
}

/// A QMP connection.
struct Qmp(BufReader<UnixStream>);

impl Qmp {
    fn line(&mut self) -> Value {
        let mut line = String::new();
        let length = self.0.read_line(&mut line).expect("QMP speaks");
        assert!(length > 0, "QEMU ended");
        serde_json::from_str(&line).expect("QMP is JSON")
    }
}

/// A running machine.
pub(crate) struct Machine {
    qemu: Child,
    shell: Shell,
    qmp: Qmp,
    /// Events that came while something else was awaited.
    events: Vec<Value>,
    pub(crate) directory: TempDir,
    kernel: Kernel,
    userland: Userland,
    /// From QEMU's start to a shell.
    boot: Duration,
}

impl Machine {
    /// Boots and waits for a shell in the guest.
    pub(crate) fn boot(setup: &Setup) -> Self {
        let directory = tempfile::Builder::new().prefix("postern-vm-").tempdir().expect("a temporary directory");
        let mut command = Self::command(setup, directory.path());
        let started = Instant::now();
        let mut qemu = command.spawn().expect("QEMU");
        let mut qmp = Qmp(dial(&directory.path().join("qmp"), || {
            assert!(qemu.try_wait().expect("QEMU's status").is_none(), "QEMU did not start");
        }));
        qmp.line();
        let shell = Shell::connect(&directory.path().join("control"), &directory.path().join("console"));
        let Setup { kernel, userland, .. } = *setup;
        let (events, boot) = (Vec::new(), Duration::ZERO);
        let mut machine = Self { qemu, shell, qmp, events, directory, kernel, userland, boot };
        machine.qmp("qmp_capabilities", json!({}));
        machine.booted();
        machine.boot = started.elapsed();
        machine
    }

    /// Waits until the guest is up: at the start, and after each reboot.
    pub(crate) fn booted(&mut self) {
        self.shell.await_ready();
        if self.userland == Userland::Systemd {
            // A unit that is no use here may have failed.
            self.try_sh("systemctl is-system-running --wait");
        }
    }

    /// The disk on which a machine in `directory` writes.
    fn disk(directory: &Path) -> PathBuf {
        directory.join("root.qcow2")
    }

    /// QEMU's command line; everything it needs is made in `directory`.
    fn command(setup: &Setup, directory: &Path) -> Command {
        let kernel = guests::kernel(setup.kernel);
        let initrd = setup.initrd(&kernel, directory);
        let disk = Self::disk(directory);
        let made = Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
            .arg(guests::userland(setup.userland, setup.kernel.processor))
            .arg(&disk)
            .status()
            .expect("qemu-img");
        assert!(made.success(), "qemu-img: {made}");
        let program = match setup.kernel.processor {
            Processor::X86_64 => "qemu-system-x86_64",
            Processor::Aarch64 => "qemu-system-aarch64",
        };
        let path = |name: &str| directory.join(name).display().to_string();
        let socket = |id: &str| format!("socket,id={id},path={},server=on,wait=off", path(id));
        let mut command = Command::new(program);
        command
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .args(["-smp", &setup.processors.to_string(), "-m", &setup.memory.to_string()])
            .arg("-kernel")
            .arg(kernel.join("vmlinuz"))
            .arg("-initrd")
            .arg(initrd)
            .args(["-append", &setup.command_line()])
            .args(["-chardev", &format!("file,id=console,path={}", path("console")), "-serial", "chardev:console"])
            .args(["-chardev", &socket("control")])
            .args(["-chardev", &socket("qmp"), "-mon", "chardev=qmp,mode=control"])
            .args(["-drive", &format!("if=none,id=root,format=qcow2,file={}", disk.display())])
            .args(["-device", "virtio-blk-pci,drive=root,id=disk"])
            .args(["-chardev", &socket("agent")])
            .args(["-device", "virtio-serial-pci,id=serial"])
            .args(["-device", &format!("virtserialport,bus=serial.0,id=port,chardev=agent,name={PORT}")])
            .args(&setup.devices)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        match setup.kernel.processor {
            Processor::X86_64 => command
                .args(["-machine", "pc", "-accel", accelerator(), "-serial", "chardev:control"])
                // QEMU 7.2's emulation of cmpxchg16b corrupts a kernel's registers.
                .args(["-cpu", "qemu64,-cx16,+rdrand"]),
            // This machine has one serial line of its own.
            Processor::Aarch64 => command
                .args(["-machine", "virt", "-accel", "tcg", "-cpu", "cortex-a57"])
                .args(["-device", "pci-serial,chardev=control"]),
        };
        command
    }

    /// Notes what was booted, and what a scene found out, for its row of the table.
    pub(crate) fn note(&mut self, found: &str) {
        note(&mut self.shell, self.kernel, self.userland, self.boot, found);
    }

    /// What the guest's console shows.
    pub(crate) fn console(&self) -> String {
        self.shell.console()
    }

    /// See [`Shell::try_sh`].
    pub(crate) fn try_sh(&mut self, script: &str) -> (i32, String) {
        self.shell.try_sh(script)
    }

    /// See [`Shell::sh`].
    pub(crate) fn sh(&mut self, script: &str) -> String {
        self.shell.sh(script)
    }

    /// See [`Shell::sh_eventually`].
    pub(crate) fn sh_eventually(&mut self, script: &str) -> String {
        self.shell.sh_eventually(script)
    }

    /// Executes a QMP command; what it returns.
    #[allow(clippy::needless_pass_by_value, reason = "made where it is given")]
    pub(crate) fn qmp(&mut self, command: &str, arguments: Value) -> Value {
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(self.qmp.0.get_mut(), "{request}").expect("QMP listens");
        loop {
            let line = self.qmp.line();
            if line.get("event").is_some() {
                self.events.push(line);
            } else {
                assert!(line.get("return").is_some(), "{command}: {line}");
                return line["return"].clone();
            }
        }
    }

    /// Waits for an event of QEMU's, or takes one that came before.
    pub(crate) fn event(&mut self, name: &str) -> Value {
        if let Some(at) = self.events.iter().position(|event| event["event"] == name) {
            return self.events.remove(at);
        }
        loop {
            let line = self.qmp.line();
            if line["event"] == name {
                return line;
            }
            self.events.push(line);
        }
    }

    /// Where a host meets the port: one at a time, as QEMU's sockets do.
    pub(crate) fn agent_socket(&self) -> PathBuf {
        self.directory.path().join("agent")
    }

    /// Connects to the port as a host.
    pub(crate) fn host(&self) -> Host {
        Host::connect(&self.agent_socket())
    }

    /// Waits until the console shows this, from its byte `from` on.
    pub(crate) fn console_shows(&self, text: &str, from: usize) {
        eventually(&format!("'{text}' on the guest's console"), || {
            self.console().get(from..).is_some_and(|shown| shown.contains(text)).then_some(())
        });
    }

    /// The disk as a raw image, once QEMU has ended.
    pub(crate) fn image(&mut self) -> PathBuf {
        self.ended();
        let image = self.directory.path().join("root.raw");
        let made = Command::new("qemu-img")
            .args(["convert", "-O", "raw"])
            .arg(Self::disk(self.directory.path()))
            .arg(&image)
            .status()
            .expect("qemu-img");
        assert!(made.success(), "qemu-img: {made}");
        image
    }

    /// Waits until QEMU has ended.
    pub(crate) fn ended(&mut self) {
        eventually("QEMU ends", || self.qemu.try_wait().expect("QEMU's status"));
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the guest's console:\n{}", self.console());
        }
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}
