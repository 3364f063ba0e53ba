//! One store made equal to another, by the plans and the calls that agent and replica use.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read as _,
};

use mailtwin_logic::{
    digest,
    ids::{Account, MailboxId, ModSeq, Uid},
    mailbox::{FileKey, Flags, Head, MailboxName, MailboxState},
    plan::{self, Change, Mode, Plan},
};

use super::{
    Make, Subject,
    fixture::{ann, apply, body, name},
    subject::InMemory,
};
use crate::{Batch, Delta, Destination, MailStore, Staged, StoreError};

/// Rounds after which two stores that are left alone must be equal.
const ROUNDS_MAX: usize = 8;
/// Changes in one batch: few, so that most plans take several.
const SLICE: usize = 3;

/// Makes `replica` equal to `master`, and remembers what it holds, as an agent does for the life of
/// one connection.
#[derive(Debug, Default)]
pub struct Replicator {
    known: BTreeMap<(Account, MailboxId), (Head, ModSeq)>,
    /// Names that could not be made equal because of mail that is only on the replica.
    pub kept: BTreeSet<MailboxName>,
}

impl Replicator {
    /// Replicates all accounts of the master. Both stores must be quiet.
    pub fn run(
        &mut self,
        master: &dyn MailStore,
        replica: &dyn MailStore,
    ) -> Result<(), StoreError> {
        self.kept.clear();
        for account in master.accounts()? {
            self.account(master, replica, &account)?;
        }
        Ok(())
    }

    fn account(
        &mut self,
        master: &dyn MailStore,
        replica: &dyn MailStore,
        account: &Account,
    ) -> Result<(), StoreError> {
        for _ in 0..ROUNDS_MAX {
            let ours = master.account(account)?.unwrap_or_default().state;
            let theirs = replica.account(account)?.unwrap_or_default().state;
            let plan = plan::account(&ours, &theirs);
            for key in &plan.write {
                let content = master.file(account, key)?;
                replica.set_file(account, key, content.as_deref())?;
            }
            for (key, _) in &plan.remove {
                replica.set_file(account, key, None)?;
            }
            if !plan.steps.is_empty() {
                replica.restructure(account, &plan.steps)?;
                continue;
            }
            self.kept.extend(plan.extra);
            for (mailbox, _) in &plan.visits {
                self.mailbox(master, replica, account, mailbox)?;
            }
            return Ok(());
        }
        panic!("the list of {account} did not become equal in {ROUNDS_MAX} rounds");
    }

    fn mailbox(
        &mut self,
        master: &dyn MailStore,
        replica: &dyn MailStore,
        account: &Account,
        mailbox: &MailboxState,
    ) -> Result<(), StoreError> {
        let key = (account.clone(), mailbox.id);
        for _ in 0..ROUNDS_MAX {
            let known = self.known.remove(&key);
            let delta = master.delta(account, mailbox.id, known.map_or(ModSeq(0), |k| k.1))?;
            let (plan, held) = match known.filter(|_| !delta.complete) {
                Some((head, _)) => {
                    let target = delta.state.head;
                    (plan::since(&delta.records, &delta.expunged, target, head), Some(head))
                }
                None => compare(master, replica, account, &delta)?,
            };
            match carry_out(master, replica, account, (&delta, &plan, held)) {
                Ok(now) if now == delta.state.head => {
                    self.known.insert(key, (now, delta.state.highest_modseq));
                    return Ok(());
                }
                Ok(_) if !plan.foreign.is_empty() || !plan.clashes.is_empty() => {
                    self.kept.insert(mailbox.name.clone());
                    return Ok(());
                }
                Ok(_) | Err(StoreError::Stale(_)) => {}
                Err(error) => return Err(error),
            }
        }
        panic!("{account}/{} did not become equal in {ROUNDS_MAX} rounds", mailbox.name);
    }
}

fn compare(
    master: &dyn MailStore,
    replica: &dyn MailStore,
    account: &Account,
    delta: &Delta,
) -> Result<(Plan, Option<Head>), StoreError> {
    let ours = master.delta(account, delta.state.id, ModSeq(0))?.records;
    let (held, theirs) = match replica.delta(account, delta.state.id, ModSeq(0)) {
        Ok(theirs) => (Some(theirs.state.head), theirs.records),
        Err(StoreError::NotFound { .. }) => (None, Vec::new()),
        Err(error) => return Err(error),
    };
    Ok((plan::mailbox(&ours, delta.state.head, &theirs, held), held))
}

fn carry_out(
    master: &dyn MailStore,
    replica: &dyn MailStore,
    account: &Account,
    (delta, plan, held): (&Delta, &Plan, Option<Head>),
) -> Result<Head, StoreError> {
    let MailboxState { id: mailbox, name, head: target, .. } = delta.state.clone();
    let to = Destination { account: account.clone(), mailbox, name, mode: plan.mode };
    let mut slices = plan.changes.chunks(SLICE).peekable();
    let mut expect = held;
    loop {
        let changes = slices.next().unwrap_or_default().to_vec();
        let last = slices.peek().is_none();
        let staged = stage(master, replica, &to, &changes)?;
        let keywords = delta.keywords.clone();
        let to = to.clone();
        let modseq = delta.state.highest_modseq;
        let batch = Batch { to, expect, target, modseq, keywords, changes, staged, last };
        let now = apply(replica, batch)?;
        if last {
            return Ok(now);
        }
        // A mailbox that is being built has no head before it is whole.
        expect = Some(now).filter(|_| plan.mode != Mode::Build);
    }
}

fn stage(
    master: &dyn MailStore,
    replica: &dyn MailStore,
    to: &Destination,
    changes: &[Change],
) -> Result<Vec<Staged>, StoreError> {
    let mut all = Vec::new();
    for change in changes {
        let Change::Add(record) = change else { continue };
        if let Some(staged) = replica.stage_held(to, record)? {
            all.push(staged);
            continue;
        }
        let mut octets = Vec::new();
        let mut source = master.open(&to.account, to.mailbox, record.uid)?;
        source.read_to_end(&mut octets).expect("a message can be read");
        let mut staging = replica.stage(to, record)?;
        staging.write(&octets)?;
        all.push(staging.finish()?);
    }
    Ok(all)
}

/// Random numbers that a seed repeats (`xorshift64*`).
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    /// The sequence of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let drawn = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(drawn).unwrap_or(0) % limit.max(1)
    }

    /// One of `choices`, of which there are some.
    pub fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        choices.get(self.below(choices.len())).expect("there is something to choose from")
    }
}

/// Lets a random client do something random; returns what, for a failing test to show.
pub fn act(subject: &dyn Subject, account: &Account, dice: &mut Dice) -> String {
    const NAMES: [&str; 7] = ["", "Work", "Work/Sub", "Drafts", "Junk", "Q", "Q/a/b"];
    let at = name(NAMES[dice.below(NAMES.len())]);
    let other = name(NAMES[dice.below(NAMES.len())]);
    let there = subject.store().find(account, &at).expect("find");
    let Some(there) = there else {
        subject.create(account, &at);
        return format!("create {at}");
    };
    let next = usize::try_from(there.head.uid_next.0).unwrap_or(usize::MAX);
    let uid = Uid(u32::try_from(1 + dice.below(next)).unwrap_or(1));
    match dice.below(16) {
        0 if !at.is_inbox() => {
            subject.delete(account, &at);
            format!("delete {at}")
        }
        1 | 2 => {
            subject.rename(account, &at, &other);
            format!("rename {at} to {other}")
        }
        3 => {
            let line = format!("V\t2\n\n{}\n", dice.below(3));
            let content = Some(line.as_bytes()).filter(|_| dice.below(3) > 0);
            subject.write_file(account, &FileKey::Subscriptions, content);
            "subscribe".into()
        }
        4..=6 => {
            subject.expunge(account, &at, uid);
            format!("expunge {at} {uid}")
        }
        7..=9 => {
            let flags = Flags(u8::try_from(dice.below(64)).unwrap_or(0));
            let keywords = &["todo", "$Junk", "later"][..dice.below(4)];
            subject.set_flags((account, &at, uid), flags, keywords);
            format!("flag {at} {uid} {flags:?} {keywords:?}")
        }
        _ => {
            let text = format!("message {}", dice.below(60));
            subject.deliver(account, &at, &body(&text));
            format!("deliver {text} to {at}")
        }
    }
}

/// Asserts that an account is equal in both stores: messages, lists and files.
pub fn assert_equal(
    master: &dyn MailStore,
    replica: &dyn MailStore,
    account: &Account,
    story: &[String],
) {
    let ours = master.account(account).expect("account").unwrap_or_default();
    let theirs = replica.account(account).expect("account").unwrap_or_default();
    assert!(
        digest::account(&ours.state) == digest::account(&theirs.state),
        "master: {ours:#?}\nreplica: {theirs:#?}\nafter {story:#?}"
    );
}

fn shuffle(master: &dyn Subject, replica: &dyn Subject, seed: u64) {
    let (mut dice, mut story) = (Dice::new(seed), vec![format!("seed {seed}")]);
    let mut link = Replicator::default();
    let accounts = [ann(), Account::new("ben").expect("it is a good name")];
    for account in &accounts {
        master.create(account, &MailboxName::inbox());
    }
    for round in 0..12 {
        for _ in 0..dice.below(14) {
            let account = &accounts[dice.below(accounts.len())];
            story.push(format!("{account}: {}", act(master, account, &mut dice)));
        }
        if dice.below(4) == 0 {
            link = Replicator::default(); // another connection
        }
        let result = link.run(master.store(), replica.store());
        result.unwrap_or_else(|error| panic!("replicate: {error}\nafter {story:#?}"));
        story.push(format!("round {round}"));
        for account in &accounts {
            assert_equal(master.store(), replica.store(), account, &story);
        }
    }
}

/// Whatever happens to the master's mail, replicating makes the replica equal.
pub fn random_changes_end_equal(make: Make<'_>) {
    for seed in 1..=6 {
        shuffle(&*make(), &*make(), seed);
    }
}

/// Replication between the engine and the reference, each as master.
pub fn both_ways_with_memory(make: Make<'_>) {
    shuffle(&*make(), &InMemory::new("replica"), 11);
    shuffle(&InMemory::new("master"), &*make(), 12);
}

/// Mail that was delivered to the replica is still there after any replication (I2).
pub fn replica_keeps_its_own(make: Make<'_>) {
    let (master, replica) = (make(), make());
    let (inbox, work) = (MailboxName::inbox(), name("Work"));
    for at in [&inbox, &work] {
        master.create(&ann(), at);
        master.deliver(&ann(), at, &body("first"));
    }
    let mut link = Replicator::default();
    link.run(master.store(), replica.store()).expect("replicate");
    assert_equal(master.store(), replica.store(), &ann(), &[]);
    for at in [&inbox, &work] {
        replica.deliver(&ann(), at, &body("only here"));
    }
    master.expunge(&ann(), &inbox, Uid(1));
    master.delete(&ann(), &work);
    link.run(master.store(), replica.store()).expect("replicate");
    assert_eq!(link.kept, BTreeSet::from([inbox.clone(), work.clone()]));
    for (at, uids) in [(&inbox, &[2][..]), (&work, &[1, 2])] {
        let state = replica.store().find(&ann(), at).expect("find").expect("it is kept");
        let records = replica.store().delta(&ann(), state.id, ModSeq(0)).expect("delta").records;
        assert_eq!(records.iter().map(|r| r.uid.0).collect::<Vec<_>>(), uids, "{at}");
    }
}

/// The old master follows the new one in everything, but for what it got after it handed over.
pub fn a_master_hands_over(make: Make<'_>) {
    let (old, new) = (make(), make());
    let inbox = MailboxName::inbox();
    old.create(&ann(), &inbox);
    for text in ["first", "second", "third"] {
        old.deliver(&ann(), &inbox, &body(text));
    }
    Replicator::default().run(old.store(), new.store()).expect("replicate");
    let proven = old.store().find(&ann(), &inbox).expect("find").expect("it is there");
    old.deliver(&ann(), &inbox, &body("too late"));

    let adopt = || old.store().adopt(&ann(), proven.id, proven.head.uid_next).expect("adopt");
    assert_eq!((adopt(), adopt()), (3, 0));
    new.expunge(&ann(), &inbox, Uid(2));
    new.deliver(&ann(), &inbox, &body("fourth"));
    let mut link = Replicator::default();
    link.run(new.store(), old.store()).expect("replicate back");
    assert_eq!(link.kept, BTreeSet::from([inbox]), "the late one is nobody else's");
    let records = old.store().delta(&ann(), proven.id, ModSeq(0)).expect("delta").records;
    let late = records.iter().find(|record| record.uid == Uid(4)).expect("it is kept");
    assert_eq!((late.guid, late.replicated), (crate::guid_of(&body("too late")), false));
    assert_eq!(records.iter().map(|r| r.uid.0).collect::<Vec<_>>(), [1, 3, 4]);
}
