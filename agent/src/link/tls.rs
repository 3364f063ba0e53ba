//! Dials a replica over TLS, and lets it in only with a key that is its own.

use std::{
    fmt,
    sync::{Arc, Mutex},
};

use mailtwin_host::{
    keys::NodeKey,
    pins::{Admission, Pins},
    tls,
};

use super::dial::{Dial, DialError, Dialing, Io};

/// Reaches one peer by its configured address.
pub struct TlsDialer {
    peer: String,
    address: Mutex<String>,
    key: Arc<NodeKey>,
    pins: Arc<Pins>,
}

impl fmt::Debug for TlsDialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TlsDialer({})", self.peer)
    }
}

impl TlsDialer {
    /// For `peer` at `address`.
    pub fn new(peer: &str, address: &str, key: Arc<NodeKey>, pins: Arc<Pins>) -> Self {
        Self { peer: peer.to_owned(), address: Mutex::new(address.to_owned()), key, pins }
    }

    /// Uses another address from the next connection on.
    pub fn readdress(&self, address: &str) {
        address.clone_into(&mut self.address.lock().expect("no panic while it is held"));
    }

    async fn connect(&self, address: &str) -> Result<Box<dyn Io>, DialError> {
        let because = |source: Box<dyn std::error::Error + Send + Sync>| DialError {
            address: address.to_owned(),
            source,
        };
        let expected = self.pins.expected_of(&self.peer).map_err(|error| because(error.into()))?;
        let (stream, shown) = tls::connect(address, &self.key, expected)
            .await
            .map_err(|error| because(error.into()))?;
        match self.pins.admit(&self.peer, shown).map_err(|error| because(error.into()))? {
            Admission::Admitted => {}
            Admission::PinnedNow => {
                let fingerprint = shown.fingerprint();
                tracing::info!(peer = %self.peer, key = %shown, fingerprint, "first contact: key pinned; any other is refused from now on");
            }
            Admission::Refused(refusal) => return Err(because(refusal.into())),
        }
        Ok(Box::new(stream))
    }
}

impl Dial for TlsDialer {
    fn dial(&self) -> Dialing<'_> {
        let address = self.address.lock().expect("no panic while it is held").clone();
        Box::pin(async move { self.connect(&address).await })
    }
}
