//! The index under use, damage and unclean stops.

use std::os::unix::fs::FileExt;

use super::*;

fn put(index: &Index, key: &[u8], value: &[u8]) {
    let mut batch = Batch::default();
    batch.put(key, value);
    index.commit(batch).unwrap();
}

fn apply(index: &Index, key: &[u8], value: &[u8]) {
    let mut batch = Batch::default();
    batch.put(key, value);
    index.apply(batch).unwrap();
}

fn keys(index: &Index, prefix: &[u8]) -> Vec<Vec<u8>> {
    let mut keys = Vec::new();
    index
        .scan_prefix(prefix, |key, _| {
            keys.push(key.to_vec());
            ControlFlow::Continue(())
        })
        .unwrap();
    keys
}

const RECORDS: u32 = 5000;

fn key(number: u32) -> [u8; 4] {
    number.wrapping_mul(0x9e37_79b9).to_be_bytes()
}

fn fill(dir: &Path) -> Index {
    let (index, opened) = Index::open(dir).unwrap();
    assert_eq!(opened, Opened::Fresh);
    for first in (0..RECORDS).step_by(100) {
        let mut batch = Batch::default();
        for number in first..first + 100 {
            batch.put(&key(number), &[number.to_le_bytes()[0]; 80]);
        }
        index.commit(batch).unwrap();
    }
    index
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            fs::create_dir(target).unwrap();
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn keeps_what_was_committed() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("state/index");
    let (index, opened) = Index::open(&dir).unwrap();
    assert_eq!(opened, Opened::Fresh);
    put(&index, b"a1", b"x");
    put(&index, b"a2", b"y");
    put(&index, b"b1", b"z");
    let mut batch = Batch::default();
    assert!(batch.is_empty());
    batch.delete(b"a2");
    batch.put(b"a3", b"w");
    index.apply(batch).unwrap();
    assert_eq!(keys(&index, b"a"), [b"a1", b"a3"]);
    drop(index);
    let (index, opened) = Index::open(&dir).unwrap();
    assert_eq!(opened, Opened::Kept);
    assert_eq!(keys(&index, b""), [b"a1", b"a3", b"b1"]);
    assert_eq!(index.get(b"b1").unwrap().as_deref(), Some(&b"z"[..]));
    assert_eq!(index.get(b"a2").unwrap(), None);
}

#[test]
fn a_scan_stops_when_told() {
    let root = tempfile::tempdir().unwrap();
    let (index, _) = Index::open(&root.path().join("index")).unwrap();
    put(&index, b"1", b"");
    put(&index, b"2", b"");
    let mut seen = 0;
    index
        .scan_prefix(b"", |_, _| {
            seen += 1;
            ControlFlow::Break(())
        })
        .unwrap();
    assert_eq!(seen, 1);
}

#[test]
fn refuses_a_value_over_the_limit_and_goes_on() {
    let root = tempfile::tempdir().unwrap();
    let (index, _) = Index::open(&root.path().join("index")).unwrap();
    let mut batch = Batch::default();
    batch.put(b"k", b"v");
    batch.put(b"l", &vec![0; VALUE_MAX + 1]);
    assert!(matches!(index.commit(batch), Err(IndexError::TooLarge(octets)) if octets > VALUE_MAX));
    assert_eq!(index.get(b"k").unwrap(), None);
    put(&index, b"k", &vec![0; VALUE_MAX]);
}

#[test]
fn long_values_are_whole_and_leave_nothing_behind() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("index");
    let (index, _) = Index::open(&dir).unwrap();
    let long = |number: u32, octets: usize| -> Vec<u8> {
        (0..octets).map(|at| at.wrapping_mul(number as usize + 7).to_le_bytes()[1]).collect()
    };
    let apply = |number: u32, octets: usize| {
        let mut batch = Batch::default();
        batch.put(&key(number), &long(number, octets));
        index.apply(batch).unwrap();
    };
    for number in 0..200 {
        apply(number, VALUE_MAX - number as usize);
    }
    for number in 0..200 {
        let value = index.get(&key(number)).unwrap().unwrap();
        assert_eq!(value, long(number, VALUE_MAX - number as usize));
    }
    assert_eq!(fs::read_dir(dir.join("blobs")).unwrap().count(), 0, "never synced by sled");
    for number in 0..200 {
        apply(number, number as usize * 50);
    }
    let mut seen = 0;
    index
        .scan_prefix(b"", |_, value| {
            seen += value.len();
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(seen, (0..200).map(|number| number * 50).sum::<usize>());
    let mut batch = Batch::default();
    (0..200).for_each(|number| batch.delete(&key(number)));
    index.commit(batch).unwrap();
    let left = index.open.guard("read", |db| Ok(db.len())).unwrap();
    assert_eq!(left, 1, "only the record of our own");
}

#[test]
fn a_value_that_is_being_replaced_is_read_whole() {
    let root = tempfile::tempdir().unwrap();
    let (index, _) = Index::open(&root.path().join("index")).unwrap();
    let value = |turn: u8| vec![turn; 10_000 + 1000 * usize::from(turn % 7)];
    put(&index, b"k", &value(0));
    let apply = |turn: u8| {
        let mut batch = Batch::default();
        batch.put(b"k", &value(turn));
        index.apply(batch).unwrap();
    };
    std::thread::scope(|scope| {
        scope.spawn(|| (0..200).for_each(apply));
        for _ in 0..500 {
            let read = index.get(b"k").unwrap().unwrap();
            assert_eq!(read, value(read[0]));
        }
    });
}

#[test]
fn a_second_opening_is_refused_and_harms_nothing() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("index");
    let (index, _) = Index::open(&dir).unwrap();
    put(&index, b"k", b"v");
    assert!(matches!(Index::open(&dir), Err(IndexError::Held(_))));
    assert_eq!(index.get(b"k").unwrap().as_deref(), Some(&b"v"[..]));
}

#[test]
fn daemons_that_change_places_do_not_touch_each_others() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("index");
    std::thread::scope(|scope| {
        for number in 0..4_u8 {
            let dir = &dir;
            scope.spawn(move || {
                for round in 0..8_u8 {
                    let (index, opened) = Index::open(dir).unwrap();
                    assert!(!matches!(opened, Opened::Replaced { .. }), "{opened:?}");
                    put(&index, &[number, round], b"there");
                }
            });
        }
    });
    assert_eq!(keys(&Index::open(&dir).unwrap().0, b"").len(), 32);
}

#[test]
fn another_schema_is_set_aside() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("index");
    {
        let (index, _) = Index::open(&dir).unwrap();
        index.open.guard("write", |db| db.insert(OWN_KEY, b"77:")).unwrap();
    }
    let (index, opened) = Index::open(&dir).unwrap();
    let Opened::Replaced { why, aside } = opened else { panic!("{opened:?}") };
    assert!(why.contains("version"), "{why}");
    assert!(aside.join(DATA).exists());
    assert!(keys(&index, b"").is_empty());
}

#[test]
fn an_unclean_stop_is_checked_and_kept() {
    let root = tempfile::tempdir().unwrap();
    let (dir, copied) = (root.path().join("index"), root.path().join("copy"));
    let (index, _) = Index::open(&dir).unwrap();
    put(&index, b"k", b"v");
    // What a killed process leaves, and a snapshot that was never finished.
    copy(&dir, &copied);
    File::create(copied.join("snap.FFFFFFFFFFFFFFF0.generating")).unwrap();
    let (index, opened) = Index::open(&copied).unwrap();
    assert_eq!(opened, Opened::Kept);
    assert_eq!(index.get(b"k").unwrap().as_deref(), Some(&b"v"[..]));
}

#[test]
fn damage_is_set_aside_and_what_is_kept_is_whole() {
    let root = tempfile::tempdir().unwrap();
    let (base, killed) = (root.path().join("base"), root.path().join("killed"));
    let index = fill(&base);
    copy(&base, &killed);
    drop(index);
    let mut replaced = 0;
    for round in 0..60_u64 {
        let dir = root.path().join("damaged");
        let _ = fs::remove_dir_all(&dir);
        copy(if round % 2 == 0 { &killed } else { &base }, &dir);
        let file = File::options().write(true).open(dir.join(DATA)).unwrap();
        let octets = file.metadata().unwrap().len();
        let at = round.wrapping_mul(0x9e37_79b9_7f4a_7c15) % octets;
        match round % 3 {
            0 => file.set_len(at).unwrap(),
            1 => file.write_all_at(&[0xa5], at).unwrap(),
            _ => file.write_all_at(&[0; 4096], at & !4095).unwrap(),
        }
        let (index, opened) = Index::open(&dir).unwrap();
        match opened {
            Opened::Kept => whole_or_error(&index),
            Opened::Fresh => panic!("round {round}: damage taken for a new index"),
            Opened::Replaced { aside, .. } => {
                replaced += 1;
                assert!(aside.exists());
                assert!(keys(&index, b"").is_empty());
            }
        }
    }
    assert!(replaced > 20, "{replaced}");
    let kept = fs::read_dir(root.path()).unwrap().flatten();
    let aside = kept.filter(|entry| entry.file_name().to_string_lossy().contains(".damaged-"));
    assert_eq!(aside.count(), ASIDE_KEPT as usize);
}

fn whole_or_error(index: &Index) {
    for number in 0..RECORDS {
        match index.get(&key(number)) {
            Ok(value) => assert_eq!(value.expect("a record is gone")[0], number.to_le_bytes()[0]),
            Err(IndexError::Damaged(_)) => return,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn damage_found_in_use_is_repaired_at_the_next_opening() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("index");
    {
        let (index, _) = Index::open(&dir).unwrap();
        put(&index, b"k", b"v");
        let panicked: Result<(), _> = index.open.guard("read", |_| panic!("as sled does"));
        assert!(matches!(panicked, Err(IndexError::Damaged(why)) if why.contains("as sled does")));
        assert!(matches!(index.get(b"k"), Err(IndexError::Damaged(_))));
    }
    let (index, opened) = Index::open(&dir).unwrap();
    assert_eq!(opened, Opened::Kept);
    assert_eq!(index.get(b"k").unwrap().as_deref(), Some(&b"v"[..]));
}

#[test]
fn many_threads_commit_at_once() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("index");
    let (index, _) = Index::open(&dir).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4_u8 {
            let index = index.clone();
            scope.spawn(move || (0..20).for_each(|number| put(&index, &[thread, number], b"v")));
        }
    });
    assert_eq!(keys(&index, b"").len(), 80);
}

#[test]
fn what_waits_is_seen_at_once_and_written_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let (index, _) = Index::open(dir.path()).unwrap();
    put(&index, b"a1", b"old");
    put(&index, b"a2", b"gone");
    index.sync().unwrap();
    let mut batch = Batch::default();
    batch.put(b"a1", b"new");
    batch.delete(b"a2");
    batch.put(b"a3", b"more");
    index.apply(batch).unwrap();
    assert_eq!(index.get(b"a1").unwrap().unwrap(), b"new");
    assert_eq!(index.get(b"a2").unwrap(), None);
    assert_eq!(keys(&index, b"a"), [b"a1", b"a3"]);
    apply(&index, b"b", b"waits");
    assert!(!index.open.pending.lock().changes.is_empty());
    let (clock, mut tries) = (SystemClock::shared(), 0);
    while !index.open.pending.lock().changes.is_empty() {
        assert!(tries < 6000, "nobody writes it");
        clock.pause(Duration::from_millis(10));
        tries += 1;
    }
    assert_eq!(index.get(b"b").unwrap().unwrap(), b"waits");
}

#[test]
fn much_does_not_wait() {
    let dir = tempfile::tempdir().unwrap();
    let (index, _) = Index::open(dir.path()).unwrap();
    for number in 0..1000_u32 {
        apply(&index, &key(number % 4), &vec![0; VALUE_MAX]);
        let pending = index.open.pending.lock();
        assert!(pending.changes.len() <= 4);
    }
    for number in 0..5000 {
        apply(&index, &key(number), b"");
        assert!(index.open.pending.lock().changes.len() < 256);
    }
    drop(index);
    let (index, opened) = Index::open(dir.path()).unwrap();
    assert_eq!((opened, keys(&index, b"").len()), (Opened::Kept, 5000));
}
