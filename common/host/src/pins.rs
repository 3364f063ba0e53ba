//! Which key belongs to which peer: from the configuration, pinned by hand, or pinned at first
//! contact. `pins.json` holds the last two kinds and is shared by both daemons of a node.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use mailtwin_disk::{DiskError, replace};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::{
    config::Peer,
    keys::PublicKey,
    peers::{Peers, PeersError},
};

/// Version of the file that this program writes, and the newest it reads.
const FORMAT_VERSION: u32 = 1;

/// Keys one peer may have pinned: one in use, one to come, and room for a pool of machines.
const KEYS_MAX: usize = 16;

/// The pins of this node. Its calls block on a small file; make them where that is allowed.
#[derive(Debug)]
pub struct Pins {
    state_dir: PathBuf,
    own: PublicKey,
    peers: Arc<Peers>,
}

type Keys = BTreeMap<String, BTreeSet<PublicKey>>;

/// Which keys a handshake may end with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Any Ed25519 key: somebody may still be pinned at first contact. [`Pins::admit`] decides.
    Any,
    /// One of these and no other.
    OneOf(BTreeSet<PublicKey>),
}

/// Whether a peer is who it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// The key is one of the peer's.
    Admitted,
    /// The peer had no key; this one is now pinned, durably. Log its fingerprint.
    PinnedNow,
    /// No.
    Refused(Refusal),
}

/// Why a peer is not who it says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No peer has this name.
    #[error("no [[peer]] of the configuration is named {0:?}, and none was added")]
    UnknownPeer(String),
    /// The peer has other keys.
    #[error(
        "{peer} showed the key {shown}, but has {}; if `replctl keys show` prints that key there, run \
         `replctl keys pin {peer} {shown}`; if not, somebody else answers in its place",
        list(expected)
    )]
    OtherKey {
        /// Who it says it is.
        peer: String,
        /// The key it showed.
        shown: PublicKey,
        /// The keys it has.
        expected: BTreeSet<PublicKey>,
    },
    /// The key belongs to another peer.
    #[error("{peer} showed the key {shown}, which belongs to {owner}")]
    KeyOfAnother {
        /// Who it says it is.
        peer: String,
        /// The key it showed.
        shown: PublicKey,
        /// Whose it is.
        owner: String,
    },
    /// It showed our own key.
    #[error(
        "{0} showed this node's own key: either the address leads back here, or the state directory \
         was copied from one node to the other, and one of them needs a key of its own"
    )]
    OwnKey(String),
}

/// One line of [`Pins::list`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// Whose.
    pub peer: String,
    /// The key.
    pub key: PublicKey,
    /// Where it stands.
    pub source: PinSource,
}

/// Where a pin stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PinSource {
    /// In the configuration.
    Configuration,
    /// In `pins.json`.
    Pinned,
}

/// Why pins cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The change makes no sense as things are.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// This peer has as many keys as one may have.
    #[error("{0} has {KEYS_MAX} pinned keys: unpin one first")]
    TooMany(String),
    /// The key is not pinned for this peer.
    #[error("{peer} has no pinned key {key}")]
    NotPinned {
        /// Whose.
        peer: String,
        /// Which.
        key: PublicKey,
    },
    /// The key stands in the configuration.
    #[error("the key {key} of {peer} stands in the configuration: remove it there and reload")]
    Configured {
        /// Whose.
        peer: String,
        /// Which.
        key: PublicKey,
    },
    /// A newer program wrote the file.
    #[error("{path} has format version {found}: install the newer program", path = path.display())]
    Version {
        /// Where.
        path: PathBuf,
        /// What it says.
        found: u32,
    },
    /// It makes no sense. Nobody is let in on a guess.
    #[error(
        "read {path}: move it away, then pin the peers' keys again with `replctl keys pin`",
        path = path.display()
    )]
    Damaged {
        /// Where.
        path: PathBuf,
        /// Cause.
        source: serde_json::Error,
    },
    /// Who the peers are is not known.
    #[error(transparent)]
    Peers(#[from] PeersError),
    /// The operating system refused.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

#[derive(Default, Deserialize, Serialize)]
struct PinsFile {
    format_version: u32,
    pins: Keys,
}

impl Pins {
    /// The pins under `state_dir` and those that `peers` brought; `own` is nobody else's.
    pub fn open(state_dir: &Path, own: PublicKey, peers: Arc<Peers>) -> Result<Self, PinError> {
        let pins = Self { state_dir: state_dir.to_owned(), own, peers };
        pins.read()?;
        Ok(pins)
    }

    /// Decides whether `peer` may show `key`; pins it if the peer has none yet.
    pub fn admit(&self, peer: &str, key: PublicKey) -> Result<Admission, PinError> {
        let configured = self.configured()?;
        let _lock = self.lock()?;
        let mut pinned = self.read()?;
        match self.check(&configured, &pinned, peer, key) {
            Err(refusal) => return Ok(Admission::Refused(refusal)),
            Ok(true) => return Ok(Admission::Admitted),
            Ok(false) => {}
        }
        let expected = union(&configured, &pinned, peer);
        if !expected.is_empty() {
            let (peer, shown) = (peer.to_owned(), key);
            return Ok(Admission::Refused(Refusal::OtherKey { peer, shown, expected }));
        }
        pinned.entry(peer.to_owned()).or_default().insert(key);
        self.write(pinned)?;
        Ok(Admission::PinnedNow)
    }

    /// Adds a key to a peer; nothing happens if it has it already.
    pub fn pin(&self, peer: &str, key: PublicKey) -> Result<(), PinError> {
        let configured = self.configured()?;
        let _lock = self.lock()?;
        let mut pinned = self.read()?;
        if self.check(&configured, &pinned, peer, key)? {
            return Ok(());
        }
        let keys = pinned.entry(peer.to_owned()).or_default();
        if keys.len() >= KEYS_MAX {
            return Err(PinError::TooMany(peer.to_owned()));
        }
        keys.insert(key);
        self.write(pinned)
    }

    /// Takes a key from a peer. With its last one gone, the next key it shows is pinned.
    pub fn unpin(&self, peer: &str, key: PublicKey) -> Result<(), PinError> {
        let configured = self.configured()?;
        let _lock = self.lock()?;
        let mut pinned = self.read()?;
        if pinned.get_mut(peer).is_some_and(|keys| keys.remove(&key)) {
            pinned.retain(|_, keys| !keys.is_empty());
            return self.write(pinned);
        }
        let peer = peer.to_owned();
        if configured.get(&peer).is_some_and(|keys| keys.contains(&key)) {
            return Err(PinError::Configured { peer, key });
        }
        Err(PinError::NotPinned { peer, key })
    }

    /// Every pin, by peer; a pin of a peer that is no longer configured is among them.
    pub fn list(&self) -> Result<Vec<Pin>, PinError> {
        let configured = self.configured()?;
        let pinned = self.read()?;
        let sources = [(&configured, PinSource::Configuration), (&pinned, PinSource::Pinned)];
        let mut pins = Vec::new();
        for (keys, source) in sources {
            for (peer, keys) in keys {
                pins.extend(keys.iter().map(|&key| Pin { peer: peer.clone(), key, source }));
            }
        }
        pins.sort_by(|a, b| a.peer.cmp(&b.peer));
        Ok(pins)
    }

    /// What a handshake with this peer may end with.
    pub fn expected_of(&self, peer: &str) -> Result<Expected, PinError> {
        let keys = union(&self.configured()?, &self.read()?, peer);
        Ok(if keys.is_empty() { Expected::Any } else { Expected::OneOf(keys) })
    }

    /// What a handshake with whoever connects may end with.
    pub fn expected_of_anyone(&self) -> Result<Expected, PinError> {
        let (configured, pinned) = (self.configured()?, self.read()?);
        let mut all = BTreeSet::new();
        for peer in configured.keys() {
            let keys = union(&configured, &pinned, peer);
            if keys.is_empty() {
                return Ok(Expected::Any);
            }
            all.extend(keys);
        }
        Ok(Expected::OneOf(all))
    }

    /// Whether the key is one of the peer's already; refuses what can never be.
    fn check(
        &self,
        configured: &Keys,
        pinned: &Keys,
        peer: &str,
        key: PublicKey,
    ) -> Result<bool, Refusal> {
        if !configured.contains_key(peer) {
            return Err(Refusal::UnknownPeer(peer.to_owned()));
        }
        if key == self.own {
            return Err(Refusal::OwnKey(peer.to_owned()));
        }
        // The configuration first: what it says of a key holds against an older pin. A pin of a
        // peer that left the configuration binds its key to nobody.
        let pinned = pinned.iter().filter(|(peer, _)| configured.contains_key(*peer));
        let owner = configured.iter().chain(pinned).find(|(_, keys)| keys.contains(&key));
        match owner {
            None => Ok(false),
            Some((owner, _)) if owner == peer => Ok(true),
            Some((owner, _)) => {
                let (peer, shown, owner) = (peer.to_owned(), key, owner.clone());
                Err(Refusal::KeyOfAnother { peer, shown, owner })
            }
        }
    }

    /// Every peer, with the keys that it was written down with.
    fn configured(&self) -> Result<Keys, PinError> {
        Ok(keys_of(&self.peers.all()?))
    }

    /// Keeps the other daemon of this node out while the file is read and replaced.
    fn lock(&self) -> Result<File, DiskError> {
        let dir = &self.state_dir;
        let file = File::open(dir).map_err(DiskError::during("open", dir))?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive)
            .map_err(|errno| DiskError::during("lock", dir)(io::Error::from(errno)))?;
        Ok(file)
    }

    fn read(&self) -> Result<Keys, PinError> {
        let path = self.path();
        let octets = match std::fs::read(&path) {
            Ok(octets) => octets,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Keys::new()),
            Err(error) => return Err(DiskError::during("read", &path)(error).into()),
        };
        parse(&octets, &path)
    }

    fn write(&self, pins: Keys) -> Result<(), PinError> {
        let path = self.path();
        let damaged = |source| PinError::Damaged { path: path.clone(), source };
        let octets = render(pins).map_err(damaged)?;
        Ok(replace::replace(&path, &octets, replace::PRIVATE)?)
    }

    fn path(&self) -> PathBuf {
        self.state_dir.join("pins.json")
    }
}

fn parse(octets: &[u8], path: &Path) -> Result<Keys, PinError> {
    let file: PinsFile = serde_json::from_slice(octets)
        .map_err(|source| PinError::Damaged { path: path.to_owned(), source })?;
    if file.format_version > FORMAT_VERSION {
        return Err(PinError::Version { path: path.to_owned(), found: file.format_version });
    }
    Ok(file.pins)
}

fn render(pins: Keys) -> serde_json::Result<Vec<u8>> {
    let file = PinsFile { format_version: FORMAT_VERSION, pins };
    let mut octets = serde_json::to_vec_pretty(&file)?;
    octets.push(b'\n');
    Ok(octets)
}

/// Fuzz target: what is read is written so that it is read as the same.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(input: &[u8]) {
    let path = Path::new("pins.json");
    let Ok(pins) = parse(input, path) else { return };
    let octets = render(pins.clone()).expect("keys and names can be written");
    assert!(parse(&octets, path).is_ok_and(|again| again == pins));
}

fn keys_of(peers: &[Peer]) -> Keys {
    peers.iter().map(|peer| (peer.name.clone(), peer.keys.iter().copied().collect())).collect()
}

/// The peer's keys that are nobody else's by configuration.
fn union(configured: &Keys, pinned: &Keys, peer: &str) -> BTreeSet<PublicKey> {
    let elsewhere = |key: &PublicKey| {
        configured.iter().any(|(other, keys)| other != peer && keys.contains(key))
    };
    let pinned = pinned.get(peer).into_iter().flatten().filter(|key| !elsewhere(key));
    configured.get(peer).into_iter().flatten().chain(pinned).copied().collect()
}

fn list(keys: &BTreeSet<PublicKey>) -> String {
    keys.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
