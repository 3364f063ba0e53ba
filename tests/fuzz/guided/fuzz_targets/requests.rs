//! Tries `mailtwin_host::fuzz::requests`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| mailtwin_host::fuzz::requests(input));
