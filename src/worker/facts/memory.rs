//! `guest-get-memory-blocks` and `guest-get-memory-block-info`, of
//! `/sys/devices/system/memory`: sysfs-devices-memory.
//!
//! Trust: the kernel's bytes; any others are read as far as they have its form.

use std::os::unix::ffi::OsStrExt;

use postern_core::ipc::bundle::{Bundle, Kind};
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
    let is_there = bundle.told(Kind::Names, BLOCKS.as_ref()).is_some();
    let blocks: Vec<_> = bundle.names(BLOCKS).filter_map(|name| MemoryBlock::of(name.as_bytes(), bundle)).collect();
    if is_there && blocks.is_empty() { Err(FactError::NoMemoryBlocks) } else { Ok(blocks) }
}

impl MemoryBlock {
    fn of(name: &[u8], bundle: &Bundle<'_>) -> Option<Self> {
        let phys_index = number(name.strip_prefix(b"memory")?)?;
        let content = |file| bundle.content(format!("{BLOCKS}/memory{phys_index}/{file}"));
        let state = content("state");
        Some(Self {
            online: state.is_none_or(|state| state.starts_with(b"online")),
            can_offline: state.is_some() && content("removable").is_some_and(|removable| removable != b"0"),
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
    use postern_core::ipc::bundle::Gathered;

    use super::super::tests::json;
    use super::*;

    fn bundle(entries: &[(Kind, &str, &[u8])]) -> Gathered {
        let mut gathered = Gathered::default();
        for (kind, path, told) in entries {
            assert!(gathered.add(*kind, format!("{BLOCKS}{path}").as_bytes(), told));
        }
        gathered
    }

    #[test]
    fn blocks_stand_in_the_kernels_order() {
        let gathered = bundle(&[
            (Kind::Names, "", b"memory4\0power\0memory5\0memory3\0memoryx\0memory\0block_size_bytes\0memory188\0"),
            (Kind::Content, "/memory3/state", b"online\n"),
            (Kind::Content, "/memory3/removable", b"0\n"),
            (Kind::Content, "/memory4/state", b"offline\n"),
            (Kind::Content, "/memory4/removable", b"1\n"),
            (Kind::Content, "/memory188/state", b"going-offline\n"),
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
        let empty = bundle(&[(Kind::Names, "", b"")]);
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
        let mut gathered = Gathered::default();
        let names: Vec<_> = (0..COUNT).map(|index| format!("memory{index}")).collect();
        assert!(gathered.add(Kind::Names, BLOCKS.as_bytes(), names.join("\0").as_bytes()));
        for index in 0..COUNT {
            for (file, told) in [("state", &b"online\n"[..]), ("removable", b"1\n")] {
                assert!(gathered.add(Kind::Content, format!("{BLOCKS}/memory{index}/{file}").as_bytes(), told));
            }
        }
        let told = blocks(&Bundle::read(gathered.bytes()).expect("a bundle")).expect("blocks");
        assert_eq!(told.len(), COUNT);
        assert!(told.iter().all(|block| block.online && block.can_offline));
    }
}
