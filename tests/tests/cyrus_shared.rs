//! Mailboxes that are no user's: between Cyruses, in virtual domains, and by way of a Dovecot.

use std::collections::BTreeMap;

use anyhow::{Context as _, ensure};
use mailtwin_cyrus::{Command, Value};
use mailtwin_tests::{
    corpus,
    cyrus::{ADMIN, Cyrus},
    daemon::Node,
    dovecot::{Dovecot, Layout, Version},
    imap::Imap,
    lab::Lab,
    oracle::Mailbox,
    server::Server as _,
};

/// What Cyruses between which annotations are compared are told.
const EXTRA: &str = "annotation_allow_undefined: yes";

/// What a Cyrus has under internal names: identity, rights, messages, annotations; limits of these roots.
fn shared(cyrus: &Cyrus, names: &[&str]) -> anyhow::Result<BTreeMap<String, Vec<String>>> {
    let mut link = cyrus.link()?;
    let mut found = BTreeMap::new();
    for name in names {
        let mut lines = Vec::new();
        if let Ok(answers) = link.run(&Command::Get("FULLMAILBOX", &Value::text(name))) {
            let mailbox = &answers.first().context("a mailbox")?.values[0];
            for key in ["UNIQUEID", "UIDVALIDITY", "LAST_UID", "ACL", "MBOXTYPE"] {
                lines.push(format!("{key} {:?}", mailbox.get(key)));
            }
            for record in mailbox.get("RECORD").and_then(Value::as_list).unwrap_or_default() {
                let flags = format!("{:?}", record.get("FLAGS"));
                if flags.contains("\\Expunged") {
                    continue;
                }
                let keys = ["UID", "GUID", "FLAGS", "INTERNALDATE"];
                lines.push(format!("{:?}", keys.map(|key| record.get(key))));
                let notes = record.get("ANNOTATIONS").and_then(Value::as_list).unwrap_or_default();
                // Others are fields of the index, which each server makes itself.
                let notes = notes.iter().filter(|n| n.text_of("ENTRY") == Some(b"/comment"));
                lines.extend(notes.map(|note| format!("{:?}", note.get("VALUE"))));
            }
        }
        for answer in link.run(&Command::Get("QUOTA", &Value::text(name)))? {
            let limits = ["STORAGE", "MESSAGE"].map(|key| answer.values[0].get(key).cloned());
            lines.push(format!("limits {limits:?}"));
        }
        found.insert((*name).to_owned(), lines);
    }
    Ok(found)
}

/// Waits until `there` has what `here` has of all these names, and that holds all `wanted`.
fn wait_same(
    lab: &Lab,
    (here, there): (&Cyrus, &Cyrus),
    names: &[&str],
    wanted: &[&str],
) -> anyhow::Result<()> {
    lab.wait(&format!("{} has {names:?} with {wanted:?}", there.name()), || {
        let (ours, theirs) = (shared(here, names)?, shared(there, names)?);
        let text = format!("{ours:?}");
        let is_same = ours == theirs && wanted.iter().all(|words| text.contains(words));
        Ok(if is_same { Ok(()) } else { Err(format!("{ours:#?}\n{theirs:#?}")) })
    })
}

/// Lines for a Dovecot that shows everybody the shared mailboxes.
fn public(lab: &Lab) -> String {
    let place = lab.dir().join("c/mail/+shared/Maildir");
    format!(
        "mail_save_crlf = yes\nnamespace public {{\n  type = public\n  separator = /\n  \
         prefix = Shared/\n  location = maildir:{}:LAYOUT=fs\n  subscriptions = no\n}}\n",
        place.display()
    )
}

/// Everything that happens to a mailbox.
fn change(admin: &mut Imap, ann: &mut Imap) -> anyhow::Result<()> {
    admin.command("SETQUOTA news (STORAGE 5000)")?;
    admin.command("SETACL team.b anyone lrs")?;
    admin.command("SETACL team.b ben lrswin")?;
    admin.create("deep/er")?;
    admin.command("SETACL deep/er anyone lrswipkxten")?;
    ann.append("Shared Folders/deep/er", &corpus::short("three")).finish()?;
    ann.select("Shared Folders/news/linux")?;
    ann.command("UID STORE 1 +FLAGS (\\Flagged \\Deleted)")?;
    ann.command("UID EXPUNGE 1")?;
    ann.command("UID STORE 2 +FLAGS (\\Answered \\Seen)")?;
    ann.command("UID STORE 2 ANNOTATION (/comment (value.shared \"of all\"))")?;
    ann.command("CLOSE")?;
    ann.command("SUBSCRIBE \"Shared Folders/team.b\"")?;
    admin.command("RENAME news/linux news/unix")?;
    Ok(())
}

#[test]
fn shared_mailboxes_come_along_and_come_back() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let first = Cyrus::with_extra(lab, "a", EXTRA)?;
        let second = Cyrus::with_extra(lab, "b", EXTRA)?;
        let third = Dovecot::with_extra(lab, "c", Version::V23, Layout::Fs, &public(lab))?;
        let last = Cyrus::with_extra(lab, "d", EXTRA)?;
        for user in ["ann", "ben"] {
            first.create_user(user)?;
            second.set_password(user)?;
            third.add_account(user, false)?;
            last.set_password(user)?;
        }
        let mut admin = first.imap(ADMIN)?;
        for name in ["news", "news/linux", "team.b"] {
            admin.create(name)?;
            admin.command(&format!("SETACL {name} anyone lrswipkxten"))?;
        }
        let mut ann = first.imap("ann")?;
        for serial in ["one", "two"] {
            ann.append("Shared Folders/news/linux", &corpus::short(serial)).finish()?;
        }
        let stores = [
            ("a", first.store_config()),
            ("b", second.store_config()),
            ("c", third.store_config()),
        ];
        let mut nodes = Node::start_beside(lab, &stores)?;
        let names = ["news", "news.linux", "team^b", "news.unix", "deep", "deep.er"];
        wait_same(lab, (&first, &second), &names, &["news.linux", "anyone"])?;

        change(&mut admin, &mut ann)?;
        wait_same(lab, (&first, &second), &names, &["5000", "of all", "news.unix"])?;
        // Nobody looks while Cyrus makes the list: two that make it at once spoil the names in it.
        nodes[0].sync(lab)?;
        ensure!(second.subscribed("ann")? == ["team^b"], "{:?}", second.subscribed("ann")?);
        ann.command("UNSUBSCRIBE \"Shared Folders/team.b\"")?;
        ann.command("SUBSCRIBE \"Shared Folders/news/unix\"")?;
        admin.command("SETACL team.b anyone lrswipkxten")?;
        ann.append("Shared Folders/deep/er", &corpus::short("four")).finish()?;
        admin.command("DELETE team.b")?;
        wait_same(lab, (&first, &second), &names, &[])?;
        nodes[0].sync(lab)?;
        nodes[0].replctl(lab, &["check", "--level", "full"])?.expect(0)?;
        ensure!(second.subscribed("ann")? == ["news.unix"], "{:?}", second.subscribed("ann")?);
        let told = nodes[0].replctl(lab, &["--output", "json", "status"])?.stdout;
        ensure!(!told.contains("not-carried"), "nothing is left behind: {told}");
        let told = nodes[0].replctl(lab, &["doctor", "--for", "fs"])?.stdout;
        for words in ["shared mailboxes: deep, news", "mailboxes of others: ann"] {
            ensure!(told.contains(words), "{words} in {told}");
        }

        // What reads them is another server, and what it hands on is the same.
        let shown = Mailbox::read(&mut third.imap("ben")?, "Shared/news/unix")?;
        let original = Mailbox::read(&mut first.imap("ann")?, "Shared Folders/news/unix")?;
        ensure!(shown.uid_validity == original.uid_validity, "{shown:?} {original:?}");
        let uids = |mailbox: &Mailbox| mailbox.messages.keys().copied().collect::<Vec<_>>();
        ensure!(uids(&shown) == uids(&original) && uids(&shown) == [2], "{shown:?} {original:?}");
        nodes.iter_mut().try_for_each(Node::stop)?;
        drop(nodes);
        let nodes =
            Node::start_beside(lab, &[("c2", third.store_config()), ("d", last.store_config())])?;
        wait_same(lab, (&first, &last), &names, &["5000", "anyone"])?;
        nodes[0].sync(lab)?;
        nodes[0].replctl(lab, &["check", "--level", "full"])?.expect(0)?;
        ensure!(last.subscribed("ann")? == ["news.unix"], "{:?}", last.subscribed("ann")?);
        Ok(())
    })
}

#[test]
fn shared_mailboxes_of_virtual_domains_are_their_own() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let config = "virtdomains: userid\ndefaultdomain: example.org\nunixhierarchysep: no";
        let (master, replica) =
            (Cyrus::with_extra(lab, "a", config)?, Cyrus::with_extra(lab, "b", config)?);
        let mut admin = master.imap(ADMIN)?;
        let names = ["news", "example.net!news", "example.net!news.x", "example.net!more"];
        for name in ["news", "news@example.net"] {
            admin.create(name)?;
            admin.command(&format!("SETACL {name} anyone lrswipkxten"))?;
        }
        let stores = [("a", master.store_config()), ("b", replica.store_config())];
        let nodes = Node::start_beside(lab, &stores)?;
        wait_same(lab, (&master, &replica), &names, &["anyone"])?;
        for name in ["news.x@example.net", "more@example.net"] {
            admin.create(name)?;
            admin.command(&format!("SETACL {name} anyone lrswipkxten"))?;
        }
        wait_same(lab, (&master, &replica), &names, &["anyone"])?;
        ensure!(
            shared(&replica, &names)?.values().all(|lines| !lines.is_empty()),
            "all are there: {:?}",
            shared(&replica, &names)?
        );
        admin.command("DELETE more@example.net")?;
        wait_same(lab, (&master, &replica), &names, &["anyone"])?;
        nodes[0].sync(lab)?;
        nodes[0].replctl(lab, &["check", "--level", "full"])?.expect(0)?;
        Ok(())
    })
}
