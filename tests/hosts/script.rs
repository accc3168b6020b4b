//! The transcripts of clients (`tests/transcripts/clients`, whose README says how
//! they are written), as data. Whatever is not understood there is a panic: a
//! check that is not made would be worse than none.

use std::collections::BTreeMap;

use serde_json::Value;

/// Which agent is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Stock,
    Postern,
}

/// By which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// A unix socket of the agent, in a cell.
    Cell,
    /// The virtio-serial port of a virtual machine.
    #[allow(dead_code, reason = "each test target uses its part")]
    Machine,
}

/// How a client synchronises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sync {
    /// `guest-sync`, alone, on each new connection.
    First,
    /// `guest-sync-delimited`, in one write with each command.
    Delimited,
}

/// What is to hold of what a JSON pointer leads to.
#[derive(Debug)]
pub(crate) enum Op {
    Is(Value),
    Has(Value),
    Keys(Vec<String>),
    Type(String),
    Least(i64),
}

#[derive(Debug)]
pub(crate) struct Check {
    /// Of one agent only, or of both.
    pub(crate) of: Option<Kind>,
    pub(crate) at: String,
    pub(crate) op: Op,
    /// As it stands in the file.
    pub(crate) text: String,
}

#[derive(Debug)]
pub(crate) struct Keep {
    pub(crate) of: Option<Kind>,
    pub(crate) name: String,
    pub(crate) at: String,
}

/// One command.
#[derive(Debug, Default)]
pub(crate) struct Step {
    pub(crate) title: String,
    only: Vec<String>,
    pub(crate) send: String,
    pub(crate) hangs_up: bool,
    /// Nothing comes back, and the client knows it.
    pub(crate) silent: bool,
    pub(crate) until: Option<String>,
    /// A name, and the most that is read, in bytes.
    pub(crate) gather: Option<(String, usize)>,
    pub(crate) checks: Vec<Check>,
    pub(crate) keeps: Vec<Keep>,
}

impl Step {
    /// Whether it is played for this agent on this way.
    pub(crate) fn is_for(&self, kind: Kind, way: Way) -> bool {
        self.only.iter().all(|word| match word.as_str() {
            "cell" => way == Way::Cell,
            "vm" => way == Way::Machine,
            "stock" => kind == Kind::Stock,
            "postern" => kind == Kind::Postern,
            other => panic!("{}: only {other}?", self.title),
        })
    }

    /// The command that is sent.
    #[allow(dead_code, reason = "each test target uses its part")]
    pub(crate) fn command(&self) -> String {
        // Placeholders stand for numbers, or for what is within a string.
        let sent = self.send.replace("%{", "\"").replace('}', "\"");
        let name = sent.split_once("\"execute\":\"").map(|(_, rest)| rest.split('"').next().unwrap_or_default());
        name.unwrap_or_else(|| panic!("{}: no command", self.title)).to_owned()
    }

    /// The step as postern is to take it where its policy allows the command, as
    /// stock does; or where it does not, with stock's text.
    #[allow(dead_code, reason = "each test target uses its part")]
    fn under(self, allowed: bool) -> Self {
        if allowed {
            let stock = |of: Option<Kind>| of != Some(Kind::Postern);
            let checks = self.checks.into_iter().filter(|check| stock(check.of));
            let keeps = self.keeps.into_iter().filter(|keep| stock(keep.of));
            let (checks, keeps) =
                (checks.map(|check| Check { of: None, ..check }), keeps.map(|keep| Keep { of: None, ..keep }));
            return Self { checks: checks.collect(), keeps: keeps.collect(), ..self };
        }
        let text = format!("Command {} has been disabled: the command is not allowed", self.command());
        let checks = [
            check(None, "/error/class is \"CommandNotFound\""),
            check(None, &format!("/error/desc is {}", Value::from(text))),
        ];
        Self { title: self.title, only: self.only, send: self.send, checks: checks.into(), ..Self::default() }
    }

    /// What one agent is asked to do differently; empty if nothing.
    fn own(&self, kind: Kind) -> Vec<(&str, &Op)> {
        self.checks.iter().filter(|check| check.of == Some(kind)).map(|check| (check.at.as_str(), &check.op)).collect()
    }

    /// A step that checks nothing, or names a difference that is none.
    fn validate(&self) {
        let title = &self.title;
        assert!(!self.send.is_empty(), "{title}: nothing is sent");
        assert_eq!(self.hangs_up || self.silent, self.checks.is_empty(), "{title}: what a client reads it looks at");
        let (stock, postern) = (self.own(Kind::Stock), self.own(Kind::Postern));
        assert_eq!(stock.is_empty(), postern.is_empty(), "{title}: a difference has two sides");
        let same = |one: &(&str, &Op)| postern.iter().any(|other| format!("{one:?}") == format!("{other:?}"));
        assert!(!stock.iter().any(same), "{title}: a difference that is none");
    }
}

/// A client and what it sends.
#[derive(Debug)]
pub(crate) struct Script {
    /// The file's name.
    pub(crate) file: String,
    pub(crate) client: String,
    pub(crate) one_connection: bool,
    pub(crate) sync: Sync,
    /// After so long the client gives up.
    pub(crate) seconds: u64,
    /// The longest reply that it takes, in bytes.
    pub(crate) longest: usize,
    /// Files of zeros that must be there, with their sizes in bytes.
    pub(crate) files: BTreeMap<String, usize>,
    /// What the client wants to write.
    pub(crate) bytes: BTreeMap<String, Vec<u8>>,
    pub(crate) steps: Vec<Step>,
}

impl Script {
    /// The transcript as it is to go where a policy allows these commands and
    /// has no rule for a file.
    #[allow(dead_code, reason = "each test target uses its part")]
    pub(crate) fn under(mut self, allowed: impl Fn(&str) -> bool) -> Self {
        self.steps = self
            .steps
            .into_iter()
            .map(|step| {
                let allowed = allowed(&step.command());
                step.under(allowed)
            })
            .collect();
        self
    }
}

/// The files, by name. A cell has none of the machine's.
const FILES: &[(&str, &str)] = &[
    ("ansible.txt", include_str!("../transcripts/clients/ansible.txt")),
    ("kubevirt.txt", include_str!("../transcripts/clients/kubevirt.txt")),
    ("libvirt.txt", include_str!("../transcripts/clients/libvirt.txt")),
    ("nova.txt", include_str!("../transcripts/clients/nova.txt")),
    ("proxmox.txt", include_str!("../transcripts/clients/proxmox.txt")),
];

/// All clients.
pub(crate) fn all() -> Vec<Script> {
    FILES.iter().map(|(name, text)| parse(name, text)).collect()
}

/// Takes a transcript's text.
pub(crate) fn parse(file: &str, text: &str) -> Script {
    let mut script = Script {
        file: file.to_owned(),
        client: String::new(),
        one_connection: true,
        sync: Sync::First,
        seconds: 0,
        longest: usize::MAX,
        files: BTreeMap::new(),
        bytes: BTreeMap::new(),
        steps: Vec::new(),
    };
    let mut sources = 0;
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        if word == "==" {
            script.steps.push(Step { title: format!("{file}: {rest}"), ..Step::default() });
        } else if let Some(step) = script.steps.last_mut() {
            within(step, word, rest);
        } else {
            match (word, rest) {
                ("client", name) => name.clone_into(&mut script.client),
                ("source", source) => {
                    let parts: Vec<_> = source.split(' ').collect();
                    let commit = parts.get(2).filter(|commit| commit.len() == 40);
                    assert!(parts.len() == 3 && commit.is_some(), "{file}: source PROJECT FILE COMMIT, not: {source}");
                    sources += 1;
                }
                ("connection", "one") => script.one_connection = true,
                ("connection", "each") => script.one_connection = false,
                ("sync", "first") => script.sync = Sync::First,
                ("sync", "delimited") => script.sync = Sync::Delimited,
                ("seconds", number) => script.seconds = number.parse().expect("seconds"),
                ("longest", number) => script.longest = number.parse().expect("bytes"),
                ("file", rest) => drop(script.files.insert(sized(rest).0, sized(rest).1)),
                ("bytes", rest) => {
                    let (name, size) = sized(rest);
                    // Every byte occurs, and no period of a power of two.
                    let bytes = (0..size).map(|at| u8::try_from((at * 31 + at / 251) % 256).expect("a byte")).collect();
                    script.bytes.insert(name, bytes);
                }
                _ => panic!("{file}: not understood: {line}"),
            }
        }
    }
    assert!(sources > 0 && script.seconds > 0 && !script.client.is_empty(), "{file}: who, from where, how patient?");
    script.steps.iter().for_each(Step::validate);
    script
}

fn sized(text: &str) -> (String, usize) {
    let (name, size) = text.split_once(' ').expect("a name and a number");
    (name.to_owned(), size.parse().unwrap_or_else(|_| panic!("bytes, not {size}")))
}

fn within(step: &mut Step, word: &str, rest: &str) {
    let (word, of) = match word {
        "?stock" => ("?", Some(Kind::Stock)),
        "?postern" => ("?", Some(Kind::Postern)),
        "keep:stock" => ("keep", Some(Kind::Stock)),
        "keep:postern" => ("keep", Some(Kind::Postern)),
        other => (other, None),
    };
    match word {
        "only" => step.only = rest.split(' ').map(str::to_owned).collect(),
        ">" => step.send = format!("{rest}\n"),
        "hang-up" => step.hangs_up = true,
        "silent" => step.silent = true,
        "until" => step.until = Some(rest.to_owned()),
        "gather" => step.gather = Some(sized(rest)),
        "keep" => {
            let (name, at) = rest.split_once(' ').expect("a name and a pointer");
            step.keeps.push(Keep { of, name: name.to_owned(), at: at.to_owned() });
        }
        "?" => step.checks.push(check(of, rest)),
        _ => panic!("{}: not understood: {word} {rest}", step.title),
    }
}

fn check(of: Option<Kind>, text: &str) -> Check {
    let mut words = text.splitn(3, ' ');
    let (at, op, value) = (words.next(), words.next(), words.next());
    let (Some(at), Some(op), Some(value)) = (at, op, value) else { panic!("? POINTER OP VALUE, not: {text}") };
    let json = || serde_json::from_str(value).unwrap_or_else(|why| panic!("{text}: {why}"));
    let op = match op {
        "is" => Op::Is(json()),
        "has" => Op::Has(json()),
        "keys" => Op::Keys(serde_json::from_value(json()).expect("names")),
        "type" => Op::Type(value.to_owned()),
        "least" => Op::Least(value.parse().expect("a number")),
        other => panic!("no check is called {other}"),
    };
    Check { of, at: at.to_owned(), op, text: text.to_owned() }
}

impl Check {
    /// Whether it holds of a reply.
    pub(crate) fn holds(&self, reply: &Value) -> bool {
        let Some(found) = reply.pointer(&self.at) else { return false };
        match &self.op {
            Op::Is(value) => found == value,
            Op::Has(value) => match (found, value) {
                (Value::Array(all), one) => all.contains(one),
                (Value::String(text), Value::String(part)) => text.contains(part.as_str()),
                _ => false,
            },
            Op::Keys(names) => found.as_object().is_some_and(|object| object.keys().eq(names)),
            Op::Type(name) => match name.as_str() {
                "string" => found.is_string(),
                "integer" => found.is_i64() || found.is_u64(),
                "boolean" => found.is_boolean(),
                "array" => found.is_array(),
                "object" => found.is_object(),
                other => panic!("no type is called {other}"),
            },
            Op::Least(least) => found.as_i64().is_some_and(|number| number >= *least),
        }
    }
}
