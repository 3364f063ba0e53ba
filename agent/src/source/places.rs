//! Which watch stands for which directory of whom.

use std::{
    collections::{BTreeSet, HashMap},
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use mailtwin_logic::ids::Account;
use mailtwin_store::watch::{Role, Watch};
use rustix::{
    fs::inotify::{self, CreateFlags, WatchFlags},
    io::Errno,
};

/// What is asked of every directory.
const EVENTS: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVE)
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::ONLYDIR)
    .union(WatchFlags::EXCL_UNLINK);

/// All watches of one inotify instance.
#[derive(Debug)]
pub(super) struct Places {
    inotify: OwnedFd,
    /// A directory is one watch, however many roles it has.
    roles: HashMap<i32, Vec<Role>>,
    /// Watches by owner; `None`: the places of accounts.
    owned: HashMap<Option<Account>, BTreeSet<i32>>,
    watches_max: usize,
}

/// How adding watches went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Added {
    /// Directories that were not watched before.
    pub(super) fresh: usize,
    /// Directories for which there was no watch left.
    pub(super) refused: usize,
    /// Directories that could not be watched for another reason.
    pub(super) failed: usize,
}

impl Places {
    pub(super) fn new(watches_max: usize) -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        Ok(Self { inotify, roles: HashMap::new(), owned: HashMap::new(), watches_max })
    }

    /// Makes `plan` all that is watched for `owner`.
    pub(super) fn set(&mut self, owner: Option<&Account>, plan: Vec<Watch>) -> Added {
        let mut added = Added::default();
        let old = self.owned.remove(&owner.cloned()).unwrap_or_default();
        for watch in &old {
            self.take_roles(*watch, owner);
        }
        let mut new = BTreeSet::new();
        for Watch { path, role } in plan {
            match self.add(&path) {
                Ok(watch) => {
                    let roles = self.roles.entry(watch).or_default();
                    added.fresh += usize::from(!old.contains(&watch) && !new.contains(&watch));
                    roles.push(role);
                    new.insert(watch);
                }
                Err(Errno::NOENT | Errno::NOTDIR) => {} // gone again: its parent says so
                Err(Errno::NOSPC | Errno::NOMEM) => added.refused += 1,
                Err(errno) => {
                    added.failed += 1;
                    let error = io::Error::from(errno);
                    tracing::warn!(code = "watch-failed", path = %path.display(), %error, "cannot watch a directory");
                }
            }
        }
        for watch in old {
            self.drop_unused(watch);
        }
        if !new.is_empty() {
            self.owned.insert(owner.cloned(), new);
        }
        added
    }

    fn add(&mut self, path: &std::path::Path) -> Result<i32, Errno> {
        let watch = inotify::add_watch(&self.inotify, path, EVENTS)?;
        if self.roles.len() >= self.watches_max && !self.roles.contains_key(&watch) {
            let _ = inotify::remove_watch(&self.inotify, watch);
            return Err(Errno::NOSPC);
        }
        Ok(watch)
    }

    /// Roles stay listed while they are empty, so that the watch can be taken up again.
    fn take_roles(&mut self, watch: i32, owner: Option<&Account>) {
        if let Some(roles) = self.roles.get_mut(&watch) {
            roles.retain(|role| role.account() != owner);
        }
    }

    fn drop_unused(&mut self, watch: i32) {
        if self.roles.get(&watch).is_some_and(Vec::is_empty) {
            self.roles.remove(&watch);
            // It may have gone with its directory.
            let _ = inotify::remove_watch(&self.inotify, watch);
        }
    }

    /// The kernel has removed `watch`: its directory is gone.
    pub(super) fn forget(&mut self, watch: i32) {
        for role in self.roles.remove(&watch).unwrap_or_default() {
            if let Some(owned) = self.owned.get_mut(&role.account().cloned()) {
                owned.remove(&watch);
            }
        }
    }

    /// What the directory behind `watch` is.
    pub(super) fn roles(&self, watch: i32) -> &[Role] {
        self.roles.get(&watch).map(Vec::as_slice).unwrap_or_default()
    }

    /// Accounts that have watches.
    pub(super) fn accounts(&self) -> impl Iterator<Item = &Account> {
        self.owned.keys().flatten()
    }

    pub(super) fn len(&self) -> usize {
        self.roles.len()
    }
}

impl AsFd for Places {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

/// The kernel's limit on watches of one user, if it says.
pub(super) fn kernel_limit() -> Option<usize> {
    let text = fs::read_to_string("/proc/sys/fs/inotify/max_user_watches").ok()?;
    text.trim().parse().ok()
}
