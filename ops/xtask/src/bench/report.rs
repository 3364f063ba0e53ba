//! What was measured, as one Markdown table with everything needed to judge and repeat it.

use std::{
    fmt::Write as _,
    fs,
    io::{self, Write as _},
    process::Command,
    time::Duration,
};

use super::Bench;

/// One line of the table.
#[derive(Debug, Default)]
pub(super) struct Row {
    /// What was done, and what of it was measured.
    pub what: String,
    /// Each peer's name and figure.
    pub peers: Vec<(String, Figure)>,
    /// Our figure; `None` if it was not measured.
    pub ours: Option<Figure>,
    /// What we must reach.
    pub goals: Vec<Goal>,
}

/// A number with its unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Figure {
    Time(Duration),
    PerSecond(f64),
    Octets(f64),
    Percent(f64),
}

impl Figure {
    fn value(self) -> f64 {
        match self {
            Self::Time(time) => time.as_secs_f64(),
            Self::PerSecond(value) | Self::Octets(value) | Self::Percent(value) => value,
        }
    }

    fn show(self) -> String {
        match self {
            Self::Time(time) if time < Duration::from_secs(1) => {
                format!("{:.1} ms", time.as_secs_f64() * 1e3)
            }
            Self::Time(time) => format!("{:.2} s", time.as_secs_f64()),
            Self::PerSecond(value) => format!("{value:.0}/s"),
            Self::Octets(value) if value >= 1e6 => format!("{:.1} MB", value / 1e6),
            Self::Octets(value) => format!("{value:.0} B"),
            Self::Percent(value) => format!("{value:.3} %"),
        }
    }
}

/// What a figure of ours must reach.
#[derive(Debug)]
pub(super) enum Goal {
    /// At most this many times the peer's.
    TimesAtMost(f64, &'static str),
    /// At least this many times the peer's.
    TimesAtLeast(f64, &'static str),
    /// At most this.
    Bound(Figure),
}

impl Row {
    fn judge(&self, goal: &Goal) -> (String, String, Option<bool>) {
        let ours = self.ours.map(Figure::value);
        let ratio = |peer: &str| {
            let (_, figure) = self.peers.iter().find(|(name, _)| name == peer)?;
            ours.map(|ours| ours / figure.value().max(f64::MIN_POSITIVE))
        };
        let shown = |ratio: Option<f64>, peer| {
            ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2} x {peer}"))
        };
        match *goal {
            Goal::TimesAtMost(bound, peer) => {
                let ratio = ratio(peer);
                let must = format!("at most {bound} x {peer}");
                (shown(ratio, peer), must, ratio.map(|ratio| ratio <= bound))
            }
            Goal::TimesAtLeast(bound, peer) => {
                let ratio = ratio(peer);
                let must = format!("at least {bound} x {peer}");
                (shown(ratio, peer), must, ratio.map(|ratio| ratio >= bound))
            }
            Goal::Bound(bound) => {
                let met = ours.map(|ours| ours <= bound.value());
                (String::new(), format!("at most {}", bound.show()), met)
            }
        }
    }

    fn markdown(&self) -> String {
        let peers: Vec<String> =
            self.peers.iter().map(|(name, figure)| format!("{name} {}", figure.show())).collect();
        let ours = self.ours.map_or_else(|| "-".to_owned(), Figure::show);
        let (mut ratios, mut goals) = (Vec::new(), Vec::new());
        for goal in &self.goals {
            let (ratio, must, met) = self.judge(goal);
            if !ratio.is_empty() {
                ratios.push(ratio);
            }
            goals.push(match met {
                Some(true) => format!("{must}: yes"),
                Some(false) => format!("{must}: **no**"),
                None => must,
            });
        }
        let [peers, ratios, goals] = [peers, ratios, goals].map(|cell| cell.join("; "));
        format!("| {} | {peers} | {ours} | {ratios} | {goals} |", self.what)
    }
}

/// The whole page.
pub(super) fn page(bench: &Bench, rows: &[Row]) -> String {
    let Bench { clock, runs, .. } = bench;
    let command: Vec<String> = std::env::args().skip(1).collect();
    let mut page = String::from("# Benchmarks\n\nMade by `cargo xtask");
    for word in &command {
        page.push(' ');
        page.push_str(word);
    }
    let date = i64::try_from(clock.unix_ms())
        .ok()
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
        .map_or_else(String::new, |now| now.strftime("%Y-%m-%d").to_string());
    let _ = writeln!(page, "` on {date}.\n");
    let _ = writeln!(page, "Machine: {}.\n", machine());
    let _ = writeln!(
        page,
        "Every figure is the median of {runs} runs, the peers' and ours interleaved. All trees lie on one ext4 with a\n\
         journal in a loop-mounted image that is written past the page cache below it; before each run the source\n\
         is read once, so that everybody finds it in the page cache, and the file system is synced. Old copies stay, because ext4 is slow for a while after\n\
         many files are deleted. Every copy is compared with its source, octet by octet.\n"
    );
    page.push_str("| what | peers | Mailtwin | ratio | must reach |\n|---|---|---|---|---|\n");
    for row in rows {
        let _ = writeln!(page, "{}", row.markdown());
    }
    page.push_str(NOTES);
    page
}

const NOTES: &str = "
Notes:

- *Initial copy* and *no-change pass* are `replctl mirror SRC DST --once`: both ends in one process, the same code
  as the daemons without the network. `rsync -a` promises nothing about a power cut; `rsync -a --fsync` and
  Mailtwin do. *copy + syncfs* is one thread that copies files and syncs once: the floor.
- *Live pair* is two Dovecots and both daemons (or Dovecot's replicator) on one machine, so that all of them share its
  processors. On the master a message has arrived when its name shows in new/ or cur/; on the replica when
  the lock under which it was placed is released, which Mailtwin does once file, name and list are synced.
- *Cyrus* is a Cyrus 3.6.1 on either side, configured alike for both: one channel of the sync log, `sync_client` as it is by itself
  (deflate, no TLS) but for `sync_repeat_interval: 0s`, with which it is fastest; Mailtwin over TLS. A first copy ends when
  `sync_client` does, or when the replica has acked everything. The pass is `replctl check --level quick`, with both daemons
  running: it compares for each mailbox of every user what the two servers tell of its state, as `sync_client -A` does. A delivery is
  accepted with LMTP's 250, and durable when the replica's server has synced and closed the mailbox's index. Every copy is
  compared with its master by UIDs and GUIDs.
- CPU is user and system time of all processes of a tool, to 10 ms; writing back dirty pages is the kernel's and
  counted for nobody.
";

fn machine() -> String {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let (cpuinfo, meminfo) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
    let value = |text: &str, key| {
        let line = text.lines().find(|line| line.starts_with(key))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let model = value(&cpuinfo, "model name").unwrap_or_default();
    let cores = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    let kib: u64 = value(&meminfo, "MemTotal")
        .and_then(|kib| kib.trim_end_matches("kB").trim().parse().ok())
        .unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease");
    let tools = [first_line("rsync", "--version"), first_line("dovecot", "--version")];
    format!(
        "{cores} x {model}, {} GiB, Linux {}, {}, Dovecot {}",
        kib >> 20,
        kernel.trim(),
        tools[0],
        tools[1]
    )
}

fn first_line(program: &str, argument: &str) -> String {
    let output = Command::new(program).arg(argument).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let line = text.unwrap_or_default().lines().next().unwrap_or("not installed").to_owned();
    line.split("protocol")
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

/// Says something to whoever watches.
pub(crate) fn talk(line: &str) {
    // Nobody is left to tell when this fails.
    let _ = writeln!(io::stderr(), "{line}");
}

/// Prints the result.
pub(super) fn print(page: &str) -> io::Result<()> {
    io::stdout().write_all(page.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_whether_it_was_reached() {
        let row = Row {
            what: "copy".into(),
            peers: vec![("rsync".into(), Figure::Time(Duration::from_secs(4)))],
            ours: Some(Figure::Time(Duration::from_secs(2))),
            goals: vec![
                Goal::TimesAtMost(1.0, "rsync"),
                Goal::Bound(Figure::Time(Duration::from_secs(1))),
            ],
        };
        assert_eq!(
            row.markdown(),
            "| copy | rsync 4.00 s | 2.00 s | 0.50 x rsync | at most 1 x rsync: yes; at most 1.00 s: **no** |"
        );
    }

    #[test]
    fn what_was_not_measured_is_not_judged() {
        let row = Row { goals: vec![Goal::TimesAtLeast(0.9, "alone")], ..Row::default() };
        assert_eq!(row.markdown(), "|  |  | - | - | at least 0.9 x alone |");
    }
}
