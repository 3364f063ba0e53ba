//! A mail server of a lab, of whatever kind: what clusters, the oracle and workloads need of one.

use std::{collections::BTreeMap, fmt::Debug, net::SocketAddr};

use crate::{gate::Hook, imap::Imap, lab::Lab, random::Random};

/// A Dovecot or a Cyrus.
pub trait Server: Debug + Send + Sync {
    /// What failures call it.
    fn name(&self) -> &str;

    /// Lets an account log in and, where mail comes in, gives it an INBOX.
    fn add_account(&self, account: &str, is_master: bool) -> anyhow::Result<()>;

    /// An IMAP session.
    fn imap(&self, account: &str) -> anyhow::Result<Imap>;

    /// Delivers a message by LMTP.
    fn deliver(&self, account: &str, message: &[u8]) -> anyhow::Result<()>;

    /// Where it takes deliveries.
    fn lmtp_address(&self) -> SocketAddr;

    /// What stands between the parts of a mailbox's name.
    fn separator(&self) -> char;

    /// Whether it takes clients and deliveries in.
    fn is_open(&self) -> bool;

    /// The hook that closes and opens it.
    fn hook(&self) -> anyhow::Result<Hook>;

    /// The sections of a node's configuration that tell of its store.
    fn store_config(&self) -> String;

    /// Whether an account's INBOX is there, found out without making it.
    fn has_inbox(&self, account: &str) -> bool;

    /// Sieve scripts, the active one, access rights and what else is replicated beside messages.
    fn beside_messages(&self, account: &str) -> anyhow::Result<BTreeMap<String, String>>;

    /// Writes or removes one of an account's Sieve scripts, or makes it the active one, as its
    /// editor would; says what it did.
    fn edit_script(&self, account: &str, random: &mut Random) -> anyhow::Result<String>;

    /// The identity that it gave a mailbox, which stays over a change of name.
    fn identity(&self, account: &str, mailbox: &str) -> anyhow::Result<String>;

    /// The serial number of every message of an account, by the SHA-1 of its octets as it keeps them.
    fn serials_by_guid(&self, account: &str) -> anyhow::Result<BTreeMap<String, String>>;

    /// Whether IMAP can be believed when it shows `shown` messages of an account.
    fn shows_all(&self, account: &str, shown: usize) -> anyhow::Result<bool>;

    /// Stops it; what it wrote stays.
    fn stop(&mut self) -> anyhow::Result<()>;

    /// Starts it again.
    fn resume(&mut self, lab: &Lab) -> anyhow::Result<()>;
}
