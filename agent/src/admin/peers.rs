//! What the agent knows of the other nodes: those that are connected are asked.

use std::time::Duration;

use mailtwin_host::admin::{AtRisk, PeerReport};
use mailtwin_logic::{
    cursor::Claim,
    link::Phase,
    wire::message::{FEATURE_STANDING, Reply, Request, told},
};
use tokio::time::timeout;

use super::{Answers, Working};
use crate::{link::LinkStatus, visit::Visitor};

/// How long a peer may take to answer.
const WITHIN: Duration = Duration::from_secs(5);

impl Answers {
    /// Every replica; none while this node is one itself.
    pub(super) async fn peers(&self) -> Vec<PeerReport> {
        let Some(working) = &self.working else { return Vec::new() };
        let mut peers = Vec::new();
        for link in working.agent.links() {
            peers.push(peer(working, link).await);
        }
        peers
    }
}

async fn peer(working: &Working, link: LinkStatus) -> PeerReport {
    let LinkStatus { name, connected, last_error, .. } = link;
    let mut report = PeerReport {
        name,
        connected,
        version: None,
        clock_ahead_ms: None,
        blockers: Vec::new(),
        last_error,
    };
    if let Some(visitor) = working.agent.visitor(&report.name) {
        let answers = async {
            if visitor.connection.has(FEATURE_STANDING)
                && let Some(Reply::About { version, .. }) = ask(&visitor, Request::About).await
            {
                report.version = Some(told(&version));
            }
            if let Some(Reply::Ready { clock, blockers }) = ask(&visitor, Request::Preflight).await
            {
                report.clock_ahead_ms = ahead(clock, working.agent.now());
                report.blockers = blockers.iter().map(|blocker| told(blocker)).collect();
            }
        };
        if timeout(WITHIN, answers).await.is_err() {
            report.last_error = Some(format!("no answer within {} s", WITHIN.as_secs()));
        }
    }
    report
}

async fn ask(visitor: &Visitor, request: Request) -> Option<Reply> {
    visitor.connection.ask(&request).await.ok()?.reply().await.ok()
}

fn ahead(theirs: u64, ours: u64) -> Option<i64> {
    i64::try_from(theirs).ok()?.checked_sub_unsigned(ours)
}

/// What would be missing if this master died now: on the replica that has most.
pub(super) fn at_risk(links: &[LinkStatus], now: u64) -> Option<AtRisk> {
    let is_known = |link: &LinkStatus| {
        let compared = matches!(link.phase, Phase::InSync | Phase::Degraded)
            || link.phase == Phase::Replaying && link.copy.is_none();
        compared && link.claim != Claim::Lost
    };
    let best =
        links.iter().min_by_key(|link| (!is_known(link), link.lag_entries, link.lag_ms(now)))?;
    Some(AtRisk {
        replica: best.name.clone(),
        entries: best.lag_entries,
        seconds: Duration::from_millis(best.lag_ms(now)).as_secs_f64(),
        known: is_known(best),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(name: &str, phase: Phase, lag_entries: u64) -> LinkStatus {
        let oldest_at = (lag_entries > 0).then_some(1_000);
        LinkStatus { phase, lag_entries, oldest_at, ..LinkStatus::new(name) }
    }

    #[test]
    fn the_replica_that_has_most_counts() {
        assert_eq!(at_risk(&[], 5_000), None);
        let links = [
            link("far", Phase::Replaying, 9),
            link("near", Phase::Replaying, 2),
            link("gone", Phase::Waiting, 0),
        ];
        let found = at_risk(&links, 5_000).unwrap();
        assert_eq!((found.replica.as_str(), found.entries, found.known), ("near", 2, true));
        assert!((found.seconds - 4.0).abs() < 0.001, "{found:?}");
        let found = at_risk(&links[2..], 5_000).unwrap();
        assert!(!found.known, "nobody has looked what it lacks: {found:?}");
        let lost = LinkStatus { claim: Claim::Lost, ..link("lost", Phase::Replaying, 0) };
        assert!(!at_risk(&[lost], 5_000).unwrap().known);
    }
}
