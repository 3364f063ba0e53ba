//! A mail user and a delivery agent on a plain Maildir: what the demo lets happen on the master.

use std::{
    fs, io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// Everything done so far, for the last table.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Done {
    pub(super) delivered: u32,
    pub(super) flagged: u32,
    pub(super) expunged: u32,
    pub(super) moved: u32,
    pub(super) mailboxes: u32,
}

/// Acts on the mail of a few accounts, in an order that one number decides.
pub(super) struct Client {
    root: PathBuf,
    accounts: Vec<&'static str>,
    samples: Vec<&'static [u8]>,
    dice: u64,
    serial: u64,
    pub(super) done: Done,
}

impl Client {
    pub(super) fn new(root: &Path, samples: Vec<&'static [u8]>) -> Self {
        let accounts = vec!["ann", "bob", "carol"];
        Self { root: root.to_owned(), accounts, samples, dice: 7, serial: 0, done: Done::default() }
    }

    /// Makes every account with an INBOX and two mailboxes.
    pub(super) fn make_accounts(&mut self) -> io::Result<()> {
        for account in self.accounts.clone() {
            for mailbox in ["", ".Work", ".Work.Projects"] {
                make_mailbox(&self.maildir(account).join(mailbox), !mailbox.is_empty())?;
                self.done.mailboxes += 1;
            }
            let subscriptions = self.maildir(account).join("subscriptions");
            put(&subscriptions, b"V\t2\n\nWork\nWork\tProjects\n")?;
        }
        Ok(())
    }

    /// Delivers `count` messages, each into a mailbox of somebody.
    pub(super) fn deliver(&mut self, count: usize) -> io::Result<()> {
        for _ in 0..count {
            let mailbox = self.any_mailbox()?;
            let at = self.roll(self.samples.len());
            let sample = self.samples[at];
            self.serial += 1;
            let base = format!("{}.M{}P1.demo", 1_700_000_000 + self.serial, self.serial);
            let file = mailbox.join("tmp").join(&base);
            // Each copy differs, as real mail does.
            let mut octets = format!("X-Demo: {}\n", self.serial).into_bytes();
            octets.extend_from_slice(sample);
            put(&file, &octets)?;
            fs::rename(file, mailbox.join("new").join(&base))?;
            self.done.delivered += 1;
        }
        Ok(())
    }

    /// Sets a flag on up to `count` messages.
    pub(super) fn flag(&mut self, count: usize) -> io::Result<()> {
        for _ in 0..count {
            if let Some((mailbox, message)) = self.any_message()? {
                let name = file_name(&message);
                let (base, flags) = name.split_once(":2,").unwrap_or((&name, ""));
                let mut flags: Vec<char> = flags.chars().collect();
                flags.push(['S', 'F', 'R'][self.roll(3)]);
                flags.sort_unstable();
                flags.dedup();
                let flags: String = flags.into_iter().collect();
                fs::rename(&message, mailbox.join("cur").join(format!("{base}:2,{flags}")))?;
                self.done.flagged += 1;
            }
        }
        Ok(())
    }

    /// Expunges up to `count` messages.
    pub(super) fn expunge(&mut self, count: usize) -> io::Result<()> {
        for _ in 0..count {
            if let Some((_, message)) = self.any_message()? {
                fs::remove_file(message)?;
                self.done.expunged += 1;
            }
        }
        Ok(())
    }

    /// Moves up to `count` messages to another mailbox of the same account.
    pub(super) fn move_messages(&mut self, count: usize) -> io::Result<()> {
        for _ in 0..count {
            let Some((from, message)) = self.any_message()? else { continue };
            let account = account_of(&from, &self.root);
            let mailboxes = mailboxes(&self.root.join(account).join("Maildir"))?;
            let to = &mailboxes[self.roll(mailboxes.len())];
            if *to != from {
                fs::rename(&message, to.join("cur").join(file_name(&message)))?;
                self.done.moved += 1;
            }
        }
        Ok(())
    }

    /// Renames a mailbox with its child, makes one, deletes another.
    pub(super) fn rearrange(&mut self) -> io::Result<()> {
        let ann = self.maildir("ann");
        for (from, to) in [(".Work", ".Office"), (".Work.Projects", ".Office.Projects")] {
            fs::rename(ann.join(from), ann.join(to))?;
        }
        make_mailbox(&self.maildir("bob").join(".Travel"), true)?;
        self.done.mailboxes += 1;
        let gone = self.maildir("carol").join(".Work.Projects");
        fs::remove_dir_all(gone)
    }

    fn maildir(&self, account: &str) -> PathBuf {
        self.root.join(account).join("Maildir")
    }

    fn any_mailbox(&mut self) -> io::Result<PathBuf> {
        let at = self.roll(self.accounts.len());
        let account = self.accounts[at];
        let mailboxes = mailboxes(&self.maildir(account))?;
        Ok(mailboxes[self.roll(mailboxes.len())].clone())
    }

    fn any_message(&mut self) -> io::Result<Option<(PathBuf, PathBuf)>> {
        let mailbox = self.any_mailbox()?;
        let mut messages = Vec::new();
        for sub in ["new", "cur"] {
            for entry in fs::read_dir(mailbox.join(sub))? {
                messages.push(entry?.path());
            }
        }
        messages.sort();
        if messages.is_empty() {
            return Ok(None);
        }
        let message = messages.swap_remove(self.roll(messages.len()));
        Ok(Some((mailbox, message)))
    }

    fn roll(&mut self, sides: usize) -> usize {
        self.dice = self.dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from(self.dice >> 33).unwrap_or(0) % sides.max(1)
    }
}

/// The INBOX and every sub-mailbox of a Maildir, in order.
pub(super) fn mailboxes(maildir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut all = vec![maildir.to_owned()];
    for entry in fs::read_dir(maildir)? {
        let path = entry?.path();
        if file_name(&path).starts_with('.') && path.join("cur").is_dir() {
            all.push(path);
        }
    }
    all.sort();
    Ok(all)
}

/// The last part of a path, printable.
pub(super) fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn account_of(mailbox: &Path, root: &Path) -> PathBuf {
    let inside = mailbox.strip_prefix(root).unwrap_or(mailbox);
    inside.components().next().map(|part| PathBuf::from(part.as_os_str())).unwrap_or_default()
}

fn make_mailbox(path: &Path, marked: bool) -> io::Result<()> {
    for sub in ["cur", "new", "tmp"] {
        fs::create_dir_all(path.join(sub))?;
    }
    if marked { put(&path.join("maildirfolder"), b"") } else { Ok(()) }
}

fn put(path: &Path, octets: &[u8]) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    io::Write::write_all(&mut file, octets)
}
