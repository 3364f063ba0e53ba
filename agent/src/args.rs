//! The daemon's command line, as clap reads it.

use std::path::PathBuf;

use clap::Parser;
use mailtwin_host::config::DEFAULT_PATH;

/// The daemon on the master: replays every change of its mail to the replicas.
///
/// Ends with 0 when it was told to stop, 2 if the configuration or the node's identity is wrong, 1 for
/// everything else.
#[derive(Debug, Parser)]
#[command(name = "mailtwin-agent", version)]
pub(crate) struct Arguments {
    /// Configuration file.
    #[arg(long, value_name = "FILE", default_value = DEFAULT_PATH)]
    pub(crate) config: PathBuf,
    /// Only read the configuration: end with 0 if it is right, with 2 if it is not.
    #[arg(long)]
    pub(crate) check_config: bool,
}
