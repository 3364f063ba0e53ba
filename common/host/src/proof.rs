//! What was equal on both sides when a master handed over, kept by the old master in
//! `handover.json`: the proof for people, and what its own mail is marked by when it has become a
//! replica.

use std::{
    io,
    path::{Path, PathBuf},
};

use mailtwin_disk::{DiskError, replace};
use mailtwin_logic::{
    digest::{self, Digest},
    ids::{Account, Epoch, MailboxId, Uid},
};
use serde::{Deserialize, Serialize};

/// Version of the file that this program writes, and the only one it reads.
const FORMAT_VERSION: u32 = 1;

/// Digests that both sides agreed on while the gate was closed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proof {
    format_version: u32,
    /// The old master.
    pub from: String,
    /// The new one.
    pub to: String,
    /// The new one's epoch.
    pub epoch: Epoch,
    /// When it was found, in milliseconds since 1970.
    pub at: u64,
    /// Digest of the whole store, as hexadecimal digits.
    pub digest: String,
    /// Every account of the old master.
    pub accounts: Vec<Proven>,
}

/// One account that was equal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proven {
    /// Whose.
    pub account: Account,
    /// What was equal.
    pub digest: Digest,
    /// Its mailboxes.
    pub mailboxes: Vec<ProvenMailbox>,
}

/// One mailbox that was equal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProvenMailbox {
    /// Which.
    pub id: MailboxId,
    /// Both sides' UIDNEXT: every message below it was on both sides.
    pub uid_next: Uid,
    /// How many there were.
    pub messages: u32,
}

/// Why there is no proof.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// It makes no sense.
    #[error("read {path}: move it away, and mail that is kept apart because of that is reported", path = path.display())]
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

impl Proof {
    /// What `from` and `to` agreed on.
    pub fn new(from: &str, to: &str, epoch: Epoch, at: u64, accounts: Vec<Proven>) -> Self {
        let all = accounts.iter().map(|proven| (&proven.account, proven.digest));
        let digest = digest::store(all).to_string();
        let (from, to) = (from.to_owned(), to.to_owned());
        Self { format_version: FORMAT_VERSION, from, to, epoch, at, digest, accounts }
    }

    /// Mailboxes and messages in it.
    pub fn totals(&self) -> (usize, u64) {
        let mailboxes = self.accounts.iter().flat_map(|proven| &proven.mailboxes);
        mailboxes.fold((0, 0), |(count, messages), mailbox| {
            (count + 1, messages + u64::from(mailbox.messages))
        })
    }

    /// Replaces the file under `state_dir`; durable on return.
    pub fn save(&self, state_dir: &Path) -> Result<(), ProofError> {
        let path = path_in(state_dir);
        let octets = serde_json::to_vec(self)
            .map_err(|source| ProofError::Damaged { path: path.clone(), source })?;
        Ok(replace::replace(&path, &octets, replace::PRIVATE)?)
    }

    /// Reads the file under `state_dir`; `None` if there is none.
    pub fn load(state_dir: &Path) -> Result<Option<Self>, ProofError> {
        let path = path_in(state_dir);
        let octets = match std::fs::read(&path) {
            Ok(octets) => octets,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(DiskError::during("read", &path)(error).into()),
        };
        let proof = serde_json::from_slice(&octets);
        proof.map(Some).map_err(|source| ProofError::Damaged { path, source })
    }
}

fn path_in(state_dir: &Path) -> PathBuf {
    state_dir.join("handover.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_saved_is_loaded() {
        let state = tempfile::tempdir().unwrap();
        assert_eq!(Proof::load(state.path()).unwrap(), None);
        let mailbox = ProvenMailbox { id: MailboxId([3; 16]), uid_next: Uid(9), messages: 4 };
        let account = Account::new("ann").unwrap();
        let proven = Proven {
            account,
            digest: Digest::default(),
            mailboxes: vec![mailbox.clone(), mailbox],
        };
        let proof = Proof::new("mx1", "mx2", Epoch(2), 5, vec![proven]);
        proof.save(state.path()).unwrap();
        assert_eq!(Proof::load(state.path()).unwrap(), Some(proof.clone()));
        assert_eq!(proof.totals(), (2, 8));
        replace::replace(&path_in(state.path()), b"{", replace::PRIVATE).unwrap();
        assert!(matches!(Proof::load(state.path()), Err(ProofError::Damaged { .. })));
    }
}
