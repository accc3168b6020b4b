//! The fuzzer's inputs for `targets/network.rs`, which says what must hold.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| postern_fuzz::network::run(bytes));
