//! What a Mailtwin daemon needs from its host: configuration, keys, TLS, tasks, metrics, signals.
#![forbid(unsafe_code)]

pub mod accept;
pub mod admin;
pub mod base;
#[macro_use]
pub mod codes;
pub mod config;
pub mod daemon;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod gate;
pub mod graveyard;
pub mod history;
mod hook;
pub mod incident;
mod journal;
pub mod keyring;
pub mod keys;
pub mod ledger;
pub mod lines;
pub mod metrics;
pub mod net;
pub mod node;
pub mod notice;
pub mod peers;
pub mod pins;
pub mod program;
pub mod proof;
pub mod records;
pub mod retry;
pub mod seal;
pub mod signals;
pub mod state;
pub mod systemd;
pub mod tasks;
pub mod telemetry;
pub mod tls;
pub mod web;
pub mod workers;

pub use mailtwin_disk::clock;
