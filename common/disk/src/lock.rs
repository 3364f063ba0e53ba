//! One process at a time: for a directory, or for what a file stands for.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::FlockOperation;

use crate::{DiskError, clock::SystemClock, replace};

const NAME: &str = "lock";
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(20);
/// State is nobody else's business.
const DIR_MODE: u32 = 0o700;

/// A state directory that is ours until this is dropped or the process ends, however it ends.
#[derive(Debug)]
pub struct DirLock {
    _lock: FileLock,
}

/// Why a directory could not be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process has it.
    #[error("lock {path}: held by process {holder}", path = path.display())]
    Held {
        /// The lock file.
        path: PathBuf,
        /// Process id of the holder, as it wrote it; `unknown` if it has not yet.
        holder: String,
    },
    /// The operating system refused.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

impl DirLock {
    /// Takes `dir` without waiting, and makes it if it is not there. The lock file stays there for ever, with the id of the process
    /// that took it last.
    pub fn take(dir: &Path) -> Result<Self, LockError> {
        crate::dir::create(dir, DIR_MODE)?;
        Ok(Self { _lock: FileLock::within(&dir.join(NAME), Duration::ZERO)? })
    }
}

fn holder(file: &mut File) -> String {
    let mut text = String::new();
    let digits = match file.take(20).read_to_string(&mut text) {
        Ok(_) => text.trim(),
        Err(_) => "",
    };
    let known = !digits.is_empty() && digits.bytes().all(|octet| octet.is_ascii_digit());
    if known { digits.to_string() } else { "unknown".to_string() }
}

/// A file that is ours until this is dropped or the process ends, however it ends.
#[derive(Debug)]
pub struct FileLock {
    _file: File,
}

impl FileLock {
    /// Makes `path` if it is not there, and waits until nobody else holds it.
    pub fn wait_for(path: &Path) -> Result<Self, DiskError> {
        let file = open(path)?;
        let locked = rustix::fs::flock(&file, FlockOperation::LockExclusive);
        locked.map_err(|errno| DiskError::during("lock", path)(io::Error::from(errno)))?;
        Ok(Self { _file: file })
    }

    /// Waits for at most `limit`. The file says who has it, or had it last.
    pub fn within(path: &Path, limit: Duration) -> Result<Self, LockError> {
        let (mut file, clock, mut waited) = (open(path)?, SystemClock::shared(), Duration::ZERO);
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::WOULDBLOCK) if waited >= limit => {
                    return Err(LockError::Held { holder: holder(&mut file), path: path.into() });
                }
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    clock.pause(PAUSE);
                    waited += PAUSE;
                }
                Err(errno) => {
                    return Err(DiskError::during("lock", path)(io::Error::from(errno)).into());
                }
            }
        }
        let pid = format!("{}\n", std::process::id());
        file.set_len(0)
            .and_then(|()| file.write_all_at(pid.as_bytes(), 0))
            .map_err(DiskError::during("write", path))?;
        Ok(Self { _file: file })
    }
}

fn open(path: &Path) -> Result<File, DiskError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(replace::PRIVATE);
    options.open(path).map_err(DiskError::during("open", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_has_it_and_gets_it_afterwards() {
        let root = tempfile::tempdir().unwrap();
        let first = DirLock::take(root.path()).unwrap();
        let error = DirLock::take(root.path()).unwrap_err();
        let pid = std::process::id().to_string();
        assert!(matches!(&error, LockError::Held { holder, .. } if *holder == pid), "{error}");
        drop(first);
        DirLock::take(root.path()).unwrap();
    }
    #[test]
    fn who_waits_gets_it_when_it_is_free() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("index.lock");
        let first = FileLock::within(&path, Duration::ZERO).unwrap();
        let error = FileLock::within(&path, PAUSE * 2).unwrap_err();
        assert!(matches!(&error, LockError::Held { .. }), "{error}");
        let second = std::thread::spawn(move || FileLock::within(&path, Duration::from_mins(1)));
        drop(first);
        second.join().unwrap().unwrap();
    }
}
