//! Deliveries into a live Dovecot, and when each message is on the replica: with nobody replicating,
//! with Dovecot's own replicator, and with Mailtwin.

use std::{
    fmt, fs,
    net::SocketAddr,
    path::PathBuf,
    process::{Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result};
use mailtwin_tests::{
    dovecot::{Dovecot, Layout, Version},
    files,
    lab::Lab,
    lmtp,
};

use super::{
    Bench,
    arrivals::{Arrivals, Side},
    daemons::Daemons,
    measure::{median, quantile},
    report::{Figure, Goal, Row, talk},
    tree,
};

pub(super) const ACCOUNTS: usize = 20;
/// Connections that deliver at the same time.
const CONNECTIONS: usize = 4;
const MESSAGE_OCTETS: usize = 8192;

/// Who keeps the replica in step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keeper {
    Nobody,
    Replicator,
    Mailtwin,
}

impl fmt::Display for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nobody => "alone",
            Self::Replicator => "replicator",
            Self::Mailtwin => "mailtwin",
        })
    }
}

/// What is delivered.
#[derive(Clone, Copy, Debug)]
struct Load {
    messages: usize,
    /// Deliveries a second; as fast as they go if `None`.
    rate: Option<u32>,
}

const BURST: Load = Load { messages: 2000, rate: None };
const STEADY: Load = Load { messages: 1000, rate: Some(50) };

/// What came of it.
#[derive(Clone, Copy, Debug)]
struct Outcome {
    keeper: Keeper,
    accepted_per_second: f64,
    /// From the last delivery until the replica had all.
    complete: Duration,
    lag_p50: Duration,
    lag_p99: Duration,
}

/// As fast as they go.
pub(super) fn burst(bench: &Bench) -> Result<Vec<Row>> {
    let keepers = [Keeper::Nobody, Keeper::Replicator, Keeper::Mailtwin];
    let outcomes = rounds(bench, &keepers, BURST)?;
    let rate = |keeper| median_of(&outcomes, keeper, |one| one.accepted_per_second);
    let complete = |keeper| median_of(&outcomes, keeper, |one| one.complete);
    let peers = [Keeper::Nobody, Keeper::Replicator];
    Ok(vec![
        Row {
            what: format!("{} deliveries, replica complete after the last", BURST.messages),
            peers: figures(&[Keeper::Replicator], |keeper| complete(keeper).map(Figure::Time)),
            ours: complete(Keeper::Mailtwin).map(Figure::Time),
            goals: vec![Goal::Bound(Figure::Time(Duration::from_millis(500)))],
        },
        Row {
            what: format!("{} deliveries, accepted", BURST.messages),
            peers: figures(&peers, |keeper| rate(keeper).map(Figure::PerSecond)),
            ours: rate(Keeper::Mailtwin).map(Figure::PerSecond),
            goals: vec![Goal::TimesAtLeast(0.9, "alone")],
        },
    ])
}

/// At a rate that leaves the machine room.
pub(super) fn steady(bench: &Bench) -> Result<Vec<Row>> {
    let outcomes = rounds(bench, &[Keeper::Replicator, Keeper::Mailtwin], STEADY)?;
    let row = |name, bound, pick: fn(&Outcome) -> Duration| {
        let figure = |keeper| median_of(&outcomes, keeper, pick).map(Figure::Time);
        Row {
            what: format!("50 deliveries/s for 20 s, master to replica, {name}"),
            peers: figures(&[Keeper::Replicator], figure),
            ours: figure(Keeper::Mailtwin),
            goals: vec![
                Goal::Bound(Figure::Time(Duration::from_millis(bound))),
                Goal::TimesAtMost(0.1, "replicator"),
            ],
        }
    };
    Ok(vec![row("p50", 20, |one| one.lag_p50), row("p99", 100, |one| one.lag_p99)])
}

fn figures(keepers: &[Keeper], figure: impl Fn(Keeper) -> Option<Figure>) -> Vec<(String, Figure)> {
    keepers.iter().filter_map(|keeper| Some((keeper.to_string(), figure(*keeper)?))).collect()
}

fn median_of<T: PartialOrd + Copy>(
    outcomes: &[Outcome],
    keeper: Keeper,
    pick: impl Fn(&Outcome) -> T,
) -> Option<T> {
    let values: Vec<T> = outcomes.iter().filter(|one| one.keeper == keeper).map(pick).collect();
    median(&values)
}

fn rounds(bench: &Bench, keepers: &[Keeper], load: Load) -> Result<Vec<Outcome>> {
    let mut keepers = keepers.to_vec();
    keepers.retain(|keeper| !(bench.peers_only && *keeper == Keeper::Mailtwin));
    let mut outcomes = Vec::new();
    Lab::run_in(bench.image.path(), |lab| {
        for run in 0..bench.runs {
            keepers.rotate_left(1); // Nobody always comes first.
            for keeper in &keepers {
                bench.image.settle()?;
                let outcome = round(bench, lab, *keeper, load, run)
                    .with_context(|| format!("deliver with {keeper}"));
                match outcome {
                    Ok(outcome) => {
                        say(&outcome);
                        outcomes.push(outcome);
                    }
                    // What is measured of the others is worth having without it.
                    Err(error) if *keeper == Keeper::Replicator => {
                        talk(&format!("not counted: {error:#}"));
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    })?;
    Ok(outcomes)
}

fn round(bench: &Bench, lab: &Lab, keeper: Keeper, load: Load, run: usize) -> Result<Outcome> {
    let pair = Pair::start(bench, lab, keeper, run)?;
    pair.prime(bench, lab)?;
    let arrivals = pair.watch(bench)?;
    let octets = messages(bench, load.messages)?;

    let start = bench.clock.monotonic();
    deliver(bench, pair.master.lmtp_address(), &octets, load.rate)?;
    let last = bench.clock.monotonic();

    let mut given_up = false;
    if keeper != Keeper::Nobody {
        let waited = lab.wait("the replica has every message", || {
            let (_, both) = arrivals.counts()?;
            let missing = load.messages.saturating_sub(both);
            Ok(if missing == 0 { Ok(()) } else { Err(format!("{missing} are missing")) })
        });
        // The replicator leaves an account alone for five minutes after an error: that is its
        // figure then. Of Mailtwin it would be a bug.
        match waited {
            Err(error) if keeper == Keeper::Replicator => {
                talk(&format!("{error:#}"));
                given_up = true;
            }
            waited => waited?,
        }
    }
    let times = arrivals.times()?;
    let complete = if given_up {
        bench.clock.monotonic()
    } else {
        times.iter().map(|(there, _)| *there).max().unwrap_or_default()
    };
    let lags: Vec<_> = times.iter().map(|(_, lag)| *lag).collect();
    #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
    let accepted_per_second = load.messages as f64 / last.saturating_sub(start).as_secs_f64();
    pair.stop()?;
    Ok(Outcome {
        keeper,
        accepted_per_second,
        complete: complete.saturating_sub(last),
        lag_p50: median(&lags).unwrap_or_default(),
        lag_p99: quantile(&lags, 99).unwrap_or_default(),
    })
}

fn say(outcome: &Outcome) {
    let Outcome { keeper, accepted_per_second, complete, lag_p50, lag_p99 } = outcome;
    talk(&format!(
        "deliveries: {keeper}: {accepted_per_second:.0}/s, complete {complete:.2?} after the last, \
         lag p50 {lag_p50:.1?} p99 {lag_p99:.1?}"
    ));
}

/// Delivers to all accounts in turn; returns when each message was accepted.
pub(super) fn deliver(
    bench: &Bench,
    server: SocketAddr,
    octets: &[Vec<u8>],
    rate: Option<u32>,
) -> Result<Vec<Duration>> {
    let (next, start) = (AtomicUsize::new(0), bench.clock.monotonic());
    let worker = || -> Result<Vec<(usize, Duration)>> {
        let mut connection = lmtp::Connection::open(server)?;
        let mut accepted = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(message) = octets.get(number) else { return Ok(accepted) };
            if let Some(rate) = rate {
                let due = start + Duration::from_secs(1) * u32::try_from(number)? / rate;
                bench.clock.pause(due.saturating_sub(bench.clock.monotonic()));
            }
            connection.deliver(&account(number), message)?;
            accepted.push((number, bench.clock.monotonic()));
        }
    };
    let panicked = |_| Err(anyhow::anyhow!("a delivering thread panicked"));
    let mut accepted = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..CONNECTIONS).map(|_| scope.spawn(worker)).collect();
        let each = workers.into_iter().map(|worker| worker.join().unwrap_or_else(panicked));
        each.collect::<Result<Vec<_>>>()
    })?
    .concat();
    accepted.sort_unstable();
    Ok(accepted.into_iter().map(|(_, at)| at).collect())
}

/// The account that a message goes to.
pub(super) fn account(number: usize) -> String {
    format!("u{}", number % ACCOUNTS + 1)
}

/// The first `count` messages.
pub(super) fn messages(bench: &Bench, count: usize) -> Result<Vec<Vec<u8>>> {
    (0..count).map(|number| message(bench, number)).collect()
}

/// A message with line ends as on the wire.
pub(super) fn message(bench: &Bench, number: usize) -> Result<Vec<u8>> {
    let octets = bench.samples.message(u64::try_from(number)?, MESSAGE_OCTETS);
    let mut wire = Vec::with_capacity(octets.len() + octets.len() / 32);
    for line in octets.split_inclusive(|octet| *octet == b'\n') {
        wire.extend_from_slice(line.strip_suffix(b"\n").unwrap_or(line));
        wire.extend_from_slice(b"\r\n");
    }
    Ok(wire)
}

/// Two Dovecots, and whoever keeps the second in step with the first.
struct Pair {
    master: Dovecot,
    replica: Dovecot,
    keeper: Keeper,
    daemons: Option<Daemons>,
}

impl Pair {
    fn start(bench: &Bench, lab: &Lab, keeper: Keeper, run: usize) -> Result<Self> {
        let ports = [lab.port()?, lab.port()?];
        let server = |role: &str, own: u16, other: u16| {
            // Every round has folders of its own; nothing is removed in between.
            let name = format!("{keeper}-{run}-{role}");
            let extra = match keeper {
                Keeper::Replicator => replication(lab, &name, own, other)?,
                Keeper::Nobody | Keeper::Mailtwin => String::new(),
            };
            Dovecot::with_extra(lab, &name, Version::V23, Layout::MaildirPlusPlus, &extra)
        };
        let master = server("master", ports[0], ports[1])?;
        let replica = server("replica", ports[1], ports[0])?;
        let daemons = match keeper {
            Keeper::Mailtwin => {
                let mail = [master.mail_root(), replica.mail_root()];
                let mail = mail.each_ref().map(PathBuf::as_path);
                Some(Daemons::start(lab, &bench.binaries, &format!("{keeper}-{run}"), mail)?)
            }
            Keeper::Nobody | Keeper::Replicator => None,
        };
        Ok(Self { master, replica, keeper, daemons })
    }

    /// One message for everybody, so that first-time work is not measured.
    fn prime(&self, bench: &Bench, lab: &Lab) -> Result<()> {
        for number in 0..ACCOUNTS {
            let octets = message(bench, 1_000_000 + number)?;
            self.master.deliver(&account(number), &octets)?;
        }
        if self.keeper == Keeper::Nobody {
            return Ok(());
        }
        lab.wait("the replica has the first messages", || {
            let there = tree::count(&self.replica.mail_root())?;
            let all = usize::try_from(there)? == ACCOUNTS;
            if !all && self.keeper == Keeper::Replicator {
                self.kick()?;
            }
            Ok(if all { Ok(()) } else { Err(format!("{there} of {ACCOUNTS} are there")) })
        })
    }

    /// Tells the replicator to look at everybody: when the sync of an account has failed, it waits
    /// for five minutes.
    fn kick(&self) -> Result<()> {
        let settings = self.master.mail_root().with_file_name("etc").join("dovecot.conf");
        // It fails while the replicator is still starting; the next look tries again.
        let _ = Command::new("doveadm")
            .arg("-c")
            .arg(settings)
            .args(["replicator", "replicate", "*"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .context("start doveadm")?;
        Ok(())
    }

    fn watch(&self, bench: &Bench) -> Result<Arrivals> {
        let accounts = || (0..ACCOUNTS).map(account);
        let mut folders: Vec<_> =
            accounts().map(|account| (Side::Master, self.master.maildir(&account))).collect();
        if self.keeper != Keeper::Nobody {
            folders
                .extend(accounts().map(|account| (Side::Replica, self.replica.maildir(&account))));
        }
        let folders = folders.iter().map(|(side, path)| (*side, path.as_path()));
        Arrivals::watch(&bench.clock, folders)
    }

    fn stop(mut self) -> Result<()> {
        if let Some(daemons) = self.daemons.take() {
            daemons.stop()?;
        }
        self.master.stop()?;
        self.replica.stop()
    }
}

/// Settings of Dovecot 2.3 for its own replication with the server whose doveadm listens at `other`.
fn replication(lab: &Lab, name: &str, own: u16, other: u16) -> Result<String> {
    let settings = lab.dir().join(name).join("etc");
    fs::create_dir_all(&settings)?;
    let users = settings.join("users");
    let lines: Vec<String> =
        (0..ACCOUNTS).map(|number| format!("{}:::::::", account(number))).collect();
    files::write(&users, lines.join("\n"))?;
    let home = lab.dir().join(name).join("mail/%u");
    Ok(format!(
        "mail_plugins = $mail_plugins notify replication
replication_max_conns = 10
doveadm_password = bench
doveadm_port = {other}
service doveadm {{
  inet_listener {{
    address = 127.0.0.1
    port = {own}
  }}
}}
service replicator {{
  process_min_avail = 1
  unix_listener replicator-doveadm {{
    mode = 0666
  }}
}}
service aggregator {{
  fifo_listener replication-notify-fifo {{
    mode = 0666
  }}
  unix_listener replication-notify {{
    mode = 0666
  }}
}}
plugin {{
  mail_replica = tcp:127.0.0.1:{other}
}}
userdb {{
  driver = passwd-file
  args = username_format=%u {users}
  default_fields = uid={user} gid={user} home={home}
}}
",
        users = users.display(),
        user = mailtwin_tests::lab::MAIL_USER,
        home = home.display(),
    ))
}
