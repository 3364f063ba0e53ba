//! A walk over the mail directory: how many mailboxes there are, and which look odd. It opens no
//! message and needs no daemon.

use std::{
    fs::{self, Metadata},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::access::User;

/// Levels of directories below the mail directory.
const DEPTH_MAX: usize = 32;
/// Directories looked into.
const DIRECTORIES_MAX: usize = 2_000_000;
/// Odd mailboxes that are remembered.
const ODD_MAX: usize = 1_000;
/// What Maildir has letters for.
const KEYWORDS_MAX: usize = 26;

/// What the walk found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Walked {
    /// Directories with a `cur` in them.
    pub(super) mailboxes: u64,
    /// Those whose owner or mode may keep the daemons out, and directories that we could not list.
    pub(super) odd: Vec<PathBuf>,
    /// Mailboxes whose keywords use up all letters.
    pub(super) keywords_full: Vec<PathBuf>,
    /// Whether it ended before it had seen everything.
    pub(super) cut_short: bool,
}

/// The part of `root` above its first variable.
pub(super) fn mail_dir(root: &str) -> Option<PathBuf> {
    let fixed = |part: &&str| !part.contains('{');
    let parts: Vec<&str> = root.split('/').skip(1).take_while(fixed).collect();
    root.starts_with('/').then(|| Path::new("/").join(parts.join("/")))
}

/// Walks below `dir`, for daemons that run as `user`.
pub(super) fn walk(dir: &Path, user: Option<User>) -> Walked {
    let mut walked = Walked::default();
    let mut left = vec![(dir.to_owned(), 0)];
    let mut seen = 0;
    while let Some((dir, depth)) = left.pop() {
        seen += 1;
        if seen > DIRECTORIES_MAX {
            walked.cut_short = true;
            return walked;
        }
        look(&dir, depth, user, &mut walked, &mut left);
    }
    walked
}

fn look(
    dir: &Path,
    depth: usize,
    user: Option<User>,
    walked: &mut Walked,
    left: &mut Vec<(PathBuf, usize)>,
) {
    let mut note_odd = |path: &Path| {
        if walked.odd.len() < ODD_MAX {
            walked.odd.push(path.to_owned());
        }
    };
    let Ok(entries) = fs::read_dir(dir) else { return note_odd(dir) };
    let mut is_mailbox = false;
    for entry in entries.flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        let name = entry.file_name();
        if !kind.is_dir() || name == ".mailtwin" || name == "tmp" {
            continue;
        }
        if name == "cur" || name == "new" {
            is_mailbox |= name == "cur";
            let path = entry.path();
            if entry.metadata().is_ok_and(|metadata| is_odd(&metadata, user)) {
                note_odd(&path);
            }
        } else if depth < DEPTH_MAX {
            left.push((entry.path(), depth + 1));
        }
    }
    if is_mailbox {
        walked.mailboxes += 1;
        if keywords(&dir.join("dovecot-keywords")) >= KEYWORDS_MAX
            && walked.keywords_full.len() < ODD_MAX
        {
            walked.keywords_full.push(dir.to_owned());
        }
    }
}

/// Whether it takes a closer look to tell that the daemons may use it.
fn is_odd(metadata: &Metadata, user: Option<User>) -> bool {
    let is_theirs = user.is_none_or(|user| user.uid == metadata.uid());
    !is_theirs || metadata.mode() & 0o700 != 0o700
}

/// Keywords that a mailbox has letters for.
fn keywords(path: &Path) -> usize {
    let Ok(octets) = fs::read(path) else { return 0 };
    octets.split(|&octet| octet == b'\n').filter(|line| !line.is_empty()).count()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_mail_directory_is_above_the_first_variable() {
        let cases = [
            ("/var/vmail/{domain}/{user}/Maildir", Some("/var/vmail")),
            ("/home/{user}/Maildir", Some("/home")),
            ("/srv/x{user}/Maildir", Some("/srv")),
            ("/srv/one", Some("/srv/one")),
            ("", None),
        ];
        for (root, want) in cases {
            assert_eq!(mail_dir(root), want.map(PathBuf::from), "{root}");
        }
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a test's file need not be durable")]
    fn mailboxes_are_counted_and_odd_ones_named() {
        let dir = tempfile::tempdir().unwrap();
        for mailbox in ["ann", "ann/.Work", "ann/.Full", "bob"] {
            for part in ["cur", "new", "tmp"] {
                fs::create_dir_all(dir.path().join(mailbox).join(part)).unwrap();
            }
        }
        fs::create_dir_all(dir.path().join(".mailtwin/stage/cur")).unwrap();
        let full: Vec<String> = (0..26).map(|n| format!("{n} word{n}")).collect();
        fs::write(dir.path().join("ann/.Full/dovecot-keywords"), full.join("\n")).unwrap();
        fs::write(dir.path().join("ann/dovecot-keywords"), "0 one\n").unwrap();
        let closed = dir.path().join("bob/cur");
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o500)).unwrap();
        let walked = walk(dir.path(), None);
        assert_eq!(walked.mailboxes, 4);
        assert_eq!(walked.odd, [closed]);
        assert_eq!(walked.keywords_full, [dir.path().join("ann/.Full")]);
        let other = walk(dir.path(), Some(User { uid: 1, gid: 1, overrides: false }));
        assert_eq!(other.odd.len(), 8, "all are somebody else's: {:?}", other.odd);
    }
}
