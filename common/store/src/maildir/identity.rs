//! Whether the mail store is the one it was: an empty mount point must not look like a store from
//! which everything was deleted (I2).

use std::path::{Path, PathBuf};

use mailtwin_disk::{DiskError, replace};
use rustix::fs::{AtFlags, CWD, StatxFlags};

use super::{
    fsys::{Dir, during},
    random_id,
};
use crate::StoreError;

/// The file in the store that says which one it is.
const NAME: &[u8] = b".mailtwin-store";

/// Longest content that is read.
const OCTETS_MAX: u64 = 256;

/// How a store is told from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdentityKind {
    /// By a file `.mailtwin-store` above the accounts, made once.
    File,
    /// By inode and birth time of that directory: for trees in which nothing may be written.
    Inode,
}

/// Knows which store it must be.
#[derive(Debug)]
pub(crate) struct Keeper {
    kind: IdentityKind,
    expected: String,
}

impl Keeper {
    /// Reads what store this was the last time from the file `record`; if none was, makes this one
    /// known from now on.
    pub(crate) fn open(
        kind: IdentityKind,
        root: &Path,
        record: &Path,
        read_only: bool,
    ) -> Result<Self, StoreError> {
        let known = match std::fs::read(record) {
            Ok(content) => Some(String::from_utf8_lossy(&content).trim().to_owned()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(during("read", record)(error)),
        };
        if let Some(expected) = known {
            return Ok(Self { kind, expected });
        }
        let found = match (Dir::open(root)?, kind) {
            (Some(dir), IdentityKind::Inode) => inode(&dir)?,
            (None, IdentityKind::Inode) if read_only => return Err(missing(root)),
            (None, IdentityKind::Inode) => {
                mailtwin_disk::dir::create(root, 0o755).map_err(refused)?;
                inode(&Dir::open(root)?.ok_or_else(|| missing(root))?)?
            }
            // Nothing is made where a volume may be missing, or a path mistyped.
            (None, IdentityKind::File) => {
                return Err(StoreError::NoStore { path: root.to_path_buf() });
            }
            (Some(dir), IdentityKind::File) => content(&dir)?.map_or_else(|| mark(root), Ok)?,
        };
        replace::replace(record, found.as_bytes(), replace::PRIVATE).map_err(refused)?;
        Ok(Self { kind, expected: found })
    }

    /// Refuses another store than the one that is known.
    pub(crate) fn verify(&self, root: &Dir) -> Result<(), StoreError> {
        let found = match self.kind {
            IdentityKind::File => content(root)?,
            IdentityKind::Inode => Some(inode(root)?),
        };
        let why = match found {
            Some(found) if found == self.expected => return Ok(()),
            Some(_) => "another store is mounted here".to_owned(),
            None => format!("its file {} is gone", NAME.escape_ascii()),
        };
        Err(StoreError::WrongStore { path: root.path().to_path_buf(), why })
    }
}

/// The error for a store that is not there at all.
pub(crate) fn missing(root: &Path) -> StoreError {
    let why = "there is no such directory".into();
    StoreError::WrongStore { path: root.to_path_buf(), why }
}

fn mark(root: &Path) -> Result<String, StoreError> {
    let id = random_id()?.to_string();
    let path: PathBuf = root.join(".mailtwin-store");
    replace::replace(&path, id.as_bytes(), 0o644).map_err(refused)?;
    Ok(id)
}

fn content(root: &Dir) -> Result<Option<String>, StoreError> {
    let content = root.content(NAME, OCTETS_MAX)?;
    Ok(content.map(|content| String::from_utf8_lossy(&content).trim().to_owned()))
}

fn inode(root: &Dir) -> Result<String, StoreError> {
    let wanted = StatxFlags::INO | StatxFlags::BTIME;
    let stat = rustix::fs::statx(CWD, root.path(), AtFlags::empty(), wanted)
        .map_err(during("stat", root.path()))?;
    Ok(format!("{}:{}.{}", stat.stx_ino, stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec))
}

pub(crate) fn refused(error: DiskError) -> StoreError {
    StoreError::Io { op: error.op, path: error.path, source: error.source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_store_is_refused() {
        for kind in [IdentityKind::File, IdentityKind::Inode] {
            let temporary = tempfile::tempdir().unwrap();
            let (root, record) = (temporary.path().join("mail"), temporary.path().join("id"));
            std::fs::create_dir(&root).unwrap();
            let verify = || {
                let dir = Dir::open(&root).unwrap().unwrap();
                Keeper::open(kind, &root, &record, false).and_then(|keeper| keeper.verify(&dir))
            };
            verify().unwrap();
            verify().unwrap();
            std::fs::rename(&root, temporary.path().join("aside")).unwrap();
            std::fs::create_dir(&root).unwrap();
            assert!(matches!(verify(), Err(StoreError::WrongStore { .. })), "{kind:?}");
        }
    }
}
