//! Uploads Sieve scripts as clients do, by the protocol for that (RFC 5804). No maintained library speaks it.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpStream},
};

use anyhow::{Context as _, bail, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};

use crate::{dovecot::PASSWORD, lab::PATIENCE};

/// A user's connection.
#[derive(Debug)]
pub struct Client {
    replies: BufReader<TcpStream>,
    stream: TcpStream,
}

impl Client {
    /// Connects and logs in.
    pub fn open(server: SocketAddr, user: &str) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(server).context("connect to ManageSieve")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        let mut client = Self { replies: BufReader::new(stream.try_clone()?), stream };
        client.expect_ok("the greeting")?;
        let plain = STANDARD.encode(format!("\0{user}\0{PASSWORD}"));
        client.say(&format!("AUTHENTICATE \"PLAIN\" \"{plain}\""))?;
        Ok(client)
    }

    /// Stores a script under a name.
    pub fn put(&mut self, name: &str, script: &str) -> anyhow::Result<()> {
        self.say(&format!("PUTSCRIPT \"{name}\" {{{}+}}\r\n{script}", script.len()))
    }

    /// Makes a script the one that is run.
    pub fn activate(&mut self, name: &str) -> anyhow::Result<()> {
        self.say(&format!("SETACTIVE \"{name}\""))
    }

    fn say(&mut self, command: &str) -> anyhow::Result<()> {
        self.stream.write_all(format!("{command}\r\n").as_bytes())?;
        self.expect_ok(command)
    }

    fn expect_ok(&mut self, what: &str) -> anyhow::Result<()> {
        loop {
            let mut line = String::new();
            ensure!(self.replies.read_line(&mut line)? > 0, "{what}: the connection ended");
            match line.split([' ', '\r', '\n']).next() {
                Some("OK") => return Ok(()),
                Some("NO" | "BYE") => bail!("{what}: {line}"),
                _ => {} // a capability
            }
        }
    }
}
