//! TLS with the one server that has a certificate we know.
//!
//! No name and no authority has to be trusted: the server beside us shows the certificate that its own
//! configuration names, and anything else is refused before a password is sent.

use std::{fmt, fs, io, path::Path, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, Error,
    SignatureScheme, StreamOwned,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{self, WebPkiSupportedAlgorithms, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _},
    version::TLS13,
};

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file cannot be read.
    #[error("read `cyrus.certificate` {path}")]
    Read {
        /// Which.
        path: String,
        /// Cause.
        source: io::Error,
    },
    /// The file holds none.
    #[error("`cyrus.certificate` {path} holds no certificate in PEM")]
    Certificate {
        /// Which.
        path: String,
    },
    /// It shows another one.
    #[error(
        "the server has another certificate than `cyrus.certificate` {path}; was it restarted since that has changed?"
    )]
    Other {
        /// Which.
        path: String,
    },
    /// The two do not agree on how to talk.
    #[error("TLS 1.3 with the server")]
    Handshake(#[source] io::Error),
}

/// Encrypts a connection with the server that has the first certificate in the file at `path`.
pub(crate) fn encrypt<S: io::Read + io::Write>(
    mut stream: S,
    path: &Path,
) -> Result<StreamOwned<ClientConnection, S>, TlsError> {
    let shown = || path.display().to_string();
    let text = fs::read(path).map_err(|source| TlsError::Read { path: shown(), source })?;
    let known = CertificateDer::from_pem_slice(&text);
    let known = known.map_err(|_| TlsError::Certificate { path: shown() })?;
    let provider = Arc::new(crypto::ring::default_provider());
    let algorithms = provider.signature_verification_algorithms;
    let failed = |error: Error| TlsError::Handshake(io::Error::other(error));
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(failed)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Known { certificate: known, algorithms }))
        .with_no_client_auth();
    let name = ServerName::from(std::net::IpAddr::from([127, 0, 0, 1]));
    let mut connection = ClientConnection::new(Arc::new(config), name).map_err(failed)?;
    while connection.is_handshaking() {
        connection.complete_io(&mut stream).map_err(|error| {
            let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<Error>());
            match cause {
                Some(Error::InvalidCertificate(_)) => TlsError::Other { path: shown() },
                _ => TlsError::Handshake(error),
            }
        })?;
    }
    Ok(StreamOwned::new(connection, stream))
}

/// Takes this certificate and no other.
struct Known {
    certificate: CertificateDer<'static>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl fmt::Debug for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Known")
    }
}

impl ServerCertVerifier for Known {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if *end_entity == self.certificate {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("only TLS 1.3 is offered".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
