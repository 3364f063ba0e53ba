//! The base: what a replica held when it was promoted without the consent of the old master, below
//! `base/EPOCH/`, one file for each account. What a node that comes back has beyond it, nobody else has.

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
};

use mailtwin_disk::{
    DiskError, dir,
    replace::{PRIVATE, replace},
};
use mailtwin_logic::{
    ids::{Account, Epoch, Guid},
    reconcile::BaseMailbox,
    wire::message,
};
use sha1::{Digest as _, Sha1};

/// Version of the files that this program writes, and the only one it reads.
const FORMAT_VERSION: u32 = 1;

/// Says that the base is whole.
const WHOLE: &str = "whole";

/// Why there is no base.
#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    /// It makes no sense.
    #[error("read {path}: it is damaged; move its directory away, and mail is merged without a base", path = path.display())]
    Damaged {
        /// Where.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// The base of one epoch.
#[derive(Clone, Debug)]
pub struct Base {
    dir: PathBuf,
}

impl Base {
    /// Where that of `epoch` is, or will be.
    pub fn of(state_dir: &Path, epoch: Epoch) -> Self {
        Self { dir: state_dir.join("base").join(epoch.to_string()) }
    }

    /// Makes its directory.
    pub fn create(&self) -> Result<(), BaseError> {
        for dir in self.dir.parent().into_iter().chain([self.dir.as_path()]) {
            dir::create(dir, 0o700)?;
        }
        Ok(())
    }

    /// Writes one account's; durable on return.
    pub fn save(&self, account: &Account, mailboxes: &[BaseMailbox]) -> Result<(), BaseError> {
        let octets = message::encode(&(FORMAT_VERSION, account, mailboxes));
        Ok(replace(&self.path(account), &octets, PRIVATE)?)
    }

    /// Notes that every account's is written, and who was the master until then.
    pub fn finish(&self, old_master: &str) -> Result<(), BaseError> {
        Ok(replace(&self.dir.join(WHOLE), old_master.as_bytes(), PRIVATE)?)
    }

    /// Who was the master until then; `None` if it was not written to its end.
    pub fn old_master(&self) -> Option<String> {
        std::fs::read_to_string(self.dir.join(WHOLE)).ok()
    }

    /// Reads one account's; empty if the account was not there.
    pub fn load(&self, account: &Account) -> Result<Vec<BaseMailbox>, BaseError> {
        let path = self.path(account);
        let octets = match std::fs::read(&path) {
            Ok(octets) => octets,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(DiskError::during("read", &path)(error).into()),
        };
        match message::decode::<(u32, Account, Vec<BaseMailbox>)>(&octets) {
            Some((FORMAT_VERSION, whose, mailboxes)) if whose == *account => Ok(mailboxes),
            Some(_) | None => Err(BaseError::Damaged { path }),
        }
    }

    /// Accounts of `node`, come back, that could not be merged yet; `None` if it was not tried.
    pub fn left(&self, node: &str) -> Result<Option<BTreeSet<Account>>, BaseError> {
        let path = self.left_path(node);
        let octets = match std::fs::read(&path) {
            Ok(octets) => octets,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(DiskError::during("read", &path)(error).into()),
        };
        match message::decode::<(u32, BTreeSet<Account>)>(&octets) {
            Some((FORMAT_VERSION, left)) => Ok(Some(left)),
            Some(_) | None => Err(BaseError::Damaged { path }),
        }
    }

    /// Notes them, durably. There may be no base beside it: another node may have been promoted.
    pub fn set_left(&self, node: &str, left: &BTreeSet<Account>) -> Result<(), BaseError> {
        self.create()?;
        let octets = message::encode(&(FORMAT_VERSION, left));
        Ok(replace(&self.left_path(node), &octets, PRIVATE)?)
    }

    /// Account names may hold slashes: a hash makes a file name of any.
    fn path(&self, account: &Account) -> PathBuf {
        let hash = Guid(Sha1::digest(account.as_str()).into());
        self.dir.join(hash.to_string())
    }

    fn left_path(&self, node: &str) -> PathBuf {
        self.dir.join(format!("left-{}", Guid(Sha1::digest(node).into())))
    }
}

#[cfg(test)]
mod tests {
    use mailtwin_logic::{
        ids::{MailboxId, ModSeq, Uid},
        mailbox::{Flags, Head, Keywords, MailboxName, MailboxState},
        reconcile::BaseRecord,
    };

    use super::*;

    #[test]
    fn what_was_saved_is_loaded_and_damage_is_told() {
        let state = tempfile::tempdir().unwrap();
        let base = Base::of(state.path(), Epoch(4));
        base.create().unwrap();
        let name = MailboxName::inbox();
        let (id, head, highest_modseq) = (MailboxId([1; 16]), Head::default(), ModSeq(3));
        let record = BaseRecord {
            uid: Uid(1),
            guid: Guid([7; 20]),
            flags: Flags::SEEN,
            keywords: Keywords::default(),
        };
        let state = MailboxState { id, name, head, highest_modseq, foreign: 0 };
        let mailboxes = vec![BaseMailbox { state, records: vec![record] }];
        let (ann, ben) = (Account::new("a/nn").unwrap(), Account::new("ben").unwrap());
        base.save(&ann, &mailboxes).unwrap();
        assert_eq!(base.old_master(), None);
        base.finish("mx1").unwrap();
        assert_eq!(base.old_master().as_deref(), Some("mx1"));
        assert_eq!(base.load(&ann).unwrap(), mailboxes);
        assert_eq!(base.load(&ben).unwrap(), []);
        replace(&base.path(&ben), b"\x01", PRIVATE).unwrap();
        assert!(matches!(base.load(&ben), Err(BaseError::Damaged { .. })));

        assert_eq!(base.left("mx1").unwrap(), None);
        let left = BTreeSet::from([ann, ben]);
        base.set_left("mx1", &left).unwrap();
        assert_eq!(base.left("mx1").unwrap(), Some(left));
        assert_eq!(base.left("mx2").unwrap(), None);
        replace(&base.left_path("mx1"), b"\x01", PRIVATE).unwrap();
        assert!(matches!(base.left("mx1"), Err(BaseError::Damaged { .. })));
    }
}
