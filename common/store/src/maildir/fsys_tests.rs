//! Directories and links that lead in and out of them.

use std::{
    fs::{self, File},
    os::unix::fs::symlink,
    sync::atomic::AtomicU32,
    thread,
};

use super::*;

#[test]
fn links_that_lead_out_are_absent() {
    let (inside, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    symlink(outside.path(), inside.path().join("out")).unwrap();
    symlink("here", inside.path().join("in")).unwrap();
    fs::create_dir(inside.path().join("here")).unwrap();
    File::create(outside.path().join("secret")).unwrap();
    symlink(outside.path().join("secret"), inside.path().join("file")).unwrap();
    let dir = Dir::open(inside.path()).unwrap().unwrap();
    assert!(dir.beneath(Path::new("out")).unwrap().is_none());
    assert!(dir.beneath(Path::new("../x")).unwrap().is_none());
    assert!(dir.beneath(Path::new("in")).unwrap().is_some());
    assert!(dir.sub(b"in").unwrap().is_none());
    assert!(dir.read(b"file").unwrap().is_none());
}

#[test]
fn young_marks_do_not_hold() {
    let root = tempfile::tempdir().unwrap();
    let dir = Dir::open(root.path()).unwrap().unwrap();
    File::create(root.path().join("f")).unwrap();
    let young = dir.mark(b"f", 0).unwrap();
    assert!(!young.holds(&young));
    let old = dir.mark(b"f", u64::MAX).unwrap();
    assert!(old.holds(&young) && !old.unsettled().holds(&old));
    let absent = dir.mark(b"none", 0).unwrap();
    assert!(absent.holds(&absent) && !absent.holds(&old));
}

#[test]
fn without_openat2_a_link_is_an_error_and_nothing_else_changes() {
    let (inside, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::create_dir_all(inside.path().join("a/b")).unwrap();
    fs::create_dir(outside.path().join("b")).unwrap();
    symlink(outside.path(), inside.path().join("out")).unwrap();
    File::create(inside.path().join("file")).unwrap();
    let dir = Dir::open(inside.path()).unwrap().unwrap();
    for there in [".", "a", "a/b", "./a/./b"] {
        let found = dir.step_by_step(Path::new(there)).unwrap().unwrap();
        assert_eq!(
            found.path().canonicalize().unwrap(),
            inside.path().join(there).canonicalize().unwrap()
        );
    }
    for absent in ["none", "a/none/b", "file", "file/b", "..", "a/../a", "/"] {
        assert!(dir.step_by_step(Path::new(absent)).unwrap().is_none(), "{absent}");
    }
    for link in ["out", "out/b"] {
        let error = dir.step_by_step(Path::new(link)).unwrap_err();
        assert!(crate::maildir::engine::describe(&error).contains("Linux 5.6"), "{error}");
    }
}

#[test]
fn a_name_that_is_a_path_is_not_in_a_directory() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("a/b")).unwrap();
    let dir = Dir::open(&root.path().join("a")).unwrap().unwrap();
    assert!(dir.sub(b"b").unwrap().is_some());
    for path in [&b".."[..], b"../a", b"b/../b", b"/"] {
        assert!(dir.sub(path).unwrap().is_none(), "{}", path.escape_ascii());
    }
}

#[test]
fn a_fifo_in_place_of_a_file_keeps_nobody_waiting() {
    let root = tempfile::tempdir().unwrap();
    let fifo = root.path().join("fifo");
    let made = std::process::Command::new("mkfifo").arg(&fifo).status().unwrap();
    assert!(made.success());
    let dir = Dir::open(root.path()).unwrap().unwrap();
    assert!(dir.append(b"fifo").is_err());
    let _reader = fs::OpenOptions::new().read(true).write(true).open(&fifo).unwrap();
    assert!(matches!(dir.append(b"fifo"), Err(StoreError::Corrupt { .. })));
}

/// Somebody puts a link that leads out in place of a directory, and takes it away again, as fast as
/// they can, while files are made in it.
#[test]
fn no_swap_of_directory_and_link_leads_out() {
    let (inside, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::create_dir_all(inside.path().join("a/b")).unwrap();
    fs::create_dir(outside.path().join("b")).unwrap();
    symlink(outside.path(), inside.path().join("link")).unwrap();
    let dir = Dir::open(inside.path()).unwrap().unwrap();
    let owner = dir.owner().unwrap();
    let (done, swaps) = (AtomicBool::new(false), AtomicU32::new(0));
    let swap = || {
        let flags = RenameFlags::EXCHANGE;
        rustix::fs::renameat_with(&dir.fd, "a", &dir.fd, "link", flags).unwrap();
        swaps.fetch_add(1, Ordering::Relaxed);
    };
    let write = |walk: &dyn Fn(&Path) -> Result<Option<Dir>, StoreError>, round: usize| {
        let name = format!("file{round}").into_bytes();
        if let Ok(Some(found)) = walk(Path::new("a/b")) {
            found.create(&name, owner).unwrap();
            return 1;
        }
        0
    };
    let made = thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                swap();
            }
        });
        let (mut made, mut round) = (0, 0);
        // Until both were seen often enough.
        while made < 200 || swaps.load(Ordering::Relaxed) < 2000 {
            made += write(&|path| dir.beneath(path), round);
            made += write(&|path| dir.step_by_step(path), round + 1);
            round += 2;
        }
        done.store(true, Ordering::Relaxed);
        made
    });
    if fs::symlink_metadata(inside.path().join("a")).unwrap().is_symlink() {
        swap();
    }
    assert_eq!(fs::read_dir(inside.path().join("a/b")).unwrap().count(), made);
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    assert_eq!(fs::read_dir(outside.path().join("b")).unwrap().count(), 0);
}
