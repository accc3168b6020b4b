//! The frames between the processes: bytes → a message of each of the six kinds,
//! or none; and a stream of orders → what an opener learns.

use std::fmt::Debug;

use postern_core::ipc::{Frame, MAX_FRAME, Malformed, Wire as _};
use postern_core::messages::{Answer, Ask, OpenerOrder, OpenerReport, SpawnerOrder, SpawnerReport};
use postern_core::policy::parts::OpenerPart;

use super::memory::peak_of;

/// Takes an input: as one frame of every kind, and as orders to an opener, each
/// behind its length in two bytes.
///
/// # Panics
/// Where a message is another one when it is written again, or costs more memory
/// than its frame warrants.
pub fn run(input: &[u8]) {
    let input = &input[..input.len().min(MAX_FRAME)];
    one::<Ask>(input);
    one::<Answer>(input);
    one::<OpenerOrder>(input);
    one::<OpenerReport>(input);
    one::<SpawnerOrder>(input);
    one::<SpawnerReport>(input);
    orders(input);
}

/// A list of empty paths takes two bytes of the frame and 24 of memory for each,
/// and its vector grows by doubling.
fn assert_frugal(peak: usize, bytes: usize) {
    assert!(peak <= 64 * bytes + 4096, "{bytes} bytes took {peak} of memory");
}

fn one<T: Frame + PartialEq + Debug>(bytes: &[u8]) {
    let (decoded, peak) = peak_of(|| T::whole(bytes));
    assert_frugal(peak, bytes.len());
    if let Ok(message) = decoded {
        let mut again = Vec::new();
        message.put(&mut again);
        assert_eq!(again, bytes, "{message:?}");
        assert!(message.descriptors() <= 2);
        assert_eq!(T::whole(&again).as_ref(), Ok(&message));
        // No message is the beginning of another.
        assert!(T::whole(&bytes[..bytes.len() - 1]).is_err());
        again.push(0);
        assert_eq!(T::whole(&again), Err(Malformed::Long));
    }
}

fn orders(bytes: &[u8]) {
    let next = |rest: &mut &[u8]| {
        let (length, behind) = rest.split_first_chunk().ok_or(Malformed::Short)?;
        let (frame, behind) =
            behind.split_at_checked(usize::from(u16::from_le_bytes(*length))).ok_or(Malformed::Short)?;
        *rest = behind;
        OpenerOrder::whole(frame)
    };
    let mut rest = bytes;
    let (part, peak) = peak_of(|| OpenerPart::from_orders(|| next(&mut rest)));
    assert_frugal(peak, bytes.len());
    if let Ok(part) = part {
        let mut again = part.orders().expect("every path came in a frame").into_iter();
        let told: Result<OpenerPart, Malformed> = OpenerPart::from_orders(|| again.next().ok_or(Malformed::Short));
        assert_eq!(told.as_ref(), Ok(&part));
        assert!(again.next().is_none());
    }
}
