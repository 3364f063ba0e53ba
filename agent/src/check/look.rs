//! One look at both sides: the tree of digests, accounts' lists, mailboxes.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{FutureExt as _, StreamExt as _, stream};
use mailtwin_host::admin::CheckLevel;
use mailtwin_logic::{
    check::{self, Depth, Difference, Inspect, Kind, Repair, Side, Slots},
    digest::Digest,
    ids::{Account, MailboxId, ModSeq, Uid},
    mailbox::{AccountState, MailboxName},
    wire::message::Request,
};
use mailtwin_store::Listing;

use super::{
    Checker, Tally, Wanted,
    ask::{Ours, Sum},
    scope::Suspect,
};
use crate::visit::{Trouble, VisitError};

/// Accounts looked at together.
const ACCOUNTS: usize = 4;
/// Mailboxes of one account looked at together.
const MAILBOXES: usize = 2;

type Unread = BTreeMap<MailboxName, String>;

/// Which messages of a mailbox are read.
#[derive(Clone, Debug)]
enum Reading {
    None,
    Slots(Slots),
    /// And no others are looked at.
    Sparse(Slots),
    Only(BTreeSet<Uid>),
}

impl Checker {
    /// Looks at all that was asked for once.
    pub(super) async fn first_look(&self, wanted: &Wanted) -> Result<Vec<Difference>, VisitError> {
        if let Some(accounts) = wanted.scope.accounts() {
            Tally::add(&self.tally.accounts, accounts.len() as u64);
            return self.accounts(accounts, wanted, None).await;
        }
        let names = self.visitor.work(|store| store.accounts()).await?;
        let count = |listing: &Listing| self.count(listing, wanted.level);
        let (ours, theirs) = tokio::try_join!(self.ours(names, count), self.their_tree())?;
        let branches = check::differing(&ours.branches, &theirs);
        let unsure = |account: &Account| ours.accounts.get(account).is_some_and(Option::is_none);
        let theirs = if branches.is_empty() {
            BTreeMap::new()
        } else {
            self.visitor.their_accounts(&Request::Branch(branches.clone()), |_| true).await?
        };
        let extra = theirs.keys().filter(|account| !ours.accounts.contains_key(account));
        let mut found: Vec<Difference> = extra.map(account_extra).collect();
        let Ours { accounts, .. } = &ours;
        let differs = |account: &Account, digest: Option<Digest>| {
            branches.contains(&check::branch(account)) && theirs.get(account).copied() != digest
        };
        let closer = accounts.iter().filter(|(account, digest)| {
            wanted.level > CheckLevel::Quick || unsure(account) || differs(account, **digest)
        });
        let closer: Vec<Account> = closer.map(|(account, _)| account.clone()).collect();
        Tally::add(&self.tally.accounts, accounts.len() as u64);
        found.extend(self.accounts(closer, wanted, None).await?);
        Ok(found)
    }

    fn count(&self, listing: &Listing, level: CheckLevel) {
        let mailboxes = &listing.state.mailboxes;
        let messages: u64 = mailboxes.iter().map(|m| u64::from(m.head.messages)).sum();
        Tally::add(&self.tally.total, messages);
        if level == CheckLevel::Quick {
            Tally::add(&self.tally.messages, messages);
            Tally::add(&self.tally.mailboxes, mailboxes.len() as u64);
        }
    }

    /// Looks at accounts, all of them or what is suspect in them.
    pub(super) async fn accounts(
        &self,
        accounts: Vec<Account>,
        wanted: &Wanted,
        suspects: Option<&BTreeMap<Account, Suspect>>,
    ) -> Result<Vec<Difference>, VisitError> {
        let looks = accounts.into_iter().map(|account| {
            let suspect = suspects.and_then(|suspects| suspects.get(&account)).cloned();
            async move { self.account(&account, wanted, suspect).await }.boxed()
        });
        let mut looks = stream::iter(looks).buffer_unordered(ACCOUNTS);
        let mut found = Vec::new();
        while let Some(some) = looks.next().await {
            found.extend(some?);
        }
        Ok(found)
    }

    async fn account(
        &self,
        account: &Account,
        wanted: &Wanted,
        suspect: Option<Suspect>,
    ) -> Result<Vec<Difference>, VisitError> {
        let (ours, theirs) =
            tokio::join!(self.our_listing(account), self.visitor.their_account(account));
        let mut found = Vec::new();
        let (ours, (theirs, unread)) = match (ours, theirs) {
            (Err(VisitError::Target(trouble)), _) => {
                return Ok(vec![account_unreadable(account, Side::Master, trouble)]);
            }
            (_, Err(VisitError::Target(trouble))) => {
                return Ok(vec![account_unreadable(account, Side::Replica, trouble)]);
            }
            (Err(error), _) | (_, Err(error)) => return Err(error),
            (Ok(ours), Ok(theirs)) => (ours, theirs),
        };
        let there = theirs != AccountState::default() || !unread.is_empty();
        let Some(ours) = ours else {
            found.extend(there.then(|| account_extra(account)));
            return Ok(found);
        };
        if !there && ours.state != AccountState::default() {
            return Ok(vec![account_missing(account, &ours)]);
        }
        if wanted.scope.accounts().is_some() && suspect.is_none() {
            self.count(&ours, wanted.level);
        }
        unreadable(account, &ours, &unread, &mut found);
        let cannot = |name: &MailboxName| {
            unread.contains_key(name) || ours.unread.iter().any(|(unread, ..)| unread == name)
        };
        let listed = check::listing(account, &ours.state, &theirs);
        let closer = wanted.level > CheckLevel::Quick;
        found.extend(listed.differences.into_iter().filter(|difference| {
            let name = difference.name.as_ref();
            // The records tell more exactly.
            (!closer || difference.kind != Kind::Contents)
                && !name.is_some_and(cannot)
                && wanted.scope.has(account, name)
        }));
        if closer {
            let asked = |name: &MailboxName| wanted.scope.has(account, Some(name));
            let pairs = listed.pairs.into_iter().filter(|(ours, _)| asked(&ours.name));
            let ids = pairs.map(|(ours, _)| ours.id).collect();
            found.extend(self.mailboxes(account, ids, wanted, suspect).await?);
        }
        Ok(found)
    }

    async fn mailboxes(
        &self,
        account: &Account,
        ids: Vec<MailboxId>,
        wanted: &Wanted,
        suspect: Option<Suspect>,
    ) -> Result<Vec<Difference>, VisitError> {
        let again = suspect.is_some();
        let looks = ids.into_iter().filter_map(|id| {
            let reading = match &suspect {
                Some(suspect) => Reading::Only(suspect.mailboxes.get(&id)?.clone()),
                None if wanted.sparse => Reading::Sparse(wanted.slots),
                None if wanted.level == CheckLevel::Deep => Reading::Slots(wanted.slots),
                None => Reading::None,
            };
            Some(async move { self.mailbox(account, id, reading, again).await }.boxed())
        });
        let mut looks = stream::iter(looks.collect::<Vec<_>>()).buffer_unordered(MAILBOXES);
        let mut found = Vec::new();
        while let Some(some) = looks.next().await {
            found.extend(some?);
        }
        Ok(found)
    }

    async fn mailbox(
        &self,
        account: &Account,
        mailbox: MailboxId,
        reading: Reading,
        again: bool,
    ) -> Result<Vec<Difference>, VisitError> {
        let (depth, slots) = match &reading {
            Reading::Slots(slots) => (Depth::Octets, *slots),
            Reading::Sparse(slots) => (Depth::Sample, *slots),
            Reading::None | Reading::Only(_) => (Depth::Files, Slots::ALL),
        };
        let (from, octets_max) = (Uid(0), 0);
        let inspect = Inspect {
            account: account.clone(),
            mailbox,
            depth,
            from,
            octets_max,
            slots,
            only: Vec::new(),
        };
        let Some((mut ours, mut theirs)) = self.both(account, inspect.clone()).await? else {
            return Ok(Vec::new()); // its account's list tells
        };
        if let Reading::Only(uids) = reading
            && !uids.is_empty()
        {
            let only =
                Inspect { depth: Depth::Octets, only: uids.into_iter().collect(), ..inspect };
            let Some((a, b)) = self.both(account, only).await? else { return Ok(Vec::new()) };
            ours.flaws.extend(a.flaws);
            theirs.flaws.extend(b.flaws);
        }
        if !again {
            let tally = &self.tally;
            Tally::add(&tally.mailboxes, 1);
            Tally::add(&tally.messages, ours.messages);
            Tally::add(&tally.octets, ours.octets);
            Tally::add(&tally.messages_read, ours.read);
            Tally::add(&tally.octets_read, ours.octets_read);
        }
        self.conclude(account, ours, theirs).await
    }

    async fn both(
        &self,
        account: &Account,
        wanted: Inspect,
    ) -> Result<Option<(Sum, Sum)>, VisitError> {
        let inspected = tokio::try_join!(
            self.inspect(Side::Master, wanted.clone()),
            self.inspect(Side::Replica, wanted)
        );
        match inspected {
            Ok((ours, theirs)) if ours.state.is_some() && theirs.state.is_some() => {
                Ok(Some((ours, theirs)))
            }
            Ok(_) => Ok(None),
            Err(VisitError::Target(Trouble { reason, detail, .. })) => {
                // It vanished, or cannot be read any more: the account's next list tells.
                tracing::debug!(%account, %reason, detail, "a mailbox cannot be inspected");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    async fn conclude(
        &self,
        account: &Account,
        ours: Sum,
        theirs: Sum,
    ) -> Result<Vec<Difference>, VisitError> {
        let (Some(state), Some(their_state)) = (&ours.state, &theirs.state) else {
            return Ok(Vec::new());
        };
        let mut found = Vec::new();
        if (ours.digest, ours.messages) != (theirs.digest, theirs.messages) {
            let (whose, id) = (account.clone(), state.id);
            let delta = self.visitor.work(move |store| store.delta(&whose, id, ModSeq(0)));
            let (delta, records) =
                tokio::join!(delta, self.visitor.their_records_of(account, state.id));
            match (delta, records) {
                (Ok(delta), Ok((Some(_), records))) => {
                    found.extend(check::records(account, &delta.state, &delta.records, &records));
                }
                (Err(VisitError::Target(_)), _)
                | (_, Err(VisitError::Target(_)))
                | (Ok(_), Ok((None, _))) => {}
                (Err(error), _) | (_, Err(error)) => return Err(error),
            }
        }
        let bad = |flaws: &[check::Flaw]| -> BTreeSet<Uid> {
            let flaws = flaws.iter().filter(|flaw| flaw.kind != check::FlawKind::Date);
            flaws.filter_map(|flaw| flaw.uid).collect()
        };
        let both: BTreeSet<Uid> =
            bad(&ours.flaws).intersection(&bad(&theirs.flaws)).copied().collect();
        let sides = [(Side::Master, state, ours.flaws), (Side::Replica, their_state, theirs.flaws)];
        for (side, state, flaws) in sides {
            for flaw in flaws {
                let lost = flaw.uid.is_some_and(|uid| both.contains(&uid));
                let mut difference = Difference::of_flaw(account, state, side, flaw);
                if lost && difference.kind != Kind::Date {
                    difference.repair = Repair::None;
                }
                found.push(difference);
            }
        }
        Ok(found)
    }
}

fn of_account(account: &Account, kind: Kind, side: Side, detail: String) -> Difference {
    Difference {
        account: account.clone(),
        mailbox: None,
        name: None,
        uid: None,
        kind,
        side,
        detail,
        repair: Repair::None,
        marks: (0, 0),
    }
}

fn account_extra(account: &Account) -> Difference {
    let detail = "only on the replica; whole accounts are never removed by replication";
    of_account(account, Kind::AccountExtra, Side::Replica, detail.into())
}

fn account_missing(account: &Account, ours: &Listing) -> Difference {
    let detail = format!("{} mailboxes, none on the replica", ours.state.mailboxes.len());
    let missing = of_account(account, Kind::AccountMissing, Side::Replica, detail);
    Difference { repair: Repair::Replay, ..missing }
}

fn account_unreadable(account: &Account, side: Side, trouble: Trouble) -> Difference {
    of_account(account, Kind::MailboxUnreadable, side, trouble.detail)
}

fn unreadable(account: &Account, ours: &Listing, theirs: &Unread, found: &mut Vec<Difference>) {
    let mut tell = |name: &MailboxName, side, detail: &str| {
        let detail = format!("{name}: {detail}");
        let difference = of_account(account, Kind::MailboxUnreadable, side, detail);
        found.push(Difference { name: Some(name.clone()), ..difference });
    };
    for (name, reason, detail) in &ours.unread {
        tell(name, Side::Master, &format!("{reason}: {detail}"));
    }
    for (name, detail) in theirs {
        tell(name, Side::Replica, detail);
    }
}
