//! Exit codes, the same for every verb.

/// It ran and found something: differences, quarantine, lag over its bound.
pub(crate) const FOUND: u8 = 1;
/// Usage or configuration (clap ends with the same code).
pub(crate) const USAGE: u8 = 2;
/// A daemon or peer could not be reached.
pub(crate) const UNREACHABLE: u8 = 3;
/// Refused: fenced, wrong role, brake.
pub(crate) const REFUSED: u8 = 4;
