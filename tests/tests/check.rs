//! `replctl check` on real pairs: what is planted is found, at the right level, on the right side; what
//! is in flight is not.

use std::{fs, path::Path};

use anyhow::{Context as _, ensure};
use mailtwin_tests::{
    check::{check, filled, flip, message},
    corpus,
    daemon::{Node, Pair},
    dovecot::Dovecot,
    files,
    lab::Lab,
};

#[test]
fn a_quiet_pair_is_equal_at_every_level() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let pair = filled(lab)?;
        for level in ["quick", "full", "deep"] {
            let (code, told, report) = check(lab, &pair, &["--level", level])?;
            ensure!(code == 0 && told.is_empty(), "{level}: {report}");
            ensure!(report["messages"] == 8 && report["accounts"] == 2, "{level}: {report}");
            ensure!(report["level"] == level && report["result"] == "equal", "{report}");
        }
        Ok(())
    })
}

#[test]
fn the_last_check_shows_in_status_and_metrics() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mut pair = filled(lab)?;
        let last = |pair: &Pair| {
            anyhow::Ok(pair.agent.ask(lab, &["status"])?["replicas"][0]["check"].clone())
        };
        let said = pair.agent.replctl(lab, &["status"])?.stdout;
        ensure!(said.contains("never checked"), "{said}");
        let (code, _, report) = check(lab, &pair, &["--level", "deep"])?;
        ensure!(code == 0, "{report}");
        flip(&message(&pair.replica, 3)?)?;
        // What is not everything says nothing of everything.
        check(lab, &pair, &["u1", "--level", "deep"])?;
        let equal = last(&pair)?;
        ensure!(
            equal["result"] == "equal" && equal["level"] == "deep" && equal["found"] == 0,
            "{equal}"
        );
        let (_, _, report) = check(lab, &pair, &["--level", "deep"])?;
        let different = last(&pair)?;
        ensure!(different["result"] == "different" && different["found"] == 1, "{different}");
        ensure!(different["at"] == report["began"], "{different} {report}");
        pair.agent.stop()?;
        pair.agent.start(lab)?;
        lab.wait("it is remembered", || {
            let said = last(&pair).map_err(|error| format!("{error:#}"));
            Ok(said
                .and_then(|check| if check == different { Ok(()) } else { Err(check.to_string()) }))
        })?;
        let said = pair.agent.replctl(lab, &["status"])?.stdout;
        ensure!(said.contains("level deep: 1 DIFFERENCES"), "{said}");
        let metric = format!(
            "mailtwin_check_last_timestamp_seconds{{level=\"deep\",replica=\"{}\"}} {}",
            pair.copy.name(),
            report["began"].as_u64().context("when it began")? / 1000
        );
        let page = Node::page(pair.agent.metrics.0, "/metrics")?;
        ensure!(page.contains(&metric), "{metric} in {page}");
        Ok(())
    })
}

/// A planted defect, and what must be said of it.
struct Plant {
    name: &'static str,
    put: fn(&Lab, &Pair) -> anyhow::Result<()>,
    /// The first level at which it must be found.
    level: &'static str,
    /// `kind side mailbox uid` of a difference that must be reported there.
    finds: &'static str,
    /// Changes in the plan without which a human's decision is missing.
    decides: bool,
}

fn redate(path: &Path) -> anyhow::Result<()> {
    let date = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
    Ok(fs::File::options().write(true).open(path)?.set_modified(date)?)
}

fn swap(server: &Dovecot) -> anyhow::Result<()> {
    let (one, other) = (message(server, 2)?, message(server, 3)?);
    let (a, b) = (fs::read(&one)?, fs::read(&other)?);
    files::overwrite(&one, &b)?;
    files::overwrite(&other, &a)
}

/// Takes letters behind the colon away from a message.
fn unflag(server: &Dovecot, uid: u32, is_taken: fn(char) -> bool) -> anyhow::Result<()> {
    let path = message(server, uid)?;
    let name = path.file_name().context("a name")?.to_string_lossy().into_owned();
    let (base, letters) = name.split_once(":2,").context("letters")?;
    let left: String = letters.chars().filter(|&letter| !is_taken(letter)).collect();
    ensure!(left != letters, "{letters} has what is taken");
    Ok(fs::rename(&path, path.with_file_name(format!("{base}:2,{left}")))?)
}

/// Changes a file of the mail server's own in `Work`, as if a program had written it anew.
fn edit(server: &Dovecot, name: &str, change: fn(&str) -> String) -> anyhow::Result<()> {
    let path = server.mailbox_dir("u1", "Work").join(name);
    let text = fs::read_to_string(&path)?;
    let changed = change(&text);
    ensure!(text != changed, "{name} changes");
    files::write_mail(&path, changed)
}

fn relist(text: &str, change: impl Fn(&str) -> String) -> String {
    text.lines().map(change).collect()
}

/// Takes the last UID's line away, and has the list say that it is still to be given out.
fn lower_next(lab: &Lab, pair: &Pair, server: &Dovecot) -> anyhow::Result<()> {
    let mut imap = pair.master.imap("u1")?;
    imap.select("Work")?;
    imap.command("UID STORE 6 +FLAGS.SILENT (\\Deleted)")?;
    imap.command("EXPUNGE")?;
    imap.logout()?;
    pair.wait_equal(lab)?;
    pair.agent.sync(lab)?;
    edit(server, "dovecot-uidlist", |text| {
        relist(text, |line| match line {
            gone if gone.starts_with("6 ") => String::new(),
            heading if heading.starts_with("3 V") => heading.replace(" N7 ", " N6 ") + "\n",
            line => format!("{line}\n"),
        })
    })
}

fn add_message(server: &Dovecot) -> anyhow::Result<()> {
    let mut imap = server.imap("u1")?;
    imap.append("Work", &corpus::short("stranger")).finish()?;
    Ok(imap.logout()?)
}

const PLANTS: &[Plant] = &[
    Plant {
        name: "message missing on the replica",
        put: |_, pair| Ok(fs::remove_file(message(&pair.replica, 2)?)?),
        level: "quick",
        finds: "contents replica Work -",
        decides: false,
    },
    Plant {
        name: "message of its own on the replica",
        put: |_, pair| add_message(&pair.replica),
        level: "quick",
        finds: "contents replica Work -",
        decides: true,
    },
    Plant {
        name: "a copy of a message on the replica",
        put: |_, pair| {
            let mut imap = pair.replica.imap("u1")?;
            imap.select("Work")?;
            imap.command("UID COPY 2 Work")?;
            Ok(imap.logout()?)
        },
        level: "full",
        finds: "extra replica Work 7",
        decides: false,
    },
    Plant {
        name: "truncated on the replica",
        put: |_, pair| {
            let path = message(&pair.replica, 2)?;
            files::overwrite(&path, &fs::read(&path)?[..10])
        },
        level: "full",
        finds: "size replica Work 2",
        decides: false,
    },
    Plant {
        name: "truncated on the master",
        put: |_, pair| {
            let path = message(&pair.master, 2)?;
            files::overwrite(&path, &fs::read(&path)?[..10])
        },
        level: "full",
        finds: "size master Work 2",
        decides: false,
    },
    Plant {
        name: "one bit flipped on the replica",
        put: |_, pair| flip(&message(&pair.replica, 3)?),
        level: "deep",
        finds: "corrupt replica Work 3",
        decides: false,
    },
    Plant {
        name: "one bit flipped on the master",
        put: |_, pair| flip(&message(&pair.master, 3)?),
        level: "deep",
        finds: "corrupt master Work 3",
        decides: false,
    },
    Plant {
        name: "bodies swapped on the replica",
        put: |_, pair| swap(&pair.replica),
        level: "deep",
        finds: "corrupt replica Work 2",
        decides: false,
    },
    Plant {
        name: "bodies swapped on the master",
        put: |_, pair| swap(&pair.master),
        level: "deep",
        finds: "corrupt master Work 3",
        decides: false,
    },
    Plant {
        name: "wrong mtime on the replica",
        put: |_, pair| redate(&message(&pair.replica, 4)?),
        level: "full",
        finds: "date replica Work 4",
        decides: false,
    },
    Plant {
        name: "wrong mtime on the master",
        put: |_, pair| redate(&message(&pair.master, 4)?),
        level: "full",
        finds: "date master Work 4",
        decides: false,
    },
    Plant {
        name: "flag missing on the replica",
        put: |_, pair| unflag(&pair.replica, 5, |letter| letter == 'S'),
        level: "full",
        finds: "flags replica Work 5",
        decides: false,
    },
    Plant {
        name: "keyword missing on the replica",
        // Which letter stands for it depends on which message came first.
        put: |_, pair| unflag(&pair.replica, 5, |letter| letter.is_ascii_lowercase()),
        level: "full",
        finds: "keywords replica Work 5",
        decides: false,
    },
    Plant {
        name: "keyword letter map differing",
        put: |_, pair| {
            edit(&pair.replica, "dovecot-keywords", |text| text.replace("$Forwarded", "$Junk"))
        },
        level: "full",
        finds: "keywords replica Work 1",
        decides: false,
    },
    Plant {
        name: "uidlist line missing",
        put: |_, pair| {
            edit(&pair.replica, "dovecot-uidlist", |text| {
                relist(text, |line| {
                    if line.starts_with("3 :") || line.starts_with("3 W") {
                        String::new()
                    } else {
                        format!("{line}\n")
                    }
                })
            })
        },
        level: "full",
        finds: "missing replica Work 3",
        decides: false,
    },
    Plant {
        name: "uidlist line doubled",
        put: |_, pair| {
            edit(&pair.replica, "dovecot-uidlist", |text| {
                let last = text.lines().last().unwrap_or_default();
                format!("{text}{last}\n")
            })
        },
        level: "full",
        finds: "list replica Work -",
        decides: false,
    },
    Plant {
        name: "uidlist line wrong",
        put: |_, pair| {
            edit(&pair.replica, "dovecot-uidlist", |text| {
                relist(text, |line| match line.strip_prefix("6 ") {
                    Some(rest) => format!("9 {rest}\n"),
                    None => format!("{line}\n"),
                })
            })
        },
        level: "full",
        finds: "missing replica Work 6",
        decides: false,
    },
    Plant {
        name: "UIDNEXT too low on the replica",
        put: |lab, pair| lower_next(lab, pair, &pair.replica),
        level: "full",
        finds: "uid-next replica Work -",
        decides: false,
    },
    Plant {
        name: "UIDNEXT too low on the master",
        put: |lab, pair| lower_next(lab, pair, &pair.master),
        level: "full",
        finds: "uid-next master Work -",
        decides: false,
    },
    Plant {
        name: "mailbox extra on the replica",
        put: |_, pair| {
            let mut imap = pair.replica.imap("u1")?;
            imap.create("Extra")?;
            Ok(imap.logout()?)
        },
        level: "quick",
        finds: "mailbox-extra replica Extra -",
        decides: false,
    },
    Plant {
        name: "mailbox id differing",
        put: |_, pair| {
            edit(&pair.replica, "dovecot-uidlist", |text| {
                relist(text, |line| match line.split_once(" G") {
                    Some((heading, id)) => {
                        format!("{heading} G{}\n", id.chars().rev().collect::<String>())
                    }
                    None => format!("{line}\n"),
                })
            })
        },
        level: "quick",
        finds: "mailbox-id replica Work -",
        decides: false,
    },
    Plant {
        name: "UIDVALIDITY differing",
        put: |_, pair| {
            edit(&pair.replica, "dovecot-uidlist", |text| text.replacen("3 V1", "3 V2", 1))
        },
        level: "quick",
        finds: "uid-validity replica Work -",
        decides: false,
    },
    Plant {
        name: "mailbox missing on the replica",
        put: |_, pair| Ok(fs::remove_dir_all(pair.replica.mailbox_dir("u1", "Work"))?),
        level: "quick",
        finds: "mailbox-missing replica Work -",
        decides: false,
    },
    Plant {
        name: "mailbox renamed on the replica",
        put: |_, pair| {
            let dir = |name| pair.replica.mailbox_dir("u1", name);
            Ok(fs::rename(dir("Work"), dir("Elsewhere"))?)
        },
        level: "quick",
        finds: "mailbox-name replica Work -",
        decides: false,
    },
    Plant {
        name: "subscription missing on the replica",
        put: |_, pair| Ok(fs::remove_file(pair.replica.maildir("u1").join("subscriptions"))?),
        level: "quick",
        finds: "file replica - -",
        decides: false,
    },
    Plant {
        name: "Sieve script differing",
        put: |_, pair| {
            let path = |server: &Dovecot| server.home("u1").join("sieve/main.sieve");
            files::write_mail(&path(&pair.replica), "discard;\n")
        },
        level: "quick",
        finds: "file replica - -",
        decides: false,
    },
    Plant {
        name: "file unreadable on the replica",
        put: |_, pair| files::chmod(&message(&pair.replica, 1)?, 0),
        level: "full",
        finds: "unreadable replica Work 1",
        decides: false,
    },
    Plant {
        name: "file unreadable on the master",
        put: |_, pair| files::chmod(&message(&pair.master, 1)?, 0),
        level: "full",
        finds: "unreadable master Work 1",
        decides: false,
    },
    Plant {
        name: "account missing on the replica",
        put: |_, pair| Ok(fs::remove_dir_all(pair.replica.home("u2"))?),
        level: "quick",
        finds: "account-missing replica - -",
        decides: false,
    },
];

const LEVELS: [&str; 3] = ["quick", "full", "deep"];

/// Every plant in a pair of its own: found at its level, on its side, and repaired. All that fail are
/// told, not only the first.
fn plant_all(plants: &[Plant]) -> anyhow::Result<()> {
    let mut failed = Vec::new();
    for plant in plants {
        let result = Lab::run(|lab| {
            let pair = filled(lab)?;
            let dir = pair.master.home("u1").join("sieve");
            files::make_mail_dir(&dir)?;
            files::write_mail(&dir.join("main.sieve"), "keep;\n")?;
            pair.agent.replctl(lab, &["sync", "u1"])?.expect(0)?;
            one(lab, &pair, plant)
        });
        if let Err(error) = result {
            failed.push(format!("{}: {error:#}", plant.name));
        }
    }
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

fn one(lab: &Lab, pair: &Pair, plant: &Plant) -> anyhow::Result<()> {
    let (code, told, _) = check(lab, pair, &["--level", "deep"])?;
    ensure!(code == 0, "equal before: {told:?}");
    (plant.put)(lab, pair)?;
    let from = LEVELS.iter().position(|level| *level == plant.level).context("a level")?;
    for (at, level) in LEVELS.iter().enumerate() {
        let (code, told, report) = check(lab, pair, &["--level", level])?;
        if at < from {
            continue;
        }
        let all = at > from || told.iter().any(|found| found == plant.finds);
        ensure!(code == 1 && all, "{level}: {} in {told:?}: {report}", plant.finds);
    }
    if plant.decides {
        let file = lab.mail_dir("plans")?.join("plan.json");
        let file = file.to_str().context("a path")?;
        pair.agent.replctl(lab, &["check", "--level", "deep", "--plan", file])?.expect(1)?;
        let plan = fs::read_to_string(file)?;
        ensure!(plan.contains(r#""repair": "none""#), "it is left to a human: {plan}");
        let decided = plan.replace(r#""repair": "none""#, r#""repair": "bury""#);
        files::write_mail(Path::new(file), decided)?;
        pair.agent.replctl(lab, &["check", "--level", "deep", "--apply", file])?.expect(0)?;
    } else {
        let repair = || pair.agent.replctl(lab, &["check", "--level", "deep", "--repair"]);
        let repaired = repair()?;
        if repaired.stdout.contains("unnumbered") {
            // The mail server gives the file a UID; then it is a copy of a message.
            let mut imap = pair.replica.imap("u1")?;
            imap.select("Work")?;
            imap.logout()?;
            repair()?.expect(0)?;
        } else {
            repaired.expect(0)?;
        }
    }
    pair.wait_equal(lab)
}

#[test]
fn planted_defects_are_found_and_repaired() -> anyhow::Result<()> {
    plant_all(&PLANTS[..PLANTS.len() / 2])
}

#[test]
fn more_planted_defects_are_found_and_repaired() -> anyhow::Result<()> {
    plant_all(&PLANTS[PLANTS.len() / 2..])
}

/// Stops a node's daemon, and loses its index, as a disk that fails does.
fn lose_index(lab: &Lab, pair: &mut Pair, of_master: bool) -> anyhow::Result<()> {
    let node = if of_master { &mut pair.agent } else { &mut pair.copy };
    node.stop()?;
    fs::remove_dir_all(node.state_dir().join("index"))?;
    node.start(lab)?;
    lab.wait("the replica is connected", || {
        let status = match pair.agent.ask(lab, &["status"]) {
            Ok(status) => status,
            Err(error) => return Ok(Err(format!("{error:#}"))),
        };
        let state = status["replicas"][0]["state"].clone();
        let quiet = state == "in-sync" || state == "degraded";
        Ok(if quiet { Ok(()) } else { Err(status.to_string()) })
    })?;
    pair.agent.replctl(lab, &["sync"])?;
    Ok(())
}

#[test]
fn a_lost_index_makes_no_difference() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mut pair = filled(lab)?;
        for of_master in [false, true] {
            lose_index(lab, &mut pair, of_master)?;
            for level in LEVELS {
                let (code, told, report) = check(lab, &pair, &["--level", level])?;
                ensure!(code == 0, "{level}, master {of_master}: {told:?} {report}");
            }
        }
        let graves = pair.copy.ask(lab, &["graveyard", "list"])?;
        ensure!(graves["count"] == 0, "nothing was taken away: {graves}");
        pair.wait_equal(lab)
    })
}

#[test]
fn what_would_be_a_guess_is_reported_and_left_alone() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mut pair = filled(lab)?;
        // Of the damaged message nobody knows what it was; nobody on the master has the others.
        let damaged = message(&pair.replica, 3)?;
        flip(&damaged)?;
        lose_index(lab, &mut pair, false)?;
        let mut imap = pair.replica.imap("u1")?;
        imap.create("Own")?;
        imap.append("Own", &corpus::short("own")).finish()?;
        imap.logout()?;
        pair.replica.deliver("stranger", &corpus::short("hers"))?;
        let before = (fs::read(&damaged)?, files::messages(&pair.replica.mail_root())?.len());
        let (code, told, report) = check(lab, &pair, &["--level", "deep", "--repair"])?;
        let left =
            ["clash unknown Work 3", "mailbox-extra replica Own -", "account-extra replica - -"];
        ensure!(code == 1 && told == left, "{told:?}: {report}");
        let undecided = report["differences"].as_array().context("differences")?;
        ensure!(undecided.iter().all(|found| found["repair"] == "none"), "{report}");
        let after = (fs::read(&damaged)?, files::messages(&pair.replica.mail_root())?.len());
        ensure!(before == after, "nothing was touched");
        pair.agent.replctl(lab, &["check", "--nagios"])?.expect(2)?;
        Ok(())
    })
}
