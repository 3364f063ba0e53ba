//! Visits one mailbox: what changed since the replica's last ack, or a comparison of all records.

use std::{collections::BTreeMap, sync::Arc};

use mailtwin_logic::{
    entry::Target,
    ids::{Account, MailboxId, ModSeq, Uid},
    limits::{LISTED_RECORDS_MAX, RECORDS_WEIGHT_MAX, SLICE_CHANGES, SLICE_OCTETS},
    mailbox::{FileKey, Head, MailboxName, MailboxState, Record},
    plan::{self, Change, Mode, Plan},
    quarantine::Step,
    wire::message::{Apply, Reply, Request},
};
use mailtwin_store::{Delta, Description, MailStore, Reason, Unreadable};

use super::{
    Listed, Trouble, VisitError, Visited, Visitor,
    bodies::Bodies,
    held::Known,
    messages::{BAD_MAX, unreadable},
    refused, trouble,
};
use crate::link::connection::Stream;

/// How often a mailbox that keeps changing is compared in one visit.
const TRIES: usize = 6;

/// How often it is built in one visit where something stands in its place.
const BUILDS: usize = 2;

/// How one apply ended.
enum Applied {
    /// Durable; the replica's new head.
    Head(Head),
    /// Plan again.
    Stale,
}

/// What comparing all records came to.
enum Compared {
    /// What to do, and the replica's head.
    Plan(Plan, Option<Head>),
    /// The replica has the mailbox under another name.
    Elsewhere,
    /// It must be built anew, and nothing is lost by that.
    Reseed,
}

/// What the master's side of a mailbox is.
struct Looked {
    delta: Delta,
    unread: Vec<Unreadable>,
    /// What the replica had when the two were equal last.
    known: Option<Known>,
}

/// What one visit found out in all its comparisons.
#[derive(Debug)]
pub(super) struct Found {
    step: Step,
    /// Messages that are left out, and why.
    pub(super) bad: BTreeMap<Uid, Trouble>,
    /// Whether every message that is to be sent was opened once.
    pub(super) checked: bool,
    messages: Option<u32>,
    octets: Option<u64>,
    /// How often it was built and could not be given its place.
    displaced: usize,
}

impl Found {
    fn size(&self, trouble: Trouble) -> Trouble {
        Trouble { messages: self.messages, octets: self.octets, ..trouble }
    }

    /// What follows a plan that was stale: `None` to compare all records. Where a mailbox cannot be built
    /// because something stands in its place, only its account's list says whether that may go, and to
    /// send all of its messages again would not help.
    fn stale(&mut self, plan: &Plan, account_first: Visited) -> Option<Visited> {
        self.displaced += usize::from(plan.mode == Mode::Build);
        let detail = "another mailbox stands in its place on the replica".to_owned();
        let trouble = Some(Trouble::new(Reason::Busy, detail));
        (self.displaced >= BUILDS).then_some(Visited { trouble, ..account_first })
    }
}

impl Visitor {
    pub(super) async fn mailbox(
        &self,
        account: &Account,
        name: &MailboxName,
        step: Step,
    ) -> Result<Visited, VisitError> {
        let (bad, checked) = (BTreeMap::new(), false);
        let (messages, octets) = (None, None);
        let mut found = Found { step, bad, checked, messages, octets, displaced: 0 };
        match self.become_equal(account, name, &mut found).await {
            Ok(Visited { dirty, trouble: Some(trouble) }) => {
                Ok(Visited { dirty, trouble: Some(found.size(trouble)) })
            }
            Err(VisitError::Target(trouble)) => Err(VisitError::Target(found.size(trouble))),
            other => other,
        }
    }

    async fn become_equal(
        &self,
        account: &Account,
        name: &MailboxName,
        found: &mut Found,
    ) -> Result<Visited, VisitError> {
        let (mut vanished, mut tries) = (None, 0);
        while tries < TRIES {
            tries += 1;
            match self.make_equal(account, name, found).await {
                Ok(Some(visited)) => return Ok(visited),
                Ok(None) => vanished = None,
                // A message or the mailbox went away after it was looked at.
                Err(VisitError::Target(trouble)) if trouble.reason == Reason::Missing => {
                    vanished = Some(trouble);
                }
                // Its neighbours need not wait for it.
                Err(VisitError::Message(uid, trouble)) if found.bad.len() < BAD_MAX => {
                    tries -= usize::from(found.bad.insert(uid, trouble).is_none());
                }
                Err(VisitError::Message(_, trouble)) => return Err(VisitError::Target(trouble)),
                Err(error) => return Err(error),
            }
        }
        Err(VisitError::Target(vanished.unwrap_or_else(|| {
            let detail = format!("did not become equal in {TRIES} comparisons");
            Trouble::new(Reason::Busy, detail)
        })))
    }

    /// Looks once; `None` if one of the sides changed meanwhile.
    async fn make_equal(
        &self,
        account: &Account,
        name: &MailboxName,
        found: &mut Found,
    ) -> Result<Option<Visited>, VisitError> {
        let account_first =
            Visited { dirty: vec![Target::Account(account.clone())], trouble: None };
        let Some(Looked { delta, unread, known }) = self.look(account, name, found.step).await?
        else {
            // Renamed or deleted since: its account's list says which.
            return Ok(Some(account_first));
        };
        let state = &delta.state;
        found.messages = Some(state.head.messages);
        if known.as_ref().is_some_and(|known| self.is_equal(known, state)) {
            return Ok(Some(Visited { dirty: Vec::new(), trouble: unreadable(&unread) }));
        }
        if delta.complete {
            found.octets = Some(delta.records.iter().map(|record| record.octets).sum());
        }
        let target = delta.state.head;
        let (mut plan, held) = match known.filter(|_| !delta.complete) {
            Some(Known { head, .. }) => {
                (plan::since(&delta.records, &delta.expunged, target, head), Some(head))
            }
            None => match self.compare(account, &delta, found.step).await? {
                Compared::Plan(plan, held) => (plan, held),
                Compared::Elsewhere => return Ok(Some(account_first)),
                Compared::Reseed => {
                    found.step = Step::Compare; // once a visit
                    self.take_away(account, &delta).await?;
                    return Ok(None);
                }
            },
        };
        self.held.forget(account, state.id);
        let held_back = self.hold_expunges(account, name, &mut plan).await?;
        self.leave_out(account, &delta, &mut plan, held, found).await?;
        let part = plan::first_part(&mut plan, target);
        let upto = part.unwrap_or(target);
        let Some(head) = self.carry_out(account, &delta, &plan, (held, upto)).await? else {
            return Ok(found.stale(&plan, account_first));
        };
        if plan.mode == Mode::Build {
            self.write_files_of(account, &delta.state.name).await?;
        }
        if part.is_some() {
            // What is there by now stays there, whatever becomes of this connection.
            let rest = Target::Mailbox(account.clone(), name.clone());
            return Ok(Some(Visited { dirty: vec![rest], trouble: None }));
        }
        if head == target {
            self.held.equal(account, &delta.state);
            // Annotations of messages that are new here could not be set before.
            let dirty = if delta.annotated { account_first.dirty } else { Vec::new() };
            return Ok(Some(Visited { dirty, trouble: unreadable(&unread) }));
        }
        let left = self.left_unequal(account, &delta, &plan, (head, &found.bad)).await?;
        let troubles = [held_back, unreadable(&unread)].into_iter().flatten().chain(left);
        let trouble = troubles.reduce(Trouble::with);
        Ok(trouble.map(|trouble| Visited { dirty: Vec::new(), trouble: Some(trouble) }))
    }

    /// Looks at the master's side: at what changed since the replica had the same, if that is known.
    /// `None` if no mailbox has the name any more.
    async fn look(
        &self,
        account: &Account,
        name: &MailboxName,
        step: Step,
    ) -> Result<Option<Looked>, VisitError> {
        if let Some((id, known)) = self.held.named(account, name) {
            let (whose, since) = (account.clone(), known.modseq);
            let read = move |store: &dyn MailStore| {
                let delta = store.delta(&whose, id, since)?;
                Ok((delta, store.unreadable(&whose, id)))
            };
            if step <= Step::Retry {
                match self.work(read).await {
                    Ok((delta, unread)) if delta.state.name == *name => {
                        return Ok(Some(Looked { delta, unread, known: Some(known) }));
                    }
                    // Another mailbox may have come to its name.
                    Ok(_) => {}
                    Err(VisitError::Target(trouble)) if trouble.reason == Reason::Missing => {}
                    Err(error) => return Err(error),
                }
            }
            self.held.forget(account, id);
        }
        let (whose, which) = (account.clone(), name.clone());
        let read = move |store: &dyn MailStore| {
            let Some(MailboxState { id, .. }) = store.find(&whose, &which)? else {
                return Ok(None);
            };
            let delta = store.delta(&whose, id, ModSeq(0))?;
            Ok(Some((delta, store.unreadable(&whose, id))))
        };
        let found = self.work(read).await?.filter(|(delta, _)| delta.state.name == *name);
        Ok(found.map(|(delta, unread)| Looked { delta, unread, known: None }))
    }

    /// Whether the replica has what `state` says.
    fn is_equal(&self, known: &Known, state: &MailboxState) -> bool {
        let is_lower = self.shares_modseq() && known.modseq < state.highest_modseq;
        known.head == state.head && !is_lower
    }

    /// Writes what belongs to a mailbox that was just built.
    async fn write_files_of(
        &self,
        account: &Account,
        name: &MailboxName,
    ) -> Result<(), VisitError> {
        for key in [FileKey::Acl, FileKey::Annotations] {
            self.write_file(account, &key(name.clone())).await?;
        }
        Ok(())
    }

    /// Why a mailbox is not equal although everything that may be done was done.
    async fn left_unequal(
        &self,
        account: &Account,
        delta: &Delta,
        plan: &Plan,
        (head, bad): (Head, &BTreeMap<Uid, Trouble>),
    ) -> Result<impl Iterator<Item = Trouble>, VisitError> {
        let bad = self.bad_messages(account, delta.state.id, bad).await?;
        let conflict = self.conflict(account, delta, plan, head).await?;
        Ok(bad.into_iter().chain(conflict))
    }

    /// Compares with all of the replica's records.
    async fn compare(
        &self,
        account: &Account,
        delta: &Delta,
        step: Step,
    ) -> Result<Compared, VisitError> {
        let (whose, id) = (account.clone(), delta.state.id);
        let ours: Vec<Record> = if delta.complete {
            delta.records.clone()
        } else {
            self.work(move |store| store.delta(&whose, id, ModSeq(0))).await?.records
        };
        let (state, theirs) = self.their_records_of(account, delta.state.id).await?;
        if state.as_ref().is_some_and(|state| state.name != delta.state.name) {
            return Ok(Compared::Elsewhere);
        }
        let held = state.map(|state| state.head);
        let target = delta.state.head;
        let plan = plan::mailbox(&ours, target, &theirs, held);
        // What can be made equal as ever needs nothing else.
        let is_stuck = !plan.clashes.is_empty() || plan.changes.is_empty();
        if let Some(held) = held
            && step == Step::Reseed
            && !self.brake.holds(account)
            && held != target
            && is_stuck
            && plan::may_reseed(&ours, target, &theirs, held)
        {
            return Ok(Compared::Reseed);
        }
        Ok(Compared::Plan(plan, held))
    }

    /// Takes a replica's mailbox away, to its graveyard, so that it is built anew.
    async fn take_away(&self, account: &Account, delta: &Delta) -> Result<(), VisitError> {
        let MailboxState { id, name, .. } = delta.state.clone();
        tracing::warn!(code = "mailbox-rebuilt", %account, mailbox = %name, "nothing else has helped: building the replica's mailbox anew");
        let inbox = name.is_inbox();
        let step =
            if inbox { plan::Step::Reset { id, name } } else { plan::Step::Delete { id, name } };
        self.restructure(account, vec![step]).await
    }

    /// The replica's records of one mailbox, which is `None` if it is not there.
    pub(crate) async fn their_records_of(
        &self,
        account: &Account,
        mailbox: MailboxId,
    ) -> Result<(Option<MailboxState>, Vec<Record>), VisitError> {
        let request = Request::Records { account: account.clone(), mailbox };
        let mut stream = self.connection.ask(&request).await?;
        let (mut all, mut parts) = (Vec::new(), Listed::of_at_most(LISTED_RECORDS_MAX));
        loop {
            match stream.reply().await? {
                Reply::Records { state, records, more } => {
                    parts.take(records.len())?;
                    all.extend(records);
                    if !more {
                        return Ok((state, all));
                    }
                }
                other => return Err(refused(other)),
            }
        }
    }

    /// Sends a plan in slices, from one head to another; `None` if the replica's mailbox is not what
    /// it was made for.
    async fn carry_out(
        &self,
        account: &Account,
        delta: &Delta,
        plan: &Plan,
        (mut expect, target): (Option<Head>, Head),
    ) -> Result<Option<Head>, VisitError> {
        let mut slices = slices(&plan.changes).peekable();
        loop {
            let changes = slices.next().unwrap_or_default().to_vec();
            let last = slices.peek().is_none();
            let apply = Apply {
                account: account.clone(),
                mailbox: delta.state.id,
                name: delta.state.name.clone(),
                mode: plan.mode,
                expect,
                target,
                modseq: if self.shares_modseq() { delta.state.highest_modseq } else { ModSeq(0) },
                keywords: delta.keywords.clone(),
                changes,
                last,
            };
            match self.apply(apply).await? {
                Applied::Stale => return Ok(None),
                Applied::Head(head) if last => return Ok(Some(head)),
                // A mailbox that is being built has no head before it is whole.
                Applied::Head(_) if plan.mode == Mode::Build => {}
                Applied::Head(head) => expect = Some(head),
            }
        }
    }

    async fn apply(&self, apply: Apply) -> Result<Applied, VisitError> {
        let (account, mailbox) = (apply.account.clone(), apply.mailbox);
        let adds: Vec<(Uid, u64)> = apply.changes.iter().filter_map(added).collect();
        let mut stream = self.connection.ask(&Request::Apply(apply)).await?;
        let needed = match stream.reply().await? {
            Reply::Need(places) => pick(&adds, &places)?,
            other => return stale_or_refused(other),
        };
        self.tell(&account, mailbox, needed.iter().map(|(uid, _)| *uid).collect()).await;
        let octets: u64 = needed.iter().map(|(_, octets)| octets).sum();
        let saved = adds.iter().map(|(_, octets)| octets).sum::<u64>() - octets;
        let bodies = Bodies::new(Arc::clone(&self.store), account.clone(), mailbox, needed);
        self.send_bodies(&mut stream, bodies).await?;
        match stream.reply().await? {
            Reply::Applied(head) => {
                self.metrics.count_acked(adds.len() as u64, saved);
                self.progress.acked(&account, adds.len() as u64);
                Ok(Applied::Head(head))
            }
            other => stale_or_refused(other),
        }
    }

    /// Why the two sides stay unequal although everything that may be done was done.
    async fn conflict(
        &self,
        account: &Account,
        delta: &Delta,
        plan: &Plan,
        head: Head,
    ) -> Result<Option<Trouble>, VisitError> {
        let (mut reasons, target) = (Vec::new(), delta.state.head);
        let count = plan.clashes.len();
        if let Some(&uid) = plan.clashes.first() {
            let (whose, id) = (account.clone(), delta.state.id);
            let read = move |store: &dyn MailStore| Ok(Description::read(store, &whose, id, uid));
            let message = self.work(read).await?;
            let detail = format!(
                "{count} UIDs mean other messages on the replica, the first {uid}: {message}"
            );
            reasons.push((Reason::Conflict, detail));
        }
        let count = plan.foreign.len();
        if let Some(uid) = plan.foreign.first() {
            let detail =
                format!("{count} messages are only on the replica and kept there, the first {uid}");
            reasons.push((Reason::Conflict, detail));
        }
        if reasons.is_empty() && head.uid_next > target.uid_next && head.digest == target.digest {
            let (theirs, ours) = (head.uid_next, target.uid_next);
            let detail =
                format!("the replica gave out UIDs of its own: UIDNEXT {theirs}, here {ours}");
            reasons.push((Reason::Conflict, detail));
        }
        Ok(trouble(reasons))
    }

    /// Says which messages go, to those who want to know.
    async fn tell(&self, account: &Account, mailbox: MailboxId, uids: Vec<Uid>) {
        if !tracing::enabled!(tracing::Level::DEBUG) {
            return;
        }
        let whose = account.clone();
        let tell = self.work(move |store| {
            for uid in uids {
                let message = Description::read(store, &whose, mailbox, uid);
                tracing::debug!(account = %whose, %uid, %message, "replicating");
            }
            Ok(())
        });
        let _ = tell.await; // it only tells
    }

    /// Sends messages' octets, or says that they cannot be had.
    pub(crate) async fn send_bodies(
        &self,
        stream: &mut Stream,
        mut bodies: Bodies,
    ) -> Result<(), VisitError> {
        loop {
            let gulp = move |_: &dyn MailStore| {
                let chunks = bodies.gulp()?;
                Ok((bodies, chunks))
            };
            let (back, chunks) = match self.work(gulp).await {
                Ok(read) => read,
                Err(error) => {
                    // The message went away or cannot be read: the replica must not wait for it.
                    stream.abort().await?;
                    return Err(error);
                }
            };
            if chunks.is_empty() {
                return Ok(());
            }
            bodies = back;
            for chunk in chunks {
                self.metrics.count_sent(chunk.len() as u64);
                stream.octets(chunk).await?;
            }
        }
    }
}

fn stale_or_refused(reply: Reply) -> Result<Applied, VisitError> {
    if matches!(reply, Reply::Stale(_)) { Ok(Applied::Stale) } else { Err(refused(reply)) }
}

fn added(change: &Change) -> Option<(Uid, u64)> {
    match change {
        Change::Add(record) => Some((record.uid, record.octets)),
        Change::Update { .. } | Change::Expunge(_) | Change::Keep(_) => None,
    }
}

/// The additions at `places`, which the replica chose.
fn pick(adds: &[(Uid, u64)], places: &[u32]) -> Result<Vec<(Uid, u64)>, VisitError> {
    let at = |&place: &u32| adds.get(usize::try_from(place).ok()?).copied();
    let ascending = places.is_sorted_by(|a, b| a < b);
    places.iter().map(at).collect::<Option<_>>().filter(|_| ascending).ok_or_else(|| {
        let detail = "replica: asked for messages that were not offered".into();
        VisitError::Replica(Trouble::new(Reason::Refused, detail))
    })
}

/// Cuts changes into applies that hold a lock shortly and lose little when a connection breaks.
fn slices(changes: &[Change]) -> impl Iterator<Item = &[Change]> {
    let mut rest = changes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (mut count, mut weight, mut octets) = (0, 0, 0_u64);
        for change in rest {
            let (its_weight, its_octets) = match change {
                Change::Add(record) => (record.weight(), record.octets),
                Change::Update { keywords, .. } => {
                    (64 + keywords.iter().map(|keyword| keyword.len() + 5).sum::<usize>(), 0)
                }
                Change::Expunge(_) | Change::Keep(_) => (8, 0),
            };
            let over = weight + its_weight > RECORDS_WEIGHT_MAX
                || octets.saturating_add(its_octets) > SLICE_OCTETS;
            if count >= SLICE_CHANGES || count > 0 && over {
                break;
            }
            count += 1;
            weight += its_weight;
            octets += its_octets;
        }
        let (slice, more) = rest.split_at(count);
        rest = more;
        Some(slice)
    })
}
