//! TLS 1.3 between nodes: both ends show an Ed25519 key, and the pins say whose it is.
//!
//! There is no authority, no name and no date to check: a certificate only carries the key. That
//! its owner is at the other end is proven by the handshake's signature, which is always verified.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, ServerConfig,
    SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        NoServerSessionStorage, ParsedCertificate,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use tokio::{
    net::{TcpStream, lookup_host},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::{
    keys::{NodeKey, PublicKey},
    pins::Expected,
};

/// A connection between two nodes.
pub type Stream = tokio_rustls::TlsStream<TcpStream>;

/// How long one address may take to accept a connection; there may be others to try.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// How long a handshake may take.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// How long octets may stay unacknowledged before the connection counts as dead.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(30);
/// A silent connection is probed after this long, and then three times at this interval.
const PROBE_EVERY: Duration = Duration::from_secs(10);

/// What is spoken above TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Replication; its version is agreed on in the greeting.
    Mail,
    /// Word of a key: see [`crate::notice`].
    Keys,
}

impl Protocol {
    const ALL: [Self; 2] = [Self::Mail, Self::Keys];

    /// Its name in the handshake.
    fn name(self) -> &'static [u8] {
        match self {
            Self::Mail => b"mailtwin",
            Self::Keys => b"mailtwin-keys",
        }
    }

    /// What the two ends of `stream` have agreed on.
    pub fn of(stream: &Stream) -> Self {
        let (_, agreed) = stream.get_ref();
        let is_agreed = |it: &Self| agreed.alpn_protocol() == Some(it.name());
        Self::ALL.into_iter().find(is_agreed).unwrap_or(Self::Mail)
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The name leads nowhere.
    #[error("look up {address}")]
    Lookup {
        /// As configured.
        address: String,
        /// Cause.
        source: io::Error,
    },
    /// Nobody accepts connections there.
    #[error("connect to {address}")]
    Connect {
        /// The last address tried.
        address: String,
        /// Cause.
        source: io::Error,
    },
    /// It did not finish the handshake in time.
    #[error("{address} did not finish the TLS handshake within {} s", .after.as_secs())]
    Silent {
        /// Who.
        address: String,
        /// The limit.
        after: Duration,
    },
    /// It showed a key that nobody has.
    #[error(
        "{address} showed the key {shown} (fingerprint {}), which is pinned for no peer that may be \
         there; if a peer's key was made anew, compare it with what `replctl keys show` prints there, \
         then run `replctl keys pin PEER {shown}`", .shown.fingerprint()
    )]
    WrongKey {
        /// Who.
        address: String,
        /// The key it showed.
        shown: PublicKey,
    },
    /// It does not speak TLS 1.3, or not with an Ed25519 key, or it refused our key.
    #[error("shake hands with {address}")]
    Handshake {
        /// Who.
        address: String,
        /// Cause.
        source: io::Error,
    },
    /// Our own key cannot be used.
    #[error("set up TLS with this node's key")]
    Setup(#[from] rustls::Error),
}

/// Connects to `address`, `host:port`, and shakes hands; the key is what the peer has proven to
/// own. Ask [`crate::pins::Pins::admit`] about it before a word is said.
pub async fn connect(
    address: &str,
    own: &NodeKey,
    expected: Expected,
) -> Result<(Stream, PublicKey), TlsError> {
    connect_for(Protocol::Mail, address, own, expected).await
}

/// The same, to speak `protocol`.
pub async fn connect_for(
    protocol: Protocol,
    address: &str,
    own: &NodeKey,
    expected: Expected,
) -> Result<(Stream, PublicKey), TlsError> {
    let pinned = Arc::new(Pinned::new(expected));
    let config = client_config(protocol, own, Arc::clone(&pinned))?;
    let (socket, at) = dial(address).await?;
    // The name is not sent and means nothing: keys do.
    let name = ServerName::IpAddress(at.ip().into());
    let shake = TlsConnector::from(Arc::new(config)).connect(name, socket);
    let shaken = timeout(HANDSHAKE_WITHIN, shake).await;
    pinned.judge(shaken.map(|shaken| shaken.map(Stream::from)), address)
}

/// Shakes hands with whoever connected.
pub async fn accept(
    socket: TcpStream,
    own: &NodeKey,
    expected: Expected,
) -> Result<(Stream, PublicKey), TlsError> {
    let address = socket.peer_addr().map_or_else(|_| "a peer".into(), |peer| peer.to_string());
    let pinned = Arc::new(Pinned::new(expected));
    let config = server_config(own, Arc::clone(&pinned))?;
    tune(&socket).map_err(|source| TlsError::Connect { address: address.clone(), source })?;
    let shake = TlsAcceptor::from(Arc::new(config)).accept(socket);
    let shaken = timeout(HANDSHAKE_WITHIN, shake).await;
    pinned.judge(shaken.map(|shaken| shaken.map(Stream::from)), &address)
}

/// Whether a broken connection broke because the peer does not know this node's key: in TLS 1.3 a
/// client hears of that only when it first reads.
pub fn is_key_refusal(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(inner, Some(rustls::Error::AlertReceived(rustls::AlertDescription::AccessDenied)))
}

async fn dial(address: &str) -> Result<(TcpStream, SocketAddr), TlsError> {
    let lookup = |source| TlsError::Lookup { address: address.to_owned(), source };
    let silent = || io::Error::from(io::ErrorKind::TimedOut);
    let found = timeout(CONNECT_WITHIN, lookup_host(address)).await;
    let found = found.unwrap_or_else(|_| Err(silent())).map_err(lookup)?;
    let mut last = lookup(io::ErrorKind::NotFound.into());
    for at in found {
        let socket = timeout(CONNECT_WITHIN, TcpStream::connect(at)).await;
        let socket = socket.unwrap_or_else(|_| Err(silent()));
        match socket.and_then(|socket| tune(&socket).map(|()| socket)) {
            Ok(socket) => return Ok((socket, at)),
            Err(source) if at.to_string() == address => {
                last = TlsError::Connect { address: address.to_owned(), source };
            }
            Err(source) => {
                last = TlsError::Connect { address: format!("{address} ({at})"), source };
            }
        }
    }
    Err(last)
}

/// Small frames leave at once, and a peer that vanished without a word is noticed.
fn tune(socket: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;

    socket.set_nodelay(true)?;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, PROBE_EVERY)?;
    sockopt::set_tcp_keepintvl(socket, PROBE_EVERY)?;
    sockopt::set_tcp_keepcnt(socket, 3)?;
    let limit_ms = u32::try_from(UNACKNOWLEDGED_MAX.as_millis()).unwrap_or(u32::MAX);
    Ok(sockopt::set_tcp_user_timeout(socket, limit_ms)?)
}

fn client_config(
    protocol: Protocol,
    own: &NodeKey,
    pinned: Arc<Pinned>,
) -> Result<ClientConfig, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous() // of our own: `Pinned` below is the whole of it
        .with_custom_certificate_verifier(pinned)
        .with_client_auth_cert(vec![own.certificate()], own.private())?;
    config.enable_sni = false;
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![protocol.name().to_vec()];
    Ok(config)
}

fn server_config(own: &NodeKey, pinned: Arc<Pinned>) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(pinned)
        .with_single_cert(vec![own.certificate()], own.private())?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0; // every connection proves its key anew
    config.alpn_protocols = Protocol::ALL.map(|it| it.name().to_vec()).to_vec();
    Ok(config)
}

/// AES-128 first: a third faster than AES-256, and no weaker link in a chain of 128-bit curves.
fn provider() -> Arc<CryptoProvider> {
    let cipher_suites = vec![
        ring::cipher_suite::TLS13_AES_128_GCM_SHA256,
        ring::cipher_suite::TLS13_AES_256_GCM_SHA384,
        ring::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    Arc::new(CryptoProvider { cipher_suites, ..ring::default_provider() })
}

/// The rule of one handshake, and the key it was shown.
#[derive(Debug)]
struct Pinned {
    expected: Expected,
    shown: Mutex<Option<PublicKey>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Pinned {
    fn new(expected: Expected) -> Self {
        let algorithms = ring::default_provider().signature_verification_algorithms;
        Self { expected, shown: Mutex::new(None), algorithms }
    }

    fn allows(&self, key: PublicKey) -> bool {
        match &self.expected {
            Expected::Any => true,
            Expected::OneOf(keys) => keys.contains(&key),
        }
    }

    /// Reads the key from a certificate and holds it against the pins. Ownership is proven by the
    /// signature that follows.
    fn look(&self, certificate: &CertificateDer<'_>) -> Result<(), rustls::Error> {
        let parsed = ParsedCertificate::try_from(certificate)?;
        let key = PublicKey::from_spki(&parsed.subject_public_key_info())
            .ok_or(CertificateError::BadEncoding)?;
        *self.shown.lock().expect("no panic while it is held") = Some(key);
        if self.allows(key) {
            return Ok(());
        }
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    fn verify(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    /// What became of the handshake.
    fn judge(
        &self,
        shaken: Result<io::Result<Stream>, tokio::time::error::Elapsed>,
        address: &str,
    ) -> Result<(Stream, PublicKey), TlsError> {
        let address = address.to_owned();
        let shown = *self.shown.lock().expect("no panic while it is held");
        let wrong = shown.filter(|&key| !self.allows(key));
        match (shaken, shown) {
            (Err(_), _) => Err(TlsError::Silent { address, after: HANDSHAKE_WITHIN }),
            (Ok(Ok(stream)), Some(key)) => Ok((stream, key)),
            (Ok(Ok(_)), None) => {
                let source = io::Error::other("it showed no key");
                Err(TlsError::Handshake { address, source })
            }
            (Ok(Err(source)), _) => Err(match wrong {
                Some(shown) => TlsError::WrongKey { address, shown },
                None => TlsError::Handshake { address, source },
            }),
        }
    }
}

/// TLS 1.2 is not compiled in; should it ever be, nothing passes.
fn never() -> rustls::Error {
    rustls::PeerIncompatible::ServerDoesNotSupportTls12Or13.into()
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.look(end_entity).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(never())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verify(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

impl ClientCertVerifier for Pinned {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.look(end_entity).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(never())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verify(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

#[cfg(test)]
mod tests;
