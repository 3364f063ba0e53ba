//! Delivery by LMTP (RFC 2033), as a mail transfer agent would. No maintained library speaks it.

use std::{
    io::{BufReader, Write as _},
    net::{SocketAddr, TcpStream},
};

use anyhow::{Context as _, bail};

use crate::lab::PATIENCE;

/// Delivers one message to one account; returns once the server has accepted it.
pub fn deliver(server: SocketAddr, account: &str, message: &[u8]) -> anyhow::Result<()> {
    let stream = TcpStream::connect(server).context("connect")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut replies = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    expect(&mut replies, "220")?;
    let commands = [
        ("LHLO client.example.org".to_owned(), "250"),
        ("MAIL FROM:<sender@example.org>".to_owned(), "250"),
        (format!("RCPT TO:<{account}>"), "250"),
        ("DATA".to_owned(), "354"),
    ];
    for (command, reply) in commands {
        stream.write_all(format!("{command}\r\n").as_bytes())?;
        expect(&mut replies, reply).with_context(|| command)?;
    }
    stream.write_all(&stuffed(message))?;
    stream.write_all(b".\r\n")?;
    expect(&mut replies, "250").context("after the message")?;
    stream.write_all(b"QUIT\r\n")?;
    Ok(())
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

/// Reads a reply, which may go over several lines.
fn expect(replies: &mut impl std::io::BufRead, code: &str) -> anyhow::Result<()> {
    loop {
        let mut line = String::new();
        if replies.read_line(&mut line)? == 0 {
            bail!("the server closed the connection");
        }
        if !line.starts_with(code) {
            bail!("the server said {}", line.trim_end());
        }
        if line.as_bytes().get(3) != Some(&b'-') {
            return Ok(());
        }
    }
}
