//! A reader of what strace writes (`-f -y -o FILE`, version 6): one [`Call`] per
//! system call, in the order in which the tracer saw them end. Small, and strict:
//! a line that it does not understand is an error.
//!
//! One tracer holds every process of the family at each call's entry and exit
//! until it has written that down, so what one process does because of another
//! stands behind it.

use std::collections::BTreeMap;

/// A system call of a traced process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) pid: i32,
    pub(crate) name: String,
    pub(crate) arguments: Vec<String>,
    /// What it returned, `None` if its process ended in it.
    pub(crate) result: Option<i64>,
    /// Whether the tracer made it fail.
    pub(crate) injected: bool,
    /// Line at which it had begun at the latest.
    pub(crate) begun: usize,
    /// Line at which it had ended; nothing behind this line came before it.
    pub(crate) ended: usize,
}

/// The name of a call that nobody made.
const UNKNOWN: &str = "???";

/// What a trace tells.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    pub(crate) calls: Vec<Call>,
    /// Processes that have not ended.
    pub(crate) alive: Vec<i32>,
}

struct Unfinished {
    text: String,
    begun: usize,
}

/// Reads a whole trace.
pub(crate) fn read(text: &str) -> Result<Trace, String> {
    let mut trace = Trace::default();
    let mut unfinished: BTreeMap<i32, Unfinished> = BTreeMap::new();
    for (number, line) in text.lines().enumerate() {
        let wrong = |what: &str| format!("line {}: {what}: {line}", number + 1);
        let (pid, rest) = line.split_once(' ').ok_or_else(|| wrong("no process id"))?;
        let pid: i32 = pid.parse().map_err(|_| wrong("no process id"))?;
        let rest = rest.trim_start();
        if !trace.alive.contains(&pid) {
            trace.alive.push(pid);
        }
        if rest.starts_with("+++ ") && rest.ends_with(" +++") {
            if let Some(begun) = unfinished.remove(&pid) {
                let whole = begun.text + ") = ?";
                trace.calls.push(call(pid, &whole, begun.begun, number).ok_or_else(|| wrong("no call"))?);
            }
            trace.alive.retain(|alive| *alive != pid);
        } else if rest.starts_with("--- ") && rest.ends_with(" ---") {
            // A signal.
        } else if let Some(start) = rest.strip_suffix(" <unfinished ...>") {
            let text = start.to_owned();
            if unfinished.insert(pid, Unfinished { text, begun: number }).is_some() {
                return Err(wrong("two calls at once"));
            }
        } else if let Some(resumed) = rest.strip_prefix("<... ") {
            let (name, end) = resumed.split_once(" resumed>").ok_or_else(|| wrong("nothing is resumed"))?;
            let begun = unfinished.remove(&pid).ok_or_else(|| wrong("what is resumed was not begun"))?;
            if !begun.text.starts_with(&format!("{name}(")) {
                return Err(wrong("another call is resumed"));
            }
            let whole = begun.text + end;
            trace.calls.push(call(pid, &whole, begun.begun, number).ok_or_else(|| wrong("no call"))?);
        } else {
            trace.calls.push(call(pid, rest, number, number).ok_or_else(|| wrong("no call"))?);
        }
    }
    Ok(trace)
}

/// `name(arguments) = result …`
fn call(pid: i32, text: &str, begun: usize, ended: usize) -> Option<Call> {
    let (name, rest) = text.split_once('(')?;
    let known = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let (arguments, rest) = arguments(rest)?;
    let rest = rest.trim_start().strip_prefix("= ")?;
    let word = rest.split([' ', '<']).next()?;
    let result = match word {
        "?" => None,
        number => Some(number.parse().ok()?),
    };
    // Killed as it entered a call, before strace could ask which: it was not made.
    if !known && (name != UNKNOWN || result.is_some()) {
        return None;
    }
    let injected = rest.ends_with("(INJECTED)");
    Some(Call { pid, name: name.to_owned(), arguments, result, injected, begun, ended })
}

/// Arguments up to the closing bracket, and what is behind it. Commas and
/// brackets in strings, names and structures do not count.
fn arguments(text: &str) -> Option<(Vec<String>, &str)> {
    let mut arguments = Vec::new();
    let mut depth = 0_u32;
    let mut start = 0;
    let mut quoted = false;
    let mut escaped = false;
    // What a descriptor is: `5</path>`. A path may hold anything.
    let mut named = false;
    for (at, byte) in text.bytes().enumerate() {
        if escaped {
            escaped = false;
            continue;
        }
        match byte {
            b'\\' if quoted || named => escaped = true,
            b'"' if !named => quoted = !quoted,
            _ if quoted => {}
            b'<' if at > 0 && (text.as_bytes()[at - 1].is_ascii_digit() || text[..at].ends_with("AT_FDCWD")) => {
                named = true;
            }
            b'>' if named => named = false,
            _ if named => {}
            b'(' | b'[' | b'{' => depth += 1,
            b')' if depth == 0 => {
                arguments.push(text[start..at].trim().to_owned());
                return Some((arguments, &text[at + 1..]));
            }
            b')' | b']' | b'}' => depth = depth.checked_sub(1)?,
            b',' if depth == 0 => {
                arguments.push(text[start..at].trim().to_owned());
                start = at + 1;
            }
            _ => {}
        }
    }
    None
}

/// The bytes of a string as strace writes them; `None` if it was cut.
pub(crate) fn string(argument: &str) -> Option<Vec<u8>> {
    let inner = argument.strip_prefix('"')?.strip_suffix('"')?;
    let mut bytes = Vec::with_capacity(inner.len());
    let mut rest = inner.as_bytes();
    while let Some((&byte, behind)) = rest.split_first() {
        rest = behind;
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        let (&code, behind) = rest.split_first()?;
        rest = behind;
        bytes.push(match code {
            b'n' => b'\n',
            b't' => b'\t',
            b'r' => b'\r',
            b'v' => 0x0b,
            b'f' => 0x0c,
            b'"' | b'\\' => code,
            b'0'..=b'7' => {
                let mut value = u32::from(code - b'0');
                let digits = rest.iter().take(2).take_while(|digit| matches!(digit, b'0'..=b'7')).count();
                for digit in &rest[..digits] {
                    value = value * 8 + u32::from(digit - b'0');
                }
                rest = &rest[digits..];
                u8::try_from(value).ok()?
            }
            _ => return None,
        });
    }
    Some(bytes)
}

/// What a descriptor is, by `-y`: `8</path>`; the name that it had, if that is gone.
pub(crate) fn name_of(argument: &str) -> Option<&str> {
    let (number, rest) = argument.split_once('<')?;
    number.parse::<i32>().ok()?;
    rest.strip_suffix("(deleted)").unwrap_or(rest).strip_suffix('>')
}

/// The value of `field=` in a structure, up to what ends it.
pub(crate) fn field<'a>(structure: &'a str, field: &str) -> Option<&'a str> {
    let start = structure.find(&format!("{field}="))? + field.len() + 1;
    let text = &structure[start..];
    let mut quoted = false;
    let mut escaped = false;
    let mut depth = 0_u32;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => quoted = !quoted,
            _ if quoted => {}
            b'[' | b'{' => depth += 1,
            b']' | b'}' | b',' if depth == 0 => return Some(&text[..at]),
            b']' | b'}' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// The reader reads what strace writes, and nothing else.
pub(crate) fn reads_what_strace_writes() {
    let text = concat!(
        "7 openat(AT_FDCWD</a, (b>, \"/x\\\"y,\", O_RDONLY|O_CLOEXEC|O_PATH) = 5</x\"y,>\n",
        "7 write(8</log>, \"a\\n\\0\\3771\\13x\", 7 <unfinished ...>\n",
        "9 sendto(3<socket:[12]>, \"\\t\", 1, MSG_NOSIGNAL, NULL, 0) = 1\n",
        "7 <... write resumed>) = -1 ENOSPC (No space left on device) (INJECTED)\n",
        "9 --- SIGCHLD {si_signo=SIGCHLD, si_code=CLD_EXITED} ---\n",
        "7 sendmsg(4<socket:[6]>, {msg_name=NULL, msg_iov=[{iov_base=\"\\3}\", iov_len=2}], msg_iovlen=1, ",
        "msg_control=[{cmsg_len=20, cmsg_type=SCM_RIGHTS, cmsg_data=[12</f/n48>]}], msg_flags=0}, 0 <unfinished ...>\n",
        "7 +++ killed by SIGKILL +++\n",
        "8   ???()      = ?\n",
        "8   +++ killed by SIGKILL +++\n",
    );
    let trace = read(text).expect("a trace");
    assert_eq!(trace.alive, [9]);
    let [opened, sent, wrote, ended, unknown] = &trace.calls[..] else { panic!("{trace:?}") };
    assert_eq!((opened.name.as_str(), opened.result, opened.arguments.len()), ("openat", Some(5), 3));
    assert_eq!(string(&opened.arguments[1]).as_deref(), Some(&b"/x\"y,"[..]));
    assert_eq!((sent.pid, sent.begun, sent.ended), (9, 2, 2));
    assert_eq!((wrote.pid, wrote.result, wrote.injected, wrote.begun, wrote.ended), (7, Some(-1), true, 1, 3));
    assert_eq!(string(&wrote.arguments[1]).as_deref(), Some(&b"a\n\0\xff1\x0bx"[..]));
    assert_eq!(name_of(&wrote.arguments[0]), Some("/log"));
    assert_eq!((ended.result, ended.ended), (None, 6));
    assert_eq!(field(&ended.arguments[1], "iov_base").and_then(string).as_deref(), Some(&b"\x03}"[..]));
    assert_eq!(field(&ended.arguments[1], "cmsg_data"), Some("[12</f/n48>]"));
    assert_eq!((unknown.pid, unknown.name.as_str(), unknown.result), (8, UNKNOWN, None));
    assert_eq!(string("\"cut\"..."), None);
    for wrong in [
        "x write(1) = 0",
        "7 write(1",
        "7 write(1) 0",
        "7 <... write resumed>) = 0",
        "7 ???",
        "7 ???() = 0",
        "strace: no",
    ] {
        assert!(read(wrong).is_err(), "{wrong}");
    }
}
