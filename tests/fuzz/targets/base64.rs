//! Base64 of file contents: the host's text → bytes, the same however it is
//! decoded, and back.
//!
//! The first byte says how many groups are decoded at once.

use postern_worker::qga::base64::{Encoded, Encoder};

/// Takes an input.
///
/// # Panics
/// Where pieces make a difference, the length was told wrong, or what was encoded
/// is another text.
pub fn run(input: &[u8]) {
    let Some((&groups, bytes)) = input.split_first() else { return };
    round_trip(bytes, usize::from(groups));
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let encoded = Encoded::new(text);
    let good = encoded.check_rest().is_ok();
    let alphabet = |byte: u8| byte.is_ascii_alphanumeric() || b"+/=\n".contains(&byte);
    assert_eq!(good, text.bytes().all(alphabet));
    if good {
        let whole = decode(encoded.clone(), usize::MAX / 4);
        assert_eq!(whole.len(), encoded.decoded_length());
        assert_eq!(decode(encoded, usize::from(groups).max(1)), whole);
        assert_eq!(whole, reference(text));
    }
}

fn decode(mut encoded: Encoded<'_>, groups: usize) -> Vec<u8> {
    let (mut all, mut piece) = (Vec::new(), Vec::new());
    loop {
        encoded.decode_next(groups, &mut piece).expect("it was checked");
        // An incomplete last group is nothing, and the end.
        if piece.is_empty() {
            return all;
        }
        all.extend_from_slice(&piece);
    }
}

/// Bit by bit, as the format is defined; padding is six zeros that count for
/// nothing where they stand at the third and fourth place.
fn reference(text: &str) -> Vec<u8> {
    let sextets: Vec<(u32, bool)> = text
        .bytes()
        .filter(|&byte| byte != b'\n')
        .map(|byte| match byte {
            b'A'..=b'Z' => (u32::from(byte - b'A'), false),
            b'a'..=b'z' => (u32::from(byte - b'a') + 26, false),
            b'0'..=b'9' => (u32::from(byte - b'0') + 52, false),
            b'+' => (62, false),
            b'/' => (63, false),
            _ => (0, true),
        })
        .collect();
    let mut bytes = Vec::new();
    for group in sextets.chunks_exact(4) {
        let bits = group.iter().fold(0, |bits, (sextet, _)| bits << 6 | sextet);
        let [_, first, second, third] = bits.to_be_bytes();
        bytes.push(first);
        bytes.extend(Some(second).filter(|_| !group[2].1));
        bytes.extend(Some(third).filter(|_| !group[3].1));
    }
    bytes
}

fn round_trip(bytes: &[u8], piece: usize) {
    let mut text = Vec::new();
    let mut encoder = Encoder::default();
    for piece in bytes.chunks(piece.max(1)) {
        encoder.push(piece, &mut text);
    }
    encoder.finish(&mut text);
    assert_eq!(text.len(), bytes.len().div_ceil(3) * 4);
    let text = std::str::from_utf8(&text).expect("base64 is ASCII");
    assert_eq!(decode(Encoded::new(text), usize::MAX / 4), bytes);
}
