//! `cargo xtask sim`: simulated stories, as many as wanted, or one of them to read.

use anyhow::{Result, bail};
use mailtwin_disk::clock::SystemClock;
use mailtwin_simulation::story::{self, Failure};

use crate::bench::report::talk;

/// Stories between two lines of progress.
const STRETCH: u64 = 10_000;

/// What to simulate.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Stories.
    #[arg(long, default_value_t = 2000)]
    seeds: u64,
    /// Seed of the first.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Tells the first story instead, whether or not something breaks in it.
    #[arg(long)]
    tell: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    if options.tell {
        return tell(options.from);
    }
    let clock = SystemClock::shared();
    let (start, end) = (clock.monotonic(), options.from.saturating_add(options.seeds));
    let mut from = options.from;
    while from < end {
        let upto = end.min(from.saturating_add(STRETCH));
        if let Err(failure) = story::run_all(from..upto) {
            bail!("{failure}");
        }
        from = upto;
        let took = clock.monotonic().saturating_sub(start);
        talk(&format!("{} stories, nothing broken, {took:.1?}", upto - options.from));
    }
    Ok(())
}

fn tell(seed: u64) -> Result<()> {
    let told = story::run(seed);
    let history = match &told {
        Ok(history) | Err(Failure { history, .. }) => history,
    };
    for line in history {
        talk(line);
    }
    match told {
        Ok(_) => Ok(()),
        Err(Failure { what, .. }) => bail!("seed {seed}: {what}"),
    }
}
