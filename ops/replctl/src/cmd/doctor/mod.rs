//! `replctl doctor`: looks at everything that replication needs on this node, and says what is wrong,
//! what may come of it, and what to do next. It changes nothing, and works without the daemons.
//!
//! What is found out is gathered first; all judging is done by functions of plain values.

mod access;
mod cyrus;
mod daemons;
mod finding;
mod limits;
mod other;
mod peers;
mod server;
mod space;
mod walk;

use std::{os::unix::fs::MetadataExt as _, path::Path};

use mailtwin_host::{
    admin::{
        AgentStatus, PeerReport, ReplicaDaemonStatus, Request, Response, agent_socket,
        replica_socket,
    },
    config::{Config, ConfigError},
    keys::NodeKey,
    node::Role,
};
use mailtwin_logic::chain::Chain;
use serde_json::json;
use tokio_util::sync::CancellationToken;

pub(crate) use finding::{Code, Finding, Level};

use super::ask::Daemons;
use crate::{args, exit, output::Output, runtime};

/// Runs the verb with the configuration file `file`.
pub(crate) fn run(args: &args::Doctor, file: &Path, output: &Output) -> anyhow::Result<u8> {
    let mut findings = match Config::load(file) {
        Ok(config) => {
            let stop = CancellationToken::new();
            let all = async { Ok(look(args, &config).await) };
            runtime::run(&stop, all)?
        }
        Err(error) => configuration(file, &error),
    };
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.level));
    print(&findings, output)
}

fn configuration(file: &Path, error: &ConfigError) -> Vec<Finding> {
    let broken = |what: String| {
        Finding::broken(Code::Configuration, what)
            .because("no daemon starts with it, and nothing else can be looked at")
            .next(format!("editor {}", file.display()))
    };
    match error {
        ConfigError::Invalid(problems) => {
            problems.iter().map(|problem| broken(problem.to_string())).collect()
        }
        ConfigError::Read { .. } => vec![broken(Chain(error).to_string())],
    }
}

async fn look(args: &args::Doctor, config: &Config) -> Vec<Finding> {
    let file = config.file.display();
    let mut findings = vec![Finding::ok(Code::Configuration, format!("{file} is well-formed"))];
    let (identity, key) = daemons::identity(config);
    let role = identity.role;
    findings.extend(identity.findings);

    let facts = ask(config, role).await;
    let running = facts.agent.or(facts.replica);
    let user = access::user(running.map(|running| running.user), config);
    let mail_dir = walk::mail_dir(&config.store.root);
    // What lies where is a Cyrus's own business.
    let maildirs = mail_dir.as_deref().filter(|_| config.cyrus.is_none());
    let walked = maildirs.map(|dir| walk::walk(dir, user)).unwrap_or_default();
    let access = access::gather(config, user, mail_dir.as_deref(), &walked.odd);
    findings.extend(access::judge(&access, config, running.is_some()));
    findings.extend(daemons::judge(&facts, &config.gate));
    findings.extend(volumes(config, mail_dir.as_deref(), facts.agent_status.as_ref()));
    findings.extend(limits::judge(&limits::gather(role, walked.mailboxes, walked.cut_short)));
    let server = server::gather(&args.doveconf);
    findings.extend(server::judge(&server, config, &walked.keywords_full));
    if let Some(other) = args.other {
        findings.extend(elsewhere(config, other, &server).await);
    }
    if let Some(cyrus) = config.cyrus.clone() {
        let asked = tokio::task::spawn_blocking(move || cyrus::judge(&cyrus::gather(&cyrus)));
        findings.extend(asked.await.unwrap_or_default());
    }
    findings.extend(others(config, role, key.as_ref(), &facts).await);
    findings
}

/// What a node beside another mail server could not hold.
async fn elsewhere(
    config: &Config,
    server: args::OtherServer,
    here: &server::Facts,
) -> Vec<Finding> {
    let (layout, root) = (config.store.layout, walk::mail_dir(&config.store.root));
    let saves_crlf = here
        .settings
        .as_ref()
        .ok()
        .and_then(|all| all.get("mail_save_crlf"))
        .map(|value| value == "yes");
    let look: Box<dyn FnOnce() -> Vec<Finding> + Send> = match (config.cyrus.clone(), root) {
        (Some(cyrus), _) if server != args::OtherServer::Cyrus => {
            Box::new(move || other::of_cyrus(&cyrus, server))
        }
        (None, Some(root)) if server == args::OtherServer::Cyrus => {
            Box::new(move || other::of_maildir(&root, layout, saves_crlf))
        }
        _ => {
            let what = "the same mail server is here: only another one's limits are looked for";
            return vec![
                Finding::note(Code::OtherServer, what)
                    .because("names that another layout has no room for show in replctl status"),
            ];
        }
    };
    tokio::task::spawn_blocking(look).await.unwrap_or_default()
}

/// Asks the daemons of this node; those that do not answer are absent.
async fn ask(config: &Config, role: Option<Role>) -> daemons::Facts {
    let (clients, run_dir) = (Daemons::new(config), &config.node.run_dir);
    let agent_status: Option<AgentStatus> = match clients.agent.call(&Request::Status).await {
        Ok(Response::Status(status)) => Some(status),
        _ => None,
    };
    let replica_status: Option<ReplicaDaemonStatus> =
        match clients.replica.call(&Request::Status).await {
            Ok(Response::ReplicaDaemon(status)) => Some(status),
            _ => None,
        };
    daemons::Facts {
        role,
        agent: daemons::running(&agent_socket(run_dir)),
        replica: daemons::running(&replica_socket(run_dir)),
        agent_status,
        replica_status,
    }
}

/// Space and file systems of state, mail and the staging directory.
fn volumes(config: &Config, mail: Option<&Path>, status: Option<&AgentStatus>) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(state) = space::gather("state", &config.node.state_dir) {
        findings.extend(space::judge(&state));
        let log = status.and_then(|status| status.log.as_ref()).map(|log| log.bytes);
        findings.push(space::judge_log(config, &state, log));
    }
    let Some(mail) = mail.and_then(|dir| space::gather("mail", dir)) else { return findings };
    findings.extend(space::judge(&mail));
    if let Some(work_dir) = &config.store.work_dir {
        let device = std::fs::metadata(work_dir).ok().map(|metadata| metadata.dev());
        findings.push(space::judge_work_dir(work_dir, device, &mail));
    }
    findings
}

/// The peers.
async fn others(
    config: &Config,
    role: Option<Role>,
    key: Option<&NodeKey>,
    facts: &daemons::Facts,
) -> Vec<Finding> {
    let (all, unknown) = peers::list(config, key);
    let reports = reports(config, role).await;
    let links = facts.agent_status.as_ref().map(|status| status.replicas.as_slice());
    let mut found = Vec::new();
    for peer in all {
        let report = reports.iter().find(|report| report.name == peer.name).cloned();
        let link = links.into_iter().flatten().find(|link| link.name == peer.name).cloned();
        found.push(peers::Facts {
            role,
            reach: peers::reach(&peer.address, key).await,
            name: peer.name,
            address: peer.address,
            pinned: peer.keys.into_iter().collect(),
            report,
            link,
        });
    }
    peers::judge(&found, unknown.as_deref())
}

async fn reports(config: &Config, role: Option<Role>) -> Vec<PeerReport> {
    let clients = Daemons::new(config);
    let daemon = if role == Some(Role::Replica) { &clients.replica } else { &clients.agent };
    match daemon.call(&Request::Peers).await {
        Ok(Response::Peers(reports)) => reports,
        _ => Vec::new(),
    }
}

fn print(findings: &[Finding], output: &Output) -> anyhow::Result<u8> {
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    let (broken, risks) = (count(Level::Broken), count(Level::Risk));
    let code = if broken + risks > 0 { exit::FOUND } else { 0 };
    if output.is_json() {
        let worst = findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok);
        Output::json(&json!({ "worst": worst, "findings": findings }))?;
        return Ok(code);
    }
    for Finding { level, code, what, why, next } in findings {
        let code = code.as_str();
        output.say(&format!("{:<7} {code}: {what}", level.word()))?;
        for (label, text) in [("why", why), ("next", next)] {
            if !text.is_empty() {
                output.say(&format!("        {label}: {text}"))?;
            }
        }
    }
    let (notes, fine) = (count(Level::Note), count(Level::Ok));
    output.say(&format!(
        "{broken} broken, {risks} at risk, {notes} notes, {fine} fine; \
         `replctl explain CODE` says more"
    ))?;
    Ok(code)
}
