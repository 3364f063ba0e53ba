//! Cyruses that name their mailboxes in other ways: other separators and name spaces, virtual domains. Between
//! two of them only what they are called inside matters.

use std::collections::BTreeMap;

use anyhow::{Context as _, ensure};
use mailtwin_tests::{
    corpus,
    cyrus::{ADMIN, Cyrus},
    daemon::Node,
    lab::Lab,
    oracle::Mailbox,
};

/// How a Cyrus is told to name mailboxes, and how its clients then see them.
#[derive(Clone, Copy)]
struct Naming {
    config: &'static str,
    separator: char,
    /// What own mailboxes begin with.
    prefix: &'static str,
}

const PLAIN: Naming = Naming { config: "", separator: '/', prefix: "" };
const DOTS: Naming =
    Naming { config: "unixhierarchysep: no\naltnamespace: no", separator: '.', prefix: "INBOX." };
const SLASHES: Naming = Naming { config: "altnamespace: no", separator: '/', prefix: "INBOX/" };
const DOMAINS: Naming = Naming {
    config: "virtdomains: userid\ndefaultdomain: example.org",
    separator: '/',
    prefix: "",
};

const DOTTED_DOMAINS: Naming = Naming {
    config: "virtdomains: userid\ndefaultdomain: example.org\nunixhierarchysep: no",
    separator: '.',
    prefix: "",
};

impl Naming {
    /// What clients call a mailbox.
    fn name(self, parts: &[&str]) -> String {
        format!("{}{}", self.prefix, parts.join(&self.separator.to_string()))
    }

    /// Makes a user with an INBOX.
    fn create_user(self, cyrus: &Cyrus, user: &str) -> anyhow::Result<()> {
        cyrus.set_password(user)?;
        let inbox = format!("user{}{user}", self.separator);
        cyrus.imap(ADMIN)?.create(&inbox).with_context(|| format!("create {inbox}"))
    }

    /// All mailboxes of a user by their parts, as a client sees them.
    fn state(self, cyrus: &Cyrus, user: &str) -> anyhow::Result<BTreeMap<String, Mailbox>> {
        let mut imap = cyrus.imap(user)?;
        let listed = imap.list(None, Some("*")).context("LIST")?;
        let names: Vec<String> = listed.iter().map(|name| name.name().to_owned()).collect();
        let mut mailboxes = BTreeMap::new();
        for name in names {
            let mailbox =
                Mailbox::read(&mut imap, &name).with_context(|| format!("read {name}"))?;
            let own = name.strip_prefix(self.prefix).unwrap_or(&name);
            mailboxes.insert(own.replace(self.separator, "/"), mailbox);
        }
        Ok(mailboxes)
    }
}

/// Replicates `user` from one Cyrus to another: all that clients do, with mailboxes of many names.
fn replicate(lab: &Lab, ours: Naming, theirs: Naming, user: &str) -> anyhow::Result<()> {
    let master = Cyrus::with_extra(lab, "a", ours.config)?;
    let replica = Cyrus::with_extra(lab, "b", theirs.config)?;
    ours.create_user(&master, user)?;
    replica.set_password(user)?;
    master.deliver(user, &corpus::short("before"))?;
    let stores = [("a", master.store_config()), ("b", replica.store_config())];
    let nodes = Node::start_beside(lab, &stores)?;
    let wait = |what: &str, wanted: &[&str]| {
        lab.wait(what, || {
            let (ours, theirs) = (ours.state(&master, user)?, theirs.state(&replica, user));
            let Ok(theirs) = theirs else { return Ok(Err("the replica does not answer".into())) };
            let whole = wanted.iter().all(|name| ours.contains_key(*name));
            let equal = whole && ours == theirs;
            Ok(if equal { Ok(()) } else { Err(format!("{ours:#?}\n{theirs:#?}")) })
        })
    };
    wait("the first copy", &["INBOX"])?;
    let mut imap = master.imap(user)?;
    for parts in [&["Work"][..], &["Work", "Sub"], &["Work", "Sub", "b&AOk-n"], &["Drafts 2"]] {
        let name = ours.name(parts);
        imap.create(&name).with_context(|| format!("create {name}"))?;
        imap.append(&name, &corpus::short(&name)).finish()?;
    }
    master.deliver(user, &corpus::short("meanwhile"))?;
    wait("mailboxes", &["Work", "Work/Sub", "Work/Sub/b&AOk-n", "Drafts 2"])?;
    imap.rename(ours.name(&["Work"]), ours.name(&["Old", "Work"]))?;
    imap.delete(ours.name(&["Drafts 2"]))?;
    imap.select("INBOX")?;
    imap.command(&format!("UID MOVE 1 \"{}\"", ours.name(&["Old", "Work"])))?;
    wait("renamed, deleted, moved", &["Old/Work", "Old/Work/Sub/b&AOk-n"])?;
    nodes[0].sync(lab)?;
    let check = nodes[0].replctl(lab, &["check", "--level", "deep"])?;
    ensure!(check.code == Some(0), "check: {}{}", check.stdout, check.stderr);
    Ok(())
}

#[test]
fn dots_between_the_parts_and_all_below_inbox() -> anyhow::Result<()> {
    Lab::run(|lab| replicate(lab, DOTS, DOTS, "ann"))
}

#[test]
fn sides_that_name_in_different_ways() -> anyhow::Result<()> {
    Lab::run(|lab| replicate(lab, DOTS, PLAIN, "ann"))?;
    Lab::run(|lab| replicate(lab, PLAIN, SLASHES, "ann"))
}

#[test]
fn users_of_virtual_domains() -> anyhow::Result<()> {
    Lab::run(|lab| replicate(lab, DOMAINS, DOMAINS, "jane@example.com"))?;
    Lab::run(|lab| replicate(lab, DOMAINS, DOMAINS, "john.doe@example.com"))?;
    Lab::run(|lab| replicate(lab, DOTTED_DOMAINS, DOMAINS, "jane@mail.example.com"))
}

/// Each character that a name may have: what is listed over IMAP must be found again inside.
fn odd_names(lab: &Lab, naming: Naming, user: &str) -> anyhow::Result<()> {
    let master = Cyrus::with_extra(lab, "a", naming.config)?;
    let replica = Cyrus::with_extra(lab, "b", naming.config)?;
    naming.create_user(&master, user)?;
    replica.set_password(user)?;
    let mut imap = master.imap(user)?;
    let mut taken = Vec::new();
    for odd in (' '..='~').filter(|odd| *odd != naming.separator) {
        let own = format!("{odd}x{odd}y{:x}", u32::from(odd));
        let name = naming.name(&[&own]).replace('\\', "\\\\").replace('"', "\\\"");
        if imap.command(&format!("CREATE \"{name}\"")).is_ok() {
            taken.push(odd);
        }
    }
    ensure!(taken.len() > 70, "Cyrus takes only {taken:?}");
    let stores = [("a", master.store_config()), ("b", replica.store_config())];
    let nodes = Node::start_beside(lab, &stores)?;
    lab.wait("all of them are replicated", || {
        let synced = nodes[0].replctl(lab, &["sync"])?;
        Ok(if synced.code == Some(0) { Ok(()) } else { Err(format!("{synced:?}")) })
    })?;
    nodes[0].replctl(lab, &["check", "--level", "full"])?.expect(0)?;
    let (ours, theirs) = (naming.state(&master, user)?, naming.state(&replica, user)?);
    ensure!(ours.len() == taken.len() + 1, "{taken:?} {ours:?}");
    ensure!(ours == theirs, "{ours:#?}\n{theirs:#?}");
    Ok(())
}

#[test]
fn names_of_every_character() -> anyhow::Result<()> {
    Lab::run(|lab| odd_names(lab, PLAIN, "ann"))?;
    Lab::run(|lab| odd_names(lab, DOTS, "ann"))?;
    Lab::run(|lab| odd_names(lab, DOMAINS, "jane@example.com"))
}
