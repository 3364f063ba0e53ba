//! What a failed operation on one of our files says.

use std::{
    io,
    path::{Path, PathBuf},
};

/// An operation on a file that the operating system refused.
#[derive(Debug, thiserror::Error)]
#[error("{op} {path}", path = path.display())]
pub struct DiskError {
    /// Present-tense verb: `open`, `read`, `write`, `sync`, `rename`, `remove`, `create`, `lock`.
    pub op: &'static str,
    /// The file or directory.
    pub path: PathBuf,
    /// Cause.
    pub source: io::Error,
}

impl DiskError {
    /// For `map_err`: names the operation and its object.
    pub fn during(op: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self { op, path, source }
    }

    /// Whether it is the disk that is full, or a quota that is used up: waiting may help.
    pub fn is_full(&self) -> bool {
        is_full(&self.source)
    }

    /// Whether the disk failed to make something durable: then nothing that was written to that
    /// file since its last sync can be relied on, and asking again proves nothing, because the
    /// kernel reports a failed write-back once and then forgets it.
    pub fn is_lost_write(&self) -> bool {
        self.op == "sync" && !self.is_full()
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
