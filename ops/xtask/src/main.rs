//! Chores of the project that deserve a compiler: `cargo xtask bench`.
#![forbid(unsafe_code)]

mod bench;

use std::process::ExitCode;

use clap::Parser;

/// What `cargo xtask` can do.
#[derive(Debug, Parser)]
#[command(name = "xtask", version, about)]
enum Task {
    /// Measures Mailtwin beside the tools it is compared with, and prints one table.
    Bench(bench::Options),
}

fn main() -> ExitCode {
    let outcome = match Task::parse() {
        Task::Bench(options) => bench::run(&options),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            bench::report::talk(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
