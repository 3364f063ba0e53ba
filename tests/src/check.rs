//! What the suites of `replctl check` have in common: a pair with some mail, and how it is asked.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use imap::types::Flag;
use serde_json::Value;

use crate::{corpus, daemon::Pair, dovecot::Dovecot, files, lab::Lab};

/// A pair with a few messages in two mailboxes of `u1`, equal and quiet.
pub fn filled(lab: &Lab) -> anyhow::Result<Pair> {
    let pair = Pair::start(lab, &["u1", "u2"])?;
    pair.first_copy(lab)?;
    let mut imap = pair.master.imap("u1")?;
    imap.create("Work")?;
    imap.subscribe("Work")?;
    let date = chrono::DateTime::parse_from_rfc3339("2001-02-03T04:05:06+00:00")?;
    for n in 0..6 {
        let flags = [Flag::Seen, Flag::from("$Forwarded")];
        let body = corpus::short(&format!("w{n}"));
        imap.append("Work", &body).flags(flags).internal_date(date).finish()?;
    }
    imap.logout()?;
    pair.wait_equal(lab)?;
    pair.agent.replctl(lab, &["sync"])?.expect(0)?;
    Ok(pair)
}

/// What a check says: exit code and `kind side uid` of each difference.
pub fn check(lab: &Lab, pair: &Pair, words: &[&str]) -> anyhow::Result<(i32, Vec<String>, Value)> {
    let all = [&["--output", "json", "check"], words].concat();
    let output = pair.agent.replctl(lab, &all)?;
    let report: Value = serde_json::from_str(&output.stdout)
        .with_context(|| format!("a report of check {words:?}: {output:?}"))?;
    let told = report["differences"].as_array().context("differences")?.iter().map(|found| {
        let word = |key: &str| found[key].as_str().unwrap_or("-").to_owned();
        let uid = found["uid"].as_u64().map_or_else(|| "-".to_owned(), |uid| uid.to_string());
        format!("{} {} {} {uid}", word("kind"), word("side"), word("mailbox"))
    });
    let told = told.collect();
    Ok((output.code.context("an exit code")?, told, report))
}

/// The file of message `uid` of `Work`, by the uidlist.
pub fn message(server: &Dovecot, uid: u32) -> anyhow::Result<PathBuf> {
    let dir = server.mailbox_dir("u1", "Work");
    let list = fs::read_to_string(dir.join("dovecot-uidlist"))?;
    let start = format!("{uid} ");
    let mut lines = list.lines().skip(1).filter(|line| line.starts_with(&start));
    let base = lines.next().and_then(|line| line.split_once(':')).context("a line of it")?.1;
    for place in ["cur", "new"] {
        for entry in fs::read_dir(dir.join(place))? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(base) {
                return Ok(entry.path());
            }
        }
    }
    anyhow::bail!("no file of message {uid}")
}

/// Changes one bit of a message where it lies; its date stays.
pub fn flip(path: &Path) -> anyhow::Result<()> {
    let mut octets = fs::read(path)?;
    let middle = octets.len() / 2;
    octets[middle] ^= 1;
    files::overwrite(path, &octets)
}
