//! What agents said last: kept for status, forgotten at a restart.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use mailtwin_logic::wire::message::Beat;
use tokio_util::sync::CancellationToken;

/// Agents seen at once that are remembered: more than any cluster has.
const AGENTS_MAX: usize = 64;

/// One agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Agent {
    /// Open connections.
    pub connections: u32,
    /// Its last heartbeat.
    pub beat: Option<Beat>,
}

/// All agents, by node name.
#[derive(Clone, Debug, Default)]
pub struct Heard {
    agents: Arc<Mutex<BTreeMap<String, Agent>>>,
    /// Each agent's newest session: what ends it, and what tells that it has ended.
    sessions: Arc<Mutex<BTreeMap<String, (CancellationToken, CancellationToken)>>>,
}

impl Heard {
    /// Everybody heard of since the start.
    pub fn agents(&self) -> BTreeMap<String, Agent> {
        self.agents.lock().expect("no panic while it is held").clone()
    }

    /// A connection began or ended.
    pub(crate) fn connected(&self, agent: &str, is: bool) {
        self.with(agent, |agent| {
            agent.connections =
                if is { agent.connections + 1 } else { agent.connections.saturating_sub(1) };
        });
    }

    /// A heartbeat came.
    pub(crate) fn beat(&self, agent: &str, beat: Beat) {
        self.with(agent, |agent| agent.beat = Some(beat));
    }

    /// Makes a session the agent's only one: ends the one before, and waits until nothing of it is
    /// left.
    pub(crate) async fn takes_over(
        &self,
        agent: &str,
        stop: CancellationToken,
        gone: CancellationToken,
    ) {
        let before = {
            let mut sessions = self.sessions.lock().expect("no panic while it is held");
            sessions.retain(|_, (_, gone)| !gone.is_cancelled());
            sessions.insert(agent.to_owned(), (stop, gone))
        };
        if let Some((stop, gone)) = before {
            stop.cancel();
            gone.cancelled().await;
        }
    }

    fn with(&self, name: &str, change: impl FnOnce(&mut Agent)) {
        let mut agents = self.agents.lock().expect("no panic while it is held");
        if agents.contains_key(name) || agents.len() < AGENTS_MAX {
            change(agents.entry(name.to_owned()).or_default());
        }
    }
}
