//! Values that prove something: nobody outside this crate can make one.

use crate::ids::LogSeq;

/// Everything up to a position is durable on a replica, or durably set aside for it. The only
/// thing that moves a cursor (I8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acked {
    upto: LogSeq,
}

impl Acked {
    pub(crate) fn new(upto: LogSeq) -> Self {
        Self { upto }
    }

    /// The position.
    pub fn upto(self) -> LogSeq {
        self.upto
    }
}
