//! `/etc/mailtwin/mailtwin.toml`, of one shape for both daemons: read, checked, and every problem
//! reported at once, in file order, each at its line and key.
//!
//! The text is parsed into TOML's own values with their places, never straight into structures: so
//! one wrong type does not hide the next problem.

mod check;
mod table;
mod unit;

use std::{
    collections::BTreeMap,
    fmt, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use mailtwin_cyrus::Login;
pub use mailtwin_cyrus::Place;
use mailtwin_disk::DiskError;
use mailtwin_logic::ids::Account;
use serde::{Deserialize, Serialize};

use crate::keys::PublicKey;

/// Where the file is unless the command line says otherwise.
pub const DEFAULT_PATH: &str = "/etc/mailtwin/mailtwin.toml";

/// The version of the file's shape that this program reads: its `config_version`.
pub const VERSION: i64 = 1;

/// The whole file, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The file it came from.
    pub file: PathBuf,
    /// `[node]`: who we are, and where our own state is.
    pub node: Node,
    /// `[store]`: the mail.
    pub store: Store,
    /// `[cyrus]`: the Cyrus beside us; there if and only if the engine is [`Engine::Cyrus`].
    pub cyrus: Option<Cyrus>,
    /// `[log]`: the sync log.
    pub log: Log,
    /// `[scan]`: the search for changes that nobody told us of.
    pub scan: Scan,
    /// `[brake]`: what may vanish without an admin's leave.
    pub brake: Brake,
    /// `[check]`: what is compared in the background.
    pub check: Check,
    /// `[replica]`: the replica daemon.
    pub replica: Replica,
    /// `[metrics]`: where /metrics is served.
    pub metrics: Metrics,
    /// `[[peer]]`: the other nodes, in file order. Names and keys are unique.
    pub peers: Vec<Peer>,
    /// `[gate]`: commands that stop and reopen mail access.
    pub gate: Gate,
    /// `[incident] command`: tells the admin of what happened by itself.
    pub incident: Option<String>,
    /// `[canary]`: a message that is sent to see that mail arrives.
    pub canary: Option<Canary>,
}

/// `[node]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// 1 to 64 letters, digits, `.`, `-`, `_`, beginning with a letter or digit.
    pub name: String,
    /// Absolute. node.json, keys, sync log, index.
    pub state_dir: PathBuf,
    /// Absolute. The admin sockets.
    pub run_dir: PathBuf,
    /// What is logged: a level, and levels for single targets, `info,mailtwin_agent=debug`.
    pub log: String,
}

/// `[store]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Store {
    /// Kind of store.
    pub engine: Engine,
    /// Where an account's mail is: an absolute path with `{user}`, `{domain}` or `{path}` in
    /// it, or one without for a single account. Empty only for [`Engine::Memory`]. For
    /// [`Engine::Cyrus`] the directory of the default partition.
    pub root: String,
    /// How mailboxes lie within it.
    pub layout: Layout,
    /// Where an account's other files (Sieve scripts) are, with the same variables.
    pub home: Option<String>,
    /// Where messages are staged: absolute, on the file system of `root`.
    pub work_dir: Option<PathBuf>,
    /// Nothing in the store is ever written, not even the mail server's own list of UIDs.
    pub read_only: bool,
}

/// Kind of store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// Maildir, shared with the mail server.
    Maildir,
    /// In memory: for tests.
    Memory,
    /// A Cyrus, spoken to over its replication protocol.
    Cyrus,
}

/// `[cyrus]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cyrus {
    /// Where `imapd` listens.
    pub imap: Place,
    /// Where `sync_server` listens.
    pub csync: Place,
    /// A userid that stands in `admins` of imapd.conf.
    pub user: String,
    /// Absolute. A file whose first line is their password.
    pub password_file: PathBuf,
    /// Absolute. A file with the certificate that both ports show; without it nothing is encrypted.
    pub certificate: Option<PathBuf>,
    /// Absolute. The directory of our own channel of Cyrus's sync log.
    pub channel: PathBuf,
}

impl Cyrus {
    /// Reads the password.
    pub fn login(&self) -> Result<Login, DiskError> {
        let text = std::fs::read_to_string(&self.password_file);
        let failed = DiskError::during("read `cyrus.password_file`", &self.password_file);
        let password = text.map_err(failed)?.lines().next().unwrap_or_default().to_owned();
        let (user, certificate) = (self.user.clone(), self.certificate.clone());
        Ok(Login { user, password, certificate })
    }
}

/// How mailboxes lie in an account's directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `.Work.Sub`, beside INBOX's `cur`.
    MaildirPlusPlus,
    /// `Work/Sub`, Dovecot's `LAYOUT=fs`.
    Fs,
}

/// `[log]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// Most octets the log may take; a replica that falls behind further is reseeded.
    pub bound: u64,
}

/// `[scan]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scan {
    /// Time between two scans of the whole store.
    pub interval: Duration,
}

/// `[check]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// In which time every message is read once, on both sides; zero: not at all.
    pub scrub: Duration,
    /// Octets read per second on each side, at most.
    pub rate: u64,
}

/// `[brake]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Brake {
    /// Messages of one account, beyond those of the mailbox that loses most.
    pub messages: u64,
    /// Mailboxes of one account.
    pub mailboxes: u64,
    /// Accounts.
    pub accounts: u64,
    /// Percent, 1 to 100.
    pub share: u8,
    /// Length of the window.
    pub within: Duration,
}

/// `[replica]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica {
    /// Where masters connect to.
    pub listen: SocketAddr,
    /// How long expunged messages are kept; zero: not at all.
    pub graveyard: Duration,
}

/// `[metrics]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metrics {
    /// The agent's; `None` for `"off"`.
    pub agent: Option<SocketAddr>,
    /// The replica daemon's; `None` for `"off"`.
    pub replica: Option<SocketAddr>,
}

/// One `[[peer]]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Peer {
    /// Its node name; never our own.
    pub name: String,
    /// `host:port`, resolved at each connect.
    pub address: String,
    /// Its keys; empty: pinned at first contact.
    pub keys: Vec<PublicKey>,
}

/// `[gate]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gate {
    /// Stops mail access and delivery on this node.
    pub close: Option<String>,
    /// Reopens them.
    pub open: Option<String>,
}

/// `[canary]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Canary {
    /// Whom it is sent to: an account that nobody uses. An address, too.
    pub account: Account,
    /// Where the mail server of this machine takes mail by LMTP.
    pub lmtp: Place,
    /// Time between two of them; zero: only when it is asked for.
    pub interval: Duration,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("read {path}", path = path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// What is wrong in it, in file order, one per line.
    #[error("{}", lines(.0))]
    Invalid(Vec<ConfigProblem>),
}

/// One thing wrong, at one key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {key}: {problem}")]
pub struct ConfigProblem {
    /// The file, as it was given.
    pub file: String,
    /// Counted from 1.
    pub line: usize,
    /// `section.key`, or `syntax`.
    pub key: String,
    /// What is wrong, and what would be right.
    pub problem: String,
}

impl Config {
    /// Reads and checks `path`.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let read = |source| ConfigError::Read { path: path.to_owned(), source };
        let octets = std::fs::read(path).map_err(read)?;
        let text = String::from_utf8(octets).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            let before = error.as_bytes().iter().take(at);
            ConfigError::Invalid(vec![ConfigProblem {
                file: path.display().to_string(),
                line: before.filter(|&&octet| octet == b'\n').count() + 1,
                key: "syntax".to_owned(),
                problem: "the text is not UTF-8".to_owned(),
            }])
        })?;
        Self::parse(path, &text).map_err(ConfigError::Invalid)
    }

    /// Checks `text`, which stands in `path`.
    pub fn parse(path: &Path, text: &str) -> Result<Self, Vec<ConfigProblem>> {
        check::parse(path, text)
    }

    /// The peer of this name.
    pub fn peer(&self, name: &str) -> Option<&Peer> {
        self.peers.iter().find(|peer| peer.name == name)
    }

    /// The keys whose values differ in `new`, for a reload to report: `node.log`, `peer mx2`.
    pub fn changed_keys(&self, new: &Self) -> Vec<String> {
        let (old, new) = (self.values(), new.values());
        let keys = old.keys().chain(new.keys().filter(|&key| !old.contains_key(key)));
        keys.filter(|&key| old.get(key) != new.get(key)).cloned().collect()
    }

    /// Every key with its value in a form that is only good for comparing.
    fn values(&self) -> BTreeMap<String, String> {
        let fixed: [(&str, &dyn fmt::Debug); 22] = [
            ("node.name", &self.node.name),
            ("node.state_dir", &self.node.state_dir),
            ("node.run_dir", &self.node.run_dir),
            ("node.log", &self.node.log),
            ("store.engine", &self.store.engine),
            ("store.root", &self.store.root),
            ("store.layout", &self.store.layout),
            ("store.home", &self.store.home),
            ("store.work_dir", &self.store.work_dir),
            ("store.read_only", &self.store.read_only),
            ("cyrus", &self.cyrus),
            ("log.bound", &self.log.bound),
            ("scan.interval", &self.scan.interval),
            ("brake", &self.brake),
            ("check", &self.check),
            ("replica.listen", &self.replica.listen),
            ("replica.graveyard", &self.replica.graveyard),
            ("metrics.agent", &self.metrics.agent),
            ("metrics.replica", &self.metrics.replica),
            ("gate", &self.gate),
            ("incident.command", &self.incident),
            ("canary", &self.canary),
        ];
        let fixed = fixed.into_iter().map(|(key, value)| (key.to_owned(), format!("{value:?}")));
        let peers = self.peers.iter().map(|p| (format!("peer {}", p.name), format!("{p:?}")));
        fixed.chain(peers).collect()
    }
}

/// Checks a peer's name and address by this file's rules; `Err` says what would be right.
pub fn check_peer(name: &str, address: &str) -> Result<(), String> {
    check::peer(name, address)
}

/// Reads a duration as this file has it, for command lines: `7d`, `1m 30s`, `10ms`.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    unit::duration(text).map_err(UnitError)
}

/// Reads a size as this file has it, in octets: `64MiB`, `10MB`.
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    unit::size(text).map_err(UnitError)
}

/// Text that is no duration or size; says which units there are.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UnitError(String);

fn lines(problems: &[ConfigProblem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests;
