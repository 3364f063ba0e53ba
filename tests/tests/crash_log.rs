//! Power cuts under the sync log and node state: what was said to be durable is there afterwards, and
//! no cursor points behind the log's end.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use mailtwin_agent::{
    cursor::{CursorFile, Found},
    log::{Log, Options},
};
use mailtwin_host::node::{Node, Role};
use mailtwin_logic::{
    entry::Target,
    ids::{Account, Epoch, LogSeq},
    mailbox::MailboxName,
};
use mailtwin_tests::{
    lab::Lab,
    random::{self, Random},
    volume::{Kind, PowerCut},
};

/// Pictures of a run, unless `POINTS` says otherwise.
const POINTS: u64 = 100;

/// Longest time between two pictures.
const PAUSE_MS_MAX: usize = 40;

/// Threads that append.
const APPENDERS: usize = 3;

/// Entries read at a time.
const BATCH: usize = 1000;

/// Small, so that a run goes through many.
const OPTIONS: Options = Options { segment_octets: 64 << 10, bound_octets: 64 << 20 };

/// What was said to be durable.
#[derive(Clone, Debug, Default)]
struct Promised {
    targets: Vec<Target>,
    head: u64,
    cursor: u64,
    epoch: u64,
}

/// One state directory at work.
struct Work<'a> {
    state: &'a Path,
    promised: Mutex<Promised>,
    go_on: AtomicBool,
}

#[test]
fn log_and_node_state_on_ext4_keep_what_they_promised() -> anyhow::Result<()> {
    log_on(Kind::Ext4)
}

#[test]
fn log_and_node_state_on_xfs_keep_what_they_promised() -> anyhow::Result<()> {
    log_on(Kind::Xfs)
}

fn log_on(kind: Kind) -> anyhow::Result<()> {
    Lab::run(|lab| {
        let state = lab.dir().join("disk");
        let mut disk = PowerCut::mount(kind, &state)?;
        let points = cut_power(lab, &state, &disk)?;
        disk.volume.unmount(lab)?;
        for (number, (picture, promised)) in points.into_iter().enumerate() {
            disk.resume(picture)?;
            look_at(lab, &state, &promised)
                .with_context(|| format!("power cut {number} on {kind:?}"))?;
            disk.forget(lab)?;
        }
        Ok(())
    })
}

fn cut_power(lab: &Lab, state: &Path, disk: &PowerCut) -> anyhow::Result<Vec<(PathBuf, Promised)>> {
    let (log, _) = Log::open(&state.join("log"), OPTIONS, lab.shared_clock())?;
    let go_on = AtomicBool::new(true);
    let work = Work { state, promised: Mutex::default(), go_on };
    let mut random = Random::new(random::seed(lab.clock()));
    thread::scope(|scope| {
        let mut threads = Vec::new();
        for number in 0..APPENDERS {
            let (work, log) = (&work, &log);
            threads.push(scope.spawn(move || work.append(log, number)));
        }
        threads.push(scope.spawn(|| work.keep_state(&log)));
        let mut points = Vec::new();
        for number in 0..random::number("POINTS").unwrap_or(POINTS) {
            let pause = u64::try_from(random.below(PAUSE_MS_MAX))?;
            lab.clock().pause(Duration::from_millis(pause));
            let promised = work.promised().clone();
            points.push((disk.picture(usize::try_from(number)?)?, promised));
        }
        work.go_on.store(false, Ordering::Relaxed);
        for thread in threads {
            thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        }
        Ok(points)
    })
}

impl Work<'_> {
    fn promised(&self) -> std::sync::MutexGuard<'_, Promised> {
        self.promised.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn append(&self, log: &Log, number: usize) -> anyhow::Result<()> {
        let account = Account::new(&format!("u{number}"))?;
        for serial in 0_u64.. {
            if !self.go_on.load(Ordering::Relaxed) {
                break;
            }
            let name = MailboxName::new(format!("M{serial}").as_bytes())?;
            let target = Target::Mailbox(account.clone(), name);
            let seq = log.submit_blocking(vec![target.clone()])?.wait()?;
            let mut promised = self.promised();
            promised.targets.push(target);
            promised.head = promised.head.max(seq.0);
        }
        Ok(())
    }

    /// A cursor that follows the log's published end at once, and an epoch that grows.
    fn keep_state(&self, log: &Log) -> anyhow::Result<()> {
        let mut cursor = CursorFile::open(self.state, "replica", log.id())?;
        let mut node = Node { epoch: Epoch(0), ..Node::new("mx1", Role::Master) };
        while self.go_on.load(Ordering::Relaxed) {
            let tail = *log.tail().borrow();
            cursor.reset(tail)?;
            self.promised().cursor = tail.0;
            node.epoch.0 += 1;
            node.save(self.state)?;
            self.promised().epoch = node.epoch.0;
        }
        Ok(())
    }
}

fn look_at(lab: &Lab, state: &Path, promised: &Promised) -> anyhow::Result<()> {
    let (log, recovery) = Log::open(&state.join("log"), OPTIONS, lab.shared_clock())?;
    ensure!(recovery.damaged.is_empty(), "the log is damaged: {:?}", recovery.damaged);
    let head = log.extent().head.0;
    ensure!(head >= promised.head, "the log ends at {head}; promised was {}", promised.head);
    let reader = log.reader(LogSeq(0));
    let (mut held, mut after) = (BTreeSet::new(), LogSeq(0));
    loop {
        let taken = reader.read(after, BATCH)?;
        if taken.entries.is_empty() {
            break;
        }
        after = taken.upto;
        held.extend(taken.entries.into_iter().map(|entry| entry.target));
    }
    let lost = promised.targets.iter().find(|target| !held.contains(target));
    ensure!(lost.is_none(), "an entry for {lost:?} was durable, and is gone");
    let cursor = CursorFile::open(state, "replica", log.id())?;
    let at = cursor.seq().0;
    ensure!(at >= promised.cursor, "the cursor is at {at}; promised was {}", promised.cursor);
    ensure!(at <= head, "the cursor is at {at}, and the log ends at {head}");
    ensure!(promised.cursor == 0 || *cursor.found() == Found::Kept, "{:?}", cursor.found());
    if promised.epoch > 0 {
        let epoch = Node::load_as(state, "mx1").context("node.json is whole")?.epoch.0;
        ensure!(epoch >= promised.epoch, "the epoch fell to {epoch} from {}", promised.epoch);
    }
    Ok(())
}
