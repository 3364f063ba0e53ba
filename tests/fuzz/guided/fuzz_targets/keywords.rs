//! Tries `mailtwin_store::fuzz::keywords`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| mailtwin_store::fuzz::keywords(input));
