//! What agent and replica say to each other: see docs/protocol.md.

pub(crate) mod bounded;
pub mod frame;
pub mod message;
pub mod notice;
