//! The only code that writes, renames or syncs a file of Mailtwin's own. Blocking.
#![forbid(unsafe_code)]

pub mod clock;
