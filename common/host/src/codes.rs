//! Words that files, output and logs use as codes: each list is closed, and `replctl explain` knows
//! every one of them.

/// An enum of unit variants, each with its code.
macro_rules! codes {
    ($(#[$about:meta])* $name:ident { $($(#[$note:meta])* $variant:ident = $code:literal,)+ }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name {
            $($(#[$note])* $variant,)+
        }

        impl $name {
            /// Every one.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The code.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $code,)+
                }
            }

            /// What `code` stands for; `None` if it is none of these.
            pub fn of_code(code: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|known| known.as_str() == code)
            }
        }
    };
}

codes! {
    /// What a line of `failover.jsonl` tells of.
    HistoryKind {
        /// This node handed its role over, or tried to.
        Switch = "switch",
        /// A switch that was practised, without its hand-over.
        Drill = "drill",
        /// This node was made the master without the old one.
        Force = "force",
        /// This node was made the master by the one before it.
        Promoted = "promoted",
        /// This node learned that it is not the master any more.
        SteppedDown = "stepped-down",
        /// A node came back, and what only that had was copied.
        Merged = "merged",
    }
}

codes! {
    /// What a line of `ledger.jsonl` tells of.
    LedgerKind {
        /// The old master accepted it, and the new one never had it.
        Tail = "tail",
        /// The same UID meant another message on the master.
        Clash = "clash",
        /// It was expunged on the master, but changed on the returning node since.
        Changed = "changed",
        /// A message of the master's that got a new UID, because the returning node had used up the old one.
        Moved = "moved",
        /// Expunged on the master, as on the returning node.
        Expunged = "expunged",
        /// Flags of both sides, merged.
        Flags = "flags",
        /// A mailbox was renamed, as on the returning node.
        Renamed = "renamed",
        /// A mailbox was deleted, as on the returning node.
        Deleted = "deleted",
        /// A mailbox that only the returning node had was copied.
        Copied = "copied",
    }
}

impl LedgerKind {
    /// Whether it was decided against one of the sides: something was taken away, came back, or has
    /// another UID now.
    pub fn is_conflict(self) -> bool {
        match self {
            Self::Clash | Self::Changed | Self::Moved | Self::Expunged | Self::Deleted => true,
            Self::Tail | Self::Flags | Self::Renamed | Self::Copied => false,
        }
    }
}

codes! {
    /// Why a link that could be made is not: a key.
    KeyTrouble {
        /// The replica shows a key that is not pinned for it.
        PeerKeyChanged = "peer-key-changed",
        /// The replica has another key pinned for this node.
        OwnKeyRefused = "own-key-refused",
    }
}

codes! {
    /// How far the rotation of a node's own key is.
    KeyStage {
        /// There is one key.
        Settled = "key-settled",
        /// There is a next one, beside the present one.
        Prepared = "key-prepared",
        /// The one before has still to be unpinned somewhere.
        Retiring = "key-retiring",
    }
}

codes! {
    /// What a peer knows of a key that is rotated.
    KeyNews {
        /// It has pinned the next key, beside the present one.
        Pinned = "key-pinned",
        /// It has unpinned the key before.
        Unpinned = "key-unpinned",
        /// The key before stands in its configuration.
        Configured = "key-configured",
        /// An admin says that it need not know.
        LeftOut = "key-left-out",
        /// It was not told, or it refused.
        NotTold = "key-not-told",
    }
}

codes! {
    /// How a check ended.
    CheckResult {
        /// Nothing differs.
        Equal = "equal",
        /// Something differs.
        Different = "different",
        /// Nothing was found to differ, but not everything could be compared.
        Incomplete = "incomplete",
    }
}

impl CheckResult {
    /// Of a check that found so many differences, and whether it could compare everything.
    pub fn of(found: u64, whole: bool) -> Self {
        match (found, whole) {
            (0, true) => Self::Equal,
            (0, false) => Self::Incomplete,
            (_, _) => Self::Different,
        }
    }
}
