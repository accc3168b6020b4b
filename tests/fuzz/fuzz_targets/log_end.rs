//! The fuzzer's inputs for `targets/log_end.rs`, which says what must hold.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| postern_fuzz::log_end::run(bytes));
