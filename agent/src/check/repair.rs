//! Carries out what a check proposed: by replaying to the replica with nothing remembered of it, and,
//! where a message's own file is not what it was, by putting the recorded octets in its place.
//!
//! Every step looks again before it changes anything: what a plan says may be long over. What is
//! replaced or taken away goes to the graveyard of the node it was on.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use mailtwin_host::admin::CheckDifference;
use mailtwin_logic::{
    chain::Chain,
    check::{Octets, Taken, at_stake},
    entry::Target,
    ids::{Account, Guid, LogSeq, MailboxId, ModSeq, Uid},
    mailbox::{Head, MailboxName, MailboxState, Record},
    plan::{Change, Mode},
    wire::message::{Apply, Reply, Request},
};
use mailtwin_store::{Batch, Delta, Destination, MailStore, Reason, Staged, StoreError};

use super::{CheckLink, journal};
use crate::visit::{Bodies, Trouble, VisitError, Visitor, refused};

/// How long replaying may take.
const REPLAY_WITHIN: Duration = Duration::from_mins(5);

/// What became of a plan for one replica.
#[derive(Debug, Default)]
pub(super) struct Repaired {
    /// Carried out; a check tells whether it helped.
    pub(super) done: Vec<CheckDifference>,
    /// Not carried out, each with why.
    pub(super) left: Vec<CheckDifference>,
}

/// Mends one replica, and this node where its own mail is not what it was.
pub(super) struct Mender {
    visitor: Visitor,
    link: CheckLink,
}

/// A difference whose place makes sense.
struct Place {
    account: Account,
    mailbox: Option<MailboxId>,
    uid: Option<Uid>,
}

impl Mender {
    pub(super) fn new(link: CheckLink) -> Option<Self> {
        let visitor = link.visitor.borrow().clone();
        let visitor = visitor.filter(|visitor| !visitor.connection.is_lost())?;
        Some(Self { visitor, link })
    }

    /// Carries out `plan`.
    pub(super) async fn carry_out(&self, plan: Vec<CheckDifference>) -> Repaired {
        let (mut repaired, mut replays) = (Repaired::default(), Vec::new());
        for item in plan {
            let leave = |why: String| CheckDifference { detail: why, ..item.clone() };
            let Some(place) = place(&item) else {
                repaired.left.push(leave("the plan names no account or mailbox here".into()));
                continue;
            };
            match self.one(&item, &place).await {
                Ok(()) => {
                    replays.push(place);
                    repaired.done.push(item);
                }
                Err(why) => repaired.left.push(leave(why)),
            }
        }
        if let Err(why) = self.replay(&replays).await {
            let left = repaired.done.drain(..);
            repaired.left.extend(left.map(|item| CheckDifference { detail: why.clone(), ..item }));
        }
        repaired
    }

    /// What carrying out `plan` would take from where it is.
    pub(super) async fn will_take(&self, plan: &[CheckDifference]) -> Vec<journal::Line> {
        let (mut all, mut replayed) = (Vec::new(), BTreeSet::new());
        for item in plan {
            let Some(Place { account, mailbox: Some(mailbox), uid }) = place(item) else {
                continue;
            };
            let mut is_new = || replayed.insert((account.clone(), mailbox));
            let here = item.side == "master" && item.repair == "replace";
            let taken = match (item.repair.as_str(), uid) {
                ("replace", Some(uid)) if here => self.damaged(&account, mailbox, uid).await,
                ("replace", Some(uid)) => self.damaged_there(&account, mailbox, uid).await,
                ("bury", Some(uid)) => self.theirs(&account, mailbox, Some(uid)).await,
                ("replay", _) if is_new() => self.theirs(&account, mailbox, None).await,
                _ => Ok(Vec::new()),
            };
            // What cannot be looked at cannot be repaired either, which is then told.
            let replica = (!here).then(|| item.replica.clone());
            let line = |taken| journal::Line { replica: replica.clone(), taken };
            all.extend(taken.unwrap_or_default().into_iter().map(line));
        }
        all
    }

    /// The octets in the place of a message here.
    async fn damaged(
        &self,
        account: &Account,
        mailbox: MailboxId,
        uid: Uid,
    ) -> Result<Vec<Taken>, VisitError> {
        let delta = self.delta(account, mailbox).await?;
        let record = delta.records.into_iter().find(|record| record.uid == uid);
        Ok(taken(account, &delta.state, record.map(|record| (uid, Octets::Instead(record.guid)))))
    }

    /// The octets in the place of a message there.
    async fn damaged_there(
        &self,
        account: &Account,
        mailbox: MailboxId,
        uid: Uid,
    ) -> Result<Vec<Taken>, VisitError> {
        let (state, records) = self.visitor.their_records_of(account, mailbox).await?;
        let Some(state) = state else { return Ok(Vec::new()) };
        let record = records.into_iter().find(|record| record.uid == uid);
        Ok(taken(account, &state, record.map(|record| (uid, Octets::Instead(record.guid)))))
    }

    /// Messages of the replica that the master does not have in their place: one, or all that are
    /// replication's own.
    async fn theirs(
        &self,
        account: &Account,
        mailbox: MailboxId,
        only: Option<Uid>,
    ) -> Result<Vec<Taken>, VisitError> {
        let name = self.delta(account, mailbox).await.ok().map(|ours| ours.state.name);
        let message = |(uid, guid)| (uid, Octets::Message(guid));
        let mut all = Vec::new();
        // Also what stands under the mailbox's name and is another one.
        let (there, _) = self.visitor.their_account(account).await?;
        let meant =
            |state: &MailboxState| state.id == mailbox || Some(&state.name) == name.as_ref();
        for state in there.mailboxes.into_iter().filter(meant) {
            let (state, records) = self.visitor.their_records_of(account, state.id).await?;
            let Some(state) = state else { continue };
            // Looked at last: what came meanwhile is on both sides, or on the master.
            let ours = self.delta(account, mailbox).await.map(|ours| ours.records);
            let meant = |record: &Record| only.map_or(record.replicated, |uid| record.uid == uid);
            let records: Vec<Record> = records.into_iter().filter(meant).collect();
            let lost = at_stake(&ours.unwrap_or_default(), &records);
            all.extend(taken(account, &state, lost.into_iter().map(message)));
        }
        Ok(all)
    }

    async fn one(&self, item: &CheckDifference, place: &Place) -> Result<(), String> {
        if self.visitor.unmerged.has(&place.account) {
            return Err("what only the replica has is copied back first".to_owned());
        }
        let done = match (item.repair.as_str(), item.side.as_str(), place.mailbox, place.uid) {
            ("replay", ..) => Ok(()),
            ("replace", "master", Some(mailbox), Some(uid)) => {
                self.replace_here(&place.account, mailbox, uid).await
            }
            ("replace", _, Some(mailbox), Some(uid)) => {
                self.replace_there(&place.account, mailbox, uid).await
            }
            ("rewrite", "master", Some(mailbox), _) => {
                self.apply_here(&place.account, mailbox, Mode::Repair, Uid(0)).await
            }
            ("raise", _, Some(mailbox), _) => self.raise_here(&place.account, mailbox).await,
            ("rewrite", _, Some(mailbox), _) => self.rewrite_there(&place.account, mailbox).await,
            ("bury", _, Some(mailbox), Some(uid)) => self.bury(&place.account, mailbox, uid).await,
            ("none", ..) => return Err(format!("{}: left alone", item.detail)),
            (other, ..) => return Err(format!("cannot {other:?} this")),
        };
        done.map_err(|error| match error {
            VisitError::Gone => "the connection broke".to_owned(),
            VisitError::Replica(Trouble { detail, .. })
            | VisitError::Target(Trouble { detail, .. })
            | VisitError::Message(_, Trouble { detail, .. }) => detail,
        })
    }

    async fn delta(&self, account: &Account, mailbox: MailboxId) -> Result<Delta, VisitError> {
        let whose = account.clone();
        self.visitor.work(move |store| store.delta(&whose, mailbox, ModSeq(0))).await
    }

    async fn record(
        &self,
        account: &Account,
        mailbox: MailboxId,
        uid: Uid,
    ) -> Result<(Record, MailboxName), VisitError> {
        let delta = self.delta(account, mailbox).await?;
        let record = delta.records.into_iter().find(|record| record.uid == uid);
        let record = record.ok_or_else(|| trouble(format!("master: message {uid} is gone")))?;
        Ok((record, delta.state.name))
    }

    /// Gives the replica's message the master's octets; the replica verifies them.
    async fn replace_there(
        &self,
        account: &Account,
        mailbox: MailboxId,
        uid: Uid,
    ) -> Result<(), VisitError> {
        let (record, _) = self.record(account, mailbox, uid).await?;
        let octets = record.octets;
        let request = Request::Mend { account: account.clone(), mailbox, record };
        let mut stream = self.visitor.connection.ask(&request).await?;
        match stream.reply().await? {
            Reply::Need(places) if places.is_empty() => {}
            Reply::Need(_) => {
                let (store, whose) = (Arc::clone(&self.visitor.store), account.clone());
                let bodies = Bodies::new(store, whose, mailbox, vec![(uid, octets)]);
                self.visitor.send_bodies(&mut stream, bodies).await?;
            }
            other => return Err(refused(other)),
        }
        match stream.reply().await? {
            Reply::Done => Ok(()),
            other => Err(refused(other)),
        }
    }

    /// Gives the master's message the octets it had: its own, or the replica's.
    async fn replace_here(
        &self,
        account: &Account,
        mailbox: MailboxId,
        uid: Uid,
    ) -> Result<(), VisitError> {
        let whose = account.clone();
        if self.visitor.work(move |store| store.mend(&whose, mailbox, uid, None)).await? {
            return Ok(());
        }
        let (record, name) = self.record(account, mailbox, uid).await?;
        let to = Destination { account: account.clone(), mailbox, name, mode: Mode::Repair };
        let staged = self.fetch(to, record).await?;
        let whose = account.clone();
        let mend = move |store: &dyn MailStore| store.mend(&whose, mailbox, uid, Some(staged));
        self.visitor.work(mend).await.map(drop)
    }

    /// Takes the replica's octets of a message in, verified.
    async fn fetch(&self, to: Destination, record: Record) -> Result<Staged, VisitError> {
        let request =
            Request::Fetch { account: to.account.clone(), mailbox: to.mailbox, uid: record.uid };
        let mut stream = self.visitor.connection.ask(&request).await?;
        let mut staging = self.visitor.work(move |store| store.stage(&to, &record)).await?;
        loop {
            let (chunk, more) = match stream.reply().await? {
                Reply::Octets { octets, more } => (Bytes::from(octets), more),
                other => return Err(refused(other)),
            };
            let write = move |_: &dyn MailStore| staging.write(&chunk).map(|()| staging);
            staging = self.visitor.work(write).await?;
            if !more {
                return self.visitor.work(move |_| staging.finish()).await;
            }
        }
    }

    /// Raises the master's UIDNEXT to the replica's.
    async fn raise_here(&self, account: &Account, mailbox: MailboxId) -> Result<(), VisitError> {
        let (state, _) = self.visitor.their_records_of(account, mailbox).await?;
        let next = state.map_or(Uid(0), |state| state.head.uid_next);
        self.apply_here(account, mailbox, Mode::Update, next).await
    }

    /// An apply on this node that adds and removes nothing, with UIDNEXT at least `next` afterwards.
    async fn apply_here(
        &self,
        account: &Account,
        mailbox: MailboxId,
        mode: Mode,
        next: Uid,
    ) -> Result<(), VisitError> {
        let delta = self.delta(account, mailbox).await?;
        let (name, head) = (delta.state.name, delta.state.head);
        let to = Destination { account: account.clone(), mailbox, name, mode };
        let batch = Batch {
            to,
            expect: Some(head),
            target: Head { uid_next: head.uid_next.max(next), ..head },
            modseq: ModSeq(0),
            keywords: delta.keywords,
            changes: Vec::new(),
            staged: Vec::new(),
            last: true,
        };
        let apply = move |store: &dyn MailStore| {
            let missing = || StoreError::NotFound { what: "an outcome".into() };
            store.apply(vec![batch]).pop().unwrap_or_else(|| Err(missing())).map(drop)
        };
        self.visitor.work(apply).await
    }

    async fn rewrite_there(&self, account: &Account, mailbox: MailboxId) -> Result<(), VisitError> {
        self.apply_there(account, mailbox, Mode::Repair, Vec::new()).await
    }

    /// An apply for the mailbox as the replica has it now.
    async fn apply_there(
        &self,
        account: &Account,
        mailbox: MailboxId,
        mode: Mode,
        changes: Vec<Change>,
    ) -> Result<(), VisitError> {
        let delta = self.delta(account, mailbox).await?;
        let (state, _) = self.visitor.their_records_of(account, mailbox).await?;
        let state = state.ok_or_else(|| trouble("replica: the mailbox is gone".into()))?;
        let target = state.head;
        let apply = Apply {
            account: account.clone(),
            mailbox,
            name: state.name,
            mode,
            expect: Some(state.head),
            target,
            modseq: ModSeq(0),
            keywords: delta.keywords,
            changes,
            last: true,
        };
        let mut stream = self.visitor.connection.ask(&Request::Apply(apply)).await?;
        match stream.reply().await? {
            Reply::Need(_) => {}
            other => return Err(changed_or_refused(other)),
        }
        match stream.reply().await? {
            Reply::Applied(_) => Ok(()),
            other => Err(changed_or_refused(other)),
        }
    }

    /// Gives a message that only the replica has up to replication, which then takes it away; one
    /// that stands where another should is taken away at once.
    async fn bury(
        &self,
        account: &Account,
        mailbox: MailboxId,
        uid: Uid,
    ) -> Result<(), VisitError> {
        let (_, theirs) = self.visitor.their_records_of(account, mailbox).await?;
        let theirs = theirs.into_iter().find(|record| record.uid == uid);
        let theirs = theirs.ok_or_else(|| trouble(format!("replica: message {uid} is gone")))?;
        let messages: Vec<(Uid, Guid)> = vec![(uid, theirs.guid)];
        let request = Request::GiveUp { account: account.clone(), mailbox, messages };
        match self.visitor.connection.ask(&request).await?.reply().await? {
            Reply::Done => {}
            other => return Err(refused(other)),
        }
        self.apply_there(account, mailbox, Mode::Update, vec![Change::Expunge(uid)]).await
    }

    /// Has all places replayed with nothing remembered of the replica, and waits.
    async fn replay(&self, places: &[Place]) -> Result<(), String> {
        let mut accounts: BTreeMap<&Account, BTreeSet<MailboxId>> = BTreeMap::new();
        for place in places {
            accounts.entry(&place.account).or_default().extend(place.mailbox);
        }
        let mut targets = Vec::new();
        for (account, mailboxes) in accounts {
            for mailbox in mailboxes {
                self.visitor.held.forget(account, mailbox);
            }
            // Its list is compared first, and then what differs of its mailboxes.
            targets.push(Target::Account(account.clone()));
        }
        if targets.is_empty() {
            return Ok(());
        }
        let append = self.link.log.append(targets).await;
        let upto: LogSeq = append.map_err(|error| Chain(&error).to_string())?;
        let mut status = self.link.status.clone();
        let passed = status.wait_for(|status| status.cursor >= upto);
        match tokio::time::timeout(REPLAY_WITHIN, passed).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err("the agent is ending".into()),
            Err(_) => Err("not replayed in time".into()),
        }
    }
}

fn taken(
    account: &Account,
    state: &MailboxState,
    octets: impl IntoIterator<Item = (Uid, Octets)>,
) -> Vec<Taken> {
    let of = |(uid, what)| Taken {
        account: account.clone(),
        mailbox: state.name.clone(),
        uid_validity: state.head.uid_validity,
        uid,
        what,
    };
    octets.into_iter().map(of).collect()
}

fn place(item: &CheckDifference) -> Option<Place> {
    let name = if item.account == "." { "" } else { &item.account };
    let account = Account::new(name).ok()?;
    let mailbox = match &item.mailbox_id {
        Some(text) => Some(text.parse().ok()?),
        None => None,
    };
    Some(Place { account, mailbox, uid: item.uid.map(Uid) })
}

fn trouble(detail: String) -> VisitError {
    VisitError::Target(Trouble::new(Reason::Missing, detail))
}

fn changed_or_refused(reply: Reply) -> VisitError {
    if matches!(reply, Reply::Stale(_)) {
        return trouble("replica: it has changed meanwhile; check again".into());
    }
    refused(reply)
}
