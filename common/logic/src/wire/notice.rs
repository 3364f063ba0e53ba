//! What one node says to another of its own keys, over a connection of its own: one notice, one answer.

use alloc::string::String;

use serde::{Deserialize, Serialize};

/// A node speaks of one of its keys. It has shown another one, which is pinned for it, in the handshake.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyNotice {
    /// Who speaks: a node name, as in the peer's configuration.
    pub node: String,
    /// What is said of the key.
    pub word: KeyWord,
    /// The octets of an Ed25519 public key.
    pub key: [u8; 32],
}

/// What is said of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyWord {
    /// It will be used soon: pin it, beside the one that was shown.
    Next,
    /// It is not used any more: unpin it.
    Gone,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyAnswer {
    /// It is so, durably.
    Done,
    /// The key that is gone stands in the peer's configuration, where only an admin removes it.
    Configured,
    /// It is not; why, for humans.
    Refused(String),
}
