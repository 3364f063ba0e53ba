//! The UID clash matrix: after a hard failover both sides have given one UID to a message of their
//! own. Whoever's clients have seen it there, no client ever sees a UID change its message.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use anyhow::{Context as _, ensure};
use mailtwin_tests::{
    cluster::Cluster,
    corpus,
    cyrus::Cyrus,
    dovecot::{Dovecot, Version},
    files,
    lab::Lab,
    process,
    server::Server,
    split::{Side, Uids},
};
use serde_json::Value;

/// Where the clash is: every account's first message is on both sides.
const UID: &str = "2";

/// What the two messages are, and what becomes of them before both sides are one again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Case {
    /// Two messages.
    Different,
    /// The same octets came to both.
    Same,
    /// The same, and each side's client sets a flag of its own.
    Flags,
    /// Two messages, and the old master's is expunged.
    GoneThere,
    /// Two messages, and the new master's is expunged.
    GoneHere,
}

const CASES: [Case; 5] =
    [Case::Different, Case::Same, Case::Flags, Case::GoneThere, Case::GoneHere];

/// One account.
struct Row {
    account: String,
    case: Case,
    /// Whether a client saw the message, there (on the old master) and here.
    presented: [bool; 2],
}

impl Row {
    fn all() -> Vec<Self> {
        let rows = CASES.into_iter().flat_map(|case| {
            [[false, false], [true, false], [false, true], [true, true]].map(|presented| {
                let seen = presented.map(|seen| if seen { "seen" } else { "unseen" }).join("-");
                let account = format!("{case:?}-{seen}").to_lowercase();
                Self { account, case, presented }
            })
        });
        rows.collect()
    }

    /// Serial number of this side's message.
    fn serial(&self, side: usize) -> String {
        let side = if matches!(self.case, Case::Same | Case::Flags) { 0 } else { side };
        format!("{}-{side}", self.account)
    }

    /// A message arrives at one side, and perhaps a client looks, flags or expunges it.
    fn clash(&self, server: &impl Arrivals, side: usize, uids: &mut Uids) -> anyhow::Result<()> {
        server.arrive(&self.account, &corpus::short(&self.serial(side)))?;
        if self.presented[side] {
            let mut imap = server.imap(&self.account)?;
            let opened = imap.select("INBOX")?;
            let validity = opened.uid_validity.context("UIDVALIDITY")?;
            let shown = imap.uid_fetch(UID, "(UID)")?;
            ensure!(shown.iter().any(|message| message.uid == Some(2)), "a message of UID {UID}");
            let place = (self.account.clone(), "INBOX".to_owned(), validity, 2);
            uids.see(&BTreeMap::from([(place, self.serial(side))]));
            imap.logout()?;
        } else {
            // What the mail server does by itself when mail is delivered: a UID that nobody sees.
            server.imap(&self.account)?.status("INBOX", "(UIDNEXT)")?;
        }
        let gone = [Case::GoneThere, Case::GoneHere][side] == self.case;
        if gone || self.case == Case::Flags {
            let mut imap = server.imap(&self.account)?;
            imap.select("INBOX")?;
            let flag = if gone { "\\Deleted" } else { ["\\Flagged", "\\Answered"][side] };
            imap.uid_store(UID, format!("+FLAGS.SILENT ({flag})"))?;
            imap.expunge()?;
            imap.logout()?;
        }
        Ok(())
    }

    /// What must be left.
    fn check(&self, merged: &Side) -> anyhow::Result<()> {
        let mut expected = BTreeMap::from([(format!("{}-first", self.account), 1)]);
        for side in [0, 1] {
            if [Case::GoneThere, Case::GoneHere][side] != self.case {
                expected.insert(self.serial(side), 1);
            }
        }
        let there = merged.counts();
        ensure!(there == expected, "{}: {there:?}, not {expected:?}", self.account);
        if self.case == Case::Flags {
            let inbox = merged.mailboxes.values().find(|mailbox| mailbox.name == "INBOX");
            let messages = &inbox.context("an INBOX")?.seen.messages;
            let flags = messages
                .values()
                .find(|message| message.serial.as_deref() == Some(&self.serial(0)))
                .map(|message| message.flags.clone())
                .unwrap_or_default();
            ensure!(
                flags.contains("\\flagged") && flags.contains("\\answered"),
                "{}: flags of both, not {flags:?}",
                self.account
            );
        }
        Ok(())
    }
}

/// Where the same octets can come to both sides, without what a delivery adds.
trait Arrivals: Server {
    /// Puts a message into an INBOX.
    fn arrive(&self, account: &str, message: &[u8]) -> anyhow::Result<()>;
}

impl Arrivals for Dovecot {
    /// As a file: no client is told of its UID.
    fn arrive(&self, account: &str, message: &[u8]) -> anyhow::Result<()> {
        let new = self.maildir(account).join("new");
        files::write_mail(&new.join(format!("1700000000.{}.{account}", self.name())), message)
    }
}

impl Arrivals for Cyrus {
    /// By the user's own session, the only one that is told of its UID.
    fn arrive(&self, account: &str, message: &[u8]) -> anyhow::Result<()> {
        let mut imap = self.imap(account)?;
        imap.append("INBOX", message).finish()?;
        Ok(imap.logout()?)
    }
}

#[test]
fn no_client_sees_a_uid_change_its_message() -> anyhow::Result<()> {
    Lab::run(|lab| no_uid_changes(lab, Cluster::start(lab, &["one", "two"])?))
}

#[test]
fn no_client_of_a_cyrus_sees_a_uid_change_its_message() -> anyhow::Result<()> {
    Lab::run(|lab| no_uid_changes(lab, Cluster::of_cyrus(lab, &["one", "two"])?))
}

fn no_uid_changes<S: Arrivals>(lab: &Lab, mut cluster: Cluster<S>) -> anyhow::Result<()> {
    let rows = Row::all();
    cluster.accounts = rows.iter().map(|row| row.account.clone()).collect();
    for (place, server) in cluster.servers.iter().enumerate() {
        for account in &cluster.accounts {
            server.add_account(account, place == 0)?;
        }
    }
    for row in &rows {
        let first = corpus::short(&format!("{}-first", row.account));
        cluster.servers[0].deliver(&row.account, &first)?;
    }
    part(lab, &mut cluster)?;
    let mut uids = Uids::default();
    for row in &rows {
        row.clash(&cluster.servers[0], 0, &mut uids)?;
        row.clash(&cluster.servers[1], 1, &mut uids)?;
    }
    unite(lab, &mut cluster)?;
    for server in &cluster.servers {
        for row in &rows {
            let merged = Side::read(lab, server, &row.account)?;
            uids.see_merged(&merged.presented(&row.account))
                .and_then(|()| row.check(&merged))
                .with_context(|| format!("on {}: {merged:#?}", server.name()))?;
        }
    }
    Ok(())
}

/// Dovecot takes the time of day for a new mailbox's UIDVALIDITY.
const SAME_SECOND: &str = "1700000000";

#[test]
fn mailboxes_made_in_the_same_second_on_both_sides_become_one() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mut cluster = Cluster::start(lab, &["one", "two"])?;
        part(lab, &mut cluster)?;
        for (side, server) in cluster.servers.iter().enumerate() {
            server.imap("u1")?.create("Twin")?;
            let doveadm = server.doveadm()?;
            let set = format!("{doveadm} mailbox update -u u1 --uid-validity {SAME_SECOND} Twin");
            process::run(lab, &["sh".as_ref(), "-c".as_ref(), set.as_ref()], false)?.expect(0)?;
            append(server, "Twin", &[&format!("twin{side}"), "both"])?;
        }
        unite(lab, &mut cluster)?;
        expect(lab, &cluster, &["twin0", "twin1", "both"])?;
        for server in &cluster.servers {
            let validity = server.imap("u1")?.examine("Twin")?.uid_validity;
            ensure!(validity == SAME_SECOND.parse().ok(), "{}: {validity:?}", server.name());
        }
        Ok(())
    })
}

#[test]
fn a_mailbox_deleted_and_made_anew_by_the_old_masters_client_keeps_its_mail() -> anyhow::Result<()>
{
    Lab::run(|lab| {
        let mut cluster = Cluster::start(lab, &["one", "two"])?;
        let old = |cluster: &Cluster| cluster.servers[0].imap("u1");
        old(&cluster)?.create("Empty")?;
        old(&cluster)?.create("Held")?;
        append(&cluster.servers[0], "Held", &["held"])?;
        part(lab, &mut cluster)?;
        for name in ["Empty", "Held"] {
            old(&cluster)?.delete(name)?;
            old(&cluster)?.create(name)?;
            append(&cluster.servers[0], name, &[&format!("anew-{name}")])?;
        }
        unite(lab, &mut cluster)?;
        expect(lab, &cluster, &["anew-Empty", "anew-Held"])
    })
}

#[test]
fn an_account_that_cannot_be_merged_holds_up_no_other() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mut cluster = Cluster::start(lab, &["one", "two"])?;
        ensure!(cluster.accounts == ["u1", "u2"], "{:?}", cluster.accounts);
        cluster.deliver(0, 0, 4)?;
        part(lab, &mut cluster)?;
        cluster.deliver(0, 4, 8)?;
        cluster.servers[0].stop()?;
        let shut = cluster.servers[0].maildir("u2").join("cur");
        files::chmod(&shut, 0)?;
        cluster.force(lab, 1)?;
        cluster.rise(lab, 0)?;
        cluster.wait_master(lab, 1)?;
        lab.wait("the one is set aside, the other merged", || {
            let aside = cluster.nodes[1].ask(lab, &["quarantine", "list"])?;
            let entries = aside["entries"].as_array().context("entries")?;
            let told = |entry: &Value| {
                let text = entry["last"].to_string();
                entry["object"] == "u2" && text.contains("cannot be copied back")
            };
            let merged = Side::read(lab, &cluster.servers[1], "u1")?.counts().len() == 4;
            let done = entries.len() == 1 && told(&entries[0]) && merged;
            Ok(if done { Ok(()) } else { Err(format!("merged {merged}: {aside}")) })
        })?;
        // Mail goes on to come for both: of the one it is replicated, of the other nothing is.
        cluster.deliver(1, 8, 12)?;
        lab.wait("the other account is replicated", || {
            let there = files::messages(&cluster.servers[0].maildir("u1"))?;
            Ok(if there.len() == 6 { Ok(()) } else { Err(format!("{there:?}")) })
        })?;
        let there = files::messages(&cluster.servers[0].maildir("u2"))?;
        ensure!(there.len() == 4, "what u2 had there, and no more: {there:?}");
        // Also not after the agent has begun anew.
        cluster.nodes[1].stop_agent()?;
        cluster.nodes[1].start_agent(lab)?;
        cluster.wait_master(lab, 1)?;
        files::chmod(&shut, 0o700)?;
        lab.wait("what is well again is tried again", || {
            let retried = cluster.nodes[1].replctl(lab, &["quarantine", "retry"])?;
            Ok(if retried.code == Some(0) { Ok(()) } else { Err(retried.stderr) })
        })?;
        cluster.wait_merged(lab, 1)?;
        let expected: BTreeSet<String> = (0..12).map(|serial| format!("m{serial}")).collect();
        for place in [0, 1] {
            let there = cluster.serials(place)?;
            ensure!(there == expected, "{place}: {there:?}");
        }
        Ok(())
    })
}

/// The first node's daemons die, and its clients go on beside those of the second.
fn part<S: Server>(lab: &Lab, cluster: &mut Cluster<S>) -> anyhow::Result<()> {
    cluster.nodes[0].replctl(lab, &["drain"])?.expect(0)?;
    cluster.nodes[0].kill_both()?;
    cluster.gates[1].open_by_hand()
}

/// The first machine dies, the second is made the master, and the first comes back.
fn unite<S: Server>(lab: &Lab, cluster: &mut Cluster<S>) -> anyhow::Result<()> {
    cluster.servers[0].stop()?;
    cluster.force(lab, 1)?;
    cluster.rise(lab, 0)?;
    cluster.wait_merged(lab, 1)
}

fn append(server: &Dovecot, mailbox: &str, serials: &[&str]) -> anyhow::Result<()> {
    let mut imap = server.imap("u1")?;
    for serial in serials {
        imap.append(mailbox, &corpus::short(serial)).finish()?;
    }
    imap.logout()?;
    Ok(())
}

/// Both have these messages, each once.
fn expect(lab: &Lab, cluster: &Cluster, serials: &[&str]) -> anyhow::Result<()> {
    let expected = serials.iter().map(|serial| ((*serial).to_owned(), 1)).collect();
    for server in &cluster.servers {
        let there = Side::read(lab, server, "u1")?.counts();
        ensure!(there == expected, "{}: {there:?}", server.name());
    }
    Ok(())
}

/// Why no UID is left to the message that a client has seen: neither server can tell that it was not.
#[test]
fn no_server_proves_that_a_message_was_not_shown() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let dovecot = Dovecot::start(lab, "dovecot", Version::V23)?;
        let new = dovecot.maildir("ann").join("new");
        dovecot.deliver("ann", &corpus::short("shown"))?;
        show_read_only(&dovecot)?;
        ensure!(fs::read_dir(&new)?.count() == 1, "it was shown, and lies in new/ all the same");
        dovecot.imap("ann")?.select("INBOX")?;
        ensure!(fs::read_dir(&new)?.count() == 0, "only SELECT moves it");

        let cyrus = Cyrus::start(lab, "cyrus")?;
        cyrus.create_user("ann")?;
        cyrus.deliver("ann", &corpus::short("shown"))?;
        let recent = || {
            let told = cyrus.told("ann")?;
            let inbox = told.iter().find(|answer| answer.name == "MAILBOX").context("an INBOX")?;
            let value = inbox.values.first().and_then(|value| value.get("RECENTUID"));
            let uid = value.and_then(|value| value.as_text()).context("RECENTUID")?;
            anyhow::Ok(String::from_utf8_lossy(uid).into_owned())
        };
        show_read_only(&cyrus)?;
        ensure!(recent()? == "0", "it was shown, and RECENTUID does not know");
        cyrus.imap("ann")?.select("INBOX")?;
        ensure!(recent()? == "1", "only SELECT raises it");
        Ok(())
    })
}

/// A client looks at ann's only message, read-only.
fn show_read_only(server: &impl Server) -> anyhow::Result<()> {
    let mut imap = server.imap("ann")?;
    imap.examine("INBOX")?;
    let shown = imap.uid_fetch("1:*", "(UID BODY.PEEK[HEADER])")?;
    ensure!(shown.iter().any(|message| message.uid == Some(1)), "UID 1 is shown");
    Ok(())
}
