//! The fuzzer's inputs for `targets/base64.rs`, which says what must hold.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| postern_fuzz::base64::run(bytes));
