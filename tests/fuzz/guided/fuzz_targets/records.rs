//! Tries `mailtwin_disk::fuzz::records`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| mailtwin_disk::fuzz::records(input));
