//! `replctl canary`.

use std::{io, time::Duration};

use anyhow::Context as _;
use mailtwin_host::admin::{CanaryReport, Request, Response};

use super::ask::{Daemons, unexpected};
use crate::{exit, output::Output, output::when};

/// Longer than the agent waits for the mail server and the replicas.
const PATIENCE: Duration = Duration::from_mins(3);

/// Sends one and tells what became of it.
pub(super) async fn run(daemons: &Daemons, output: &Output) -> anyhow::Result<u8> {
    let answer = tokio::time::timeout(PATIENCE, daemons.ask(&Request::Canary));
    let report = match answer.await.context("the agent does not answer")?? {
        Response::Canary(report) => report,
        other => return Err(unexpected(&other)),
    };
    if output.is_json() {
        Output::json(&report)?;
    } else {
        show(&report, output)?;
    }
    Ok(if report.is_well() { 0 } else { exit::FOUND })
}

fn show(report: &CanaryReport, output: &Output) -> io::Result<()> {
    if let Some(ms) = report.accepted_ms {
        output.say(&format!("{}: accepted after {ms} ms", report.account))?;
    }
    if let Some(error) = &report.error {
        return output.say(&format!("{}: {error}", report.account));
    }
    let rows = report.replicas.iter().map(|arrival| {
        let after = arrival.after_ms.map(|ms| format!("after {ms} ms"));
        [arrival.name.clone(), after.or_else(|| arrival.error.clone()).unwrap_or_default()]
    });
    Output::table(["replica", "there"], &rows.collect::<Vec<_>>())
}

/// The last one, for a status.
pub(super) fn line(report: &CanaryReport) -> String {
    format!("canary of {}: {}", when(report.at), report.summary())
}
