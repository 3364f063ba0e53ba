//! The log as a whole: order, coalescing, recovery, full and failing disks, retention.

use std::{
    fs,
    io::{self, ErrorKind},
    os::unix::fs::FileExt,
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use mailtwin_disk::{append::Medium, clock::SystemClock};
use mailtwin_logic::{
    cursor::{Claim, Cursor},
    ids::Account,
};

use super::*;

const SMALL: Options = Options { segment_octets: 400, bound_octets: 1 << 20 };

fn account(number: u64) -> Target {
    Target::Account(Account::new(&format!("user{number:04}")).unwrap())
}

fn open(dir: &Path, options: Options) -> (Log, Recovery) {
    Log::open(dir, options, SystemClock::shared()).unwrap()
}

fn append(log: &Log, target: Target) -> LogSeq {
    log.submit(vec![target]).unwrap().wait().unwrap()
}

fn append_all(log: &Log, numbers: std::ops::Range<u64>) {
    for number in numbers {
        append(log, account(number));
    }
}

fn read(log: &Log, after: LogSeq, max: usize) -> Result<Vec<Entry>, LogError> {
    log.reader(LogSeq(0)).read(after, max).map(|taken| taken.entries)
}

fn read_all(log: &Log) -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut after = LogSeq(log.extent().oldest.0 - 1);
    loop {
        let batch = read(log, after, 7).unwrap();
        let Some(last) = batch.last() else { return entries };
        after = last.seq;
        entries.extend(batch);
    }
}

fn targets(log: &Log) -> Vec<Target> {
    read_all(log).into_iter().map(|entry| entry.target).collect()
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    segment::list(dir).unwrap()
}

#[test]
fn entries_are_there_in_order_also_after_reopening() {
    let root = tempfile::tempdir().unwrap();
    let (log, recovery) = open(root.path(), SMALL);
    assert!(recovery.fresh);
    append_all(&log, 0..50);
    let expected: Vec<Target> = (0..50).map(account).collect();
    assert_eq!(targets(&log), expected);
    assert_eq!(*log.tail().borrow(), LogSeq(50));
    let id = log.id();
    drop(log);
    assert!(segments(root.path()).len() > 3);
    let (log, recovery) = open(root.path(), SMALL);
    assert_eq!((recovery.id, recovery.fresh, recovery.head), (id, false, LogSeq(50)));
    assert_eq!((recovery.cut_octets, recovery.damaged.len()), (0, 0));
    assert_eq!(append(&log, Target::Store), LogSeq(51));
    let entries = read_all(&log);
    assert!(entries.iter().zip(1..).all(|(entry, seq)| entry.seq == LogSeq(seq)));
    assert_eq!(entries.len(), 51);
}

#[test]
fn a_clone_keeps_it_open_and_a_second_log_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let (log, _) = open(root.path(), SMALL);
    let clone = log.clone();
    drop(log);
    append(&clone, Target::Store);
    let second = Log::open(root.path(), SMALL, SystemClock::shared());
    let pid = std::process::id().to_string();
    assert!(second.unwrap_err().to_string().contains(&pid));
}

#[test]
fn only_what_nobody_has_taken_is_coalesced() {
    let root = tempfile::tempdir().unwrap();
    let (log, _) = open(root.path(), SMALL);
    let both = vec![account(1), account(2), account(1)];
    assert_eq!(log.submit(both.clone()).unwrap().wait().unwrap(), LogSeq(2));
    assert_eq!(log.submit(both).unwrap().wait().unwrap(), LogSeq(2));
    assert_eq!(log.counts().coalesced, 4);
    assert_eq!(read(&log, LogSeq(0), 1).unwrap().len(), 1);
    append(&log, account(2));
    append(&log, account(1));
    assert_eq!(targets(&log), [account(1), account(2), account(1)]);
    log.reader(LogSeq(3));
    append(&log, account(1));
    assert_eq!(log.extent().head, LogSeq(4));
}

#[test]
fn the_age_of_what_nobody_has_read_is_known_and_asking_takes_nothing() {
    let root = tempfile::tempdir().unwrap();
    let (log, _) = open(root.path(), SMALL);
    append_all(&log, 0..50);
    let entries = read_all(&log);
    drop(log);
    // From disk after a restart, then from memory.
    let (log, _) = open(root.path(), SMALL);
    append_all(&log, 50..52);
    for entry in &entries {
        let before = LogSeq(entry.seq.0 - 1);
        assert_eq!(log.first_at(before).unwrap(), Some(entry.at), "{entry:?}");
    }
    assert!(log.first_at(LogSeq(51)).unwrap().is_some());
    assert_eq!(log.first_at(LogSeq(52)).unwrap(), None);
    assert_eq!(append(&log, account(51)), LogSeq(52), "nobody has taken it");
    // Of what has left the log, the oldest that is still there stands for it.
    log.trim(LogSeq(30)).unwrap();
    let oldest = log.extent().oldest;
    assert!(oldest > LogSeq(1));
    let first = entries.iter().find(|entry| entry.seq == oldest).unwrap();
    assert_eq!(log.first_at(LogSeq(0)).unwrap(), Some(first.at));
}

#[test]
fn what_an_earlier_run_logged_covers_nothing() {
    let root = tempfile::tempdir().unwrap();
    let (log, _) = open(root.path(), SMALL);
    append(&log, account(1));
    drop(log);
    let (log, _) = open(root.path(), SMALL);
    append(&log, account(1));
    assert_eq!(targets(&log), [account(1), account(1)]);
}

#[test]
fn a_tail_torn_anywhere_is_cut_and_its_positions_are_not_used_again() {
    let root = tempfile::tempdir().unwrap();
    let options = Options { segment_octets: 1 << 20, ..SMALL };
    let (log, _) = open(root.path(), options);
    append_all(&log, 0..4);
    drop(log);
    let path = segments(root.path()).pop().unwrap();
    let whole = fs::read(&path).unwrap();
    let record = (whole.len() - segment::HEADER_OCTETS) / 4;
    for keep in whole.len() - record + 1..whole.len() {
        fs::remove_dir_all(root.path()).unwrap();
        fs::create_dir(root.path()).unwrap();
        put(&path, &whole[..keep]);
        let (log, recovery) = open(root.path(), options);
        assert_eq!((recovery.head, recovery.damaged.len()), (LogSeq(3), 0), "{keep}");
        assert_eq!(recovery.cut_octets, (keep + record - whole.len()) as u64);
        assert!(append(&log, account(9)) > LogSeq(4));
        assert_eq!(targets(&log), [account(0), account(1), account(2), account(9)]);
        drop(log);
        let (log, recovery) = open(root.path(), options);
        assert_eq!((recovery.cut_octets, recovery.damaged.len()), (0, 0));
        assert_eq!(targets(&log).len(), 4);
    }
}

fn put(path: &Path, octets: &[u8]) {
    fs::File::create(path).unwrap().write_all_at(octets, 0).unwrap();
}

#[test]
fn a_segment_that_was_just_being_made_is_forgotten() {
    let root = tempfile::tempdir().unwrap();
    let (log, _) = open(root.path(), SMALL);
    append(&log, account(1));
    drop(log);
    for octets in [&[][..], b"MTWNLOG\n\x01", &[0; segment::HEADER_OCTETS]] {
        put(&segment::path(root.path(), LogSeq(2)), octets);
        let (log, recovery) = open(root.path(), SMALL);
        assert_eq!((recovery.head, recovery.damaged.len()), (LogSeq(1), 0));
        assert_eq!(log.extent().head, LogSeq(1));
    }
}

#[test]
fn a_bad_record_in_the_middle_is_set_aside_and_everything_is_looked_at() {
    let root = tempfile::tempdir().unwrap();
    for (which, at) in [(0, 60), (1, 3), (1, 70), (usize::MAX, 60)] {
        fs::remove_dir_all(root.path()).unwrap();
        let (log, _) = open(root.path(), SMALL);
        append_all(&log, 0..35);
        let id = log.id();
        drop(log);
        let paths = segments(root.path());
        let path = &paths[which.min(paths.len() - 1)];
        let file = fs::File::options().read(true).write(true).open(path).unwrap();
        let mut octet = [0];
        file.read_exact_at(&mut octet, at).unwrap();
        file.write_all_at(&[octet[0] ^ 0x40], at).unwrap();
        let (log, recovery) = open(root.path(), SMALL);
        assert_eq!((recovery.id, recovery.fresh), (id, false));
        assert_eq!(recovery.damaged.len(), 1, "{path:?}");
        assert!(recovery.damaged[0].aside.exists() && !path.exists());
        let targets = targets(&log);
        assert!(targets.len() > 20 && targets.len() < 35, "{}", targets.len());
        assert_eq!(targets.last(), Some(&Target::Store));
        assert!(log.extent().head > LogSeq(35), "positions are not used twice");
        drop(log);
        assert!(open(root.path(), SMALL).1.damaged.is_empty());
    }
}

#[test]
fn damage_found_while_reading_is_reported_and_made_up_for() {
    let root = tempfile::tempdir().unwrap();
    let (log, _) = open(root.path(), SMALL);
    append_all(&log, 0..35);
    drop(log);
    let (log, _) = open(root.path(), SMALL);
    let path = segments(root.path())[1].clone();
    put(&path, &[0; 300]);
    let mut after = LogSeq(0);
    let (mut seen, mut damaged) = (Vec::new(), 0);
    while !seen.contains(&Target::Store) {
        match read(&log, after, 100) {
            Ok(entries) => {
                after = entries.last().map_or(after, |entry| entry.seq);
                seen.extend(entries.into_iter().map(|entry| entry.target));
            }
            Err(LogError::Damaged { path: bad, .. }) => {
                assert_eq!(bad, path);
                damaged += 1;
                // The repair goes through the queue, and this one behind it.
                append(&log, account(99));
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(damaged > 0 && !path.exists());
    assert!(seen.len() > 20 && seen.contains(&account(34)));
}

#[test]
fn a_newer_format_is_refused_and_left_alone() {
    let root = tempfile::tempdir().unwrap();
    let (log, _) = open(root.path(), SMALL);
    append(&log, account(1));
    drop(log);
    let path = segments(root.path()).pop().unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(&[2], 8).unwrap();
    let error = Log::open(root.path(), SMALL, SystemClock::shared()).unwrap_err();
    assert!(matches!(error, LogError::Newer { .. }), "{error}");
    assert!(path.exists());
}

#[test]
fn segments_go_when_all_of_them_is_passed() {
    let root = tempfile::tempdir().unwrap();
    let (log, _) = open(root.path(), SMALL);
    append_all(&log, 0..50);
    log.trim(LogSeq(20)).unwrap();
    let oldest = log.extent().oldest;
    assert!(oldest > LogSeq(1) && oldest <= LogSeq(21), "{oldest}");
    log.trim(LogSeq(50)).unwrap();
    assert_eq!(segments(root.path()).len(), 1);
    assert!(matches!(read(&log, LogSeq(0), 1), Err(LogError::Gone { .. })));
}

#[test]
fn the_bound_holds_and_whoever_is_behind_it_loses_its_claim() {
    let root = tempfile::tempdir().unwrap();
    let options = Options { segment_octets: 400, bound_octets: 2000 };
    let (log, _) = open(root.path(), options);
    let cursor = Cursor { log: log.id(), seq: LogSeq(0) };
    assert_eq!(log.extent().claim(cursor), Claim::Ok);
    append_all(&log, 0..54);
    assert_eq!(log.extent().claim(cursor), Claim::AtRisk);
    append_all(&log, 100..300);
    let extent = log.extent();
    assert!(extent.octets <= 2000 && log.counts().dropped_segments > 0);
    assert_eq!(extent.claim(cursor), Claim::Lost);
    assert_eq!(extent.claim(Cursor { seq: extent.head, ..cursor }), Claim::Ok);
    let on_disk: u64 =
        segments(root.path()).iter().map(|path| fs::metadata(path).unwrap().len()).sum();
    assert!(on_disk <= 2000, "{on_disk}");
    assert_eq!(targets(&log).last(), Some(&account(299)));
}

#[test]
fn lagging_readers_read_old_segments_and_live_ones_memory() {
    let root = tempfile::tempdir().unwrap();
    let options = Options { segment_octets: 32 << 10, bound_octets: 1 << 30 };
    let (log, _) = open(root.path(), options);
    let many: Vec<Target> = (0..9000).map(account).collect();
    log.submit(many.clone()).unwrap().wait().unwrap();
    assert_eq!(targets(&log), many);
    fs::remove_file(&segments(root.path())[0]).unwrap();
    assert_eq!(read(&log, LogSeq(8990), 100).unwrap().len(), 10);
    assert!(matches!(read(&log, LogSeq(0), 1), Err(LogError::Gone { .. })));
}

/// A disk that fails as told, and remembers what was synced.
#[derive(Debug, Default)]
struct Faults {
    write: Mutex<Option<ErrorKind>>,
    sync: Mutex<(u32, Option<ErrorKind>)>,
    created: Mutex<u32>,
}

#[derive(Clone, Debug)]
struct FaultyDisk(Arc<Faults>);

#[derive(Debug)]
struct FaultyFile(Box<dyn Medium>, Arc<Faults>, bool);

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap()
}

impl Disk for FaultyDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn Medium>> {
        *locked(&self.0.created) += 1;
        let file = RealDisk.create(path)?;
        Ok(Box::new(FaultyFile(file, Arc::clone(&self.0), false)))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn Medium>> {
        let file = RealDisk.open(path)?;
        Ok(Box::new(FaultyFile(file, Arc::clone(&self.0), false)))
    }
}

impl Medium for FaultyFile {
    fn write_at(&mut self, octets: &[u8], at: u64) -> io::Result<()> {
        if let Some(kind) = *locked(&self.1.write) {
            // As a full disk does: some of it is written.
            self.0.write_at(&octets[..octets.len() / 2], at)?;
            return Err(kind.into());
        }
        self.0.write_at(octets, at)
    }

    fn sync(&mut self) -> io::Result<()> {
        assert!(!self.2, "a file is never synced again after a failure");
        let mut fault = locked(&self.1.sync);
        if let (left @ 1.., Some(kind)) = *fault {
            fault.0 = left - 1;
            self.2 = true;
            return Err(kind.into());
        }
        self.0.sync()
    }

    fn truncate(&mut self, octets: u64) -> io::Result<()> {
        self.0.truncate(octets)
    }
}

fn open_faulty(dir: &Path) -> (Log, Arc<Faults>) {
    let faults = Arc::new(Faults::default());
    let disk = Arc::new(FaultyDisk(Arc::clone(&faults)));
    let (log, _) = Log::open_on(disk, dir, SMALL, SystemClock::shared()).unwrap();
    (log, faults)
}

fn wait_until(what: &str, mut is: impl FnMut() -> bool) {
    let clock = SystemClock::shared();
    let deadline = clock.monotonic() + Duration::from_secs(20);
    while !is() {
        assert!(clock.monotonic() < deadline, "{what}");
        clock.pause(Duration::from_millis(2));
    }
}

#[test]
fn a_full_disk_is_counted_said_and_waited_for() {
    let root = tempfile::tempdir().unwrap();
    let (log, faults) = open_faulty(root.path());
    append(&log, account(1));
    *locked(&faults.write) = Some(ErrorKind::StorageFull);
    let ticket = log.submit(vec![account(2)]).unwrap();
    wait_until("errors are counted", || log.counts().append_errors > 1);
    assert!(matches!(&*log.health().borrow(), Health::Failing(why) if why.contains("write")));
    assert_eq!(*log.tail().borrow(), LogSeq(1), "nothing is published that is not durable");
    *locked(&faults.write) = None;
    assert_eq!(ticket.wait().unwrap(), LogSeq(2));
    assert_eq!(*log.health().borrow(), Health::Good);
    drop(log);
    let (log, recovery) = open(root.path(), SMALL);
    assert_eq!((recovery.cut_octets, targets(&log)), (0, vec![account(1), account(2)]));
}

#[test]
fn a_stop_does_not_wait_for_a_full_disk() {
    let root = tempfile::tempdir().unwrap();
    let (log, faults) = open_faulty(root.path());
    *locked(&faults.write) = Some(ErrorKind::StorageFull);
    let ticket = log.submit(vec![account(2)]).unwrap();
    wait_until("it fails", || log.counts().append_errors > 0);
    drop(log);
    assert!(matches!(ticket.wait(), Err(LogError::Closed)));
}

#[test]
fn readers_do_not_wait_for_the_disk_and_all_others_do() {
    let root = tempfile::tempdir().unwrap();
    let (log, faults) = open_faulty(root.path());
    append(&log, account(1));
    let disk = locked(&faults.sync);
    let ticket = log.submit(vec![account(2)]).unwrap();
    wait_until("it is shown", || *log.written().borrow() == LogSeq(2));
    let entries = read(&log, LogSeq(1), 9).unwrap();
    assert_eq!(entries.iter().map(|entry| &entry.target).collect::<Vec<_>>(), [&account(2)]);
    assert_eq!((*log.tail().borrow(), log.extent().head), (LogSeq(1), LogSeq(1)));
    drop(disk);
    assert_eq!(ticket.wait().unwrap(), LogSeq(2));
    assert_eq!((*log.tail().borrow(), log.extent().head), (LogSeq(2), LogSeq(2)));
}

#[test]
fn after_a_failed_sync_entries_go_into_a_new_segment() {
    let root = tempfile::tempdir().unwrap();
    for before in [0, 3] {
        fs::remove_dir_all(root.path()).unwrap();
        let (log, faults) = open_faulty(root.path());
        append_all(&log, 0..before);
        let created = *locked(&faults.created);
        *locked(&faults.sync) = (1, Some(ErrorKind::Other));
        append(&log, account(50));
        append(&log, account(51));
        assert!(*locked(&faults.created) > created);
        assert_eq!(*log.health().borrow(), Health::Good);
        let expected: Vec<Target> = (0..before).chain([50, 51]).map(account).collect();
        assert_eq!(targets(&log), expected);
        drop(log);
        let (log, recovery) = open(root.path(), SMALL);
        assert!(recovery.damaged.is_empty(), "{recovery:?}");
        assert_eq!(targets(&log), expected);
    }
}

#[test]
fn a_disk_that_never_syncs_ends_the_writer() {
    let root = tempfile::tempdir().unwrap();
    let (log, faults) = open_faulty(root.path());
    append(&log, account(1));
    *locked(&faults.sync) = (u32::MAX, Some(ErrorKind::Other));
    let ticket = log.submit(vec![account(2)]).unwrap();
    assert!(matches!(ticket.wait(), Err(LogError::Closed)));
    assert!(matches!(&*log.health().borrow(), Health::Stopped(_)));
    assert_eq!(log.counts().append_errors, u64::from(SYNC_FAILURES_MAX));
    wait_until("the log is closed", || {
        matches!(log.submit(vec![account(3)]), Err(LogError::Closed))
    });
    drop(log);
    let (log, _) = open(root.path(), SMALL);
    assert!(targets(&log).contains(&account(1)));
}
