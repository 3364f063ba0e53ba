//! The other nodes: whether they answer, with which key, with which version and clock.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use mailtwin_host::{
    admin::{PeerReport, ReplicaStatus},
    config::{Config, Peer},
    keys::{NodeKey, PublicKey},
    node::Role,
    peers::Peers,
    pins::{Expected, Pins},
    tls,
};
use mailtwin_logic::chain::Chain;
use tokio::{net::TcpStream, time::timeout};

use super::finding::{Code, Finding};

/// How long a peer may take to accept a connection.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// Clocks may differ by so much, as a switch allows, when the peer was asked.
const CLOCKS_APART_MAX_MS: u64 = 5_000;
/// The same when all there is to go by is a heartbeat, which may be some seconds old when it is sent.
const HEARTBEATS_APART_MAX_MS: u64 = 10_000;

/// What came of connecting to a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// It proved to have this key.
    Shown(PublicKey),
    /// It accepts connections; without this node's key no hands can be shaken.
    Open,
    /// No.
    Failed(String),
}

/// One peer.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) role: Option<Role>,
    pub(super) name: String,
    pub(super) address: String,
    pub(super) reach: Reach,
    pub(super) pinned: BTreeSet<PublicKey>,
    /// What a daemon of this node knows of it; absent if none answers.
    pub(super) report: Option<PeerReport>,
    /// The link to it, on a master.
    pub(super) link: Option<ReplicaStatus>,
}

/// Who the peers are, with their pinned keys; the error says why that is known in part only.
pub(super) fn list(config: &Config, key: Option<&NodeKey>) -> (Vec<Peer>, Option<String>) {
    let (name, state_dir) = (&config.node.name, &config.node.state_dir);
    let peers = match Peers::open(state_dir, name, &config.peers).map(Arc::new) {
        Ok(peers) => peers,
        Err(error) => return (config.peers.clone(), Some(Chain(&error).to_string())),
    };
    let mut all = match peers.all() {
        Ok(all) => all,
        Err(error) => return (config.peers.clone(), Some(Chain(&error).to_string())),
    };
    let Some(key) = key else {
        return (all, Some("without this node's key, pinned keys are not known".into()));
    };
    match Pins::open(state_dir, key.public(), peers).and_then(|pins| pins.list()) {
        Ok(pins) => {
            for peer in &mut all {
                let theirs = pins.iter().filter(|pin| pin.peer == peer.name);
                peer.keys = theirs.map(|pin| pin.key).collect();
            }
            (all, None)
        }
        Err(error) => (all, Some(Chain(&error).to_string())),
    }
}

/// Connects, and shakes hands if this node's key is at hand. Not a word is said: the peer takes it
/// for a port scan.
pub(super) async fn reach(address: &str, key: Option<&NodeKey>) -> Reach {
    let Some(key) = key else {
        return match timeout(CONNECT_WITHIN, TcpStream::connect(address)).await {
            Ok(Ok(_)) => Reach::Open,
            Ok(Err(error)) => Reach::Failed(format!("connect to {address}: {error}")),
            Err(_) => {
                Reach::Failed(format!("connect to {address}: no answer within {CONNECT_WITHIN:?}"))
            }
        };
    };
    match tls::connect(address, key, Expected::Any).await {
        Ok((_, shown)) => Reach::Shown(shown),
        Err(error) => Reach::Failed(Chain(&error).to_string()),
    }
}

/// Judges the whole of them; `unknown` says why the list may not be complete.
pub(super) fn judge(peers: &[Facts], unknown: Option<&str>) -> Vec<Finding> {
    let mut findings = Vec::new();
    match peers.len() {
        0 => findings.push(
            Finding::risk(Code::Peers, "this node has no peer")
                .because("nothing is replicated")
                .next(
                    "add a [[peer]] to the configuration, or: replctl replica add NAME HOST:PORT",
                ),
        ),
        count => findings.push(Finding::ok(Code::Peers, format!("{count} peers"))),
    }
    if let Some(why) = unknown {
        findings.push(
            Finding::note(Code::Peers, format!("peers and their keys are known in part: {why}"))
                .next("run `replctl doctor` as root, or as the daemons' user"),
        );
    }
    findings.extend(peers.iter().flat_map(judge_one));
    findings
}

fn judge_one(peer: &Facts) -> Vec<Finding> {
    let mut findings = vec![reachable(peer), key(peer)];
    findings.extend(link(peer));
    if let Some(report) = peer.report.as_ref().filter(|report| report.connected) {
        findings.push(clock(peer, report));
        findings.push(version(report));
        findings.extend(report.blockers.iter().map(|blocker| {
            Finding::risk(Code::PeerReadiness, format!("{}: {blocker}", report.name))
                .because("it could not become the master")
                .next(format!("replctl doctor, on {}", report.name))
        }));
    } else {
        let what = format!("{}: its clock and version cannot be told", peer.name);
        findings.push(Finding::note(Code::Clock, what).because("there is no connection with it"));
    }
    findings
}

fn reachable(peer: &Facts) -> Finding {
    let Facts { name, address, .. } = peer;
    let why = match &peer.reach {
        Reach::Shown(_) | Reach::Open => {
            return Finding::ok(Code::PeerReachable, format!("{name} answers at {address}"));
        }
        Reach::Failed(why) => why,
    };
    let (host, _) = address.rsplit_once(':').unwrap_or((address, ""));
    let next = format!("systemctl status mailtwin-replica, on {name}; ping {host}; its firewall");
    let what = format!("{name}: {why}");
    match peer.role {
        Some(Role::Replica) => Finding::risk(Code::PeerReachable, what)
            .because("were this node the master, it could not replay to it")
            .next(next),
        Some(Role::Master) | None => Finding::broken(Code::PeerReachable, what)
            .because("nothing is replicated to it")
            .next(next),
    }
}

fn key(peer: &Facts) -> Finding {
    let Facts { name, pinned, .. } = peer;
    let shown = if let Reach::Shown(shown) = &peer.reach { Some(shown) } else { None };
    match shown {
        Some(shown) if !pinned.is_empty() && !pinned.contains(shown) => {
            let what = format!("{name} shows a key that is not its own: {}", shown.fingerprint());
            Finding::broken(Code::PeerKey, what)
                .because("it is another machine, or its key was made anew: it is refused")
                .next(format!(
                    "replctl keys show, on {name}; if the fingerprint is this one: \
                     replctl keys pin {name} {shown}"
                ))
        }
        Some(shown) if pinned.is_empty() => {
            let what = format!("{name} has no pinned key; it shows {}", shown.fingerprint());
            Finding::risk(Code::PeerKey, what).because("whoever answers first is trusted").next(
                format!(
                    "replctl keys show, on {name}; if the fingerprint is this one: \
                     replctl keys pin {name} {shown}"
                ),
            )
        }
        None if pinned.is_empty() => {
            Finding::note(Code::PeerKey, format!("{name} has no pinned key yet"))
                .because("the first that it shows is pinned")
                .next(format!("replctl keys show, on {name}; then replctl keys pin {name} KEY"))
        }
        Some(_) | None => {
            let count = pinned.len();
            Finding::ok(Code::PeerKey, format!("{name} has {count} pinned keys"))
        }
    }
}

fn link(peer: &Facts) -> Option<Finding> {
    let name = &peer.name;
    let Some(link) = &peer.link else {
        let report = peer.report.as_ref().filter(|_| peer.role == Some(Role::Replica))?;
        let what = format!("{name} is connected with this node");
        return report.connected.then(|| Finding::ok(Code::PeerLink, what));
    };
    let what = match &link.last_error {
        Some(error) => format!("{name} is {}: {error}", link.state),
        None => format!("{name} is {}, lag {} entries", link.state, link.lag_entries),
    };
    Some(match link.state.as_str() {
        "waiting" | "connecting" => Finding::broken(Code::PeerLink, what)
            .because("nothing is replicated to it now; the sync log keeps what it lacks")
            .next("replctl status --watch"),
        "fenced" => Finding::broken(Code::PeerLink, what)
            .because("it knows a newer epoch: this node is not the master any more")
            .next("replctl failover history"),
        "paused" => Finding::note(Code::PeerLink, what)
            .because("nothing is replicated to it until it is resumed")
            .next(format!("replctl replica resume {name}")),
        _ => Finding::ok(Code::PeerLink, what),
    })
}

fn clock(peer: &Facts, report: &PeerReport) -> Finding {
    let name = &report.name;
    let Some(ahead) = report.clock_ahead_ms else {
        let what = format!("{name}: its clock cannot be told from here");
        return Finding::note(Code::Clock, what).next(format!("replctl doctor, on {name}"));
    };
    let seconds = ahead / 1_000;
    let most = match peer.role {
        Some(Role::Replica) => HEARTBEATS_APART_MAX_MS,
        Some(Role::Master) | None => CLOCKS_APART_MAX_MS,
    };
    if ahead.unsigned_abs() <= most {
        return Finding::ok(Code::Clock, format!("{name}: its clock is as ours"));
    }
    let which = if ahead > 0 { "ahead of" } else { "behind" };
    let seconds = seconds.unsigned_abs();
    Finding::risk(Code::Clock, format!("{name}: its clock is {seconds} s {which} ours"))
        .because("a switch is refused, and times of logs and lags mislead")
        .next("timedatectl, on both nodes: set them with NTP")
}

fn version(report: &PeerReport) -> Finding {
    let (name, ours) = (&report.name, env!("CARGO_PKG_VERSION"));
    match &report.version {
        None => Finding::note(Code::Version, format!("{name} does not say its version"))
            .because("it is older than this node"),
        Some(theirs) if theirs == ours => {
            Finding::ok(Code::Version, format!("{name} has version {theirs}, too"))
        }
        Some(theirs) => {
            Finding::note(Code::Version, format!("{name} has version {theirs}, this node {ours}"))
                .because("they work together; what only the newer one can do is left out")
                .next("upgrade the older one")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::finding::Level, *};

    fn a_key() -> PublicKey {
        NodeKey::generate().unwrap().public()
    }

    fn good() -> Facts {
        let key = a_key();
        let report = PeerReport {
            name: "mx2".into(),
            connected: true,
            version: Some(env!("CARGO_PKG_VERSION").into()),
            clock_ahead_ms: Some(-700),
            blockers: Vec::new(),
            last_error: None,
        };
        Facts {
            role: Some(Role::Master),
            name: "mx2".into(),
            address: "mx2:4710".into(),
            reach: Reach::Shown(key),
            pinned: [key].into(),
            report: Some(report),
            link: Some(replica("in-sync")),
        }
    }

    fn replica(state: &str) -> ReplicaStatus {
        serde_json::from_value(serde_json::json!({
            "name": "mx2", "state": state, "cursor": 1, "lag_entries": 0, "lag_seconds": 0.0,
            "quarantined": 0, "claim": "ok", "messages": 0, "last_error": null, "set_aside": [],
        }))
        .unwrap()
    }

    fn reported(change: impl FnOnce(&mut PeerReport)) -> Facts {
        let mut facts = good();
        change(facts.report.as_mut().unwrap());
        facts
    }

    #[test]
    fn peers_and_what_may_be_wrong_with_them() {
        use Level::{Broken, Note, Ok, Risk};
        let failed = || Reach::Failed("connection refused".into());
        let replica_side = |facts: Facts| Facts { role: Some(Role::Replica), link: None, ..facts };
        let cases = [
            (good(), Code::PeerKey, Ok),
            (Facts { reach: failed(), ..good() }, Code::PeerReachable, Broken),
            (replica_side(Facts { reach: failed(), ..good() }), Code::PeerReachable, Risk),
            (Facts { reach: Reach::Shown(a_key()), ..good() }, Code::PeerKey, Broken),
            (Facts { pinned: BTreeSet::new(), ..good() }, Code::PeerKey, Risk),
            (Facts { pinned: BTreeSet::new(), reach: Reach::Open, ..good() }, Code::PeerKey, Note),
            (Facts { link: Some(replica("waiting")), ..good() }, Code::PeerLink, Broken),
            (Facts { link: Some(replica("fenced")), ..good() }, Code::PeerLink, Broken),
            (Facts { link: Some(replica("paused")), ..good() }, Code::PeerLink, Note),
            (Facts { link: Some(replica("replaying")), ..good() }, Code::PeerLink, Ok),
            (reported(|it| it.clock_ahead_ms = Some(6_000)), Code::Clock, Risk),
            (reported(|it| it.clock_ahead_ms = Some(-6_000)), Code::Clock, Risk),
            (reported(|it| it.clock_ahead_ms = None), Code::Clock, Note),
            (replica_side(reported(|it| it.clock_ahead_ms = Some(-6_000))), Code::Clock, Ok),
            (Facts { report: None, ..good() }, Code::Clock, Note),
            (reported(|it| it.version = None), Code::Version, Note),
            (reported(|it| it.version = Some("9.9.9".into())), Code::Version, Note),
            (
                reported(|it| it.blockers = vec!["mailtwin-agent does not run".into()]),
                Code::PeerReadiness,
                Risk,
            ),
        ];
        for (facts, code, want) in cases {
            let findings = judge(std::slice::from_ref(&facts), None);
            let found = findings.iter().find(|finding| finding.code == code).unwrap();
            assert_eq!(found.level, want, "{found:?}");
            let others = findings.iter().filter(|finding| finding.code != code);
            assert!(others.map(|finding| finding.level).all(|level| level == Ok), "{findings:?}");
            assert!(want < Risk || !found.next.is_empty(), "{found:?}");
        }
    }

    #[test]
    fn without_peers_nothing_is_replicated() {
        assert_eq!(judge(&[], None)[0].level, Level::Risk);
        assert_eq!(judge(&[good()], Some("no state"))[1].level, Level::Note);
    }
}
