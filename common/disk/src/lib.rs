//! The only code that writes, renames or syncs a file of Mailtwin's own. Blocking.
//!
//! What survives a power cut, on ext4, xfs and btrfs, provided the disk does not lie about its
//! cache: a file written by [`replace::replace`], a directory made by [`dir::create`], a line of
//! [`lines`], records of [`append`] once `sync` has returned, and what is in [`index`] once
//! `commit` or `sync` has.
#![forbid(unsafe_code)]

pub mod append;
pub mod clock;
pub mod dir;
mod error;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod index;
pub mod lines;
pub mod lock;
pub mod replace;

pub use error::DiskError;
