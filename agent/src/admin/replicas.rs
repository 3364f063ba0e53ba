//! `replctl replica add` and `remove`: a replica more or less, while everything runs.

use mailtwin_host::{
    admin::{AddedReport, FailureCode, RemovedReport, Response, SCHEMA_VERSION, answer},
    config::Peer,
};
use mailtwin_logic::chain::Chain;

use super::{Answers, Working};
use crate::Replica;

impl Answers {
    /// First a place in the log, then the name among the peers, then the link: whatever is
    /// interrupted in between leaves a place that nobody claims any more, and never a gap.
    pub(super) async fn add(&self, peer: Peer, dry_run: bool) -> Response {
        let _one_at_a_time = self.changing.lock().await;
        if let Some(refused) = self.under_way() {
            return refused;
        }
        let Some(working) = &self.working else {
            return answer::peer_added(&self.dialers.peers, &peer, dry_run);
        };
        if let Err(error) = self.dialers.peers.check_new(&peer) {
            return answer::peer_refused(&error);
        }
        let mut report = AddedReport::noted(&peer.name, &peer.address, !dry_run);
        match accounts(working).await {
            Ok(accounts) => report.accounts = Some(accounts),
            Err(why) => return answer::failed(FailureCode::Failed, why),
        }
        let agent = &working.agent;
        if dry_run {
            report.place = Some(agent.log().extent().head.0);
            return Response::ReplicaAdded(report);
        }
        match agent.claim(&peer.name) {
            Ok(place) => report.place = Some(place.0),
            Err(error) => return answer::failed(FailureCode::Failed, Chain(&error).to_string()),
        }
        if let Err(error) = self.dialers.peers.add(&peer) {
            // Nobody replays to it: its place is given up again.
            let _ = agent.leave(&peer.name).await;
            return answer::peer_refused(&error);
        }
        let dialer = self.dialers.to(&peer.name);
        if let Err(error) = agent.join(Replica { name: peer.name.clone(), dialer }) {
            return answer::failed(FailureCode::Failed, Chain(&error).to_string());
        }
        tracing::info!(replica = %peer.name, address = %peer.address, place = ?report.place, "replica added");
        Response::ReplicaAdded(report)
    }

    /// First no peer any more, durably, then no link, no place in the log, no state.
    pub(super) async fn remove(&self, name: &str, dry_run: bool) -> Response {
        let _one_at_a_time = self.changing.lock().await;
        if let Some(refused) = self.under_way() {
            return refused;
        }
        let peer = match self.dialers.peers.get(name) {
            Ok(peer) => peer,
            Err(error) => return answer::peer_refused(&error),
        };
        let agent = self.working.as_ref().map(|working| &working.agent);
        let link = agent.and_then(|agent| agent.link(name));
        let left = agent.map_or(0, |agent| agent.links().len() - usize::from(link.is_some()));
        let report = RemovedReport {
            schema_version: SCHEMA_VERSION,
            done: !dry_run,
            name: name.to_owned(),
            address: peer.address,
            configured: self.dialers.peers.is_configured(name),
            state: link.as_ref().map(|link| link.phase.as_str().to_owned()),
            lag_entries: link.as_ref().map_or(0, |link| link.lag_entries),
            quarantined: link.as_ref().map_or(0, |link| link.aside.len()),
            freed_bytes: agent.map_or(0, |agent| agent.kept_for(name)),
            replicas_left: left,
        };
        if dry_run {
            return Response::ReplicaRemoved(report);
        }
        if let Err(error) = self.dialers.peers.remove(name) {
            return answer::peer_refused(&error);
        }
        if let Some(agent) = agent
            && let Err(error) = agent.leave(name).await
        {
            return answer::failed(FailureCode::Failed, Chain(&error).to_string());
        }
        tracing::info!(replica = name, freed = report.freed_bytes, "replica removed");
        Response::ReplicaRemoved(report)
    }

    /// A switch counts its replicas when it begins.
    fn under_way(&self) -> Option<Response> {
        let now = self.failover.operations.status();
        (now.id > 0 && now.outcome.is_none()).then(|| {
            let message = "another operation is under way: `replctl failover status` follows it";
            answer::failed(FailureCode::Refused, message.to_owned())
        })
    }
}

async fn accounts(working: &Working) -> Result<u64, String> {
    let store = std::sync::Arc::clone(&working.store);
    let count = move || store.accounts().map(|accounts| accounts.len() as u64);
    match working.agent.workers().run(count).await {
        Ok(Ok(accounts)) => Ok(accounts),
        Ok(Err(error)) => Err(Chain(&error).to_string()),
        Err(error) => Err(Chain(&error).to_string()),
    }
}
