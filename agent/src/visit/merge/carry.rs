//! Carries decisions out on the master's own store: octets fetched, messages added above UIDNEXT.

use mailtwin_host::codes::LedgerKind;
use mailtwin_logic::{
    ids::{Account, MailboxId, ModSeq, Uid, UidValidity},
    limits::{SLICE_CHANGES, SLICE_OCTETS, UID_MARGIN},
    mailbox::{AccountState, Head, MailboxName, MailboxState, Record},
    plan::{Change, Mode},
    reconcile::{self, BaseRecord, Decision},
    wire::message::{Reply, Request},
};
use mailtwin_store::{Batch, Destination, MailStore, Staged, guid_of};

use super::{
    super::{VisitError, Visitor, refused},
    Sides, TRIES,
    journal::Journal,
    local, written,
};

/// A message to be added to one of our mailboxes.
struct Addition {
    /// As it will be, under its new UID.
    record: Record,
    /// Whose octets it has: of which side's mailbox, and under which UID there.
    theirs: bool,
    mailbox: MailboxId,
    uid: Uid,
}

/// How an attempt ended.
enum Attempt {
    Done,
    /// The mailbox changed meanwhile: decide anew.
    Stale,
}

impl Visitor {
    /// A mailbox that both have, here as `ours`: message by message.
    pub(super) async fn merge_mailbox(
        &self,
        account: &Account,
        base: &[BaseRecord],
        (ours, their): (MailboxId, &MailboxState),
        journal: &mut Journal,
    ) -> Result<(), VisitError> {
        for _ in 0..TRIES {
            journal.drop_waiting();
            let sides = self.sides(account, ours, their).await?;
            let their_next = journal.is_old_master().then_some(their.head.uid_next);
            let (ours, theirs) = (&sides.our_records, &sides.their_records);
            let decisions = reconcile::mailbox(base, ours, theirs, their_next);
            // Above whatever either side may have shown.
            let next = sides.ours.head.uid_next.max(given_out(their, journal));
            match self.carry_out_here(account, &sides, &decisions, next, journal).await? {
                Attempt::Done => return Ok(()),
                Attempt::Stale => {}
            }
        }
        Err(local(&format!("{} changed {TRIES} times while it was merged", their.name)))
    }

    async fn carry_out_here(
        &self,
        account: &Account,
        sides: &Sides,
        decisions: &[Decision],
        mut next: Uid,
        journal: &mut Journal,
    ) -> Result<Attempt, VisitError> {
        let (mut additions, mut rest, above) = (Vec::new(), Vec::new(), next);
        let name = &sides.ours.name;
        let find = |records: &[Record], uid: Uid| records.iter().find(|r| r.uid == uid).cloned();
        let mut add = |record: Record, theirs: bool| {
            let (uid, new) = (record.uid, next);
            next = Uid(next.0.saturating_add(1));
            additions.push(Addition {
                record: Record { uid: new, ..record },
                theirs,
                mailbox: if theirs { sides.theirs } else { sides.ours.id },
                uid,
            });
            new
        };
        for decision in decisions {
            match decision {
                Decision::Take { uid, why } => {
                    let Some(record) = find(&sides.their_records, *uid) else { continue };
                    let new = add(record.clone(), true);
                    journal.message(kind(*why), name, &record, Some(new), "copied to the master");
                }
                Decision::Move { uid, copy } => {
                    let Some(record) = find(&sides.our_records, *uid) else { continue };
                    let new = copy.then(|| add(record.clone(), false));
                    let detail = "kept under another UID: the other node has used up this one";
                    journal.message(LedgerKind::Moved, name, &record, new, detail);
                    rest.push(Change::Expunge(*uid));
                }
                Decision::Expunge { uid } => {
                    let Some(record) = find(&sides.our_records, *uid) else { continue };
                    let detail = "as there; it is in the graveyard";
                    journal.message(LedgerKind::Expunged, name, &record, None, detail);
                    rest.push(Change::Expunge(*uid));
                }
                Decision::Update { uid, flags, keywords } => {
                    let Some(record) = find(&sides.our_records, *uid) else { continue };
                    journal.message(
                        LedgerKind::Flags,
                        name,
                        &record,
                        Some(*uid),
                        "merged one by one",
                    );
                    let (uid, internal_date) = (*uid, record.internal_date);
                    let (flags, keywords) = (*flags, keywords.clone());
                    rest.push(Change::Update { uid, internal_date, flags, keywords });
                }
            }
        }
        written(journal.write_for(name, &sides.our_records))?;
        let mut head = sides.ours.head;
        match self.add_all(account, &sides.ours, Mode::Update, additions).await? {
            Some(new) => head = new.unwrap_or(head),
            None => return Ok(Attempt::Stale),
        }
        self.change_rest(account, &sides.ours, (head, above), rest).await
    }

    /// Updates and expunges, after everything that is added is durable. UIDNEXT is at least `above`
    /// then: what is below was given out there, also if nothing is left of it.
    async fn change_rest(
        &self,
        account: &Account,
        ours: &MailboxState,
        (mut head, above): (Head, Uid),
        mut rest: Vec<Change>,
    ) -> Result<Attempt, VisitError> {
        while !rest.is_empty() || head.uid_next < above {
            let later = rest.split_off(SLICE_CHANGES.min(rest.len()));
            let changes = std::mem::replace(&mut rest, later);
            let (whose, id) = (account.clone(), ours.id);
            let below = head.uid_next;
            if !changes.is_empty() {
                // The engine only takes away what is marked; here the master itself decides.
                self.work(move |store| store.adopt(&whose, id, below)).await?;
            }
            let to = destination(account, ours, Mode::Update);
            let target = Head { uid_next: head.uid_next.max(above), ..head };
            let batch = batch(to, Some(head), target, changes, Vec::new(), true);
            match self.apply_here(batch).await? {
                Some(new) => head = new,
                None => return Ok(Attempt::Stale),
            }
        }
        Ok(Attempt::Done)
    }

    /// A mailbox that the other node's clients made: whole, with its UIDs.
    pub(super) async fn copy_mailbox(
        &self,
        account: &Account,
        their: &MailboxState,
        journal: &mut Journal,
    ) -> Result<(), VisitError> {
        let records = self.records_of(account, their.id).await?;
        journal.mailbox(LedgerKind::Copied, &their.name, &format!("{} messages", records.len()));
        let mut additions = Vec::new();
        for record in records {
            journal.message(
                LedgerKind::Tail,
                &their.name,
                &record,
                Some(record.uid),
                "copied to the master",
            );
            let uid = record.uid;
            additions.push(Addition { record, theirs: true, mailbox: their.id, uid });
        }
        written(journal.write())?;
        let head = Head { uid_next: given_out(their, journal), ..their.head };
        self.build(account, &MailboxState { head, ..their.clone() }, additions).await
    }

    /// Messages of a mailbox that has no place here go to the one of that name.
    pub(super) async fn pour_mailbox(
        &self,
        account: &Account,
        base: &[BaseRecord],
        their: &MailboxState,
        name: &MailboxName,
        journal: &mut Journal,
    ) -> Result<(), VisitError> {
        for _ in 0..TRIES {
            journal.drop_waiting();
            let theirs = self.records_of(account, their.id).await?;
            let (whose, at) = (account.clone(), name.clone());
            let here = self.work(move |store| store.find(&whose, &at)).await?;
            if let Some(state) = &here
                && state.head.uid_validity == their.head.uid_validity
            {
                // To a client they are one mailbox, made in the same second on both sides.
                return self.merge_mailbox(account, base, (state.id, their), journal).await;
            }
            let held = match &here {
                Some(state) => self.sides(account, state.id, their).await?.our_records,
                None => Vec::new(),
            };
            let poured = reconcile::pour(base, &held, &theirs);
            let to = match &here {
                Some(state) => state.clone(),
                None => new_mailbox(their, name, &self.our_account(account).await?),
            };
            let (mut next, mut additions) = (to.head.uid_next, Vec::new());
            for (uid, why) in poured {
                let Some(record) = theirs.iter().find(|record| record.uid == uid) else { continue };
                let detail = format!("copied to the master's {name}");
                journal.message(kind(why), name, record, Some(next), &detail);
                let record = Record { uid: next, ..record.clone() };
                additions.push(Addition { record, theirs: true, mailbox: their.id, uid });
                next = Uid(next.0.saturating_add(1));
            }
            written(journal.write_for(name, &held))?;
            if additions.is_empty() {
                return Ok(());
            }
            if here.is_none() {
                let head = Head { uid_next: next, ..to.head };
                return self.build(account, &MailboxState { head, ..to }, additions).await;
            }
            if self.add_all(account, &to, Mode::Update, additions).await?.is_some() {
                return Ok(());
            }
        }
        Err(local(&format!("{name} changed {TRIES} times while it was merged")))
    }

    async fn build(
        &self,
        account: &Account,
        to: &MailboxState,
        additions: Vec<Addition>,
    ) -> Result<(), VisitError> {
        let (whose, id) = (account.clone(), to.id);
        let clear = move |store: &dyn MailStore| {
            store.abandon(&whose, id); // what a crash may have left
            Ok(())
        };
        self.work(clear).await?;
        match self.add_all(account, to, Mode::Build, additions).await? {
            Some(_) => Ok(()),
            None => Err(local(&format!("{} appeared while it was copied", to.name))),
        }
    }

    /// Adds messages in slices. `None` if the mailbox changed meanwhile, else its head if there was
    /// anything to do.
    async fn add_all(
        &self,
        account: &Account,
        to: &MailboxState,
        mode: Mode,
        additions: Vec<Addition>,
    ) -> Result<Option<Option<Head>>, VisitError> {
        let mut expect = (mode != Mode::Build).then_some(to.head);
        let mut head = None;
        let mut left = additions.into_iter().peekable();
        while left.peek().is_some() || mode == Mode::Build && head.is_none() {
            let (mut changes, mut staged, mut octets) = (Vec::new(), Vec::new(), 0_u64);
            while let Some(next) = left.peek() {
                octets = octets.saturating_add(next.record.octets);
                if !changes.is_empty() && (octets > SLICE_OCTETS || changes.len() >= SLICE_CHANGES)
                {
                    break;
                }
                let Some(addition) = left.next() else { break };
                staged.push(self.stage(account, to, mode, &addition).await?);
                changes.push(Change::Add(addition.record));
            }
            let last_uid = changes.iter().filter_map(added).max().unwrap_or(Uid(0));
            let uid_next = to.head.uid_next.max(Uid(last_uid.0.saturating_add(1)));
            let target = Head { uid_next, ..to.head };
            let last = left.peek().is_none();
            let to = destination(account, to, mode);
            match self.apply_here(batch(to, expect, target, changes, staged, last)).await? {
                Some(new) => head = Some(new),
                None => return Ok(None),
            }
            expect = if mode == Mode::Build { None } else { head };
        }
        Ok(Some(head))
    }

    /// Octets into our store: linked from what it holds, or fetched.
    async fn stage(
        &self,
        account: &Account,
        to: &MailboxState,
        mode: Mode,
        addition: &Addition,
    ) -> Result<Staged, VisitError> {
        let (to, record) = (destination(account, to, mode), addition.record.clone());
        let (place, what) = (to.clone(), record.clone());
        if let Some(staged) = self.work(move |store| store.stage_held(&place, &what)).await? {
            return Ok(staged);
        }
        let mut staging = self.work(move |store| store.stage(&to, &record)).await?;
        if addition.theirs {
            let (account, mailbox, uid) = (account.clone(), addition.mailbox, addition.uid);
            let request = Request::Fetch { account, mailbox, uid };
            let mut stream = self.connection.ask(&request).await?;
            loop {
                match stream.reply().await? {
                    Reply::Octets { octets, more } => {
                        staging = self
                            .work(move |_| {
                                staging.write(&octets)?;
                                Ok(staging)
                            })
                            .await?;
                        if !more {
                            break;
                        }
                    }
                    other => return Err(refused(other)),
                }
            }
            return self.work(move |_| staging.finish()).await;
        }
        let (whose, id, uid) = (account.clone(), addition.mailbox, addition.uid);
        let copy = move |store: &dyn MailStore| {
            let mut source = store.open(&whose, id, uid)?;
            std::io::copy(&mut source, &mut Writing(&mut *staging)).map_err(|source| {
                let path = format!("message {uid}").into();
                mailtwin_store::StoreError::Io { op: "copy", path, source }
            })?;
            staging.finish()
        };
        self.work(copy).await
    }

    /// Applies to our own store; `None` if it is stale.
    async fn apply_here(&self, batch: Batch) -> Result<Option<Head>, VisitError> {
        let apply = move |store: &dyn MailStore| {
            let result = store.apply(vec![batch]).pop();
            Ok(result.unwrap_or(Err(mailtwin_store::StoreError::Stale(None))))
        };
        match self.work(apply).await? {
            Ok(head) => Ok(Some(head)),
            Err(error) if super::is_stale(&error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// Gives a staging what a copy reads.
struct Writing<'a>(&'a mut dyn mailtwin_store::Staging);

impl std::io::Write for Writing<'_> {
    fn write(&mut self, octets: &[u8]) -> std::io::Result<usize> {
        self.0.write(octets).map_err(std::io::Error::other)?;
        Ok(octets.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Clients may have seen UIDs below. Of a node that was only behind, the old master may have given out
/// more than it knows.
fn given_out(their: &MailboxState, journal: &Journal) -> Uid {
    let margin = if journal.is_old_master() { 0 } else { UID_MARGIN };
    Uid(their.head.uid_next.0.saturating_add(margin))
}

fn added(change: &Change) -> Option<Uid> {
    if let Change::Add(record) = change { Some(record.uid) } else { None }
}

fn destination(account: &Account, to: &MailboxState, mode: Mode) -> Destination {
    Destination { account: account.clone(), mailbox: to.id, name: to.name.clone(), mode }
}

fn batch(
    to: Destination,
    expect: Option<Head>,
    target: Head,
    changes: Vec<Change>,
    staged: Vec<Staged>,
    last: bool,
) -> Batch {
    // Keywords that are new here are appended to the mailbox's own.
    let (modseq, keywords) = (ModSeq(0), Vec::new());
    Batch { to, expect, target, modseq, keywords, changes, staged, last }
}

/// A mailbox for what is poured: another identity than the one that was deleted here, and the same
/// one again after a crash; and a UIDVALIDITY above all that clients have seen.
fn new_mailbox(their: &MailboxState, name: &MailboxName, ours: &AccountState) -> MailboxState {
    let hash = guid_of(&[&their.id.0[..], b"poured"].concat()).0;
    let mut id = their.id;
    id.0.iter_mut().zip(hash).for_each(|(octet, hashed)| *octet = hashed);
    let seen = ours.mailboxes.iter().map(|mailbox| mailbox.head.uid_validity);
    let highest = seen.max().unwrap_or(UidValidity(0)).max(their.head.uid_validity);
    let head = Head {
        uid_validity: UidValidity(highest.0.saturating_add(1)),
        uid_next: Uid(1),
        ..Head::default()
    };
    MailboxState { id, name: name.clone(), head, foreign: 0, ..their.clone() }
}

fn kind(why: reconcile::Why) -> LedgerKind {
    match why {
        reconcile::Why::Tail => LedgerKind::Tail,
        reconcile::Why::Clash => LedgerKind::Clash,
        reconcile::Why::Changed => LedgerKind::Changed,
    }
}
