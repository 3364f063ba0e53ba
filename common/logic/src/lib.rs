//! Every decision Mailtwin makes, and nothing else: no file, socket, clock or thread gets in here.
//!
//! ```text
//!  mail server writes -> source notices -> sync log (durable) -> link takes a batch -> coalesce
//!    -> compare heads -> plan -> wire -> stage, verify, apply, sync -> ack -> cursor moves
//! ```
//!
//! Machines take events and return actions; drivers in `agent`, `replica` and `host` carry them
//! out. The invariants that all of it keeps (docs/architecture.md says where each is checked):
//!
//! - **I1** No loss: an accepted message is on the replica, or covered by the sync log, or found by
//!   the start-up scan.
//! - **I2** Nothing is deleted on a guess: an absence counts only when confirmed a second time, under
//!   the store's lock, in a store that proved to be the right one.
//! - **I3** Within a UIDVALIDITY, a UID denotes one GUID for ever. UIDNEXT and epoch never fall.
//! - **I4** At most one node accepts writes in an epoch.
//! - **I5** One broken mailbox or replica delays no other.
//! - **I6** Replay is idempotent.
//! - **I7** When both sides are quiet they are equal, or the difference is listed.
//! - **I8** An ack means durable. A cursor moves by an ack and by nothing else.
//! - **I9** Hostile input is harmless: everything read is bounded and checked.
//! - **I10** An expunged message never returns unannounced.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod brake;
pub mod chain;
pub mod check;
pub mod cursor;
pub mod digest;
pub mod entry;
pub mod evidence;
pub mod failover;
pub mod graveyard;
pub mod ids;
pub mod limits;
pub mod link;
pub mod mailbox;
pub mod pace;
pub mod plan;
pub mod quarantine;
pub mod reconcile;
pub mod wire;
