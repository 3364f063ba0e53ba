//! Answers that both daemons give in the same words.

use std::{error::Error, path::Path};

use mailtwin_logic::{
    chain::Chain,
    check::{Depth, Local},
    entry::Target,
    graveyard::{Found, Wanted},
    ids::Account,
    mailbox::MailboxName,
};

use super::{
    AddedReport, FailureCode, GraveyardAsk, GraveyardReport, KeyList, LocalAsk, LocalPart,
    Response, SCHEMA_VERSION,
};
use crate::{
    config::Peer,
    keyring::{KeyRing, Stage},
    peers::{Peers, PeersError},
    pins::Pins,
    workers::Workers,
};

/// It is done, or it is not and this is why.
pub fn done<E: Error + 'static>(result: Result<(), E>) -> Response {
    match result {
        Ok(()) => Response::Done,
        Err(error) => failed(FailureCode::Failed, Chain(&error).to_string()),
    }
}

/// It is not done.
pub fn failed(code: FailureCode, message: String) -> Response {
    Response::Failed { code, message }
}

/// Notes a peer, which is replicated to once this node is the master.
pub fn peer_added(peers: &Peers, peer: &Peer, dry_run: bool) -> Response {
    let noted = if dry_run { peers.check_new(peer) } else { peers.add(peer) };
    match noted {
        Ok(()) => Response::ReplicaAdded(AddedReport::noted(&peer.name, &peer.address, !dry_run)),
        Err(error) => peer_refused(&error),
    }
}

/// Why the peers stay as they are.
pub fn peer_refused(error: &PeersError) -> Response {
    let code = match error {
        PeersError::Refused(_) => FailureCode::Usage,
        PeersError::Version { .. } | PeersError::Damaged { .. } | PeersError::Disk(_) => {
            FailureCode::Failed
        }
    };
    failed(code, Chain(error).to_string())
}

/// This node's key and its peers'.
pub fn keys(node: &str, keys: &KeyRing, pins: &Pins) -> Response {
    let (node, key) = (node.to_owned(), keys.now().public());
    let next = match keys.stage() {
        Ok(Stage::Prepared(next)) => Some(next),
        Ok(Stage::Settled | Stage::Retiring(_)) => None,
        Err(error) => return failed(FailureCode::Failed, Chain(&error).to_string()),
    };
    match pins.list() {
        Ok(pins) => {
            let fingerprint = key.fingerprint();
            Response::Keys(KeyList { node, key, fingerprint, next, pins })
        }
        Err(error) => failed(FailureCode::Failed, Chain(&error).to_string()),
    }
}

/// Has a worker look at this node by itself.
pub async fn local<E: Error + Send + 'static>(
    node: &str,
    began: u64,
    ask: LocalAsk,
    workers: &Workers,
    look: impl FnOnce(&[Target], Depth, Option<&Account>) -> Result<Local, E> + Send + 'static,
) -> Response {
    let targets: Result<Vec<_>, _> = ask.targets.iter().map(|text| target(text)).collect();
    let after = ask.after.as_deref().map(Account::new).transpose();
    let (targets, after) = match (targets, after) {
        (Ok(targets), Ok(after)) => (targets, after),
        (Err(message), _) => return failed(FailureCode::Usage, message),
        (_, Err(error)) => return failed(FailureCode::Usage, Chain(&error).to_string()),
    };
    let depth = ask.depth();
    match workers.run(move || look(&targets, depth, after.as_ref())).await {
        Ok(Ok(local)) => Response::Local(LocalPart::of(node, began, &local)),
        Ok(Err(error)) => failed(FailureCode::Failed, Chain(&error).to_string()),
        Err(error) => failed(FailureCode::Failed, Chain(&error).to_string()),
    }
}

/// Has a worker look into this node's graveyard, and write what is meant below a directory, if one
/// is named.
pub async fn graveyard<E: Error + Send + 'static>(
    ask: GraveyardAsk,
    workers: &Workers,
    look: impl FnOnce(&Wanted, Option<&Path>) -> Result<Found, E> + Send + 'static,
) -> Response {
    let to = ask.export_to.clone().filter(|_| !ask.dry_run);
    let wanted = match ask.wanted() {
        Ok(wanted) => wanted,
        Err(message) => return failed(FailureCode::Usage, message),
    };
    let done = to.is_some();
    match workers.run(move || look(&wanted, to.as_deref())).await {
        Ok(Ok(Found { count, octets, entries })) => {
            let (schema_version, left) = (SCHEMA_VERSION, Vec::new());
            Response::Graveyard(GraveyardReport {
                schema_version,
                count,
                octets,
                done,
                entries,
                left,
            })
        }
        Ok(Err(error)) => failed(FailureCode::Failed, Chain(&error).to_string()),
        Err(error) => failed(FailureCode::Failed, Chain(&error).to_string()),
    }
}

/// `account` or `account/mailbox`; empty text is everything. Account names may hold slashes
/// themselves in trees, where only whole accounts are named.
pub fn target(text: &str) -> Result<Target, String> {
    let usage = |error: &dyn Error| format!("{text:?} names no account or mailbox: {error}");
    if text.is_empty() {
        return Ok(Target::Store);
    }
    let Some((account, mailbox)) = text.split_once('/') else {
        return Ok(Target::Account(Account::new(text).map_err(|error| usage(&error))?));
    };
    let account = Account::new(account).map_err(|error| usage(&error))?;
    let mailbox = if mailbox.eq_ignore_ascii_case("inbox") { "" } else { mailbox };
    let mailbox = MailboxName::new(mailbox.as_bytes()).map_err(|error| usage(&error))?;
    Ok(Target::Mailbox(account, mailbox))
}
