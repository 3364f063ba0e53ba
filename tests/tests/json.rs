//! `--output json` and docs/json.md: what real commands print is what stands there.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context as _, ensure};
use mailtwin_tests::{corpus, daemon::Pair, lab::Lab};
use serde_json::Value;

/// A documented field: whether it may be absent or null.
type Fields = BTreeMap<String, bool>;

/// Of each heading that names a command, the fields below it.
fn documented() -> anyhow::Result<BTreeMap<String, Fields>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/json.md");
    let text = fs::read_to_string(&path).context("read docs/json.md")?;
    let (mut all, mut heading) = (BTreeMap::<String, Fields>::new(), None);
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("## `") {
            heading = name.split('`').next().map(str::to_owned);
        } else if line.starts_with("## ") {
            heading = None;
        }
        let Some(heading) = &heading else { continue };
        let Some((field, rest)) = line.strip_prefix("| `").and_then(|row| row.split_once('`'))
        else {
            continue;
        };
        let optional = rest.starts_with("? |");
        all.entry(heading.clone()).or_default().insert(field.to_owned(), optional);
    }
    Ok(all)
}

/// Every field of `value` that is there and not null, lists as `name[]`.
fn fields(value: &Value, prefix: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let dot = if prefix.is_empty() { "" } else { "." };
                let name = format!("{prefix}{dot}{key}");
                if !value.is_null() {
                    found.insert(name.clone());
                }
                fields(value, &name, found);
            }
        }
        Value::Array(list) => {
            for value in list {
                fields(value, &format!("{prefix}[]"), found);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Compares one command's output with what is documented of it.
fn compare(heading: &str, value: &Value, known: &BTreeMap<String, Fields>) -> Vec<String> {
    let mut found = BTreeSet::new();
    fields(value, "", &mut found);
    let nothing = Fields::new();
    let known = known.get(heading).unwrap_or(&nothing);
    let mut wrong = Vec::new();
    for field in &found {
        // Of a list of names and the like there is nothing more to say.
        if !known.contains_key(field) {
            wrong.push(format!("{heading}: {field} is not documented"));
        }
    }
    for (field, optional) in known {
        // A field of a list that is empty cannot be seen.
        let list = field.rsplit_once("[]").map(|(list, _)| list);
        let has_room = list.is_none_or(|list| {
            found.iter().any(|it| it.strip_prefix(list).is_some_and(|it| it.starts_with("[]")))
        });
        if !optional && has_room && !found.contains(field) {
            wrong.push(format!("{heading}: {field} is documented and not there"));
        }
    }
    wrong
}

#[test]
fn what_commands_print_is_documented() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mut pair = Pair::start(lab, &["u1"])?;
        pair.agent.stop_agent()?;
        pair.agent.send_canaries(pair.master.lmtp_address(), "0s")?;
        pair.agent.start_agent(lab)?;
        pair.agent.start_replica(lab)?;
        pair.copy.start_agent(lab)?;
        pair.first_copy(lab)?;
        pair.master.deliver("u1", &corpus::short("m2"))?;
        let mut imap = pair.master.imap("u1")?;
        imap.select("INBOX")?;
        imap.command("UID STORE 1 +FLAGS (\\Deleted)")?;
        imap.expunge()?;
        pair.wait_equal(lab)?;
        // Something on one side only, that a check finds and status shows.
        let stray = pair.replica.maildir("u1").join("new/1.stray");
        mailtwin_tests::files::write_mail(&stray, "Subject: x\n\nx\n")?;
        let known = documented()?;
        let mut wrong = Vec::new();
        let copy = pair.copy.name().to_owned();
        let on_master: [(&str, &[&str]); 20] = [
            ("sync", &["sync"]),
            ("canary", &["canary"]),
            ("failover", &["failover", "switch", "--to", &copy, "--no-gate", "--dry-run"]),
            ("check", &["check"]),
            ("check", &["check", "--local"]),
            ("status", &["status"]),
            ("doctor", &["doctor"]),
            ("explain", &["explain", "corrupt"]),
            ("replica list", &["replica", "list"]),
            ("pair", &["pair"]),
            ("keys show", &["keys", "show"]),
            ("keys rotate", &["keys", "rotate"]),
            ("log stat", &["log", "stat"]),
            ("log tail", &["log", "tail"]),
            ("quarantine list", &["quarantine", "list"]),
            ("brake show", &["brake", "show"]),
            ("failover", &["failover", "status"]),
            ("failover history", &["failover", "history"]),
            ("ledger", &["ledger"]),
            ("conflicts list", &["conflicts", "list"]),
        ];
        for (heading, words) in on_master {
            wrong.extend(compare(heading, &pair.agent.ask(lab, words)?, &known));
        }
        let on_replica: [(&str, &[&str]); 3] = [
            ("status, on a replica", &["status"]),
            ("graveyard list", &["graveyard", "list"]),
            ("status --nagios", &["status", "--nagios"]),
        ];
        for (heading, words) in on_replica {
            wrong.extend(compare(heading, &pair.copy.ask(lab, words)?, &known));
        }
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        ensure!(known.len() == 21, "every heading is tried: {:?}", known.keys());
        Ok(())
    })
}
