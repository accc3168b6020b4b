//! Figures, not assertions: `cargo test --release -p postern-worker speed -- --ignored --nocapture`.

use std::time::Instant;

use postern_core::policy::Limits;

use super::super::base64::{Encoded, Encoder};
use super::super::{Decoder, Incoming, Request};
use super::{everything, feed};

#[test]
#[expect(clippy::cast_precision_loss, reason = "figures for people")]
#[ignore = "prints figures; run it in a release build"]
fn framing_and_base64() {
    let content: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
    let mut text = Vec::new();
    let mut encoder = Encoder::default();
    encoder.push(&content, &mut text);
    encoder.finish(&mut text);
    let text = String::from_utf8(text).unwrap();
    let lines: Vec<_> = text.as_bytes().chunks(76).map(|line| std::str::from_utf8(line).unwrap()).collect();
    let lines = lines.join("\\n");
    let request = |data: &str| {
        format!("{{\"execute\":\"guest-file-write\",\"arguments\":{{\"handle\":1000,\"buf-b64\":\"{data}\"}}}}\n")
    };
    let ping = "{\"execute\":\"guest-ping\"}\n".repeat(40_000);
    let figure = |what: &str, bytes: usize, work: &mut dyn FnMut()| {
        work();
        let begin = Instant::now();
        let rounds = 100;
        (0..rounds).for_each(|_| work());
        let seconds = begin.elapsed().as_secs_f64() / f64::from(rounds);
        println!("{what}: {:.2} GB/s, {:.1} µs", bytes as f64 / seconds / 1e9, seconds * 1e6);
    };
    let plain = request(&text);
    let folded = request(&lines);
    let mut decoder = Decoder::new(Limits::default());
    figure("framing 1 MiB write", plain.len(), &mut || {
        feed(&mut decoder, plain.as_bytes(), &[], &mut |event| assert!(event.is_ok()));
    });
    figure("parsing 1 MiB write", plain.len(), &mut || {
        assert!(Incoming::read(plain.as_bytes(), everything()).request.is_ok());
    });
    let mut out = Vec::new();
    for (what, request) in [("all of a 1 MiB write", &plain), ("the same with \\n every 76", &folded)] {
        figure(what, content.len(), &mut || {
            feed(&mut decoder, request.as_bytes(), &[], &mut |event| {
                let incoming = Incoming::read(event.unwrap(), everything());
                let Ok(Request::FileWrite { data, .. }) = incoming.request else { panic!("no write") };
                Encoded::new(&data).decode_next(usize::MAX / 4, &mut out).unwrap();
            });
            assert!(out == content);
        });
    }
    figure("base64 decode", content.len(), &mut || {
        Encoded::new(&text).decode_next(usize::MAX / 4, &mut out).unwrap();
    });
    figure("base64 encode", content.len(), &mut || {
        out.clear();
        let mut encoder = Encoder::default();
        encoder.push(&content, &mut out);
        encoder.finish(&mut out);
    });
    figure("40,000 pings framed and read", ping.len(), &mut || {
        feed(&mut decoder, ping.as_bytes(), &[], &mut |event| {
            assert!(Incoming::read(event.unwrap(), everything()).request.is_ok());
        });
    });
}
