//! `replctl check verify-report`: whether a report is as it was signed, and whose it is.

use std::path::Path;

use anyhow::Context as _;
use mailtwin_host::{
    admin::{CheckReport, KeyList, Request, Response},
    keys::PublicKey,
    seal::unseal,
};
use serde_json::json;

use super::{Daemons, show};
use crate::{exit, output::Output, output::when};

pub(super) async fn run(file: &Path, daemons: &Daemons, output: &Output) -> anyhow::Result<u8> {
    let text = std::fs::read(file).with_context(|| format!("read {}", file.display()))?;
    let (report, key) =
        unseal::<CheckReport>(&text).with_context(|| format!("verify {}", file.display()))?;
    let known = match daemons.ask_any(&Request::KeysShow).await {
        Ok(Response::Keys(keys)) => owner(&keys, key),
        Ok(_) | Err(_) => None,
    };
    let code = if known.is_some() { 0 } else { exit::FOUND };
    if output.is_json() {
        Output::json(&json!({ "key": key, "signer": known, "report": report }))?;
        return Ok(code);
    }
    match &known {
        Some(node) => output.say(&format!("signed by {node}, unchanged since"))?,
        None => output.say(&format!(
            "unchanged since it was signed, but by a key that is not known here: {key}"
        ))?,
    }
    output.say(&format!("begun {}", when(report.began)))?;
    if !report.targets.is_empty() {
        output.say(&format!("only of {}", report.targets.join(", ")))?;
    }
    show::report(&report, output)?;
    Ok(code)
}

/// Whose key it is, as this node knows.
fn owner(keys: &KeyList, key: PublicKey) -> Option<String> {
    if keys.key == key {
        return Some(keys.node.clone());
    }
    keys.pins.iter().find(|pin| pin.key == key).map(|pin| pin.peer.clone())
}
