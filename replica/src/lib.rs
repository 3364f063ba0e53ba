//! The daemon on a replica: takes changes in, makes them durable, acks.
//!
//! ```text
//! listener ──▶ session ──▶ stream ──▶ intake (verify) ──▶ commit (group) ──▶ ack
//! ```
#![forbid(unsafe_code)]

mod admin;
mod answer;
mod apply;
mod check;
pub mod commit;
pub mod daemon;
pub mod fence;
pub mod force;
mod handover;
pub mod heard;
mod intake;
pub mod listener;
pub mod metrics;
pub mod session;
mod store;
mod stream;
