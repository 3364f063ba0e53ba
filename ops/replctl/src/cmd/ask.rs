//! The two daemons of a node, asked over their sockets.

use anyhow::anyhow;
use mailtwin_host::{
    admin::{AdminError, Client, FailureCode, Request, Response, agent_socket, replica_socket},
    config::Config,
};

use crate::exit;

/// Both daemons of this node.
pub(super) struct Daemons {
    pub(super) agent: Client,
    pub(super) replica: Client,
}

/// A daemon's "no", with its exit code.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    pub(crate) code: u8,
    pub(crate) message: String,
}

impl Daemons {
    pub(super) fn new(config: &Config) -> Self {
        let run_dir = &config.node.run_dir;
        Self {
            agent: Client::new(&agent_socket(run_dir)),
            replica: Client::new(&replica_socket(run_dir)),
        }
    }

    /// Asks the agent; every failure is an error.
    pub(super) async fn ask(&self, request: &Request) -> anyhow::Result<Response> {
        checked(self.agent.call(request).await?)
    }

    /// Asks the replica daemon; every failure is an error.
    pub(super) async fn ask_replica(&self, request: &Request) -> anyhow::Result<Response> {
        checked(self.replica.call(request).await?)
    }

    /// Asks the daemon whose role this node has: the other one, if it runs at all, refuses.
    pub(super) async fn ask_working(&self, request: &Request) -> anyhow::Result<Response> {
        let first = match self.agent.call(request).await {
            Err(error @ (AdminError::NoDaemon { .. } | AdminError::Refused { .. })) => error,
            answer => return checked(answer?),
        };
        match (first, self.replica.call(request).await) {
            // Neither is to be asked: the agent says why.
            (first @ AdminError::Refused { .. }, Err(AdminError::Refused { .. })) => {
                Err(first.into())
            }
            (_, answer) => checked(answer?),
        }
    }

    /// Asks whichever daemon runs, the agent first: for what both can answer.
    pub(super) async fn ask_any(&self, request: &Request) -> anyhow::Result<Response> {
        match self.agent.call(request).await {
            Err(AdminError::NoDaemon { .. }) => checked(self.replica.call(request).await?),
            answer => checked(answer?),
        }
    }
}

fn checked(response: Response) -> anyhow::Result<Response> {
    let Response::Failed { code, message } = response else { return Ok(response) };
    let code = match code {
        FailureCode::Usage => exit::USAGE,
        FailureCode::Refused => exit::REFUSED,
        FailureCode::Failed => exit::FOUND,
    };
    Err(Failure { code, message }.into())
}

/// An answer to another question.
pub(super) fn unexpected(response: &Response) -> anyhow::Error {
    anyhow!("the daemon answered something else than was asked: {response:?}")
}
