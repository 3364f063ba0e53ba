//! What a Mailtwin daemon needs from its host: configuration, keys, TLS, tasks, metrics, signals.
//!
//! net, retry, tasks and workers are complete and in use by agent and replica: keep their interface.
#![forbid(unsafe_code)]

pub mod config;
pub mod keys;
pub mod net;
pub mod node;
pub mod retry;
pub mod tasks;
pub mod workers;

pub use mailtwin_disk::clock;
