//! The channels: a socket that the agent makes, one that it is given, a serial
//! port; and hosts that misbehave on them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::sys::termios::{BaudRate, InputFlags, LocalFlags, OutputFlags, cfgetispeed, cfgetospeed, tcgetattr};
use serde_json::{Value, json};

use crate::scene::{freeze, kill_broker, policy, reply_to, send, start_quietly, start_quietly_by, status, thaw, with};
use crate::support::activation;
use crate::support::agent::{Agent, Home, Host, eventually, lives};
use crate::support::disk::{Disk, Mounted};
use crate::support::runner::{Role, Test};
use crate::support::terminal::{bytes_of_line, line, mount_terminals, pty, raw_pty, readable_within};

pub(crate) const TESTS: &[Test] = &[
    ("the_socket_is_the_owners_alone", the_socket_is_the_owners_alone),
    ("a_socket_in_use_is_left_alone", a_socket_in_use_is_left_alone),
    ("one_host_at_a_time", one_host_at_a_time),
    ("a_host_may_leave_at_any_moment", a_host_may_leave_at_any_moment),
    ("a_host_that_never_reads_costs_bounded_memory", a_host_that_never_reads_costs_bounded_memory),
    ("a_passed_descriptor_reaches_nobody", a_passed_descriptor_reaches_nobody),
    ("a_service_manager_may_pass_the_socket", a_service_manager_may_pass_the_socket),
    ("a_pty_stands_in_for_a_serial_port", a_pty_stands_in_for_a_serial_port),
    (
        "a_pty_that_is_taken_away_and_given_back_is_served_again",
        a_pty_that_is_taken_away_and_given_back_is_served_again,
    ),
    ("a_port_that_may_not_be_opened_again_ends_postern", a_port_that_may_not_be_opened_again_ends_postern),
    ("a_freeze_outlives_the_port", a_freeze_outlives_the_port),
    ("a_freeze_ends_although_broker_and_port_are_gone", a_freeze_ends_although_broker_and_port_are_gone),
    ("a_serial_line_is_raw", a_serial_line_is_raw),
    ("a_serial_line_that_hangs_up_ends_postern", a_serial_line_that_hangs_up_ends_postern),
];

pub(crate) const ROLES: &[Role] = &[activation::ROLE];

// ---- the socket --------------------------------------------------------------

fn the_socket_is_the_owners_alone() {
    let home = Home::new();
    let socket = home.path("host.sock");
    let agent = home.start(&policy());
    let found = fs::symlink_metadata(&socket).expect("the socket");
    assert!(found.file_type().is_socket());
    assert_eq!((found.permissions().mode() & 0o7777, found.uid()), (0o600, 0));
    let mut host = agent.connect();
    host.ping();
    let peer = agent.await_record("host-connected", |_| true);
    assert_eq!(peer["postern"]["peer"], json!({ "pid": 1, "uid": 0, "gid": 0 }), "by the kernel's word: this test");
    drop(host);
    // One that a killed agent left behind is taken over.
    kill_broker(agent);
    assert!(socket.exists());
    let (mut agent, _host) = start_quietly(&home, &policy());
    agent.signal("broker", Signal::SIGTERM);
    assert_eq!(agent.ended().code(), Some(0));
    // As is one that an agent left in order.
    drop(start_quietly(&home, &policy()));
}

fn a_socket_in_use_is_left_alone() {
    let (home, other) = (Home::new(), Home::new());
    let mut other = other;
    let socket = home.path("host.sock");
    let agent = home.start(&policy());
    let mut host = agent.connect();
    host.ping();
    other.launch = vec!["run".into(), "--channel".into(), format!("unix-listen:{}", socket.display())];
    assert_eq!(other.command(&policy()).status().expect("a second agent").code(), Some(5));
    let said = fs::read_to_string(other.path("stderr")).expect("stderr");
    assert!(said.contains("another process listens on this socket"), "{said}");
    host.ping();
    drop(host);
    agent.connect().ping();
    // Nor is anything else removed.
    let file = home.path("a-file");
    fs::write(&file, "kept").expect("a file");
    other.launch = vec!["run".into(), "--channel".into(), format!("unix-listen:{}", file.display())];
    assert_eq!(other.command(&policy()).status().expect("a third agent").code(), Some(5));
    assert_eq!(fs::read(&file).expect("the file"), b"kept");
    other.launch = vec!["run".into(), "--channel".into(), format!("virtio-serial:{}", file.display())];
    assert_eq!(other.command(&policy()).status().expect("a fourth agent").code(), Some(5));
    other.launch = vec!["run".into(), "--channel".into(), "virtio-serial:/dev/virtio-ports/none".into()];
    assert_eq!(other.command(&policy()).status().expect("a fifth agent").code(), Some(5));
}

fn readable(stream: &UnixStream) -> bool {
    let mut ready = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
    poll(&mut ready, PollTimeout::ZERO).expect("poll") > 0
}

fn one_host_at_a_time() {
    let home = Home::new();
    let agent = home.start(&policy());
    let mut first = agent.connect();
    first.ping();
    let mut second = UnixStream::connect(home.path("host.sock")).expect("a place in the queue");
    second.write_all(b"{\"execute\": \"guest-ping\"}").expect("a request");
    for _ in 0..100 {
        first.ping();
    }
    assert!(!readable(&second), "the second one is served beside the first");
    drop(first);
    let mut reply = [0; 64];
    let length = second.read(&mut reply).expect("its reply");
    assert_eq!(&reply[..length], b"{\"return\": {}}\n");
}

fn a_host_may_leave_at_any_moment() {
    let disk = Disk::small("ext4", "/disk.img");
    let mounted = disk.mount("/disk");
    let home = Home::new();
    let path = home.write("file", &vec![7; 8 << 20]);
    let agent = home.start(&policy());
    // Amid a request: the next host's bytes are not taken for its rest.
    let mut host = agent.connect();
    host.send(b"{\"execute\": \"guest-ping\", \"arguments\": {");
    drop(host);
    let mut host = agent.connect();
    host.ping();
    // Amid a reply. Handles stay: some hosts connect anew for each command.
    let handle = host.open(&path, "r").expect("a handle");
    let read = json!({ "handle": handle, "count": 8 << 20 });
    send(&mut host, "guest-file-read", &read, "unread");
    drop(host);
    let mut host = agent.connect();
    let back = host.returns("guest-file-seek", &json!({ "handle": handle, "offset": 0, "whence": 0 }));
    assert_eq!(back["position"], 0);
    assert_eq!(host.returns("guest-file-read", &read)["count"], 8 << 20);
    // While a freeze or a thaw is owed an answer: the next one does not get it.
    for command in ["guest-fsfreeze-freeze", "guest-fsfreeze-thaw"].repeat(5) {
        send(&mut host, command, &Value::Null, "owed to nobody");
        drop(host);
        host = agent.connect();
        send(&mut host, "guest-ping", &Value::Null, "ping");
        reply_to(&mut host, "ping").expect("a ping's answer");
        let due = if command.ends_with("freeze") { "frozen" } else { "thawed" };
        eventually(due, || (status(&mut host) == due).then_some(()));
    }
    assert!(!mounted.is_frozen());
    // And silently, again and again.
    drop(host);
    for _ in 0..50 {
        drop(UnixStream::connect(home.path("host.sock")).expect("a connection"));
    }
    let mut host = agent.connect();
    assert_eq!(freeze(&mut host), 1);
    assert_eq!(thaw(&mut host), 1);
    let died = agent.records_of("process-died");
    assert!(died.is_empty(), "{died:?}");
}

/// A figure of a process's status file, in KiB.
fn kibibytes(pid: i32, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a figure of that name");
    line.trim_matches([':', '\t', ' ']).trim_end_matches(" kB").parse().expect("a number")
}

fn a_host_that_never_reads_costs_bounded_memory() {
    /// How much the worker may grow, in KiB. A read goes through buffers of
    /// 96 KiB.
    const GROWTH: u64 = 4096;
    let home = Home::new();
    let path = home.write("file", &vec![7; 4096]);
    let agent = home.start(&policy());
    let mut host = agent.connect();
    let handle = host.open(&path, "r").expect("a handle");
    host.read(handle);
    let (worker, broker) = (agent.process("worker", 0), agent.pid());
    let before = [worker, broker].map(|pid| kibibytes(pid, "VmHWM"));
    let requests = 10_000;
    let seek = json!({ "execute": "guest-file-seek", "arguments": { "handle": handle, "offset": 0, "whence": 0 } });
    let read = json!({ "execute": "guest-file-read", "arguments": { "handle": handle } });
    let both = format!("{seek}{read}");
    let (mut writer, reader) = host.split();
    std::thread::scope(|scope| {
        let sender = scope.spawn(move || {
            for _ in 0..requests {
                writer.write_all(both.as_bytes()).expect("the channel takes bytes");
            }
        });
        // The worker has no room for more replies, and sleeps until there is.
        eventually("the worker waits for the host", || {
            let state = fs::read_to_string(format!("/proc/{worker}/wchan")).expect("what it waits for");
            (state.contains("poll") && !sender.is_finished()).then_some(())
        });
        // The broker does not wait with it, and a next host has its place.
        assert!(UnixStream::connect(home.path("host.sock")).is_ok());
        let grown = kibibytes(worker, "VmHWM") - before[0];
        assert!(grown < GROWTH, "the worker grew by {grown} KiB");
        let mut reader = reader;
        for _ in 0..requests {
            assert!(reader.hear()["return"]["position"].is_u64());
            assert_eq!(reader.hear()["return"]["count"], 4096);
        }
        sender.join().expect("all are sent");
    });
    let grown: Vec<u64> =
        [worker, broker].iter().zip(before).map(|(&pid, before)| kibibytes(pid, "VmHWM") - before).collect();
    assert!(grown.iter().all(|&grown| grown < GROWTH), "worker and broker grew by {grown:?} KiB");
    println!("    {} pipelined requests, unread: worker and broker grew by {grown:?} KiB", 2 * requests);
    assert_eq!(agent.process("worker", 0), worker, "it was not replaced");
}

/// What the processes of an agent have open.
fn open_in(agent: &Agent<'_>) -> BTreeMap<(String, i32), PathBuf> {
    let mut open = BTreeMap::new();
    for (name, pid) in agent.family() {
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).expect("its descriptors").flatten() {
            let number: i32 = entry.file_name().to_str().and_then(|name| name.parse().ok()).expect("a number");
            if let Ok(target) = fs::read_link(entry.path()) {
                open.insert((name.clone(), number), target);
            }
        }
    }
    open
}

fn a_passed_descriptor_reaches_nobody() {
    let home = Home::new();
    let agent = home.start(&policy());
    let stream = UnixStream::connect(home.path("host.sock")).expect("a connection");
    let mut host = Host::over(stream.try_clone().expect("a second descriptor"));
    host.ping();
    let before = open_in(&agent);
    let secret = File::open("/proc/self/status").expect("a file");
    let passed = [secret.as_raw_fd(); 8];
    for _ in 0..100 {
        let request = [IoSlice::new(b"{\"execute\": \"guest-ping\"}")];
        let rights = [ControlMessage::ScmRights(&passed)];
        sendmsg::<()>(stream.as_raw_fd(), &request, &rights, MsgFlags::empty(), None).expect("sendmsg");
        assert_eq!(host.hear(), json!({ "return": {} }));
    }
    assert_eq!(open_in(&agent), before);
}

// ---- socket activation -----------------------------------------------------------

/// The command that starts this home's agent with a passed socket.
fn activated(home: &Home, socket: &Path, count: &str) -> Command {
    activated_with(home, socket, "host", count)
}

/// As [`activated`], with sockets of these names.
fn activated_with(home: &Home, socket: &Path, names: &str, count: &str) -> Command {
    let mut command = activation::activated_with(&home.command(&policy()), socket, names, count);
    command.stderr(File::options().append(true).open(home.path("stderr")).expect("a file for stderr"));
    command
}

fn a_service_manager_may_pass_the_socket() {
    let home = Home::new();
    let path = home.write("file", b"content");
    let socket = home.path("activated.sock");
    let mut agent = home.start_command(activated(&home, &socket, "1"));
    assert!(!home.path("host.sock").exists(), "the policy's own is not made");
    for _ in 0..2 {
        let mut host = Host::connect(&socket);
        host.ping();
        let handle = host.open(&path, "r").expect("a handle");
        assert_eq!(host.read(handle), "Y29udGVudA==");
    }
    agent.await_record("host-connected", |record| record["postern"]["peer"]["uid"] == 0);
    agent.signal("broker", Signal::SIGTERM);
    assert_eq!(agent.ended().code(), Some(0));
    assert!(socket.exists(), "it is the service manager's");
    fs::remove_file(&socket).expect("the socket");
    let refused = activated(&home, &socket, "2").status().expect("the agent");
    assert_eq!(refused.code(), Some(5));
    assert!(agent.said().contains("write one ListenStream="), "{}", agent.said());
    // More than there may be, and what is not what its name says.
    for (names, count) in [("host:netlink:uevents", "3"), ("netlink:netlink", "2"), ("uevents", "1"), ("host", "0")] {
        let _ = fs::remove_file(&socket);
        let refused = activated_with(&home, &socket, names, count).status().expect("the agent");
        assert_eq!(refused.code(), Some(5), "{names}");
    }
    // Beside a netlink socket, in any order; and that alone is no channel.
    drop(agent);
    fs::remove_file(&socket).expect("the socket");
    for names in ["host:netlink", "netlink:host"] {
        let agent = home.start_command(activated_with(&home, &socket, names, "2"));
        Host::connect(&socket).ping();
        assert!(!home.path("host.sock").exists(), "{names}");
        drop(agent);
        fs::remove_file(&socket).expect("the socket");
    }
    let agent = home.start_command(activated_with(&home, &socket, "netlink", "1"));
    agent.connect().ping();
    assert!(!socket.exists());
    // Meant for another process: the policy's channel.
    let mut command = home.command(&policy());
    command.env("LISTEN_PID", "1").env("LISTEN_FDS", "1");
    drop(agent);
    let (_agent, mut host) = start_quietly_by(&home, command);
    host.ping();
}

// ---- a serial port -----------------------------------------------------------------

fn a_pty_stands_in_for_a_serial_port() {
    mount_terminals();
    let (mut host, path, _slave) = raw_pty();
    let mut home = Home::new();
    let file = home.write("file", b"content");
    home.launch = vec!["run".into(), "--channel".into(), format!("virtio-serial:{}", path.display())];
    let mut agent = home.start(&policy());
    assert!(!home.path("host.sock").exists());
    host.write_all(b"{\"execute\": \"guest-ping\"}").expect("a request");
    assert_eq!(line(&mut host), "{\"return\": {}}\n");
    let open = json!({ "execute": "guest-file-open", "arguments": { "path": file } });
    host.write_all(b"{\"execute\": \"guest-sync\", \"arguments\": {\"id\": 5}}").expect("a request");
    host.write_all(open.to_string().as_bytes()).expect("a request");
    assert_eq!(line(&mut host), "{\"return\": 5}\n");
    assert_eq!(line(&mut host), "{\"return\": 1000}\n");
    // Its worker is replaced on the same port, which the broker keeps.
    let first = agent.process("worker", 0);
    agent.signal("worker", Signal::SIGKILL);
    agent.process("worker", first);
    host.write_all(b"{\"execute\": \"guest-ping\"}").expect("a request");
    assert_eq!(line(&mut host), "{\"return\": {}}\n");
    agent.signal("broker", Signal::SIGTERM);
    assert_eq!(agent.ended().code(), Some(0));
}

/// A directory of nodes that the test may change, in place of `/dev`, with a
/// link to a terminal that stands in for the port.
struct Ports {
    host: Option<File>,
    slave: Option<OwnedFd>,
}

/// The link, as udev makes it.
const LINK: &str = "/dev/virtio-ports/org.qemu.guest_agent.0";

impl Ports {
    /// One port, opened as the machine's root would.
    fn new() -> Self {
        // Not the machine's: what appears in there wakes its udev.
        for name in ["null", "zero", "urandom"] {
            fs::write(format!("/tmp/{name}"), "").expect("a place");
            let kind: Option<&str> = None;
            mount(Some(&*format!("/dev/{name}")), &*format!("/tmp/{name}"), kind, MsFlags::MS_BIND, kind)
                .expect("a node");
        }
        let kind: Option<&str> = None;
        mount(Some("dev"), "/dev", Some("tmpfs"), MsFlags::empty(), Some("mode=755")).expect("a /dev of its own");
        for name in ["null", "zero", "urandom"] {
            fs::write(format!("/dev/{name}"), "").expect("a place");
            mount(Some(&*format!("/tmp/{name}")), &*format!("/dev/{name}"), kind, MsFlags::MS_BIND, kind)
                .expect("a node");
        }
        fs::create_dir("/dev/pts").expect("a directory");
        symlink("/dev/pts/ptmx", "/dev/ptmx").expect("a link");
        mount_terminals();
        let (host, path, slave) = raw_pty();
        let ports = Self { host: Some(host), slave: Some(slave) };
        Self::link(&path);
        ports
    }

    fn link(node: &Path) {
        fs::create_dir_all("/dev/virtio-ports").expect("a directory");
        symlink(node, LINK).expect("a link");
    }

    /// Takes the terminal away, and what udev made for it.
    fn unplug(&mut self) {
        self.host = None;
        self.slave = None;
        fs::remove_file(LINK).expect("the link");
        fs::remove_dir("/dev/virtio-ports").expect("the directory");
    }

    /// Gives another one to this account.
    fn plug(&mut self, owner: u32) {
        let (host, path, slave) = raw_pty();
        chown(&path, Some(owner), None).expect("its owner");
        self.host = Some(host);
        self.slave = Some(slave);
        Self::link(&path);
    }

    fn ask(&mut self, request: &str) -> String {
        let host = self.host.as_mut().expect("a host");
        host.write_all(request.as_bytes()).expect("a request");
        line(host)
    }
}

impl Drop for Ports {
    /// What comes down after this needs the cell's own nodes.
    fn drop(&mut self) {
        umount2("/dev", MntFlags::MNT_DETACH).expect("the cell's own /dev");
    }
}

const PING: &str = "{\"execute\": \"guest-ping\"}";

fn a_pty_that_is_taken_away_and_given_back_is_served_again() {
    let mut ports = Ports::new();
    let mut home = Home::new();
    let file = home.write("file", b"content");
    home.launch = vec!["run".into(), "--channel".into(), format!("virtio-serial:{LINK}")];
    let mut agent = home.start(&policy());
    let open = json!({ "execute": "guest-file-open", "arguments": { "path": file } }).to_string();
    assert_eq!(ports.ask(&open), "{\"return\": 1000}\n");
    for round in 1..=3 {
        let worker = agent.process("worker", 0);
        ports.unplug();
        eventually("the worker ends with its port", || (!lives(worker)).then_some(()));
        eventually("the record", || (agent.records_of("host-disconnected").len() == round).then_some(()));
        // What else happens in /dev is not taken for the port.
        fs::write("/dev/other", "").expect("a file");
        ports.plug(home.worker);
        assert_eq!(ports.ask(PING), "{\"return\": {}}\n");
        // A handle of the worker that went is none; no number comes twice.
        let seek = "{\"execute\": \"guest-file-flush\", \"arguments\": {\"handle\": 1000}}";
        assert!(ports.ask(seek).contains("handle '1000' has not been found"));
        assert_eq!(ports.ask(&open), format!("{{\"return\": {}}}\n", 1000 + round));
        assert_eq!(agent.records_of("host-connected").len(), round);
    }
    assert_eq!(agent.records_of("log-opened").len(), 1, "one broker all along");
    assert_eq!(agent.records_of("guest-file-close").len(), 3, "{:#?}", agent.records_of("guest-file-close"));
    assert!(agent.records_of("malformed-frame").is_empty());
    // Without a port it can still be stopped.
    ports.unplug();
    eventually("the record", || (agent.records_of("host-disconnected").len() == 4).then_some(()));
    agent.signal("broker", Signal::SIGTERM);
    assert_eq!(agent.ended().code(), Some(0));
}

fn a_port_that_may_not_be_opened_again_ends_postern() {
    let (_disk, mounted, mut ports, home) = disk_and_port();
    let mut agent = home.start(&policy());
    assert_eq!(ports.ask("{\"execute\": \"guest-fsfreeze-freeze\"}"), "{\"return\": 1}\n");
    ports.unplug();
    // Root's, as a node without udev is.
    ports.plug(0);
    assert_eq!(agent.ended().code(), Some(5));
    assert!(!mounted.is_frozen(), "it thaws before it ends");
    assert!(agent.said().contains("the worker's account can't open it (EACCES"), "{}", agent.said());
    let thawed = agent.records_of("guest-fsfreeze-thaw");
    assert_eq!(thawed.len(), 1, "{thawed:#?}");
}

/// A disk to freeze, a terminal for a port, and a home whose agents serve that.
fn disk_and_port() -> (Disk, Mounted, Ports, Home) {
    let disk = Disk::small("ext4", "/disk.img");
    let mounted = disk.mount("/disk");
    let ports = Ports::new();
    let mut home = Home::new();
    home.launch = vec!["run".into(), "--channel".into(), format!("virtio-serial:{LINK}")];
    (disk, mounted, ports, home)
}

fn a_freeze_outlives_the_port() {
    let (_disk, mounted, mut ports, home) = disk_and_port();
    let agent = home.start(&policy());
    assert_eq!(ports.ask("{\"execute\": \"guest-fsfreeze-freeze\"}"), "{\"return\": 1}\n");
    let worker = agent.process("worker", 0);
    ports.unplug();
    eventually("the worker ends with its port", || (!lives(worker)).then_some(()));
    assert!(mounted.is_frozen());
    ports.plug(home.worker);
    assert_eq!(ports.ask("{\"execute\": \"guest-fsfreeze-status\"}"), "{\"return\": \"frozen\"}\n");
    assert_eq!(ports.ask("{\"execute\": \"guest-fsfreeze-thaw\"}"), "{\"return\": 1}\n");
    assert!(!mounted.is_frozen());
    agent.await_record("host-connected", |_| true);
}

fn a_freeze_ends_although_broker_and_port_are_gone() {
    let (_disk, mounted, mut ports, home) = disk_and_port();
    let agent = home.start(&policy());
    assert_eq!(ports.ask("{\"execute\": \"guest-fsfreeze-freeze\"}"), "{\"return\": 1}\n");
    let worker = agent.process("worker", 0);
    ports.unplug();
    eventually("the worker ends with its port", || (!lives(worker)).then_some(()));
    kill_broker(agent);
    assert!(mounted.is_frozen());
    // What the service manager starts next has no host to hear "thaw" from, but
    // the policy's limit.
    let child = home.command(&with("[freeze]\nlimit = \"1s\"\n")).spawn().expect("the agent");
    let mut agent = Agent { home: &home, child };
    eventually("the time limit thaws", || {
        assert!(agent.child.try_wait().expect("its status").is_none(), "it ended: {}", agent.said());
        (!mounted.is_frozen()).then_some(())
    });
    agent.await_record("guest-fsfreeze-thaw", |record| record["event"]["reason"] == "the time limit passed");
    agent.signal("broker", Signal::SIGTERM);
    assert_eq!(agent.ended().code(), Some(0));
}

fn a_serial_line_is_raw() {
    mount_terminals();
    let (mut host, path, slave) = pty();
    let mut home = Home::new();
    home.write("file", b"content");
    home.launch = vec!["run".into(), "--channel".into(), format!("isa-serial:{}", path.display())];
    // Before it starts the line is a person's: it echoes and waits for lines.
    let before = tcgetattr(&slave).expect("its settings");
    assert!(before.local_flags.contains(LocalFlags::ECHO | LocalFlags::ICANON));
    host.write_all(b"garbage of the boot\n").expect("a line");
    let agent = home.start(&policy());
    let now = tcgetattr(&slave).expect("its settings");
    assert!(!now.local_flags.intersects(LocalFlags::ECHO | LocalFlags::ICANON | LocalFlags::ISIG), "{now:?}");
    assert!(!now.output_flags.contains(OutputFlags::OPOST) && !now.input_flags.contains(InputFlags::IXON), "{now:?}");
    assert_eq!((cfgetispeed(&now), cfgetospeed(&now)), (BaudRate::B38400, BaudRate::B38400));
    // The garbage's echo, before raw mode, is all that was not asked for.
    let mut echo = String::new();
    while readable_within(&host, 0) {
        echo.push_str(&line(&mut host));
    }
    assert!(echo.is_empty() || echo == "garbage of the boot\r\n", "{echo:?}");
    for _ in 0..3 {
        host.write_all(PING.as_bytes()).expect("a request");
        assert_eq!(line(&mut host), "{\"return\": {}}\n");
    }
    // Bytes got lost: 0xFF begins anew, and what is special to a terminal is not.
    host.write_all(b"{\"execute\": \"gue\xff{\"execute\": \"guest-sync-delimited\", \"arguments\": {\"id\": 7}}")
        .expect("a request");
    assert_eq!(bytes_of_line(&mut host), b"\xff{\"return\": 7}\n");
    host.write_all(b"\x03\x04\x11\x13\x1a\x1c").expect("bytes");
    host.write_all(b"\xff").expect("a byte");
    host.write_all(PING.as_bytes()).expect("a request");
    let answer = eventually("the answer", || Some(line(&mut host)).filter(|line| line.contains("return")));
    assert_eq!(answer, "{\"return\": {}}\n");
    let worker = agent.process("worker", 0);
    agent.signal("worker", Signal::SIGKILL);
    agent.process("worker", worker);
    host.write_all(PING.as_bytes()).expect("a request");
    assert_eq!(line(&mut host), "{\"return\": {}}\n");
}

fn a_serial_line_that_hangs_up_ends_postern() {
    mount_terminals();
    let (mut host, path, slave) = pty();
    let mut home = Home::new();
    home.launch = vec!["run".into(), "--channel".into(), format!("isa-serial:{}", path.display())];
    let mut agent = home.start(&policy());
    host.write_all(PING.as_bytes()).expect("a request");
    assert_eq!(line(&mut host), "{\"return\": {}}\n");
    drop((host, slave));
    assert_eq!(agent.ended().code(), Some(5));
    assert!(agent.said().contains("the serial line hung up"), "{}", agent.said());
    // What is no line is not taken for one.
    drop(agent);
    home.launch = vec!["run".into(), "--channel".into(), "isa-serial:/dev/null".into()];
    assert_eq!(home.command(&policy()).status().expect("the agent").code(), Some(5));
}
