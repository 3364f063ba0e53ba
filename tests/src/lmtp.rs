//! Delivery by LMTP (RFC 2033), as a mail transfer agent would. No maintained library speaks it.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpStream},
};

use anyhow::{Context as _, bail};

use crate::lab::PATIENCE;

/// The server ended the connection before it answered: the message is not accepted, but may be there
/// (RFC 2033 section 4.2; a mail transfer agent keeps such a message and tries again).
#[derive(Debug, thiserror::Error)]
#[error("the server closed the connection")]
pub struct Dropped;

/// Delivers one message to one account; returns once the server has accepted it.
pub fn deliver(server: SocketAddr, account: &str, message: &[u8]) -> anyhow::Result<()> {
    let mut connection = Connection::open(server)?;
    connection.deliver(account, message)?;
    connection.say("QUIT", "221")
}

/// Whether a server would take a message now.
pub fn takes_mail(server: SocketAddr) -> anyhow::Result<bool> {
    let mut connection = Connection::open(server)?;
    Ok(connection.say("MAIL FROM:<sender@example.org>", "250").is_ok())
}

/// A connection that delivers one message after the other.
#[derive(Debug)]
pub struct Connection {
    replies: BufReader<TcpStream>,
    stream: TcpStream,
}

impl Connection {
    /// Connects and greets.
    pub fn open(server: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(server).context("connect")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        let mut connection = Self { replies: BufReader::new(stream.try_clone()?), stream };
        connection.expect("220")?;
        connection.say("LHLO client.example.org", "250")?;
        Ok(connection)
    }

    /// Delivers one message to one account; returns once the server has accepted it.
    pub fn deliver(&mut self, account: &str, message: &[u8]) -> anyhow::Result<()> {
        self.begin(account)?;
        self.finish(message)
    }

    /// The first half of that: the server waits for the message.
    pub fn begin(&mut self, account: &str) -> anyhow::Result<()> {
        self.say("MAIL FROM:<sender@example.org>", "250")?;
        self.say(&format!("RCPT TO:<{account}>"), "250")?;
        self.say("DATA", "354")
    }

    /// The second half.
    pub fn finish(&mut self, message: &[u8]) -> anyhow::Result<()> {
        let mut octets = stuffed(message);
        octets.extend_from_slice(b".\r\n");
        self.stream.write_all(&octets)?;
        self.expect("250").context("after the message")
    }

    fn say(&mut self, command: &str, code: &str) -> anyhow::Result<()> {
        self.stream.write_all(format!("{command}\r\n").as_bytes())?;
        self.expect(code).with_context(|| command.to_owned())
    }

    /// Reads a reply, which may go over several lines.
    fn expect(&mut self, code: &str) -> anyhow::Result<()> {
        loop {
            let mut line = String::new();
            if self.replies.read_line(&mut line)? == 0 {
                return Err(Dropped.into());
            }
            if !line.starts_with(code) {
                bail!("the server said {}", line.trim_end());
            }
            if line.as_bytes().get(3) != Some(&b'-') {
                return Ok(());
            }
        }
    }
}

/// The message with dots doubled at line starts and a line end at its end (RFC 5321 section 4.5.2).
fn stuffed(message: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.len() + 2);
    for line in message.split_inclusive(|&octet| octet == b'\n') {
        if line.starts_with(b".") {
            out.push(b'.');
        }
        out.extend_from_slice(line);
    }
    if !out.ends_with(b"\n") {
        out.extend_from_slice(b"\r\n");
    }
    out
}
