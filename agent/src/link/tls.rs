//! Dials a replica over TLS, and lets it in only with a key that is its own.

use std::{fmt, sync::Arc};

use mailtwin_host::{
    keyring::KeyRing,
    notice,
    peers::Peers,
    pins::{Admission, Expected, Pins, Refusal},
    tls::{self, Protocol, TlsError},
};
use mailtwin_logic::{
    chain::Chain,
    wire::notice::{KeyAnswer, KeyNotice},
};

use super::dial::{Dial, DialError, Dialing, Io};

/// Makes dialers.
#[derive(Clone, Debug)]
pub struct Dialers {
    /// Where the peers are.
    pub peers: Arc<Peers>,
    /// This node's key.
    pub key: Arc<KeyRing>,
    /// Theirs.
    pub pins: Arc<Pins>,
}

impl Dialers {
    /// Calls `peer` to tell it of a key; the error says why it does not know.
    pub(crate) async fn tell(&self, peer: &str, notice: &KeyNotice) -> Result<KeyAnswer, String> {
        let dialer = TlsDialer { peer: peer.to_owned(), with: self.clone() };
        let stream = dialer.connect(Protocol::Keys).await;
        let stream = stream.map_err(|error| Chain(&error).to_string())?;
        notice::tell(stream, notice).await.map_err(|error| Chain(&error).to_string())
    }

    /// For one peer, wherever it is said to be at each attempt.
    pub fn to(&self, peer: &str) -> Arc<dyn Dial> {
        Arc::new(TlsDialer { peer: peer.to_owned(), with: self.clone() })
    }
}

/// Reaches one peer.
struct TlsDialer {
    peer: String,
    with: Dialers,
}

impl fmt::Debug for TlsDialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TlsDialer({})", self.peer)
    }
}

impl TlsDialer {
    async fn connect(&self, protocol: Protocol) -> Result<tls::Stream, DialError> {
        let Dialers { peers, key, pins } = &self.with;
        let peer = peers
            .get(&self.peer)
            .map_err(|error| DialError { address: self.peer.clone(), source: error.into() })?;
        let address = peer.address.as_str();
        let because = |source: Box<dyn std::error::Error + Send + Sync>| DialError {
            address: address.to_owned(),
            source,
        };
        let expected = pins.expected_of(&self.peer).map_err(|error| because(error.into()))?;
        let (stream, shown) =
            match tls::connect_for(protocol, address, &key.now(), expected.clone()).await {
                Ok(shaken) => shaken,
                Err(error) => return Err(because(self.refusal(error, expected))),
            };
        match pins.admit(&self.peer, shown).map_err(|error| because(error.into()))? {
            Admission::Admitted => {}
            Admission::PinnedNow => {
                let fingerprint = shown.fingerprint();
                tracing::info!(peer = %self.peer, key = %shown, fingerprint, "first contact: key pinned; any other is refused from now on");
            }
            Admission::Refused(refusal) => return Err(because(refusal.into())),
        }
        Ok(stream)
    }

    /// A key that TLS refused is told of by the name of its owner, with what to type.
    fn refusal(
        &self,
        error: TlsError,
        expected: Expected,
    ) -> Box<dyn std::error::Error + Send + Sync> {
        match (error, expected) {
            (TlsError::WrongKey { shown, .. }, Expected::OneOf(expected)) => {
                Refusal::OtherKey { peer: self.peer.clone(), shown, expected }.into()
            }
            (error, _) => error.into(),
        }
    }
}

impl Dial for TlsDialer {
    fn dial(&self) -> Dialing<'_> {
        Box::pin(async {
            self.connect(Protocol::Mail).await.map(|stream| Box::new(stream) as Box<dyn Io>)
        })
    }
}
