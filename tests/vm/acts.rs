//! Acts on real things, each by stock's agent and then by postern in the same guest:
//! a processor and blocks of memory are switched, free space goes back to the host's
//! disk, the guest sleeps and is woken. Replies and what is seen of the guest are the
//! same, but for what DIFFERENCES.md names.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::guests::{Kernel, LINUX_6_1, LINUX_6_12, Userland};
use crate::machine::{Machine, PATIENCE, Setup};
use crate::postern::{ACCOUNTS, START, STOCK_START, STOP};
use crate::services::story;
use crate::support::agent::Host;
use crate::support::differences::listed;
use crate::support::runner::Test;

pub(crate) fn tests() -> Vec<Test> {
    let quick: Test = ("acts_end_as_stocks_busybox", || acts(LINUX_6_12, Userland::Busybox));
    // With systemd, by which the older stock puts a guest to sleep.
    let other: Test = ("acts_end_as_stocks_systemd", || acts(LINUX_6_1, Userland::Systemd));
    if crate::everything() { vec![quick, other] } else { vec![quick] }
}

const POLICY: &str = r#"version = 1
profile = "minimal"
[commands]
allow = ["guest-fstrim", "guest-suspend-ram", "guest-suspend-disk", "guest-suspend-hybrid", "guest-set-vcpus",
         "guest-set-memory-blocks", "guest-get-vcpus"]
[limits]
acts = 100
"#;

/// A disk that can shrink, and memory beside the board's: blocks 32 and 33, which
/// hold only what can be moved, and 34, which the scene fills with what cannot.
const DISK: u64 = 128 << 20;
const DEVICES: [&str; 14] = [
    "-m",
    "slots=5,maxmem=2G",
    "-object",
    "memory-backend-ram,id=free,size=256M",
    "-device",
    "pc-dimm,memdev=free",
    "-object",
    "memory-backend-ram,id=used,size=128M",
    "-device",
    "pc-dimm,memdev=used",
    "-global",
    "PIIX4_PM.disable_s3=0",
    "-global",
    "PIIX4_PM.disable_s4=0",
];
const MOVABLE: &str = "memhp_default_state=online_movable";

/// Bytes in a block of memory, on x86 with so little of it.
const BLOCK: u64 = 128 << 20;
/// The next block that is plugged in.
const NEXT: u64 = 35;

/// The kernel takes what it needs for itself from the block that is its own, and so
/// cannot give that back.
const SCENE: &str = "cd /sys/devices/system/memory/memory34 && echo offline >state && echo online_kernel >state && \
     mkdir /run/many && seq 3000 | while read -r name; do : >/run/many/$name; done && mkdir -p /trim && \
     cat state valid_zones";

/// A filesystem whose free space was written to, just mounted: ext4 remembers what it
/// has trimmed.
const WASTE: &str = "umount /trim; mount -t ext4 /dev/vdb /trim && \
     dd if=/dev/urandom of=/trim/waste bs=1M count=32 2>/dev/null && sync && rm /trim/waste && sync";

/// What stock's end is.
const STOCK_STOP: &str =
    "kill $(cat /run/stock.pid); while kill -0 $(cat /run/stock.pid) 2>/dev/null; do sleep 0.1; done";

const PLUGGED: &str = "memory that was plugged in later";

/// Where postern means to differ, in which userland's company: names of DIFFERENCES.md.
const DIFFERENT: &[(Userland, &str, &str)] = &[
    (Userland::Busybox, "hybrid sleep", "hybrid-sleep"),
    (Userland::Busybox, PLUGGED, "plugged-later"),
    (Userland::Systemd, "sleep on disk", "sleep-text"),
    (Userland::Systemd, "hybrid sleep", "hybrid-sleep"),
    (Userland::Systemd, PLUGGED, "plugged-later"),
];

/// A step of the story, as it was seen.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    step: &'static str,
    reply: String,
    /// Of the guest or the host, behind it.
    then: String,
}

/// The guest, and who asks in it.
struct Story<'a> {
    machine: &'a mut Machine,
    host: Host,
    disk: &'a Path,
    seen: Vec<Seen>,
}

impl<'a> Story<'a> {
    fn begin(machine: &'a mut Machine, disk: &'a Path) -> Self {
        let (stream, host) = machine.host().split();
        // A sleep in vain takes an emulated machine seconds.
        stream.set_read_timeout(Some(PATIENCE)).expect("a time limit");
        let mut this = Self { machine, host, disk, seen: Vec::new() };
        this.ask("guest-ping", &Value::Null);
        this
    }

    /// Asks; then looks at the guest by `script`.
    fn step(&mut self, step: &'static str, command: &str, arguments: &Value, script: &str) {
        let reply = self.ask(command, arguments);
        let then = self.machine.sh(script).split_whitespace().collect::<Vec<_>>().join(" ");
        self.saw(step, &reply, then);
    }

    fn ask(&mut self, command: &str, arguments: &Value) -> Value {
        let mut request = json!({ "execute": command });
        if !arguments.is_null() {
            request["arguments"] = arguments.clone();
        }
        self.host.try_ask(&request).unwrap_or_else(|| {
            let more =
                self.machine.sh("dmesg | tail -n 40; tail -n 20 /run/*.log /var/log/postern/audit.jsonl || true");
            panic!("no reply to {request}; the guest says:\n{more}")
        })
    }

    fn saw(&mut self, step: &'static str, reply: &Value, then: String) {
        // The members' order is no one's.
        let reply = reply.get("error").map_or_else(|| reply["return"].to_string(), |error| error["desc"].to_string());
        self.seen.push(Seen { step, reply, then });
    }

    fn processors(&mut self) {
        let vcpus = |list: &[(u64, bool)]| {
            let one = |&(number, online): &(u64, bool)| json!({ "logical-id": number, "online": online });
            json!({ "vcpus": list.iter().map(one).collect::<Vec<_>>() })
        };
        let steps: [(_, &[(u64, bool)]); 6] = [
            ("a processor off", &[(1, false)]),
            ("one that is off already", &[(1, false)]),
            ("a processor on", &[(1, true)]),
            ("the first processor off", &[(0, false)]),
            ("one off, and one that is not there", &[(1, false), (7, false)]),
            ("both on", &[(0, true), (1, true)]),
        ];
        for (step, list) in steps {
            self.step(step, "guest-set-vcpus", &vcpus(list), "nproc; cat /sys/devices/system/cpu/online");
        }
    }

    fn memory(&mut self) {
        const STATES: &str = "cat /sys/devices/system/memory/memory3[234]/state; grep MemTotal /proc/meminfo";
        for (step, blocks, online) in [
            ("a memory block off", &[32][..], false),
            ("of these some off", &[0, 32, 33, 34, 99], false),
            ("of these some on", &[32, 33, 34, 99], true),
        ] {
            self.step(step, "guest-set-memory-blocks", &switched(blocks, online), STATES);
        }
    }

    fn trim(&mut self) {
        let taken = |disk: &Path| fs::metadata(disk).expect("the disk").blocks() * 512;
        self.machine.sh(WASTE);
        let before = taken(self.disk);
        let mut reply = self.ask("guest-fstrim", &Value::Null);
        let freed = before.saturating_sub(taken(self.disk));
        // Of the root's free space each boot and each trim leaves less to be trimmed.
        for path in reply["return"]["paths"].as_array_mut().into_iter().flatten() {
            if path["path"] == "/" && path["trimmed"].is_u64() {
                path["trimmed"] = json!("some");
            }
        }
        assert!(freed >= 24 << 20, "{freed} bytes freed by {reply}");
        self.saw("a trim of all", &reply, "24 MiB and more of the host's disk are free".to_owned());
        self.step("a trim of nothing", "guest-fstrim", &json!({ "minimum": 1_u64 << 40 }), ":");
    }

    fn sleep(&mut self) {
        // There is no swap.
        for (step, mode) in [("sleep on disk", "disk"), ("hybrid sleep", "hybrid")] {
            self.step(step, &format!("guest-suspend-{mode}"), &Value::Null, "cat /sys/power/disk");
        }
        self.host.send(br#"{"execute": "guest-suspend-ram"}"#);
        self.machine.event("SUSPEND");
        let status = self.machine.qmp("query-status", json!({}))["status"].clone();
        assert_eq!(status, "suspended");
        self.machine.qmp("system_wakeup", json!({}));
        self.machine.event("WAKEUP");
        // Asked behind it: a sleep that went well has no reply.
        let reply = self.ask("guest-ping", &Value::Null);
        let nap = self.machine.sh("dmesg -c | grep -c 'PM: suspend exit'; nproc");
        self.saw("sleep in memory", &reply, nap.split_whitespace().collect::<Vec<_>>().join(" "));
    }

    /// Plugs memory in, and switches it off.
    fn plug(&mut self, block: u64) {
        let name = format!("later{block}");
        self.machine.qmp("object-add", json!({ "qom-type": "memory-backend-ram", "id": name, "size": BLOCK }));
        self.machine.qmp("device_add", json!({ "driver": "pc-dimm", "memdev": name, "id": format!("dimm-{name}") }));
        self.machine.sh_eventually(&format!("grep online /sys/devices/system/memory/memory{block}/state"));
        self.switch(PLUGGED, block);
    }

    fn switch(&mut self, step: &'static str, block: u64) {
        let mut reply = self.ask("guest-set-memory-blocks", &switched(&[block], false));
        // Each agent has one of its own.
        assert_eq!(reply["return"][0]["phys-index"], block, "{reply}");
        reply["return"][0]["phys-index"] = json!("its number");
        let then = self.machine.sh(&format!("cat /sys/devices/system/memory/memory{block}/state"));
        self.saw(step, &reply, then.trim().to_owned());
    }

    /// What is done awake.
    fn awake(mut self) -> Vec<Seen> {
        self.processors();
        self.memory();
        self.trim();
        self.seen
    }

    /// And what is done asleep, and behind it. For both agents after all else: a
    /// failed sleep on disk leaves pages that the kernel cannot move any more.
    fn asleep(mut self, block: u64) -> Vec<Seen> {
        self.sleep();
        // Awake again, it does what it did.
        self.processors();
        self.plug(block);
        self.seen
    }
}

/// Arguments that switch these memory blocks.
fn switched(blocks: &[u64], online: bool) -> Value {
    let one = |number: &u64| json!({ "phys-index": number, "online": online });
    json!({ "mem-blks": blocks.iter().map(one).collect::<Vec<_>>() })
}

/// What postern's log holds of it, in this order: the acts of the story.
const ON_RECORD: &[(&str, &[&str])] = &[
    ("guest-set-vcpus", &["done", "done", "done", "failed", "done", "done"]),
    ("guest-set-memory-blocks", &["done", "done", "done"]),
    ("guest-fstrim", &["done", "done"]),
    ("guest-suspend-disk", &["failed"]),
    ("guest-suspend-hybrid", &["failed"]),
    ("guest-suspend-ram", &["done"]),
    ("guest-set-vcpus", &["done", "done", "done", "failed", "done", "done"]),
    ("guest-set-memory-blocks", &["done"]),
];

/// The log is whole, and has each act before it was done, and what came of it.
fn is_on_record(machine: &mut Machine) {
    let told: Vec<String> = story(machine)
        .into_iter()
        .filter(|line| ON_RECORD.iter().any(|(act, _)| line.starts_with(&format!("{act} "))))
        .map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" "))
        .collect();
    let of = |(act, stages): &(&str, &[&str])| -> Vec<String> {
        stages.iter().flat_map(|stage| [format!("{act} asked"), format!("{act} {stage}")]).collect()
    };
    assert_eq!(told, ON_RECORD.iter().flat_map(of).collect::<Vec<_>>());
}

fn acts(kernel: Kernel, userland: Userland) {
    let directory = tempfile::Builder::new().prefix("postern-acts-").tempdir().expect("a temporary directory");
    let disk: PathBuf = directory.path().join("trim.img");
    File::create(&disk).and_then(|file| file.set_len(DISK)).expect("a disk");
    let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&disk).status().expect("mkfs.ext4");
    assert!(made.success(), "mkfs.ext4: {made}");
    let drive = format!("if=none,id=trim,format=raw,discard=unmap,file={}", disk.display());
    let mut setup = Setup::new(kernel, userland)
        .with_postern(POLICY)
        .append(MOVABLE)
        .with_devices(&DEVICES)
        .with_devices(&["-drive", &drive, "-device", "virtio-blk-pci,drive=trim,id=trim"]);
    setup.processors = 2;
    setup = if userland == Userland::Busybox { setup.with_newer_stock() } else { setup.with_stock() };
    let mut machine = Machine::boot(&setup);
    println!("{}", machine.sh(SCENE));

    let (start, stop) = if userland == Userland::Busybox {
        (STOCK_START, STOCK_STOP)
    } else {
        ("systemctl start qemu-guest-agent", "systemctl stop qemu-guest-agent")
    };
    machine.sh(start);
    let mut stock = Story::begin(&mut machine, &disk).awake();
    machine.sh(stop);

    if userland != Userland::Busybox {
        machine.sh(ACCOUNTS);
    }
    machine.sh(START);
    let mut ours = Story::begin(&mut machine, &disk).awake();
    ours.extend(Story::begin(&mut machine, &disk).asleep(NEXT));
    is_on_record(&mut machine);
    // What is plugged in is known once postern starts anew.
    machine.sh(STOP);
    machine.sh(START);
    let anew = {
        let mut story = Story::begin(&mut machine, &disk);
        story.switch(PLUGGED, NEXT);
        // Its host leaves: a port has one at a time.
        story.seen.remove(0)
    };
    machine.sh(STOP);

    machine.sh(start);
    stock.extend(Story::begin(&mut machine, &disk).asleep(NEXT + 1));
    assert_eq!(Some(&anew), stock.last());

    let same = compare(userland, &stock, &ours);
    machine.note(&format!("{same} of {} acts as stock's", stock.len()));
}

/// Prints the table; how many steps ended alike.
fn compare(userland: Userland, stock: &[Seen], ours: &[Seen]) -> usize {
    let mut wrong = Vec::new();
    let mut same = 0;
    println!("| act | stock | then | postern |\n|---|---|---|---|");
    assert_eq!(stock.len(), ours.len());
    for (stock, ours) in stock.iter().zip(ours) {
        let different =
            DIFFERENT.iter().find(|(company, step, _)| *company == userland && *step == stock.step).map(|one| one.2);
        let result = different.map_or_else(
            || "as stock".to_owned(),
            |name| format!("{}, then {} (`{}`)", ours.reply, ours.then, listed(name)),
        );
        println!("| {} | {} | {} | {result} |", stock.step, stock.reply, stock.then);
        same += usize::from(stock == ours);
        if (stock == ours) != different.is_none() {
            wrong.push(format!("{stock:#?}\n{ours:#?}"));
        }
    }
    assert!(wrong.is_empty(), "{} differ unlisted, or not as listed:\n{}", wrong.len(), wrong.join("\n"));
    same
}
