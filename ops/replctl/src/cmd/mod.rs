//! Verbs that concern a node: `init` makes its state, all others ask its daemons.

mod ask;
mod brake;
mod canary;
mod check;
mod conflicts;
pub(crate) mod doctor;
mod failover;
mod graveyard;
pub(crate) mod init;
mod keys;
mod log;
mod pair;
mod quarantine;
mod replica;
mod status;

use mailtwin_host::config::Config;

use crate::{args::Verb, output::Output, runtime};
use ask::Daemons;

pub(crate) use ask::Failure;

/// Runs a verb that asks a daemon.
pub(crate) fn run(verb: &Verb, config: &Config, output: &Output) -> anyhow::Result<u8> {
    let daemons = Daemons::new(config);
    let stop = tokio_util::sync::CancellationToken::new();
    runtime::run(&stop, async {
        match verb {
            Verb::Status(args) => status::run(args, &daemons, output, &stop).await,
            Verb::Sync(args) => log::sync(args, &daemons, output).await,
            Verb::Drain(args) => log::drain(args, &daemons, output).await,
            Verb::Canary => canary::run(&daemons, output).await,
            Verb::Failover(args) => failover::run(args, &daemons, output).await,
            Verb::Ledger => conflicts::ledger(&daemons, output).await,
            Verb::Conflicts(args) => conflicts::run(args, &daemons, output).await,
            Verb::Freeze(args) => failover::freeze(args, &daemons, output).await,
            Verb::Thaw => failover::thaw(&daemons, output).await,
            Verb::Log(args) => log::run(args, &daemons, output).await,
            Verb::Pair(args) => pair::run(args, config, &daemons, output).await,
            Verb::Keys(args) => keys::run(args, &daemons, output).await,
            Verb::Replica(args) => replica::run(args, &daemons, output).await,
            Verb::Quarantine(args) => quarantine::run(args, &daemons, output).await,
            Verb::Graveyard(args) => graveyard::run(args, &daemons, output).await,
            Verb::Brake(args) => brake::run(args, &daemons, output).await,
            Verb::Check(args) => check::run(args, &daemons, output, &stop).await,
            Verb::Demo(_)
            | Verb::Mirror(_)
            | Verb::Init(_)
            | Verb::Doctor(_)
            | Verb::Explain(_) => Ok(0),
        }
    })
}
