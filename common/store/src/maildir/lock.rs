//! Dovecot's dot-locks: a file beside the one it guards, made only where there is none, that says
//! `<pid>:<host>`.

use std::{fs::File, sync::Arc, time::Duration};

use mailtwin_disk::clock::Clock;
use rustix::{
    fs::{Mode, Stat},
    io::Errno,
    process::Pid,
};

use super::fsys::{Dir, Owner, during, is_taken};
use crate::StoreError;

/// How often a taken lock is tried again.
const RETRY: Duration = Duration::from_millis(3);

/// A dead owner on this host is believed dead when its lock is that old, as Dovecot does.
const DEAD_MS: u64 = 2_000;

/// The lock of an owner that cannot be asked is taken over when neither it nor the file it guards
/// changed for that long.
const SILENT_MS: u64 = 120_000;

/// A lock without content is believed left over from a power cut when neither it nor the file it
/// guards changed for that long: whoever makes one says at once who it is, but does not wait for the
/// disk.
const EMPTY_MS: u64 = 10_000;

/// An owner that cannot be asked is watched for that long besides: after a jump of the clock, every
/// lock looks old, also one that was made a moment ago.
const WATCHED: Duration = Duration::from_secs(1);

/// Longest content that is read.
const CONTENT_OCTETS_MAX: u64 = 1024;

/// Who takes locks here, and for how long it waits.
#[derive(Clone, Debug)]
pub(crate) struct Locker {
    pub clock: Arc<dyn Clock>,
    pub host: String,
    pub patience: Duration,
}

/// A lock we hold; dropping it gives it back.
#[derive(Debug)]
pub(crate) struct DotLock<'a> {
    dir: &'a Dir,
    name: &'static [u8],
    inode: u64,
    /// Open, so that no other file gets its inode while that is taken for ours.
    _file: File,
}

impl Locker {
    /// Takes the lock `name` in `dir`, which guards `guarded`.
    pub(crate) fn take<'a>(
        &self,
        dir: &'a Dir,
        name: &'static [u8],
        guarded: &[u8],
        owner: Owner,
    ) -> Result<DotLock<'a>, StoreError> {
        let start = self.clock.monotonic();
        loop {
            match self.try_take(dir, name, owner) {
                Ok(lock) => return Ok(lock),
                Err(error) if is_taken(&error) => {}
                Err(_) if dir.is_removed()? => return Err(gone(dir)),
                Err(error) => return Err(error),
            }
            let holder = holder(dir, name)?;
            if self.is_abandoned(dir, name, guarded, &holder)? {
                take_away(dir, name)?;
                continue;
            }
            let waited = self.clock.monotonic().saturating_sub(start);
            if waited >= self.patience {
                let waited_ms = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX);
                return Err(StoreError::Locked { path: dir.at(name), holder, waited_ms });
            }
            self.clock.pause(RETRY);
        }
    }

    /// Removes the lock `name` if its owner is gone. A server that comes upon what a power cut left
    /// would wait for two minutes.
    pub(crate) fn clear(&self, dir: &Dir, name: &[u8], guarded: &[u8]) -> Result<(), StoreError> {
        if dir.stat(name)?.is_some()
            && self.is_abandoned(dir, name, guarded, &holder(dir, name)?)?
        {
            take_away(dir, name)?;
        }
        Ok(())
    }

    fn try_take<'a>(
        &self,
        dir: &'a Dir,
        name: &'static [u8],
        owner: Owner,
    ) -> Result<DotLock<'a>, StoreError> {
        // Readable by the mail user, or Dovecot cannot wait for it.
        // Whole at once: one that a crash left without content would count as nobody's we know,
        // and stand in everybody's way for two minutes.
        let content = format!("{}:{}", std::process::id(), self.host);
        let mode = Mode::from_raw_mode(0o644);
        let file = dir.create_whole(name, owner, mode, content.as_bytes())?;
        let stat = rustix::fs::fstat(&file).map_err(during("stat", &dir.at(name)))?;
        Ok(DotLock { dir, name, inode: stat.st_ino, _file: file })
    }

    fn is_abandoned(
        &self,
        dir: &Dir,
        name: &[u8],
        guarded: &[u8],
        holder: &str,
    ) -> Result<bool, StoreError> {
        let Some(lock) = dir.stat(name)? else { return Ok(false) };
        let now_ms = self.clock.unix_ms();
        let age_ms = |stat: &Stat| {
            let secs = u64::try_from(stat.st_mtime).unwrap_or(0);
            now_ms.saturating_sub(secs.saturating_mul(1000))
        };
        if let Some(pid) = self.local_pid(holder) {
            let dead = rustix::process::test_kill_process(pid) == Err(Errno::SRCH);
            return Ok(dead && age_ms(&lock) > DEAD_MS);
        }
        let patience = if holder.is_empty() { EMPTY_MS } else { SILENT_MS };
        let beside = dir.stat(guarded)?;
        if [Some(&lock), beside.as_ref()].into_iter().flatten().any(|stat| age_ms(stat) <= patience)
        {
            return Ok(false);
        }
        self.clock.pause(WATCHED);
        let state = |stat: Option<Stat>| {
            stat.map(|stat| (stat.st_ino, stat.st_size, stat.st_mtime, stat.st_mtime_nsec))
        };
        Ok(state(dir.stat(name)?) == state(Some(lock))
            && state(dir.stat(guarded)?) == state(beside))
    }

    fn local_pid(&self, holder: &str) -> Option<Pid> {
        let (pid, host) = holder.split_once(':')?;
        (host == self.host).then(|| pid.parse().ok().and_then(Pid::from_raw)).flatten()
    }
}

/// The mailbox is being deleted, or was: there is nothing to wait for.
fn gone(dir: &Dir) -> StoreError {
    StoreError::NotFound { what: format!("the mailbox {}", dir.at(b"").display()) }
}

fn holder(dir: &Dir, name: &[u8]) -> Result<String, StoreError> {
    let content = dir.content(name, CONTENT_OCTETS_MAX)?.unwrap_or_default();
    Ok(String::from_utf8_lossy(&content).escape_debug().to_string())
}

/// Removes an abandoned lock, by way of a name of our own: if somebody else did so first and
/// made a new one, that one is put back.
fn take_away(dir: &Dir, name: &[u8]) -> Result<(), StoreError> {
    let own = [name, format!(".{}", std::process::id()).as_bytes()].concat();
    let stale = dir.stat(name)?.map(|stat| stat.st_ino);
    match dir.rename(name, dir, &own) {
        Ok(()) => {}
        Err(error) if super::fsys::is_absent(&error) => return Ok(()),
        Err(error) => return Err(error),
    }
    if dir.stat(&own)?.map(|stat| stat.st_ino) == stale {
        dir.remove(&own)?;
        tracing::warn!(code = "lock-taken-over", path = %dir.at(name).display(), "took over a lock whose owner is gone");
        return Ok(());
    }
    match dir.rename_new(&own, dir, name) {
        Err(error) if !is_taken(&error) => Err(error),
        _ => dir.remove(&own).map(|_| ()),
    }
}

impl DotLock<'_> {
    /// The lock's inode: no other file's while this is held.
    pub(crate) fn inode(&self) -> u64 {
        self.inode
    }

    /// Whether nobody took it from us.
    pub(crate) fn is_ours(&self) -> Result<bool, StoreError> {
        Ok(self.dir.stat(self.name)?.is_some_and(|stat| stat.st_ino == self.inode))
    }

    /// Refuses if somebody took it from us: what was done under it may be half undone.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        match self.dir.stat(self.name)? {
            Some(stat) if stat.st_ino == self.inode => return Ok(()),
            Some(_) => {}
            // Who deletes a mailbox removes whatever is in it.
            None => return Err(gone(self.dir)),
        }
        let (path, holder) = (self.dir.at(self.name), "somebody who took it from us".into());
        Err(StoreError::Locked { path, holder, waited_ms: 0 })
    }
}

impl Drop for DotLock<'_> {
    fn drop(&mut self) {
        // Nobody is left to tell of a failure; the lock is then taken over once we are gone.
        if self.is_ours().unwrap_or(false) {
            let _ = self.dir.remove(self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use mailtwin_disk::clock::SystemClock;

    use super::*;

    const NAME: &[u8] = b"dovecot-uidlist.lock";

    fn locker(patience_ms: u64) -> Locker {
        let patience = Duration::from_millis(patience_ms);
        Locker { clock: SystemClock::shared(), host: "here".into(), patience }
    }

    fn set(dir: &Dir, content: &str, age_secs: i64) {
        let mut file = dir.create(NAME, dir.owner().unwrap()).unwrap();
        file.write_all(content.as_bytes()).unwrap();
        let now = i64::try_from(SystemClock::shared().unix_ms() / 1000).unwrap();
        dir.set_date(NAME, now - age_secs).unwrap();
    }

    fn set_again(dir: &Dir, content: &str, age_secs: i64) {
        dir.remove(NAME).unwrap();
        set(dir, content, age_secs);
    }

    #[test]
    fn taken_and_given_back() {
        let root = tempfile::tempdir().unwrap();
        let dir = Dir::open(root.path()).unwrap().unwrap();
        let owner = dir.owner().unwrap();
        let lock = locker(0).take(&dir, NAME, b"x", owner).unwrap();
        let said = dir.content(NAME, 99).unwrap().unwrap();
        assert_eq!(said, format!("{}:here", std::process::id()).as_bytes());
        assert!(matches!(
            locker(0).take(&dir, NAME, b"x", owner),
            Err(StoreError::Locked { holder, .. }) if holder.ends_with(":here")
        ));
        lock.check().unwrap();
        drop(lock);
        assert!(dir.stat(NAME).unwrap().is_none());
    }

    /// Its inode must not become another's while we believe it to be ours.
    #[test]
    fn a_lock_that_somebody_replaced_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let dir = Dir::open(root.path()).unwrap().unwrap();
        for _ in 0..20 {
            let lock = locker(0).take(&dir, NAME, b"x", dir.owner().unwrap()).unwrap();
            set_again(&dir, "1:elsewhere", 0);
            lock.check().unwrap_err();
            drop(lock);
            assert!(dir.stat(NAME).unwrap().is_some());
            dir.remove(NAME).unwrap();
        }
    }

    #[test]
    fn who_deletes_the_mailbox_is_no_holder_of_its_lock() {
        let root = tempfile::tempdir().unwrap();
        let place = root.path().join("box");
        std::fs::create_dir(&place).unwrap();
        let dir = Dir::open(&place).unwrap().unwrap();
        let owner = dir.owner().unwrap();
        let lock = locker(0).take(&dir, NAME, b"x", owner).unwrap();
        dir.remove(NAME).unwrap();
        assert!(matches!(lock.check(), Err(StoreError::NotFound { .. })));
        std::fs::remove_dir(&place).unwrap();
        let again = locker(0).take(&dir, NAME, b"x", owner);
        assert!(matches!(again, Err(StoreError::NotFound { .. })), "{again:?}");
    }

    #[test]
    fn stale_rules() {
        let live = format!("{}:here", std::process::id());
        // Beyond the highest PID Linux gives.
        let dead = "99999999:here";
        let cases = [
            (live.as_str(), 9999, false),
            (dead, 0, false),
            (dead, 10, true),
            ("99999999:there", 10, false),
            ("99999999:there", 200, true),
            ("", 5, false),
            ("", 20, true),
            ("99999999:there", 20, false),
            ("nonsense", 200, true),
        ];
        for (content, age_secs, taken_over) in cases {
            let root = tempfile::tempdir().unwrap();
            let dir = Dir::open(root.path()).unwrap().unwrap();
            set(&dir, content, age_secs);
            locker(0).clear(&dir, NAME, b"none").unwrap();
            assert_eq!(dir.stat(NAME).unwrap().is_none(), taken_over, "{content:?} {age_secs}");
            set_again(&dir, content, age_secs);
            let got = locker(0).take(&dir, NAME, b"none", dir.owner().unwrap());
            assert_eq!(got.is_ok(), taken_over, "{content:?} {age_secs}");
        }
    }

    /// While we wait, somebody says that the lock is theirs.
    #[derive(Debug)]
    struct Maker {
        root: std::path::PathBuf,
        said: String,
    }

    impl Clock for Maker {
        fn unix_ms(&self) -> u64 {
            SystemClock::shared().unix_ms()
        }

        fn monotonic(&self) -> Duration {
            Duration::ZERO
        }

        fn pause(&self, _: Duration) {
            let dir = Dir::open(&self.root).unwrap().unwrap();
            set_again(&dir, &self.said, 0);
        }
    }

    #[test]
    fn after_a_jump_of_the_clock_a_lock_that_is_being_made_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let dir = Dir::open(root.path()).unwrap().unwrap();
        let owner = dir.owner().unwrap();
        // Made a moment ago, before the clock went a day ahead.
        set(&dir, "", 86_400);
        let said = format!("{}:here", std::process::id());
        let maker = Maker { root: root.path().to_owned(), said: said.clone() };
        let locker = Locker { clock: Arc::new(maker), ..locker(0) };
        let got = locker.take(&dir, NAME, b"none", owner);
        assert!(matches!(got, Err(StoreError::Locked { .. })), "{got:?}");
        assert_eq!(dir.content(NAME, 99).unwrap().unwrap(), said.as_bytes());
    }

    #[test]
    fn a_lock_taken_from_us_is_noticed_and_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let dir = Dir::open(root.path()).unwrap().unwrap();
        let lock = locker(0).take(&dir, NAME, b"x", dir.owner().unwrap()).unwrap();
        dir.rename(NAME, &dir, b"old").unwrap();
        set(&dir, "1:other", 0);
        assert!(lock.check().is_err());
        drop(lock);
        assert!(dir.stat(NAME).unwrap().is_some());
    }
}
