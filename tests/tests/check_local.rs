//! `replctl check --local`: what is wrong with one node is found on that node, by itself; and whether its
//! mail server sees what is in the files.

use std::{ffi::OsStr, fs};

use anyhow::{Context as _, ensure};
use mailtwin_tests::{
    check::{filled, flip, message},
    daemon::{self, Node, Pair},
    dovecot::Dovecot,
    files,
    lab::Lab,
};
use serde_json::Value;

/// What a node says of itself: exit code and `kind side mailbox uid` of what is wrong.
fn local(lab: &Lab, node: &Node, words: &[&str]) -> anyhow::Result<(i32, Vec<String>, Value)> {
    let config = node.config();
    let first: [&OsStr; 6] = [
        "--config".as_ref(),
        config.as_os_str(),
        "--output".as_ref(),
        "json".as_ref(),
        "check".as_ref(),
        "--local".as_ref(),
    ];
    let words = words.iter().map(|&word| OsStr::new(word));
    let words: Vec<&OsStr> = first.into_iter().chain(words).collect();
    // doveadm is the administrator's.
    let output = daemon::replctl(lab, &words, false)?;
    let report: Value =
        serde_json::from_str(&output.stdout).with_context(|| format!("a report: {output:?}"))?;
    let told = report["differences"].as_array().context("differences")?.iter().map(|found| {
        let word = |key: &str| found[key].as_str().unwrap_or("-").to_owned();
        let uid = found["uid"].as_u64().map_or_else(|| "-".to_owned(), |uid| uid.to_string());
        format!("{} {} {} {uid}", word("kind"), word("side"), word("mailbox"))
    });
    Ok((output.code.context("an exit code")?, told.collect(), report))
}

fn doveadm(server: &Dovecot) -> String {
    format!("doveadm -c {}", server.config().display())
}

fn sides(pair: &Pair) -> [(&'static str, &Node, &Dovecot); 2] {
    [("master", &pair.agent, &pair.master), ("replica", &pair.copy, &pair.replica)]
}

#[test]
fn a_sound_node_agrees_with_its_mail_server() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let pair = filled(lab)?;
        for (side, node, server) in sides(&pair) {
            for level in ["full", "deep"] {
                let words = ["--level", level, "--doveadm", &doveadm(server)];
                let (code, told, report) = local(lab, node, &words)?;
                ensure!(code == 0 && told.is_empty(), "{side} {level}: {report}");
                ensure!(report["result"] == "equal" && report["messages"] == 8, "{report}");
                let read = if level == "deep" { 8 } else { 0 };
                ensure!(report["messages_read"] == read, "{side} {level}: {report}");
            }
            let (code, _, report) = local(lab, node, &["u1/Work"])?;
            ensure!(code == 0 && report["messages"] == 6, "{side}: {report}");
            // A mail server that cannot be asked was not compared with.
            let (code, _, report) = local(lab, node, &["--doveadm", "false"])?;
            ensure!(code == 3 && report["result"] == "incomplete", "{side}: {report}");
        }
        pair.agent.replctl(lab, &["check", "--local", "--repair"])?.expect(2)?;
        Ok(())
    })
}

#[test]
fn defects_are_found_on_the_node_that_has_them() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let pair = filled(lab)?;
        for (side, node, server) in sides(&pair) {
            flip(&message(server, 2)?)?;
            let (code, told, _) = local(lab, node, &["--level", "full"])?;
            ensure!(code == 0, "only the octets tell: {told:?}");
            let cut = message(server, 3)?;
            files::overwrite(&cut, &fs::read(&cut)?[..10])?;
            files::chmod(&message(server, 4)?, 0)?;
            let list = server.mailbox_dir("u1", "Work").join("dovecot-uidlist");
            let text = fs::read_to_string(&list)?;
            let last = text.lines().last().context("a last line")?;
            files::write_mail(&list, format!("{text}{last}\n"))?;
            let (code, mut told, report) = local(lab, node, &["--level", "deep"])?;
            told.sort();
            let mut wanted = vec![
                format!("corrupt {side} Work 2"),
                format!("list {side} Work -"),
                format!("size {side} Work 3"),
                format!("unreadable {side} Work 4"),
            ];
            wanted.sort();
            ensure!(code == 1 && told == wanted, "{side}: {told:?} {report}");
        }
        Ok(())
    })
}

#[test]
fn a_mail_server_that_sees_something_else_is_reported() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let pair = filled(lab)?;
        pair.agent.replctl(lab, &["replica", "pause", pair.copy.name()])?.expect(0)?;
        let mut imap = pair.master.imap("u1")?;
        imap.append("Work", &mailtwin_tests::corpus::short("later")).finish()?;
        imap.create("New")?;
        imap.logout()?;
        // The replica's, which has the state of before.
        let words = ["--doveadm", &doveadm(&pair.replica)];
        let (code, told, report) = local(lab, &pair.agent, &words)?;
        let wanted =
            ["mailbox-missing unknown New -", "uid-next unknown Work -", "contents unknown Work -"];
        ensure!(code == 1 && told == wanted, "{told:?} {report}");
        Ok(())
    })
}
