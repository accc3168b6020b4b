//! `guest-get-load`, of `/proc/loadavg`: proc(5).
//!
//! Trust: the kernel's bytes.

use serde::Serialize;

/// Averages of runnable and waiting threads over the last minutes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Load {
    /// Over one minute.
    load1m: f64,
    /// Over five.
    load5m: f64,
    /// Over fifteen.
    load15m: f64,
}

impl Load {
    /// Of what the file says; `None` for anything else.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let mut numbers = str::from_utf8(bytes).ok()?.split_ascii_whitespace().map(str::parse::<f64>);
        let mut next = || numbers.next()?.ok().filter(|number| number.is_finite());
        Some(Self { load1m: next()?, load5m: next()?, load15m: next()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_three_numbers_count() {
        let load = Load::read(b"0.20 0.18 12.00 1/80 11206\n");
        assert_eq!(load, Some(Load { load1m: 0.2, load5m: 0.18, load15m: 12.0 }));
        for other in [&b""[..], b"0.1 0.2", b"a b c", b"0.1 NaN 0.2 1/1 1", b"\xff 1 2"] {
            assert_eq!(Load::read(other), None, "{other:?}");
        }
    }
}
