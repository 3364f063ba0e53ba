//! `replctl keys`.

use anyhow::Context as _;
use mailtwin_host::{
    admin::{Request, Response},
    pins::{Pin, PinSource},
};

use super::ask::{Daemons, unexpected};
use crate::{args, output::Output};

/// Shows, pins, unpins.
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
    };
    match daemons.ask_any(&request).await? {
        Response::Keys(list) if output.is_json() => Output::json(&list)?,
        Response::Keys(list) => {
            output
                .say(&format!("{}  {}  (this node; {})", list.node, list.key, list.fingerprint))?;
            for Pin { peer, key, source } in list.pins {
                let source = match source {
                    PinSource::Configuration => "configuration",
                    PinSource::Pinned => "pinned",
                };
                output.say(&format!("{peer}  {key}  ({source}; {})", key.fingerprint()))?;
            }
        }
        Response::Done => output.say("done")?,
        other => return Err(unexpected(&other)),
    }
    Ok(0)
}
