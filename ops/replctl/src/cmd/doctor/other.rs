//! `--for`: what a node beside another mail server could not hold of the mail here, before it is one.

use std::{collections::BTreeMap, fs, os::unix::ffi::OsStrExt as _, path::Path};

use mailtwin_cyrus::{
    Answer, Command, Dialect, Link, Listing, Value,
    mailbox::{Mailbox, Message},
    names::{self, Named},
};
use mailtwin_disk::clock::SystemClock;
use mailtwin_host::config;
use mailtwin_logic::{chain::Chain, mailbox::MailboxName};
use mailtwin_store::{cyrus, maildir::Layout};

use super::finding::{Code, Finding};
use crate::args::OtherServer;

/// Objects named in one finding.
const NAMED_MAX: usize = 3;
/// Objects remembered of one kind.
const REMEMBERED_MAX: usize = 1_000_000;
/// Levels of directories below the mail directory.
const DEPTH_MAX: usize = 32;

/// What another server cannot hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Name,
    Rights,
    NotMail,
    Shared,
    BareLines,
    Annotations,
    Quota,
    Seen,
    Subscribed,
}

/// Objects by what is wrong with them.
type Found = BTreeMap<Kind, Vec<String>>;

fn note(found: &mut Found, kind: Kind, object: &[u8]) {
    let objects = found.entry(kind).or_default();
    if objects.len() < REMEMBERED_MAX {
        objects.push(object.escape_ascii().to_string());
    }
}

/// Looks through a mail directory for what a Cyrus could not hold.
pub(super) fn of_maildir(
    root: &Path,
    layout: config::Layout,
    saves_crlf: Option<bool>,
) -> Vec<Finding> {
    let mut found = Found::new();
    if saves_crlf != Some(true) {
        note(&mut found, Kind::BareLines, b"mail_save_crlf");
    }
    let mut left = vec![(root.to_owned(), 0)];
    while let Some((dir, depth)) = left.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            match entry.file_name().as_bytes() {
                b"cur" if is_dir => look_at_maildir(root, &dir, layout, &mut found),
                b"new" | b"tmp" | b".mailtwin" => {}
                _ if is_dir && depth < DEPTH_MAX => left.push((entry.path(), depth + 1)),
                _ => {}
            }
        }
    }
    judge(&found, OtherServer::Cyrus)
}

fn look_at_maildir(root: &Path, dir: &Path, layout: config::Layout, found: &mut Found) {
    let relative = dir.strip_prefix(root).unwrap_or(dir);
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in relative.components().map(|part| part.as_os_str().as_bytes()) {
        match part.strip_prefix(b".") {
            Some(folder) if layout == config::Layout::MaildirPlusPlus => {
                parts.extend(folder.split(|&octet| octet == b'.'));
            }
            _ => parts.push(part),
        }
    }
    let shown = relative.as_os_str().as_bytes();
    // Accounts have names of the same kind.
    if names::internal("account", &parts.join(&b'/'), false).is_err() {
        note(found, Kind::Name, shown);
    }
    let acl = fs::read(dir.join("dovecot-acl")).ok();
    if acl.is_some_and(|acl| cyrus::check_rights(&acl).is_err()) {
        note(found, Kind::Rights, shown);
    }
}

/// Looks through a Cyrus for what a Maildir of this kind could not hold, and Dovecot not show.
pub(super) fn of_cyrus(config: &config::Cyrus, other: OtherServer) -> Vec<Finding> {
    match read_cyrus(config, other) {
        Ok(found) => judge(&found, other),
        Err(why) => vec![
            Finding::broken(Code::OtherServer, format!("Cyrus could not be read: {why}"))
                .because("what another server cannot hold is not known")
                .next("see what is said of [cyrus] imap"),
        ],
    }
}

fn read_cyrus(config: &config::Cyrus, other: OtherServer) -> Result<Found, String> {
    let login = config.login().map_err(|error| Chain(&error).to_string())?;
    let link = Link::open(&config.imap, Dialect::Imap, &login, SystemClock::shared());
    let mut link = link.map_err(|error| Chain(&error).to_string())?;
    let mut run =
        |command: &Command<'_>| link.run(command).map_err(|error| Chain(&error).to_string());
    let mut found = Found::new();
    let mut listing = Listing::new(&mut run)?;
    let users = listing.users()?;
    let mut shared = Vec::new();
    for top in listing.shared()? {
        note(&mut found, Kind::Shared, &top.external);
        shared.extend(listing.tree(&top)?.into_iter().map(|(name, _)| name));
    }
    for name in shared {
        let told = run(&Command::Get("MAILBOXES", &Value::List(vec![Value::text(&name)])))?;
        for value in told.iter().filter_map(|answer| answer.values.first()) {
            if let Some((mailbox, full)) = read_mailbox(value, &mut run) {
                look_at_mailbox(&mailbox, &full, other, &mut found);
            }
        }
    }
    for user in users {
        for answer in run(&Command::Get("USER", &Value::text(&user)))? {
            let Some(value) = answer.values.first() else { continue };
            match &answer.name[..] {
                "QUOTA" => note(&mut found, Kind::Quota, user.as_bytes()),
                "SEEN" => note(&mut found, Kind::Seen, user.as_bytes()),
                "LSUB" if answer.subscribed().any(|name| !is_of(name, &user)) => {
                    note(&mut found, Kind::Subscribed, user.as_bytes());
                }
                "MAILBOX" => {
                    if let Some((mailbox, full)) = read_mailbox(value, &mut run) {
                        look_at_mailbox(&mailbox, &full, other, &mut found);
                    }
                }
                _ => {}
            }
        }
    }
    for objects in found.values_mut() {
        objects.dedup();
    }
    Ok(found)
}

/// A mailbox and what it holds; one that cannot be read is what `status` tells of.
fn read_mailbox(
    value: &Value,
    run: &mut impl FnMut(&Command<'_>) -> Result<Vec<Answer>, String>,
) -> Option<(Mailbox, Vec<Answer>)> {
    let mailbox = Mailbox::parse(value).ok()?;
    let full = Command::Get("FULLMAILBOX", &Value::text(&mailbox.name));
    let full = if mailbox.is_mail() { run(&full).unwrap_or_default() } else { Vec::new() };
    Some((mailbox, full))
}

fn look_at_mailbox(mailbox: &Mailbox, full: &[Answer], other: OtherServer, found: &mut Found) {
    let Named::Folder { folder, .. } = names::meaning(&mailbox.name) else { return };
    if mailbox.is_intermediate() {
        return;
    }
    if !mailbox.is_mail() {
        note(found, Kind::NotMail, &mailbox.name);
    }
    let layout = match other {
        OtherServer::Fs => Layout::Fs,
        OtherServer::Maildir | OtherServer::Cyrus => Layout::MaildirPlusPlus,
    };
    let fits = MailboxName::new(&folder).is_ok_and(|name| layout.check_name(&name).is_ok());
    if !fits {
        note(found, Kind::Name, &mailbox.name);
    }
    let records = full.iter().filter_map(|answer| answer.values.first()?.get("RECORD")?.as_list());
    let is_annotated =
        |record: &Value| Message::parse(record).is_ok_and(|message| message.annotations.is_some());
    if mailbox.annotated || records.flatten().any(is_annotated) {
        note(found, Kind::Annotations, &mailbox.name);
    }
}

fn is_of(name: &[u8], user: &str) -> bool {
    matches!(names::meaning(name), Named::Folder { user: whose, .. } if whose == user)
}

/// Judges what was found.
fn judge(found: &Found, other: OtherServer) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (kind, objects) in found {
        let (what, why, next) = said(*kind, other);
        let named = objects.get(..NAMED_MAX.min(objects.len())).unwrap_or_default().join(", ");
        let more = objects.len().saturating_sub(NAMED_MAX);
        let more = if more > 0 { format!(", and {more} more") } else { String::new() };
        let what = format!("{what}: {named}{more}");
        let finding = match kind {
            Kind::Annotations | Kind::Quota | Kind::Seen | Kind::Shared | Kind::Subscribed => {
                Finding::note(Code::OtherServer, what)
            }
            Kind::Name | Kind::Rights | Kind::NotMail | Kind::BareLines => {
                Finding::risk(Code::OtherServer, what)
            }
        };
        findings.push(finding.because(why).next(next));
    }
    findings
}

/// What is to be said of a kind: what, why, and what to do.
fn said(kind: Kind, other: OtherServer) -> (&'static str, &'static str, &'static str) {
    let kept = "they are replicated and kept there, and Dovecot does not show them";
    match kind {
        Kind::Name if other == OtherServer::Maildir => (
            "names with a dot or too long for Maildir++",
            "each is set aside and not replicated",
            "use layout = \"fs\" there, or rename them",
        ),
        Kind::Name => (
            "names that the other server does not take",
            "each is set aside and not replicated",
            "rename them",
        ),
        Kind::Rights => (
            "access lists with identifiers or rights that Cyrus does not know",
            "each is refused, and the rights there stay as they are",
            "use owner, anyone, user=, group= and the letters lrwstipekxa",
        ),
        Kind::NotMail => {
            ("mailboxes that are not mail", "they are not replicated", "move them by other means")
        }
        Kind::Shared => (
            "shared mailboxes",
            "they are replicated as those of an account `+shared`, which has no INBOX",
            "give Dovecot a public namespace whose location is that account's directory",
        ),
        Kind::BareLines => (
            "messages may be stored with bare line feeds",
            "Cyrus gives them to clients like that, which some do not bear",
            "set mail_save_crlf = yes in Dovecot, well before",
        ),
        Kind::Annotations => {
            ("mailboxes with annotations", kept, "set special use in Dovecot's namespace")
        }
        Kind::Quota => ("users with quota limits", kept, "set Dovecot's quota"),
        Kind::Seen => ("users who have seen mail in mailboxes of others", kept, "nothing"),
        Kind::Subscribed => {
            ("users with subscriptions to mailboxes of others", kept, "have them subscribe again")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_cyrus_cannot_hold_is_named() {
        let root = tempfile::tempdir().unwrap();
        for mailbox in ["ann", "ann/.Work.Sub", "ann/.50%", "ben/.gr\u{fc}n", "ben"] {
            fs::create_dir_all(root.path().join(mailbox).join("cur")).unwrap();
        }
        let acl = root.path().join("ben/dovecot-acl");
        mailtwin_disk::replace::replace(&acl, b"group-override=x lr\n", 0o644).unwrap();
        let findings = of_maildir(root.path(), config::Layout::MaildirPlusPlus, Some(false));
        let all = findings.iter().map(|f| format!("{:?} {}", f.level, f.what)).collect::<Vec<_>>();
        let all = all.join("\n");
        assert!(all.contains("ann/.50%") && all.contains("gr\\xc3\\xbcn"), "{all}");
        assert!(all.contains("access lists") && all.contains(": ben"), "{all}");
        assert!(all.contains("bare line feeds") && !all.contains("Work"), "{all}");
    }

    #[test]
    fn what_a_maildir_cannot_hold_is_named() {
        let mailbox = |name: &str, kind: &str| {
            let new = Mailbox::new(name.as_bytes().to_vec(), "0".repeat(24), 7, Vec::new());
            Mailbox { kind: kind.to_owned(), ..new }
        };
        let mut found = Found::new();
        for (name, kind) in
            [("user.ann.a^b", ""), ("user.ann.Fine", ""), ("user.ann.#calendars", "c")]
        {
            look_at_mailbox(&mailbox(name, kind), &[], OtherServer::Maildir, &mut found);
        }
        assert_eq!(found[&Kind::Name], ["user.ann.a^b"]);
        assert_eq!(found[&Kind::NotMail], ["user.ann.#calendars"]);
        found.clear();
        look_at_mailbox(&mailbox("user.ann.a^b", ""), &[], OtherServer::Fs, &mut found);
        assert!(found.is_empty(), "{found:?}");
    }
}
