//! Replaces a small file: after a crash it holds the old content or the new, whole.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use crate::{DiskError, dir};

/// Mode of files that only Mailtwin's own user may read.
pub const PRIVATE: u32 = 0o600;

const SUFFIX: &str = ".mailtwin-tmp";

/// Makes `bytes` the whole content of `path`, with `mode`; durable on return.
///
/// The new content is written beside the file, synced, renamed over it, and the directory is
/// synced. There is one writer per file (see [`crate::lock`]); a temporary file that a crash left
/// behind is overwritten by the next call.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<(), DiskError> {
    let temporary = temporary_of(path);
    // A leftover may have another mode, or be a link: never write through it.
    let _ = fs::remove_file(&temporary);
    let written = write_new(&temporary, bytes, mode).and_then(|()| {
        fs::rename(&temporary, path).map_err(DiskError::during("rename", &temporary))
    });
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written?;
    dir::sync(dir::parent_of(path))
}

/// Whether `name` is a temporary file that a crash in [`replace`] may have left.
pub fn is_leftover(name: &str) -> bool {
    name.ends_with(SUFFIX)
}

fn temporary_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(SUFFIX);
    name.into()
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), DiskError> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(DiskError::during("create", path))?;
    file.write_all(bytes).map_err(DiskError::during("write", path))?;
    file.sync_all().map_err(DiskError::during("sync", path))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn new_content_and_mode_and_nothing_left_over() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("node.json");
        replace(&path, b"old", 0o644).unwrap();
        replace(&path, b"new", PRIVATE).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, PRIVATE);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_leftover_link_is_not_written_through() {
        let root = tempfile::tempdir().unwrap();
        let (path, other) = (root.path().join("f"), root.path().join("other"));
        replace(&other, b"precious", PRIVATE).unwrap();
        symlink(&other, temporary_of(&path)).unwrap();
        assert!(is_leftover(temporary_of(&path).file_name().unwrap().to_str().unwrap()));
        replace(&path, b"new", PRIVATE).unwrap();
        assert_eq!(fs::read(&other).unwrap(), b"precious");
    }

    #[test]
    fn a_failure_leaves_the_old_content_and_no_temporary() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("dir");
        fs::create_dir(&path).unwrap();
        fs::create_dir(path.join("not-empty")).unwrap();
        let error = replace(&path, b"new", PRIVATE).unwrap_err();
        assert!(error.to_string().starts_with("rename "), "{error}");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }
}
