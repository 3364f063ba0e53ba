//! `replctl check --undo`: what a repair replaced or took away, given out as `replctl graveyard restore`
//! gives out what was expunged.

use mailtwin_host::admin::{Request, Response};

use super::{Daemons, unexpected};
use crate::{
    args,
    cmd::graveyard::{hand_over, show},
    exit,
    output::Output,
};

pub(super) async fn run(
    id: u64,
    args: &args::check::Check,
    daemons: &Daemons,
    output: &Output,
) -> anyhow::Result<u8> {
    let to = args.to.as_ref().map(std::path::absolute).transpose()?;
    let export_to = to.clone().filter(|_| !args.dry_run);
    let request = Request::CheckUndo { id, export_to };
    let report = match daemons.ask(&request).await? {
        Response::Graveyard(report) => report,
        other => return Err(unexpected(&other)),
    };
    let deliver = args.deliver.as_deref();
    if output.is_json() {
        Output::json(&report)?;
    } else {
        show(&report, to.as_deref(), deliver, output)?;
        for left in &report.left {
            output.say(&format!("not brought back: {left}"))?;
        }
    }
    if let Some((to, command)) = to.zip(deliver).filter(|_| report.done) {
        let delivered = hand_over(&to, command)?;
        output.say(&format!("{delivered} messages handed to the command"))?;
    }
    Ok(if report.left.is_empty() { 0 } else { exit::FOUND })
}
