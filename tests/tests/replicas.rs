//! Several replicas: added while mail flows, away while it flows, removed; and what becomes of a
//! place in the log.

use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::{Context as _, ensure};
use mailtwin_tests::{
    corpus,
    daemon::Node,
    dovecot::{Dovecot, Version},
    files,
    lab::Lab,
    oracle,
    workload::Workload,
};
use serde_json::Value;

/// A master and two replicas.
struct Three {
    servers: [Dovecot; 3],
    nodes: [Node; 3],
    accounts: Vec<String>,
}

impl Three {
    /// Nothing runs but the servers.
    fn around(lab: &Lab) -> anyhow::Result<Self> {
        let servers = [
            Dovecot::busy(lab, "master", Version::V23)?,
            Dovecot::start(lab, "first", Version::V23)?,
            Dovecot::start(lab, "second", Version::V23)?,
        ];
        let nodes = Node::cluster(lab, &[&servers[0], &servers[1], &servers[2]])?;
        let nodes = nodes.try_into().map_err(|_| anyhow::anyhow!("a node for each server"))?;
        let accounts = ["u1", "u2", "u3"].map(str::to_owned).to_vec();
        Ok(Self { servers, nodes, accounts })
    }

    fn start(&mut self, lab: &Lab) -> anyhow::Result<()> {
        self.nodes.iter_mut().rev().try_for_each(|node| node.start(lab))?;
        self.wait_answer(lab)
    }

    /// Waits until the master's agent can be asked.
    fn wait_answer(&self, lab: &Lab) -> anyhow::Result<()> {
        lab.wait("the agent answers", || {
            let output = self.nodes[0].replctl(lab, &["log", "stat"])?;
            Ok(if output.code == Some(0) { Ok(()) } else { Err(output.stderr) })
        })
    }

    /// Takes the second replica out of the master's configuration.
    fn forget_second(&self) -> anyhow::Result<()> {
        let (name, port) = (self.nodes[2].name(), self.nodes[2].port);
        let peer = format!("\n[[peer]]\nname = \"{name}\"\naddress = \"127.0.0.1:{port}\"\n");
        let text = self.nodes[0].config_text()?;
        ensure!(text.contains(&peer), "the peer is there: {text}");
        self.nodes[0].write_config(&text.replace(&peer, ""))
    }

    /// Gives the master's log so small a bound that a test can fill it.
    fn bound_log(&self) -> anyhow::Result<()> {
        let text = self.nodes[0].config_text()?;
        self.nodes[0].write_config(&format!("{text}\n[log]\nbound = \"1MiB\"\n"))
    }

    fn address(&self, place: usize) -> String {
        format!("127.0.0.1:{}", self.nodes[place].port)
    }

    /// What the master says of one replica.
    fn replica(&self, lab: &Lab, place: usize) -> anyhow::Result<Value> {
        let list = self.nodes[0].ask(lab, &["replica", "list"])?;
        let all = list["replicas"].as_array().context("replicas")?;
        let name = self.nodes[place].name();
        let found = all.iter().find(|replica| replica["name"] == name);
        Ok(found.cloned().unwrap_or(Value::Null))
    }

    fn wait_replica(
        &self,
        lab: &Lab,
        place: usize,
        what: &str,
        is: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<Value> {
        lab.wait(what, || {
            let replica = self.replica(lab, place)?;
            Ok(if is(&replica) { Ok(replica) } else { Err(replica.to_string()) })
        })
    }

    fn wait_equal(&self, lab: &Lab, place: usize) -> anyhow::Result<()> {
        oracle::wait_equal(lab, &self.servers[0], &self.servers[place], &self.accounts)
    }

    /// Appends so many entries of some 250 octets to the master's log, for mail that is not there.
    fn fill_log(&self, lab: &Lab, part: usize, entries: usize) -> anyhow::Result<()> {
        let long = "x".repeat(200);
        let names: Vec<String> =
            (0..entries).map(|number| format!("ghost/{part}-{number}-{long}")).collect();
        let words: Vec<&str> =
            ["log", "append"].into_iter().chain(names.iter().map(String::as_str)).collect();
        self.nodes[0].replctl(lab, &words)?.expect(0)?;
        Ok(())
    }

    fn metric(&self, place: usize, metric: &str, more: &str) -> anyhow::Result<Option<f64>> {
        let page = Node::page(self.nodes[0].metrics.0, "/metrics")?;
        let replica = format!("replica=\"{}\"", self.nodes[place].name());
        let line = page.lines().find(|line| {
            line.starts_with(&format!("{metric}{{"))
                && line.contains(&replica)
                && line.contains(more)
        });
        let value = line.and_then(|line| line.rsplit(' ').next());
        Ok(value.map(str::parse).transpose()?)
    }
}

#[test]
fn a_replica_that_is_added_under_load_has_no_gap() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mut three = Three::around(lab)?;
        three.forget_second()?;
        three.start(lab)?;
        let mut workload = Workload::usual(lab, &three.servers[0], &three.accounts);
        workload.operations = workload.operations.min(1200);
        let go_on = AtomicBool::new(true);
        let (name, address) = (three.nodes[2].name().to_owned(), three.address(2));
        let tally = thread::scope(|scope| {
            let work = scope.spawn(|| workload.run(lab, &go_on));
            let added = (|| {
                three.wait_replica(lab, 1, "some mail has come in", |replica| {
                    replica["messages"].as_u64() > Some(60)
                })?;
                let added = three.nodes[0].ask(lab, &["replica", "add", &name, &address])?;
                let place = added["place"].as_u64().context("a place in the log")?;
                ensure!(place > 0 && added["done"] == true && added["accounts"] == 3, "{added}");
                // It is there, and follows, while the load goes on.
                three.wait_replica(lab, 2, "the new replica follows", |replica| {
                    replica["cursor"].as_u64() > Some(place + 20)
                })
            })();
            go_on.store(false, Ordering::Relaxed);
            let tally = work.join().map_err(|_| anyhow::anyhow!("the workload panicked"))?;
            added.and(tally)
        })?;
        tally.expect_no_loss(&three.servers[0], &three.accounts)?;
        three.wait_equal(lab, 1)?;
        three.wait_equal(lab, 2)?;

        // It is a replica after a restart, too, and the configuration is as the admin wrote it.
        let config = three.nodes[0].config_text()?;
        ensure!(!config.contains(&name), "{config}");
        three.nodes[0].stop()?;
        three.servers[0].deliver("u1", &corpus::short("while-the-agent-is-away"))?;
        three.nodes[0].start(lab)?;
        three.wait_equal(lab, 2)
    })
}

#[test]
fn what_cannot_be_added_is_told_why_and_nothing_is_changed() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mut three = Three::around(lab)?;
        three.forget_second()?;
        three.start(lab)?;
        let (first, own) = (three.nodes[1].name().to_owned(), three.nodes[0].name().to_owned());
        let (taken, free) = (three.address(1), three.address(2));
        for (name, address, why) in [
            (first.as_str(), free.as_str(), "is a peer already, at"),
            (&own, &free, "own name"),
            ("mx3", &taken, "is the address of first-node already"),
            ("mx3", "mx3.example.org", "is not host:port"),
            ("mx3", "mx3.example.org:0", "is not host:port"),
            ("../mx3", &free, "letters, digits"),
        ] {
            for dry_run in [&[][..], &["--dry-run"]] {
                let words = [&["replica", "add", name, address], dry_run].concat();
                let output = three.nodes[0].replctl(lab, &words)?.expect(2)?;
                ensure!(output.stderr.contains(why), "{name} {address}: {}", output.stderr);
            }
        }
        let output = three.nodes[0].replctl(lab, &["replica", "remove", "mx9"])?.expect(2)?;
        ensure!(output.stderr.contains("no peer is called"), "{}", output.stderr);
        let words = ["replica", "add", "mx3", free.as_str(), "--dry-run"];
        let output = three.nodes[0].replctl(lab, &words)?.expect(0)?;
        ensure!(output.stdout.contains("would be a replica"), "{}", output.stdout);
        ensure!(!three.nodes[0].state_dir().join("peers.json").exists(), "nothing was noted");
        let list = three.nodes[0].ask(lab, &["replica", "list"])?;
        ensure!(list["replicas"].as_array().map(Vec::len) == Some(1), "{list}");

        // One that nobody answers for is added, and what keeps it from that is told.
        let nowhere = format!("127.0.0.1:{}", lab.port()?);
        let words = ["replica", "add", "mx3", nowhere.as_str()];
        let output = three.nodes[0].replctl(lab, &words)?.expect(0)?;
        ensure!(output.stdout.contains("is not reached yet, and tried again"), "{}", output.stdout);
        // A replica notes it for when it is the master.
        three.nodes[1].start_agent(lab)?;
        lab.wait("the replica's agent answers", || {
            let output = three.nodes[1].replctl(lab, &words)?;
            Ok(if output.code == Some(0) { Ok(output) } else { Err(output.stderr) })
        })
        .and_then(|output| {
            let said = output.stdout.contains("once it is the master");
            ensure!(said, "{}", output.stdout);
            Ok(())
        })
    })
}

#[test]
fn one_replica_away_costs_the_other_nothing() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mut three = Three::around(lab)?;
        three.start(lab)?;
        three.servers[0].deliver("u1", &corpus::short("first"))?;
        three.wait_equal(lab, 1)?;
        three.wait_equal(lab, 2)?;
        three.nodes[2].stop()?;
        let mut workload = Workload::usual(lab, &three.servers[0], &three.accounts);
        workload.operations = workload.operations.min(800);
        let tally = workload.run(lab, &AtomicBool::new(false))?;
        let first = three.nodes[1].name().to_owned();
        three.nodes[0].replctl(lab, &["drain", "--replica", &first])?.expect(0)?;
        three.wait_equal(lab, 1)?;
        let (here, away) = (three.replica(lab, 1)?, three.replica(lab, 2)?);
        ensure!(here["state"] == "in-sync" && here["lag_entries"] == 0, "{here}");
        ensure!(here["lag_seconds"] == 0.0 && here["claim"] == "ok", "{here}");
        ensure!(away["state"] == "waiting" || away["state"] == "connecting", "{away}");
        // How many there are depends on how fast it went. It was asked later, so may lack even more.
        let passed = |replica: &Value| replica["cursor"].as_u64().context("a cursor");
        let lacks = passed(&here)?.checked_sub(passed(&away)?);
        ensure!(lacks > Some(0) && away["lag_entries"].as_u64() >= lacks, "{here} {away}");
        ensure!(away["claim"] == "ok", "{away}");
        ensure!(three.metric(1, "mailtwin_replica_lag_entries", "")? == Some(0.0), "the first's");
        ensure!(three.metric(1, "mailtwin_replica_connected", "")? == Some(1.0), "the first's");
        ensure!(three.metric(2, "mailtwin_replica_connected", "")? == Some(0.0), "the second's");

        three.nodes[2].start(lab)?;
        three.wait_equal(lab, 2)?;
        tally.expect_no_loss(&three.servers[2], &three.accounts)?;
        let back = three.wait_replica(lab, 2, "it has caught up", |replica| {
            replica["state"] == "in-sync" && replica["lag_entries"] == 0
        })?;
        ensure!(back["quarantined"] == 0, "{back}");
        three.wait_equal(lab, 1)
    })
}

#[test]
fn a_place_in_the_log_is_at_risk_then_lost_and_that_deletes_nothing() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mut three = Three::around(lab)?;
        three.bound_log()?;
        three.start(lab)?;
        for number in 0..6 {
            three.servers[0].deliver("u1", &corpus::short(&format!("m{number}")))?;
        }
        three.wait_equal(lab, 1)?;
        three.wait_equal(lab, 2)?;
        three.nodes[2].stop()?;
        let claim = "mailtwin_replica_claim";
        let mut seen = Vec::new();
        for part in 0..40 {
            let state = three.replica(lab, 2)?["claim"].as_str().context("a claim")?.to_owned();
            if seen.last() != Some(&state) {
                let is_shown = format!("state=\"{state}\"");
                lab.wait("the metric says so", || {
                    let shown = three.metric(2, claim, &is_shown)?;
                    Ok(if shown == Some(1.0) { Ok(()) } else { Err(format!("{shown:?}")) })
                })?;
                let status = three.nodes[0].replctl(lab, &["status"])?.expect(1)?;
                let list = three.nodes[0].replctl(lab, &["replica", "list"])?.expect(0)?;
                let word = match state.as_str() {
                    "at-risk" => "AT RISK",
                    "lost" => "LOST",
                    _ => "ok",
                };
                let said = status.stdout.contains(word) && list.stdout.contains(word);
                ensure!(said, "{state}: {} {}", status.stdout, list.stdout);
                seen.push(state);
            }
            if seen.last().is_some_and(|state| state == "lost") {
                break;
            }
            three.fill_log(lab, part, 300)?;
            let first = three.nodes[1].name().to_owned();
            three.nodes[0].replctl(lab, &["drain", "--replica", &first])?.expect(0)?;
        }
        ensure!(seen == ["ok", "at-risk", "lost"], "{seen:?}");
        let log = three.nodes[0].ask(lab, &["log", "stat"])?;
        ensure!(log["bytes"].as_u64() <= Some(1 << 20), "the log is within its bound: {log}");
        ensure!(three.replica(lab, 1)?["claim"] == "ok", "the other one is as ever");

        // What happened to mail meanwhile is no longer in the log.
        three.servers[0].deliver("u2", &corpus::short("new"))?;
        let mut imap = three.servers[0].imap("u1")?;
        imap.select("INBOX")?;
        imap.command("UID STORE 2 +FLAGS (\\Deleted)")?;
        imap.command("EXPUNGE")?;
        imap.command("UID STORE 3 +FLAGS (\\Flagged)")?;
        imap.logout()?;
        three.wait_equal(lab, 1)?;
        for part in 40..60 {
            three.fill_log(lab, part, 300)?;
        }
        three.nodes[2].start(lab)?;
        three.wait_equal(lab, 2)?;
        let back = three.wait_replica(lab, 2, "its place is safe again", |replica| {
            replica["claim"] == "ok" && replica["state"] == "in-sync"
        })?;
        ensure!(back["quarantined"] == 0, "{back}");
        let graves = three.nodes[2].ask(lab, &["graveyard", "list"])?;
        ensure!(graves["count"] == 1, "only what the master expunged: {graves}");
        Ok(())
    })
}

#[test]
fn a_removed_replica_frees_the_log_and_keeps_its_mail() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mut three = Three::around(lab)?;
        three.bound_log()?;
        three.start(lab)?;
        three.servers[0].deliver("u1", &corpus::short("first"))?;
        three.wait_equal(lab, 1)?;
        three.wait_equal(lab, 2)?;
        three.nodes[2].stop()?;
        let (first, second) = (three.nodes[1].name().to_owned(), three.nodes[2].name().to_owned());
        three.fill_log(lab, 0, 1000)?;
        three.fill_log(lab, 1, 1000)?;
        three.nodes[0].replctl(lab, &["drain", "--replica", &first])?.expect(0)?;
        let mail = files::fingerprint(&three.servers[2].home("u1"))?;
        let bytes = |log: &Value| log["bytes"].as_u64().context("bytes");

        // Its cursor is saved once in a while: then all is kept for the second alone. The sessions
        // that looked at the mail may have made an entry after the drain.
        let cursor = three.nodes[0].state_dir().join("cursors").join(format!("{first}.json"));
        lab.wait("the first one's cursor is saved", || {
            let head = three.nodes[0].ask(lab, &["log", "stat"])?["head"].clone();
            // It is not there before the first time.
            let saved = fs::read_to_string(&cursor).unwrap_or_default();
            let whole = saved.contains(&format!("\"seq\":{head},"));
            Ok(if whole { Ok(()) } else { Err(format!("{saved}, of {head}")) })
        })?;
        let lag = three.replica(lab, 2)?["lag_entries"].as_u64().context("its lag")?;
        ensure!(lag >= 2000, "{lag}");
        let before = three.nodes[0].ask(lab, &["log", "stat"])?;
        let told = three.nodes[0].ask(lab, &["replica", "remove", &second, "--dry-run"])?;
        ensure!(told["freed_bytes"].as_u64() > Some(300_000), "{told}");
        ensure!(told["done"] == false && told["configured"] == true, "{told}");
        ensure!(told["lag_entries"] == lag && told["replicas_left"] == 1, "{told}");
        ensure!(three.replica(lab, 2)? != Value::Null, "that was no more than words");

        let output = three.nodes[0].replctl(lab, &["replica", "remove", &second])?.expect(0)?;
        for said in ["is removed", &format!("lacked {lag} entries"), "take its [[peer]] out"] {
            ensure!(output.stdout.contains(said), "{said}: {}", output.stdout);
        }
        let after = three.nodes[0].ask(lab, &["log", "stat"])?;
        let freed = told["freed_bytes"].as_u64().context("freed")?;
        ensure!(bytes(&before)? - bytes(&after)? == freed, "{before} {after} {freed}");
        ensure!(after["cursors"].as_array().map(Vec::len) == Some(1), "{after}");
        for kind in ["cursors", "quarantine", "brake", "check"] {
            let file = three.nodes[0].state_dir().join(kind).join(format!("{second}.json"));
            ensure!(!file.exists(), "{} is gone", file.display());
        }
        ensure!(
            three.metric(2, "mailtwin_replica_lag_entries", "")?.is_none(),
            "no metric is left"
        );
        three.nodes[2].start(lab)?;
        three.nodes[0].crash(lab, mailtwin_tests::daemon::AGENT)?;
        three.servers[0].deliver("u1", &corpus::short("second"))?;
        three.wait_equal(lab, 1)?;
        ensure!(three.replica(lab, 2)? == Value::Null, "it is none after a restart, either");
        ensure!(files::fingerprint(&three.servers[2].home("u1"))? == mail, "its mail is as it was");

        // It comes back as it stands in the configuration, and lacks nothing in the end.
        let words = ["replica", "add", second.as_str(), "127.0.0.1:1"];
        let output = three.nodes[0].replctl(lab, &words)?.expect(2)?;
        ensure!(output.stderr.contains("stands in the configuration"), "{}", output.stderr);
        let address = three.address(2);
        let words = ["replica", "add", second.as_str(), address.as_str()];
        let output = three.nodes[0].replctl(lab, &words)?.expect(0)?;
        ensure!(output.stdout.contains("is connected"), "{}", output.stdout);
        three.wait_equal(lab, 2)
    })
}
