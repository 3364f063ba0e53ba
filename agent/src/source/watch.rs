//! The feed's thread: reads events, keeps the watches in step with the store, reports.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    mem::MaybeUninit,
    os::fd::OwnedFd,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use mailtwin_disk::clock::Clock;
use mailtwin_logic::{chain::Chain, entry::Target, ids::Account};
use mailtwin_store::{
    MailStore, StoreError,
    watch::{Change, Note, Role, Watch},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::inotify::{self, ReadFlags},
    io::Errno,
};
use tokio::sync::watch as state;

use super::{
    Counts, Offer, Options, Sink, SourceError, UNWATCHED_RESCAN,
    barrier::Signal,
    flood::Flood,
    gather::{Due, Gather, Seen},
    journal::{self, Emptied},
    places::{self, Added, Places},
    rescan::Rescan,
};

/// How often a full log is asked again.
const BUSY_RETRY: Duration = Duration::from_millis(20);

/// Rounds of "watch, then look what else there is" for one account: each round costs a listing,
/// and only a store in which directories come all the time needs more than two.
const PLAN_ROUNDS: usize = 8;

/// Events read in one call: some hundreds.
const BUFFER_OCTETS: usize = 8 << 10;

/// Events taken before what they say is passed on.
const READ_MAX: usize = BUFFER_OCTETS / 64;

pub(super) struct Parts {
    pub(super) store: Arc<dyn MailStore>,
    pub(super) sink: Box<dyn Sink>,
    pub(super) options: Options,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) stop: Arc<OwnedFd>,
    pub(super) barrier: Signal,
    pub(super) counts: Arc<Counts>,
    pub(super) watching: state::Sender<bool>,
}

pub(super) struct Watcher {
    parts: Parts,
    places: Places,
    gather: Gather,
    rescan: Rescan,
    /// Accounts whose directories have changed: they are watched anew before they are reported.
    moved: BTreeMap<Account, Due>,
    /// Accounts may have come or gone.
    accounts: Option<Due>,
    /// The mail server's own journal has grown.
    journal: Option<Due>,
    /// When the journal may be tried again after it could not be emptied.
    journal_at: Duration,
    /// That watches ran out has been said.
    limit_said: bool,
    /// A scan of everything has ended, and must be said once its targets are taken.
    announce: bool,
    /// The store cannot be looked at, or its top was lost: everything is watched anew once it can.
    blind: bool,
    flood: Flood,
    /// All that happened until then has been read: what is read now happened later. Stands still
    /// while everything is looked at anew, for what is found then may have happened at any time.
    read: Duration,
}

/// What one read of events brought.
struct Event {
    watch: i32,
    change: Option<Change>,
    name: Vec<u8>,
    is_gone: bool,
    is_overflow: bool,
}

impl Watcher {
    pub(super) fn new(parts: Parts) -> Result<Self, SourceError> {
        let places = Places::new(parts.options.watches_max).map_err(|error| {
            let instances = error.raw_os_error() == Some(Errno::MFILE.raw_os_error());
            if instances { SourceError::Instances } else { SourceError::Io(error) }
        })?;
        let rescan = Rescan::new(parts.options.rescan, UNWATCHED_RESCAN);
        Ok(Self {
            parts,
            places,
            gather: Gather::default(),
            rescan,
            moved: BTreeMap::new(),
            accounts: None,
            journal: None,
            journal_at: Duration::ZERO,
            limit_said: false,
            announce: false,
            blind: false,
            flood: Flood::default(),
            read: Duration::ZERO,
        })
    }

    pub(super) fn run(mut self) {
        self.watch_everything();
        // What was noted while nobody looked. Without a journal nothing is ever due.
        self.journal = self.parts.store.journal().map(|_| Due::new(self.seen()));
        let mut events = Vec::new();
        loop {
            match self.wait() {
                Ok(false) => {}
                Ok(true) => return,
                Err(error) => {
                    tracing::error!(code = "watch-ended", %error, "cannot wait for changes; only scans find them now");
                    return;
                }
            }
            let before = self.parts.clock.monotonic();
            if let Err(error) = self.read(&mut events) {
                tracing::error!(code = "watch-ended", %error, "cannot read changes; only scans find them now");
                return;
            }
            let pause = self.flood.note(events.len(), self.parts.clock.monotonic());
            self.gather.flooded(pause.is_some());
            // What has not been read yet must not be kept waiting: the kernel's queue is bounded.
            let all = events.len() < READ_MAX;
            let pause = pause.filter(|_| all);
            for event in events.drain(..) {
                self.take(&event);
            }
            self.catch_up();
            if !self.empty_journal() {
                return;
            }
            if all && !self.blind && !self.rescan.is_rushing() {
                self.read = before;
            }
            match self.send() {
                Offer::Closed => return,
                Offer::Taken => self.tell(),
                Offer::Busy => {}
            }
            if let Some(pause) = pause {
                self.parts.clock.pause(pause);
            }
        }
    }

    /// What is read or found now.
    fn seen(&self) -> Seen {
        Seen { after: self.read, now: self.parts.clock.monotonic() }
    }

    /// Tells which of what has been read is in the log.
    fn tell(&self) {
        let moved = self.moved.values().map(|due| due.after()).min();
        let (accounts, journal) = (self.accounts.map(Due::after), self.journal.map(Due::after));
        let waiting = [self.gather.after(), moved, accounts, journal];
        self.parts.barrier.tell(waiting.into_iter().flatten().fold(self.read, Duration::min));
    }

    /// Waits for events or for the time when something is due; true at a stop.
    fn wait(&self) -> io::Result<bool> {
        let now = self.parts.clock.monotonic();
        let due = [
            Some(self.rescan.deadline()),
            self.gather.deadline(),
            self.accounts.map(Due::at),
            self.journal.map(|due| due.at().max(self.journal_at)),
            self.moved.values().map(|due| due.at()).min(),
            self.gather.has_mail().then(|| now + BUSY_RETRY),
        ];
        let wait = due.into_iter().flatten().min().unwrap_or(now).saturating_sub(now);
        let timeout = Timespec {
            tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: wait.subsec_nanos().into(),
        };
        let mut fds = [
            PollFd::new(&*self.parts.stop, PollFlags::IN),
            PollFd::new(&self.places, PollFlags::IN),
            PollFd::new(self.parts.barrier.wish(), PollFlags::IN),
        ];
        let polled = poll(&mut fds, Some(&timeout));
        let (stopped, wished) = (!fds[0].revents().is_empty(), !fds[2].revents().is_empty());
        if wished {
            self.parts.barrier.heard();
        }
        match polled {
            Ok(_) | Err(Errno::INTR) => Ok(stopped),
            Err(errno) => Err(errno.into()),
        }
    }

    fn read(&self, events: &mut Vec<Event>) -> io::Result<()> {
        let mut buffer = [MaybeUninit::uninit(); BUFFER_OCTETS];
        let mut reader = inotify::Reader::new(&self.places, &mut buffer);
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            let flags = event.events();
            events.push(Event {
                watch: event.wd(),
                change: change(flags),
                name: event.file_name().map(|name| name.to_bytes().to_vec()).unwrap_or_default(),
                is_gone: flags.contains(ReadFlags::IGNORED),
                is_overflow: flags.contains(ReadFlags::QUEUE_OVERFLOW),
            });
            // What has come so far must not wait for what keeps coming.
            if reader.is_buffer_empty() && events.len() >= READ_MAX {
                return Ok(());
            }
        }
    }

    fn take(&mut self, event: &Event) {
        if event.is_overflow {
            self.parts.counts.overflows.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(
                code = "watch-overflow",
                "changes came faster than they could be read; looking at everything"
            );
            self.watch_everything();
            self.gather.now(Target::Store, self.seen());
            return;
        }
        if event.is_gone {
            // The volume was unmounted, or the directory of accounts removed.
            let roles = self.places.roles(event.watch);
            if roles.iter().any(|role| matches!(role, Role::Accounts | Role::Journal)) {
                self.blind = true;
                self.rescan.again(self.parts.clock.monotonic());
            }
            self.places.forget(event.watch);
            return;
        }
        let seen = self.seen();
        if self.places.roles(event.watch).contains(&Role::Journal) {
            let is_news = self.parts.store.journal().is_some_and(|j| j.is_news(&event.name));
            if is_news && event.change != Some(Change::Vanished) {
                self.journal.get_or_insert_with(|| Due::new(seen)).again(seen.now);
            }
            return;
        }
        let (Some(change), Some(store)) = (event.change, self.parts.store.watchable()) else {
            return;
        };
        for role in self.places.roles(event.watch) {
            let note = store.note(role, &event.name, change);
            let (account, mailbox) = match role {
                Role::Accounts | Role::Journal => (None, None),
                Role::Files(account) => (Some(account), None),
                Role::Mailbox(account, name) | Role::Messages(account, name) => {
                    (Some(account), Some(Target::Mailbox(account.clone(), name.clone())))
                }
            };
            match (note, account, mailbox) {
                (Note::Nothing, ..) => {}
                (Note::Mailbox, _, Some(mailbox)) => self.gather.soon(mailbox, seen),
                (Note::MailboxDone, _, Some(mailbox)) => self.gather.now(mailbox, seen),
                (Note::Places, Some(account), _) => {
                    let due = self.moved.entry(account.clone()).or_insert_with(|| Due::new(seen));
                    due.again(seen.now);
                }
                (Note::Account | Note::Mailbox | Note::MailboxDone, Some(account), _) => {
                    self.gather.soon(Target::Account(account.clone()), seen);
                }
                (Note::Accounts, ..) | (_, None, _) => {
                    self.accounts.get_or_insert_with(|| Due::new(seen)).again(seen.now);
                }
            }
        }
    }

    /// Does what has become due.
    fn catch_up(&mut self) {
        let now = self.parts.clock.monotonic();
        if let Some(due) = self.accounts.take_if(|due| due.at() <= now) {
            self.look_for_accounts(due.after());
        }
        let ripe = |(account, due): (&Account, &Due)| (due.at() <= now).then(|| account.clone());
        let moved: Vec<Account> = self.moved.iter().filter_map(ripe).collect();
        for account in moved {
            let after = self.moved.remove(&account).map_or(self.read, Due::after);
            self.visit(account, after);
        }
        if self.rescan.deadline() <= now {
            self.rescan_some(now);
        }
        self.gather.ripen(self.parts.clock.monotonic());
    }

    /// Empties the mail server's journal if that is due; false if nothing is taken any more.
    fn empty_journal(&mut self) -> bool {
        let now = self.parts.clock.monotonic();
        let is_due = self.journal.is_some_and(|due| due.at() <= now) && self.journal_at <= now;
        let Some(journal) = self.parts.store.journal().filter(|_| is_due) else { return true };
        match journal::empty(journal, &*self.parts.sink) {
            Emptied::Whole => self.journal = None,
            Emptied::Later => self.journal_at = now + journal::RETRY,
            Emptied::Closed => return false,
        }
        true
    }

    fn rescan_some(&mut self, now: Duration) {
        let work = self.rescan.due(now);
        for account in work.accounts {
            self.visit(account, self.read);
        }
        if work.list {
            let (was_first, was_blind) = (self.rescan.is_rushing(), self.blind);
            self.blind = false;
            let accounts = self.look_for_accounts(self.read);
            if self.blind {
                self.rescan.again(now);
            } else if was_blind {
                tracing::info!("the mail store can be looked at again: looking at everything");
                self.rescan.rush(accounts);
            } else {
                self.rescan.round(accounts, now);
                self.announce |= was_first;
            }
        }
    }

    /// Watches the places of accounts, and lets all accounts there are be visited soon.
    fn watch_everything(&mut self) {
        let accounts = self.list();
        self.rescan.rush(accounts);
    }

    /// Every account there is, after their places are watched.
    fn list(&mut self) -> Vec<Account> {
        self.watch(None);
        match self.parts.store.accounts() {
            Ok(accounts) => accounts,
            Err(error) => {
                self.blind = true;
                complain(&error);
                self.places.accounts().cloned().collect()
            }
        }
    }

    /// Visits accounts that are new or gone since `after`; returns all there are.
    fn look_for_accounts(&mut self, after: Duration) -> Vec<Account> {
        let known: BTreeSet<Account> = self.places.accounts().cloned().collect();
        let present: BTreeSet<Account> = self.list().into_iter().collect();
        for account in known.symmetric_difference(&present) {
            self.visit(account.clone(), after);
        }
        present.into_iter().collect()
    }

    /// Watches all of `account`, which has changed after `after`, then reports it.
    fn visit(&mut self, account: Account, after: Duration) {
        let is_watched = self.watch(Some(&account));
        let now = self.parts.clock.monotonic();
        self.rescan.watched(&account, is_watched, now);
        self.parts.counts.unwatched.store(count(self.rescan.unwatched()), Ordering::Relaxed);
        self.gather.now(Target::Account(account), Seen { after, now });
    }

    /// Watches all directories of `owner`, or the places of accounts; false if some cannot be.
    fn watch(&mut self, owner: Option<&Account>) -> bool {
        let store = Arc::clone(&self.parts.store);
        if let (None, Some(journal)) = (owner, store.journal()) {
            let watch = Watch { path: journal.place().to_path_buf(), role: Role::Journal };
            let added = self.places.set(None, vec![watch]);
            self.note_added(added);
        }
        let Some(store) = store.watchable() else { return true };
        for _ in 0..PLAN_ROUNDS {
            let plan = match owner {
                Some(account) => store.places(account),
                None => store.account_places(),
            };
            match plan {
                Ok(plan) => {
                    let added = self.places.set(owner, plan);
                    self.note_added(added);
                    if added.fresh == 0 || added.refused > 0 {
                        return added.refused + added.failed == 0;
                    }
                }
                Err(error) => {
                    self.blind |= owner.is_none();
                    complain(&error);
                    return false;
                }
            }
        }
        true
    }

    fn note_added(&mut self, added: Added) {
        let watches = self.places.len();
        self.parts.counts.watches.store(count(watches), Ordering::Relaxed);
        if added.refused == 0 {
            return;
        }
        self.parts.counts.refused.fetch_add(count(added.refused), Ordering::Relaxed);
        if !self.limit_said {
            self.limit_said = true;
            let limit = places::kernel_limit().unwrap_or(watches);
            let advice = limit.saturating_mul(4).next_power_of_two();
            tracing::error!(
                code = "watch-limit",
                watches,
                limit,
                "no inotify watch left: accounts that cannot be watched are looked at every \
                 {UNWATCHED_RESCAN:?} instead; raise the limit with \
                 `sysctl -w fs.inotify.max_user_watches={advice}` and start again"
            );
        }
    }

    fn send(&mut self) -> Offer {
        if self.gather.has_mail() {
            let offer = self.parts.sink.offer(&self.gather.outbox());
            if offer != Offer::Taken {
                return offer;
            }
            self.gather.sent();
        }
        if std::mem::take(&mut self.announce) {
            self.parts.watching.send_replace(true);
        }
        Offer::Taken
    }
}

fn complain(error: &StoreError) {
    let error = Chain(error);
    tracing::warn!(code = "watch-unseen", %error, "cannot see what there is to watch; the next scan tries again");
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

fn change(flags: ReadFlags) -> Option<Change> {
    let is_dir = flags.contains(ReadFlags::ISDIR);
    if flags.intersects(ReadFlags::DELETE | ReadFlags::MOVED_FROM) {
        Some(if is_dir { Change::DirVanished } else { Change::Vanished })
    } else if flags.contains(ReadFlags::MOVED_TO) {
        Some(if is_dir { Change::DirAppeared } else { Change::Arrived })
    } else if flags.contains(ReadFlags::CREATE) {
        Some(if is_dir { Change::DirAppeared } else { Change::Created })
    } else if flags.contains(ReadFlags::CLOSE_WRITE) {
        Some(Change::Written)
    } else {
        None
    }
}
