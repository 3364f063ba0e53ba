//! Cyrus's own replication, and what it is compared by.

use std::{collections::BTreeMap, ffi::OsString, fs, path::PathBuf};

use anyhow::Context as _;
use mailtwin_cyrus::{Command, Value};

use super::{ADMIN, CHANNEL, Cyrus};
use crate::{dovecot::PASSWORD, files, lab::MAIL_USER};

/// A user's mailboxes by their internal names, each with UIDs and GUIDs of what is in it.
pub type Held = BTreeMap<String, BTreeMap<u64, String>>;

impl Cyrus {
    /// Its `sync_client` towards another Cyrus, with further arguments: a command that is to be run
    /// as root, and becomes Cyrus's user. Of the sync log it reads our channel.
    pub fn sync_client(&self, to: &Self, words: &[&str]) -> anyhow::Result<Vec<OsString>> {
        let own = self.dir.join("imapd.conf");
        let own = fs::read_to_string(&own).with_context(|| format!("read {}", own.display()))?;
        let config = self.dir.join(format!("sync-to-{}.conf", to.name));
        let port = to.csync;
        let lines = format!(
            "sync_host: 127.0.0.1\nsync_port: {port}\nsync_authname: {ADMIN}\n\
             sync_password: {PASSWORD}\nsync_try_imap: no\nsync_repeat_interval: 0s\n"
        );
        files::write(&config, format!("{own}{lines}"))?;
        // Among its processes, so that it ends with them: with `-r` it goes into the background.
        let target = fs::read_to_string(self.namespace())?;
        let mut command: Vec<OsString> = vec!["nsenter".into(), "--target".into(), target.into()];
        let user = MAIL_USER.to_string();
        command.extend(["--mount", "--pid", "setpriv", "--reuid", &user].map(OsString::from));
        command.extend(["--regid", &user, "--clear-groups", "env"].map(OsString::from));
        let program = self.root.join("usr/lib/cyrus/bin/sync_client");
        command.extend([self.libraries().into(), program.into(), "-C".into(), config.into()]);
        command
            .extend(["-n", CHANNEL].into_iter().chain(words.iter().copied()).map(OsString::from));
        Ok(command)
    }

    /// Everything that a user has and that is not expunged.
    pub fn held(&self, user: &str) -> anyhow::Result<Held> {
        let mut link = self.link()?;
        let mut held = Held::new();
        for answer in link.run(&Command::Get("USER", &Value::text(user)))? {
            let value = answer.values.first().filter(|_| answer.name == "MAILBOX");
            let Some(name) = value.and_then(|value| value.text_of("MBOXNAME")) else { continue };
            let full = link.run(&Command::Get("FULLMAILBOX", &Value::text(name)))?;
            let records = full.first().and_then(|full| full.values.first()?.get("RECORD"));
            let records = records.and_then(Value::as_list).unwrap_or_default();
            let live = records.iter().filter(|record| {
                let flags = record.get("FLAGS").and_then(Value::as_list).unwrap_or_default();
                flags.iter().all(|flag| flag.as_text() != Some(b"\\Expunged"))
            });
            let message = |record: &Value| {
                let guid = String::from_utf8_lossy(record.text_of("GUID")?).into_owned();
                Some((record.number_of("UID")?, guid))
            };
            held.insert(
                String::from_utf8_lossy(name).into_owned(),
                live.filter_map(message).collect(),
            );
        }
        Ok(held)
    }

    /// The directory of a user's mailbox, given by its internal name.
    pub fn mailbox_dir(&self, user: &str, name: &str) -> anyhow::Result<PathBuf> {
        let id = self.unique_id(user, name)?;
        Ok(self.spool().join("uuid").join(&id[..1]).join(&id[1..2]).join(&id))
    }
}
