//! Changes that wait in memory: sled writes its buffer out twice for every batch, whatever its
//! size, so what changes all the time reaches it once a second. A thread writes what nobody else
//! does; it sleeps while nothing waits.

use std::{
    collections::BTreeMap,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use super::{IndexError, Open};
use crate::DiskError;

/// How long a change waits at most before sled has it.
const WAIT: Duration = Duration::from_secs(1);

/// Changes that wait at most: sled needs some kilobytes for each change of a batch.
const CHANGES_MAX: usize = 256;

/// Octets of keys and values that wait at most.
const OCTETS_MAX: usize = 1 << 20;

/// Changes by key; `None` removes it.
pub(super) type Changes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// What waits. Whoever writes it out keeps it locked until sled has it, so that every change is
/// always seen here or there.
#[derive(Debug, Default)]
pub(super) struct Pending {
    state: Mutex<State>,
    news: Condvar,
}

/// What waits, and whether all is at its end.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) changes: Changes,
    octets: usize,
    /// The writer's thread waits for the first change.
    writer_sleeps: bool,
    ending: bool,
}

impl State {
    pub(super) fn clear(&mut self) {
        self.changes.clear();
        self.octets = 0;
    }
}

impl Pending {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds `changes`, all at once; false if so much waits now that it should be written out.
    pub(super) fn add(&self, changes: Changes) -> bool {
        let mut state = self.lock();
        if std::mem::take(&mut state.writer_sleeps) {
            self.news.notify_one();
        }
        for (key, new) in changes {
            state.octets += key.len() + octets(new.as_ref());
            let length = key.len();
            if let Some(old) = state.changes.insert(key, new) {
                state.octets -= length + octets(old.as_ref());
            }
        }
        state.changes.len() < CHANGES_MAX && state.octets < OCTETS_MAX
    }

    /// Whether a key that starts with `prefix` waits.
    pub(super) fn touches(&self, prefix: &[u8]) -> bool {
        let state = self.lock();
        let mut from = state.changes.range(prefix.to_vec()..);
        from.next().is_some_and(|(key, _)| key.starts_with(prefix))
    }

    /// Waits until something has waited long enough; false at the end.
    fn ripe(&self) -> bool {
        let state = self.lock();
        let idle = |state: &mut State| {
            state.writer_sleeps = state.changes.is_empty() && !state.ending;
            state.writer_sleeps
        };
        let state = self.news.wait_while(state, idle).unwrap_or_else(PoisonError::into_inner);
        let waited = self.news.wait_timeout_while(state, WAIT, |state| !state.ending);
        !waited.unwrap_or_else(PoisonError::into_inner).0.ending
    }

    fn end(&self) {
        self.lock().ending = true;
        self.news.notify_one();
    }
}

fn octets(value: Option<&Vec<u8>>) -> usize {
    value.map_or(0, Vec::len)
}

/// The thread that writes what waits. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Writer {
    open: Arc<Open>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    pub(super) fn start(open: &Arc<Open>) -> Result<Self, IndexError> {
        let theirs = Arc::clone(open);
        let thread = std::thread::Builder::new()
            .name("index".to_string())
            .spawn(move || run(&theirs))
            .map_err(DiskError::during("start a thread for", &open.dir))?;
        Ok(Self { open: Arc::clone(open), thread: Some(thread) })
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.open.pending.end();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been printed.
            let _ = thread.join();
        }
    }
}

fn run(open: &Open) {
    while open.pending.ripe() {
        if let Err(error) = open.write_out() {
            // The index is out of use now and says so to everybody who calls it.
            let error: &dyn std::error::Error = &error;
            tracing::warn!(code = "index-unwritable", dir = %open.dir.display(), error, "cannot write to the index");
            return;
        }
    }
}
