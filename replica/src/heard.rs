//! What agents said last: kept for status, forgotten at a restart.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use mailtwin_logic::wire::message::Beat;

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

    fn with(&self, name: &str, change: impl FnOnce(&mut Agent)) {
        let mut agents = self.agents.lock().expect("no panic while it is held");
        if agents.contains_key(name) || agents.len() < AGENTS_MAX {
            change(agents.entry(name.to_owned()).or_default());
        }
    }
}
