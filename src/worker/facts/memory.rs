//! `guest-get-memory-blocks` and `guest-get-memory-block-info`, of
//! `/sys/devices/system/memory`: sysfs-devices-memory.
//!
//! Trust: the kernel's bytes; any others are read as far as they have its form.

use postern_core::ipc::bundle::{Bundle, Entry};
use serde::Serialize;

use super::FactError;
use super::text::number;

/// Where the blocks are.
const BLOCKS: &str = "/sys/devices/system/memory";

/// One block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct MemoryBlock {
    online: bool,
    #[serde(rename = "can-offline")]
    can_offline: bool,
    #[serde(rename = "phys-index")]
    phys_index: u64,
}

/// The blocks that are there, in the kernel's order as stock has them: none in a
/// guest whose kernel can neither add nor remove memory.
///
/// # Errors
/// [`FactError::NoMemoryBlocks`].
pub fn blocks(bundle: &Bundle<'_>) -> Result<Vec<MemoryBlock>, FactError> {
    let Some(entries) = bundle.directory(BLOCKS) else { return Ok(Vec::new()) };
    let blocks: Vec<_> = entries.filter_map(MemoryBlock::of).collect();
    if blocks.is_empty() { Err(FactError::NoMemoryBlocks) } else { Ok(blocks) }
}

impl MemoryBlock {
    fn of(entry: Entry<'_>) -> Option<Self> {
        let phys_index = number(entry.name.strip_prefix(b"memory")?)?;
        let state = entry.content("state");
        Some(Self {
            online: state.is_none_or(|state| state.starts_with(b"online")),
            can_offline: state.is_some() && entry.content("removable").is_some_and(|removable| removable != b"0"),
            phys_index,
        })
    }
}

/// What `guest-get-memory-block-info` returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct MemoryBlockInfo {
    /// Bytes of one block.
    size: u64,
}

/// How large a block is, of what the kernel says of that; `None` for anything else.
#[must_use]
pub fn block_info(bytes: &[u8]) -> Option<MemoryBlockInfo> {
    let digits = str::from_utf8(bytes).ok()?.trim_ascii_end().trim_start_matches("0x");
    u64::from_str_radix(digits, 16).ok().map(|size| MemoryBlockInfo { size })
}

#[cfg(test)]
mod tests {
    use postern_core::ipc::bundle::{Gathered, Kind};

    use super::super::tests::json;
    use super::*;

    /// Blocks with what stands in their two files.
    fn bundle(blocks: &[(&str, Option<&str>, Option<&str>)]) -> Gathered {
        let mut gathered = Gathered::default();
        assert!(gathered.add(Kind::Directory, BLOCKS.as_bytes(), b""));
        for (name, state, removable) in blocks {
            assert!(gathered.add(Kind::Entry, name.as_bytes(), b""));
            for (file, told) in [("state", state), ("removable", removable)] {
                assert!(told.is_none_or(|told| gathered.add(Kind::Content, file.as_bytes(), told.as_bytes())));
            }
        }
        gathered
    }

    #[test]
    fn blocks_stand_in_the_kernels_order() {
        let gathered = bundle(&[
            ("memory4", Some("offline\n"), Some("1\n")),
            ("memory5", None, None),
            ("memory3", Some("online\n"), Some("0\n")),
            ("memoryx", Some("online\n"), Some("1\n")),
            ("memory", None, None),
            ("memory188", Some("going-offline\n"), None),
        ]);
        let told = blocks(&Bundle::read(gathered.bytes()).expect("a bundle")).expect("blocks");
        let first = r#"{"online": false, "can-offline": true, "phys-index": 4}"#;
        assert_eq!(json(&told[0]), first);
        let rest: Vec<_> = told.iter().map(|block| (block.phys_index, block.online, block.can_offline)).collect();
        assert_eq!(rest, [(4, false, true), (5, true, false), (3, true, false), (188, false, false)]);
    }

    #[test]
    fn a_guest_whose_kernel_has_no_blocks() {
        assert_eq!(blocks(&Bundle::default()), Ok(vec![]));
        let empty = bundle(&[]);
        assert_eq!(blocks(&Bundle::read(empty.bytes()).expect("a bundle")), Err(FactError::NoMemoryBlocks));
    }

    #[test]
    fn the_size_is_hexadecimal() {
        for (written, size) in [
            (&b"8000000\n"[..], Some(134_217_728)),
            (b"80000000", Some(2_147_483_648)),
            (b"0x10\n", Some(16)),
            (b"zz\n", None),
            (b"", None),
            (b"\xff", None),
            (b"10000000000000000", None),
        ] {
            assert_eq!(block_info(written), size.map(|size| MemoryBlockInfo { size }), "{written:?}");
        }
    }

    #[test]
    fn as_many_blocks_as_the_largest_guests_have() {
        const COUNT: usize = 32_768;
        let names: Vec<_> = (0..COUNT).map(|index| format!("memory{index}")).collect();
        let all: Vec<_> = names.iter().map(|name| (name.as_str(), Some("online\n"), Some("1\n"))).collect();
        let gathered = bundle(&all);
        let told = blocks(&Bundle::read(gathered.bytes()).expect("a bundle")).expect("blocks");
        assert_eq!(told.len(), COUNT);
        assert!(told.iter().all(|block| block.online && block.can_offline));
    }
}
