//! The node itself: its role, its daemons, its gate, and whether they complain of something.

use std::{os::unix::net::UnixStream, path::Path};

use mailtwin_host::{
    admin::{AgentStatus, ReplicaDaemonStatus},
    config::{Config, Gate},
    keys::{KeyError, NodeKey},
    node::{Node, NodeError, Role},
};
use mailtwin_logic::chain::Chain;

use super::{
    access::{self, User},
    finding::{Code, Finding},
    limits,
};

/// A daemon that listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Running {
    pub(super) user: User,
    /// Its limit of open files, if that can be read.
    pub(super) open_files: Option<u64>,
}

/// Who listens on an admin socket.
pub(super) fn running(socket: &Path) -> Option<Running> {
    let stream = UnixStream::connect(socket).ok()?;
    let peer = rustix::net::sockopt::socket_peercred(&stream).ok()?;
    let pid = peer.pid.as_raw_nonzero().get();
    let overrides = access::overrides(pid);
    let user = User { uid: peer.uid.as_raw(), gid: peer.gid.as_raw(), overrides };
    let open_files = limits::open_files(pid);
    Some(Running { user, open_files })
}

/// What the node's own files say; `Err` is for humans.
pub(super) struct Identity {
    pub(super) role: Option<Role>,
    pub(super) findings: Vec<Finding>,
}

/// Reads `node.json` and the node's key.
pub(super) fn identity(config: &Config) -> (Identity, Option<NodeKey>) {
    let state_dir = &config.node.state_dir;
    let mut findings = Vec::new();
    let node = Node::load_as(state_dir, &config.node.name);
    let role = node.as_ref().ok().map(|node| node.role);
    findings.push(match &node {
        Ok(node) => {
            let what = format!("{} is a {} of epoch {}", node.name, node.role, node.epoch);
            Finding::ok(Code::NodeState, what)
        }
        Err(NodeError::Missing { path }) => {
            Finding::broken(Code::NodeState, format!("{} is not there", path.display()))
                .because("the daemons do not start without a role")
                .next("replctl init --role master, or --role replica, as the daemons' user")
        }
        Err(error) => Finding::broken(Code::NodeState, Chain(error).to_string())
            .because("the daemons do not start with it")
            .next(format!("ls -l {}; replctl explain node-state", state_dir.display())),
    });
    let key = NodeKey::load(state_dir);
    match &key {
        // Its permissions are judged with all others.
        Ok(_) | Err(KeyError::Mode { .. }) => {}
        Err(KeyError::Missing { .. }) if role.is_none() => {}
        Err(error) => findings.push(
            Finding::broken(Code::KeyFile, Chain(error).to_string())
                .because("nodes know each other by their keys")
                .next("run `replctl doctor` as root; a key that is lost: replctl explain key-file"),
        ),
    }
    (Identity { role, findings }, key.ok())
}

/// What the daemons said.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    pub(super) role: Option<Role>,
    pub(super) agent: Option<Running>,
    pub(super) replica: Option<Running>,
    pub(super) agent_status: Option<AgentStatus>,
    pub(super) replica_status: Option<ReplicaDaemonStatus>,
}

/// Judges it.
pub(super) fn judge(facts: &Facts, gate: &Gate) -> Vec<Finding> {
    let mut findings = vec![
        daemon("mailtwin-agent", facts.agent, facts.role == Some(Role::Master)),
        daemon("mailtwin-replica", facts.replica, facts.role == Some(Role::Replica)),
    ];
    for (name, running) in [("mailtwin-agent", facts.agent), ("mailtwin-replica", facts.replica)] {
        let limit = running.and_then(|running| running.open_files);
        findings.extend(limit.map(|limit| limits::judge_open_files(name, limit)));
    }
    findings.extend(self::gate(gate));
    findings.extend(status(facts));
    findings.extend(versions(facts));
    findings
}

fn daemon(name: &str, running: Option<Running>, is_needed: bool) -> Finding {
    let next = format!("systemctl status {name}; journalctl -u {name} -n 50");
    match (running, is_needed) {
        (Some(running), _) => {
            Finding::ok(Code::Daemons, format!("{name} runs, as user {}", running.user.uid))
        }
        (None, true) => Finding::broken(Code::Daemons, format!("{name} does not answer"))
            .because("this node's role is that daemon's work: nothing is replicated")
            .next(next),
        (None, false) => Finding::risk(Code::Daemons, format!("{name} does not answer"))
            .because(
                "it idles in this node's role, but without it the role cannot move here or away",
            )
            .next(next),
    }
}

fn gate(gate: &Gate) -> Vec<Finding> {
    let (close, open) = match (&gate.close, &gate.open) {
        (None, None) => {
            let what = "no gate is configured";
            return vec![
                Finding::note(Code::Gate, what)
                    .because("keeping clients out of a replica, and while roles move, is your task")
                    .next("docs/failover.md: [gate] close and open"),
            ];
        }
        (Some(close), Some(open)) => (close, open),
        (_, _) => {
            return vec![
                Finding::risk(Code::Gate, "only one of gate.close and gate.open is configured")
                    .because("the gate counts as absent: the role is not moved without --no-gate")
                    .next("configure both"),
            ];
        }
    };
    let command = |(what, command): (&str, &String)| match program(command) {
        Some(path) if !is_program(Path::new(path)) => {
            Finding::broken(Code::Gate, format!("gate.{what}: {path} cannot be run"))
                .because("the gate stays where it is: clients reach a replica, or no master")
                .next(format!("ls -l {path}"))
        }
        _ => Finding::ok(Code::Gate, format!("gate.{what} is configured")),
    };
    [("close", close), ("open", open)].into_iter().map(command).collect()
}

/// The program that a command of the shell begins with, if it is named by its path.
fn program(command: &str) -> Option<&str> {
    let mut words = command.split_whitespace();
    // A variable in front, perhaps quoted, is beyond guessing.
    words.next().filter(|word| word.starts_with('/') && !word.contains(['$', '\'', '"', ';']))
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    let metadata = std::fs::metadata(path);
    metadata.is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// One finding for all that `replctl status` would complain about.
fn status(facts: &Facts) -> Option<Finding> {
    let mut complaints = Vec::new();
    if let Some(status) = &facts.agent_status {
        let log = status.log.as_ref().and_then(|log| log.error.as_ref());
        complaints.extend(log.map(|error| format!("the sync log cannot be written: {error}")));
        let aside: usize = status.replicas.iter().map(|replica| replica.quarantined).sum();
        if aside > 0 {
            complaints.push(format!("{aside} mailboxes or accounts are set aside"));
        }
        if status.replicas.iter().any(|replica| !replica.brake.is_empty()) {
            complaints.push("the brake holds deletions".to_owned());
        }
        complaints.extend(problems(status.problems.len()));
    }
    if let Some(status) = &facts.replica_status {
        complaints.extend(problems(status.problems.len()));
    }
    let is_up = facts.agent_status.is_some() || facts.replica_status.is_some();
    if complaints.is_empty() {
        return is_up.then(|| Finding::ok(Code::Status, "the daemons complain of nothing"));
    }
    Some(
        Finding::risk(Code::Status, complaints.join("; "))
            .because("not everything is replicated")
            .next("replctl status"),
    )
}

fn problems(count: usize) -> Option<String> {
    (count > 0).then(|| format!("{count} problems in the store"))
}

/// The daemons' versions against that of this program.
fn versions(facts: &Facts) -> Option<Finding> {
    let ours = env!("CARGO_PKG_VERSION");
    let agent = facts.agent_status.as_ref().map(|status| ("mailtwin-agent", &status.version));
    let replica = facts.replica_status.as_ref().map(|status| ("mailtwin-replica", &status.version));
    let all: Vec<_> = agent.into_iter().chain(replica).collect();
    let mut others = all.iter().filter(|(_, version)| *version != ours);
    match others.next() {
        Some((name, version)) => Some(
            Finding::note(Code::Version, format!("{name} is {version}, replctl is {ours}"))
                .because("a daemon that was not restarted after an upgrade is still the old one")
                .next(format!("systemctl restart {name}")),
        ),
        None if all.is_empty() => None,
        None => Some(Finding::ok(Code::Version, format!("replctl and the daemons are {ours}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::finding::Level, *};

    const UP: Option<Running> =
        Some(Running { user: User { uid: 5, gid: 5, overrides: false }, open_files: Some(4_096) });

    fn levels(facts: &Facts, gate: &Gate, code: Code) -> Vec<Level> {
        let findings = judge(facts, gate).into_iter().filter(|finding| finding.code == code);
        findings.map(|finding| finding.level).collect()
    }

    #[test]
    fn a_daemon_is_missed_most_in_its_role() {
        use Level::{Broken, Ok, Risk};
        let (none, up) = (None, UP);
        let cases = [
            (Role::Master, up, up, [Ok, Ok]),
            (Role::Master, none, up, [Broken, Ok]),
            (Role::Master, up, none, [Ok, Risk]),
            (Role::Replica, none, up, [Risk, Ok]),
            (Role::Replica, up, none, [Ok, Broken]),
        ];
        for (role, agent, replica, want) in cases {
            let facts = Facts { role: Some(role), agent, replica, ..Facts::default() };
            assert_eq!(levels(&facts, &Gate::default(), Code::Daemons), want, "{facts:?}");
        }
    }

    #[test]
    fn gates() {
        use Level::{Broken, Note, Ok, Risk};
        let cases: [(Option<&str>, Option<&str>, &[Level]); 5] = [
            (None, None, &[Note]),
            (Some("/bin/sh -c true"), None, &[Risk]),
            (Some("/bin/sh x"), Some("/no/such/hook open"), &[Ok, Broken]),
            (Some("/etc/passwd"), Some("true"), &[Broken, Ok]),
            (Some("DOVEADM='sudo -n doveadm' /no/hook"), Some("/bin/sh"), &[Ok, Ok]),
        ];
        for (close, open, want) in cases {
            let gate = Gate { close: close.map(str::to_owned), open: open.map(str::to_owned) };
            assert_eq!(levels(&Facts::default(), &gate, Code::Gate), want, "{gate:?}");
        }
    }

    #[test]
    fn files_and_versions() {
        let few = Some(Running {
            user: User { uid: 5, gid: 5, overrides: false },
            open_files: Some(100),
        });
        let facts = Facts { agent: few, replica: UP, ..Facts::default() };
        let want = [Level::Risk, Level::Ok];
        assert_eq!(levels(&facts, &Gate::default(), Code::OpenFiles), want);
        let status = |version: &str, problems: usize| {
            let problem = serde_json::json!({ "object": "u1", "detail": "x" });
            serde_json::from_value::<AgentStatus>(serde_json::json!({
                "schema_version": 1, "node": "a", "role": "master", "epoch": 1, "log": null,
                "replicas": [], "problems": vec![problem; problems], "version": version,
            }))
            .unwrap()
        };
        let cases = [
            (status(env!("CARGO_PKG_VERSION"), 0), Code::Version, Level::Ok),
            (status("0.0.1", 0), Code::Version, Level::Note),
            (status("0.0.1", 0), Code::Status, Level::Ok),
            (status("0.0.1", 2), Code::Status, Level::Risk),
        ];
        for (status, code, want) in cases {
            let facts = Facts { agent_status: Some(status), ..Facts::default() };
            assert_eq!(levels(&facts, &Gate::default(), code), [want], "{code:?}");
        }
    }
}
