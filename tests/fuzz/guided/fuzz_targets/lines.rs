//! Tries `mailtwin_disk::fuzz::lines`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| mailtwin_disk::fuzz::lines(input));
