//! Lost volumes, lost state, full disks, huge messages: no mail is lost, and none deleted on a
//! guess.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail, ensure};
use mailtwin_tests::{
    corpus,
    daemon::{AGENT, Node, Pair},
    dovecot::{Dovecot, Version},
    files,
    lab::Lab,
    oracle::Account,
    volume,
};

fn full_pair(lab: &Lab) -> anyhow::Result<Pair> {
    let pair = Pair::start(lab, &["u1", "u2"])?;
    for account in ["u1", "u2"] {
        let mut imap = pair.master.imap(account)?;
        imap.create("Work")?;
        for n in 0..10 {
            pair.master.deliver(account, &corpus::short(&format!("m{n}")))?;
            imap.append("Work", &corpus::short(&format!("w{n}"))).finish()?;
        }
        imap.select("Work")?;
        imap.command("UID STORE 2:4 +FLAGS (\\Seen $Junk)")?;
    }
    pair.wait_equal(lab)?;
    Ok(pair)
}

fn count(server: &Dovecot) -> anyhow::Result<usize> {
    Ok(files::messages(&server.mail_root())?.len())
}

#[test]
fn an_unmounted_volume_deletes_nothing() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mut pair = full_pair(lab)?;
        let everything = count(&pair.replica)?;
        let (mail, away) = (pair.master.mail_root(), lab.dir().join("away"));
        for stopped in [true, false] {
            if stopped {
                pair.agent.stop()?;
            }
            pair.master.stop()?;
            // The volume goes; what is left is the empty directory that it was mounted on.
            fs::rename(&mail, &away)?;
            files::make_mail_dir(&mail)?;
            if stopped {
                pair.agent.start(lab)?;
            }
            // Whatever the agent does about it, it has done once it was told to replay now.
            let _ = pair.agent.replctl(lab, &["sync", "--timeout", "5s"])?;
            lab.wait("somebody says so", || {
                let log = pair.agent.log_text(AGENT)?;
                let said = log.contains("not the mail store it was");
                Ok(if said { Ok(()) } else { Err("nothing in the log".into()) })
            })?;
            ensure!(count(&pair.replica)? == everything, "the replica keeps its mail");
            fs::remove_dir_all(&mail)?;
            fs::rename(&away, &mail)?;
            pair.master.resume(lab)?;
            if !pair.agent.daemon()?.is_running() {
                pair.agent.start(lab)?;
            }
            pair.master.deliver("u1", &corpus::short(&format!("back-{stopped}")))?;
            let mut imap = pair.master.imap("u2")?;
            imap.select("INBOX")?;
            let first = imap.uid_search("ALL")?.into_iter().min().context("a message")?;
            imap.command(&format!("UID STORE {first} +FLAGS (\\Deleted)"))?;
            imap.expunge()?;
            pair.wait_equal(lab).context("with the volume back")?;
            ensure!(count(&pair.replica)? == everything, "one came and one went");
        }
        pair.replica.expect_quiet_log()
    })
}

#[test]
fn lost_state_costs_a_rescan_and_no_mail() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mut pair = full_pair(lab)?;
        for master in [true, false] {
            let node = if master { &mut pair.agent } else { &mut pair.copy };
            node.stop()?;
            drop_what_can_be_rebuilt(node)?;
            pair.master.deliver("u1", &corpus::short(&format!("while-away-{master}")))?;
            let mut imap = pair.master.imap("u1")?;
            imap.select("Work")?;
            imap.command("UID STORE 5 +FLAGS (\\Flagged)")?;
            node.start(lab)?;
            pair.wait_equal(lab)?;
            imap.command("UID STORE 1 +FLAGS (\\Deleted)")?;
            imap.expunge()?;
            pair.wait_equal(lab).context("an expunge after the loss")?;
            pair.master.deliver("u2", &corpus::short(&format!("after-{master}")))?;
            pair.wait_equal(lab)?;
        }
        pair.replica.expect_quiet_log()
    })
}

#[test]
fn damaged_state_costs_a_rescan_and_no_mail() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mut pair = full_pair(lab)?;
        for master in [true, false] {
            let node = if master { &mut pair.agent } else { &mut pair.copy };
            node.kill()?;
            for path in files::walk(&node.state_dir())? {
                let keep = is_not_derived(&path) || path.ends_with("store.json");
                if path.is_file() && !keep {
                    let mut octets = fs::read(&path)?;
                    for octet in octets.iter_mut().skip(40).step_by(97) {
                        *octet ^= 0x55;
                    }
                    File::options().write(true).truncate(true).open(&path)?.write_all(&octets)?;
                }
            }
            pair.master.deliver("u1", &corpus::short(&format!("while-damaged-{master}")))?;
            node.start(lab)?;
            pair.wait_equal(lab).with_context(|| format!("damaged state, master {master}"))?;
        }
        pair.replica.expect_quiet_log()
    })
}

/// Name, role, keys, pins and what an admin paused: nothing can tell these again.
fn is_not_derived(path: &Path) -> bool {
    let names = ["keys", "node.json", "pins.json", "paused.json"];
    path.components().any(|part| names.iter().any(|name| part.as_os_str() == *name))
}

/// Removes a node's state but its name, role and keys, which are not derived from anything.
fn drop_what_can_be_rebuilt(node: &Node) -> anyhow::Result<()> {
    for entry in fs::read_dir(node.state_dir())? {
        let path = entry?.path();
        if is_not_derived(&path) {
            continue;
        }
        if path.is_dir() {
            fs::remove_dir_all(&path)?;
        } else {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

#[test]
fn a_full_disk_under_the_log_is_waited_out() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let state = lab.mail_dir("master-node/state")?;
        let _volume = volume::memory(&state, 24)?;
        let mut pair = Pair::start(lab, &["u1"])?;
        pair.master.deliver("u1", &corpus::short("first"))?;
        pair.wait_equal(lab)?;
        let ballast = volume::fill(&state)?;
        // Many enough for the log to need another block.
        for n in 0..300 {
            pair.master.deliver("u1", &corpus::short(&format!("full{n}")))?;
        }
        lab.wait("the agent names the full disk", || {
            let log = pair.agent.log_text(AGENT)?;
            let named = log.contains("No space left on device") && log.contains("state");
            Ok(if named { Ok(()) } else { Err(log) })
        })?;
        fs::remove_file(&ballast)?;
        pair.heal(lab).context("with room again")
    })
}

#[test]
fn a_full_disk_at_the_replica_is_waited_out() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mail = lab.mail_dir("replica/mail")?;
        let _volume = volume::memory(&mail, 24)?;
        let master = Dovecot::start(lab, "master", Version::V23)?;
        let replica = Dovecot::start(lab, "replica", Version::V23)?;
        let mut pair = Pair::around(lab, master, replica, &["u1"])?;
        pair.agent.start(lab)?;
        pair.copy.start(lab)?;
        pair.master.deliver("u1", &corpus::short("first"))?;
        pair.wait_equal(lab)?;
        let ballast = volume::fill(&mail)?;
        for n in 0..5 {
            let mut message = corpus::short(&format!("big{n}"));
            message.extend(b"0123456789abcdef\r\n".repeat(20_000));
            pair.master.deliver("u1", &message)?;
        }
        lab.wait("status tells of it", || {
            let shown = pair.agent.replctl(lab, &["status"])?;
            Ok(if shown.code == Some(1) { Ok(()) } else { Err(format!("{shown:?}")) })
        })?;
        ensure!(pair.copy.daemon()?.is_running(), "the replica daemon runs on");
        fs::remove_file(&ballast)?;
        pair.wait_equal(lab).context("with room again")
    })
}

#[test]
fn a_message_of_a_gibibyte_passes_in_little_memory() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mut pair = Pair::start(lab, &["u1"])?;
        pair.master.deliver("u1", &corpus::short("first"))?;
        pair.wait_equal(lab)?;
        let path = pair.master.maildir("u1").join("tmp/1700000000.large.host");
        let mut file = File::create(&path)?;
        file.write_all(b"Subject: large\n\n")?;
        file.set_len(1 << 30)?;
        drop(file);
        files::give_to_mail_user(&path)?;
        fs::rename(&path, pair.master.maildir("u1").join("new/1700000000.large.host"))?;
        lab.wait("it is there", || {
            let sizes = files::messages(&pair.replica.maildir("u1"))?;
            let large = |path: &PathBuf| fs::metadata(path).is_ok_and(|meta| meta.len() == 1 << 30);
            Ok(if sizes.iter().any(large) { Ok(()) } else { Err("not yet".into()) })
        })?;
        for node in [&mut pair.agent, &mut pair.copy] {
            let status = fs::read_to_string(format!("/proc/{}/status", node.daemon()?.id()))?;
            let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let peak = peak.and_then(|value| value.split_whitespace().next()?.parse::<u64>().ok());
            let Some(peak) = peak else { bail!("no VmHWM in {status}") };
            ensure!(peak < 200 << 10, "{} took {peak} KiB at its peak", node.name());
        }
        let copy = Account::read(&pair.replica, "u2")?;
        ensure!(copy.serials().is_empty(), "nobody else got it");
        Ok(())
    })
}
