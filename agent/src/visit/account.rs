//! Visits one account: its list of mailboxes and its files; finds the mailboxes that differ.

use std::collections::{BTreeMap, BTreeSet};

use mailtwin_logic::{
    entry::Target,
    ids::Account,
    limits::{LISTED_MAILBOXES_MAX, RECORDS_WEIGHT_MAX},
    mailbox::{AccountState, FileKey, MailboxName},
    plan::{self, AccountPlan, Step},
    wire::message::{Reply, Request, told},
};
use mailtwin_store::{Listing, Reason};

use super::{
    Listed, Trouble, VisitError, Visited, Visitor, held::Moment, name_some, refused, trouble,
};

/// How often a list that keeps changing is compared in one visit.
const TRIES: usize = 4;
/// Mailboxes named in one account's trouble.
const TOLD: usize = 3;

impl Visitor {
    pub(super) async fn account(&self, account: &Account) -> Result<Visited, VisitError> {
        for _ in 0..TRIES {
            let (name, moment) = (account.clone(), self.held.moment());
            let look = self.work(move |store| store.account(&name));
            let (ours, theirs) = tokio::join!(look, self.their_account(account));
            let Some(ours) = ours? else {
                // The account's directory is gone. Whole accounts are never removed on a replica
                // by replication (I2): an admin does that.
                return Ok(Visited::default());
            };
            let (theirs, unread) = theirs?;
            let mut plan = plan::account(&ours.state, &theirs);
            if self.shares_modseq() {
                plan::raise_modseqs(&mut plan, &ours.state, &theirs);
            }
            keep_unread(&mut plan, &ours);
            let held = self.hold_deletes(account, &ours.state, &theirs, &mut plan);
            self.note_equal(moment, account, (&ours, &theirs), &plan);
            self.count(account, &ours.state, &theirs);
            for (mailbox, theirs) in &plan.visits {
                self.held.expect(account, mailbox.id, *theirs);
            }
            if plan.steps.is_empty() {
                let trouble = self.files(account, &plan, &theirs).await?;
                let visited = visited(account, &ours, &plan, &unread);
                let troubles = [held, visited.trouble, trouble].into_iter().flatten();
                return Ok(Visited { trouble: troubles.reduce(Trouble::with), ..visited });
            }
            self.restructure(account, std::mem::take(&mut plan.steps)).await?;
            // The list is looked at again: what was moved has another head to be compared with.
        }
        let detail = format!("the list of mailboxes changed {TRIES} times while it was compared");
        Err(VisitError::Target(Trouble::new(Reason::Busy, detail)))
    }

    pub(crate) async fn their_account(
        &self,
        account: &Account,
    ) -> Result<(AccountState, BTreeMap<MailboxName, String>), VisitError> {
        let mut stream = self.connection.ask(&Request::Account(account.clone())).await?;
        let (mut state, mut failing) = (AccountState::default(), BTreeMap::new());
        let mut parts = Listed::of_at_most(LISTED_MAILBOXES_MAX);
        loop {
            match stream.reply().await? {
                Reply::Account { mailboxes, files, unread, more } => {
                    parts.take(mailboxes.len() + files.len() + unread.len())?;
                    let unread = unread.into_iter().map(|(name, why)| (name, told(&why)));
                    state.mailboxes.extend(mailboxes);
                    state.files.extend(files);
                    failing.extend(unread);
                    if !more {
                        return Ok((state, failing));
                    }
                }
                other => return Err(refused(other)),
            }
        }
    }

    /// Remembers the mailboxes that are equal, so that their next change costs no comparison, and
    /// forgets those that have another name there.
    fn note_equal(
        &self,
        moment: Moment,
        account: &Account,
        (ours, theirs): (&Listing, &AccountState),
        plan: &AccountPlan,
    ) {
        let names: BTreeMap<_, _> = theirs.mailboxes.iter().map(|m| (m.id, &m.name)).collect();
        let differs: BTreeSet<_> = plan.visits.iter().map(|(mailbox, _)| mailbox.id).collect();
        let blocked: BTreeSet<_> = plan.blocked.iter().collect();
        for mailbox in &ours.state.mailboxes {
            if names.get(&mailbox.id).is_some_and(|name| **name != mailbox.name) {
                self.held.forget(account, mailbox.id);
            } else if !differs.contains(&mailbox.id) && !blocked.contains(&mailbox.name) {
                self.held.equal_since(moment, account, mailbox);
            }
        }
    }

    /// Counts what the replica has of an account's messages, mailbox by mailbox.
    fn count(&self, account: &Account, ours: &AccountState, theirs: &AccountState) {
        let theirs: BTreeMap<_, _> =
            theirs.mailboxes.iter().map(|mailbox| (mailbox.id, mailbox.head.messages)).collect();
        let there = ours.mailboxes.iter().map(|mailbox| {
            let held = theirs.get(&mailbox.id).copied().unwrap_or(0);
            u64::from(held.min(mailbox.head.messages))
        });
        self.progress.account(account, &ours.mailboxes, Some(there.sum()));
    }

    pub(super) async fn restructure(
        &self,
        account: &Account,
        steps: Vec<Step>,
    ) -> Result<(), VisitError> {
        for steps in frames(steps) {
            let request = Request::Restructure { account: account.clone(), steps };
            match self.connection.ask(&request).await?.reply().await? {
                // Stale: somebody moved mailboxes on the replica; the next round sees how.
                Reply::Done | Reply::Stale(_) => {}
                other => return Err(refused(other)),
            }
        }
        Ok(())
    }

    /// Makes the files equal; what keeps one from it does not keep the mailboxes waiting.
    async fn files(
        &self,
        account: &Account,
        plan: &AccountPlan,
        theirs: &AccountState,
    ) -> Result<Option<Trouble>, VisitError> {
        let there: BTreeSet<&MailboxName> = theirs.mailboxes.iter().map(|m| &m.name).collect();
        let mut trouble = None;
        let mut note = |result| match result {
            Err(VisitError::Target(new)) => {
                trouble.get_or_insert(new);
                Ok(())
            }
            other => other,
        };
        for key in &plan.write {
            // That of a mailbox that is yet to be built follows when it is there.
            if key.mailbox().is_none_or(|name| there.contains(name)) {
                note(self.write_file(account, key).await)?;
            }
        }
        for (key, _) in &plan.remove {
            note(self.set_file(account, key, None).await)?;
        }
        Ok(trouble)
    }

    /// Copies one of the account's files, if the master has it.
    pub(super) async fn write_file(
        &self,
        account: &Account,
        key: &FileKey,
    ) -> Result<(), VisitError> {
        let (name, wanted) = (account.clone(), key.clone());
        let content = self.work(move |store| store.file(&name, &wanted)).await?;
        if content.is_none() {
            return Ok(());
        }
        self.set_file(account, key, content).await
    }

    async fn set_file(
        &self,
        account: &Account,
        key: &FileKey,
        content: Option<Vec<u8>>,
    ) -> Result<(), VisitError> {
        let request = Request::SetFile { account: account.clone(), key: key.clone(), content };
        match self.connection.ask(&request).await?.reply().await? {
            Reply::Done => Ok(()),
            other => Err(refused(other)),
        }
    }
}

/// A mailbox that cannot be read on the master has not been deleted. It may have been renamed, too,
/// and only its identity would tell: so nothing is deleted before all can be read (I2).
pub(super) fn keep_unread(plan: &mut AccountPlan, ours: &Listing) {
    if ours.unread.is_empty() {
        return;
    }
    let mut kept: BTreeSet<MailboxName> =
        ours.unread.iter().map(|(name, ..)| name.clone()).collect();
    for step in &plan.steps {
        if let Step::Delete { name, .. } | Step::Reset { name, .. } = step {
            kept.insert(name.clone());
        }
    }
    plan.steps.retain(|step| matches!(step, Step::Rename { to, .. } if !kept.contains(to)));
}

/// Cuts steps into requests that fit a frame. Nearly always it is one; moves that depend on each
/// other then happen together.
fn frames(mut steps: Vec<Step>) -> Vec<Vec<Step>> {
    let mut parts = vec![Vec::new()];
    let mut weight = 0;
    for step in steps.drain(..) {
        let its_weight = 64
            + match &step {
                Step::Delete { name, .. } | Step::Reset { name, .. } => name.as_octets().len(),
                Step::Rename { from, to, .. } => from.as_octets().len() + to.as_octets().len(),
            };
        weight += its_weight;
        if weight > RECORDS_WEIGHT_MAX {
            parts.push(Vec::new());
            weight = its_weight;
        }
        parts.last_mut().expect("there is always one").push(step);
    }
    parts
}

fn visited(
    account: &Account,
    ours: &Listing,
    plan: &AccountPlan,
    unread: &BTreeMap<MailboxName, String>,
) -> Visited {
    let mut reasons = Vec::new();
    for (name, reason, detail) in ours.unread.iter().take(TOLD) {
        reasons.push((*reason, format!("master: {name}: {detail}")));
    }
    for (name, detail) in unread.iter().take(TOLD) {
        let code = detail.split_once(": ").and_then(|(code, _)| code.parse().ok());
        reasons.push((code.unwrap_or(Reason::Io), format!("replica: {name}: {detail}")));
    }
    if !plan.extra.is_empty() {
        let names = name_some(&plan.extra);
        let why = "only on the replica, with mail that replication did not put there: kept";
        reasons.push((Reason::Conflict, format!("{names} {why}")));
    }
    let readable = |name: &MailboxName| !unread.contains_key(name);
    let visits = plan.visits.iter().map(|(mailbox, _)| &mailbox.name);
    let ailing = ours.ailing.iter().filter(|name| !plan.blocked.contains(name));
    let visits: BTreeSet<&MailboxName> = visits.chain(ailing).collect();
    let dirty = visits.into_iter().filter(|name| readable(name));
    let dirty = dirty.map(|name| Target::Mailbox(account.clone(), name.clone())).collect();
    Visited { dirty, trouble: trouble(reasons) }
}

#[cfg(test)]
mod tests {
    use mailtwin_logic::ids::MailboxId;

    use super::*;

    fn name(text: &str) -> MailboxName {
        MailboxName::new(text.as_bytes()).unwrap()
    }

    fn delete(at: &str) -> Step {
        Step::Delete { id: MailboxId([1; 16]), name: name(at) }
    }

    fn rename(from: &str, to: &str) -> Step {
        Step::Rename { id: MailboxId([2; 16]), from: name(from), to: name(to) }
    }

    #[test]
    fn nothing_is_deleted_while_a_mailbox_cannot_be_read() {
        let steps =
            vec![delete("Old"), rename("A", "B"), rename("C", "Old"), rename("D", "Secret")];
        let mut plan = AccountPlan { steps: steps.clone(), ..AccountPlan::default() };
        keep_unread(&mut plan, &Listing::default());
        assert_eq!(plan.steps, steps);
        // `Secret` may be what was `Old`: its name alone does not tell.
        let unread = vec![(name("Secret"), Reason::Denied, String::new())];
        keep_unread(&mut plan, &Listing { unread, ..Listing::default() });
        assert_eq!(plan.steps, [rename("A", "B")]);
    }

    #[test]
    fn steps_of_a_huge_account_fit_into_frames() {
        let long = "x".repeat(1000);
        let steps: Vec<Step> = (0..2000).map(|n| rename(&format!("{n}{long}"), &long)).collect();
        let parts = frames(steps.clone());
        assert!(parts.len() > 4);
        assert_eq!(parts.concat(), steps);
        assert_eq!(frames(vec![delete("A"), delete("B")]).len(), 1);
    }
}
