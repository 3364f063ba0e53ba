//! Accepts agents: TLS, a key that is a peer's, and no more connections than a cluster needs.

use std::{net::SocketAddr, sync::Arc};

use mailtwin_host::{
    accept::{self, Door},
    keyring::KeyRing,
    keys::PublicKey,
    notice,
    pins::{Admission, Pins},
    tasks::Tasks,
    tls::{self, Protocol},
};
use mailtwin_logic::chain::Chain;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::session::{self, Context};

/// Strangers included.
const DOOR: Door = Door { name: "listener", clients: "connection", most: 64 };

/// What it takes to tell an agent from a stranger.
#[derive(Clone, Debug)]
pub struct Doorkeeper {
    /// This node's key.
    pub key: Arc<KeyRing>,
    /// Its peers'.
    pub pins: Arc<Pins>,
}

/// Serves the agents that come to `listener` until `stop`; returns where that is.
pub fn listen(
    listener: TcpListener,
    doorkeeper: Doorkeeper,
    context: Context,
    tasks: &Tasks,
    stop: CancellationToken,
) -> std::io::Result<SocketAddr> {
    let bound = listener.local_addr()?;
    let sessions = stop.clone();
    accept::spawn(DOOR, listener, tasks, stop, move |(socket, from)| {
        one(socket, from, doorkeeper.clone(), context.clone(), sessions.child_token())
    });
    Ok(bound)
}

async fn one(
    socket: TcpStream,
    from: SocketAddr,
    doorkeeper: Doorkeeper,
    context: Context,
    stop: CancellationToken,
) {
    let refused = |error: &dyn std::error::Error| {
        context.metrics.refused.inc();
        tracing::warn!(code = "connection-refused", %from, error = %Chain(error), "connection refused or broken");
    };
    let expected = match doorkeeper.pins.expected_of_anyone() {
        Ok(expected) => expected,
        Err(error) => return refused(&error),
    };
    let (stream, shown) = match tls::accept(socket, &doorkeeper.key.now(), expected).await {
        Ok(shaken) => shaken,
        Err(error) => return refused(&error),
    };
    if Protocol::of(&stream) == Protocol::Keys {
        if let Err(error) = notice::serve(stream, shown, &doorkeeper.pins).await {
            refused(&error);
        }
        return;
    }
    let admit = |name: &str| admit(&doorkeeper.pins, name, shown);
    let peer = from.to_string();
    if let Err(error) = session::serve(stream, &peer, &context, &admit, stop).await {
        refused(&error);
    }
}

/// Whether an agent that calls itself `name` and owns `key` is that peer.
fn admit(pins: &Pins, name: &str, key: PublicKey) -> Result<(), String> {
    match pins.admit(name, key) {
        Ok(Admission::Admitted) => Ok(()),
        Ok(Admission::PinnedNow) => {
            let fingerprint = key.fingerprint();
            tracing::info!(peer = name, %key, fingerprint, "first contact: key pinned; any other is refused from now on");
            Ok(())
        }
        Ok(Admission::Refused(refusal)) => Err(refusal.to_string()),
        Err(error) => Err(Chain(&error).to_string()),
    }
}
