//! Every error row of the wire contract: request → class and text.

use nix::errno::Errno;
use postern_core::catalogue::{Command, CommandSet};

use super::super::{Incoming, QgaError, reply};
use super::{Id, answered, everything};

fn generic(text: &str) -> String {
    let mut out = Vec::new();
    reply::success(&mut out, &text, &Id::NONE);
    let quoted = String::from_utf8(out).unwrap().replace("{\"return\": ", "");
    format!("{{\"error\": {{\"class\": \"GenericError\", \"desc\": {}}}\n", quoted.trim_end())
}

#[test]
fn requests_that_are_wrong_get_stocks_text() {
    let ping = |rest: &str| format!("{{\"execute\":\"guest-ping\"{rest}}}");
    let with = |command: &str, arguments: &str| format!("{{\"execute\":\"{command}\",\"arguments\":{arguments}}}");
    let sync = |arguments: &str| with("guest-sync", arguments);
    let integer = "Invalid parameter type for 'id', expected: integer";
    let rows = [
        ("[]".into(), "QMP input must be a JSON object"),
        ("\"x\"".into(), "QMP input must be a JSON object"),
        ("1 ".into(), "QMP input must be a JSON object"),
        ("null\n".into(), "QMP input must be a JSON object"),
        ("{}".into(), "QMP input lacks member 'execute'"),
        ("{\"execute\":1}".into(), "QMP input member 'execute' must be a string"),
        ("{\"arguments\":1,\"execute\":2}".into(), "QMP input member 'execute' must be a string"),
        ("{\"foo\":1}".into(), "QMP input member 'foo' is unexpected"),
        ("{\"exec-oob\":\"guest-ping\"}".into(), "QMP input member 'exec-oob' is unexpected"),
        ("{\"foo\":1,\"arguments\":1}".into(), "QMP input member 'arguments' must be an object"),
        ("{\"execute\":\"nope\",\"arguments\":1}".into(), "QMP input member 'arguments' must be an object"),
        (ping(",\"arguments\":[]"), "QMP input member 'arguments' must be an object"),
        (ping(",\"arguments\":null"), "QMP input member 'arguments' must be an object"),
        (ping(",\"arguments\":{\"a\":1}"), "Parameter 'a' is unexpected"),
        (ping(",\"execute\":\"guest-ping\""), "JSON parse error, duplicate key"),
        (sync("{}"), "Parameter 'id' is missing"),
        (sync("{\"z\":1}"), "Parameter 'id' is missing"),
        (sync("{\"id\":1,\"z\":2}"), "Parameter 'z' is unexpected"),
        (sync("{\"id\":\"1\"}"), integer),
        (sync("{\"id\":1.0}"), integer),
        (sync("{\"id\":1e3}"), integer),
        (sync("{\"id\":9223372036854775808}"), integer),
        (sync("{\"id\":-9223372036854775809}"), integer),
        (sync("{\"id\":null}"), integer),
        (with("guest-file-open", "{\"path\":1}"), "Invalid parameter type for 'path', expected: string"),
        (
            with("guest-file-open", "{\"path\":\"/x\",\"mode\":null}"),
            "Invalid parameter type for 'mode', expected: string",
        ),
        (with("guest-file-open", "{\"path\":\"/x\",\"mode\":\"q\"}"), "invalid file open mode 'q'"),
        (with("guest-file-open", "{\"path\":\"/x\",\"mode\":\"\"}"), "invalid file open mode ''"),
        (with("guest-file-write", "{\"handle\":1}"), "Parameter 'buf-b64' is missing"),
        (with("guest-file-seek", "{\"handle\":1,\"offset\":0}"), "Parameter 'whence' is missing"),
        (
            with("guest-file-seek", "{\"handle\":1,\"offset\":0,\"whence\":\"x\"}"),
            "Parameter 'whence' does not accept value 'x'",
        ),
        (
            with("guest-file-seek", "{\"handle\":1,\"offset\":0,\"whence\":1.0}"),
            "Invalid parameter type for 'whence', expected: integer",
        ),
        (
            with("guest-file-seek", "{\"handle\":1,\"offset\":0,\"whence\":true}"),
            "Invalid parameter type for 'whence', expected: GuestFileWhence",
        ),
        (
            with("guest-fsfreeze-freeze-list", "{\"mountpoints\":{}}"),
            "Invalid parameter type for 'mountpoints', expected: array",
        ),
        (
            with("guest-fsfreeze-freeze-list", "{\"mountpoints\":[\"/\",1]}"),
            "Invalid parameter type for 'mountpoints[1]', expected: string",
        ),
        (with("guest-shutdown", "{\"mode\":\"x\"}"), "mode is invalid (valid values are: halt|powerdown|reboot"),
        ("tru\n".into(), "JSON parse error, invalid keyword 'tru'"),
        (ping(",\"id\":nul1"), "JSON parse error, invalid keyword 'nul'"),
        ("@\n".into(), "JSON parse error, stray '@'"),
        ("01\n".into(), "JSON parse error, stray '01'"),
        ("1.\n".into(), "JSON parse error, stray '1.\n'"),
        ("1e-}".into(), "JSON parse error, stray '1e-}'"),
        ("-\"\n".into(), "JSON parse error, stray '-\"'"),
        ("\"a\n".into(), "JSON parse error, stray '\"a\n'"),
        ("\"a\0b\n".into(), "JSON parse error, stray '\"a'"),
        ("}".into(), "JSON parse error, expecting value"),
        ("{\"a\":1,}".into(), "JSON parse error, expecting value"),
        ("[1,]".into(), "JSON parse error, expecting value"),
        ("{]".into(), "JSON parse error, expecting value"),
        ("{\"a\"}".into(), "JSON parse error, missing : in object pair"),
        ("{1:1}".into(), "JSON parse error, key is not a string in object"),
        ("{\"a\":1 \"b\":2}".into(), "JSON parse error, expected separator in dict"),
        ("{\"a\":1]".into(), "JSON parse error, expected separator in dict"),
        ("[1 2]".into(), "JSON parse error, expected separator in list"),
        ("{\"a\":1,\"a\":tru}".into(), "JSON parse error, invalid keyword 'tru'"),
        ("[\"\\q\"]".into(), "JSON parse error, invalid escape sequence in string"),
        ("[\"\\u\"]".into(), "JSON parse error, \\u\" is not a valid Unicode character"),
        ("[\"\\u12\"]".into(), "JSON parse error, \\u12\" is not a valid Unicode character"),
        ("[\"\\u12\\\"9\"]".into(), "JSON parse error, \\u12\\\" is not a valid Unicode character"),
        ("[\"\\u12g4\"]".into(), "JSON parse error, \\u12g4 is not a valid Unicode character"),
        ("[\"\\ud800\"]".into(), "JSON parse error, \\ud800 is not a valid Unicode character"),
        ("[\"\\ud800\\u0041\"]".into(), "JSON parse error, \\ud800 is not a valid Unicode character"),
        ("[\"\\udc00\"]".into(), "JSON parse error, \\udc00 is not a valid Unicode character"),
        ("[\"\\ufffe\"]".into(), "JSON parse error, \\ufffe is not a valid Unicode character"),
        ("[\"\\ud83f\\udfff\"]".into(), "JSON parse error, \\ud83f\\udfff is not a valid Unicode character"),
        ("[\"\u{FFFF}\"]".into(), "JSON parse error, invalid UTF-8 sequence in string"),
    ];
    for (request, text) in rows {
        assert_eq!(answered(&request), generic(text), "{request}");
    }
}

#[test]
fn unknown_and_withheld_commands_have_their_class() {
    let mut withheld = everything();
    withheld.remove(Command::FileOpen);
    let rows = [
        ("nope", withheld, "The command nope has not been found"),
        ("guest-set-time", withheld, "Command guest-set-time has been disabled: the command is not allowed"),
        ("guest-file-open", withheld, "Command guest-file-open has been disabled: the command is not allowed"),
        ("guest-ping", CommandSet::EMPTY, "Command guest-ping has been disabled: the command is not allowed"),
    ];
    for (name, offered, text) in rows {
        let request = format!("{{\"execute\":\"{name}\",\"arguments\":{{\"bad\":1}},\"id\":[\"é\"]}}");
        let incoming = Incoming::read(request.as_bytes(), offered);
        let mut out = Vec::new();
        reply::error(&mut out, &incoming.request.unwrap_err(), &incoming.id);
        let wanted =
            format!("{{\"id\": [\"\\u00E9\"], \"error\": {{\"class\": \"CommandNotFound\", \"desc\": \"{text}\"}}}}\n");
        assert_eq!(String::from_utf8(out).unwrap(), wanted);
    }
}

#[test]
fn while_frozen_only_the_safe_ones_are_left() {
    let left: Vec<_> = super::super::request::while_frozen(everything()).iter().map(Command::name).collect();
    let safe = [
        "guest-sync-delimited",
        "guest-sync",
        "guest-ping",
        "guest-info",
        "guest-fsfreeze-status",
        "guest-fsfreeze-thaw",
    ];
    assert_eq!(left, safe);
}

#[test]
fn file_errors_read_as_stock_prints_them() {
    let rows = [
        (QgaError::open("/x", "r", Errno::ENOENT), "failed to open file '/x' (mode: 'r'): No such file or directory"),
        (QgaError::Handle(-1), "handle '-1' has not been found"),
        (QgaError::Count(-1), "value '-1' is invalid for argument count"),
        (QgaError::Read(Errno::EISDIR), "failed to read file: Is a directory"),
        (QgaError::Base64, "Base64 data contains invalid characters"),
        (QgaError::Write(Errno::EBADF), "failed to write to file: Bad file descriptor"),
        (QgaError::Write(Errno::ENOSPC), "failed to write to file: No space left on device"),
        (QgaError::Whence(7), "invalid whence code 7"),
        (QgaError::Seek(Errno::EINVAL), "failed to seek file: Invalid argument"),
        (QgaError::Seek(Errno::ELOOP), "failed to seek file: Too many levels of symbolic links"),
        (QgaError::Told("failed to open /mnt: Permission denied".into()), "failed to open /mnt: Permission denied"),
    ];
    for (error, text) in rows {
        assert_eq!(error.to_string(), text);
        assert_eq!(error.class().name(), "GenericError");
    }
}

#[test]
fn a_quoted_text_is_bounded_and_whole() {
    let long = format!("/{}", "é".repeat(4000));
    let text = QgaError::open(&long, "r", Errno::EACCES).to_string();
    assert!(text.len() < super::super::error::TEXT_MAX + 100, "{}", text.len());
    let request = format!("\"{}\n", "é".repeat(4000));
    assert!(answered(&request).len() < super::super::error::TEXT_MAX * 3 + 100);
}

#[test]
fn malformed_bytes_are_counted_as_stock_counts_them() {
    let rows: [(&[u8], &str); 6] = [
        (b"a\xed\xa0\x80b", "a\u{FFFD}b"),
        (b"\xc0\x80", "\0"),
        (b"\xe2\x82\n", "\u{FFFD}\n"),
        (b"\xf8\x88\x80\x80\x80", "\u{FFFD}"),
        (b"\xff\x80", "\u{FFFD}\u{FFFD}"),
        ("é\u{FFFF}x".as_bytes(), "é\u{FFFD}x"),
    ];
    for (bytes, text) in rows {
        assert_eq!(super::super::error::quoted_bytes(bytes), text, "{bytes:x?}");
    }
}
