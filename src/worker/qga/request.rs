//! Requests: one message → a typed command, checked in stock's order.
//!
//! JSON, then object, `execute`, `arguments`, other members, `id`; then the name
//! in the catalogue, then whether it is offered, then each argument as the
//! catalogue's row says, then arguments that the row does not have. What only
//! the file can tell (handle, count, whence, base64) is the dispatcher's, after
//! it has found the handle: that is stock's order too.
//!
//! Trust: reads hostile bytes; what comes out is in type, not in range.

use std::borrow::Cow;

use postern_core::catalogue::{Arg, Command, CommandSet, Kind, lookup};
use postern_core::messages::{SuspendMode, Switch};
use postern_core::policy::ShutdownMode;
use postern_core::policy::rules::Mode;

use super::error::{QgaError, quoted};
use super::reply::Id;
use super::value::{Members, Value};

/// Bytes that a read without `count` asks for.
pub const READ_DEFAULT: i64 = 4096;

/// An offered command with its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "fields are the arguments' wire names; the catalogue describes the commands")]
pub enum Request<'a> {
    SyncDelimited {
        id: i64,
    },
    Sync {
        id: i64,
    },
    Ping,
    Info,
    Shutdown {
        mode: ShutdownMode,
    },
    FileOpen {
        path: Cow<'a, str>,
        mode: Mode,
        /// The mode as written, for error texts.
        written: Cow<'a, str>,
    },
    FileClose {
        handle: i64,
    },
    FileRead {
        handle: i64,
        /// Unchecked; [`READ_DEFAULT`] if the host gave none.
        count: i64,
    },
    FileWrite {
        handle: i64,
        /// Unchecked base64 text, for [`super::base64::Encoded`].
        data: Cow<'a, str>,
        count: Option<i64>,
    },
    FileSeek {
        handle: i64,
        offset: i64,
        whence: Whence,
    },
    FileFlush {
        handle: i64,
    },
    FsfreezeStatus,
    FsfreezeFreeze,
    FsfreezeFreezeList {
        /// `None` means all, as `guest-fsfreeze-freeze`; empty means none.
        mountpoints: Option<Vec<Cow<'a, str>>>,
    },
    FsfreezeThaw,
    /// One that tells of the guest, and takes no argument.
    Tell(Command),
    Fstrim {
        /// As stock takes it: a number without sign, 0 if the host gave none.
        minimum: u64,
    },
    Suspend {
        mode: SuspendMode,
    },
    SetVcpus {
        vcpus: Vec<Switch>,
    },
    SetMemoryBlocks {
        blocks: Vec<Switch>,
    },
}

impl Request<'_> {
    /// Whether the reply is known without asking anybody: nothing behind it has to
    /// wait for it to leave.
    #[must_use]
    pub const fn is_instant(&self) -> bool {
        matches!(self, Self::Ping | Self::Sync { .. } | Self::SyncDelimited { .. } | Self::Info)
    }
}

/// Where a seek starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whence {
    /// The file's beginning: 0, "set".
    Set,
    /// The handle's position: 1, "cur".
    Cur,
    /// The file's end: 2, "end".
    End,
    /// No whence: [`QgaError::Whence`], once the handle was found.
    Other(i64),
}

/// A message, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incoming<'a> {
    /// To be echoed, also by an error.
    pub id: Id,
    /// The command, if the message named one that postern offers at all:
    /// also where `request` is an error, for audit.
    pub command: Option<Command>,
    /// The request, or what the host is told is wrong with it.
    pub request: Result<Request<'a>, QgaError>,
}

impl<'a> Incoming<'a> {
    /// Reads a message that [`super::frame::Decoder`] gave. `offered` are the
    /// commands that may be used now; see [`while_frozen`].
    #[must_use]
    pub fn read(message: &'a [u8], offered: CommandSet) -> Self {
        let mut incoming = Self { id: Id::NONE, command: None, request: Err(QgaError::NotAnObject) };
        incoming.request = incoming.fill(message, offered);
        incoming
    }

    fn fill(&mut self, message: &'a [u8], offered: CommandSet) -> Result<Request<'a>, QgaError> {
        let Value::Object(mut members) = Value::parse(message)? else { return Err(QgaError::NotAnObject) };
        if let Some(id) = take(&mut members, "id") {
            self.id = Id::of(&id)?;
        }
        let name = match take(&mut members, "execute") {
            Some(Value::Str(name)) => Some(name),
            Some(_) => return Err(QgaError::ExecuteNotAString),
            None => None,
        };
        let arguments = match take(&mut members, "arguments") {
            Some(Value::Object(arguments)) => arguments,
            Some(_) => return Err(QgaError::ArgumentsNotAnObject),
            None => Members::new(),
        };
        if let Some((key, _)) = members.first() {
            return Err(QgaError::UnexpectedMember(quoted(key)));
        }
        let name = name.ok_or(QgaError::LacksExecute)?;
        let entry = lookup(&name).ok_or_else(|| QgaError::CommandNotFound(quoted(&name)))?;
        self.command = entry.command;
        match entry.command {
            Some(command) if offered.contains(command) => request(command, Arguments::check(arguments, entry.args)?),
            _ => Err(QgaError::CommandDisabled(entry.name)),
        }
    }
}

/// What is left of `offered` while filesystems are frozen.
#[must_use]
pub fn while_frozen(offered: CommandSet) -> CommandSet {
    offered.iter().filter(|command| command.entry().frozen_safe).collect()
}

/// Takes a member out. (The others keep their order: the first of several
/// unexpected ones is named.)
fn take<'a>(members: &mut Members<'a>, name: &str) -> Option<Value<'a>> {
    let at = members.iter().position(|(key, _)| key == name)?;
    Some(members.remove(at).1)
}

/// Arguments of the right types, required ones there, no others.
struct Arguments<'a>(Members<'a>);

impl<'a> Arguments<'a> {
    fn check(members: Members<'a>, args: &[Arg]) -> Result<Self, QgaError> {
        check_members(&members, args, Place::Top)?;
        Ok(Self(members))
    }

    fn int(&mut self, name: &'static str) -> Result<i64, QgaError> {
        self.int_if(name).ok_or(QgaError::ArgumentMissing(name.into()))
    }

    fn int_if(&mut self, name: &str) -> Option<i64> {
        match take(&mut self.0, name) {
            Some(Value::Int(value)) => Some(value),
            _ => None,
        }
    }

    fn text(&mut self, name: &'static str) -> Result<Cow<'a, str>, QgaError> {
        self.text_if(name).ok_or(QgaError::ArgumentMissing(name.into()))
    }

    fn text_if(&mut self, name: &str) -> Option<Cow<'a, str>> {
        match take(&mut self.0, name) {
            Some(Value::Str(value)) => Some(value),
            _ => None,
        }
    }

    fn texts_if(&mut self, name: &str) -> Option<Vec<Cow<'a, str>>> {
        let Some(Value::Array(values)) = take(&mut self.0, name) else { return None };
        let text = |value| if let Value::Str(text) = value { Some(text) } else { None };
        Some(values.into_iter().filter_map(text).collect())
    }

    fn whence(&mut self, name: &'static str) -> Result<Whence, QgaError> {
        match take(&mut self.0, name) {
            Some(Value::Str(text)) => whence_named(name, &text),
            Some(Value::Int(0)) => Ok(Whence::Set),
            Some(Value::Int(1)) => Ok(Whence::Cur),
            Some(Value::Int(2)) => Ok(Whence::End),
            Some(Value::Int(other)) => Ok(Whence::Other(other)),
            _ => Err(QgaError::ArgumentMissing(name.into())),
        }
    }

    /// A list of objects that have been checked: `number` of each, and `online`.
    fn switches(&mut self, name: &str, number: &str) -> Vec<Switch> {
        let Some(Value::Array(values)) = take(&mut self.0, name) else { return Vec::new() };
        let switch = |value| {
            let Value::Object(mut members) = value else { return None };
            let number = match take(&mut members, number)? {
                Value::Int(number) => number.cast_unsigned(),
                Value::Uint(number) => number,
                _ => return None,
            };
            Some(Switch { number, online: take(&mut members, "online") == Some(Value::Bool(true)) })
        };
        values.into_iter().filter_map(switch).collect()
    }
}

/// Where an argument stands, for error texts.
#[derive(Clone, Copy)]
enum Place {
    /// In `arguments`.
    Top,
    /// In the element of this list that has this number.
    In(&'static str, usize),
}

impl Place {
    fn name(self, name: &'static str) -> Cow<'static, str> {
        match self {
            Self::Top => name.into(),
            Self::In(..) => self.quoted(name).into(),
        }
    }

    fn quoted(self, name: &str) -> String {
        match self {
            Self::Top => quoted(name),
            Self::In(list, at) => format!("{list}[{at}].{}", quoted(name)),
        }
    }
}

/// Required members there and of the right types, in the row's order; then no
/// others.
fn check_members(members: &Members<'_>, args: &[Arg], place: Place) -> Result<(), QgaError> {
    for arg in args {
        match members.iter().find(|(key, _)| key == arg.name) {
            Some((_, value)) => check(arg, value, place)?,
            None if arg.optional => {}
            None => return Err(QgaError::ArgumentMissing(place.name(arg.name))),
        }
    }
    match members.iter().find(|(key, _)| args.iter().all(|arg| key != arg.name)) {
        Some((key, _)) => Err(QgaError::ArgumentUnexpected(place.quoted(key))),
        None => Ok(()),
    }
}

fn check(arg: &Arg, value: &Value<'_>, place: Place) -> Result<(), QgaError> {
    let expected = match (arg.kind, value) {
        (Kind::Int | Kind::Whence, Value::Int(_))
        | (Kind::Str, Value::Str(_))
        | (Kind::Bool, Value::Bool(_))
        | (Kind::Uint, Value::Int(_) | Value::Uint(_)) => return Ok(()),
        (Kind::StrList, Value::Array(values)) => {
            return match values.iter().position(|value| !matches!(value, Value::Str(_))) {
                Some(at) => {
                    let name = format!("{}[{at}]", arg.name).into();
                    Err(QgaError::ArgumentType { name, expected: "string" })
                }
                None => Ok(()),
            };
        }
        (Kind::List(of), Value::Array(values)) => {
            return values.iter().enumerate().try_for_each(|(at, value)| match value {
                Value::Object(members) => check_members(members, of, Place::In(arg.name, at)),
                _ => Err(QgaError::ArgumentType { name: format!("{}[{at}]", arg.name).into(), expected: "object" }),
            });
        }
        (Kind::Uint, _) => return Err(QgaError::ArgumentUint(place.name(arg.name))),
        (Kind::Whence, Value::Str(text)) => return whence_named(arg.name, text).map(|_| ()),
        (Kind::Int, _) | (Kind::Whence, Value::Uint(_) | Value::Float(_)) => "integer",
        (Kind::Str, _) => "string",
        (Kind::Bool, _) => "boolean",
        (Kind::StrList | Kind::List(_), _) => "array",
        (Kind::Whence, _) => "GuestFileWhence",
    };
    Err(QgaError::ArgumentType { name: place.name(arg.name), expected })
}

fn whence_named(name: &'static str, text: &str) -> Result<Whence, QgaError> {
    match text {
        "set" => Ok(Whence::Set),
        "cur" => Ok(Whence::Cur),
        "end" => Ok(Whence::End),
        _ => Err(QgaError::ArgumentValue { name, value: quoted(text) }),
    }
}

fn request(command: Command, mut args: Arguments<'_>) -> Result<Request<'_>, QgaError> {
    Ok(match command {
        Command::SyncDelimited => Request::SyncDelimited { id: args.int("id")? },
        Command::Sync => Request::Sync { id: args.int("id")? },
        Command::Ping => Request::Ping,
        Command::Info => Request::Info,
        Command::Shutdown => {
            let mode = args.text_if("mode");
            let mode = mode.as_deref().map_or(Some(ShutdownMode::Powerdown), ShutdownMode::from_name);
            Request::Shutdown { mode: mode.ok_or(QgaError::ShutdownMode)? }
        }
        Command::FileOpen => {
            let path = args.text("path")?;
            let written = args.text_if("mode").unwrap_or(Cow::Borrowed("r"));
            let mode = Mode::from_fopen(&written).ok_or_else(|| QgaError::OpenMode(quoted(&written)))?;
            Request::FileOpen { path, mode, written }
        }
        Command::FileClose => Request::FileClose { handle: args.int("handle")? },
        Command::FileRead => {
            Request::FileRead { handle: args.int("handle")?, count: args.int_if("count").unwrap_or(READ_DEFAULT) }
        }
        Command::FileWrite => {
            Request::FileWrite { handle: args.int("handle")?, data: args.text("buf-b64")?, count: args.int_if("count") }
        }
        Command::FileSeek => Request::FileSeek {
            handle: args.int("handle")?,
            offset: args.int("offset")?,
            whence: args.whence("whence")?,
        },
        Command::FileFlush => Request::FileFlush { handle: args.int("handle")? },
        Command::FsfreezeStatus => Request::FsfreezeStatus,
        Command::FsfreezeFreeze => Request::FsfreezeFreeze,
        Command::FsfreezeFreezeList => Request::FsfreezeFreezeList { mountpoints: args.texts_if("mountpoints") },
        Command::FsfreezeThaw => Request::FsfreezeThaw,
        Command::GetTime
        | Command::GetHostName
        | Command::GetLoad
        | Command::GetTimezone
        | Command::GetOsinfo
        | Command::GetUsers
        | Command::GetCpustats
        | Command::GetDiskstats
        | Command::GetVcpus
        | Command::GetMemoryBlocks
        | Command::GetMemoryBlockInfo
        | Command::NetworkGetInterfaces
        | Command::NetworkGetRoute
        | Command::GetFsinfo
        | Command::GetDisks => Request::Tell(command),
        Command::Fstrim => Request::Fstrim { minimum: args.int_if("minimum").unwrap_or_default().cast_unsigned() },
        Command::SuspendDisk => Request::Suspend { mode: SuspendMode::Disk },
        Command::SuspendRam => Request::Suspend { mode: SuspendMode::Ram },
        Command::SuspendHybrid => Request::Suspend { mode: SuspendMode::Hybrid },
        Command::SetVcpus => Request::SetVcpus { vcpus: args.switches("vcpus", "logical-id") },
        Command::SetMemoryBlocks => Request::SetMemoryBlocks { blocks: args.switches("mem-blks", "phys-index") },
    })
}
