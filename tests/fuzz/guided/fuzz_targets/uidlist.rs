//! Tries `mailtwin_store::fuzz::uidlist`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| mailtwin_store::fuzz::uidlist(input));
