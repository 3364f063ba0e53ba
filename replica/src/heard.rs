//! What agents said last: kept for status, forgotten at a restart.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use mailtwin_logic::wire::message::{Beat, Standing, told};
use tokio_util::sync::CancellationToken;

/// Agents seen at once that are remembered: more than any cluster has.
const AGENTS_MAX: usize = 64;
/// A heartbeat comes every five seconds: what was said within this time still holds.
const FRESH_MS: u64 = 15_000;

/// One agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Agent {
    /// Open connections.
    pub connections: u32,
    /// Its last heartbeat.
    pub beat: Option<Beat>,
    /// When that came, by this node's clock, in milliseconds since 1970.
    pub at: u64,
    /// By the same clock: everything that the agent had noticed by then is here, or set aside.
    pub complete_to: Option<u64>,
    /// Whether it was everything when it said so last.
    pub is_complete: bool,
    /// Its version, if it says it.
    pub version: Option<String>,
}

impl Agent {
    /// Milliseconds that the agent's clock was ahead of this node's, the way included.
    pub fn clock_ahead_ms(&self) -> Option<i64> {
        let beat = self.beat?;
        Some(i64::try_from(beat.at).ok()?.saturating_sub_unsigned(self.at))
    }

    /// Milliseconds since this node had everything, at `now`; `None` if it is not known to have had.
    pub fn lag_ms(&self, now: u64) -> Option<u64> {
        let complete_to = self.complete_to?;
        let is_fresh = self.connections > 0 && now.saturating_sub(self.at) < FRESH_MS;
        Some(if self.is_complete && is_fresh { 0 } else { now.saturating_sub(complete_to) })
    }
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

    /// A heartbeat came, at `now`.
    pub(crate) fn beat(&self, agent: &str, beat: Beat, now: u64) {
        self.with(agent, |agent| (agent.beat, agent.at) = (Some(beat), now));
    }

    /// An agent said, at `now`, what this node has. Returns up to when that is everything, by this
    /// node's clock.
    pub(crate) fn stands(&self, agent: &str, standing: &Standing, now: u64) -> Option<u64> {
        let mut complete_to = None;
        self.with(agent, |agent| {
            agent.version = Some(told(&standing.version));
            agent.is_complete = standing.complete_to == Some(standing.at);
            let to =
                standing.complete_to.map(|to| now.saturating_sub(standing.at.saturating_sub(to)));
            agent.complete_to = agent.complete_to.max(to);
            complete_to = agent.complete_to;
        });
        complete_to
    }

    /// The agent that was heard last: its name and what is known of it.
    pub fn last(&self) -> Option<(String, Agent)> {
        self.agents()
            .into_iter()
            .filter(|(_, agent)| agent.beat.is_some())
            .max_by_key(|(_, it)| it.at)
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

#[cfg(test)]
mod tests {
    use mailtwin_logic::ids::LogSeq;

    use super::*;

    fn standing(at: u64, complete_to: Option<u64>) -> Standing {
        Standing { at, complete_to, version: "1".into() }
    }

    #[test]
    fn what_is_complete_is_told_by_this_nodes_clock_and_grows_old_without_the_master() {
        let heard = Heard::default();
        let lag = |now| heard.last().and_then(|(_, agent)| agent.lag_ms(now));
        heard.connected("mx1", true);
        // The master's clock is a day ahead of ours.
        let (day, now) = (86_400_000, 1_000_000);
        let beat = Beat { at: now + day, head: LogSeq(9), cursor: LogSeq(9) };
        heard.beat("mx1", beat, now);
        assert_eq!(lag(now), None, "everything is being compared");
        assert_eq!(heard.stands("mx1", &standing(now + day, None), now), None);
        let behind = standing(now + day, Some(now + day - 4_000));
        assert_eq!(heard.stands("mx1", &behind, now), Some(now - 4_000));
        assert_eq!(lag(now + 1_000), Some(5_000));
        assert_eq!(heard.stands("mx1", &standing(now + day, Some(now + day)), now), Some(now));
        assert_eq!(lag(now + 6_000), Some(0), "nothing has been said against it since");
        let (_, agent) = heard.last().unwrap();
        assert_eq!(agent.clock_ahead_ms(), Some(86_400_000));
        // It dies.
        heard.connected("mx1", false);
        assert_eq!(lag(now + 6_000), Some(6_000));
        assert_eq!(lag(now + day), Some(day));
        // It is back, compares everything, and takes nothing back that it had said.
        heard.connected("mx1", true);
        assert_eq!(heard.stands("mx1", &standing(now + day, None), now + 7_000), Some(now));
        assert_eq!(lag(now + 8_000), Some(8_000));
    }
}
