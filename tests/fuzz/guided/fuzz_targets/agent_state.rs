//! Tries `mailtwin_agent::fuzz::agent_state`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| mailtwin_agent::fuzz::agent_state(input));
