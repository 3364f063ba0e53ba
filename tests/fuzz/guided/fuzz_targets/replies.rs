//! Tries `mailtwin_host::fuzz::replies`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| mailtwin_host::fuzz::replies(input));
