//! Hard failover: this replica makes itself the master, for the old one is dead. What it holds at that
//! moment is written down, so that the old one's mail can be merged when it comes back.

use std::{path::PathBuf, sync::Arc, time::Duration};

use mailtwin_host::{
    admin::{OperationOutcome, OperationStatus, OperationStep},
    base::Base,
    clock::Clock,
};
use mailtwin_logic::{
    chain::Chain,
    ids::{Account, Epoch, ModSeq, Uid},
    limits::{MODSEQ_MARGIN, UID_MARGIN},
    mailbox::{Head, MailboxState, Record},
    plan::Mode,
    reconcile::{BaseMailbox, BaseRecord},
};
use mailtwin_store::{Batch, Destination, MailStore, StoreError};

use crate::{fence::Fence, heard::Heard, session::Work};

/// A master that was heard of within this time is not dead.
const ALIVE_WITHIN: Duration = Duration::from_secs(15);
/// How long sessions of the old epoch may take to end.
const SESSIONS_WITHIN: Duration = Duration::from_secs(30);
/// How often that is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How often a mailbox that changes is tried.
const TRIES: usize = 5;

/// What an admin asks for.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    /// Entries of the master's log that may be missing here; `None`: any number.
    pub accept_loss: Option<u64>,
    /// Only say what is at risk.
    pub dry_run: bool,
}

/// What it works with.
pub struct Force {
    /// The node's role and epoch.
    pub fence: Fence,
    /// Its store.
    pub work: Work,
    /// Whom it has heard of.
    pub heard: Heard,
    /// Where what it holds is written down.
    pub state_dir: PathBuf,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

impl Force {
    /// Runs it to its end.
    pub async fn run(self, order: Order) -> OperationStatus {
        let began = tokio::time::Instant::now();
        let mut steps = Vec::new();
        let mut step = |text: String| {
            tracing::warn!(code = "failover-step", step = text, "failover");
            let at_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            steps.push(OperationStep { at_ms, text });
        };
        let result = self.carry_out(order, &mut step).await;
        let (state, message) = match result {
            Ok(message) => ("done", message),
            Err((state, message)) => (state, message),
        };
        tracing::warn!(code = "failover-ended", state, message, "failover");
        let outcome = Some(OperationOutcome { state: state.to_owned(), message });
        OperationStatus { id: 1, steps, outcome }
    }

    async fn carry_out(
        &self,
        order: Order,
        step: &mut impl FnMut(String),
    ) -> Result<String, (&'static str, String)> {
        let refused = |why: String| ("refused", format!("nothing was done: {why}"));
        let undone = |why: String| {
            (
                "undone",
                format!("{why}; this node is still a replica: say it again when that is mended"),
            )
        };
        step(self.at_risk());
        if let Some(why) = self.stands_against(order) {
            return Err(refused(why));
        }
        if order.dry_run {
            return Ok("nothing was changed, for this was a dry run".into());
        }
        let old = self.fence.node().master;
        let epoch = self.fence.claim().map_err(|error| undone(Chain(&error).to_string()))?;
        step(format!("epoch {epoch} is claimed: the old master is let in no more"));
        let deadline = tokio::time::Instant::now() + SESSIONS_WITHIN;
        while self.heard.agents().values().any(|agent| agent.connections > 0) {
            if tokio::time::Instant::now() > deadline {
                return Err(undone("a session of the old master does not end".into()));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let (store, base) = (Arc::clone(&self.work.store), Base::of(&self.state_dir, epoch));
        let master = old.clone().unwrap_or_default();
        let noted = self.work.workers.run(move || write_base(&*store, &base, &master)).await;
        let (accounts, messages) = match noted {
            Ok(Ok(counted)) => counted,
            Ok(Err(why)) => return Err(undone(why)),
            Err(error) => return Err(undone(Chain(&error).to_string())),
        };
        step(format!("written down: {accounts} accounts, {messages} messages"));
        self.rise(epoch, old.as_deref()).map_err(undone)
    }

    fn rise(&self, epoch: Epoch, old: Option<&str>) -> Result<String, String> {
        self.fence.rise(epoch, old).map_err(|error| Chain(&error).to_string())?;
        let name = self.fence.node().name;
        Ok(format!(
            "{name} is the master of epoch {epoch}; what only the old master has is copied back when it \
             returns: `replctl ledger` lists it then"
        ))
    }

    /// What may be missing here, in numbers.
    fn at_risk(&self) -> String {
        match self.last() {
            Some((name, age, lag)) => {
                format!(
                    "{name} was heard of last {age} s ago, when {lag} entries of its log were missing here"
                )
            }
            None => "no master was heard of since this daemon was started".into(),
        }
    }

    /// The agent heard last: its name, seconds since, entries missing then.
    fn last(&self) -> Option<(String, u64, u64)> {
        let (name, agent) = self.heard.last()?;
        let beat = agent.beat?;
        let age = self.clock.unix_ms().saturating_sub(agent.at) / 1000;
        Some((name, age, beat.head.0.saturating_sub(beat.cursor.0)))
    }

    fn stands_against(&self, order: Order) -> Option<String> {
        if self.fence.is_master() {
            return Some("this node is the master already".into());
        }
        let connected = self.heard.agents().values().any(|agent| agent.connections > 0);
        let last = self.last();
        if let Some((name, age, _)) = last.as_ref().filter(|_| connected)
            && *age < ALIVE_WITHIN.as_secs()
        {
            return Some(format!(
                "{name} is alive: say `replctl failover switch --to {}` there, or stop it first",
                self.fence.node().name
            ));
        }
        let accepted = order.accept_loss?;
        match last {
            Some((_, _, lag)) if lag > accepted => Some(format!(
                "{lag} entries are known to be missing: --accept-loss {lag} accepts that; they are \
                 copied back when the old master returns"
            )),
            Some(_) => None,
            None => Some(
                "it is not known what is missing here: --accept-loss all accepts whatever it is"
                    .into(),
            ),
        }
    }
}

/// Writes down every account and leaves out UIDs; returns accounts and messages.
fn write_base(store: &dyn MailStore, base: &Base, old: &str) -> Result<(usize, u64), String> {
    let failed = |error: &dyn std::error::Error| Chain(error).to_string();
    base.create().map_err(|error| failed(&error))?;
    let accounts = store.accounts().map_err(|error| failed(&error))?;
    let mut messages = 0;
    for account in &accounts {
        let Some(listing) = store.account(account).map_err(|error| failed(&error))? else {
            continue;
        };
        let mut mailboxes = Vec::new();
        for mailbox in listing.state.mailboxes {
            let noted = write_mailbox(store, account, &mailbox);
            let noted =
                noted.map_err(|error| format!("{account}/{}: {}", mailbox.name, failed(&error)))?;
            messages += noted.records.len() as u64;
            mailboxes.push(noted);
        }
        base.save(account, &mailboxes).map_err(|error| failed(&error))?;
    }
    base.finish(old).map_err(|error| failed(&error))?;
    Ok((accounts.len(), messages))
}

/// Raises UIDNEXT, and gives the mailbox as it is then.
fn write_mailbox(
    store: &dyn MailStore,
    account: &Account,
    mailbox: &MailboxState,
) -> Result<BaseMailbox, StoreError> {
    let mut tries = 1;
    loop {
        let delta = store.delta(account, mailbox.id, ModSeq(0))?;
        let state = delta.state;
        let uid_next = Uid(state.head.uid_next.0.saturating_add(UID_MARGIN));
        let to = Destination {
            account: account.clone(),
            mailbox: state.id,
            name: state.name.clone(),
            mode: Mode::Update,
        };
        let batch = Batch {
            to,
            expect: Some(state.head),
            target: Head { uid_next, ..state.head },
            modseq: ModSeq(state.highest_modseq.0.saturating_add(MODSEQ_MARGIN)),
            keywords: delta.keywords,
            changes: Vec::new(),
            staged: Vec::new(),
            last: true,
        };
        match store.apply(vec![batch]).pop() {
            Some(Ok(head)) => {
                let state = MailboxState { head, ..state };
                return Ok(BaseMailbox {
                    state,
                    records: delta
                        .records
                        .iter()
                        .filter(|record| record.replicated)
                        .map(noted)
                        .collect(),
                });
            }
            Some(Err(StoreError::Stale(_))) if tries < TRIES => tries += 1,
            Some(Err(error)) => return Err(error),
            None => return Err(StoreError::Stale(None)),
        }
    }
}

fn noted(record: &Record) -> BaseRecord {
    let Record { uid, guid, flags, keywords, .. } = record.clone();
    BaseRecord { uid, guid, flags, keywords }
}
