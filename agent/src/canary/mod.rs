//! The canary: a message that is delivered on the master like any other, and looked for on every
//! replica. It sees what no figure of our own does: that mail which is accepted now arrives.

mod lmtp;

use std::{
    collections::BTreeSet,
    io::Read as _,
    sync::{Arc, Mutex},
    time::Duration,
};

use mailtwin_host::{
    admin::{CanaryArrival, CanaryReport, FailureCode, Response, answer},
    clock::Clock,
    config::Canary as Wanted,
};
use mailtwin_logic::{
    chain::Chain,
    ids::{Account, Guid, MailboxId, ModSeq, Uid},
    link::Phase,
    mailbox::MailboxName,
    plan::{Change, Mode},
};
use mailtwin_store::{Batch, Destination, MailStore, StoreError};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::{Agent, metrics::CanaryMetrics};

/// How long the mail server has to accept one, and our store to show it.
const ACCEPTED_WITHIN: Duration = Duration::from_secs(30);
/// How long the replicas have.
const ARRIVED_WITHIN: Duration = Duration::from_mins(1);
/// How long until it is looked for again: at first, and at last.
const LOOK_AFTER: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(250));
/// So many of them stay in the mailbox.
const KEPT: usize = 10;
/// So many messages of the mailbox are looked at for canaries that are too many.
const LOOKED_AT: usize = 100;
/// Nobody else's message has this header, and no message without it is ever removed.
const MARK: &str = "X-Mailtwin-Canary: ";
/// Octets of a message in which the mark is looked for.
const HEADER_MAX: u64 = 16 << 10;

/// Sends canaries, one at a time.
pub(crate) struct Canary {
    wanted: Wanted,
    node: String,
    agent: Arc<Agent>,
    store: Arc<dyn MailStore>,
    clock: Arc<dyn Clock>,
    metrics: CanaryMetrics,
    /// How many were sent.
    turn: tokio::sync::Mutex<u64>,
    /// What became of the last one.
    last: Mutex<Option<CanaryReport>>,
}

/// Where a canary is on the master.
#[derive(Clone, Copy)]
struct Perch {
    mailbox: MailboxId,
    uid: Uid,
    guid: Guid,
}

impl Canary {
    pub(crate) fn new(
        (wanted, node): (Wanted, String),
        agent: Arc<Agent>,
        store: Arc<dyn MailStore>,
        clock: Arc<dyn Clock>,
        metrics: CanaryMetrics,
    ) -> Self {
        metrics.begin(wanted.interval);
        let (turn, last) = (tokio::sync::Mutex::default(), Mutex::default());
        Self { wanted, node, agent, store, clock, metrics, turn, last }
    }

    /// Sends one every interval.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut was_well = true;
        while !self.wanted.interval.is_zero() {
            let sent = async {
                sleep(self.wanted.interval).await;
                self.send().await
            };
            let report = tokio::select! {
                () = stop.cancelled() => return,
                report = sent => report,
            };
            // A line for a change, not for each.
            match (was_well, report.is_well()) {
                (true, false) => {
                    let why = report.summary();
                    tracing::warn!(
                        code = "canary-missing",
                        why,
                        "a message that was sent to see it arrive did not"
                    );
                }
                (false, true) => {
                    tracing::info!(what = report.summary(), "the canary arrives again");
                }
                (true, true) | (false, false) => {}
            }
            was_well = report.is_well();
        }
    }

    /// What became of the last one.
    pub(crate) fn last(&self) -> Option<CanaryReport> {
        self.last.lock().expect("no panic while it is held").clone()
    }

    /// Sends one, and waits until it is everywhere, or long enough.
    pub(crate) async fn send(&self) -> CanaryReport {
        let mut turn = self.turn.lock().await;
        *turn += 1;
        let (at, account) = (self.clock.unix_ms(), self.wanted.account.to_string());
        let mark = format!("{} {at} {turn}", self.node);
        self.metrics.sent(self.replicas(), at);
        let mut report = CanaryReport { at, account, ..CanaryReport::default() };
        match timeout(ACCEPTED_WITHIN, self.deliver(mark, &mut report)).await {
            Ok(Ok((accepted, perch))) => {
                report.replicas = self.arrivals(accepted, perch).await;
                self.clear(perch).await;
            }
            Ok(Err(why)) => report.error = Some(why),
            Err(_) => report.error = Some(late(&report)),
        }
        for CanaryArrival { name, after_ms, .. } in &report.replicas {
            if let Some(after) = after_ms {
                self.metrics.arrived(name, Duration::from_millis(*after), self.clock.unix_ms());
            }
        }
        *self.last.lock().expect("no panic while it is held") = Some(report.clone());
        report
    }

    /// Has one delivered, and finds it in the master's mailbox; tells when it was accepted, and where
    /// it is.
    async fn deliver(
        &self,
        mark: String,
        report: &mut CanaryReport,
    ) -> Result<(Instant, Perch), String> {
        let Wanted { account, lmtp, .. } = &self.wanted;
        let name = account.clone();
        let before = self.work(move |store| store.find(&name, &MailboxName::inbox())).await?;
        let next = before.map_or(Uid(1), |mailbox| mailbox.head.uid_next);
        let began = Instant::now();
        let sent = lmtp::deliver(lmtp, account.as_str(), &message(account, &mark)).await;
        sent.map_err(|error| Chain(&error).to_string())?;
        let accepted = Instant::now();
        report.accepted_ms = Some(ms(accepted - began));
        let mut pause = LOOK_AFTER.0;
        loop {
            let (name, mark) = (account.clone(), mark.clone());
            if let Some(perch) = self.work(move |store| look(store, &name, next, &mark)).await? {
                return Ok((accepted, perch));
            }
            sleep(pause).await;
            pause = (pause * 2).min(LOOK_AFTER.1);
        }
    }

    /// Waits for it on every replica that is not paused.
    async fn arrivals(&self, accepted: Instant, perch: Perch) -> Vec<CanaryArrival> {
        let waits = self.replicas().into_iter().map(async |name| {
            let arrived = timeout(ARRIVED_WITHIN, self.arrives(&name, perch)).await;
            let late = |_| format!("not there after {} s", ARRIVED_WITHIN.as_secs());
            let after_ms = arrived.is_ok().then(|| ms(accepted.elapsed()));
            CanaryArrival { name, after_ms, error: arrived.err().map(late) }
        });
        futures_util::future::join_all(waits).await
    }

    /// All that are not paused.
    fn replicas(&self) -> BTreeSet<String> {
        let links = self.agent.links().into_iter();
        links.filter(|link| link.phase != Phase::Paused).map(|link| link.name).collect()
    }

    /// Returns once `replica` says that it has it.
    async fn arrives(&self, replica: &str, perch: Perch) {
        let mut pause = LOOK_AFTER.0;
        loop {
            // What goes wrong is the link's to tell; here it only is not there yet.
            if let Some(visitor) = self.agent.visitor(replica)
                && let Ok((_, records)) =
                    visitor.their_records_of(&self.wanted.account, perch.mailbox).await
                && records.iter().any(|record| (record.uid, record.guid) == (perch.uid, perch.guid))
            {
                return;
            }
            sleep(pause).await;
            pause = (pause * 2).min(LOOK_AFTER.1);
        }
    }

    /// Removes those that are too many. What cannot be removed now can be the next time.
    async fn clear(&self, perch: Perch) {
        let account = self.wanted.account.clone();
        let cleared = self.work(move |store| {
            let delta = store.delta(&account, perch.mailbox, ModSeq(0))?;
            let mut canaries = Vec::new();
            for record in delta.records.iter().rev().take(LOOKED_AT) {
                if mark_of(store, &account, perch.mailbox, record.uid)?.is_some() {
                    canaries.push((record.uid, record.guid));
                }
            }
            let many = canaries.split_off(KEPT.min(canaries.len()));
            if many.is_empty() {
                return Ok(());
            }
            // They came like all mail; these are ours, and no others.
            store.give_up(&account, perch.mailbox, &many)?;
            let changes = many.into_iter().map(|(uid, _)| Change::Expunge(uid)).collect();
            let (mailbox, name) = (delta.state.id, delta.state.name);
            let batch = Batch {
                to: Destination { account, mailbox, name, mode: Mode::Update },
                expect: Some(delta.state.head),
                target: delta.state.head,
                modseq: ModSeq(0),
                keywords: delta.keywords,
                changes,
                staged: Vec::new(),
                last: true,
            };
            store.apply(vec![batch]).into_iter().try_for_each(|applied| applied.map(|_| ()))
        });
        if let Err(error) = cleared.await {
            tracing::debug!(error, "canaries that are too many are not removed yet");
        }
    }

    /// Makes a blocking call of the store.
    async fn work<T: Send + 'static>(
        &self,
        call: impl FnOnce(&dyn MailStore) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, String> {
        let store = Arc::clone(&self.store);
        match self.agent.workers().run(move || call(&*store)).await {
            Ok(result) => result.map_err(|error| Chain(&error).to_string()),
            Err(error) => Err(Chain(&error).to_string()),
        }
    }
}

/// The canary of this mark among what came since `next` was UIDNEXT.
fn look(
    store: &dyn MailStore,
    account: &Account,
    next: Uid,
    mark: &str,
) -> Result<Option<Perch>, StoreError> {
    let Some(mailbox) = store.find(account, &MailboxName::inbox())? else { return Ok(None) };
    let mailbox = mailbox.id;
    for record in store.delta(account, mailbox, ModSeq(0))?.records {
        if record.uid >= next
            && mark_of(store, account, mailbox, record.uid)?.as_deref() == Some(mark)
        {
            return Ok(Some(Perch { mailbox, uid: record.uid, guid: record.guid }));
        }
    }
    Ok(None)
}

/// The mark in the header of a message; none if it is no canary, or gone.
fn mark_of(
    store: &dyn MailStore,
    account: &Account,
    mailbox: MailboxId,
    uid: Uid,
) -> Result<Option<String>, StoreError> {
    let octets = match store.open(account, mailbox, uid) {
        Err(StoreError::NotFound { .. }) => return Ok(None),
        octets => octets?,
    };
    let mut header = Vec::new();
    // Unreadable is no canary.
    let _ = octets.take(HEADER_MAX).read_to_end(&mut header);
    let header = String::from_utf8_lossy(&header);
    let mut lines = header.lines().take_while(|line| !line.is_empty());
    Ok(lines.find_map(|line| line.strip_prefix(MARK)).map(str::to_owned))
}

fn message(account: &Account, mark: &str) -> String {
    let id = mark.replace(' ', ".");
    format!(
        "From: Mailtwin <{account}>\r\n\
         To: <{account}>\r\n\
         Subject: Mailtwin canary\r\n\
         Message-ID: <{id}@canary.mailtwin.invalid>\r\n\
         Auto-Submitted: auto-generated\r\n\
         {MARK}{mark}\r\n\
         \r\n\
         Sent by mailtwin-agent to see that mail which is accepted arrives on every replica.\r\n\
         The newest {KEPT} of these messages are kept.\r\n"
    )
}

/// What is known of one that was not found in time.
fn late(report: &CanaryReport) -> String {
    let (account, within) = (&report.account, ACCEPTED_WITHIN.as_secs());
    match report.accepted_ms {
        None => format!("the mail server did not accept it within {within} s"),
        Some(_) => format!(
            "the mail server accepted it, but it is not in the INBOX of {account} after {within} s: \
             does a filter move it, or is {account} another account's alias?"
        ),
    }
}

/// Sends one for an admin.
pub(crate) async fn answer(canary: Option<&Canary>) -> Response {
    match canary {
        Some(canary) => Response::Canary(canary.send().await),
        None => answer::failed(
            FailureCode::Refused,
            "no canary is configured: set `account` and `lmtp` in [canary], and restart \
             mailtwin-agent"
                .to_owned(),
        ),
    }
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
