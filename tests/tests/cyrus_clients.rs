//! What clients of a Cyrus notice of an agent beside it: nothing.

use std::fs;

use anyhow::ensure;
use mailtwin_tests::{corpus, cyrus::Cyrus, daemon::Node, files, lab::Lab};

/// A pair that has looked at everything for the first time: who is made during that may still be met
/// by it.
fn start(lab: &Lab) -> anyhow::Result<(Cyrus, Cyrus, Vec<Node>)> {
    let (master, replica) = (Cyrus::start(lab, "a")?, Cyrus::start(lab, "b")?);
    let stores = [("a", master.store_config()), ("b", replica.store_config())];
    let nodes = Node::start_beside(lab, &stores)?;
    looked_at(lab, &nodes[0])?;
    Ok((master, replica, nodes))
}

fn looked_at(lab: &Lab, agent: &Node) -> anyhow::Result<()> {
    lab.wait("everything was looked at", || {
        let synced = agent.replctl(lab, &["sync"])?;
        Ok(if synced.code == Some(0) { Ok(()) } else { Err(format!("{synced:?}")) })
    })
}

/// Users who make mailboxes and subscribe to them at once, as programs for mail do.
#[test]
fn first_subscriptions_of_new_users_are_kept() -> anyhow::Result<()> {
    const NAMES: [&str; 3] = ["Drafts", "Sent", "Trash"];
    Lab::run(|lab| {
        let (first, second, nodes) = start(lab)?;
        let users: Vec<String> = (0..100).map(|n| format!("u{n}")).collect();
        for user in &users {
            first.create_user(user)?;
            second.set_password(user)?;
            let mut imap = first.imap(user)?;
            for name in NAMES {
                imap.create(name)?;
                imap.command(&format!("SUBSCRIBE {name}"))?;
            }
            imap.logout()?;
        }
        nodes[0].sync(lab)?;
        for cyrus in [&first, &second] {
            for user in &users {
                let wanted = NAMES.map(|name| format!("user.{user}.{name}"));
                let found = cyrus.subscribed(user)?;
                ensure!(found == wanted, "{} of {user}: {found:?}", cyrus.name());
            }
        }
        Ok(())
    })
}

/// What clients do, some of it to names that have just been others'.
fn commands(round: usize) -> Vec<String> {
    let (a, b) = (format!("A{round}"), format!("B{round}"));
    vec![
        format!("CREATE {a}"),
        format!("SUBSCRIBE {a}"),
        format!("CREATE {a}/sub"),
        "SELECT INBOX".to_owned(),
        format!("COPY 1:* {a}/sub"),
        format!("SETACL {a} anyone lrs"),
        format!("SETMETADATA {a} (/private/comment \"of {round}\")"),
        format!("RENAME {a} {b}"),
        format!("SELECT {b}/sub"),
        "STORE 1 +FLAGS (\\Flagged $word \\Deleted)".to_owned(),
        "EXPUNGE".to_owned(),
        "UNSELECT".to_owned(),
        format!("CREATE {a}"),
        format!("RENAME {a} {a}x"),
        format!("RENAME {a}x {a}"),
        format!("DELETE {a}"),
        format!("CREATE {a}"),
        format!("UNSUBSCRIBE {a}"),
        format!("SUBSCRIBE {b}"),
        format!("DELETE {b}/sub"),
        format!("RENAME {b} INBOX/{b}"),
        "SELECT INBOX".to_owned(),
        format!("MOVE 1 {a}"),
        "UNSELECT".to_owned(),
    ]
}

/// An agent that looks at everything as it happens must be in nobody's way.
#[test]
fn clients_are_refused_nothing_beside_an_agent() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let (master, _replica, nodes) = start(lab)?;
        let mut refused = Vec::new();
        for n in 0..15 {
            let user = format!("u{n}");
            master.create_user(&user)?;
            let mut imap = master.imap(&user)?;
            for round in 0..3 {
                let body = corpus::short(&format!("message {round}"));
                imap.append("INBOX", &body).finish()?;
                for command in commands(round) {
                    if let Err(error) = imap.command(&command) {
                        refused.push(format!("{user}: {command}: {error:#}"));
                    }
                }
            }
            imap.logout()?;
        }
        ensure!(refused.is_empty(), "{refused:#?}");
        nodes[0].sync(lab)?;
        nodes[0].replctl(lab, &["check", "--level", "full"])?.expect(0)?;
        Ok(())
    })
}

/// `GET USER` of the replication protocol, which is for replicas, would remove both kinds.
#[test]
fn sieve_files_stay_as_their_clients_left_them() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let (master, replica, mut nodes) = start(lab)?;
        // Of a Cyrus before 3.6, which had no database of scripts: mail is sorted by them still.
        master.create_user("old")?;
        let old = master.sieve_dir("old")?;
        files::make_mail_dir(&old)?;
        for name in ["filter.script", "filter.bc"] {
            files::write_mail(&old.join(name), "keep;\n")?;
        }
        for user in users() {
            master.create_user(&user)?;
            master.imap(&user)?.create("Sorted")?;
            let mut sieve = master.sieve(&user)?;
            sieve.put("first", "keep;\r\n")?;
            sieve.activate("first")?;
            sieve.put("second", "require \"fileinto\";\r\nfileinto \"Sorted\";\r\n")?;
            sieve.activate("second")?;
        }
        nodes[0].sync(lab)?;
        nodes[0].stop()?;
        nodes[0].start(lab)?;
        looked_at(lab, &nodes[0])?;
        nodes[0].replctl(lab, &["check", "--level", "full"])?.expect(0)?;
        let left = fs::read_dir(&old)?.count();
        ensure!(left == 2, "{left} of the two files of an older Cyrus are left");
        sorts(&master, 1)?;
        nodes[0].sync(lab)?;
        nodes.iter_mut().try_for_each(Node::stop)?;
        sorts(&replica, 2)
    })
}

/// Delivers to users, and makes sure that their scripts put it where their mail is `sorted` then.
fn sorts(cyrus: &Cyrus, sorted: u32) -> anyhow::Result<()> {
    for user in users() {
        cyrus.set_password(&user)?;
        cyrus.deliver(&user, &corpus::short(&format!("message {sorted}")))?;
        let found = cyrus.imap(&user)?.select("Sorted")?.exists;
        ensure!(found == sorted, "{} of {user}'s messages on {} are sorted", found, cyrus.name());
    }
    Ok(())
}

fn users() -> impl Iterator<Item = String> {
    (0..50).map(|n| format!("u{n}"))
}
