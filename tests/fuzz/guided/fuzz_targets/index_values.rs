//! Tries `mailtwin_disk::fuzz::index_values`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| mailtwin_disk::fuzz::index_values(input));
