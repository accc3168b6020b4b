//! The key table: every key of a policy file, once, as data.
//!
//! The reader's checks, the defaults, the JSON Schema (`policy/schema.json`)
//! and the reference (`policy/REFERENCE.md`) are made from it.
//!
//! Trust: plain data, no input. Anyone may read it.

use super::profiles;
use crate::catalogue::{CATALOGUE, Entry};

/// What a key takes. Bounds are inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// The number of the format: the integer 1.
    Version,
    /// One string of these.
    Choice(&'static [&'static str]),
    /// A list of strings out of `of`, none twice, at least `least`.
    Choices {
        /// What may stand in the list.
        of: &'static [&'static str],
        /// The shortest list.
        least: usize,
    },
    /// A list of command names, none twice.
    Commands(Among),
    /// An absolute path without `.`, `..`, doubled or trailing slash.
    Path,
    /// A list of such paths, none twice.
    Paths,
    /// A list of such paths of filesystems, none twice, few and short enough for
    /// the worker to be told.
    Mountpoints,
    /// A list of patterns of interface names, none twice.
    Patterns,
    /// A host name.
    HostName,
    /// Bytes: an integer, or a string with `KiB` or `MiB`.
    Size {
        /// Smallest, in bytes.
        min: u64,
        /// Largest, in bytes.
        max: u64,
    },
    /// An integer.
    Count {
        /// Smallest.
        min: u64,
        /// Largest.
        max: u64,
    },
    /// A string with `s`, `m` or `h`.
    Duration {
        /// Shortest, in seconds.
        min: u64,
        /// Longest, in seconds.
        max: u64,
    },
    /// Permission bits as an octal string.
    Mode,
    /// `true` or `false`.
    Flag,
    /// An account: a name, or a number n for user n and group n.
    Account,
    /// A list of groups, names or numbers, none twice.
    Groups,
}

/// Which commands a list takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Among {
    /// Every one that stock `qemu-ga` knows.
    Known,
    /// Those that this postern offers.
    Offered,
    /// Those of them whose answer can be redacted.
    Redactable,
}

impl Among {
    /// Whether it takes this command.
    #[must_use]
    pub fn takes(self, entry: &Entry) -> bool {
        match self {
            Self::Known => true,
            Self::Offered => entry.command.is_some(),
            Self::Redactable => entry.command.is_some_and(|command| command.redaction().is_some()),
        }
    }

    /// The names that it takes, in catalogue order.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        CATALOGUE.iter().filter(move |entry| self.takes(entry)).map(|entry| entry.name)
    }
}

/// A table of the file.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    /// Name in the file; empty for the keys above every table.
    pub name: &'static str,
    /// Whether it is written `[[name]]`, once for each of its kind.
    pub repeated: bool,
    /// One paragraph for people.
    pub doc: &'static str,
}

/// A key of a table.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Name of its table.
    pub table: &'static str,
    /// Name in the file.
    pub name: &'static str,
    /// What it takes.
    pub takes: Type,
    /// Value, as TOML, where no file sets it; `None` for none.
    pub default: Option<&'static str>,
    /// Whether its table must hold it.
    pub required: bool,
    /// One paragraph for people.
    pub doc: &'static str,
    /// An example value, as TOML.
    pub example: &'static str,
}

impl Key {
    const fn new(
        table: &'static str,
        name: &'static str,
        takes: Type,
        example: &'static str,
        doc: &'static str,
    ) -> Self {
        Self { table, name, takes, default: None, required: false, doc, example }
    }

    const fn default(mut self, value: &'static str) -> Self {
        self.default = Some(value);
        self
    }

    const fn required(mut self) -> Self {
        self.required = true;
        self
    }

    /// `table.name`, or `name` above every table.
    #[must_use]
    pub fn id(&self) -> String {
        if self.table.is_empty() { self.name.to_owned() } else { format!("{}.{}", self.table, self.name) }
    }
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Highest rate of the policy, per second: more than any channel carries.
const MAX_RATE: u64 = 1_000_000;
/// Largest id that the kernel takes for an account: one below "no change".
pub const MAX_ID: u64 = u32::MAX as u64 - 1;

/// Most supplementary groups: what postern's processes tell each other.
pub const MAX_GROUPS: usize = 64;

/// Most file rules, those of all files together.
pub const MAX_RULES: usize = 1024;

/// Longest path in bytes, `PATH_MAX` of Linux without its final NUL.
pub const MAX_PATH: usize = 4095;

/// Every table, in the order of the reference.
pub static TABLES: [Table; 12] = [
    Table { name: "", repeated: false, doc: "Above every table." },
    Table {
        name: "commands",
        repeated: false,
        doc: "Which commands the host may use: the profile's, those of `allow` and those of `redact`, less those of \
              `deny`. What is named nowhere is refused.",
    },
    Table {
        name: "facts",
        repeated: false,
        doc: "How much the guest's answers about itself tell. What is listed here holds for allowed and for redacted \
              commands; where nothing is listed, an allowed command tells all and a redacted one little.",
    },
    Table {
        name: "files",
        repeated: true,
        doc: "One rule: what the host may do with one file, or with everything beneath one directory. Rules add up: each \
              open is answered by the rule with the longest path that reaches the file and has a right for the mode. To \
              take something out of a rule, use its `except`. Where a rule lies beneath the `except` of another, the \
              longer path wins.",
    },
    Table { name: "create", repeated: false, doc: "Files that the host creates." },
    Table { name: "freeze", repeated: false, doc: "Freezing filesystems." },
    Table { name: "shutdown", repeated: false, doc: "Shutting the guest down." },
    Table {
        name: "limits",
        repeated: false,
        doc: "How much one request may use, and how many there may be. What is beyond a limit is answered with an \
              error that names the limit and its key, and the next request is answered as ever. Stock's limits are the \
              ceilings; lower ones bound the worker's memory: [what each process takes](README.md#memory).",
    },
    Table {
        name: "audit",
        repeated: false,
        doc: "The audit log: where it is, how much of it there may be, and who else learns where it stands.",
    },
    Table {
        name: "identities",
        repeated: false,
        doc: "The accounts that the processes run as. Both must be used by nothing else: processes of one account can \
              signal each other.",
    },
    Table { name: "channel", repeated: false, doc: "Where the host is met, unless the command line says otherwise." },
    Table {
        name: "state",
        repeated: false,
        doc: "What a restarted postern must know: which filesystems are frozen, which handles were given out.",
    },
];

/// Every key, in the order of the reference.
pub static KEYS: [Key; 43] = [
    Key::new("", "version", Type::Version, "1", "The format of the file. Every file says it, drop-ins too.").required(),
    Key::new(
        "",
        "profile",
        Type::Choice(profiles::NAMES),
        "\"backup\"",
        "A named set of commands to start from; without one, only `commands.allow` counts. What a profile holds never \
         changes under the same `version`, so that an upgrade does not widen a policy.",
    ),
    Key::new(
        "commands",
        "allow",
        Type::Commands(Among::Offered),
        "[\"guest-shutdown\"]",
        "Commands to allow beside the profile's. Lists of all files add up. There are no patterns: they would grow \
         with an upgrade.",
    ),
    Key::new(
        "commands",
        "deny",
        Type::Commands(Among::Known),
        "[\"guest-file-write\"]",
        "Commands to refuse, whatever allows them in whichever file. Lists of all files add up. Commands that only \
         stock has may be named too.",
    ),
    Key::new(
        "commands",
        "redact",
        Type::Commands(Among::Redactable),
        "[\"guest-get-host-name\"]",
        "Commands to offer whose answers are valid and say little: what each says then, `postern policy explain` tells. \
         For clients that ask whether a command is there, or go wrong without an answer. Counts over `allow` and \
         profile, `deny` over it, wherever they stand. Lists of all files add up.",
    ),
    Key::new(
        "facts",
        "interfaces",
        Type::Patterns,
        "[\"eth*\", \"ens?\"]",
        "The network interfaces that `guest-network-get-interfaces` and `guest-network-get-route` name: patterns in \
         which `*` stands for any characters and `?` for one. Where none is listed, a redacted answer leaves out \
         loopback and what containers and guests in the guest have (`veth*`, `docker*`, `br-*`, `cni*`, `cali*`, \
         `virbr*` and others).",
    ),
    Key::new(
        "facts",
        "mountpoints",
        Type::Mountpoints,
        "[\"/\", \"/srv/data\"]",
        "The filesystems that `guest-get-fsinfo` names, by where they are mounted, exactly. Where none is listed, a \
         redacted answer names that at `/`.",
    ),
    Key::new(
        "facts",
        "host_name",
        Type::HostName,
        "\"web\"",
        "What `guest-get-host-name` answers in place of the host name; a redacted answer is \"guest\" where nothing is \
         written.",
    ),
    Key::new(
        "files",
        "path",
        Type::Path,
        "\"/var/log/nginx\"",
        "A file or directory, absolute, with no symbolic link on the way: the kernel's word for an opened file is \
         compared with it. A directory means everything beneath it. It must exist when postern starts, unless \
         `optional`.",
    )
    .required(),
    Key::new(
        "files",
        "rights",
        Type::Choices { of: &["read", "write", "create", "append"], least: 1 },
        "[\"read\"]",
        "`read` what stands in a file; `write`: overwrite and empty an existing file; `create` a file that is not \
         there and fill it; `append` to an existing file without overwriting. `create` takes a directory as `path`.",
    )
    .required(),
    Key::new(
        "files",
        "except",
        Type::Paths,
        "[\"/var/log/nginx/private\"]",
        "Paths beneath `path` that the rule does not reach. Held against the path of the opened file, links resolved.",
    ),
    Key::new(
        "files",
        "optional",
        Type::Flag,
        "true",
        "Whether postern starts although `path` is not there. What appears there later is reached after the next start.",
    )
    .default("false"),
    Key::new(
        "files",
        "types",
        Type::Choices { of: &["regular", "fifo", "character-device", "block-device"], least: 1 },
        "[\"regular\", \"fifo\"]",
        "What kinds of object may be opened. Directories and sockets never.",
    )
    .default("[\"regular\"]"),
    Key::new(
        "create",
        "mode",
        Type::Mode,
        "\"0640\"",
        "Permission bits of a file that the host creates, whatever the umask. Octal, in quotes; neither set-id bits \
         nor a right to write for others.",
    )
    .default("\"0600\""),
    Key::new(
        "freeze",
        "limit",
        Type::Duration { min: 1, max: 3600 },
        "\"2m\"",
        "How long filesystems may stay frozen: then the broker thaws them by itself and records it. The default is the \
         longest that hosts wait for a freeze to succeed; a snapshot takes seconds. Above an hour a guest with a lost \
         host is as good as dead.",
    )
    .default("\"10m\""),
    Key::new(
        "shutdown",
        "modes",
        Type::Choices { of: &["powerdown", "halt", "reboot"], least: 0 },
        "[\"powerdown\", \"reboot\"]",
        "What the host may ask `guest-shutdown` for. The command asks for `powerdown` where it names no mode. Where no \
         file sets this, a profile that holds the command brings modes of its own.",
    )
    .default("[]"),
    Key::new(
        "shutdown",
        "method",
        Type::Choice(&["init", "kernel", "auto"]),
        "\"auto\"",
        "`init`: ask init (systemd, sysvinit, busybox) in its own way, refuse where it is unknown; the broker holds \
         CAP_KILL. `kernel`: write everything out, then `reboot(2)`, no service is stopped; the broker holds \
         CAP_SYS_BOOT. `auto`: `init` where init is known when postern starts, else `kernel`.",
    )
    .default("\"init\""),
    Key::new(
        "limits",
        "message",
        Type::Size { min: 4 * KIB, max: 64 * MIB },
        "\"1MiB\"",
        "Largest request. A write of n bytes takes 4/3 n and a little: this and `limits.string` are the limits of a \
         write.",
    )
    .default("\"64MiB\""),
    Key::new(
        "limits",
        "nesting",
        Type::Count { min: 8, max: 1024 },
        "32",
        "Deepest nesting of a request. No offered command needs more than 3.",
    )
    .default("1024"),
    Key::new("limits", "string", Type::Size { min: 4 * KIB, max: 64 * MIB }, "\"1MiB\"", "Longest string of a request.")
        .default("\"64MiB\""),
    Key::new(
        "limits",
        "read",
        Type::Size { min: 4 * KIB, max: 48 * MIB },
        "\"1MiB\"",
        "Largest `count` of one `guest-file-read`; what it reads is sent as it is read, in pieces of 96 KiB. Not below \
         4 KiB, which a read without `count` asks for.",
    )
    .default("\"48MiB\""),
    Key::new("limits", "handles", Type::Count { min: 1, max: 1024 }, "16", "Files that the host may have open at once.")
        .default("64"),
    Key::new(
        "limits",
        "requests",
        Type::Count { min: 1, max: MAX_RATE },
        "500",
        "Requests of one command that are answered in a second: so many at once, and then one for each that is past. \
         Never limited are `guest-ping`, `guest-sync`, `guest-sync-delimited`, `guest-fsfreeze-status` and \
         `guest-fsfreeze-thaw`; others have a limit of their own. No client comes near the default: a loop over files \
         reaches a third of it.",
    )
    .default("100000"),
    Key::new(
        "limits",
        "opens",
        Type::Count { min: 1, max: MAX_RATE },
        "50",
        "The same for `guest-file-open`. Held by the broker, so that a worker that fell cannot pass it; each open puts \
         about one kilobyte into the audit log.",
    )
    .default("10000"),
    Key::new(
        "limits",
        "acts",
        Type::Count { min: 1, max: MAX_RATE },
        "1",
        "The same for `guest-fsfreeze-freeze`, `guest-fsfreeze-freeze-list` and `guest-shutdown`, each for itself. Held \
         by the broker. A host freezes once for each snapshot.",
    )
    .default("10"),
    Key::new(
        "limits",
        "hang",
        Type::Duration { min: 3, max: 3600 },
        "\"2m\"",
        "How long one operation on a file may hang, for a server of a network filesystem or for a disk that somebody \
         else froze. Then an open fails, or else the worker is replaced and with it all handles, so that the host is \
         answered again, above all when it thaws.",
    )
    .default("\"30s\""),
    Key::new(
        "audit",
        "log",
        Type::Path,
        "\"/var/log/postern/audit.jsonl\"",
        "The log file. Its directory belongs to the broker's account and to nobody else; no file rule may reach it.",
    )
    .default("\"/var/log/postern/audit.jsonl\""),
    Key::new(
        "audit",
        "fsync",
        Type::Choice(&["open", "record", "never"]),
        "\"open\"",
        "When the broker waits until records are on the disk, not only in the kernel. `open`: before a descriptor or an \
         effect on a file that they announce; `record`: each of them; `never`: they outlive postern, the last seconds \
         may not outlive a power cut. The broker does nothing else while it waits. Never while filesystems are frozen.",
    )
    .default("\"never\""),
    Key::new(
        "audit",
        "rotate_bytes",
        Type::Size { min: 64 * KIB, max: 1 << 40 },
        "\"64MiB\"",
        "Size of the log from which the broker begins a new file and names the old one for its first record: \
         `audit.jsonl.000000004711`. Such a file may be compressed at any time; it is never renamed again. Without it the \
         broker cannot rename or remove anything, and rotation is logrotate's, which may work beside it.",
    ),
    Key::new(
        "audit",
        "keep",
        Type::Count { min: 1, max: 999 },
        "52",
        "How many rotated files the broker keeps where it rotates by itself; it removes the oldest.",
    )
    .default("16"),
    Key::new(
        "audit",
        "keep_days",
        Type::Count { min: 0, max: 36_500 },
        "365",
        "Rotated files whose last record is younger are not removed by the broker, however many there are: a host \
         that makes many records pushes none out.",
    )
    .default("30"),
    Key::new(
        "audit",
        "max_bytes",
        Type::Size { min: 4 * MIB, max: 1 << 40 },
        "\"256MiB\"",
        "Room for the log and its rotated files together. Once it is spent opens are refused until files are moved \
         away or removed; 1 MiB more is there for everything that is no open, and a thaw is never refused.",
    )
    .default("\"1024MiB\""),
    Key::new(
        "audit",
        "heads",
        Type::Choices { of: &["journal", "syslog"], least: 0 },
        "[\"journal\", \"syslog\"]",
        "Where number and hash of the last record are sent, so that a log that was cut or written anew contradicts \
         them: `journal` speaks to journald, `syslog` to /dev/log. Nothing waits for either.",
    )
    .default("[\"journal\"]"),
    Key::new(
        "audit",
        "head_records",
        Type::Count { min: 1, max: 1_000_000 },
        "100",
        "After so many records a head is sent.",
    )
    .default("1000"),
    Key::new(
        "audit",
        "head_interval",
        Type::Duration { min: 1, max: 86_400 },
        "\"1m\"",
        "So long after a record that no head was sent for yet one is sent.",
    )
    .default("\"15m\""),
    Key::new(
        "identities",
        "worker",
        Type::Account,
        "\"postern\"",
        "Account of worker, opener and spawner: what it may open by file permissions is what the host may open at \
         most. A number n means user n and group n.",
    )
    .default("\"postern\""),
    Key::new(
        "identities",
        "broker",
        Type::Account,
        "\"postern-broker\"",
        "Account of the broker: it owns log and state. A number n means user n and group n.",
    )
    .default("\"postern-broker\""),
    Key::new(
        "identities",
        "groups",
        Type::Groups,
        "[\"adm\"]",
        "Supplementary groups of worker, opener and spawner, for files that only a group may read. They get no other.",
    )
    .default("[]"),
    Key::new(
        "channel",
        "method",
        Type::Choice(&["virtio-serial", "isa-serial", "unix-listen", "vsock-listen"]),
        "\"unix-listen\"",
        "`virtio-serial`: a port that the hypervisor gives the guest. `isa-serial`: a serial line, in raw mode at \
         38400 baud. `vsock-listen`: a vsock port that postern listens on. `unix-listen`: a socket that postern makes \
         and listens on, for tests.",
    )
    .default("\"virtio-serial\""),
    Key::new(
        "channel",
        "path",
        Type::Path,
        "\"/run/postern/host.sock\"",
        "The device, or the socket. The default holds for `virtio-serial` only; `vsock-listen` has no path.",
    )
    .default("\"/dev/virtio-ports/org.qemu.guest_agent.0\""),
    Key::new(
        "channel",
        "port",
        Type::Count { min: 1, max: MAX_ID },
        "1234",
        "The vsock port that `vsock-listen` listens on, under every context id of the guest. It takes one.",
    ),
    Key::new(
        "channel",
        "peer",
        Type::Count { min: 0, max: MAX_ID },
        "3",
        "The context id that may connect to `vsock-listen`; the default is the host's. Others are closed at once and \
         recorded.",
    )
    .default("2"),
    Key::new(
        "state",
        "directory",
        Type::Path,
        "\"/run/postern/state\"",
        "A directory of the broker's account, best on a tmpfs: with it on a disk, a freeze of that disk would stop \
         what must be written to thaw.",
    )
    .default("\"/run/postern/state\""),
];

/// The keys of a table.
pub fn of_table(table: &str) -> impl Iterator<Item = &'static Key> + use<'_> {
    KEYS.iter().filter(move |key| key.table == table)
}

/// The defaults of every table that is not repeated, as a policy file: the
/// reader merges the files over it.
#[must_use]
pub fn defaults() -> String {
    let mut text = String::from("version = 1\n");
    for table in TABLES.iter().filter(|table| !table.name.is_empty() && !table.repeated) {
        text.push('[');
        text.push_str(table.name);
        text.push_str("]\n");
        for (key, default) in of_table(table.name).filter_map(|key| Some((key, key.default?))) {
            text.push_str(key.name);
            text.push_str(" = ");
            text.push_str(default);
            text.push('\n');
        }
    }
    text
}
