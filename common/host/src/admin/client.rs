//! `replctl`'s side of the admin socket.

use std::{
    io,
    path::{Path, PathBuf},
};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::UnixStream,
};

use super::{FailureCode, LINE_MAX, Request, Response};

/// Calls one daemon.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// Nobody listens.
    #[error("no daemon answers at {socket}: is it running?", socket = socket.display())]
    NoDaemon {
        /// Where it should.
        socket: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The socket may not be opened by this user.
    #[error(
        "open {socket}: permission denied; run as root or as a member of the socket's group",
        socket = socket.display()
    )]
    Denied {
        /// Which.
        socket: PathBuf,
    },
    /// The conversation broke.
    #[error("talk to the daemon at {socket}", socket = socket.display())]
    Io {
        /// Where.
        socket: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// What came is no answer.
    #[error("the daemon at {socket} answered what this replctl does not know: are both of one version?", socket = socket.display())]
    Answer {
        /// Where.
        socket: PathBuf,
    },
    /// It may not be done.
    #[error("{message}")]
    Refused {
        /// Why.
        message: String,
    },
}

impl Client {
    /// Of the daemon at `socket`.
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// Asks; a refusal is an error, any other failure an answer.
    pub async fn call(&self, request: &Request) -> Result<Response, AdminError> {
        let socket = || self.socket.clone();
        let broke = |source| AdminError::Io { socket: socket(), source };
        let mut stream = UnixStream::connect(&self.socket).await.map_err(|source| {
            if source.kind() == io::ErrorKind::PermissionDenied {
                return AdminError::Denied { socket: socket() };
            }
            AdminError::NoDaemon { socket: socket(), source }
        })?;
        let mut line = serde_json::to_vec(request).map_err(|error| broke(error.into()))?;
        line.push(b'\n');
        stream.write_all(&line).await.map_err(broke)?;
        let mut answer = Vec::new();
        let mut reader = BufReader::new(stream).take(LINE_MAX as u64);
        reader.read_until(b'\n', &mut answer).await.map_err(broke)?;
        if answer.is_empty() {
            return Err(broke(io::ErrorKind::UnexpectedEof.into()));
        }
        match serde_json::from_slice(&answer) {
            Ok(Response::Failed { code: FailureCode::Refused, message }) => {
                Err(AdminError::Refused { message })
            }
            Ok(response) => Ok(response),
            Err(_) => Err(AdminError::Answer { socket: socket() }),
        }
    }
}
