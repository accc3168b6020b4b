//! libvirt's daemon, started here and not by a service manager, without any right
//! of root's, and a domain of it with the agent inside. What libvirt sends to
//! the agent is read from its own log of that channel.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::guests::{LINUX_6_12, Userland};
use crate::machine::{PORT, Setup, accelerator, eventually, note};
use crate::postern::{POLICY, START};
use crate::shell::Shell;

/// `nobody`: libvirt wants an account that exists, and runs a session of its own
/// for whoever is not root. No cgroups, no namespaces, no security driver.
const ACCOUNT: u32 = 65534;

pub(crate) const NAME: &str = "guest";

// ---- the daemon --------------------------------------------------------------

/// libvirtd with all its files in one directory.
pub(crate) struct Libvirt {
    daemon: Child,
    directory: TempDir,
}

impl Libvirt {
    fn start() -> Self {
        let directory = tempfile::Builder::new().prefix("postern-vm-").tempdir().expect("a temporary directory");
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        for name in ["home", "run", "config/libvirt", "cache", "data", "drivers"] {
            fs::create_dir_all(directory.path().join(name)).expect("a directory");
        }
        // Only this one: the others want what a machine may not have.
        let drivers = find("libvirt_driver_qemu.so");
        std::os::unix::fs::symlink(drivers, directory.path().join("drivers/libvirt_driver_qemu.so")).expect("a link");
        let log = directory.path().join("log");
        let daemon = format!("log_filters=\"1:qemu.qemu_agent 4:*\"\nlog_outputs=\"1:file:{}\"\n", log.display());
        fs::write(directory.path().join("libvirtd.conf"), daemon).expect("a configuration");
        let driver = "stdio_handler = \"file\"\nnamespaces = []\ncgroup_controllers = []\nsecurity_driver = \"none\"\n";
        fs::write(directory.path().join("config/libvirt/qemu.conf"), driver).expect("a configuration");
        own(directory.path());
        let mut command = Self::command(directory.path(), "libvirtd");
        let config = directory.path().join("libvirtd.conf");
        let said = fs::File::create(directory.path().join("said")).expect("a file");
        command.arg("--config").arg(config).stdout(Stdio::null()).stderr(said);
        let daemon = command.spawn().expect("setpriv");
        std::thread::spawn(bury_machines);
        let this = Self { daemon, directory };
        eventually("libvirtd listens", || this.try_virsh(&["version"]).0.then_some(()));
        this
    }

    /// A program of libvirt's, as the account.
    fn command(directory: &Path, program: &str) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &ACCOUNT.to_string(), "--regid", &ACCOUNT.to_string(), "--clear-groups", program]);
        command.env("LIBVIRT_DRIVER_DIR", directory.join("drivers")).env("HOME", directory.join("home"));
        for (name, at) in
            [("RUNTIME_DIR", "run"), ("CONFIG_HOME", "config"), ("CACHE_HOME", "cache"), ("DATA_HOME", "data")]
        {
            command.env(format!("XDG_{name}"), directory.join(at));
        }
        command.env("LC_ALL", "C").current_dir("/").stdin(Stdio::null());
        command
    }

    /// Whether it went well, and what it printed on both outputs.
    pub(crate) fn try_virsh(&self, arguments: &[&str]) -> (bool, String) {
        let socket = self.directory.path().join("run/libvirt/libvirt-sock");
        let mut command = Self::command(self.directory.path(), "virsh");
        command.arg("--connect").arg(format!("qemu:///session?socket={}", socket.display()));
        let output = command.args(arguments).output().expect("virsh");
        let printed = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&printed).trim().to_owned())
    }

    /// One that must go well.
    pub(crate) fn virsh(&self, arguments: &[&str]) -> String {
        let (well, printed) = self.try_virsh(arguments);
        assert!(well, "virsh {arguments:?}: {printed}\nlibvirtd said:\n{}", self.log());
        printed
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

impl Drop for Libvirt {
    fn drop(&mut self) {
        let _ = self.try_virsh(&["destroy", NAME]);
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// libvirt's machines are orphans by design, and this process is their first: one
/// that nobody waits for seems alive to libvirt.
fn bury_machines() {
    loop {
        for entry in fs::read_dir("/proc").expect("/proc").flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
            let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            let ours = stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with("Z 1 "));
            if ours && stat.contains("(qemu-system") && std::process::id() == 1 {
                let _ = waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG));
            }
        }
        sleep(Duration::from_millis(100));
    }
}

/// Where Debian has a driver of libvirt's.
fn find(name: &str) -> PathBuf {
    let entries = fs::read_dir("/usr/lib").expect("/usr/lib").flatten();
    let mut places = entries.map(|entry| entry.path().join("libvirt/connection-driver").join(name));
    places.find(|path| path.exists()).unwrap_or_else(|| panic!("{name}: install libvirt-daemon-driver-qemu"))
}

/// Gives a tree to the account.
fn own(path: &Path) {
    chown(path, Some(ACCOUNT), Some(ACCOUNT)).expect("chown");
    if path.is_dir() && !path.is_symlink() {
        fs::read_dir(path)
            .expect("a directory")
            .flatten()
            .filter(|e| !e.path().is_symlink())
            .for_each(|e| own(&e.path()));
    }
}

// ---- the domain --------------------------------------------------------------

/// A running domain with the agent in it.
pub(crate) struct Domain {
    pub(crate) libvirt: Libvirt,
    pub(crate) shell: Shell,
    setup: Setup,
    boot: Duration,
    version: String,
}

impl Domain {
    /// A small guest; postern is started by hand.
    pub(crate) fn boot() -> Self {
        let mut this = Self::boot_setup(&Setup::new(LINUX_6_12, Userland::Busybox).with_postern(POLICY));
        this.start_agent();
        this
    }

    /// A guest with whatever agent it starts by itself.
    pub(crate) fn boot_setup(setup: &Setup) -> Self {
        let libvirt = Libvirt::start();
        let kernel = crate::guests::kernel(setup.kernel);
        fs::copy(kernel.join("vmlinuz"), libvirt.path("vmlinuz")).expect("a kernel");
        setup.initrd(&kernel, libvirt.directory.path());
        copy_sparsely(&crate::guests::userland(setup.userland, setup.kernel.processor), &libvirt.path("root.raw"));
        let xml = libvirt.path("domain.xml");
        fs::write(&xml, definition(&libvirt, setup)).expect("a definition");
        for name in ["vmlinuz", "initrd", "root.raw", "domain.xml"] {
            own(&libvirt.path(name));
        }
        let started = Instant::now();
        libvirt.virsh(&["define", &xml.display().to_string()]);
        libvirt.virsh(&["start", NAME]);
        let mut shell = Shell::connect(&libvirt.path("control"), &libvirt.path("console"));
        shell.await_ready();
        if setup.userland == Userland::Systemd {
            shell.try_sh("systemctl is-system-running --wait");
        }
        let version = libvirt.virsh(&["version", "--daemon"]);
        let boot = started.elapsed();
        let version = version.lines().last().unwrap_or_default().replace("Running against daemon: ", "libvirt ");
        let mut this = Self { libvirt, shell, setup: setup.clone(), boot, version };
        this.note("");
        this
    }

    /// Notes the guest, and what the test found out.
    pub(crate) fn note(&mut self, found: &str) {
        let found = format!("{} {found}", self.version);
        note(&mut self.shell, self.setup.kernel, self.setup.userland, self.boot, &found);
    }

    pub(crate) fn start_agent(&mut self) {
        self.shell.sh(START);
        self.await_agent();
    }

    /// Switches it on again.
    pub(crate) fn start(&mut self) {
        self.libvirt.virsh(&["start", NAME]);
        self.shell = Shell::connect(&self.libvirt.path("control"), &self.libvirt.path("console"));
        self.shell.await_ready();
    }

    pub(crate) fn await_agent(&self) {
        // libvirt knows of the agent when the port is opened.
        eventually("libvirt sees the agent", || {
            let (well, _) = self.libvirt.try_virsh(&["qemu-agent-command", NAME, r#"{"execute":"guest-ping"}"#]);
            well.then_some(())
        });
    }

    pub(crate) fn virsh(&self, arguments: &[&str]) -> String {
        self.libvirt.virsh(arguments)
    }

    /// What libvirt has sent to the agent so far: the whole commands.
    pub(crate) fn sent(&self) -> Vec<String> {
        let log = self.libvirt.log();
        let syncs = log.lines().filter_map(|line| {
            let sync =
                line.contains("Sending guest-sync command with ID").then(|| r#"{"execute":"guest-sync"}"#.to_owned());
            sync.or_else(|| Some(line.split_once("Send command '")?.1.split_once("' for write")?.0.to_owned()))
        });
        syncs.collect()
    }

    /// Waits until libvirt says that the domain is in this state.
    pub(crate) fn await_state(&self, state: &str) {
        eventually(state, || (self.virsh(&["domstate", NAME]) == state).then_some(()));
    }
}

pub(crate) fn copy_sparsely(from: &Path, to: &Path) {
    let copied = Command::new("cp").args(["--sparse=always", "--reflink=auto"]).arg(from).arg(to).status().expect("cp");
    assert!(copied.success(), "cp: {copied}");
}

/// The same machine as `Machine` boots, as libvirt wants to be told.
fn definition(libvirt: &Libvirt, setup: &Setup) -> String {
    let path = |name: &str| libvirt.path(name).display().to_string();
    format!(
        "<domain type='{kind}'>
  <name>{NAME}</name>
  <memory unit='MiB'>{memory}</memory>
  <vcpu>{processors}</vcpu>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>{kernel}</kernel>
    <initrd>{initrd}</initrd>
    <cmdline>{cmdline}</cmdline>
  </os>
  <features><acpi/></features>
  <pm><suspend-to-mem enabled='yes'/><suspend-to-disk enabled='yes'/></pm>
  <cpu mode='custom' match='exact' check='none'>
    <model fallback='forbid'>qemu64</model>
    <feature policy='disable' name='cx16'/>
    <feature policy='require' name='rdrand'/>
  </cpu>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/><source file='{disk}'/><target dev='vda' bus='virtio'/>
    </disk>
    <serial type='file'><source path='{console}'/><target port='0'/></serial>
    <serial type='unix'><source mode='bind' path='{control}'/><target port='1'/></serial>
    <channel type='unix'><target type='virtio' name='{PORT}'/></channel>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
  </devices>
</domain>
",
        memory = setup.memory,
        processors = setup.processors,
        cmdline = setup.command_line(),
        kind = if accelerator() == "kvm" { "kvm" } else { "qemu" },
        kernel = path("vmlinuz"),
        initrd = path("initrd"),
        disk = path("root.raw"),
        console = path("console"),
        control = path("control"),
    )
}
