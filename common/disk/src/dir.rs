//! Directories: made durably, synced, and cleared of what a crash left in them.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::Path,
};

use crate::DiskError;

/// Makes `path` and whatever is missing above it, each with `mode`; every name is durable on
/// return, also when the directory was already there.
pub fn create(path: &Path, mode: u32) -> Result<(), DiskError> {
    let parent = parent_of(path);
    if !parent.is_dir() {
        create(parent, mode)?;
    }
    match DirBuilder::new().mode(mode).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        Err(error) => return Err(DiskError::during("create", path)(error)),
    }
    sync(parent)
}

/// Makes the names in `path` durable.
pub fn sync(path: &Path) -> Result<(), DiskError> {
    let dir = File::open(path).map_err(DiskError::during("open", path))?;
    dir.sync_all().map_err(DiskError::during("sync", path))
}

/// A file system, opened before a batch of writes so that a write-back error between then and
/// [`FileSystem::sync`] is reported (`syncfs(2)` since Linux 5.8: per open file description).
#[derive(Debug)]
pub struct FileSystem {
    dir: File,
    path: std::path::PathBuf,
}

impl FileSystem {
    /// Opens the file system that holds the directory `path`.
    pub fn open(path: &Path) -> Result<Self, DiskError> {
        let dir = File::open(path).map_err(DiskError::during("open", path))?;
        Ok(Self { dir, path: path.to_path_buf() })
    }

    /// Makes everything that was written to this file system durable, other processes' writes
    /// included.
    pub fn sync(&self) -> Result<(), DiskError> {
        rustix::fs::syncfs(&self.dir)
            .map_err(|errno| DiskError::during("sync", &self.path)(errno.into()))
    }
}

/// Removes regular files directly in `path` whose name `is_leftover` recognises; returns how many
/// went. Their absence is not made durable: if they return after a power cut, they go again.
pub fn remove_leftovers(
    path: &Path,
    is_leftover: impl Fn(&str) -> bool,
) -> Result<usize, DiskError> {
    let mut removed = 0;
    for entry in fs::read_dir(path).map_err(DiskError::during("read", path))? {
        let entry = entry.map_err(DiskError::during("read", path))?;
        let regular = entry.file_type().is_ok_and(|kind| kind.is_file());
        if regular && entry.file_name().to_str().is_some_and(&is_leftover) {
            let file = entry.path();
            fs::remove_file(&file).map_err(DiskError::during("remove", &file))?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// The directory that holds the name `path`; `.` for a bare name.
pub(crate) fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        Some(_) | None => Path::new(if path.is_absolute() { "/" } else { "." }),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn creates_all_that_is_missing_and_accepts_what_is_there() {
        let root = tempfile::tempdir().unwrap();
        let deep = root.path().join("a/b/c");
        create(&deep, 0o700).unwrap();
        create(&deep, 0o700).unwrap();
        assert_eq!(fs::metadata(&deep).unwrap().permissions().mode() & 0o777, 0o700);
        FileSystem::open(&deep).unwrap().sync().unwrap();
    }

    #[test]
    fn a_file_in_the_way_is_an_error_that_names_it() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        File::create(&file).unwrap();
        let error = create(&file.join("sub"), 0o700).unwrap_err();
        assert!(error.to_string().contains("file"), "{error}");
    }

    #[test]
    fn leftovers_go_and_the_rest_stays() {
        let root = tempfile::tempdir().unwrap();
        for name in ["a~", "b~", "keep"] {
            File::create(root.path().join(name)).unwrap();
        }
        fs::create_dir(root.path().join("dir~")).unwrap();
        assert_eq!(remove_leftovers(root.path(), |name| name.ends_with('~')).unwrap(), 2);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 2);
    }
}
