//! `mailtwin-agent`: arguments and exit code; the rest is in the library.
#![forbid(unsafe_code)]

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use mailtwin_agent::daemon;
use mailtwin_host::{
    config::{Config, DEFAULT_PATH},
    signals, telemetry,
};
use tokio_util::sync::CancellationToken;

/// The daemon on the master: replays every change of its mail to the replicas.
///
/// Ends with 0 when it was told to stop, 2 if the configuration is wrong, 1 for everything else.
#[derive(Debug, Parser)]
#[command(name = "mailtwin-agent", version)]
struct Arguments {
    /// Configuration file.
    #[arg(long, value_name = "FILE", default_value = DEFAULT_PATH)]
    config: PathBuf,
}

#[expect(clippy::print_stderr, reason = "there is no log before the configuration is read")]
fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let config = match Config::load(&arguments.config) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("mailtwin-agent: {}", mailtwin_logic::chain::Chain(&error));
            return ExitCode::from(2);
        }
    };
    telemetry::init(&config.node.log);
    match run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(config: Config) -> anyhow::Result<()> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let signals = signals::listen()?;
        daemon::run(config, signals, CancellationToken::new()).await
    })
}
