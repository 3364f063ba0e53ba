//! The mail server beside us: its version, and those of its settings that matter to us.

use std::{collections::BTreeMap, path::PathBuf, process::Command};

use mailtwin_host::config::{Config, Engine, Layout};

use super::finding::{Code, Finding};

/// Mailboxes named in one finding.
const NAMED_MAX: usize = 3;

/// What was found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    /// As `dovecot --version` says; absent if there is no Dovecot.
    pub(super) version: Option<String>,
    /// Its settings outside of any section; or why they could not be read.
    pub(super) settings: Result<BTreeMap<String, String>, String>,
}

/// Asks Dovecot; `doveconf` is how its `doveconf` is run, by the shell.
pub(super) fn gather(doveconf: &str) -> Facts {
    // What `doveconf` prints first is its version: "# 2.3.19.1 (9b53102964): /etc/dovecot.conf".
    let output = Command::new("/bin/sh").args(["-c", &format!("{doveconf} -a")]).output();
    match output {
        Err(error) => Facts { version: None, settings: Err(format!("run /bin/sh: {error}")) },
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout);
            let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            let settings = settings(&text);
            let settings = if settings.is_empty() { Err(complaint) } else { Ok(settings) };
            Facts { version: version(&text), settings }
        }
    }
}

fn version(text: &str) -> Option<String> {
    let line = text.lines().find_map(|line| line.strip_prefix("# "))?;
    let version = line.split([' ', ':']).next()?;
    version.starts_with(|c: char| c.is_ascii_digit()).then(|| version.to_owned())
}

fn settings(text: &str) -> BTreeMap<String, String> {
    let top = text.lines().filter(|line| !line.starts_with([' ', '\t', '#', '}']));
    let pairs = top.filter_map(|line| line.split_once(" ="));
    let pair = |(key, value): (&str, &str)| (key.trim().to_owned(), value.trim().to_owned());
    pairs.map(pair).collect()
}

/// Where the mail server keeps an account's mail.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Location {
    driver: String,
    /// As Dovecot spells it, with its variables.
    path: String,
    layout: String,
    control: bool,
}

impl Location {
    /// Of Dovecot 2.3 (`mail_location`) or 2.4 (`mail_driver`, `mail_path` and their like).
    fn of(settings: &BTreeMap<String, String>) -> Option<Self> {
        let get = |key: &str| settings.get(key).map(String::as_str).unwrap_or_default();
        if !get("mail_driver").is_empty() {
            return Some(Self {
                driver: get("mail_driver").to_lowercase(),
                path: get("mail_path").to_owned(),
                layout: get("mailbox_list_layout").to_lowercase(),
                control: !get("mail_control_path").is_empty(),
            });
        }
        let mut parts = get("mail_location").split(':');
        let driver = parts.next().filter(|driver| !driver.is_empty())?.to_lowercase();
        let path = parts.next().unwrap_or_default().to_owned();
        let mut location = Self { driver, path, ..Self::default() };
        for part in parts {
            match part.split_once('=') {
                Some(("LAYOUT", layout)) => location.layout = layout.to_lowercase(),
                Some(("CONTROL", _)) => location.control = true,
                _ => {}
            }
        }
        Some(location)
    }
}

/// Judges it against the configuration; `full` are mailboxes that use up all keyword letters.
pub(super) fn judge(facts: &Facts, config: &Config, full: &[PathBuf]) -> Vec<Finding> {
    let mut findings = vec![keywords(full)];
    if config.store.engine != Engine::Maildir {
        return findings;
    }
    let settings = match &facts.settings {
        Ok(settings) => settings,
        Err(why) => {
            let what = format!("Dovecot's settings cannot be read: {why}");
            let next = "with another mail server on Maildir there is nothing to do; otherwise say \
                        how: replctl doctor --doveconf 'doveconf -c FILE'";
            findings.push(Finding::note(Code::MailServer, what).next(next));
            return findings;
        }
    };
    findings.push(server(facts.version.as_deref()));
    findings.extend(location(settings, config));
    findings.push(dirty_syncs(settings));
    findings.push(fsync(settings));
    findings
}

fn server(version: Option<&str>) -> Finding {
    match version {
        Some(version) if version.starts_with("2.3.") || version.starts_with("2.4.") => {
            Finding::ok(Code::MailServer, format!("Dovecot {version}"))
        }
        Some(version) => Finding::note(Code::MailServer, format!("Dovecot {version}"))
            .because("Mailtwin is tested with 2.3 and 2.4 only"),
        None => Finding::note(Code::MailServer, "a Dovecot that does not say its version"),
    }
}

fn location(settings: &BTreeMap<String, String>, config: &Config) -> Vec<Finding> {
    let root = &config.store.root;
    let Some(location) = Location::of(settings) else {
        let what = format!("Dovecot finds out itself where mail is; [store] says {root}");
        let next = "doveadm user -f mail ACCOUNT: it must be the same place";
        return vec![Finding::note(Code::MailLocation, what).next(next)];
    };
    let Location { driver, path, layout, control } = &location;
    let broken = |what: String| Finding::broken(Code::MailLocation, what);
    if driver != "maildir" {
        return vec![
            broken(format!("Dovecot's mail is {driver}, and [store] says maildir"))
                .because("Mailtwin replicates Maildir only: nothing of it is seen")
                .next("doveadm sync to a Maildir, or take another mail_location"),
        ];
    }
    let mut findings = Vec::new();
    let ours = match config.store.layout {
        Layout::MaildirPlusPlus => "maildir++",
        Layout::Fs => "fs",
    };
    let theirs = if layout.is_empty() { "maildir++" } else { layout };
    if ours != theirs {
        findings.push(
            broken(format!("Dovecot's layout is {theirs}, and store.layout says {ours}"))
                .because("folders other than INBOX are not found, or not where clients look")
                .next(format!("set layout = \"{theirs}\" in [store] on every node, and restart")),
        );
    }
    if *control {
        findings.push(
            broken("Dovecot keeps dovecot-uidlist elsewhere (CONTROL, mail_control_path)".into())
                .because("both sides would number messages on their own")
                .next("take CONTROL= out of mail_location, with Dovecot stopped"),
        );
    }
    findings.push(compare(path, root));
    findings
}

/// Compares Dovecot's path with our pattern, as far as variables can be compared.
fn compare(path: &str, root: &str) -> Finding {
    let what = format!("Dovecot's mail is at {path}, [store] says {root}");
    let theirs = translate(path);
    // Where homes are, only the user database knows.
    let home = theirs.strip_prefix('~').or_else(|| theirs.strip_prefix("{home}"));
    let fits = match home {
        Some(below) => root.ends_with(below.trim_end_matches('/')),
        None => theirs.trim_end_matches('/') == root.trim_end_matches('/'),
    };
    match (fits, home) {
        (true, None) => Finding::ok(Code::MailLocation, what),
        (true, Some(_)) => {
            let next = "doveadm user -f home ACCOUNT, on doubt: homes come from the user database";
            Finding::ok(Code::MailLocation, what).next(next)
        }
        (false, _) => Finding::risk(Code::MailLocation, what)
            .because("if these are two places, mail is not found, or not where clients look")
            .next("doveadm user ACCOUNT, and correct root in [store]"),
    }
}

/// Dovecot's variables in our spelling.
fn translate(path: &str) -> String {
    let names = [
        ("%{user | username}", "{user}"),
        ("%{user|username}", "{user}"),
        ("%{user | domain}", "{domain}"),
        ("%{user|domain}", "{domain}"),
        ("%{user}", "{user}"),
        ("%{username}", "{user}"),
        ("%{domain}", "{domain}"),
        ("%{home}", "{home}"),
        ("%Ln", "{user}"),
        ("%Ld", "{domain}"),
        ("%Lu", "{user}"),
        ("%n", "{user}"),
        ("%d", "{domain}"),
        ("%u", "{user}"),
        ("%h", "{home}"),
    ];
    names.iter().fold(path.to_owned(), |path, (theirs, ours)| path.replace(theirs, ours))
}

fn dirty_syncs(settings: &BTreeMap<String, String>) -> Finding {
    let value = settings.get("maildir_very_dirty_syncs").map_or("no", String::as_str);
    let what = format!("maildir_very_dirty_syncs = {value}");
    if value != "yes" {
        return Finding::ok(Code::DirtySyncs, what);
    }
    Finding::risk(Code::DirtySyncs, what)
        .because(
            "Dovecot then trusts its index: a client of a replica sees flags and expunges late that \
             replication brings",
        )
        .next("set maildir_very_dirty_syncs = no, and doveadm reload")
}

fn fsync(settings: &BTreeMap<String, String>) -> Finding {
    let value = settings.get("mail_fsync").map_or("optimized", String::as_str);
    let what = format!("mail_fsync = {value}");
    if value != "never" {
        return Finding::ok(Code::MailFsync, what);
    }
    Finding::risk(Code::MailFsync, what)
        .because("after a power cut the master may lack mail that it accepted and replicated")
        .next("set mail_fsync = optimized, and doveadm reload")
}

fn keywords(full: &[PathBuf]) -> Finding {
    let Some(first) = full.first() else {
        return Finding::ok(Code::Keywords, "no mailbox uses up the 26 keywords of Maildir");
    };
    let some: Vec<String> =
        full.iter().take(NAMED_MAX).map(|path| path.display().to_string()).collect();
    let more = full.len().saturating_sub(NAMED_MAX);
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    let what = format!("all 26 keywords are used in {}{more}", some.join(", "));
    Finding::risk(Code::Keywords, what)
        .because("further keywords live only in Dovecot's index: they are not replicated")
        .next(format!("cat {}/dovecot-keywords; have clients use fewer", first.display()))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{super::finding::Level, *};

    fn config(root: &str, layout: &str) -> Config {
        let text = format!(
            "config_version = 1\nnode.name = \"a\"\nstore.root = {root:?}\nstore.layout = {layout:?}\n"
        );
        Config::parse(Path::new("x"), &text).unwrap()
    }

    fn facts(text: &str) -> Facts {
        Facts { version: version(text), settings: Ok(settings(text)) }
    }

    fn level(facts: &Facts, config: &Config, code: Code) -> Level {
        let findings = judge(facts, config, &[]);
        let of_code = findings.iter().filter(|finding| finding.code == code);
        of_code.map(|finding| finding.level).max().unwrap()
    }

    const V23: &str = "# 2.3.19.1 (9b53102964): /etc/dovecot/dovecot.conf\n\
        # OS: Linux\nmail_fsync = optimized\nmaildir_very_dirty_syncs = no\n\
        service lmtp {\n  mail_fsync = never\n}\n";

    #[test]
    fn locations() {
        use Level::{Broken, Note, Ok, Risk};
        let cases = [
            (
                "maildir:/var/vmail/%d/%n/Maildir",
                "/var/vmail/{domain}/{user}/Maildir",
                "maildir++",
                Ok,
            ),
            ("maildir:~/Maildir", "/home/{user}/Maildir", "maildir++", Ok),
            ("maildir:~/mail", "/home/{user}/Maildir", "maildir++", Risk),
            ("maildir:/srv/%n", "/var/vmail/{user}", "maildir++", Risk),
            ("maildir:~/Maildir:LAYOUT=fs", "/home/{user}/Maildir", "fs", Ok),
            ("maildir:~/Maildir:LAYOUT=fs", "/home/{user}/Maildir", "maildir++", Broken),
            ("maildir:~/Maildir:INDEX=/ix/%u", "/home/{user}/Maildir", "maildir++", Ok),
            ("maildir:~/Maildir:CONTROL=/c/%u", "/home/{user}/Maildir", "maildir++", Broken),
            ("mdbox:~/mdbox", "/home/{user}/Maildir", "maildir++", Broken),
            ("", "/home/{user}/Maildir", "maildir++", Note),
        ];
        for (location, root, layout, want) in cases {
            let text = format!("{V23}mail_location = {location}\n");
            let found = level(&facts(&text), &config(root, layout), Code::MailLocation);
            assert_eq!(found, want, "{location} {root}");
        }
    }

    #[test]
    fn the_words_of_dovecot_2_4() {
        let text = "# 2.4.1 (7d8c0e5): /etc/dovecot/dovecot.conf\nmail_driver = maildir\n\
                    mail_path = %{home}/Maildir\nmailbox_list_layout = maildir++\n";
        let facts = facts(text);
        let config = config("/home/{user}/Maildir", "maildir++");
        assert_eq!(level(&facts, &config, Code::MailLocation), Level::Ok);
        assert_eq!(level(&facts, &config, Code::MailServer), Level::Ok);
        let other = Config {
            store: mailtwin_host::config::Store { layout: Layout::Fs, ..config.store.clone() },
            ..config
        };
        assert_eq!(level(&facts, &other, Code::MailLocation), Level::Broken);
    }

    #[test]
    fn settings_that_matter() {
        let config = config("/home/{user}/Maildir", "maildir++");
        let cases = [
            ("", Code::DirtySyncs, Level::Ok),
            ("", Code::MailFsync, Level::Ok),
            ("maildir_very_dirty_syncs = yes\n", Code::DirtySyncs, Level::Risk),
            ("mail_fsync = never\n", Code::MailFsync, Level::Risk),
            ("mail_fsync = always\n", Code::MailFsync, Level::Ok),
        ];
        for (line, code, want) in cases {
            assert_eq!(level(&facts(&format!("{V23}{line}")), &config, code), want, "{line}");
        }
        assert_eq!(level(&facts("# 2.2.36: x\na = b\n"), &config, Code::MailServer), Level::Note);
        let none = Facts { version: None, settings: Err("not found".into()) };
        assert_eq!(level(&none, &config, Code::MailServer), Level::Note);
    }

    #[test]
    fn keywords_that_do_not_fit() {
        assert_eq!(keywords(&[]).level, Level::Ok);
        let five: Vec<PathBuf> = (0..5).map(|n| format!("/mail/u{n}").into()).collect();
        let found = keywords(&five);
        assert_eq!(found.level, Level::Risk);
        assert!(found.what.contains("/mail/u2 and 2 more"), "{found:?}");
    }
}
