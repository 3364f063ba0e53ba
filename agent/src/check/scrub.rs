//! Reads all messages on both sides in the background, a part at a time, slowly.

use std::{sync::Arc, time::Duration};

use mailtwin_host::admin::{CheckAsk, CheckLevel};
use mailtwin_logic::check::SLOTS;
use tokio_util::sync::CancellationToken;

use super::{Bench, Scope, report};

/// How it is done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scrub {
    /// In which time everything is read once.
    pub(crate) every: Duration,
    /// Octets per second and side.
    pub(crate) rate: u64,
}

/// Runs until `stop`.
pub(crate) async fn run(bench: Bench, scrub: Scrub, stop: CancellationToken) {
    let pause = scrub.every / u32::from(SLOTS);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        let ask = CheckAsk {
            level: CheckLevel::Deep,
            sample: Some(1),
            rate: Some(scrub.rate),
            ..CheckAsk::default()
        };
        let work = report::scrub(bench.clone(), ask, Scope::default(), Arc::default());
        let report = tokio::select! {
            () = stop.cancelled() => return,
            report = work => report,
        };
        for found in &report.differences {
            tracing::warn!(
                code = "scrub-difference",
                ?found,
                "the background check found a difference: run `replctl check`"
            );
        }
        for why in &report.incomplete {
            tracing::info!(why, "the background check will look again");
        }
    }
}
