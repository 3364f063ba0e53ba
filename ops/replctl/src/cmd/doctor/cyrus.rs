//! The Cyrus beside us: whether both of its ports let us in as an admin, and whether somebody empties
//! our channel of its sync log.

use std::{fs, sync::Arc};

use mailtwin_cyrus::{Command, Dialect, Link, LinkError, Login, Place, Value};
use mailtwin_disk::clock::{Clock, SystemClock};
use mailtwin_host::config::Cyrus;
use mailtwin_logic::chain::Chain;

use super::finding::{Code, Finding};

/// Octets that stand in a channel for the moments until the agent takes them; more is a backlog.
const BACKLOG_OCTETS: u64 = 1 << 20;

/// A user that nobody has: asking for it is allowed to admins only.
const NOBODY: &str = "mailtwin-doctor";

/// What was found out.
#[derive(Debug)]
pub(super) struct Facts {
    /// For each port: its key in the configuration, where it is, and what is wrong with it.
    ports: Vec<(&'static str, Place, Result<(), String>)>,
    /// Octets in the channel, or why that is not known.
    channel: Result<u64, String>,
}

/// Asks Cyrus.
pub(super) fn gather(config: &Cyrus) -> Facts {
    let clock = SystemClock::shared();
    let login = config.login().map_err(|error| Chain(&error).to_string());
    let ports = [("imap", &config.imap, Dialect::Imap), ("csync", &config.csync, Dialect::Csync)];
    let ports = ports.into_iter().map(|(key, place, dialect)| {
        let asked = login.clone().and_then(|login| {
            ask(place, dialect, &login, &clock).map_err(|error| Chain(&error).to_string())
        });
        (key, place.clone(), asked)
    });
    let size = |name: &str| fs::metadata(config.channel.join(name)).map_or(0, |file| file.len());
    let channel = match fs::read_dir(&config.channel) {
        Ok(_) => Ok(size("log") + size("log-run")),
        Err(error) => Err(format!("{}: {error}", config.channel.display())),
    };
    Facts { ports: ports.collect(), channel }
}

fn ask(
    place: &Place,
    dialect: Dialect,
    login: &Login,
    clock: &Arc<dyn Clock>,
) -> Result<(), LinkError> {
    let mut link = Link::open(place, dialect, login, Arc::clone(clock))?;
    link.run(&Command::Get("USER", &Value::text(NOBODY))).map(drop)
}

/// Judges it.
pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (key, place, asked) in &facts.ports {
        findings.push(match asked {
            Ok(()) => Finding::ok(Code::MailServer, format!("Cyrus at {place} ({key}) lets us in")),
            Err(why) => Finding::broken(Code::MailServer, format!("{key}: {why}"))
                .because("the daemons can neither read nor write its mail")
                .next(format!("see [cyrus] {key} in the configuration, and docs/cyrus.md")),
        });
    }
    findings.push(match &facts.channel {
        Err(why) => Finding::broken(Code::MailLocation, format!("the sync-log channel {why}"))
            .because("changes are noticed by the scan only")
            .next("add the channel to sync_log_channels in imapd.conf, and restart Cyrus"),
        Ok(octets) if *octets > BACKLOG_OCTETS => {
            let what = format!("{octets} octets wait in the channel of Cyrus's sync log");
            Finding::risk(Code::MailLocation, what)
                .because("it grows until the disk is full")
                .next("start mailtwin-agent, or take the channel out of sync_log_channels")
        }
        Ok(_) => Finding::ok(Code::MailLocation, "the channel of Cyrus's sync log is there"),
    });
    findings
}

#[cfg(test)]
mod tests {
    use super::{super::finding::Level, *};

    #[test]
    fn what_is_wrong_is_told() {
        let place: Place = "127.0.0.1:143".parse().unwrap();
        let facts = |asked: Result<(), String>, channel| Facts {
            ports: vec![("imap", place.clone(), asked)],
            channel,
        };
        let levels = |facts: Facts| judge(&facts).iter().map(|f| f.level).collect::<Vec<_>>();
        assert_eq!(levels(facts(Ok(()), Ok(5))), [Level::Ok, Level::Ok]);
        let wrong = facts(Err("refused".into()), Err("gone".into()));
        assert_eq!(levels(wrong), [Level::Broken, Level::Broken]);
        assert_eq!(levels(facts(Ok(()), Ok(9 << 20))), [Level::Ok, Level::Risk]);
    }
}
