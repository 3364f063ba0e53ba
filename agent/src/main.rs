//! `mailtwin-agent`: arguments; the rest is in the library.
#![forbid(unsafe_code)]

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use mailtwin_agent::daemon;
use mailtwin_host::{config::DEFAULT_PATH, program};

/// The daemon on the master: replays every change of its mail to the replicas.
///
/// Ends with 0 when it was told to stop, 2 if the configuration or the node's identity is wrong, 1 for
/// everything else.
#[derive(Debug, Parser)]
#[command(name = "mailtwin-agent", version)]
struct Arguments {
    /// Configuration file.
    #[arg(long, value_name = "FILE", default_value = DEFAULT_PATH)]
    config: PathBuf,
}

fn main() -> ExitCode {
    program::run("mailtwin-agent", &Arguments::parse().config, daemon::run)
}
