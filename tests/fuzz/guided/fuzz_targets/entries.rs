//! Tries `mailtwin_agent::fuzz::entries`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| mailtwin_agent::fuzz::entries(input));
