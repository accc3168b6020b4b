//! The executable under test: the one that cargo built beside the tests, or the
//! one that `POSTERN_BINARY` named when they were built. So the executable that
//! ships is tested by tests whose own build is a quicker one (see tests/run).

/// Its path. A cell has it under the same path if its programs name it.
pub(crate) const BINARY: &str = match option_env!("POSTERN_BINARY") {
    Some(path) => path,
    None => env!("CARGO_BIN_EXE_postern"),
};
