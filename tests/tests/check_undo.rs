//! `replctl check --undo`: what a repair replaced or took away comes back, beside what is there now.

use std::{ffi::OsStr, fs, path::Path};

use anyhow::{Context as _, ensure};
use mailtwin_tests::{
    check::{check, filled, flip, message},
    corpus,
    daemon::{self, Pair},
    files,
    lab::Lab,
    oracle::Account,
};

/// Damages a message on each side, adds one to the replica, and has all of it repaired; returns the
/// repair's number.
fn repaired(lab: &Lab, pair: &Pair) -> anyhow::Result<String> {
    flip(&message(&pair.master, 2)?)?;
    flip(&message(&pair.replica, 3)?)?;
    let mut imap = pair.replica.imap("u1")?;
    imap.append("Work", &corpus::short("stranger")).finish()?;
    imap.logout()?;
    let file = lab.mail_dir("plans")?.join("plan.json");
    let file = file.to_str().context("a path")?;
    let (code, told, report) = check(lab, pair, &["--level", "deep", "--plan", file])?;
    ensure!(code == 1 && report["undo"].is_null(), "a plan repairs nothing: {report}");
    ensure!(told.contains(&"extra replica Work 7".to_owned()), "{told:?}");
    let plan = fs::read_to_string(file)?.replace(r#""repair": "none""#, r#""repair": "bury""#);
    files::write_mail(Path::new(file), plan)?;
    let (code, _, report) = check(lab, pair, &["--level", "deep", "--apply", file])?;
    ensure!(code == 0, "{report}");
    Ok(report["undo"].as_u64().context("a number to undo it by")?.to_string())
}

/// As an admin would: the mail server of the master takes it in.
fn deliver(lab: &Lab, pair: &Pair, id: &str) -> anyhow::Result<String> {
    let to = lab.mail_dir("given-back")?;
    let save = format!(
        "doveadm -c {} save -u \"$MAILTWIN_ACCOUNT\" -m \"$MAILTWIN_MAILBOX\"",
        pair.master.config().display()
    );
    let config = pair.agent.config();
    let words: Vec<&OsStr> = vec![
        "--config".as_ref(),
        config.as_os_str(),
        "check".as_ref(),
        "--undo".as_ref(),
        id.as_ref(),
        "--to".as_ref(),
        to.as_os_str(),
        "--deliver".as_ref(),
        save.as_ref(),
    ];
    Ok(daemon::replctl(lab, &words, false)?.expect(0)?.stdout)
}

#[test]
fn what_a_repair_took_comes_back_beside_what_is_there() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let pair = filled(lab)?;
        let id = repaired(lab, &pair)?;
        let undo = |words: &[&str]| {
            let all = [&["check", "--undo", &id], words].concat();
            pair.agent.ask(lab, &all)
        };
        let rehearsal = undo(&["--dry-run"])?;
        ensure!(rehearsal["count"] == 3 && rehearsal["done"] == false, "{rehearsal}");
        let left = rehearsal["left"].as_array().context("what is left")?;
        ensure!(left.is_empty(), "{rehearsal}");
        pair.agent.replctl(lab, &["check", "--undo", &id])?.expect(2)?;
        pair.agent.replctl(lab, &["check", "--undo", "17", "--dry-run"])?.expect(2)?;
        let said = deliver(lab, &pair, &id)?;
        ensure!(said.contains("3 messages handed to the command"), "{said}");
        pair.wait_equal(lab)?;
        let work = Account::read(&pair.replica, "u1")?;
        let work = work.mailboxes.get("Work").context("Work")?;
        let uids: Vec<u32> = work.messages.keys().copied().collect();
        ensure!(uids == [1, 2, 3, 4, 5, 6, 8, 9, 10], "new UIDs, those there stay: {uids:?}");
        let serials = work.messages.values().filter_map(|message| message.serial.as_deref());
        ensure!(serials.into_iter().any(|serial| serial == "stranger"), "{work:?}");
        let (code, _, report) = check(lab, &pair, &["--level", "deep"])?;
        ensure!(code == 0, "what was repaired stays repaired: {report}");
        // What is back need not come back again.
        let again = undo(&["--dry-run"])?;
        ensure!(again["count"] == 0 && again["left"] == serde_json::json!([]), "{again}");
        pair.expect_quiet_logs()
    })
}

#[test]
fn what_cannot_come_back_is_told() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mut pair = filled(lab)?;
        let id = repaired(lab, &pair)?;
        fs::remove_dir_all(pair.replica.mail_root().join(".mailtwin/graveyard"))?;
        let undo = ["check", "--undo", &id, "--dry-run"];
        let said = pair.agent.replctl(lab, &undo)?.expect(1)?.stdout;
        ensure!(said.contains("1 messages") && said.contains("u1 Work 7: not in"), "{said}");
        ensure!(said.contains("u1 Work 3: not in the graveyard of"), "{said}");
        pair.copy.stop()?;
        lab.wait("the master notices", || {
            let said = pair.agent.replctl(lab, &undo)?.expect(1)?.stdout;
            Ok(if said.contains("not connected") { Ok(()) } else { Err(said) })
        })
    })
}
