//! Soft failover on the old master: close the gate, drain, prove both sides equal, record the
//! hand-over. Until that record everything is taken back when anything goes wrong; from then on this
//! node is no master, whatever happens.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use mailtwin_host::{
    codes::HistoryKind,
    node::{ChangeError, Handover, Role},
    proof::{Proof, Proven},
};
use mailtwin_logic::{
    chain::Chain,
    entry::Target,
    failover::{Facts, blockers, is_drained},
    ids::{Account, Epoch},
    link::Phase,
    wire::message::{Reply, Request, told},
};
use mailtwin_store::MailStore;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::{Ended, Failover, Note, Operations};
use crate::{
    Agent,
    canary::Canary,
    link::LinkStatus,
    log::Health,
    visit::{Proved, Trouble, VisitError, Visitor},
};

/// How long the replica may take to say what stands against it.
const PREFLIGHT_WITHIN: Duration = Duration::from_secs(10);
/// Before two sides that are not equal yet are looked at again.
const AGAIN_AFTER: Duration = Duration::from_millis(50);
/// Accounts named in a message.
const NAMED: usize = 3;

/// What an admin asks for.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    /// The new master.
    pub(crate) to: String,
    /// How long clients may take to finish before their sessions are ended.
    pub(crate) kick_after: Duration,
    /// How long the drain and the proof may take.
    pub(crate) max_wait: Duration,
    /// When the gate reopens if the hand-over has not been recorded.
    pub(crate) expire: Duration,
    /// Whether the admin keeps clients out.
    pub(crate) no_gate: bool,
    /// Whether nothing is to be changed.
    pub(crate) dry_run: bool,
    /// Whether everything but the hand-over is to be done.
    pub(crate) rehearse: bool,
}

/// Runs one switch to its end, or to the record of the hand-over.
pub(crate) async fn switch(
    failover: &Failover,
    agent: &Agent,
    (store, canary): (Arc<dyn MailStore>, Option<&Canary>),
    order: Order,
) {
    let (operations, to) = (&failover.operations, order.to.clone());
    let found = preflight(failover, agent, store, &order).await;
    if !found.is_empty() {
        return operations.end(Ended::Refused, format!("nothing was done: {}", found.join("; ")));
    }
    operations.step(format!("preflight: nothing stands against {to}"));
    if order.dry_run {
        return operations.end(Ended::Done, "nothing was changed, for this was a dry run".into());
    }
    if order.rehearse {
        return rehearsal(failover, agent, canary, &order).await;
    }
    let epoch = Epoch(failover.file.now().epoch.0 + 1);
    let closed_at = failover.clock.unix_ms();
    let expires = Instant::now() + order.expire;
    let result = match timeout_at(expires, prepare(failover, agent, &order, epoch)).await {
        Ok(Ok(proof)) if Instant::now() < expires => record(failover, &proof, closed_at).await,
        Ok(Ok(_)) | Err(_) => Err(format!("not done within {} s", order.expire.as_secs())),
        Ok(Err(why)) => Err(why),
    };
    let Err(why) = result else { return };
    let opened = reopen(failover).await;
    let closed = failover.clock.unix_ms().saturating_sub(closed_at);
    let note = Note { gate_closed_ms: Some(closed), detail: &why };
    failover.note(HistoryKind::Switch, Ended::Undone, epoch, Some(&to), &note);
    operations.end(Ended::Undone, format!("{why}; this node is still the master, and {opened}"));
}

/// Says what became of it.
async fn reopen(failover: &Failover) -> String {
    let occasion = Failover::occasion(&failover.file.now(), Duration::ZERO);
    match failover.gate.open(occasion).await {
        Ok(()) => "the gate is open again".to_owned(),
        Err(error) => format!("{}: open it by hand, or restart mailtwin-agent", Chain(&error)),
    }
}

/// A switch without its hand-over: nobody's role changes. Clients notice nothing unless the gate is
/// part of it.
async fn rehearsal(failover: &Failover, agent: &Agent, canary: Option<&Canary>, order: &Order) {
    let (operations, began) = (&failover.operations, failover.clock.unix_ms());
    let result = match timeout(order.expire, rehearse(failover, agent, order)).await {
        Ok(result) => result,
        Err(_) => Err(format!("not done within {} s", order.expire.as_secs())),
    };
    let opened = if order.no_gate { None } else { Some(reopen(failover).await) };
    let took = failover.clock.unix_ms().saturating_sub(began);
    let result = match (result, canary) {
        (Ok(()), Some(canary)) => fly(operations, canary).await,
        (result, _) => result,
    };
    let (ended, mut text) = match result {
        Ok(()) => (Ended::Done, format!("a switch to {} would have been done", order.to)),
        Err(why) => (Ended::Undone, why),
    };
    if let Some(opened) = opened {
        text = format!("{text}; {opened}, after {took} ms");
    }
    let note = Note { gate_closed_ms: (!order.no_gate).then_some(took), detail: &text };
    failover.note(HistoryKind::Drill, ended, failover.file.now().epoch, Some(&order.to), &note);
    operations.end(ended, text);
}

/// That mail which comes now still arrives.
async fn fly(operations: &Operations, canary: &Canary) -> Result<(), String> {
    let report = canary.send().await;
    if !report.is_well() {
        return Err(format!("the canary did not arrive everywhere: {}", report.summary()));
    }
    let accepted = report.accepted_ms.unwrap_or_default();
    operations.step(format!("canary: accepted after {accepted} ms, {}", report.summary()));
    Ok(())
}

async fn rehearse(failover: &Failover, agent: &Agent, order: &Order) -> Result<(), String> {
    if !order.no_gate {
        close(failover, order).await?;
    }
    let deadline = Instant::now() + order.max_wait;
    drain(&failover.operations, agent, order, deadline).await?;
    let proven = timeout_at(deadline, prove(agent, &order.to, true)).await;
    proven.map_err(|_| late("every account was equal once", order))??;
    failover.operations.step("equal: every account, at one moment or another".into());
    Ok(())
}

/// Everything that stands against it.
async fn preflight(
    failover: &Failover,
    agent: &Agent,
    store: Arc<dyn MailStore>,
    order: &Order,
) -> Vec<String> {
    let Some(link) = agent.link(&order.to) else {
        let names: Vec<String> = agent.links().into_iter().map(|link| link.name).collect();
        return vec![format!(
            "no replica is called {:?}; there are: {}",
            order.to,
            names.join(", ")
        )];
    };
    let verified = agent.workers().run(move || store.verify()).await;
    let store_error = match verified {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(Chain(&error).to_string()),
        Err(error) => Some(Chain(&error).to_string()),
    };
    let log_error = match &*agent.log().health().borrow() {
        Health::Good => None,
        Health::Failing(why) | Health::Stopped(why) => Some(why.clone()),
    };
    let mut facts = Facts {
        phase: link.phase,
        last_error: link.last_error.clone(),
        lag: link.lag_entries,
        aside: link.aside.len(),
        log_error,
        store_error,
        has_gate: order.no_gate || failover.gate.is_there(),
        clock: failover.clock.unix_ms(),
        answer: None,
    };
    let visitor = agent.visitor(&order.to);
    if let Some(visitor) = visitor {
        match timeout(PREFLIGHT_WITHIN, ask(&visitor)).await {
            Ok(Ok(answer)) => facts.answer = Some(answer),
            Ok(Err(why)) => facts.answer = Some((facts.clock, vec![why])),
            Err(_) => facts.answer = Some((facts.clock, vec!["did not answer in time".into()])),
        }
        facts.clock = failover.clock.unix_ms();
    }
    blockers(&order.to, &facts)
}

async fn ask(visitor: &Visitor) -> Result<(u64, Vec<String>), String> {
    let gone = |_| "the connection broke".to_owned();
    let mut stream = visitor.connection.ask(&Request::Preflight).await.map_err(gone)?;
    match stream.reply().await.map_err(gone)? {
        Reply::Ready { clock, blockers } => {
            Ok((clock, blockers.iter().map(|blocker| told(blocker)).collect()))
        }
        Reply::Failed(failure) => Err(failure.detail),
        other => Err(format!("answered something else than was asked: {other:?}")),
    }
}

/// Closes the gate and waits until both sides are equal. Nothing is lost by giving up in between.
async fn prepare(
    failover: &Failover,
    agent: &Agent,
    order: &Order,
    epoch: Epoch,
) -> Result<Proof, String> {
    let operations = &failover.operations;
    if !order.no_gate {
        close(failover, order).await?;
    }
    let deadline = Instant::now() + order.max_wait;
    drain(operations, agent, order, deadline).await?;
    let proven = timeout_at(deadline, prove(agent, &order.to, false)).await;
    let proven = proven.map_err(|_| late("both sides were equal", order))??;
    let (node, at) = (failover.file.now().name, failover.clock.unix_ms());
    let proof = Proof::new(&node, &order.to, epoch, at, proven);
    let (mailboxes, messages) = proof.totals();
    operations.step(format!(
        "equal: {} accounts, {mailboxes} mailboxes, {messages} messages, digest {}",
        proof.accounts.len(),
        proof.digest
    ));
    Ok(proof)
}

async fn close(failover: &Failover, order: &Order) -> Result<(), String> {
    let occasion = Failover::occasion(&failover.file.now(), order.kick_after);
    failover.gate.close(occasion).await.map_err(|error| Chain(&error).to_string())?;
    failover.operations.step("the gate is closed".into());
    Ok(())
}

async fn drain(
    operations: &Operations,
    agent: &Agent,
    order: &Order,
    deadline: Instant,
) -> Result<(), String> {
    // The last deliveries may not have been noticed yet: look at everything.
    let upto = agent.append(vec![Target::Store]).await;
    let upto = upto.map_err(|error| Chain(&error).to_string())?;
    let drained = agent.wait_for(&order.to, |link: &LinkStatus| {
        is_drained(link.phase, link.cursor, upto) || link.phase == Phase::Degraded
    });
    match timeout_at(deadline, drained).await {
        Ok(Some(link)) if link.phase == Phase::Degraded => {
            Err(format!("{} mailboxes were set aside while draining", link.aside.len()))
        }
        Ok(Some(link)) => {
            operations.step(format!("drained: {} is at {}", order.to, link.cursor));
            Ok(())
        }
        Ok(None) => Err(format!("the link to {} ended", order.to)),
        Err(_) => Err(late(&format!("{} was drained", order.to), order)),
    }
}

fn late(what: &str, order: &Order) -> String {
    format!("{what} not within {} s", order.max_wait.as_secs())
}

/// Looks until both sides are equal. While clients go on (`live`), an account that was equal once
/// counts.
async fn prove(agent: &Agent, to: &str, live: bool) -> Result<Vec<Proven>, String> {
    let mut left: Option<BTreeSet<Account>> = None;
    loop {
        let visitor = agent.visitor(to).ok_or_else(|| format!("{to} is not connected any more"))?;
        match visitor.prove().await {
            Ok(Proved::Equal(proven)) => return Ok(proven),
            Ok(Proved::Differs(accounts)) => {
                let differ: BTreeSet<_> = accounts.iter().cloned().collect();
                let still = match left.take() {
                    Some(left) => left.intersection(&differ).cloned().collect(),
                    None => differ,
                };
                if live && still.is_empty() {
                    return Ok(Vec::new());
                }
                left = Some(still);
                let some: Vec<String> =
                    accounts.iter().take(NAMED).map(ToString::to_string).collect();
                tracing::info!(accounts = accounts.len(), "not equal yet");
                tracing::debug!(first = some.join(", "), "not equal yet");
                // Somebody still writes: that is replicated like everything else.
                sleep(AGAIN_AFTER).await;
            }
            Err(VisitError::Gone) => return Err(format!("the connection to {to} broke")),
            Err(
                VisitError::Replica(Trouble { detail, .. })
                | VisitError::Target(Trouble { detail, .. })
                | VisitError::Message(_, Trouble { detail, .. }),
            ) => {
                return Err(detail);
            }
        }
    }
}

/// From here on this node is no master. The new one is told by [`super::tell()`], again and again.
async fn record(failover: &Failover, proof: &Proof, closed_at: u64) -> Result<(), String> {
    let (failover, proof) = (failover.clone(), proof.clone());
    let written = tokio::task::spawn_blocking(move || {
        proof.save(&failover.state_dir).map_err(|error| Chain(&error).to_string())?;
        let to = proof.to.clone();
        let changed = failover.file.change::<ChangeError>(|node| {
            node.role = Role::Replica;
            node.epoch = proof.epoch;
            node.master = Some(to.clone());
            node.handover = Some(Handover { to, untold: true, unmarked: true, closed_at });
            Ok(())
        });
        if let Err(error) = changed {
            // It may be on the disk all the same, and then it counts.
            let stands = failover.file.look().is_ok_and(|node| node.role == Role::Replica);
            if !stands {
                return Err(Chain(&error).to_string());
            }
        }
        failover
            .operations
            .step(format!("recorded: epoch {} belongs to {}", proof.epoch, proof.to));
        Ok(())
    });
    written.await.unwrap_or_else(|error| Err(error.to_string()))
}
