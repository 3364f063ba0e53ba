//! Cyrus's replication protocol, spoken from the outside: values, answers, sessions, connections.
//!
//! The same commands are served on two ports. `sync_server` ("csync") takes them bare; `imapd` takes
//! them with a tag and the prefix `SYNC`, and has `LIST` besides. What is written over IMAP stands in
//! the server's sync log, what is written over csync does not.
//!
//! ```text
//! Link (socket, deadline) ── octets ──▶ Session ── Framer ──▶ dlist values ──▶ Outcome
//! ```
//!
//! Everything but [`link`] and [`tls`] is free of I/O. Blocking; knows nothing of tokio.
#![forbid(unsafe_code)]

pub mod dlist;
pub mod frame;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod journal;
pub mod link;
pub mod listing;
pub mod mailbox;
pub mod names;
pub mod session;
pub mod tls;

pub use dlist::{File, Value};
pub use link::{Link, LinkError, Login, Place};
pub use listing::Listing;
pub use session::{Answer, Command, Dialect, Outcome, Refusal};
