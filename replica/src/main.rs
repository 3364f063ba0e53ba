//! `mailtwin-replica`: arguments; the rest is in the library.
#![forbid(unsafe_code)]

mod args;

use std::process::ExitCode;

use clap::Parser as _;
use mailtwin_host::program;
use mailtwin_replica::daemon;

use args::Arguments;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.check_config {
        return program::check("mailtwin-replica", &arguments.config);
    }
    program::run("mailtwin-replica", &arguments.config, daemon::run)
}
