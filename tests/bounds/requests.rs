//! What one request may use: one less than the limit, the limit, one more.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use postern_core::policy::TOKENS_MAX;
use serde_json::{Value, json};

use crate::policy;
use crate::support::agent::{Agent, Home, Host};
use crate::support::runner::Test;

pub(crate) const TESTS: &[Test] = &[
    ("a_request_of_the_limit_is_read_and_a_longer_one_named", length),
    ("a_string_of_the_limit_is_read_and_a_longer_one_named", string),
    ("nesting_up_to_the_limit_is_read_and_a_deeper_one_named", nesting),
    ("tokens_up_to_the_limit_are_read_and_more_named", tokens),
    ("a_read_up_to_the_limit_is_done_and_a_longer_one_named", read),
    ("a_write_is_limited_by_its_string", write),
    ("as_many_files_as_the_limit_are_open_and_one_more_named", handles),
];

/// A request with an id of this JSON.
fn with_id(id: &str) -> String {
    format!("{{\"execute\":\"guest-ping\",\"id\":{id}}}")
}

/// The reply to bytes, and then that of a ping: the same worker goes on.
fn reply(agent: &Agent<'_>, host: &mut Host, request: &str) -> Result<Value, String> {
    let worker = agent.process("worker", 0);
    host.send(request.as_bytes());
    host.send(b"\n");
    let reply = host.hear();
    host.ping();
    assert_eq!(agent.process("worker", 0), worker, "another worker");
    match reply["error"]["desc"].as_str() {
        Some(why) => Err(why.to_owned()),
        None => Ok(reply["return"].clone()),
    }
}

fn length() {
    let home = Home::new();
    let agent = home.start(&policy("message = \"8KiB\"\n"));
    let mut host = agent.connect();
    let (head, tail) = ("{\"execute\":\"guest-ping\"", "}");
    for length in [8191, 8192, 8193, 8194, 100_000] {
        let request = format!("{head}{}{tail}", " ".repeat(length - head.len() - tail.len()));
        let due = match length {
            ..=8192 => Ok(json!({})),
            _ => Err("JSON token size limit exceeded: a request of more than 8192 bytes (limits.message of the \
                      guest's policy)"
                .to_owned()),
        };
        assert_eq!(reply(&agent, &mut host, &request), due, "{length}");
    }
}

fn string() {
    let home = Home::new();
    let agent = home.start(&policy("string = \"4KiB\"\n"));
    let mut host = agent.connect();
    for length in [4095, 4096, 4097, 4098, 100_000] {
        let request = with_id(&format!("\"{}\"", "x".repeat(length)));
        let due = match length {
            ..=4096 => Ok(json!({})),
            _ => Err("JSON token size limit exceeded: a string of more than 4096 bytes (limits.string of the guest's \
                      policy)"
                .to_owned()),
        };
        assert_eq!(reply(&agent, &mut host, &request), due, "{length}");
    }
}

fn nesting() {
    let home = Home::new();
    for limit in [8, 1024] {
        let agent = home.start(&policy(&format!("nesting = {limit}\n")));
        let mut host = agent.connect();
        for levels in [limit - 1, limit, limit + 1, limit + 2, 5000] {
            // The request's own object is the first.
            let lists = "[".repeat(levels - 1) + &"]".repeat(levels - 1);
            let request = format!("{{\"execute\":\"guest-ping\",\"x\":{lists}}}");
            let due = if levels <= limit {
                "QMP input member 'x' is unexpected".to_owned()
            } else {
                let key = "limits.nesting of the guest's policy";
                format!("JSON nesting depth limit exceeded: more than {limit} levels ({key})")
            };
            assert_eq!(reply(&agent, &mut host, &request), Err(due), "{levels} of {limit}");
        }
    }
}

fn tokens() {
    let home = Home::new();
    let agent = home.start(&policy(""));
    let mut host = agent.connect();
    let limit = usize::try_from(TOKENS_MAX).expect("a small number");
    for tokens in [limit - 1, limit, limit + 1, limit + 2] {
        // Brackets, zeros and the commas between: an odd number. An empty array
        // has two.
        let zeros = (tokens - 1) / 2;
        let mut request = "[".to_owned() + &"0,".repeat(zeros - 1);
        request += if tokens.is_multiple_of(2) { "[]]" } else { "0]" };
        let due = if tokens <= limit {
            "QMP input must be a JSON object"
        } else {
            "JSON token count limit exceeded: a request of more than 2097152 tokens"
        };
        assert_eq!(reply(&agent, &mut host, &request), Err(due.to_owned()), "{tokens}");
    }
}

fn read() {
    let home = Home::new();
    let path = home.write("file", &[7; 10_000]);
    let agent = home.start(&policy("read = \"4KiB\"\n"));
    let mut host = agent.connect();
    let handle = host.open(&path, "r").expect("a handle");
    for count in [4095, 4096, 4097, 1 << 20, 48 << 20] {
        let request = json!({ "execute": "guest-file-read", "arguments": { "handle": handle, "count": count } });
        match reply(&agent, &mut host, &request.to_string()) {
            Ok(read) => assert_eq!((read["count"].as_i64(), count <= 4096), (Some(count), true), "{read}"),
            Err(why) => {
                assert!(count > 4096, "{count}: {why}");
                let key = "limits.read of the guest's policy";
                assert_eq!(why, format!("a count of {count} is more than 4096 bytes ({key})"));
            }
        }
    }
    // What was refused moved nothing, and a read without a count is within every
    // limit.
    let rest = host.returns("guest-file-read", &json!({ "handle": handle }));
    assert_eq!((rest["count"].as_i64(), rest["eof"].as_bool()), (Some(10_000 - 4095 - 4096), Some(true)));
    // Beyond stock's own limit it is stock's text.
    let why = host.fails("guest-file-read", &json!({ "handle": handle, "count": (48 << 20) + 1 }));
    assert_eq!(why, "value '50331649' is invalid for argument count");
}

fn write() {
    let home = Home::new();
    let agent = home.start(&policy("string = \"4KiB\"\n"));
    let mut host = agent.connect();
    let handle = host.open(home.files().join("new"), "w").expect("a handle");
    // 4096 characters of base64 hold 3072 bytes.
    for bytes in [3069, 3072, 3073, 6000] {
        let arguments = json!({ "handle": handle, "buf-b64": STANDARD.encode(vec![7; bytes]) });
        let request = json!({ "execute": "guest-file-write", "arguments": arguments });
        match reply(&agent, &mut host, &request.to_string()) {
            Ok(written) => assert_eq!((written["count"].as_u64(), bytes <= 3072), (Some(bytes as u64), true)),
            Err(why) => assert!(bytes > 3072 && why.contains("limits.string"), "{bytes}: {why}"),
        }
    }
    let size = std::fs::metadata(home.files().join("new")).expect("the file").len();
    assert_eq!(size, 3069 + 3072, "of what was refused nothing was written");
}

fn handles() {
    let home = Home::new();
    let path = home.write("file", b"content");
    for limit in [1, 3, 1024] {
        let agent = home.start(&policy(&format!("handles = {limit}\n")));
        let mut host = agent.connect();
        let mut opened: Vec<i64> = (0..limit).map(|_| host.open(&path, "r").expect("a handle")).collect();
        for _ in 0..2 {
            for _ in 0..3 {
                let name = path.display();
                let due = format!(
                    "failed to open file '{name}' (mode: 'r'): Too many open files: {limit} (limits.handles of the \
                     guest's policy)"
                );
                assert_eq!(host.open(&path, "r"), Err(due));
            }
            assert_eq!(host.read(opened[0]).len(), if opened.len() == limit { 12 } else { 0 });
            host.returns("guest-file-seek", &json!({ "handle": opened[0], "offset": 0, "whence": 0 }));
            // One that is closed makes room for one.
            host.close(opened.pop().expect("one"));
            opened.push(host.open(&path, "r").expect("a handle"));
        }
    }
}
