//! Which directories of a Maildir store show its changes, and what a change of a name in one means.
//!
//! Dovecot holds `dovecot-uidlist.lock` around every change of a mailbox, so its removal is the best
//! single signal: the change is complete. Files of indexes, caches and other locks mean nothing.

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use mailtwin_logic::{ids::Account, mailbox::MailboxName};
use rustix::fs::FileType;

use super::{
    Maildir, files,
    fsys::Dir,
    layout::{DEPTH_MAX, Layout, is_account, is_reserved},
};
use crate::{
    StoreError,
    watch::{Change, Note, Role, Watch, Watchable},
};

impl Watchable for Maildir {
    fn account_places(&self) -> Result<Vec<Watch>, StoreError> {
        let cx = &self.engine.cx;
        let prefix = cx.prefix()?;
        let mut walk = Walk { layout: cx.options.layout, skip: &cx.work_dir, watches: Vec::new() };
        if cx.pattern.is_tree() {
            walk.tree(&prefix, 0)?;
        } else {
            walk.levels(&prefix, &cx.pattern.fixed_parts())?;
        }
        Ok(walk.watches)
    }

    fn places(&self, account: &Account) -> Result<Vec<Watch>, StoreError> {
        let cx = &self.engine.cx;
        let Some(dir) = cx.account_dir(account)? else { return Ok(Vec::new()) };
        let mut watches = Vec::new();
        for name in cx.options.layout.mailboxes(&dir, &mut Vec::new())? {
            let Ok(below) = cx.options.layout.directory(&name) else { continue };
            // No slash at the end of an INBOX's path.
            let path: PathBuf = dir.path().components().chain(below.components()).collect();
            for part in ["new", "cur"] {
                let role = Role::Messages(account.clone(), name.clone());
                watches.push(Watch { path: path.join(part), role });
            }
            watches.push(Watch { path, role: Role::Mailbox(account.clone(), name) });
        }
        if let Some(home) = files::home(cx, account)? {
            let mut add = |dir: &Dir| {
                let role = Role::Files(account.clone());
                watches.push(Watch { path: dir.path().to_path_buf(), role });
            };
            add(&home);
            if let Some(scripts) = home.sub(files::SIEVE)? {
                each_below(&scripts, files::SCRIPT_DEPTH_MAX, &mut add)?;
            }
        }
        Ok(watches)
    }

    fn note(&self, role: &Role, name: &[u8], change: Change) -> Note {
        let is_dir = matches!(change, Change::DirAppeared | Change::DirVanished);
        match role {
            Role::Accounts if is_dir => Note::Accounts,
            Role::Messages(..) if !is_dir && !name.starts_with(b".") => Note::Mailbox,
            Role::Accounts | Role::Messages(..) | Role::Journal => Note::Nothing,
            Role::Files(_) => note_file(name, is_dir),
            Role::Mailbox(_, mailbox) if is_dir => {
                note_directory(self.engine.cx.options.layout, mailbox, name)
            }
            Role::Mailbox(_, mailbox) => note_control(mailbox, name, change),
        }
    }
}

fn note_file(name: &[u8], is_dir: bool) -> Note {
    if name == files::SIEVE || (is_dir && !name.starts_with(b".")) {
        Note::Places
    } else if name == files::SIEVE_ACTIVE || (!is_dir && name.ends_with(files::SCRIPT_SUFFIX)) {
        Note::Account
    } else {
        Note::Nothing
    }
}

fn note_directory(layout: Layout, mailbox: &MailboxName, name: &[u8]) -> Note {
    let is_mailbox = match layout {
        Layout::MaildirPlusPlus => {
            // Dovecot parks what it deletes under two dots.
            mailbox.is_inbox() && name.starts_with(b".") && !name.starts_with(b"..")
        }
        Layout::Fs => !name.starts_with(b".") && !is_reserved(name),
    };
    if is_mailbox || matches!(name, b"new" | b"cur") { Note::Places } else { Note::Nothing }
}

fn note_control(mailbox: &MailboxName, name: &[u8], change: Change) -> Note {
    let is_written = matches!(change, Change::Arrived | Change::Written | Change::Vanished);
    match (name, change) {
        (b"dovecot-uidlist.lock", Change::Vanished) | (b"dovecot-uidlist", Change::Arrived) => {
            Note::MailboxDone
        }
        (b"dovecot-keywords", Change::Arrived) => Note::Mailbox,
        (files::ACL, _) if is_written => Note::Account,
        (files::SUBSCRIPTIONS, _) if is_written && mailbox.is_inbox() => Note::Account,
        _ => Note::Nothing,
    }
}

struct Walk<'a> {
    layout: Layout,
    skip: &'a Path,
    watches: Vec<Watch>,
}

impl Walk<'_> {
    fn tree(&mut self, dir: &Dir, depth: usize) -> Result<(), StoreError> {
        if is_account(dir, self.layout)? {
            return Ok(());
        }
        self.add(dir);
        if depth >= DEPTH_MAX {
            return Ok(());
        }
        for sub in self.below(dir)? {
            self.tree(&sub, depth + 1)?;
        }
        Ok(())
    }

    /// Follows the parts of a pattern; a part without a fixed name is every directory.
    fn levels(&mut self, dir: &Dir, parts: &[Option<&[u8]>]) -> Result<(), StoreError> {
        let Some((part, rest)) = parts.split_first() else {
            if !is_account(dir, self.layout)? {
                self.add(dir);
            }
            return Ok(());
        };
        self.add(dir);
        let below = match part {
            Some(name) => dir.beneath(Path::new(OsStr::from_bytes(name)))?.into_iter().collect(),
            None => self.below(dir)?,
        };
        for sub in below {
            self.levels(&sub, rest)?;
        }
        Ok(())
    }

    fn add(&mut self, dir: &Dir) {
        self.watches.push(Watch { path: dir.path().to_path_buf(), role: Role::Accounts });
    }

    fn below(&self, dir: &Dir) -> Result<Vec<Dir>, StoreError> {
        let mut subs = directories(dir)?;
        subs.retain(|sub| sub.path() != self.skip);
        Ok(subs)
    }
}

fn each_below(dir: &Dir, depth: usize, visit: &mut impl FnMut(&Dir)) -> Result<(), StoreError> {
    visit(dir);
    if depth > 0 {
        for sub in directories(dir)? {
            each_below(&sub, depth - 1, visit)?;
        }
    }
    Ok(())
}

fn directories(dir: &Dir) -> Result<Vec<Dir>, StoreError> {
    let mut names = Vec::new();
    dir.list(|name, _, kind| {
        if kind == FileType::Directory {
            names.push(name.to_vec());
        }
    })?;
    let mut dirs = Vec::new();
    for name in names {
        dirs.extend(dir.sub(&name)?);
    }
    Ok(dirs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_names_in_a_mailbox_mean() {
        let (inbox, work) = (MailboxName::inbox(), MailboxName::new(b"Work").unwrap());
        let rows = [
            (&inbox, &b"dovecot-uidlist.lock"[..], Change::Vanished, Note::MailboxDone),
            (&inbox, b"dovecot-uidlist.lock", Change::Created, Note::Nothing),
            (&work, b"dovecot-uidlist", Change::Arrived, Note::MailboxDone),
            (&work, b"dovecot-uidlist", Change::Written, Note::Nothing),
            (&work, b"dovecot-keywords", Change::Arrived, Note::Mailbox),
            (&work, b"dovecot-keywords.lock", Change::Vanished, Note::Nothing),
            (&work, b"dovecot-acl", Change::Written, Note::Account),
            (&inbox, b"subscriptions", Change::Arrived, Note::Account),
            (&work, b"subscriptions", Change::Arrived, Note::Nothing),
            (&inbox, b"dovecot.index.log", Change::Written, Note::Nothing),
            (&inbox, b"dovecot.list.index.log", Change::Written, Note::Nothing),
            (&inbox, b"maildirsize", Change::Written, Note::Nothing),
        ];
        for (mailbox, name, change, note) in rows {
            let found = note_control(mailbox, name, change);
            assert_eq!(found, note, "{} {change:?}", name.escape_ascii());
        }
    }

    #[test]
    fn what_directories_mean() {
        let (inbox, work) = (MailboxName::inbox(), MailboxName::new(b"Work").unwrap());
        let rows = [
            (Layout::MaildirPlusPlus, &inbox, &b".Work"[..], Note::Places),
            (Layout::MaildirPlusPlus, &inbox, b"..DOVECOT-TRASHED", Note::Nothing),
            (Layout::MaildirPlusPlus, &inbox, b"cur", Note::Places),
            (Layout::MaildirPlusPlus, &inbox, b"tmp", Note::Nothing),
            (Layout::MaildirPlusPlus, &work, b"new", Note::Places),
            (Layout::MaildirPlusPlus, &work, b".Sub", Note::Nothing),
            (Layout::Fs, &work, b"Sub", Note::Places),
            (Layout::Fs, &work, b"tmp", Note::Nothing),
            (Layout::Fs, &work, b"dovecot-x", Note::Nothing),
        ];
        for (layout, mailbox, name, note) in rows {
            let found = note_directory(layout, mailbox, name);
            assert_eq!(found, note, "{layout:?} {}", name.escape_ascii());
        }
    }

    #[test]
    fn what_files_beside_mailboxes_mean() {
        assert_eq!(note_file(b"sieve", true), Note::Places);
        assert_eq!(note_file(b"spam.sieve", false), Note::Account);
        assert_eq!(note_file(b".dovecot.sieve", false), Note::Account);
        for nothing in [&b"spam.svbin"[..], b".dovecot.lda-dupes", b".dovecot.svbin.x"] {
            assert_eq!(note_file(nothing, false), Note::Nothing);
        }
    }
}
