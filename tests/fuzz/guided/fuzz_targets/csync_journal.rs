//! Tries `mailtwin_cyrus::fuzz::csync_journal`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| mailtwin_cyrus::fuzz::csync_journal(input));
