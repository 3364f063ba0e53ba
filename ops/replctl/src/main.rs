//! `replctl`: Mailtwin's command line.
#![forbid(unsafe_code)]
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "whatever answer was not asked for is an error"
)]

mod args;
mod cmd;
mod demo;
mod exit;
mod explain;
mod mirror;
mod output;
mod runtime;

use std::process::ExitCode;

use clap::Parser as _;
use mailtwin_host::{
    admin::AdminError,
    config::{Config, ConfigError},
    telemetry,
};

use args::{Cli, Verb};
use output::Output;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let output = Output::new(cli.output);
    // Talk of the library below us; results are ours.
    let level = if matches!(cli.verb, Verb::Mirror(_)) { "warn" } else { "error" };
    telemetry::init(&std::env::var("MAILTWIN_LOG").unwrap_or_else(|_| level.to_owned()));
    match run(&cli, &output) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            Output::error(&error);
            ExitCode::from(code_of(&error))
        }
    }
}

fn run(cli: &Cli, output: &Output) -> anyhow::Result<u8> {
    match &cli.verb {
        Verb::Demo(args) => demo::run(args, output),
        Verb::Mirror(args) => mirror::run(args, output),
        Verb::Doctor(args) => cmd::doctor::run(args, &cli.config, output),
        Verb::Explain(args) => explain::run(args, output),
        Verb::Init(args) => cmd::init::run(args, &Config::load(&cli.config)?, output),
        verb => cmd::run(verb, &Config::load(&cli.config)?, output),
    }
}

fn code_of(error: &anyhow::Error) -> u8 {
    if error.downcast_ref::<ConfigError>().is_some() {
        return exit::USAGE;
    }
    if let Some(failure) = error.downcast_ref::<cmd::Failure>() {
        return failure.code;
    }
    match error.downcast_ref::<AdminError>() {
        Some(AdminError::Refused { .. }) => exit::REFUSED,
        Some(_) => exit::UNREACHABLE,
        None => exit::FOUND,
    }
}
