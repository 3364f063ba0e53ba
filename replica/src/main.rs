//! `mailtwin-replica`: arguments; the rest is in the library.
#![forbid(unsafe_code)]

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use mailtwin_host::{config::DEFAULT_PATH, program};
use mailtwin_replica::daemon;

/// The daemon on a replica: takes a master's changes in.
///
/// Ends with 0 when it was told to stop, 2 if the configuration or the node's identity is wrong, 1 for
/// everything else.
#[derive(Debug, Parser)]
#[command(name = "mailtwin-replica", version)]
struct Arguments {
    /// Configuration file.
    #[arg(long, value_name = "FILE", default_value = DEFAULT_PATH)]
    config: PathBuf,
}

fn main() -> ExitCode {
    program::run("mailtwin-replica", &Arguments::parse().config, daemon::run)
}
