//! Chores of the project that deserve a compiler: `cargo xtask bench`, `cargo xtask fuzz`,
//! `cargo xtask sim`, `cargo xtask mutants`, `cargo xtask deb`.
#![forbid(unsafe_code)]

mod bench;
mod deb;
mod fuzz;
mod mutants;
mod sim;

use std::process::ExitCode;

use clap::Parser;

/// What `cargo xtask` can do.
#[derive(Debug, Parser)]
#[command(name = "xtask", version, about)]
enum Task {
    /// Measures Mailtwin beside the tools it is compared with, and prints one table.
    Bench(bench::Options),
    /// Looks for inputs that break a parser, guided by coverage.
    Fuzz(fuzz::Options),
    /// Simulates a master and two replicas that suffer faults, and checks the invariants.
    Sim(sim::Options),
    /// Tries whether the simulation catches deliberate bugs.
    Mutants(mutants::Options),
    /// Builds the Debian packages from programs that are built already.
    Deb(deb::Options),
}

fn main() -> ExitCode {
    let outcome = match Task::parse() {
        Task::Bench(options) => bench::run(&options),
        Task::Fuzz(options) => fuzz::run(&options),
        Task::Sim(options) => sim::run(&options),
        Task::Mutants(options) => mutants::run(&options),
        Task::Deb(options) => deb::run(&options),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            bench::report::talk(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
