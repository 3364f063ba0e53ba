//! Tries `mailtwin_cyrus::fuzz::csync_values`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| mailtwin_cyrus::fuzz::csync_values(input));
