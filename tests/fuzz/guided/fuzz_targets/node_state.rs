//! Tries `mailtwin_host::fuzz::node_state`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| mailtwin_host::fuzz::node_state(input));
