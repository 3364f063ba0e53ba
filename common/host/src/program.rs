//! What both daemons' programs do: read the configuration, start logging, run, say how it ended.

use std::{path::Path, process::ExitCode};

use mailtwin_logic::chain::Chain;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    config::Config,
    node::NodeError,
    signals::{self, Signal},
    telemetry,
};

/// The configuration or the node's own state is wrong: to start again would not help.
const WRONG: u8 = 2;

/// Runs `daemon`, called `name`, until it ends: with 0 when it was told to stop, 2 if the
/// configuration or the node's identity is wrong, 1 for everything else.
pub fn run<D>(
    name: &str,
    config: &Path,
    daemon: impl FnOnce(Config, mpsc::Receiver<Signal>, CancellationToken) -> D,
) -> ExitCode
where
    D: Future<Output = anyhow::Result<()>>,
{
    let config = match load(name, config) {
        Ok(config) => config,
        Err(code) => return code,
    };
    telemetry::init(&config.node.log);
    let started =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let result = started.map_err(anyhow::Error::from).and_then(|runtime| {
        runtime.block_on(async {
            let signals = signals::listen()?;
            daemon(config, signals, CancellationToken::new()).await
        })
    });
    let Err(error) = result else { return ExitCode::SUCCESS };
    tracing::error!(code = "not-started", "{error:#}");
    let is_wrong = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref().is_some_and(|error: &NodeError| !matches!(error, NodeError::Disk(_)))
    };
    if error.chain().any(is_wrong) { ExitCode::from(WRONG) } else { ExitCode::FAILURE }
}

/// Says what is wrong with a configuration: ends with 0 if nothing is, with 2 otherwise.
pub fn check(name: &str, config: &Path) -> ExitCode {
    load(name, config).map_or_else(|code| code, |_| ExitCode::SUCCESS)
}

#[expect(clippy::print_stderr, reason = "there is no log before the configuration is read")]
fn load(name: &str, config: &Path) -> Result<Config, ExitCode> {
    Config::load(config).map_err(|error| {
        eprintln!("{name}: {}", Chain(&error));
        ExitCode::from(WRONG)
    })
}
