//! `replctl replica`.

use mailtwin_host::admin::{Request, Response};
use serde_json::json;

use super::{
    ask::{Daemons, unexpected},
    status::replica_row,
};
use crate::{args, output::Output};

/// Lists, pauses, resumes.
pub(super) async fn run(
    args: &args::Replica,
    daemons: &Daemons,
    output: &Output,
) -> anyhow::Result<u8> {
    let (name, pause) = match args {
        args::Replica::List => return list(daemons, output).await,
        args::Replica::Pause { name } => (name, true),
        args::Replica::Resume { name } => (name, false),
    };
    match daemons.ask(&Request::ReplicaPause { name: name.clone(), pause }).await? {
        Response::Done if pause => {
            output.say(&format!("{name} is paused; its place in the log is kept"))?;
        }
        Response::Done => output.say(&format!("{name} goes on"))?,
        other => return Err(unexpected(&other)),
    }
    Ok(0)
}

async fn list(daemons: &Daemons, output: &Output) -> anyhow::Result<u8> {
    match daemons.ask(&Request::Status).await? {
        Response::Status(status) if output.is_json() => {
            Output::json(&json!({ "replicas": status.replicas }))?;
        }
        Response::Status(status) => {
            let rows: Vec<_> = status.replicas.iter().map(replica_row).collect();
            Output::table(super::status::REPLICA_HEAD, &rows)?;
        }
        other => return Err(unexpected(&other)),
    }
    Ok(0)
}
