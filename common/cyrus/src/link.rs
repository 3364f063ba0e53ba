//! A blocking connection to a server beside us, with a deadline for each command.
//!
//! An answer is read at once and to its end: a server that waits for its reader holds the mailbox's
//! lock meanwhile, and deliveries wait for that.

use std::{
    fmt,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use mailtwin_disk::clock::Clock;
use rustix::{io::Errno, net};
use rustls::{ClientConnection, StreamOwned};

use crate::{
    session::{Answer, Command, Dialect, Outcome, ProtocolError, Refusal, Session},
    tls::{self, TlsError},
};

/// Time in which a command must be answered in full.
pub const COMMAND_LIMIT: Duration = Duration::from_mins(2);

/// Time in which a connection must be there and greeted.
const OPEN_LIMIT: Duration = Duration::from_secs(10);

/// Octets read in one go.
const READ_OCTETS: usize = 256 << 10;

/// Where a server listens: `unix:/path`, or an address and port of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A socket in the file system.
    Unix(PathBuf),
    /// TCP on the loopback.
    Tcp(SocketAddr),
}

impl FromStr for Place {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = PathBuf::from(path);
            return if path.is_absolute() { Ok(Self::Unix(path)) } else { Err(PLACE_FORMS) };
        }
        let address: SocketAddr = text.parse().map_err(|_| PLACE_FORMS)?;
        if address.port() == 0 {
            return Err(PLACE_FORMS);
        }
        if !address.ip().is_loopback() {
            return Err("is not of this machine: use a loopback address or unix:/path");
        }
        Ok(Self::Tcp(address))
    }
}

const PLACE_FORMS: &str = "is neither unix:/path nor address:port, like 127.0.0.1:2005";

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => address.fmt(f),
        }
    }
}

/// Who we are to the server, and how we know that it is that one; never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// A userid that stands in `admins`.
    pub user: String,
    /// Their password.
    pub password: String,
    /// A file with the certificate that the server shows, in PEM: then nothing but the greeting and
    /// STARTTLS is said in the clear. Read with each connection, as certificates are renewed.
    pub certificate: Option<PathBuf>,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Login({})", self.user)
    }
}

/// Why a command has no answer.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The connection cannot be made.
    #[error("connect to Cyrus at {place}; is it running, and does it listen there?")]
    Connect {
        /// Where.
        place: Place,
        /// Cause.
        source: io::Error,
    },
    /// The connection broke, or the time was over.
    #[error("talk to Cyrus at {place}")]
    Lost {
        /// Where.
        place: Place,
        /// Cause.
        source: io::Error,
    },
    /// The server ended the connection by itself.
    #[error("talk to Cyrus at {place}: it ended the connection{why}")]
    Ended {
        /// Where.
        place: Place,
        /// What it said, with a colon before it; empty if it said nothing.
        why: String,
    },
    /// What came is not this protocol.
    #[error("talk to Cyrus at {place}")]
    Protocol {
        /// Where.
        place: Place,
        /// Cause.
        source: ProtocolError,
    },
    /// There is no TLS.
    #[error("encrypt what is said to Cyrus at {place}")]
    Tls {
        /// Where.
        place: Place,
        /// Cause.
        source: TlsError,
    },
    /// The server has no TLS.
    #[error(
        "encrypt what is said to Cyrus at {place}: {refusal}; set tls_server_cert and tls_server_key in imapd.conf"
    )]
    NoTls {
        /// Where.
        place: Place,
        /// What was said.
        refusal: Refusal,
    },
    /// We are not let in.
    #[error(
        "log in to Cyrus at {place} as {user:?}: {refusal}; the user must have this password and stand in `admins` of imapd.conf, and with `allowplaintext: no` there [cyrus] needs `certificate`"
    )]
    Login {
        /// Where.
        place: Place,
        /// As whom.
        user: String,
        /// What was said.
        refusal: Refusal,
    },
    /// The server will not do what it was asked.
    #[error("{0}")]
    Refused(Refusal),
}

impl LinkError {
    /// Whether the connection is good for further commands.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused(_))
    }

    /// Whether the server refused with this code.
    pub fn has_code(&self, code: &str) -> bool {
        matches!(self, Self::Refused(refusal) if refusal.is(code))
    }
}

/// A connection that has been greeted and let in.
pub struct Link {
    place: Place,
    stream: Stream,
    session: Session,
    clock: Arc<dyn Clock>,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Link({})", self.place)
    }
}

impl Link {
    /// Connects, encrypts if there is a certificate, and logs in. On csync's UNIX socket the server
    /// trusts us without all that.
    pub fn open(
        place: &Place,
        dialect: Dialect,
        login: &Login,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, LinkError> {
        let stream = Stream::connect(place);
        let stream =
            stream.map_err(|source| LinkError::Connect { place: place.clone(), source })?;
        let session = Session::new(dialect);
        let mut link = Self { place: place.clone(), stream, session, clock };
        link.answer(OPEN_LIMIT)?;
        if dialect == Dialect::Csync && matches!(place, Place::Unix(_)) {
            return Ok(link);
        }
        if let Some(certificate) = &login.certificate {
            link = link.encrypt(dialect, certificate)?;
        }
        let Login { user, password, .. } = login;
        match link.run(&Command::Login { user, password }) {
            Err(LinkError::Refused(refusal)) => {
                Err(LinkError::Login { place: link.place, user: user.clone(), refusal })
            }
            other => other.map(|_| link),
        }
    }

    fn encrypt(mut self, dialect: Dialect, certificate: &Path) -> Result<Self, LinkError> {
        let place = self.place.clone();
        match self.run(&Command::StartTls) {
            Err(LinkError::Refused(refusal)) => return Err(LinkError::NoTls { place, refusal }),
            other => other.map(drop)?,
        }
        let Self { stream, session, clock, .. } = self;
        let session = session.encrypted();
        let session =
            session.map_err(|source| LinkError::Protocol { place: place.clone(), source })?;
        stream
            .limit(OPEN_LIMIT)
            .map_err(|source| LinkError::Lost { place: place.clone(), source })?;
        let stream = stream.encrypt(certificate);
        let stream = stream.map_err(|source| LinkError::Tls { place: place.clone(), source })?;
        let mut link = Self { place, stream, session, clock };
        if dialect == Dialect::Csync {
            link.answer(OPEN_LIMIT)?;
        }
        Ok(link)
    }

    /// Carries out a command within [`COMMAND_LIMIT`]. After an error that is no refusal the
    /// connection is of no more use.
    pub fn run(&mut self, command: &Command<'_>) -> Result<Vec<Answer>, LinkError> {
        let wire = self.session.begin(command);
        self.stream.limit(COMMAND_LIMIT).map_err(|source| self.lost(source))?;
        self.stream.write_all(&wire).map_err(|source| self.lost(source))?;
        self.answer(COMMAND_LIMIT)
    }

    fn answer(&mut self, limit: Duration) -> Result<Vec<Answer>, LinkError> {
        let end = self.clock.monotonic() + limit;
        let mut buffer = vec![0; READ_OCTETS];
        loop {
            let left = end.saturating_sub(self.clock.monotonic());
            if left.is_zero() {
                return Err(self.lost(io::ErrorKind::TimedOut.into()));
            }
            self.stream.limit(left).map_err(|source| self.lost(source))?;
            let read = match self.stream.read(&mut buffer) {
                Ok(0) => {
                    return Err(LinkError::Ended { place: self.place.clone(), why: String::new() });
                }
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.lost(error)),
            };
            let outcome = self.session.receive(buffer.get(..read).unwrap_or_default());
            let place = self.place.clone();
            match outcome.map_err(|source| LinkError::Protocol { place, source })? {
                None => {}
                Some(Outcome::Done(answers)) => return Ok(answers),
                Some(Outcome::Refused(refusal)) => return Err(LinkError::Refused(refusal)),
                Some(Outcome::Closing(text)) => {
                    let place = self.place.clone();
                    return Err(LinkError::Ended { place, why: format!(": {text}") });
                }
            }
        }
    }

    fn lost(&self, source: io::Error) -> LinkError {
        LinkError::Lost { place: self.place.clone(), source }
    }
}

enum Stream {
    Clear(Socket),
    Encrypted(Box<StreamOwned<ClientConnection, Socket>>),
}

impl Stream {
    fn connect(place: &Place) -> io::Result<Self> {
        match place {
            Place::Unix(path) => connect_unix(path, OPEN_LIMIT).map(Socket::Unix),
            Place::Tcp(address) => {
                let stream = TcpStream::connect_timeout(address, OPEN_LIMIT)?;
                stream.set_nodelay(true)?;
                Ok(Socket::Tcp(stream))
            }
        }
        .map(Self::Clear)
    }

    fn encrypt(self, certificate: &Path) -> Result<Self, TlsError> {
        match self {
            Self::Clear(socket) => {
                Ok(Self::Encrypted(Box::new(tls::encrypt(socket, certificate)?)))
            }
            Self::Encrypted(_) => Ok(self),
        }
    }

    fn limit(&self, limit: Duration) -> io::Result<()> {
        let socket = match self {
            Self::Clear(socket) => socket,
            Self::Encrypted(stream) => stream.get_ref(),
        };
        match socket {
            Socket::Unix(stream) => {
                stream.set_read_timeout(Some(limit))?;
                stream.set_write_timeout(Some(limit))
            }
            Socket::Tcp(stream) => {
                stream.set_read_timeout(Some(limit))?;
                stream.set_write_timeout(Some(limit))
            }
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Clear(socket) => socket.read(buffer),
            Self::Encrypted(stream) => stream.read(buffer),
        }
    }

    fn write_all(&mut self, octets: &[u8]) -> io::Result<()> {
        match self {
            Self::Clear(socket) => socket.write_all(octets),
            Self::Encrypted(stream) => {
                stream.write_all(octets)?;
                stream.flush()
            }
        }
    }
}

/// Connects within `limit`. A server that takes no more connections, but whose socket is still open,
/// has a full queue: without a limit the kernel would wait for room in it for ever.
fn connect_unix(path: &Path, limit: Duration) -> io::Result<UnixStream> {
    let (family, kind) = (net::AddressFamily::UNIX, net::SocketType::STREAM);
    let socket = net::socket_with(family, kind, net::SocketFlags::CLOEXEC, None)?;
    net::sockopt::set_socket_timeout(&socket, net::sockopt::Timeout::Send, Some(limit))?;
    let address = net::SocketAddrUnix::new(path)?;
    match rustix::io::retry_on_intr(|| net::connect(&socket, &address)) {
        Ok(()) => Ok(UnixStream::from(socket)),
        Err(Errno::AGAIN) => {
            Err(io::Error::new(io::ErrorKind::TimedOut, "it takes no more connections"))
        }
        Err(error) => Err(error.into()),
    }
}

enum Socket {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl io::Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(buffer),
            Self::Tcp(stream) => {
                // An answer comes in several pieces, and the server waits with the next one until
                // the last is acknowledged: without this, 40 ms each. The kernel forgets it soon.
                net::sockopt::set_tcp_quickack(&*stream, true)?;
                stream.read(buffer)
            }
        }
    }
}

impl io::Write for Socket {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write(octets),
            Self::Tcp(stream) => stream.write(octets),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_servers_beside_us_have_a_place() {
        assert_eq!("127.0.0.1:2005".parse::<Place>().unwrap().to_string(), "127.0.0.1:2005");
        assert_eq!("unix:/run/c".parse::<Place>().unwrap().to_string(), "unix:/run/c");
        for bad in ["192.0.2.1:2005", "localhost:2005", "unix:c", "127.0.0.1:0", ""] {
            assert!(bad.parse::<Place>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_server_that_takes_no_connections_is_not_waited_for_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let (family, kind) = (net::AddressFamily::UNIX, net::SocketType::STREAM);
        let server = net::socket(family, kind, None).unwrap();
        net::bind(&server, &net::SocketAddrUnix::new(&path).unwrap()).unwrap();
        net::listen(&server, 0).unwrap();
        let _waits = connect_unix(&path, OPEN_LIMIT).unwrap();
        let error = connect_unix(&path, Duration::from_millis(20)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
        drop(server);
        let error = connect_unix(&path, OPEN_LIMIT).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{error}");
    }
}
