//! The brake: a mass disappearance on the master is not replayed before an admin has looked at it.
//!
//! Two scopes. An *account* is held when much of it goes at once: what counts is what is gone from
//! the account altogether (a message that was moved is not), beyond the one mailbox that loses most
//! (somebody emptied a folder, or deleted it). The *store* is held when a share of all accounts has
//! lost a share of its mail: no user does that. Everything is looked at before the first deletion of
//! it is replayed, so that it is the whole that is judged.

use alloc::{
    collections::BTreeMap,
    format,
    string::{String, ToString},
    vec::Vec,
};
use core::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    ids::Account,
    mailbox::{AccountState, MailboxName},
    plan::{AccountPlan, Step},
};

/// Messages that must go before an account is looked at as a whole, and that count as a loss of it.
const LOOK_FROM: u64 = 10;
/// Accounts with deletions in the present window that are remembered; with more, those whose window
/// began first are forgotten.
const LEDGERS_MAX: usize = 50_000;

/// What may vanish without anybody's leave. A number and a share must both be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Messages of one account, beyond those of the mailbox that loses most.
    pub messages: u64,
    /// Mailboxes of one account.
    pub mailboxes: u64,
    /// Accounts.
    pub accounts: u64,
    /// Percent of an account's messages or mailboxes; percent of all accounts.
    pub share: u8,
    /// Length of the window, in milliseconds.
    pub within_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { messages: 250, mailboxes: 10, accounts: 5, share: 30, within_ms: 3_600_000 }
    }
}

impl Limits {
    /// Never holds anything.
    pub const OFF: Self = Self {
        messages: u64::MAX,
        mailboxes: u64::MAX,
        accounts: u64::MAX,
        share: 100,
        within_ms: 1,
    };

    fn is_share(&self, part: u64, whole: u64) -> bool {
        part.saturating_mul(100) >= whole.saturating_mul(self.share.into())
    }
}

/// What is held.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// All accounts.
    Store,
    /// One.
    Account(Account),
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store => f.write_str("all accounts"),
            Self::Account(account) => write!(f, "{account}"),
        }
    }
}

/// Since when and why something is held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Engaged {
    /// Milliseconds since 1970.
    pub since: u64,
    /// What was found, for humans.
    pub why: String,
}

/// Whether deletions may be replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Yes.
    Go,
    /// Look at the account as a whole first, and ask [`Brake::judge`].
    Look,
    /// No.
    Held,
}

/// An account on both sides, before deletions are replayed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// Messages on the replica.
    messages: u64,
    /// Mailboxes on the replica.
    mailboxes: u64,
    /// Messages there will be.
    left: u64,
    /// Mailboxes there will be.
    left_mailboxes: u64,
    /// How many of the replica's messages go, by mailbox.
    going: BTreeMap<MailboxName, u64>,
}

impl Look {
    /// Of two listings. A mailbox that the plan leaves where it is stays.
    pub fn of(master: &AccountState, replica: &AccountState, plan: &AccountPlan) -> Self {
        let mut look = Self {
            left: master.mailboxes.iter().map(|m| u64::from(m.head.messages)).sum(),
            left_mailboxes: master.mailboxes.len() as u64,
            ..Self::default()
        };
        let ours: BTreeMap<_, _> = master.mailboxes.iter().map(|m| (m.id, m)).collect();
        for mailbox in &replica.mailboxes {
            let there = u64::from(mailbox.head.messages);
            look.messages += there;
            look.mailboxes += 1;
            let goes = |step: &Step| match step {
                Step::Delete { id, .. } | Step::Reset { id, .. } => *id == mailbox.id,
                Step::Rename { .. } => false,
            };
            let going = match ours.get(&mailbox.id) {
                Some(kept) => there.saturating_sub(kept.head.messages.into()),
                None if plan.steps.iter().any(goes) => there,
                None => {
                    look.left += there;
                    look.left_mailboxes += 1;
                    0
                }
            };
            if going > 0 {
                look.going.insert(mailbox.name.clone(), going);
            }
        }
        look
    }

    /// Whether anything goes at all.
    pub fn loses(&self) -> bool {
        !self.going.is_empty() || self.left_mailboxes < self.mailboxes
    }
}

/// One account's deletions in a window.
#[derive(Clone, Debug, Default)]
struct Ledger {
    began: u64,
    /// Messages whose deletion was replayed, by mailbox.
    gone: BTreeMap<MailboxName, u64>,
    /// Messages gone at the last look.
    looked: u64,
    /// Most messages and mailboxes seen.
    high: (u64, u64),
    /// A share of the account was lost.
    struck: bool,
}

impl Ledger {
    fn sum(&self) -> u64 {
        self.gone.values().sum()
    }
}

/// One replica's brake.
#[derive(Clone, Debug, Default)]
pub struct Brake {
    limits: Limits,
    /// Accounts there are; 0 if that is not known yet.
    accounts: u64,
    engaged: BTreeMap<Scope, Engaged>,
    /// What an admin let go, and when: that is not judged again.
    released: BTreeMap<Scope, u64>,
    ledgers: BTreeMap<Account, Ledger>,
}

impl Brake {
    /// A brake that holds `engaged`; of `released`, an admin has let go.
    pub fn new(
        limits: Limits,
        engaged: BTreeMap<Scope, Engaged>,
        released: BTreeMap<Scope, u64>,
    ) -> Self {
        Self { limits, engaged, released, ..Self::default() }
    }

    /// What is held.
    pub fn engaged(&self) -> &BTreeMap<Scope, Engaged> {
        &self.engaged
    }

    /// What an admin has let go and is not yet replayed, with the time.
    pub fn released(&self) -> &BTreeMap<Scope, u64> {
        &self.released
    }

    /// So many accounts there are.
    pub fn set_accounts(&mut self, accounts: u64) {
        self.accounts = accounts;
    }

    /// Whether deletions of `account` are held.
    pub fn holds(&self, now: u64, account: &Account) -> bool {
        let own = Scope::Account(account.clone());
        let is_let_go = self.is_released(now, &own) || self.is_released(now, &Scope::Store);
        !is_let_go && (self.engaged.contains_key(&own) || self.engaged.contains_key(&Scope::Store))
    }

    /// Whether `messages` of a mailbox may be deleted; if they may, notes that they are.
    pub fn ask(
        &mut self,
        now: u64,
        account: &Account,
        mailbox: &MailboxName,
        messages: u64,
    ) -> Verdict {
        if self.holds(now, account) {
            return Verdict::Held;
        }
        if self.is_free(now, account) {
            return Verdict::Go;
        }
        let ledger = self.ledger(now, account);
        let sum = ledger.sum().saturating_add(messages);
        // Each look costs a listing: the next one is due when twice as much is gone.
        if sum >= LOOK_FROM && sum >= ledger.looked.saturating_mul(2) {
            return Verdict::Look;
        }
        self.note(now, account, mailbox, messages);
        Verdict::Go
    }

    /// Notes that messages of a mailbox are deleted.
    pub fn note(&mut self, now: u64, account: &Account, mailbox: &MailboxName, messages: u64) {
        if !self.is_free(now, account) {
            *self.ledger(now, account).gone.entry(mailbox.clone()).or_default() += messages;
        }
    }

    /// Judges an account as a whole; tells what is held from now on that was not before.
    pub fn judge(&mut self, now: u64, account: &Account, look: &Look) -> (Verdict, Vec<Scope>) {
        if self.holds(now, account) {
            return (Verdict::Held, Vec::new());
        }
        if self.is_free(now, account) {
            return (Verdict::Go, Vec::new());
        }
        let limits = self.limits;
        let ledger = self.ledger(now, account);
        ledger.high = (ledger.high.0.max(look.messages), ledger.high.1.max(look.mailboxes));
        let mut gross = ledger.gone.clone();
        for (mailbox, going) in &look.going {
            *gross.entry(mailbox.clone()).or_default() += going;
        }
        ledger.looked = gross.values().sum();
        let (high, high_mailboxes) = ledger.high;
        let lost = high.saturating_sub(look.left);
        let lost_mailboxes = high_mailboxes.saturating_sub(look.left_mailboxes);
        let spread = lost.saturating_sub(gross.values().copied().max().unwrap_or(0));
        ledger.struck |= lost >= LOOK_FROM && limits.is_share(lost, high);
        let of_messages = spread >= limits.messages && limits.is_share(spread, high);
        let of_mailboxes =
            lost_mailboxes >= limits.mailboxes && limits.is_share(lost_mailboxes, high_mailboxes);
        let mut news = Vec::new();
        if of_messages || of_mailboxes {
            let why = format!(
                "{lost} of {high} messages and {lost_mailboxes} of {high_mailboxes} mailboxes are gone \
                 from {account}"
            );
            news.extend(self.engage(Scope::Account(account.clone()), now, why));
        }
        news.extend(self.judge_store(now));
        (if news.is_empty() { Verdict::Go } else { Verdict::Held }, news)
    }

    /// Lets deletions go; `false` if that was not held.
    pub fn release(&mut self, now: u64, scope: &Scope) -> bool {
        let whole = self.engaged.contains_key(&Scope::Store);
        if self.engaged.remove(scope).is_none() && !whole {
            return false;
        }
        match scope {
            Scope::Store => self.ledgers.clear(),
            Scope::Account(account) => {
                self.ledgers.remove(account);
            }
        }
        self.released.insert(scope.clone(), now);
        true
    }

    /// Nothing that was let go is left to be replayed: from now on all is judged again. Tells whether
    /// that changes anything.
    pub fn settle(&mut self) -> bool {
        !core::mem::take(&mut self.released).is_empty()
    }

    /// Holds a scope, whatever the numbers; tells if it was not held before.
    pub fn engage(&mut self, scope: Scope, now: u64, why: String) -> Option<Scope> {
        if self.engaged.contains_key(&scope) {
            return None;
        }
        self.released.remove(&scope);
        self.engaged.insert(scope.clone(), Engaged { since: now, why });
        Some(scope)
    }

    fn judge_store(&mut self, now: u64) -> Option<Scope> {
        let within = self.limits.within_ms;
        let recent = |ledger: &&Ledger| now.saturating_sub(ledger.began) <= within;
        let struck = self.ledgers.values().filter(recent).filter(|ledger| ledger.struck).count();
        let (struck, all) = (struck as u64, self.accounts);
        if struck < self.limits.accounts || !self.limits.is_share(struck, all) {
            return None;
        }
        let all = if all == 0 { "all".to_string() } else { all.to_string() };
        self.engage(
            Scope::Store,
            now,
            format!("{struck} of {all} accounts have lost much of their mail"),
        )
    }

    fn is_released(&self, now: u64, scope: &Scope) -> bool {
        let at = self.released.get(scope);
        at.is_some_and(|at| now.saturating_sub(*at) <= self.limits.within_ms)
    }

    /// Whether an admin has let this account's deletions go.
    fn is_free(&self, now: u64, account: &Account) -> bool {
        self.is_released(now, &Scope::Store)
            || self.is_released(now, &Scope::Account(account.clone()))
    }

    /// The account's present window.
    fn ledger(&mut self, now: u64, account: &Account) -> &mut Ledger {
        let within = self.limits.within_ms;
        if self.ledgers.len() >= LEDGERS_MAX && !self.ledgers.contains_key(account) {
            self.ledgers.retain(|_, ledger| now.saturating_sub(ledger.began) <= within);
            let oldest = self.ledgers.iter().min_by_key(|(_, ledger)| ledger.began);
            if let Some(oldest) = oldest.map(|(account, _)| account.clone())
                && self.ledgers.len() >= LEDGERS_MAX
            {
                self.ledgers.remove(&oldest);
            }
        }
        let ledger = self.ledgers.entry(account.clone()).or_default();
        if now.saturating_sub(ledger.began) > within {
            *ledger = Ledger { began: now, ..Ledger::default() };
        }
        ledger
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ids::{MailboxId, ModSeq},
        mailbox::{Head, MailboxState},
        plan,
    };

    fn who(name: &str) -> Account {
        Account::new(name).unwrap()
    }

    /// `"A=10 B=5"`: mailboxes with so many messages.
    fn state(text: &str) -> AccountState {
        let mailboxes = text.split_whitespace().map(|word| {
            let (name, messages) = word.split_once('=').unwrap();
            let mut id = [0; 16];
            id.iter_mut().zip(name.bytes()).for_each(|(place, octet)| *place = octet);
            let head = Head { messages: messages.parse().unwrap(), ..Head::default() };
            let (id, name) = (MailboxId(id), MailboxName::new(name.as_bytes()).unwrap());
            MailboxState { id, name, head, highest_modseq: ModSeq(0), foreign: 0 }
        });
        AccountState { mailboxes: mailboxes.collect(), files: Vec::new() }
    }

    fn look(replica: &str, master: &str) -> Look {
        let (ours, theirs) = (state(master), state(replica));
        Look::of(&ours, &theirs, &plan::account(&ours, &theirs))
    }

    fn many(count: u32, messages: u32) -> String {
        let all: Vec<String> = (0..count).map(|n| format!("m{n}={messages}")).collect();
        all.join(" ")
    }

    #[test]
    fn what_users_do_and_what_they_do_not() {
        let cases = [
            ("Trash emptied", "A=200 B=300 Trash=9000", "A=200 B=300 Trash=0", Verdict::Go),
            ("a folder deleted", "A=200 Old=9000", "A=200", Verdict::Go),
            ("all gone but one", "A=200 B=300 C=200", "A=200", Verdict::Go),
            ("moved to an archive", "A=400 B=400 C=400", "A=0 B=0 C=0 Z=1200", Verdict::Go),
            ("a small account emptied", "A=50 B=60 C=70", "A=0 B=0 C=0", Verdict::Go),
            ("everything gone", "A=400 B=400 C=400", "A=0 B=0 C=0", Verdict::Held),
            ("every mailbox gone", "A=400 B=400 C=400", "", Verdict::Held),
            ("a third gone, widely", "A=900 B=900 C=900", "A=500 B=500 C=500", Verdict::Go),
            ("half gone, widely", "A=900 B=900 C=900", "A=400 B=400 C=400", Verdict::Held),
        ];
        for (what, replica, master, want) in cases {
            let mut brake = Brake::default();
            let (verdict, _) = brake.judge(0, &who("ann"), &look(replica, master));
            assert_eq!(verdict, want, "{what}");
        }
        let empty_mailboxes = look(&many(40, 0), &many(20, 0));
        assert_eq!(Brake::default().judge(0, &who("ann"), &empty_mailboxes).0, Verdict::Held);
        let few = look(&many(40, 0), &many(35, 0));
        assert_eq!(Brake::default().judge(0, &who("ann"), &few).0, Verdict::Go);
    }

    #[test]
    fn what_vanishes_in_pieces_is_added_up_and_forgotten_in_time() {
        let (ann, a, b) = (who("ann"), state("A=1").mailboxes[0].name.clone(), state("B=1"));
        let b = b.mailboxes[0].name.clone();
        let mut brake = Brake::default();
        assert_eq!(brake.ask(0, &ann, &a, 9), Verdict::Go, "too little to look");
        assert_eq!(brake.ask(1, &ann, &a, 400), Verdict::Look);
        assert_eq!(brake.judge(1, &ann, &look("A=1000 B=1000", "A=600 B=1000")).0, Verdict::Go);
        brake.note(1, &ann, &a, 400);
        assert_eq!(brake.ask(2, &ann, &b, 300), Verdict::Go, "not twice as much");
        // 600 more: all in all 1309, but for the mailbox that lost most, 900.
        assert_eq!(brake.ask(3, &ann, &b, 600), Verdict::Look);
        let (verdict, news) = brake.judge(3, &ann, &look("A=600 B=700", "A=600 B=100"));
        assert_eq!((verdict, news.len()), (Verdict::Go, 0), "409 of 2000");
        brake.note(3, &ann, &b, 600);
        let last = look("A=600 B=100", "A=100 B=100");
        let mut later = brake.clone();
        assert_eq!(brake.judge(4, &ann, &last).0, Verdict::Held);
        assert_eq!(later.judge(7_200_000, &ann, &last).0, Verdict::Go, "another window");
    }

    #[test]
    fn many_accounts_at_once_are_the_store() {
        let gone = look("A=20 B=3", "A=0 B=0");
        let mut brake = Brake::default();
        brake.set_accounts(10);
        for n in 0..4 {
            assert_eq!(brake.judge(n, &who(&format!("u{n}")), &gone).0, Verdict::Go);
        }
        let (verdict, news) = brake.judge(9, &who("u4"), &gone);
        assert_eq!((verdict, news), (Verdict::Held, [Scope::Store].to_vec()));
        assert!(brake.holds(9, &who("zoe")), "everybody");
        // In a large store, five are nothing.
        let mut brake = Brake::default();
        brake.set_accounts(1000);
        for n in 0..299 {
            assert_eq!(brake.judge(n, &who(&format!("u{n}")), &gone).0, Verdict::Go);
        }
        assert_eq!(brake.judge(300, &who("u300"), &gone).0, Verdict::Held);
    }

    #[test]
    fn released_until_it_is_replayed() {
        let (ann, ben) = (who("ann"), who("ben"));
        let gone = look("A=400 B=400 C=400", "");
        let mut brake = Brake::default();
        let scope = Scope::Account(ann.clone());
        assert_eq!(brake.judge(0, &ann, &gone), (Verdict::Held, [scope.clone()].to_vec()));
        assert_eq!(brake.judge(1, &ann, &gone), (Verdict::Held, Vec::new()), "told once");
        assert!(!brake.holds(1, &ben) && !brake.release(1, &Scope::Account(ben.clone())));
        assert!(brake.release(2, &scope) && brake.engaged().is_empty());
        assert_eq!(brake.judge(3, &ann, &gone).0, Verdict::Go);
        assert_eq!(brake.ask(3, &ann, &MailboxName::inbox(), 5000), Verdict::Go);
        // After a restart as well.
        let mut kept =
            Brake::new(Limits::default(), brake.engaged().clone(), brake.released().clone());
        assert_eq!(kept.judge(4, &ann, &gone).0, Verdict::Go);
        assert!(kept.settle() && !kept.settle());
        assert_eq!(kept.judge(5, &ann, &gone).0, Verdict::Held);
        // One account of a store that is held.
        brake.engage(Scope::Store, 6, "told so".to_string());
        assert!(brake.holds(6, &ben) && !brake.holds(6, &ann));
        assert!(brake.release(7, &Scope::Account(ben.clone())) && !brake.holds(7, &ben));
    }

    #[test]
    fn a_brake_that_is_off_holds_nothing() {
        let mut brake = Brake::new(Limits::OFF, BTreeMap::new(), BTreeMap::new());
        let gone = look(&many(40, 1000), "");
        assert_eq!(brake.judge(0, &who("ann"), &gone).0, Verdict::Go);
    }
}
