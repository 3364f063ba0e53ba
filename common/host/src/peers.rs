//! The other nodes: those of the configuration, and what an admin has added or removed by command,
//! which `peers.json` keeps. Both daemons of a node read that file; only the agent writes it.

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard},
};

use mailtwin_disk::{DiskError, replace};
use serde::{Deserialize, Serialize};

use crate::config::{self, Peer};

/// Version of the file that this program writes, and the newest it reads.
const FORMAT_VERSION: u32 = 1;

/// Peers that may be added by command.
const ADDED_MAX: usize = 64;

/// The peers of this node. Its calls block on a small file; make them where that is allowed.
#[derive(Debug)]
pub struct Peers {
    path: PathBuf,
    own: String,
    /// Held while the file is changed, too.
    configured: Mutex<Vec<Peer>>,
}

/// Why the list of peers cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum PeersError {
    /// The change makes no sense as things are.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A newer program wrote the file.
    #[error("{path} has format version {found}: install the newer program", path = path.display())]
    Version {
        /// Where.
        path: PathBuf,
        /// What it says.
        found: u32,
    },
    /// It makes no sense. Nobody is left out on a guess, nor let in.
    #[error("read {path}: move it away, then add or remove again what it held", path = path.display())]
    Damaged {
        /// Where.
        path: PathBuf,
        /// Cause.
        source: serde_json::Error,
    },
    /// The operating system refused.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// What an admin may not do to the list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The name or the address is none.
    #[error("{0}")]
    Malformed(String),
    /// It is this node.
    #[error("{0:?} is this node's own name")]
    Own(String),
    /// There is a peer of that name.
    #[error("{name} is a peer already, at {address}")]
    NameTaken {
        /// Whose name.
        name: String,
        /// Its address.
        address: String,
    },
    /// There is a peer at that address.
    #[error("{address} is the address of {name} already")]
    AddressTaken {
        /// Which.
        address: String,
        /// Whose.
        name: String,
    },
    /// The configuration gives the removed peer another address, or other keys.
    #[error(
        "{name} stands in the configuration with the address {address}: add it with that address \
         and without a key, or take its [[peer]] out of the file first"
    )]
    Configured {
        /// Which peer.
        name: String,
        /// Its address there.
        address: String,
    },
    /// There is no such peer.
    #[error("no peer is called {0:?}")]
    Unknown(String),
    /// There are too many.
    #[error("{ADDED_MAX} peers were added by command already: write some into the configuration")]
    TooMany,
}

/// `peers.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
struct PeersFile {
    format_version: u32,
    /// Where the configuration has a peer of the same name, that one counts.
    added: Vec<Peer>,
    /// Peers of the configuration that do not count.
    removed: BTreeSet<String>,
}

impl Peers {
    /// Those of the configuration, of the node `own`, and what the file under `state_dir` says.
    pub fn open(state_dir: &Path, own: &str, configured: &[Peer]) -> Result<Self, PeersError> {
        let configured = Mutex::new(configured.to_vec());
        let peers = Self { path: state_dir.join("peers.json"), own: own.to_owned(), configured };
        peers.read()?;
        Ok(peers)
    }

    /// Takes the peers of a reloaded configuration.
    pub fn reload(&self, configured: &[Peer]) {
        *self.configured() = configured.to_vec();
    }

    /// Every peer, by name.
    pub fn all(&self) -> Result<Vec<Peer>, PeersError> {
        Ok(merged(&self.configured(), &self.read()?))
    }

    /// One of them.
    pub fn get(&self, name: &str) -> Result<Peer, PeersError> {
        let found = self.all()?.into_iter().find(|peer| peer.name == name);
        found.ok_or_else(|| Refusal::Unknown(name.to_owned()).into())
    }

    /// Whether the configuration has a peer of this name, whatever the file says.
    pub fn is_configured(&self, name: &str) -> bool {
        self.configured().iter().any(|peer| peer.name == name)
    }

    /// Says why a peer may not be added.
    pub fn check_new(&self, peer: &Peer) -> Result<(), PeersError> {
        self.with(&self.configured(), peer).map(drop)
    }

    /// Adds a peer, durably.
    pub fn add(&self, peer: &Peer) -> Result<(), PeersError> {
        let configured = self.configured();
        self.write(&self.with(&configured, peer)?)
    }

    /// Takes a peer away, durably. One that the configuration has counts no longer.
    pub fn remove(&self, name: &str) -> Result<(), PeersError> {
        let configured = self.configured();
        let mut file = self.read()?;
        if !merged(&configured, &file).iter().any(|peer| peer.name == name) {
            return Err(Refusal::Unknown(name.to_owned()).into());
        }
        file.added.retain(|peer| peer.name != name);
        if configured.iter().any(|peer| peer.name == name) {
            file.removed.insert(name.to_owned());
        }
        self.write(&file)
    }

    /// Forgets what was removed and is no longer in the configuration: should the admin write it
    /// there again, it counts.
    pub fn settle(&self) -> Result<(), PeersError> {
        let configured = self.configured();
        let mut file = self.read()?;
        let before = file.removed.len();
        file.removed.retain(|name| configured.iter().any(|peer| peer.name == *name));
        for name in &file.removed {
            tracing::warn!(
                code = "peer-still-configured",
                name,
                "the configuration has this [[peer]], but it was removed by command: take its lines out"
            );
        }
        if file.removed.len() == before { Ok(()) } else { self.write(&file) }
    }

    /// The file with one more peer.
    fn with(&self, configured: &[Peer], peer: &Peer) -> Result<PeersFile, PeersError> {
        let Peer { name, address, keys } = peer;
        config::check_peer(name, address).map_err(Refusal::Malformed)?;
        if *name == self.own {
            return Err(Refusal::Own(name.clone()).into());
        }
        let mut file = self.read()?;
        let all = merged(configured, &file);
        if let Some(Peer { name, address, .. }) = all.iter().find(|other| other.name == *name) {
            let (name, address) = (name.clone(), address.clone());
            return Err(Refusal::NameTaken { name, address }.into());
        }
        if let Some(other) = all.iter().find(|other| other.address == *address) {
            let (address, name) = (address.clone(), other.name.clone());
            return Err(Refusal::AddressTaken { address, name }.into());
        }
        if let Some(known) = configured.iter().find(|known| known.name == *name) {
            if known.address != *address || !(keys.is_empty() || *keys == known.keys) {
                let (name, address) = (name.clone(), known.address.clone());
                return Err(Refusal::Configured { name, address }.into());
            }
            file.removed.remove(name);
            return Ok(file);
        }
        if file.added.len() >= ADDED_MAX {
            return Err(Refusal::TooMany.into());
        }
        file.added.push(peer.clone());
        Ok(file)
    }

    fn configured(&self) -> MutexGuard<'_, Vec<Peer>> {
        self.configured.lock().expect("no panic while it is held")
    }

    fn read(&self) -> Result<PeersFile, PeersError> {
        let path = self.path.clone();
        match std::fs::read(&path) {
            Ok(octets) => parse(&octets, path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(PeersFile::default()),
            Err(error) => Err(DiskError::during("read", &path)(error).into()),
        }
    }

    fn write(&self, file: &PeersFile) -> Result<(), PeersError> {
        let file = PeersFile { format_version: FORMAT_VERSION, ..file.clone() };
        let damaged = |source| PeersError::Damaged { path: self.path.clone(), source };
        let mut octets = serde_json::to_vec_pretty(&file).map_err(damaged)?;
        octets.push(b'\n');
        Ok(replace::replace(&self.path, &octets, replace::PRIVATE)?)
    }
}

fn parse(octets: &[u8], path: PathBuf) -> Result<PeersFile, PeersError> {
    let file: PeersFile = match serde_json::from_slice(octets) {
        Ok(file) => file,
        Err(source) => return Err(PeersError::Damaged { path, source }),
    };
    if file.format_version > FORMAT_VERSION {
        return Err(PeersError::Version { path, found: file.format_version });
    }
    Ok(file)
}

/// The configuration first: what it says of a peer holds against what a command said before.
fn merged(configured: &[Peer], file: &PeersFile) -> Vec<Peer> {
    let left = configured.iter().filter(|peer| !file.removed.contains(&peer.name));
    let is_new = |peer: &&Peer| !configured.iter().any(|known| known.name == peer.name);
    let mut all: Vec<Peer> = left.chain(file.added.iter().filter(is_new)).cloned().collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(name: &str, address: &str) -> Peer {
        Peer { name: name.into(), address: address.into(), keys: Vec::new() }
    }

    fn names(peers: &Peers) -> Vec<String> {
        peers.all().unwrap().into_iter().map(|peer| peer.name).collect()
    }

    fn refusal(result: Result<(), PeersError>) -> Refusal {
        match result {
            Err(PeersError::Refused(refusal)) => refusal,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_a_command_added_stays_and_the_configuration_counts_first() {
        let state = tempfile::tempdir().unwrap();
        let configured = [peer("mx2", "mx2:4710")];
        let peers = Peers::open(state.path(), "mx1", &configured).unwrap();
        peers.add(&peer("mx3", "mx3:4710")).unwrap();
        // The other daemon, which has it open already, and this one after a restart, know it.
        let again = Peers::open(state.path(), "mx1", &configured).unwrap();
        assert_eq!(names(&again), ["mx2", "mx3"]);
        peers.reload(&[peer("mx2", "mx2:4710"), peer("mx3", "elsewhere:4710")]);
        assert_eq!(peers.get("mx3").unwrap().address, "elsewhere:4710");
        assert_eq!(again.get("mx3").unwrap().address, "mx3:4710");
    }

    #[test]
    fn what_cannot_be_added_is_told_why() {
        let state = tempfile::tempdir().unwrap();
        let peers = Peers::open(state.path(), "mx1", &[peer("mx2", "mx2:4710")]).unwrap();
        let add = |name, address| refusal(peers.add(&peer(name, address))).to_string();
        assert!(add("mx1", "mx3:4710").contains("own name"));
        assert_eq!(add("mx2", "mx3:4710"), "mx2 is a peer already, at mx2:4710");
        assert_eq!(add("mx3", "mx2:4710"), "mx2:4710 is the address of mx2 already");
        assert!(add("mx3", "mx3").contains("is not host:port"));
        assert!(add("a/b", "mx3:4710").contains("letters, digits"));
        assert_eq!(refusal(peers.remove("mx9")).to_string(), "no peer is called \"mx9\"");
        assert!(!state.path().join("peers.json").exists(), "nothing was written");
    }

    #[test]
    fn one_of_the_configuration_is_removed_until_its_lines_are_gone() {
        let state = tempfile::tempdir().unwrap();
        let peers = Peers::open(state.path(), "mx1", &[peer("mx2", "mx2:4710")]).unwrap();
        peers.remove("mx2").unwrap();
        peers.settle().unwrap();
        assert!(names(&peers).is_empty() && peers.is_configured("mx2"));
        let other = refusal(peers.add(&peer("mx2", "elsewhere:4710")));
        assert!(matches!(other, Refusal::Configured { .. }), "{other}");
        peers.add(&peer("mx2", "mx2:4710")).unwrap();
        assert_eq!(names(&peers), ["mx2"]);

        peers.remove("mx2").unwrap();
        peers.reload(&[]);
        peers.settle().unwrap();
        peers.reload(&[peer("mx2", "mx2:4710")]);
        assert_eq!(names(&peers), ["mx2"], "written again, it counts again");
    }

    #[test]
    fn damage_is_told() {
        let state = tempfile::tempdir().unwrap();
        replace::replace(&state.path().join("peers.json"), b"{", replace::PRIVATE).unwrap();
        let error = Peers::open(state.path(), "mx1", &[]).unwrap_err();
        assert!(matches!(error, PeersError::Damaged { .. }), "{error}");
    }
}
