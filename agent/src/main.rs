//! `mailtwin-agent`: arguments; the rest is in the library.
#![forbid(unsafe_code)]

mod args;

use std::process::ExitCode;

use clap::Parser as _;
use mailtwin_agent::daemon;
use mailtwin_host::program;

use args::Arguments;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.check_config {
        return program::check("mailtwin-agent", &arguments.config);
    }
    program::run("mailtwin-agent", &arguments.config, daemon::run)
}
