//! This node's key while it is rotated: the present one, the next beside it, and the one before, which
//! peers have still to forget.
//!
//! ```text
//!   settled ──prepare──▶ prepared ──switch──▶ retiring ──settle──▶ settled
//! ```
//!
//! Each arrow is one file replaced or removed, so that a crash leaves one of the four; `node.pem` is
//! whole in each. Two daemons share the files: only the agent changes them, and both look again at
//! `node.pem` whenever they shake hands.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use mailtwin_disk::{DiskError, dir, replace};
use mailtwin_logic::chain::Chain;

use crate::keys::{KeyError, NodeKey, ParseKeyError, PublicKey, path_in as present_in};

/// Which version of a file was read: another one has another inode, or another time.
type Stamp = (u64, u64, i64, i64);

/// The keys of a node.
#[derive(Debug)]
pub struct KeyRing {
    state_dir: PathBuf,
    present: Mutex<(Option<Stamp>, Arc<NodeKey>)>,
}

/// How far a rotation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// There is one key.
    Settled,
    /// This key is to be the next one; peers pin it beside the present one.
    Prepared(PublicKey),
    /// The key before this one is to be forgotten by peers.
    Retiring(PublicKey),
}

/// Why a key cannot be rotated.
#[derive(Debug, thiserror::Error)]
pub enum RotateError {
    /// A key cannot be read, made or saved.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// What the file of the key before holds is none.
    #[error("read {path}: remove it, and unpin this node's old key on its peers", path = path.display())]
    Previous {
        /// Where.
        path: PathBuf,
        /// Cause.
        source: ParseKeyError,
    },
}

impl From<DiskError> for RotateError {
    fn from(error: DiskError) -> Self {
        Self::Key(error.into())
    }
}

impl KeyRing {
    /// The keys under `state_dir`.
    pub fn open(state_dir: &Path) -> Result<Self, KeyError> {
        let path = present_in(state_dir);
        let stamp = stamp(&path);
        let key = Arc::new(NodeKey::load(state_dir)?);
        Ok(Self { state_dir: state_dir.to_owned(), present: Mutex::new((stamp, key)) })
    }

    /// The present key. It is read again when its file has changed; one that cannot be read any more
    /// is said once, and the one that was read before is still used.
    pub fn now(&self) -> Arc<NodeKey> {
        let path = present_in(&self.state_dir);
        let mut present = self.present.lock().expect("no panic while it is held");
        let found = stamp(&path);
        if found != present.0 {
            present.0 = found;
            match NodeKey::load(&self.state_dir) {
                Ok(key) if key.public() == present.1.public() => {}
                Ok(key) => {
                    let fingerprint = key.public().fingerprint();
                    tracing::info!(key = %key.public(), fingerprint, "this node has another key from now on");
                    present.1 = Arc::new(key);
                }
                Err(error) => {
                    tracing::error!(code = "key-unreadable", error = %Chain(&error), "cannot read this node's key again: the one before is used until the next start");
                }
            }
        }
        Arc::clone(&present.1)
    }

    /// How far a rotation is.
    pub fn stage(&self) -> Result<Stage, RotateError> {
        let present = self.now().public();
        match NodeKey::read(&next_in(&self.state_dir)) {
            // A crash between the two halves of a switch leaves it.
            Ok(next) if next.public() == present => {}
            Ok(next) => return Ok(Stage::Prepared(next.public())),
            Err(KeyError::Missing { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        // So does a crash before them.
        let previous = self.previous()?.filter(|previous| *previous != present);
        Ok(previous.map_or(Stage::Settled, Stage::Retiring))
    }

    /// Makes the next key, durably, unless there is one.
    pub fn prepare(&self) -> Result<PublicKey, RotateError> {
        if let Stage::Prepared(next) = self.stage()? {
            return Ok(next);
        }
        let next = NodeKey::generate()?;
        next.save(&next_in(&self.state_dir))?;
        Ok(next.public())
    }

    /// Makes the next key the present one, durably; returns the one before.
    pub fn switch(&self) -> Result<PublicKey, RotateError> {
        let (previous, path) = (self.now().public(), next_in(&self.state_dir));
        let next = NodeKey::read(&path)?;
        let line = format!("{previous}\n");
        replace::replace(&previous_in(&self.state_dir), line.as_bytes(), replace::PRIVATE)?;
        next.save(&present_in(&self.state_dir))?;
        remove(&path)?;
        self.now();
        Ok(previous)
    }

    /// Forgets the key before: no peer knows it any more.
    pub fn settle(&self) -> Result<(), RotateError> {
        remove(&next_in(&self.state_dir))?;
        Ok(remove(&previous_in(&self.state_dir))?)
    }

    fn previous(&self) -> Result<Option<PublicKey>, RotateError> {
        let path = previous_in(&self.state_dir);
        match fs::read_to_string(&path) {
            Ok(text) => match text.trim().parse() {
                Ok(key) => Ok(Some(key)),
                Err(source) => Err(RotateError::Previous { path, source }),
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(DiskError::during("read", &path)(error).into()),
        }
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let it = fs::metadata(path).ok()?;
    Some((it.dev(), it.ino(), it.mtime(), it.mtime_nsec()))
}

fn remove(path: &Path) -> Result<(), DiskError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(DiskError::during("remove", path)(error)),
        Ok(()) => path.parent().map_or(Ok(()), dir::sync),
    }
}

fn next_in(state_dir: &Path) -> PathBuf {
    state_dir.join("keys").join("next.pem")
}

fn previous_in(state_dir: &Path) -> PathBuf {
    state_dir.join("keys").join("previous.pub")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring() -> (tempfile::TempDir, KeyRing) {
        let state = tempfile::tempdir().unwrap();
        NodeKey::create(state.path()).unwrap();
        let ring = KeyRing::open(state.path()).unwrap();
        (state, ring)
    }

    #[test]
    fn a_key_is_rotated_and_the_other_daemon_sees_it() {
        let (state, ring) = ring();
        let other = KeyRing::open(state.path()).unwrap();
        let old = ring.now().public();
        assert_eq!(ring.stage().unwrap(), Stage::Settled);
        let next = ring.prepare().unwrap();
        assert_eq!(ring.prepare().unwrap(), next, "asked again, there is no other");
        assert_eq!(ring.stage().unwrap(), Stage::Prepared(next));
        assert_eq!(ring.now().public(), old, "the present one is still in use");

        assert_eq!(ring.switch().unwrap(), old);
        assert_eq!((ring.now().public(), other.now().public()), (next, next));
        assert_eq!(other.stage().unwrap(), Stage::Retiring(old));
        assert!(ring.switch().is_err(), "there is no next one");
        ring.settle().unwrap();
        assert_eq!(ring.stage().unwrap(), Stage::Settled);
        assert_eq!(NodeKey::load(state.path()).unwrap().public(), next);
    }

    #[test]
    fn a_crash_in_the_middle_of_a_switch_leaves_one_stage_or_the_other() {
        let (state, ring) = ring();
        let (old, next) = (ring.now().public(), ring.prepare().unwrap());
        // Before the keys are exchanged: the key before is written down, and is the present one.
        let line = format!("{old}\n");
        replace::replace(&previous_in(state.path()), line.as_bytes(), replace::PRIVATE).unwrap();
        assert_eq!(ring.stage().unwrap(), Stage::Prepared(next));
        // After it: the next one is still there, and is the present one, too.
        NodeKey::read(&next_in(state.path())).unwrap().save(&present_in(state.path())).unwrap();
        assert_eq!(ring.stage().unwrap(), Stage::Retiring(old));
        assert_eq!(ring.now().public(), next);
        ring.settle().unwrap();
        assert_eq!(ring.stage().unwrap(), Stage::Settled);
        assert_ne!(ring.prepare().unwrap(), next);
    }

    #[test]
    fn a_key_that_is_lost_while_the_daemon_runs_is_still_used() {
        let (state, ring) = ring();
        let key = ring.now().public();
        fs::remove_file(present_in(state.path())).unwrap();
        assert_eq!(ring.now().public(), key);
        replace::replace(&present_in(state.path()), b"garbage", replace::PRIVATE).unwrap();
        assert_eq!(ring.now().public(), key);
        replace::replace(&previous_in(state.path()), b"garbage", replace::PRIVATE).unwrap();
        assert!(matches!(ring.stage(), Err(RotateError::Previous { .. })));
    }
}
