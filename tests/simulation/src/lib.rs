//! The real agent and the real replica code in one thread, over stores in memory, on simulated time,
//! network and disk: what happens, and when, is decided by a seed, which repeats it.
//!
//! ```text
//! story ─▶ world: clients ─▶ master's store ─▶ log (disk) ─▶ links ─▶ net ─▶ sessions ─▶ replica's store
//!   │                                                                                        │
//!   └─ faults: cuts, silence, latency, kills, power cuts, full disks, backups, clock jumps     │
//! oracle: the invariants, after every step ◀──────────────────────────────────────────────────┘
//! ```
#![forbid(unsafe_code)]

pub mod ann;
pub mod clock;
pub mod disk;
pub mod net;
pub mod node;
pub mod oracle;
mod peace;
pub mod reach;
pub mod replica;
pub mod story;
pub mod world;
