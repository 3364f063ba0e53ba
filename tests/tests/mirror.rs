//! `replctl mirror`: one mail tree into another on one machine, however odd the tree.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{MetadataExt as _, symlink},
    },
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::AtomicBool,
};

use anyhow::{Context as _, ensure};
use mailtwin_tests::{
    corpus,
    daemon::{self, REPLCTL},
    dovecot::{Dovecot, Version},
    files,
    lab::Lab,
    oracle,
    process::{Launch, Output, Process},
    workload::Workload,
};
use rustix::process::Signal;

fn mirror(lab: &Lab, src: &Path, dst: &Path, more: &[&str]) -> anyhow::Result<Output> {
    let mut words: Vec<&OsStr> =
        vec!["mirror".as_ref(), src.as_os_str(), dst.as_os_str(), "--once".as_ref()];
    words.extend(more.iter().map(OsStr::new));
    daemon::replctl(lab, &words, true)
}

/// A Maildir of the mail user, with nothing in it but its three folders.
fn maildir(path: &Path) -> anyhow::Result<PathBuf> {
    for part in ["cur", "new", "tmp"] {
        files::make_mail_dir(&path.join(part))?;
    }
    Ok(path.to_path_buf())
}

/// SHA-1s of all messages of a tree, in order.
fn bodies(root: &Path) -> anyhow::Result<Vec<String>> {
    let mut sums = Vec::new();
    for path in files::messages(root)? {
        sums.push(files::sha1(&fs::read(path)?));
    }
    sums.sort();
    Ok(sums)
}

#[test]
fn a_servers_tree_is_mirrored_and_again_only_what_changed() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mut master = Dovecot::busy(lab, "master", Version::V23)?;
        let mut copy = Dovecot::start(lab, "copy", Version::V23)?;
        copy.stop()?;
        let accounts = ["u1".to_owned(), "u2".to_owned()];
        let mut workload = Workload::usual(lab, &master, &accounts);
        workload.operations /= 4;
        workload.run(lab, &AtomicBool::new(false))?;
        master.stop()?;
        let (src, dst) = (master.mail_root(), copy.mail_root());
        // A mirror keeps its own state beside the copy.
        files::give_to_mail_user(dst.parent().context("the copy's parent")?)?;
        // Scripts lie beside the Maildirs of this tree, and a mirror is of Maildirs.
        for account in &accounts {
            let _ = fs::remove_dir_all(src.join(account).join("sieve"));
            let _ = fs::remove_file(src.join(account).join(".dovecot.sieve"));
        }
        mirror(lab, &src, &dst, &[])?.expect(0)?;
        let (before_src, before_dst) = (files::fingerprint(&src)?, files::fingerprint(&dst)?);
        let again = mirror(lab, &src, &dst, &[])?.expect(0)?;
        ensure!(files::fingerprint(&src)? == before_src, "SRC changed: {again:?}");
        ensure!(files::fingerprint(&dst)? == before_dst, "a second run changed DST: {again:?}");

        master.resume(lab)?;
        master.deliver("u1", &corpus::short("later"))?;
        mirror(lab, &src, &dst, &[])?.expect(0)?;
        copy.resume(lab)?;
        oracle::wait_equal(lab, &master, &copy, &accounts)?;
        let odd = |path: &PathBuf| path.to_string_lossy().to_lowercase().contains("mailtwin/");
        let ours: Vec<PathBuf> = files::walk(&dst)?
            .into_iter()
            .filter(|path| path.strip_prefix(&dst).is_ok_and(|below| odd(&below.into())))
            .collect();
        ensure!(ours.is_empty(), "state of ours in DST: {ours:?}");
        copy.expect_quiet_log()
    })
}

#[test]
fn a_read_only_source_is_not_touched() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let src = lab.mail_dir("src")?;
        for account in ["a/Maildir", "deep/down/b"] {
            let root = maildir(&src.join(account))?;
            let sub = maildir(&root.join(".Work"))?;
            for (number, (name, octets)) in corpus::nasty().into_iter().enumerate() {
                let into = if number % 2 == 0 { &root } else { &sub };
                let place = if number % 3 == 0 { "new" } else { "cur" };
                files::write_mail(
                    &into.join(place).join(format!("1700000000.{name}.host")),
                    octets,
                )?;
            }
        }
        let before = files::fingerprint(&src)?;
        let dst = lab.mail_dir("destination")?.join("dst");
        mirror(lab, &src, &dst, &["--read-only-source"])?.expect(0)?;
        ensure!(files::fingerprint(&src)? == before, "SRC changed");
        ensure!(bodies(&src)? == bodies(&dst)?, "bodies differ");
        mirror(lab, &src, &dst, &["--read-only-source"])?.expect(0)?;
        ensure!(files::fingerprint(&src)? == before, "SRC changed the second time");
        ensure!(bodies(&src)? == bodies(&dst)?, "bodies differ the second time");
        Ok(())
    })
}

#[test]
fn nothing_odd_in_a_tree_stops_the_rest() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let src = lab.mail_dir("src")?;
        let secret = lab.dir().join("secret");
        files::write(&secret, "must not be copied")?;
        files::chmod(&secret, 0o644)?;
        let root = maildir(&src.join("Maildir"))?;
        let good = plant_oddities(&root, &secret)?;
        let dst = lab.mail_dir("destination")?.join("dst");
        let output = mirror(lab, &src, &dst, &[])?;
        ensure!(matches!(output.code, Some(0 | 1)), "ends by itself: {output:?}");
        let there = bodies(&dst)?;
        for (name, sum) in &good {
            ensure!(there.contains(sum), "{name} is not in the copy: {output:?}");
        }
        let once = |sum: &String| there.iter().filter(|other| *other == sum).count() == 1;
        ensure!(good.iter().all(|(_, sum)| once(sum)), "a message is there twice");
        for path in files::walk(&dst)? {
            let meta = fs::symlink_metadata(&path)?;
            ensure!(meta.is_dir() || meta.is_file(), "{} is no file", path.display());
            let octets = if meta.is_file() { fs::read(&path)? } else { Vec::new() };
            ensure!(!octets.starts_with(b"must not"), "{} holds the secret", path.display());
        }
        Ok(())
    })
}

/// Puts everything into a Maildir that has no business there; returns names and SHA-1s of the
/// messages that must arrive all the same.
fn plant_oddities(root: &Path, secret: &Path) -> anyhow::Result<Vec<(String, String)>> {
    let cur = root.join("cur");
    let mut good = Vec::new();
    let mut plant = |dir: &Path, name: &[u8], octets: &[u8]| -> anyhow::Result<()> {
        files::write_mail(&dir.join("planted"), octets)?;
        fs::rename(dir.join("planted"), dir.join(OsStr::from_bytes(name)))
            .with_context(|| format!("rename to {}", name.escape_ascii()))?;
        good.push((name.escape_ascii().to_string(), files::sha1(octets)));
        Ok(())
    };
    for (name, octets) in corpus::nasty() {
        plant(&cur, format!("1700000001.{name}.host:2,S").as_bytes(), &octets)?;
    }
    plant(&cur, b"1700000002.no-info.host", b"Subject: no info\n\n1")?;
    plant(&cur, b"1700000003.unsorted.host:2,TSRFD", b"Subject: unsorted\n\n2")?;
    plant(&cur, b"1700000004.unknown.host:2,PXYZ", b"Subject: unknown flags\n\n3")?;
    plant(&cur, b"plain", b"Subject: plain name\n\n4")?;
    plant(&cur, &[b"1700000005.".as_slice(), &[b'n'; 240], b":2,S"].concat(), b"long\n\n5")?;
    let sub = maildir(&root.join(".R&-D '\"~ sub"))?;
    plant(&sub.join("new"), b"1700000006.sub.host", b"Subject: odd mailbox\n\n6")?;
    let bad_utf7 = maildir(&root.join(".&not-utf7-at-all"))?;
    plant(&bad_utf7.join("cur"), b"1700000007.u.host:2,", b"Subject: bad UTF-7\n\n7")?;

    // From here on, what may be left out, but must do no harm.
    let odd = |name: &[u8]| cur.join(OsStr::from_bytes(name));
    files::write_mail(&odd(b"1700000010.new\nline.host:2,S"), "Subject: newline in the name\n\n")?;
    files::write_mail(&odd(b"1700000011.bad\xff\xfe.host:2,S"), "Subject: no UTF-8\n\n")?;
    files::write_mail(&odd(b"1700000012.ctl\x01\x1b[31m.host:2,"), "Subject: control\n\n")?;
    files::write_mail(&odd(b"1700000013.twice.host:2,S"), "Subject: twice, cur\n\n")?;
    files::write_mail(&root.join("new/1700000013.twice.host"), "Subject: twice, new\n\n")?;
    files::make_mail_dir(&odd(b"1700000014.directory.host:2,S"))?;
    symlink(secret, odd(b"1700000015.link.host:2,S"))?;
    symlink(secret.parent().context("a parent")?, root.join(".linked"))?;
    symlink("/dev/zero", odd(b"1700000016.zero.host:2,S"))?;
    let made = Command::new("mkfifo").arg(odd(b"1700000017.fifo.host:2,S")).status()?;
    ensure!(made.success(), "mkfifo: {made}");
    let garbled = maildir(&root.join(".Garbled"))?;
    for name in ["plain", "1700000002.no-info.host"] {
        files::write_mail(&garbled.join("cur").join(name), format!("Subject: {name} again\n\n"))?;
    }
    files::write_mail(
        &garbled.join("dovecot-uidlist"),
        b"3 V1700000000 N9 Gnothex\n5 :plain\n4 :1700000002.no-info.host\n\0\xc3garbage\n7 :pla",
    )?;
    files::write_mail(&garbled.join("dovecot-keywords"), "0 a\n0 b\n99 c\nx\n")?;
    Ok(good)
}

#[test]
fn it_follows_until_it_is_told_to_stop() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let src = lab.mail_dir("src")?;
        let root = maildir(&src.join("Maildir"))?;
        files::write_mail(&root.join("new/1700000000.first.host"), corpus::short("first"))?;
        let dst = lab.mail_dir("destination")?.join("dst");
        let mut process = Process::start(
            lab,
            &Launch {
                name: "replctl mirror".into(),
                command: vec![
                    daemon::programs(lab)?.join(REPLCTL).into(),
                    "mirror".into(),
                    src.clone().into(),
                    dst.clone().into(),
                ],
                as_mail_user: true,
                log: lab.dir().join("mirror.log"),
            },
        )?;
        for (number, name) in ["second", "third"].into_iter().enumerate() {
            lab.wait("the copy is complete", || {
                ensure!(process.is_running(), "mirror ended");
                let there = if dst.exists() { bodies(&dst)?.len() } else { 0 };
                Ok(if there == number + 1 { Ok(()) } else { Err(format!("{there} messages")) })
            })?;
            let path = root.join(format!("new/170000000{number}.{name}.host"));
            files::write_mail(&path, corpus::short(name))?;
        }
        lab.wait("the last one is there", || {
            Ok(if bodies(&dst)? == bodies(&src)? { Ok(()) } else { Err("not yet".into()) })
        })?;
        process.signal(Signal::INT)?;
        let status = process.ended()?;
        ensure!(status.success(), "mirror ended with {status}");
        Ok(())
    })
}

#[test]
fn an_emptied_source_empties_nothing() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let src = lab.mail_dir("src")?;
        let root = maildir(&src.join("Maildir"))?;
        for n in 0..20 {
            let path = root.join(format!("cur/1700000000.m{n}.host:2,S"));
            files::write_mail(&path, corpus::short(&format!("m{n}")))?;
        }
        let dst = lab.mail_dir("destination")?.join("dst");
        mirror(lab, &src, &dst, &[])?.expect(0)?;
        let inode = fs::metadata(&dst)?.ino();
        fs::rename(&src, lab.dir().join("away"))?;
        let output = mirror(lab, &src, &dst, &[])?;
        ensure!(output.code != Some(0), "a missing source: {output:?}");
        ensure!(output.stderr.contains("src"), "it is named: {output:?}");
        lab.mail_dir("src")?;
        let output = mirror(lab, &src, &dst, &[])?;
        ensure!(output.code != Some(0), "an empty source: {output:?}");
        maildir(&root)?;
        let output = mirror(lab, &src, &dst, &[])?;
        ensure!(output.code != Some(0), "another source: {output:?}");
        ensure!(bodies(&dst)?.len() == 20, "the copy keeps its mail");
        ensure!(fs::metadata(&dst)?.ino() == inode, "the copy was not moved");
        fs::remove_dir_all(&src)?;
        fs::rename(lab.dir().join("away"), &src)?;
        fs::remove_file(root.join("cur/1700000000.m3.host:2,S"))?;
        mirror(lab, &src, &dst, &[])?.expect(0)?;
        ensure!(bodies(&dst)?.len() == 19, "what is really gone, goes");
        Ok(())
    })
}
