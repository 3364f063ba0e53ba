//! Keys of a node and its peers, and what rotating them comes to.

use serde::{Deserialize, Serialize};

use crate::{codes::KeyNews, keys::PublicKey, pins::Pin};

/// Keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyList {
    /// This node's name.
    pub node: String,
    /// This node's key.
    pub key: PublicKey,
    /// Its short form.
    pub fingerprint: String,
    /// The one that it will have, while it is rotated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<PublicKey>,
    /// Those of its peers, from the configuration and pinned.
    pub pins: Vec<Pin>,
}

/// What a step of a rotation came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RotateReport {
    /// Version of this shape.
    pub schema_version: u32,
    /// Whether it was done; otherwise this is how things stand.
    pub done: bool,
    /// This node's name.
    pub node: String,
    /// Code of a [`KeyStage`](crate::codes::KeyStage).
    pub stage: String,
    /// This node's key.
    pub key: PublicKey,
    /// The one that it will have.
    pub next: Option<PublicKey>,
    /// The one that it had.
    pub previous: Option<PublicKey>,
    /// Every peer.
    pub peers: Vec<RotatePeer>,
}

/// What a peer knows of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RotatePeer {
    /// Its node name.
    pub name: String,
    /// Code of a [`KeyNews`].
    pub news: String,
    /// Why it was not told, if that was tried.
    pub detail: Option<String>,
}

impl RotatePeer {
    /// Whether it has still to be told.
    pub fn is_open(&self) -> bool {
        self.news == KeyNews::NotTold.as_str()
    }
}
