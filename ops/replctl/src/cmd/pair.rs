//! `replctl pair`: what one node prints, the other is told.

use std::{fmt, str::FromStr};

use mailtwin_host::{
    admin::{AddedReport, KeyList, Request, Response, SCHEMA_VERSION},
    config::Config,
    keys::PublicKey,
    peers::Peers,
    pins::Pin,
};
use serde_json::json;

use super::{
    Failure,
    ask::{Daemons, unexpected},
};
use crate::{args, exit, output::Output};

/// All that another node must know of one: `NAME@HOST:PORT#KEY`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Code {
    name: String,
    address: String,
    key: PublicKey,
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, address, key } = self;
        write!(f, "{name}@{address}#{key}")
    }
}

impl FromStr for Code {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.trim().split_once('@').and_then(|(name, rest)| {
            let (address, key) = rest.rsplit_once('#')?;
            Some((name, address, key))
        });
        let (name, address, key) = parts.ok_or(
            "not what `replctl pair` prints on the other node, which is NAME@HOST:PORT#KEY",
        )?;
        let key = key.parse().map_err(|error| format!("its key is damaged: {error}"))?;
        Ok(Self { name: name.to_owned(), address: address.to_owned(), key })
    }
}

/// Prints this node's code, or takes another node's.
pub(super) async fn run(
    args: &args::Pair,
    config: &Config,
    daemons: &Daemons,
    output: &Output,
) -> anyhow::Result<u8> {
    let (own, pins) = own(args.address.as_ref(), config, daemons).await?;
    let Some(code) = &args.code else {
        if output.is_json() {
            let fingerprint = own.key.fingerprint();
            Output::json(&json!({
                "schema_version": SCHEMA_VERSION,
                "code": own.to_string(),
                "fingerprint": fingerprint,
            }))?;
        } else {
            output.say(&format!("on the other node: replctl pair '{own}'"))?;
            output.say(&format!("(its fingerprint there must be {})", own.key.fingerprint()))?;
        }
        return Ok(0);
    };
    let other: Code = code
        .parse()
        .map_err(|error| Failure { code: exit::USAGE, message: format!("{code:?}: {error}") })?;
    let report = take(&other, args.dry_run, config, daemons).await?;
    let fingerprint = other.key.fingerprint();
    if output.is_json() {
        Output::json(&json!({
            "schema_version": SCHEMA_VERSION,
            "done": report.done,
            "name": report.name,
            "address": report.address,
            "place": report.place,
            "accounts": report.accounts,
            "fingerprint": fingerprint,
            "code": own.to_string(),
        }))?;
        return Ok(0);
    }
    let is = if report.done { "is" } else { "would be" };
    let AddedReport { name, address, place, .. } = &report;
    output.say(&format!(
        "{name} at {address} {is} a peer of this node, by the key of fingerprint {fingerprint}"
    ))?;
    for pin in pins.iter().filter(|pin| pin.peer == other.name && pin.key != other.key) {
        output.say(&format!(
            "another key of it is trusted, too: `replctl keys unpin {name} {}` ends that",
            pin.key
        ))?;
    }
    if let Some(place) = place {
        output.say(&format!(
            "it {is} a replica from entry {place} of the sync log on: `replctl replica list` shows how far it is"
        ))?;
    }
    output.say(&format!("unless that was done: on {name}: replctl pair '{own}'"))?;
    Ok(0)
}

/// What this node is to others, and whom it trusts so far.
async fn own(
    address: Option<&String>,
    config: &Config,
    daemons: &Daemons,
) -> anyhow::Result<(Code, Vec<Pin>)> {
    let (name, key, pins) = match daemons.ask_any(&Request::KeysShow).await? {
        Response::Keys(KeyList { node, key, pins, .. }) => (node, key, pins),
        other => return Err(unexpected(&other)),
    };
    let address = address.cloned().unwrap_or_else(|| {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        format!("{}:{}", host.trim(), config.replica.listen.port())
    });
    Ok((Code { name, address, key }, pins))
}

/// Makes the other node a peer, or pins the key of one that is a peer already.
async fn take(
    other: &Code,
    dry_run: bool,
    config: &Config,
    daemons: &Daemons,
) -> anyhow::Result<AddedReport> {
    let Code { name, address, key } = other.clone();
    let peers = Peers::open(&config.node.state_dir, &config.node.name, &config.peers)?;
    if let Ok(known) = peers.get(&name) {
        if !dry_run {
            daemons.ask_any(&Request::KeysPin { peer: name.clone(), key }).await?;
        }
        return Ok(AddedReport::noted(&name, &known.address, !dry_run));
    }
    let request = Request::ReplicaAdd { name, address, keys: vec![key], dry_run };
    match daemons.ask_any(&request).await? {
        Response::ReplicaAdded(report) => Ok(report),
        other => Err(unexpected(&other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_says_what_it_was_made_from() {
        let key = format!("mt1{}", "7".repeat(64));
        let text = format!("mx1@[2001:db8::1]:4710#{key}");
        let code: Code = format!(" {text}\n").parse().unwrap();
        assert_eq!((code.name.as_str(), code.address.as_str()), ("mx1", "[2001:db8::1]:4710"));
        assert_eq!(code.to_string(), text);
        for wrong in ["", "mx1", "mx1@host:1", &format!("mx1#{key}"), "mx1@host:1#mt1"] {
            let refused = wrong.parse::<Code>().unwrap_err();
            assert!(refused.contains("key") || refused.contains("NAME@HOST:PORT#KEY"), "{refused}");
        }
    }
}
