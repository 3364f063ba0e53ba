//! `mailtwin-replica`: arguments; the rest is in the library.
#![forbid(unsafe_code)]

mod args;

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use mailtwin_host::{program, systemd};
use mailtwin_replica::daemon;

use args::Arguments;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.check_config {
        return program::check("mailtwin-replica", &arguments.config);
    }
    let opened = systemd::take_listener();
    program::run("mailtwin-replica", &arguments.config, async |config, signals, stop| {
        let opened = opened.context("take the socket that systemd hands over")?;
        daemon::run(config, signals, stop, opened).await
    })
}
