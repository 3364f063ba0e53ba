//! Tries `mailtwin_store::fuzz::extras`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| mailtwin_store::fuzz::extras(input));
