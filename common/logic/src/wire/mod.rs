//! What agent and replica say to each other: see docs/protocol.md.

pub mod frame;
pub mod message;
