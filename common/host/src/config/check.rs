//! From TOML values to [`Config`]: every key, its default and its rule.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Component, Path, PathBuf},
    time::Duration,
};

use mailtwin_cyrus::Place;
use mailtwin_logic::ids::Account;
use toml::de::DeTable;
use tracing_subscriber::filter::{LevelFilter, Targets};

use super::{
    Brake, Canary, Check, Config, ConfigProblem, Cyrus, Engine, Gate, Layout, Log, Metrics, Node,
    Peer, Replica, Scan, Store, VERSION,
    table::{Found, Problems, Section},
    unit::{self, DURATION_UNITS, SIZE_UNITS},
};
use crate::keys::PublicKey;

const LOG_BOUND_DEFAULT: u64 = 1 << 30;
const LOG_BOUND_MIN: u64 = 1 << 20;
const SCAN_INTERVAL_DEFAULT: Duration = Duration::from_hours(6);
const SCRUB_DEFAULT: Duration = Duration::from_hours(30 * 24);
const SCRUB_RATE_DEFAULT: u64 = 4 << 20;
const SCRUB_RATE_MIN: u64 = 64 << 10;
const SCAN_INTERVAL_MIN: Duration = Duration::from_secs(1);
const BRAKE_WITHIN_DEFAULT: Duration = Duration::from_hours(1);
const CANARY_INTERVAL_DEFAULT: Duration = Duration::from_mins(5);
const GRAVEYARD_DEFAULT: Duration = Duration::from_hours(7 * 24);
const NAME_OCTETS_MAX: usize = 64;
const VARIABLES: [&str; 3] = ["user", "domain", "path"];

/// Parses and checks; on failure every problem, in file order.
pub(super) fn parse(path: &Path, text: &str) -> Result<Config, Vec<ConfigProblem>> {
    let file = path.display().to_string();
    let mut problems = Problems::new(&file, text);
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let at = error.span().map_or(0, |span| span.start);
        problems.report(at, "syntax", error.message().replace('\n', "; "));
    }
    if !errors.is_empty() {
        // What was recovered from broken syntax would only add problems that are none.
        return Err(problems.into_sorted());
    }
    let mut top = Section::new("", 0, table.into_inner());
    let config = document(path, &mut top, &mut problems);
    top.finish(&mut problems);
    let problems = problems.into_sorted();
    match config {
        Some(config) if problems.is_empty() => Ok(config),
        _ => Err(problems),
    }
}

/// `None` if something without a default is missing or wrong; that is reported then.
fn document(path: &Path, top: &mut Section<'_>, problems: &mut Problems<'_>) -> Option<Config> {
    version(top, problems);
    let node = node(top.section("node", problems), problems);
    let store = store(top.section("store", problems), problems);
    let cyrus = cyrus(top, store.as_ref(), problems);
    let log = log(top.section("log", problems), problems);
    let scan = scan(top.section("scan", problems), problems);
    let brake = brake(top.section("brake", problems), problems);
    let check = check(top.section("check", problems), problems);
    let replica = replica(top.section("replica", problems), problems);
    let metrics = metrics(top.section("metrics", problems), &replica, problems);
    let own = node.as_ref().map(|node| node.name.clone());
    let peers = peers(top, own.as_deref(), problems);
    let gate = gate(top.section("gate", problems), problems);
    let incident = incident(top.section("incident", problems), problems);
    let canary = canary(top.section("canary", problems), problems);
    let (node, store) = (node?, store?);
    Some(Config {
        file: path.to_owned(),
        node,
        store,
        cyrus,
        log,
        scan,
        brake,
        check,
        replica,
        metrics,
        peers,
        gate,
        incident,
        canary,
    })
}

fn version(top: &mut Section<'_>, problems: &mut Problems<'_>) {
    let before = problems.count();
    match top.integer("config_version", problems) {
        Some(found) => {
            found.check(problems, |version| {
                let wrong = || format!("is {version}, but this program reads version {VERSION}");
                if version == VERSION { Ok(()) } else { Err(wrong()) }
            });
        }
        None if problems.count() == before => top.missing("config_version", problems),
        None => {}
    }
}

fn node(mut section: Section<'_>, problems: &mut Problems<'_>) -> Option<Node> {
    let name = required(&mut section, "name", problems, |name| node_name(&name));
    let state_dir = path_or(&mut section, "state_dir", "/var/lib/mailtwin", problems);
    let run_dir = path_or(&mut section, "run_dir", "/run/mailtwin", problems);
    let log = section.string("log", problems).and_then(|found| found.check(problems, log_filter));
    section.finish(problems);
    let log = log.unwrap_or_else(|| "info".to_owned());
    Some(Node { name: name?, state_dir, run_dir, log })
}

fn store(mut section: Section<'_>, problems: &mut Problems<'_>) -> Option<Store> {
    let engine = section.string("engine", problems).and_then(|found| {
        found.check(problems, |text| match text.as_str() {
            "maildir" => Ok(Engine::Maildir),
            "memory" => Ok(Engine::Memory),
            "cyrus" => Ok(Engine::Cyrus),
            _ => Err(format!("{text:?} is no engine; there are maildir, memory, cyrus")),
        })
    });
    let engine = engine.unwrap_or(Engine::Maildir);
    let root = if engine == Engine::Memory {
        let found = section.string("root", problems);
        found.map_or_else(|| Some(String::new()), |found| found.check(problems, template))
    } else {
        required(&mut section, "root", problems, |text| {
            if engine == Engine::Cyrus && text.contains('{') {
                return Err(format!(
                    "{text:?} has a variable, but is the directory of a partition"
                ));
            }
            template(text)
        })
    };
    if engine == Engine::Cyrus {
        // What lies where is Cyrus's own business: keys of other engines are not known here.
        section.finish(problems);
        let (layout, home, work_dir) = (Layout::MaildirPlusPlus, None, None);
        let root = root.filter(|root| !root.contains('{'))?;
        return Some(Store { engine, root, layout, home, work_dir, read_only: false });
    }
    let layout = section.string("layout", problems).and_then(|found| {
        found.check(problems, |text| match text.as_str() {
            "maildir++" => Ok(Layout::MaildirPlusPlus),
            "fs" => Ok(Layout::Fs),
            _ => Err(format!("{text:?} is no layout; there are maildir++, fs")),
        })
    });
    let layout = layout.unwrap_or(Layout::MaildirPlusPlus);
    let home = section.string("home", problems).and_then(|found| found.check(problems, template));
    let work_dir = section.string("work_dir", problems).and_then(|found| {
        found.check(problems, |text| {
            if text.contains(['{', '}']) {
                return Err(format!("{text:?} has a variable, but there is one for all accounts"));
            }
            absolute(&text)
        })
    });
    let read_only = section.boolean("read_only", problems).unwrap_or(false);
    section.finish(problems);
    Some(Store { engine, root: root?, layout, home, work_dir, read_only })
}

/// The section must be there for a Cyrus, and for no other engine.
fn cyrus(
    top: &mut Section<'_>,
    store: Option<&Store>,
    problems: &mut Problems<'_>,
) -> Option<Cyrus> {
    let mut section = top.section("cyrus", problems);
    let engine = store.map(|store| store.engine);
    let place = |text: String| text.parse::<Place>().map_err(|why| format!("{text:?} {why}"));
    let keys = ["imap", "csync", "user", "password_file", "channel", "certificate"];
    let mut texts = keys.map(|name| {
        let found = section.string(name, problems);
        match engine {
            Some(Engine::Cyrus) if found.is_none() && name != "certificate" => {
                section.missing(name, problems);
                None
            }
            Some(Engine::Cyrus) | None => found,
            Some(Engine::Maildir | Engine::Memory) => found.and_then(|found| {
                let why = "is only known with `engine = \"cyrus\"` in [store]";
                found.check(problems, |_| Err::<String, _>(why.to_owned()));
                None
            }),
        }
    });
    section.finish(problems);
    if engine != Some(Engine::Cyrus) {
        return None;
    }
    let [imap, csync, user, password_file, channel, certificate] = &mut texts;
    let imap = imap.take().and_then(|found| found.check(problems, place));
    let csync = csync.take().and_then(|found| found.check(problems, place));
    let user = user.take().and_then(|found| {
        let check = |user: String| if user.is_empty() { Err("is empty".into()) } else { Ok(user) };
        found.check(problems, check)
    });
    let mut path = |found: &mut Option<Found<String>>| {
        found.take().and_then(|found| found.check(problems, |text| absolute(&text)))
    };
    let (password_file, channel, certificate) =
        (path(password_file), path(channel), path(certificate));
    Some(Cyrus {
        imap: imap?,
        csync: csync?,
        user: user?,
        password_file: password_file?,
        certificate,
        channel: channel?,
    })
}

fn log(mut section: Section<'_>, problems: &mut Problems<'_>) -> Log {
    let bound = section.unit("bound", problems, SIZE_UNITS, unit::size).and_then(|found| {
        found.check(problems, |bound| {
            if bound < LOG_BOUND_MIN { Err("must be at least 1MiB".into()) } else { Ok(bound) }
        })
    });
    section.finish(problems);
    Log { bound: bound.unwrap_or(LOG_BOUND_DEFAULT) }
}

fn scan(mut section: Section<'_>, problems: &mut Problems<'_>) -> Scan {
    let found = section.unit("interval", problems, DURATION_UNITS, unit::duration);
    let interval = found.and_then(|found| {
        found.check(problems, |time| {
            if time < SCAN_INTERVAL_MIN { Err("must be at least 1s".into()) } else { Ok(time) }
        })
    });
    section.finish(problems);
    Scan { interval: interval.unwrap_or(SCAN_INTERVAL_DEFAULT) }
}

fn brake(mut section: Section<'_>, problems: &mut Problems<'_>) -> Brake {
    let mut count = |name, default| {
        let found = section.integer(name, problems).and_then(|found| {
            found.check(problems, |number| {
                let number = u64::try_from(number).ok().filter(|&number| number > 0);
                number.ok_or_else(|| "must be at least 1".to_owned())
            })
        });
        found.unwrap_or(default)
    };
    let (messages, mailboxes) = (count("messages", 250), count("mailboxes", 10));
    let accounts = count("accounts", 5);
    let share = section.string("share", problems);
    let share = share.and_then(|found| found.check(problems, |text| unit::percent(&text)));
    let within = section.unit("within", problems, DURATION_UNITS, unit::duration);
    let within = within.and_then(|found| {
        found.check(problems, |time| {
            if time.is_zero() { Err("must be more than nothing".into()) } else { Ok(time) }
        })
    });
    section.finish(problems);
    let within = within.unwrap_or(BRAKE_WITHIN_DEFAULT);
    Brake { messages, mailboxes, accounts, share: share.unwrap_or(30), within }
}

fn check(mut section: Section<'_>, problems: &mut Problems<'_>) -> Check {
    let scrub = section.unit("scrub", problems, DURATION_UNITS, unit::duration);
    let rate = section.unit("rate", problems, SIZE_UNITS, unit::size).and_then(|found| {
        found.check(problems, |rate| {
            if rate < SCRUB_RATE_MIN { Err("must be at least 64KiB".into()) } else { Ok(rate) }
        })
    });
    section.finish(problems);
    Check {
        scrub: scrub.map_or(SCRUB_DEFAULT, |found| found.value),
        rate: rate.unwrap_or(SCRUB_RATE_DEFAULT),
    }
}

fn replica(mut section: Section<'_>, problems: &mut Problems<'_>) -> Replica {
    let listen = section.string("listen", problems);
    let listen = listen.and_then(|found| found.check(problems, |text| socket_address(&text)));
    let graveyard = section.unit("graveyard", problems, DURATION_UNITS, unit::duration);
    section.finish(problems);
    Replica {
        listen: listen.unwrap_or_else(|| SocketAddr::from(([0_u16; 8], 4710))),
        graveyard: graveyard.map_or(GRAVEYARD_DEFAULT, |found| found.value),
    }
}

fn metrics(mut section: Section<'_>, replica: &Replica, problems: &mut Problems<'_>) -> Metrics {
    let agent = metrics_address(&mut section, "agent", 9471, &[replica.listen], problems);
    let taken = [Some(replica.listen), agent].into_iter().flatten().collect::<Vec<_>>();
    let replica = metrics_address(&mut section, "replica", 9472, &taken, problems);
    section.finish(problems);
    Metrics { agent, replica }
}

fn metrics_address(
    section: &mut Section<'_>,
    name: &'static str,
    default_port: u16,
    taken: &[SocketAddr],
    problems: &mut Problems<'_>,
) -> Option<SocketAddr> {
    let default = SocketAddr::from(([127, 0, 0, 1], default_port));
    let Some(found) = section.string(name, problems) else { return Some(default) };
    if found.value == "off" {
        return None;
    }
    found.check(problems, |text| {
        let address = socket_address(&text)?;
        // Port 0 is any free port, so two of them never collide.
        if address.port() != 0 && taken.contains(&address) {
            return Err(format!("{text:?} is already taken by another key of this file"));
        }
        Ok(address)
    })
}

/// The rules for a `[[peer]]`, for one that comes from elsewhere.
pub(super) fn peer(name: &str, address: &str) -> Result<(), String> {
    node_name(name)?;
    host_and_port(address.to_owned()).map(drop)
}

fn peers(top: &mut Section<'_>, own: Option<&str>, problems: &mut Problems<'_>) -> Vec<Peer> {
    let mut names = BTreeMap::new();
    let mut owners = BTreeMap::new();
    let mut peers = Vec::new();
    for (i, mut section) in top.sections("peer", problems).into_iter().enumerate() {
        let name = required(&mut section, "name", problems, |name| {
            let name = node_name(&name)?;
            if own == Some(&name) {
                return Err(format!("{name:?} is this node's own name"));
            }
            match names.insert(name.clone(), i) {
                Some(first) => Err(format!("{name:?} is already taken by peer[{first}]")),
                None => Ok(name),
            }
        });
        let address = required(&mut section, "address", problems, host_and_port);
        let keys = section.strings("keys", problems).into_iter().filter_map(|found| {
            found.check(problems, |text| {
                let key: PublicKey = text.parse().map_err(|e| format!("{text:?}: {e}"))?;
                match owners.insert(key, i) {
                    Some(first) => Err(format!("this key stands at peer[{first}] already")),
                    None => Ok(key),
                }
            })
        });
        let keys = keys.collect();
        section.finish(problems);
        if let (Some(name), Some(address)) = (name, address) {
            peers.push(Peer { name, address, keys });
        }
    }
    peers
}

fn gate(mut section: Section<'_>, problems: &mut Problems<'_>) -> Gate {
    let close = command(&mut section, "close", problems);
    let open = command(&mut section, "open", problems);
    section.finish(problems);
    Gate { close, open }
}

fn incident(mut section: Section<'_>, problems: &mut Problems<'_>) -> Option<String> {
    let command = command(&mut section, "command", problems);
    section.finish(problems);
    command
}

/// `[canary]`: all of it, or nothing.
fn canary(mut section: Section<'_>, problems: &mut Problems<'_>) -> Option<Canary> {
    let before = problems.count();
    let account = section.string("account", problems);
    let lmtp = section.string("lmtp", problems);
    let interval = section.string("interval", problems);
    let is_wanted = account.is_some() || lmtp.is_some() || interval.is_some();
    for (name, is_there) in [("account", account.is_some()), ("lmtp", lmtp.is_some())] {
        if is_wanted && !is_there && problems.count() == before {
            section.missing(name, problems);
        }
    }
    section.finish(problems);
    let account = account.and_then(|found| found.check(problems, |text| plain_address(&text)));
    let lmtp = lmtp.and_then(|found| {
        found.check(problems, |text| text.parse().map_err(|why| format!("{text:?} {why}")))
    });
    let interval = interval.and_then(|found| found.check(problems, |text| unit::duration(&text)));
    let interval = interval.unwrap_or(CANARY_INTERVAL_DEFAULT);
    Some(Canary { account: account?, lmtp: lmtp?, interval })
}

/// An account that can stand in a message's header and between angle brackets as it is.
fn plain_address(text: &str) -> Result<Account, String> {
    let is_plain = |letter: char| letter.is_ascii_graphic() && !"<>()\"\\,;:[]".contains(letter);
    if !text.chars().all(is_plain) {
        return Err(format!("{text:?} is no plain address"));
    }
    Account::new(text).map_err(|error| format!("{text:?}: {error}"))
}

/// A command for the shell, if there is one.
fn command(
    section: &mut Section<'_>,
    name: &'static str,
    problems: &mut Problems<'_>,
) -> Option<String> {
    let found = section.string(name, problems)?;
    found.check(
        problems,
        |text| {
            if text.trim().is_empty() { Err("is empty".into()) } else { Ok(text) }
        },
    )
}

/// A text that must be there and pass `check`.
fn required<T>(
    section: &mut Section<'_>,
    name: &'static str,
    problems: &mut Problems<'_>,
    check: impl FnOnce(String) -> Result<T, String>,
) -> Option<T> {
    let before = problems.count();
    if let Some(found) = section.string(name, problems) {
        return found.check(problems, check);
    }
    if problems.count() == before {
        section.missing(name, problems);
    }
    None
}

fn path_or(
    section: &mut Section<'_>,
    name: &'static str,
    default: &str,
    problems: &mut Problems<'_>,
) -> PathBuf {
    let found: Option<Found<String>> = section.string(name, problems);
    let path = found.and_then(|found| found.check(problems, |text| absolute(&text)));
    path.unwrap_or_else(|| default.into())
}

/// A level, or a list of `target=level` with at most one bare level in it.
fn log_filter(text: String) -> Result<String, String> {
    // `Targets` alone would take a misspelt level for the name of a target.
    let fits = |part: &str| part.contains('=') || part.trim().parse::<LevelFilter>().is_ok();
    if text.split(',').all(fits) && text.parse::<Targets>().is_ok() {
        return Ok(text);
    }
    Err(format!(
        "{text:?} is no level (error, warn, info, debug, trace, off), nor a list like \
         info,mailtwin_agent=debug"
    ))
}

/// The rule for node names: they stand in file names, metric labels and commands.
fn node_name(name: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let begins = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if begins && name.len() <= NAME_OCTETS_MAX && name.chars().all(fits) {
        return Ok(name.to_owned());
    }
    Err(format!(
        "{name:?} is not 1 to {NAME_OCTETS_MAX} letters, digits, '.', '-' or '_' that begin with a \
         letter or digit"
    ))
}

fn absolute(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if !path.is_absolute() {
        return Err(format!("{text:?} is not an absolute path"));
    }
    if text.contains('\0') || path.components().any(|part| part == Component::ParentDir) {
        return Err(format!("{text:?} has a \"..\" or NUL in it"));
    }
    Ok(path)
}

/// An absolute path whose only variables are [`VARIABLES`].
fn template(text: String) -> Result<String, String> {
    absolute(&text)?;
    let known = || VARIABLES.map(|name| format!("{{{name}}}")).join(", ");
    let mut rest = text.as_str();
    while let Some((before, behind)) = rest.split_once('{') {
        let variable = behind.split_once('}');
        let variable = variable.filter(|(name, _)| !name.contains('{') && !before.contains('}'));
        let Some((name, behind)) = variable else {
            return Err(format!("{text:?} has a brace without its partner"));
        };
        if !VARIABLES.contains(&name) {
            return Err(format!("unknown variable {{{name}}} in {text:?}; there are {}", known()));
        }
        rest = behind;
    }
    if rest.contains('}') {
        return Err(format!("{text:?} has a brace without its partner"));
    }
    Ok(text)
}

fn socket_address(text: &str) -> Result<SocketAddr, String> {
    let wrong = || format!("{text:?} is not address:port, like 192.0.2.7:4710 or [::]:4710");
    text.parse().map_err(|_| wrong())
}

fn host_and_port(text: String) -> Result<String, String> {
    if text.parse::<SocketAddr>().is_ok_and(|address| address.port() != 0) {
        return Ok(text);
    }
    let host_fits = |host: &str| {
        !host.is_empty()
            && host.len() <= 253
            && host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
    };
    match text.rsplit_once(':') {
        Some((host, port))
            if host_fits(host) && port.parse::<u16>().is_ok_and(|port| port != 0) =>
        {
            Ok(text)
        }
        _ => Err(format!(
            "{text:?} is not host:port, like mx2.example.org:4710 or [2001:db8::2]:4710"
        )),
    }
}
