//! How a link gets its connection: over TLS to another machine, or within one process.

use std::{fmt, future::Future, pin::Pin};

use mailtwin_host::{codes::KeyTrouble, pins::Refusal};
use tokio::io::{AsyncRead, AsyncWrite};

/// Something frames can go over.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[error("reach {address}")]
pub struct DialError {
    /// Where to.
    pub address: String,
    /// Cause.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

impl DialError {
    /// Whether its key is why, and nothing else.
    pub(crate) fn key_trouble(&self) -> Option<KeyTrouble> {
        self.source.is::<Refusal>().then_some(KeyTrouble::PeerKeyChanged)
    }
}

/// A connection being made.
pub type Dialing<'a> = Pin<Box<dyn Future<Output = Result<Box<dyn Io>, DialError>> + Send + 'a>>;

/// Makes connections to one replica.
pub trait Dial: Send + Sync + fmt::Debug {
    /// Makes one.
    fn dial(&self) -> Dialing<'_>;
}
