//! `replctl keys`.

use anyhow::Context as _;
use mailtwin_host::{
    admin::{KeyList, Request, Response, RotatePeer, RotateReport},
    codes::{KeyNews, KeyStage},
    pins::{Pin, PinSource},
};

use super::ask::{Daemons, unexpected};
use crate::{args, exit, output::Output};

/// Shows, pins, unpins, rotates.
pub(super) async fn run(
    args: &args::Keys,
    daemons: &Daemons,
    output: &Output,
) -> anyhow::Result<u8> {
    let parse = |key: &str| key.parse().with_context(|| format!("key {key:?}"));
    let request = match args {
        args::Keys::Show => Request::KeysShow,
        args::Keys::Pin { peer, key } => Request::KeysPin { peer: peer.clone(), key: parse(key)? },
        args::Keys::Unpin { peer, key } => {
            Request::KeysUnpin { peer: peer.clone(), key: parse(key)? }
        }
        args::Keys::Rotate(args) => return rotate(args, daemons, output).await,
    };
    match daemons.ask_any(&request).await? {
        Response::Keys(list) if output.is_json() => Output::json(&list)?,
        Response::Keys(list) => show(list, output)?,
        Response::Done => output.say("done")?,
        other => return Err(unexpected(&other)),
    }
    Ok(0)
}

fn show(list: KeyList, output: &Output) -> anyhow::Result<()> {
    output.say(&format!("{}  {}  (this node; {})", list.node, list.key, list.fingerprint))?;
    if let Some(next) = list.next {
        let fingerprint = next.fingerprint();
        output.say(&format!("{}  {next}  (this node's next; {fingerprint})", list.node))?;
    }
    for Pin { peer, key, source } in list.pins {
        let source = match source {
            PinSource::Configuration => "configuration",
            PinSource::Pinned => "pinned",
        };
        output.say(&format!("{peer}  {key}  ({source}; {})", key.fingerprint()))?;
    }
    Ok(())
}

/// Has the agent do one step, and says what the next one is.
async fn rotate(args: &args::Rotate, daemons: &Daemons, output: &Output) -> anyhow::Result<u8> {
    let args::Rotate { switch, without, dry_run } = args;
    let request =
        Request::KeysRotate { switch: *switch, without: without.clone(), dry_run: *dry_run };
    let report = match daemons.ask(&request).await? {
        Response::Rotated(report) => report,
        other => return Err(unexpected(&other)),
    };
    let is_open = report.done && report.peers.iter().any(RotatePeer::is_open);
    if output.is_json() {
        Output::json(&report)?;
    } else {
        tell(&report, output)?;
    }
    Ok(if is_open { exit::FOUND } else { 0 })
}

fn tell(report: &RotateReport, output: &Output) -> anyhow::Result<()> {
    let RotateReport { done, node, key, next, previous, .. } = report;
    output.say(&format!("the key of {node} is {key}, fingerprint {}", key.fingerprint()))?;
    if let Some(next) = next {
        output.say(&format!("its next one is {next}, fingerprint {}", next.fingerprint()))?;
    }
    if let Some(previous) = previous {
        output.say(&format!("the one before is {previous}"))?;
    }
    for peer in &report.peers {
        if *done {
            output.say(&format!("{}: {}", peer.name, word(report, peer)))?;
        }
    }
    let stage = KeyStage::of_code(&report.stage);
    let is_open = report.peers.iter().any(RotatePeer::is_open);
    Ok(output.say(match (stage, *done, is_open) {
        (Some(KeyStage::Settled), true, _) => "the rotation is finished",
        (Some(KeyStage::Settled) | None, _, _) => "next: replctl keys rotate",
        (Some(KeyStage::Prepared), true, true) => {
            "nothing has changed yet. Next, when every peer is there: replctl keys rotate"
        }
        (Some(KeyStage::Prepared), _, _) => {
            "nothing has changed yet. Next: replctl keys rotate --switch"
        }
        (Some(KeyStage::Retiring), _, _) => {
            "next, when every peer is there: replctl keys rotate --switch"
        }
    })?)
}

fn word(report: &RotateReport, peer: &RotatePeer) -> String {
    let RotatePeer { name, news, detail } = peer;
    let (node, key) = (&report.node, report.key);
    let old = report.previous.map(|old| old.to_string()).unwrap_or_default();
    match KeyNews::of_code(news) {
        Some(KeyNews::Pinned) => "has pinned the next key, beside the present one".to_owned(),
        Some(KeyNews::Unpinned) => "has unpinned the key before".to_owned(),
        Some(KeyNews::Configured) => {
            format!("its configuration has the key before: take {old} out there")
        }
        Some(KeyNews::LeftOut) => match (report.next, report.previous) {
            (Some(next), _) => format!("left out; there: replctl keys pin {node} {next}"),
            (None, Some(_)) => format!(
                "left out; there: replctl keys pin {node} {key}; replctl keys unpin {node} {old}"
            ),
            (None, None) => "left out".to_owned(),
        },
        Some(KeyNews::NotTold) | None => {
            let why = detail.as_deref().unwrap_or("it was not asked");
            format!("NOT TOLD: {why}; replctl doctor; for one that is dead: --without {name}")
        }
    }
}
