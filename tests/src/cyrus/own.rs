//! Cyrus's own replication, and what it is compared by.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};
use mailtwin_cyrus::{Answer, Command as Ask, Value};

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
        let mut command = self.tool("sync_client", &config)?;
        command
            .extend(["-n", CHANNEL].into_iter().chain(words.iter().copied()).map(OsString::from));
        Ok(command)
    }

    /// Has it forget what was expunged, as it does every night.
    pub fn expire(&self) -> anyhow::Result<()> {
        let command = self.tool("cyr_expire", &self.dir.join("imapd.conf"))?;
        let (program, words) = command.split_first().context("a program")?;
        let words =
            words.iter().map(OsString::as_os_str).chain(["-E", "1", "-X", "0"].map(OsStr::new));
        let output = Command::new(program).args(words).output().context("run cyr_expire")?;
        ensure!(output.status.success(), "cyr_expire: {output:?}");
        Ok(())
    }

    /// One of its programs among its processes, so that it ends with them: `sync_client -r` goes into
    /// the background.
    fn tool(&self, name: &str, config: &Path) -> anyhow::Result<Vec<OsString>> {
        let target = fs::read_to_string(self.namespace())?;
        let mut command: Vec<OsString> = vec!["nsenter".into(), "--target".into(), target.into()];
        let user = MAIL_USER.to_string();
        command.extend(["--mount", "--pid", "setpriv", "--reuid", &user].map(OsString::from));
        command.extend(["--regid", &user, "--clear-groups", "env"].map(OsString::from));
        let program = self.root.join("usr/lib/cyrus/bin").join(name);
        command.extend([self.libraries().into(), program.into(), "-C".into(), config.into()]);
        Ok(command)
    }

    /// Messages that were expunged from a mailbox, and that it still knows of.
    pub fn expunged(&self, mailbox: &str) -> anyhow::Result<usize> {
        let full = self.link()?.run(&Ask::Get("FULLMAILBOX", &Value::text(mailbox)))?;
        Ok(records(&full).iter().filter(|record| is_expunged(record)).count())
    }

    /// Everything that a user has and that is not expunged.
    pub fn held(&self, user: &str) -> anyhow::Result<Held> {
        let mut link = self.link()?;
        let mut held = Held::new();
        for answer in link.run(&Ask::Get("USER", &Value::text(user)))? {
            let value = answer.values.first().filter(|_| answer.name == "MAILBOX");
            let Some(name) = value.and_then(|value| value.text_of("MBOXNAME")) else { continue };
            let full = link.run(&Ask::Get("FULLMAILBOX", &Value::text(name)))?;
            let live = records(&full).iter().filter(|record| !is_expunged(record));
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
    pub fn mailbox_dir(&self, name: &str) -> anyhow::Result<PathBuf> {
        let id = self.unique_id(name)?;
        Ok(self.spool().join("uuid").join(&id[..1]).join(&id[1..2]).join(&id))
    }
}

/// The records of a whole mailbox.
fn records(full: &[Answer]) -> &[Value] {
    let records = full.first().and_then(|full| full.values.first()?.get("RECORD"));
    records.and_then(Value::as_list).unwrap_or_default()
}

fn is_expunged(record: &Value) -> bool {
    let flags = record.get("FLAGS").and_then(Value::as_list).unwrap_or_default();
    flags.iter().any(|flag| flag.as_text() == Some(b"\\Expunged"))
}
