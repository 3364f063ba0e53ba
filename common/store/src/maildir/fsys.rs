//! Directories held open, so that a rename or a link placed by somebody else cannot lead us astray.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsFd, AsRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Component, Path, PathBuf},
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use rustix::{
    fs::{
        AtFlags, CWD, FileType, Gid, Mode, OFlags, RawDir, RenameFlags, ResolveFlags, SeekFrom,
        Stat, Timespec, Timestamps, Uid,
    },
    io::Errno,
    thread::{CapabilitySet, CapabilitySets, capabilities},
};
use serde::{Deserialize, Serialize};

use crate::StoreError;

/// Octets read from the kernel at once when a directory is listed.
const LISTING_BUFFER: usize = 32 << 10;

/// A signature whose times are younger than this when it was taken may hide a later change:
/// kernel timestamps advance in ticks of up to 10 ms.
const SETTLED_MS: i64 = 25;

/// For `map_err`: names the operation and its object.
pub(crate) fn during<E: Into<io::Error>>(
    op: &'static str,
    path: &Path,
) -> impl FnOnce(E) -> StoreError {
    move |source| StoreError::Io { op, path: path.to_path_buf(), source: source.into() }
}

/// An open directory.
#[derive(Debug)]
pub(crate) struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

/// What can be told of a directory or file without reading it; changes when it does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    inode: u64,
    size: u64,
    modified_ns: i64,
    changed_ns: i64,
    settled: bool,
}

impl Mark {
    fn of(stat: &Stat, now_ms: u64) -> Self {
        let ns = |secs: i64, nanos| {
            secs.saturating_mul(1_000_000_000).saturating_add(i64::try_from(nanos).unwrap_or(0))
        };
        let modified_ns = ns(stat.st_mtime, stat.st_mtime_nsec);
        let changed_ns = ns(stat.st_ctime, stat.st_ctime_nsec);
        let now_ms = i64::try_from(now_ms).unwrap_or(i64::MAX);
        let youngest_ms = modified_ns.max(changed_ns) / 1_000_000;
        Self {
            inode: stat.st_ino,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            modified_ns,
            changed_ns,
            settled: now_ms.saturating_sub(youngest_ms) >= SETTLED_MS,
        }
    }

    /// Whether what this was taken of is surely the same now, `later`.
    pub(crate) fn holds(&self, later: &Self) -> bool {
        self.settled
            && (self.inode, self.size, self.modified_ns, self.changed_ns)
                == (later.inode, later.size, later.modified_ns, later.changed_ns)
    }

    /// The mark, never to be relied on.
    pub(crate) fn unsettled(self) -> Self {
        Self { settled: false, ..self }
    }

    pub(crate) fn inode(&self) -> u64 {
        self.inode
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Whole seconds since 1970.
    pub(crate) fn modified_secs(&self) -> i64 {
        self.modified_ns.div_euclid(1_000_000_000)
    }
}

/// Owner and permission bits that new files get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    uid: u32,
    gid: u32,
    mode: u32,
}

impl Owner {
    /// Mode of a directory beside the one this was taken of.
    pub(crate) fn dir_mode(self) -> Mode {
        Mode::from_raw_mode(self.mode & 0o7777)
    }

    /// The same, with nothing for those who are neither owner nor of the group.
    pub(crate) fn without_others(self) -> Self {
        Self { mode: self.mode & !0o007, ..self }
    }

    /// Mode of a file in it.
    pub(crate) fn file_mode(self) -> Mode {
        Mode::from_raw_mode((self.mode & 0o666) | 0o600)
    }

    /// Gives `file` to this owner; without privileges it is the owner's already.
    fn give(self, file: impl AsFd, stat: &Stat, path: &Path) -> Result<(), StoreError> {
        if (stat.st_uid, stat.st_gid) == (self.uid, self.gid) || !may_give() {
            return Ok(());
        }
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        rustix::fs::fchown(file, Some(uid), Some(gid)).map_err(during("chown", path))
    }
}

/// Gives a file that was just made its mode and its owner, where it has not got them already (bits
/// may have fallen to the umask), and tells its inode.
fn settle(file: &File, owner: Owner, mode: Mode, path: &Path) -> Result<u64, StoreError> {
    let stat = rustix::fs::fstat(file).map_err(during("look at", path))?;
    if Mode::from_raw_mode(stat.st_mode & 0o7777) != mode {
        rustix::fs::fchmod(file, mode).map_err(during("chmod", path))?;
    }
    owner.give(file, &stat, path)?;
    Ok(stat.st_ino)
}

/// Whether files can be given to others: root may, and a daemon with the capability for it.
fn may_give() -> bool {
    static MAY: OnceLock<bool> = OnceLock::new();
    *MAY.get_or_init(|| {
        let has = |sets: CapabilitySets| sets.effective.contains(CapabilitySet::CHOWN);
        rustix::process::geteuid().is_root() || capabilities(None).is_ok_and(has)
    })
}

/// How often a directory is looked for while what leads to it is being renamed.
const RACES_MAX: usize = 100;

/// Whether this kernel lacks `openat2`, found out at the first call.
static WITHOUT_OPENAT2: AtomicBool = AtomicBool::new(false);

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

impl Dir {
    /// Opens the directory at `path`, wherever links lead; `None` if there is none.
    pub(crate) fn open(path: &Path) -> Result<Option<Self>, StoreError> {
        Self::found(rustix::fs::openat(CWD, path, DIRECTORY, Mode::empty()), path.to_path_buf())
    }

    /// Opens `relative`, following links only as far as they stay below this directory: the kernel
    /// sees to it, whatever somebody renames or links meanwhile.
    pub(crate) fn beneath(&self, relative: &Path) -> Result<Option<Self>, StoreError> {
        let relative = if relative == Path::new("") { Path::new(".") } else { relative };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        for _ in 0..RACES_MAX {
            if WITHOUT_OPENAT2.load(Ordering::Relaxed) {
                return self.step_by_step(relative);
            }
            match rustix::fs::openat2(&self.fd, relative, DIRECTORY, Mode::empty(), resolve) {
                // A part `..` of a link, while something was renamed.
                Err(Errno::AGAIN) => {}
                // A kernel before 5.6, or a sandbox that has not heard of the call.
                Err(Errno::NOSYS | Errno::PERM) => WITHOUT_OPENAT2.store(true, Ordering::Relaxed),
                opened => return Self::found(opened, self.path.join(relative)),
            }
        }
        Err(during("open", &self.path.join(relative))(Errno::AGAIN))
    }

    /// [`Dir::beneath`] where there is no `openat2`: one directory after the other, each in the
    /// one before. No link is followed at all; one is an error and not absent, since what was there
    /// under a newer kernel must not look deleted (I2).
    fn step_by_step(&self, relative: &Path) -> Result<Option<Self>, StoreError> {
        let mut dir = self.again()?;
        for part in relative.components() {
            let name = match part {
                Component::CurDir => continue,
                Component::Normal(name) => name.as_bytes(),
                Component::RootDir | Component::ParentDir | Component::Prefix(_) => {
                    return Ok(None);
                }
            };
            let Some(sub) = dir.sub(name)? else {
                if dir.target(name)?.is_some() {
                    let why = "it is a link, and only Linux 5.6 and later can tell where it leads";
                    let error = io::Error::new(io::ErrorKind::Unsupported, why);
                    return Err(during("open", &dir.at(name))(error));
                }
                return Ok(None);
            };
            dir = sub;
        }
        Ok(Some(dir))
    }

    /// Opens a directory right in this one; a link is taken for absent.
    pub(crate) fn sub(&self, name: &[u8]) -> Result<Option<Self>, StoreError> {
        if name.contains(&b'/') || name == b".." {
            return Ok(None); // it would not be in this one
        }
        let flags = DIRECTORY | OFlags::NOFOLLOW;
        Self::found(rustix::fs::openat(&self.fd, name, flags, Mode::empty()), self.at(name))
    }

    fn found(
        opened: rustix::io::Result<OwnedFd>,
        path: PathBuf,
    ) -> Result<Option<Self>, StoreError> {
        match opened {
            Ok(fd) => Ok(Some(Self { fd, path })),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => Ok(None),
            Err(errno) => Err(during("open", &path)(errno)),
        }
    }

    /// Another handle to it.
    pub(crate) fn again(&self) -> Result<Self, StoreError> {
        let fd = self.fd.try_clone().map_err(during("open", &self.path))?;
        Ok(Self { fd, path: self.path.clone() })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The path of something in it, for messages.
    pub(crate) fn at(&self, name: &[u8]) -> PathBuf {
        self.path.join(std::ffi::OsStr::from_bytes(name))
    }

    /// Shows name, inode and type of everything in it but `.` and `..`.
    pub(crate) fn list(
        &self,
        mut visit: impl FnMut(&[u8], u64, FileType),
    ) -> Result<(), StoreError> {
        rustix::fs::seek(&self.fd, SeekFrom::Start(0)).map_err(during("list", &self.path))?;
        let mut buffer = Vec::with_capacity(LISTING_BUFFER);
        let mut entries = RawDir::new(&self.fd, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry.map_err(during("list", &self.path))?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            let mut kind = entry.file_type();
            if kind == FileType::Unknown {
                let stat = rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW);
                kind = stat.map_or(kind, |stat| FileType::from_raw_mode(stat.st_mode));
            }
            visit(name, entry.ino(), kind);
        }
        Ok(())
    }

    /// What stands under `name`, links not followed; `None` if nothing.
    pub(crate) fn stat(&self, name: &[u8]) -> Result<Option<Stat>, StoreError> {
        match rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(errno) => Err(during("stat", &self.at(name))(errno)),
        }
    }

    /// The signature of `name`; the default if there is nothing.
    pub(crate) fn mark(&self, name: &[u8], now_ms: u64) -> Result<Mark, StoreError> {
        let absent = Mark { settled: true, ..Mark::default() };
        Ok(self.stat(name)?.map_or(absent, |stat| Mark::of(&stat, now_ms)))
    }

    /// Whether `name` is a directory, and no link to one.
    pub(crate) fn has_dir(&self, name: &[u8]) -> Result<bool, StoreError> {
        let is_dir = |stat: Stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        Ok(self.stat(name)?.is_some_and(is_dir))
    }

    /// Owner and permissions of the directory itself.
    pub(crate) fn owner(&self) -> Result<Owner, StoreError> {
        let stat = rustix::fs::fstat(&self.fd).map_err(during("stat", &self.path))?;
        Ok(Owner { uid: stat.st_uid, gid: stat.st_gid, mode: stat.st_mode & 0o7777 })
    }

    /// Opens a regular file for reading, with its state; `None` if it is not there or anything
    /// else. Never blocks on a FIFO and never follows a link.
    pub(crate) fn read(&self, name: &[u8]) -> Result<Option<(File, Stat)>, StoreError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = match rustix::fs::openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR | Errno::NXIO) => return Ok(None),
            Err(errno) => return Err(during("open", &self.at(name))(errno)),
        };
        let stat = rustix::fs::fstat(&fd).map_err(during("stat", &self.at(name)))?;
        let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        Ok(regular.then(|| (File::from(fd), stat)))
    }

    /// The content of a regular file of at most `octets_max`; `None` if it is not there.
    pub(crate) fn content(
        &self,
        name: &[u8],
        octets_max: u64,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let Some((file, stat)) = self.read(name)? else { return Ok(None) };
        let path = self.at(name);
        let mut content =
            Vec::with_capacity(usize::try_from(stat.st_size).unwrap_or(0).min(1 << 20));
        file.take(octets_max + 1).read_to_end(&mut content).map_err(during("read", &path))?;
        if u64::try_from(content.len()).is_ok_and(|octets| octets > octets_max) {
            let why = format!("it is longer than {octets_max} octets");
            return Err(StoreError::Corrupt { path, why });
        }
        Ok(Some(content))
    }

    /// Makes a new file, given to `owner`; an existing one is the error `AlreadyExists`.
    pub(crate) fn create(&self, name: &[u8], owner: Owner) -> Result<File, StoreError> {
        self.create_with(name, owner, owner.file_mode()).map(|(file, _)| file)
    }

    /// [`Dir::create`] with a mode of its own; tells the file's inode, too.
    pub(crate) fn create_with(
        &self,
        name: &[u8],
        owner: Owner,
        mode: Mode,
    ) -> Result<(File, u64), StoreError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let path = self.at(name);
        let fd =
            rustix::fs::openat(&self.fd, name, flags, mode).map_err(during("create", &path))?;
        let file = File::from(fd);
        let inode = settle(&file, owner, mode, &path)?;
        Ok((file, inode))
    }

    /// A file that appears under `name` with all of its content, or not at all; fails if there is
    /// one of that name. On file systems that have no nameless files it is a moment without content.
    pub(crate) fn create_whole(
        &self,
        name: &[u8],
        owner: Owner,
        mode: Mode,
        content: &[u8],
    ) -> Result<File, StoreError> {
        let flags = OFlags::WRONLY | OFlags::TMPFILE | OFlags::CLOEXEC;
        let path = self.at(name);
        let (mut file, named) = match rustix::fs::openat(&self.fd, ".", flags, mode) {
            Ok(fd) => (File::from(fd), false),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
                (self.create_with(name, owner, mode)?.0, true)
            }
            Err(error) => return Err(during("create", &path)(error)),
        };
        file.write_all(content).map_err(during("write", &path))?;
        if named {
            return Ok(file);
        }
        settle(&file, owner, mode, &path)?;
        let nameless = format!("/proc/self/fd/{}", file.as_raw_fd());
        rustix::fs::linkat(CWD, nameless, &self.fd, name, AtFlags::SYMLINK_FOLLOW)
            .map_err(during("create", &path))?;
        Ok(file)
    }

    /// Whether it was removed since it was opened.
    pub(crate) fn is_removed(&self) -> Result<bool, StoreError> {
        let stat = rustix::fs::fstat(&self.fd).map_err(during("look at", &self.at(b"")))?;
        Ok(stat.st_nlink == 0)
    }

    /// Opens an existing regular file for appending.
    pub(crate) fn append(&self, name: &[u8]) -> Result<File, StoreError> {
        // Somebody may have put a FIFO there, which would keep us waiting.
        let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let path = self.at(name);
        let opened = rustix::fs::openat(&self.fd, name, flags | OFlags::CLOEXEC, Mode::empty());
        let file = File::from(opened.map_err(during("open", &path))?);
        let stat = rustix::fs::fstat(&file).map_err(during("stat", &path))?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
            return Ok(file);
        }
        let why = "it is no regular file".to_owned();
        Err(StoreError::Corrupt { path, why })
    }

    /// Makes a directory for `owner`; one that is there already is left as it is.
    pub(crate) fn make(&self, name: &[u8], owner: Owner) -> Result<Self, StoreError> {
        let path = self.at(name);
        let wanted = owner.dir_mode();
        // The setgid bit comes from the directory above, if it has it; a sandbox may forbid to set it.
        let made = match rustix::fs::mkdirat(&self.fd, name, wanted & !Mode::SGID) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(errno) => return Err(during("create", &path)(errno)),
        };
        let dir = self.sub(name)?.ok_or_else(|| during("open", &path)(Errno::NOTDIR))?;
        if made {
            let stat = rustix::fs::fstat(&dir.fd).map_err(during("look at", &path))?;
            if Mode::from_raw_mode(stat.st_mode & 0o7777) != wanted {
                let set = match rustix::fs::fchmod(&dir.fd, wanted) {
                    Err(Errno::PERM) => rustix::fs::fchmod(&dir.fd, wanted & !Mode::SGID),
                    set => set,
                };
                set.map_err(during("chmod", &path))?;
            }
            owner.give(&dir.fd, &stat, &path)?;
        }
        Ok(dir)
    }

    /// Renames, over what may stand there.
    pub(crate) fn rename(&self, name: &[u8], to: &Self, new: &[u8]) -> Result<(), StoreError> {
        rustix::fs::renameat(&self.fd, name, &to.fd, new).map_err(during("rename", &self.at(name)))
    }

    /// Renames to a name that must be free; otherwise the error is `AlreadyExists`.
    pub(crate) fn rename_new(&self, name: &[u8], to: &Self, new: &[u8]) -> Result<(), StoreError> {
        rustix::fs::renameat_with(&self.fd, name, &to.fd, new, RenameFlags::NOREPLACE)
            .map_err(during("rename", &self.at(name)))
    }

    /// Gives the file another name, which must be free.
    pub(crate) fn link(&self, name: &[u8], to: &Self, new: &[u8]) -> Result<(), StoreError> {
        rustix::fs::linkat(&self.fd, name, &to.fd, new, AtFlags::empty())
            .map_err(during("link", &self.at(name)))
    }

    /// Removes a file; whether it was there.
    pub(crate) fn remove(&self, name: &[u8]) -> Result<bool, StoreError> {
        self.removed(rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()), name)
    }

    /// Removes an empty directory; `false` if it is not there or not empty.
    pub(crate) fn remove_dir(&self, name: &[u8]) -> Result<bool, StoreError> {
        match rustix::fs::unlinkat(&self.fd, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY) => Ok(false),
            other => self.removed(other, name),
        }
    }

    fn removed(&self, done: rustix::io::Result<()>, name: &[u8]) -> Result<bool, StoreError> {
        match done {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(during("remove", &self.at(name))(errno)),
        }
    }

    /// The target of a link; `None` if it is not there or not a link.
    pub(crate) fn target(&self, name: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        match rustix::fs::readlinkat(&self.fd, name, Vec::new()) {
            Ok(target) => Ok(Some(target.into_bytes())),
            Err(Errno::NOENT | Errno::INVAL | Errno::NOTDIR) => Ok(None),
            Err(errno) => Err(during("read", &self.at(name))(errno)),
        }
    }

    /// Makes a link with `target` as it stands.
    pub(crate) fn symlink(
        &self,
        name: &[u8],
        target: &[u8],
        owner: Owner,
    ) -> Result<(), StoreError> {
        let path = self.at(name);
        rustix::fs::symlinkat(target, &self.fd, name).map_err(during("create", &path))?;
        if may_give() {
            let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::chownat(&self.fd, name, Some(uid), Some(gid), flags)
                .map_err(during("chown", &path))?;
        }
        Ok(())
    }

    /// Sets a file's INTERNALDATE.
    pub(crate) fn set_date(&self, name: &[u8], secs: i64) -> Result<(), StoreError> {
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::utimensat(&self.fd, name, &date(secs), flags)
            .map_err(during("date", &self.at(name)))
    }

    /// Sets its modification time to now.
    pub(crate) fn touch(&self) -> Result<(), StoreError> {
        let at = |tv_nsec| Timespec { tv_sec: 0, tv_nsec };
        let times = Timestamps {
            last_access: at(rustix::fs::UTIME_OMIT),
            last_modification: at(rustix::fs::UTIME_NOW),
        };
        rustix::fs::futimens(&self.fd, &times).map_err(during("touch", &self.path))
    }

    /// Makes the names in it durable.
    pub(crate) fn sync(&self) -> Result<(), StoreError> {
        rustix::fs::fsync(&self.fd).map_err(during("sync", &self.path))
    }
}

/// Both times of a file, set to `secs` since 1970.
pub(crate) fn date(secs: i64) -> Timestamps {
    let time = Timespec { tv_sec: secs, tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}

/// Whether an error says that a name is taken.
pub(crate) fn is_taken(error: &StoreError) -> bool {
    matches!(error, StoreError::Io { source, .. }
        if matches!(source.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty))
}

/// Whether an error says that something is not there.
pub(crate) fn is_absent(error: &StoreError) -> bool {
    matches!(error, StoreError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
}

#[cfg(test)]
#[path = "fsys_tests.rs"]
mod tests;
