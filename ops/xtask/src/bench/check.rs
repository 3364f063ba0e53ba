//! Checking a quiet pair, beside a no-change `rsync -a` and `sha1sum` over one of its trees.

use std::{path::Path, process::Command, time::Duration};

use anyhow::Result;
use mailtwin_tests::{files, lab::Lab};

use super::{
    Bench, copy,
    daemons::Daemons,
    measure::{self, median},
    report::{Figure, Goal, Row, talk},
    tree::{self, Shape},
};

const RSYNC: &str = "rsync -a";
const SHA1SUM: &str = "sha1sum";
const LEVELS: [&str; 3] = ["quick", "full", "deep"];

/// Very many messages.
const MANY: Shape = Shape { accounts: 1000, mailboxes: 10, messages: 100, octets: 500 };
const PEAK_OCTETS_MAX: f64 = 200_000_000.0;

/// Measures every level, and what it is compared with.
pub(super) fn measure(bench: &Bench) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    Lab::run_in(bench.image.path(), |lab| {
        let master = lab.mail_dir("check-master")?;
        let pair = quiet_pair(bench, lab, &master, copy::TREE)?;
        rows = compare(bench, &pair, &master, &lab.dir().join("rsynced"))?;
        Ok(())
    })?;
    Ok(rows)
}

/// Measures how much memory both daemons have taken after a check of very many messages.
pub(super) fn memory(bench: &Bench) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    Lab::run_in(bench.image.path(), |lab| {
        let pair = quiet_pair(bench, lab, &lab.mail_dir("many-master")?, MANY)?;
        let peaks = || -> Result<Vec<u64>> {
            [pair.agent.id(), pair.replica.id()].into_iter().map(measure::peak_resident).collect()
        };
        talk(&format!("before the check: {:?} octets", peaks()?));
        let mut check = Command::new(bench.binaries.join("replctl"));
        check.arg("--config").arg(&pair.master_config).args(["check", "--level", "full"]);
        let cost = measure::run(&bench.clock, &mut check, &bench.log)?;
        talk(&format!("full: {:.1} s wall", cost.wall.as_secs_f64()));
        for (name, peak) in ["agent", "replica"].into_iter().zip(peaks()?) {
            #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
            let ours = Figure::Octets(peak as f64);
            rows.push(Row {
                what: format!("{name}: peak memory, check --level full, {} messages", MANY.total()),
                ours: Some(ours),
                goals: vec![Goal::Bound(Figure::Octets(PEAK_OCTETS_MAX))],
                ..Row::default()
            });
        }
        Ok(())
    })?;
    Ok(rows)
}

/// Both daemons, with a tree that is on both sides.
fn quiet_pair(bench: &Bench, lab: &Lab, master: &Path, shape: Shape) -> Result<Daemons> {
    let replica = lab.mail_dir("check-replica")?;
    talk(&format!("building {} messages", shape.total()));
    tree::build(master, shape, &bench.samples)?;
    for path in files::walk(master)? {
        files::give_to_mail_user(&path)?;
    }
    let pair = Daemons::start(lab, &bench.binaries, "check", [master, &replica])?;
    pair.copied(lab, &replica, shape.total())?;
    Ok(pair)
}

fn compare(bench: &Bench, pair: &Daemons, master: &Path, rsynced: &Path) -> Result<Vec<Row>> {
    let mut from = master.as_os_str().to_owned();
    from.push("/");
    let mut rsync = Command::new("rsync");
    rsync.arg("-a").arg(&from).arg(rsynced);
    let mut sha1sum = Command::new("sh");
    sha1sum.args(["-c", "find \"$0\" -type f -path '*/cur/*' -print0 | xargs -0 sha1sum"]);
    sha1sum.arg(master);
    measure::run(&bench.clock, &mut rsync, &bench.log)?;
    let mut walls: Vec<(&str, Vec<Duration>)> = Vec::new();
    for name in [RSYNC, SHA1SUM].into_iter().chain(LEVELS) {
        let mut taken = Vec::new();
        for run in 0..=bench.runs {
            let mut check = Command::new(bench.binaries.join("replctl"));
            check.arg("--config").arg(&pair.master_config).args(["check", "--level", name]);
            let command = match name {
                RSYNC => &mut rsync,
                SHA1SUM => &mut sha1sum,
                _ => &mut check,
            };
            let cost = measure::run(&bench.clock, command, &bench.log)?;
            if run > 0 {
                taken.push(cost.wall); // The first one warms the cache.
                talk(&format!("{name}: {:.3} s wall", cost.wall.as_secs_f64()));
            }
        }
        walls.push((name, taken));
    }
    let wall = |name: &str| {
        let found = walls.iter().find(|(known, _)| *known == name);
        found.and_then(|(_, walls)| median(walls)).map(Figure::Time)
    };
    let row = |level: &str, peer: &'static str, goal| Row {
        what: format!("check --level {level}, {} messages, wall", copy::TREE.total()),
        peers: wall(peer).map(|figure| (peer.to_owned(), figure)).into_iter().collect(),
        ours: wall(level),
        goals: vec![Goal::TimesAtMost(goal, peer)],
    };
    Ok(vec![row("quick", RSYNC, 0.5), row("full", RSYNC, 1.5), row("deep", SHA1SUM, 1.5)])
}
