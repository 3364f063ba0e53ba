//! The second half of a hand-over: the new master is told, until it has said that it knows.

use std::{sync::Arc, time::Duration};

use mailtwin_host::{
    codes::HistoryKind,
    node::{ChangeError, Handover, Node},
    retry::Retry,
    tasks::Tasks,
};
use mailtwin_logic::{
    chain::Chain,
    ids::{Epoch, LogId},
    wire::message::{Hello, MODEL, Refusal, Reply, Request, VERSION_MAX, VERSION_MIN},
};
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{Ended, Failover, Note};
use crate::link::{
    Dial,
    connection::{Connection, GreetError},
    pulse::Pulse,
};

/// How long one attempt may take.
const WITHIN: Duration = Duration::from_secs(30);

/// Tells `handover.to` that it is the master, as often as it takes. The node is a replica already: a
/// crash only means that the next process goes on here.
pub(crate) async fn tell(
    failover: Failover,
    node: Node,
    handover: Handover,
    dialer: Arc<dyn Dial>,
    tasks: Tasks,
) {
    let mut retry = Retry::new();
    let stop = tasks.stop().clone();
    loop {
        let attempt = timeout(WITHIN, attempt(&node, &handover, &*dialer, &tasks));
        let told = tokio::select! {
            () = stop.cancelled() => return,
            told = attempt => told.unwrap_or_else(|_| Err("no answer in time".to_owned())),
        };
        let Err(why) = told else { break };
        let wait = retry.next_wait();
        tracing::warn!(code = "handover-untold", to = %handover.to, why, retry_ms = wait.as_millis(), "the new master could not be told yet");
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
    let closed = failover.clock.unix_ms().saturating_sub(handover.closed_at);
    let message = format!(
        "{} is the master of epoch {}, told {closed} ms after the gate was closed",
        handover.to, node.epoch
    );
    let note = Note { gate_closed_ms: Some(closed), detail: &message };
    failover.note(HistoryKind::Switch, Ended::Done, node.epoch, Some(&handover.to), &note);
    let finished = failover.file.change::<ChangeError>(|node| {
        let open = node.handover.take().map(|old| Handover { untold: false, ..old });
        node.handover = open.filter(|open| open.unmarked);
        Ok(())
    });
    if let Err(error) = finished {
        // It is told again at the next start, and answers the same.
        tracing::error!(code = "handover-unfinished", error = %Chain(&error), "cannot note that the hand-over is finished");
    }
    failover.operations.end(Ended::Done, message);
}

async fn attempt(
    node: &Node,
    handover: &Handover,
    dialer: &dyn Dial,
    tasks: &Tasks,
) -> Result<(), String> {
    let io = dialer.dial().await.map_err(|error| Chain(&error).to_string())?;
    let hello = Hello {
        version_min: VERSION_MIN,
        version_max: VERSION_MAX,
        model: MODEL,
        node: node.name.clone(),
        // As the master that this node was: the other side has yet to hear of the next epoch.
        epoch: Epoch(node.epoch.0 - 1),
        features: 0,
        log: LogId([0; 16]),
    };
    let stop: CancellationToken = tasks.stop().child_token();
    let _ends = stop.clone().drop_guard();
    let (_pulse, pulses) = watch::channel(Pulse::none());
    let connection = match Connection::greet(io, &hello, tasks, pulses, &stop).await {
        Ok(connection) => connection,
        // It knows: the answer to an earlier attempt was lost.
        Err(GreetError::Refused { why: Refusal::Epoch(known), .. }) if known >= node.epoch => {
            return Ok(());
        }
        Err(error) => return Err(Chain(&error).to_string()),
    };
    let gone = |_| "the connection broke".to_owned();
    let request =
        Request::Promote { epoch: node.epoch, closed_at: handover.closed_at, forced: node.forced };
    match connection.ask(&request).await.map_err(gone)?.reply().await.map_err(gone)? {
        Reply::Done => Ok(()),
        Reply::Failed(failure) => Err(failure.detail),
        other => Err(format!("answered something else than was asked: {other:?}")),
    }
}
