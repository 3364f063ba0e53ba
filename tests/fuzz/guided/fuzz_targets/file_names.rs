//! Tries `mailtwin_store::fuzz::file_names`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| mailtwin_store::fuzz::file_names(input));
