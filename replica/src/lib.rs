//! The daemon on a replica: takes changes in, makes them durable, acks.
//!
//! ```text
//! listener ──▶ session ──▶ stream ──▶ intake (verify) ──▶ commit (group) ──▶ ack
//! ```
#![forbid(unsafe_code)]

mod answer;
mod apply;
pub mod commit;
pub mod fence;
pub mod heard;
mod intake;
pub mod metrics;
pub mod session;
mod stream;

