//! One client of a workload.

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::Context as _;
use chrono::DateTime;
use imap::types::Flag;

use super::{Shared, SharedAccount};
use crate::{corpus, imap::Imap, lmtp, random::Random};

/// Mailboxes that come and go, parts separated by slashes. INBOX is always there.
const NAMES: [&str; 10] =
    ["A", "B", "C", "A/x", "A/x/deep", "B/y", "C/z", "Entw&APw-rfe", "two words", "&ZeVnLIqe-"];

const FLAGS: [&str; 4] = ["\\Seen", "\\Answered", "\\Flagged", "\\Draft"];
const KEYWORDS: [&str; 6] = ["$Junk", "$Forwarded", "work", "later", "NonJunk", "todo-1"];

/// What a client can do, each as often as it stands here.
const OPERATIONS: [(&str, usize); 16] = [
    ("deliver", 20),
    ("append", 12),
    ("flags", 18),
    ("keywords", 10),
    ("expunge", 8),
    ("copy", 8),
    ("move", 8),
    ("create", 5),
    ("rename", 4),
    ("rotate", 2),
    ("delete", 2),
    ("recreate", 2),
    ("subscribe", 3),
    ("unsubscribe", 2),
    ("sieve", 2),
    ("rights", 2),
];

/// How long a client rests between operations once the run's number is reached.
const REST: Duration = Duration::from_millis(50);

/// What one client came to.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) history: String,
    pub(super) done: usize,
    pub(super) refused: usize,
    pub(super) dropped: usize,
}

pub(super) struct Client<'a> {
    shared: &'a Shared<'a>,
    account: &'a SharedAccount,
    name: String,
    random: Random,
    imap: Option<Imap>,
    selected: bool,
    serial: usize,
    outcome: Outcome,
}

impl<'a> Client<'a> {
    pub(super) fn new(
        shared: &'a Shared<'a>,
        account: &'a SharedAccount,
        name: String,
        random: Random,
    ) -> Self {
        let outcome = Outcome::default();
        Self { shared, account, name, random, imap: None, selected: false, serial: 0, outcome }
    }

    /// Works until the run's number is reached and `go_on` is cleared.
    /// What it came to until then is told in any case.
    pub(super) fn run(mut self, go_on: &AtomicBool) -> (Outcome, anyhow::Result<()>) {
        let ended = self.work(go_on);
        (self.outcome, ended)
    }

    fn work(&mut self, go_on: &AtomicBool) -> anyhow::Result<()> {
        loop {
            let take = |left: usize| left.checked_sub(1);
            let taken =
                self.shared.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok();
            if !taken {
                if !go_on.load(Ordering::Relaxed) {
                    return Ok(());
                }
                self.shared.clock.pause(REST);
            }
            self.step()?;
        }
    }

    /// One operation. What a server may answer to a client that came second is no failure.
    fn step(&mut self) -> anyhow::Result<()> {
        let total = OPERATIONS.iter().map(|(_, weight)| weight).sum();
        let mut at = self.random.below(total);
        let operation = OPERATIONS.iter().find(|(_, weight)| {
            let found = at < *weight;
            at = at.saturating_sub(*weight);
            found
        });
        let (operation, _) = operation.context("the weights add up")?;
        let start = self.shared.clock.unix_ms();
        let outcome = self.perform(operation);
        let took = self.shared.clock.unix_ms().saturating_sub(start);
        let client = &self.name;
        let verdict = match outcome {
            Ok(what) => {
                self.outcome.done += 1;
                what
            }
            // Dovecot's delivery process dies now and then of itself while many clients work on one
            // mailbox: such a message was not accepted, so the ledger does not have it.
            Err(error) if error.is::<lmtp::Dropped>() => {
                self.outcome.dropped += 1;
                format!("dropped: {error:#}")
            }
            Err(error) => match error.downcast_ref::<imap::Error>() {
                Some(imap::Error::No(_) | imap::Error::Append) => {
                    self.outcome.refused += 1;
                    format!("refused: {error:#}")
                }
                Some(imap::Error::Bad(_)) | None => {
                    return Err(error.context(format!("{client}: {operation}")));
                }
                Some(_) => {
                    self.outcome.dropped += 1;
                    self.imap = None;
                    self.selected = false;
                    format!("dropped: {error:#}")
                }
            },
        };
        let _ = writeln!(self.outcome.history, "{start} {took:4} {client} {operation} {verdict}");
        Ok(())
    }

    /// Renames and deletions have an account to themselves: two clients that do them at once can
    /// lock each other out in Dovecot for minutes, and nobody learns about replication from that.
    fn perform(&mut self, operation: &str) -> anyhow::Result<String> {
        let account = self.account;
        let _alone;
        let _together;
        if ["rename", "rotate", "delete", "recreate"].contains(&operation) {
            _alone = account.structure.write();
        } else {
            _together = account.structure.read();
        }
        let outcome = self.act(operation);
        self.unselect()?;
        outcome
    }

    /// Leaves no mailbox selected: Dovecot can write a list of UIDs that it has in memory into
    /// the mailbox that took the old one's name.
    fn unselect(&mut self) -> anyhow::Result<()> {
        let selected = std::mem::take(&mut self.selected);
        if let Some(imap) = self.imap.as_mut().filter(|_| selected) {
            imap.run_command_and_check_ok("UNSELECT")?;
        }
        Ok(())
    }

    fn act(&mut self, operation: &str) -> anyhow::Result<String> {
        match operation {
            "deliver" => self.deliver(),
            "append" => self.append(),
            "flags" => self.store(&FLAGS),
            "keywords" => self.store(&KEYWORDS),
            "expunge" => self.expunge(),
            "copy" => self.copy(false),
            "move" => self.copy(true),
            "create" => self.one_name("CREATE"),
            "subscribe" => self.one_name("SUBSCRIBE"),
            "unsubscribe" => self.one_name("UNSUBSCRIBE"),
            "rename" => self.rename(),
            "rotate" => self.rotate(),
            "delete" => self.delete(false),
            "recreate" => self.delete(true),
            "sieve" => self.shared.server.edit_script(&self.account.name, &mut self.random),
            _ => self.rights(),
        }
    }

    fn deliver(&mut self) -> anyhow::Result<String> {
        let serial = self.next_serial();
        let message = corpus::message(&mut self.random, &serial)?;
        self.shared.server.deliver(&self.account.name, &message)?;
        self.account.ledger.accepted(serial.clone());
        Ok(serial)
    }

    fn append(&mut self) -> anyhow::Result<String> {
        let mailbox = self.mailbox();
        let serial = self.next_serial();
        let message = corpus::message(&mut self.random, &serial)?;
        let seconds = i64::try_from(self.random.below(1_700_000_000)).unwrap_or(0);
        let date = DateTime::from_timestamp(seconds, 0).context("a date")?.fixed_offset();
        let mut flags = Vec::new();
        for name in FLAGS.into_iter().chain(KEYWORDS) {
            if self.random.once_in(5) {
                flags.push(Flag::from(name));
            }
        }
        let imap = session(&mut self.imap, self.shared, self.account)?;
        imap.append(&mailbox, &message).flags(flags).internal_date(date).finish()?;
        self.account.ledger.accepted(serial.clone());
        Ok(format!("{serial} to {mailbox}"))
    }

    fn store(&mut self, names: &[&str]) -> anyhow::Result<String> {
        let sign = ["+", "-"][self.random.below(2)];
        let first = *self.random.pick(names).context("a flag")?;
        let second = *self.random.pick(names).context("a flag")?;
        let what = format!("{sign}FLAGS.SILENT ({first} {second})");
        let (mailbox, uids) = self.some_uids()?;
        if uids.is_empty() {
            return Ok(format!("nothing in {mailbox}"));
        }
        let imap = session(&mut self.imap, self.shared, self.account)?;
        imap.run_command_and_check_ok(format!("UID STORE {uids} {what}"))?;
        Ok(format!("{mailbox} {uids} {what}"))
    }

    fn expunge(&mut self) -> anyhow::Result<String> {
        let (mailbox, uids) = self.some_uids()?;
        if uids.is_empty() {
            return Ok(format!("nothing in {mailbox}"));
        }
        let all = self.random.once_in(2);
        let imap = session(&mut self.imap, self.shared, self.account)?;
        self.account.ledger.removing(serials(imap, &uids)?);
        imap.run_command_and_check_ok(format!("UID STORE {uids} +FLAGS.SILENT (\\Deleted)"))?;
        if all {
            imap.expunge()?;
        } else {
            imap.uid_expunge(&uids)?;
        }
        Ok(format!("{mailbox} {uids}"))
    }

    fn copy(&mut self, remove: bool) -> anyhow::Result<String> {
        let to = self.mailbox();
        let (mailbox, uids) = self.some_uids()?;
        if uids.is_empty() {
            return Ok(format!("nothing in {mailbox}"));
        }
        let imap = session(&mut self.imap, self.shared, self.account)?;
        let command = if remove { "MOVE" } else { "COPY" };
        imap.run_command_and_check_ok(format!("UID {command} {uids} \"{to}\""))?;
        Ok(format!("{mailbox} {uids} to {to}"))
    }

    fn one_name(&mut self, command: &str) -> anyhow::Result<String> {
        let name = self.name_of_many();
        let imap = session(&mut self.imap, self.shared, self.account)?;
        imap.run_command_and_check_ok(format!("{command} \"{name}\""))?;
        Ok(name)
    }

    fn rename(&mut self) -> anyhow::Result<String> {
        let (from, to) = (self.name_of_many(), self.name_of_many());
        let imap = session(&mut self.imap, self.shared, self.account)?;
        if is_taken(imap, &to)? {
            return Ok(format!("{to} is taken"));
        }
        imap.rename(&from, &to)?;
        Ok(format!("{from} to {to}"))
    }

    /// B to C, A to B at once: the name B is never free for long.
    fn rotate(&mut self) -> anyhow::Result<String> {
        let imap = session(&mut self.imap, self.shared, self.account)?;
        if is_taken(imap, "C")? {
            return Ok("C is taken".into());
        }
        imap.rename("B", "C")?;
        imap.rename("A", "B")?;
        Ok("B to C, A to B".into())
    }

    fn delete(&mut self, recreate: bool) -> anyhow::Result<String> {
        let name = self.name_of_many();
        let imap = session(&mut self.imap, self.shared, self.account)?;
        let opened = imap.examine(&name)?;
        if opened.exists > 0 {
            self.account.ledger.removing(serials(imap, "1:*")?);
        }
        imap.close()?;
        imap.delete(&name)?;
        if recreate {
            imap.create(&name)?;
        }
        Ok(name)
    }

    fn rights(&mut self) -> anyhow::Result<String> {
        let mailbox = self.mailbox();
        let who = format!("friend{}", self.random.below(3));
        let command = if self.random.once_in(3) {
            format!("DELETEACL \"{mailbox}\" {who}")
        } else {
            format!("SETACL \"{mailbox}\" {who} {}", ["lr", "lrs", "lrsw"][self.random.below(3)])
        };
        let imap = session(&mut self.imap, self.shared, self.account)?;
        imap.run_command_and_check_ok(&command)?;
        Ok(command)
    }

    /// A few UIDs of a mailbox that is then selected.
    fn some_uids(&mut self) -> anyhow::Result<(String, String)> {
        let mailbox = self.mailbox();
        let imap = session(&mut self.imap, self.shared, self.account)?;
        imap.select(&mailbox)?;
        self.selected = true;
        let mut uids: Vec<u32> = imap.uid_search("ALL")?.into_iter().collect();
        uids.sort_unstable();
        let mut set = Vec::new();
        for _ in 0..=self.random.below(3) {
            set.extend(self.random.pick(&uids).map(u32::to_string));
        }
        Ok((mailbox, set.join(",")))
    }

    /// Any mailbox, often INBOX; it may not exist.
    fn mailbox(&mut self) -> String {
        if self.random.once_in(3) { "INBOX".into() } else { self.name_of_many() }
    }

    fn name_of_many(&mut self) -> String {
        let name = *self.random.pick(&NAMES).unwrap_or(&"A");
        name.replace('/', &self.shared.server.separator().to_string())
    }

    fn next_serial(&mut self) -> String {
        self.serial += 1;
        format!("{}-{}", self.name, self.serial)
    }
}

/// The client's session, opened when there is none.
fn session<'s>(
    imap: &'s mut Option<Imap>,
    shared: &Shared<'_>,
    account: &SharedAccount,
) -> anyhow::Result<&'s mut Imap> {
    if imap.is_none() {
        *imap = Some(shared.server.imap(&account.name)?);
    }
    imap.as_mut().context("a session")
}

/// Whether a name or one below it is there: Dovecot stops half-way through a rename of a tree
/// whose target has children.
fn is_taken(imap: &mut Imap, name: &str) -> anyhow::Result<bool> {
    Ok(!imap.list(None, Some(&format!("\"{name}*\"")))?.is_empty())
}

/// Serial numbers of messages of the selected mailbox.
fn serials(imap: &mut Imap, uids: &str) -> anyhow::Result<Vec<String>> {
    let fetched = imap.uid_fetch(uids, "(UID BODY.PEEK[HEADER])")?;
    Ok(fetched.iter().filter_map(|fetch| corpus::serial(fetch.header()?)).collect())
}
