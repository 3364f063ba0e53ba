//! What is asked of the daemons' graveyards, and what they tell. Fields are only ever added.

use std::path::PathBuf;

use mailtwin_logic::{
    graveyard::{GraveReport, Wanted},
    ids::{Account, Uid},
    mailbox::MailboxName,
};
use serde::{Deserialize, Serialize};

/// What lies in the graveyard, of what was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GraveyardReport {
    /// Version of this shape.
    pub schema_version: u32,
    /// How many messages.
    pub count: u64,
    /// Their octets.
    pub octets: u64,
    /// Whether they were exported.
    pub done: bool,
    /// The first of them.
    pub entries: Vec<GraveReport>,
    /// What cannot be brought back, and why (of an undo only).
    #[serde(default)]
    pub left: Vec<String>,
}

/// Which messages are meant, as an admin says it; what is absent restricts nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GraveyardAsk {
    /// Whose.
    pub account: Option<String>,
    /// Of which mailbox, in the octets of the store.
    pub mailbox: Option<String>,
    /// With which UID.
    pub uid: Option<u32>,
    /// With which octets, by their SHA-1.
    pub guid: Option<String>,
    /// With which Message-ID.
    pub message_id: Option<String>,
    /// Expunged then or later, in milliseconds since 1970.
    pub since_ms: u64,
    /// Write them into files below this directory.
    pub export_to: Option<PathBuf>,
    /// Only say what would be done.
    pub dry_run: bool,
}

impl GraveyardAsk {
    /// What is meant.
    ///
    /// # Errors
    /// For humans, if one of the words is no name or number of its kind.
    pub fn wanted(&self) -> Result<Wanted, String> {
        let account = self.account.as_ref();
        let account = account.map(|text| Account::new(text).map_err(|e| format!("{text:?}: {e}")));
        let mailbox = self.mailbox.as_ref().map(|text| {
            let octets = if text.eq_ignore_ascii_case("inbox") { "" } else { text.as_str() };
            MailboxName::new(octets.as_bytes()).map_err(|e| format!("{text:?}: {e}"))
        });
        let guid = self.guid.as_ref();
        let guid = guid.map(|text| text.parse().map_err(|e| format!("{text:?} is no GUID: {e}")));
        let bare = |text: &String| text.trim_matches(['<', '>']).to_owned();
        Ok(Wanted {
            account: account.transpose()?,
            mailbox: mailbox.transpose()?,
            uid: self.uid.map(Uid),
            guid: guid.transpose()?,
            message_id: self.message_id.as_ref().map(bare),
            since_ms: self.since_ms,
        })
    }
}
