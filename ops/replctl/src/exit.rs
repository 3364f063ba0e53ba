//! Exit codes, the same for every verb.

/// How a verb ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Nothing to complain about.
    Fine,
    /// It ran and found something: differences, quarantine, lag over its bound.
    Found,
    /// Usage or configuration (clap ends with the same code).
    Usage,
    /// A daemon or peer could not be reached.
    Unreachable,
    /// Refused: fenced, wrong role, brake.
    Refused,
}

impl Exit {
    /// The number that the shell sees.
    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::Fine => 0,
            Self::Found => FOUND,
            Self::Usage => USAGE,
            Self::Unreachable => UNREACHABLE,
            Self::Refused => REFUSED,
        }
    }
}

/// [`Exit::Found`].
pub(crate) const FOUND: u8 = 1;
/// [`Exit::Usage`].
pub(crate) const USAGE: u8 = 2;
/// [`Exit::Unreachable`].
pub(crate) const UNREACHABLE: u8 = 3;
/// [`Exit::Refused`].
pub(crate) const REFUSED: u8 = 4;
