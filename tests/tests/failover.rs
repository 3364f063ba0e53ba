//! The master's role moves: with everybody alive, with daemons killed on the way, and refused when
//! that would lose something.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::{Context as _, ensure};
use mailtwin_tests::{
    cluster::{ACCOUNTS, Cluster, told},
    corpus,
    cyrus::{ADMIN, Cyrus},
    daemon::{AGENT, Node, REPLICA},
    dovecot::{Dovecot, PASSWORD, Version},
    files,
    lab::Lab,
    lmtp,
    oracle::Account,
    random::Random,
    server::Server,
};

fn name<S>(cluster: &Cluster<S>, place: usize) -> String {
    cluster.nodes[place].name().to_owned()
}

#[test]
fn the_role_moves_there_and_back_and_everybody_follows() -> anyhow::Result<()> {
    Lab::run(|lab| there_and_back(lab, &Cluster::start(lab, &["one", "two", "three"])?))
}

#[test]
fn the_role_moves_there_and_back_between_cyruses() -> anyhow::Result<()> {
    Lab::run(|lab| there_and_back(lab, &Cluster::of_cyrus(lab, &["one", "two", "three"])?))
}

fn there_and_back<S: Server>(lab: &Lab, cluster: &Cluster<S>) -> anyhow::Result<()> {
    cluster.deliver(0, 0, 20)?;
    let to = name(cluster, 1);
    let output = cluster.nodes[0].replctl(lab, &["failover", "switch", "--to", &to])?;
    let output = output.expect(0)?;
    for said in ["preflight", "the gate is closed", "drained", "equal: 2 accounts", "recorded"] {
        ensure!(output.stdout.contains(said), "{said:?} is not said: {}", output.stdout);
    }
    cluster.wait_master(lab, 1)?;

    // What came before the switch is the new master's to change, and the old one follows.
    let mut imap = cluster.servers[1].imap("u1")?;
    imap.select("INBOX")?;
    imap.command("UID STORE 1 +FLAGS (\\Flagged $Later)")?;
    imap.command("UID STORE 2 +FLAGS (\\Deleted)")?;
    imap.command("EXPUNGE")?;
    imap.create("New")?;
    imap.command("UID MOVE 3 New")?;
    imap.logout()?;
    cluster.deliver(1, 20, 30)?;
    cluster.nodes[1].replctl(lab, &["drain"])?.expect(0)?;

    let to = name(cluster, 0);
    cluster.nodes[1].replctl(lab, &["failover", "switch", "--to", &to])?.expect(0)?;
    cluster.wait_master(lab, 0)?;
    cluster.deliver(0, 30, 40)?;
    let status = cluster.nodes[0].ask(lab, &["status"])?;
    ensure!(status["epoch"] == 3 && status["role"] == "master", "{status}");
    let history = cluster.nodes[0].ask(lab, &["failover", "history"])?;
    let switched = &history["history"][0];
    ensure!(switched["kind"] == "switch" && switched["outcome"] == "done", "{history}");
    cluster.wait_all_equal(lab, 0)?;
    let there = cluster.serials(0)?;
    ensure!(there.len() == 39, "39 of 40 messages, for one was expunged: {there:?}");
    let copy = Account::read(&cluster.servers[2], "u1")?;
    ensure!(copy.list.contains("New"), "the third node followed: {:?}", copy.list);
    // What was planned is no incident.
    cluster.nodes.iter().try_for_each(|node| told(lab, node, &[]))
}

#[test]
fn what_stands_against_a_switch_is_named_and_nothing_is_touched() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mut cluster = Cluster::start(lab, &["one", "two"])?;
        cluster.deliver(0, 0, 4)?;
        let to = name(&cluster, 1);
        let switch = |node: &Node, more: &[&str]| {
            let words = [&["failover", "switch", "--to", &to], more].concat();
            node.replctl(lab, &words)
        };
        cluster.nodes[0].replctl(lab, &["drain"])?.expect(0)?;
        let output = switch(&cluster.nodes[0], &["--dry-run"])?.expect(0)?;
        ensure!(output.stdout.contains("dry run"), "{}", output.stdout);
        let unknown = ["failover", "switch", "--to", "mx9"];
        let output = cluster.nodes[0].replctl(lab, &unknown)?.expect(4)?;
        ensure!(output.stdout.contains("no replica is called"), "{}", output.stdout);
        let output = switch(&cluster.nodes[1], &[])?.expect(4)?;
        ensure!(output.stderr.contains("is a replica: ask"), "{}", output.stderr);

        cluster.nodes[0].replctl(lab, &["replica", "pause", &to])?.expect(0)?;
        let output = switch(&cluster.nodes[0], &[])?.expect(4)?;
        ensure!(output.stdout.contains("replica resume"), "{}", output.stdout);
        cluster.nodes[0].replctl(lab, &["replica", "resume", &to])?.expect(0)?;
        cluster.nodes[0].replctl(lab, &["drain"])?.expect(0)?;

        // Nobody there who could be the master.
        cluster.nodes[1].stop_agent()?;
        let output = switch(&cluster.nodes[0], &[])?.expect(4)?;
        ensure!(output.stdout.contains("mailtwin-agent does not run"), "{}", output.stdout);
        ensure!(cluster.servers[0].is_open(), "nothing was closed");
        cluster.nodes[1].start_agent(lab)?;
        lab.wait("nothing stands against it any more", || {
            let output = switch(&cluster.nodes[0], &["--dry-run"])?;
            Ok(if output.code == Some(0) { Ok(()) } else { Err(output.stdout) })
        })?;

        // Too short a time: everything is taken back.
        let output = switch(&cluster.nodes[0], &["--expire", "1ms"])?.expect(1)?;
        ensure!(output.stdout.contains("still the master"), "{}", output.stdout);
        cluster.wait_master(lab, 0)?;
        cluster.deliver(0, 4, 6)?;
        let history = cluster.nodes[0].ask(lab, &["failover", "history"])?;
        ensure!(history["history"][0]["outcome"] == "undone", "{history}");
        cluster.wait_all_equal(lab, 0)
    })
}

#[test]
fn a_drill_does_everything_but_the_hand_over() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mut cluster = Cluster::start(lab, &["one", "two"])?;
        cluster.deliver(0, 0, 4)?;
        let to = name(&cluster, 1);
        let drill = |words: &[&str]| {
            let words = [&["failover", "drill", "--to", &to], words].concat();
            cluster.nodes[0].replctl(lab, &words)
        };
        let said = drill(&[])?.expect(0)?.stdout;
        let steps = ["preflight", "drained", "equal", "would have been done"];
        ensure!(steps.iter().all(|step| said.contains(step)), "{said}");
        ensure!(!said.contains("gate"), "clients notice nothing: {said}");
        let said = drill(&["--with-gate"])?.expect(0)?.stdout;
        ensure!(said.contains("the gate is closed") && said.contains("open again"), "{said}");
        cluster.wait_master(lab, 0)?;
        let history = cluster.nodes[0].ask(lab, &["failover", "history"])?;
        let entries = history["history"].as_array().context("a history")?;
        let closed: Vec<_> = entries.iter().map(|entry| &entry["gate_closed_ms"]).collect();
        ensure!(closed.len() == 2 && closed[0].is_null() && closed[1].is_u64(), "{history}");
        ensure!(entries.iter().all(|entry| entry["kind"] == "drill"), "{history}");
        let status = cluster.nodes[0].ask(lab, &["status"])?;
        ensure!(status["role"] == "master" && status["epoch"] == 1, "{status}");
        drill(&["--max-wait", "0s"])?.expect(1).context("no time for it")?;
        cluster.nodes[1].stop_agent()?;
        let refused = cluster.nodes[0].replctl(lab, &["failover", "drill", "--to", &to])?;
        refused.expect(4).context("what stands against a switch does against a drill")?;
        cluster.nodes.iter().try_for_each(|node| told(lab, node, &[]))
    })
}

#[test]
fn a_frozen_master_thaws_by_itself() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let cluster = Cluster::start(lab, &["one", "two"])?;
        cluster.deliver(0, 0, 2)?;
        let freeze = |expire: &str| {
            let words = ["freeze", "--wait", "0s", "--expire", expire];
            cluster.nodes[0].replctl(lab, &words)
        };
        freeze("1h")?.expect(0)?;
        ensure!(!cluster.servers[0].is_open(), "nobody gets in");
        let second = freeze("1h")?.expect(4)?;
        ensure!(second.stderr.contains("under way"), "{}", second.stderr);
        cluster.nodes[0].replctl(lab, &["thaw"])?.expect(0)?;
        cluster.wait_master(lab, 0)?;
        freeze("3s")?.expect(0)?;
        cluster.wait_master(lab, 0)?;
        cluster.deliver(0, 2, 4)
    })
}

#[test]
fn the_gate_closes_and_opens_both_versions_of_dovecot() -> anyhow::Result<()> {
    Lab::run(|lab| {
        for (name, version) in [("old", Version::V23), ("new", Version::V24)] {
            let server = Dovecot::start(lab, name, version)?;
            let turn = |what: &str| {
                let (code, told) = server.hook()?.run(what, "0")?;
                ensure!(code == 0, "{what} at {}: {told}", server.name());
                anyhow::Ok(())
            };
            let mut imap = server.imap("u1")?;
            turn("open")?;
            imap.command("NOOP").context("nobody is thrown out of an open gate")?;
            for _ in 0..2 {
                turn("close")?;
                ensure!(!server.is_open(), "{} lets nobody in", server.name());
            }
            ensure!(imap.command("NOOP").is_err(), "the session was ended");
            turn("open")?;
            lab.wait(&format!("{} lets clients in again", server.name()), || {
                Ok(server.imap("u1").map(drop).map_err(|error| format!("{error:#}")))
            })?;
            server.deliver("u1", &corpus::short("m0"))?;
        }
        Ok(())
    })
}

#[test]
fn a_replica_takes_over_from_a_dead_master_and_nothing_of_that_is_lost() -> anyhow::Result<()> {
    Lab::run(|lab| takes_over(lab, &mut Cluster::start(lab, &["one", "two", "three"])?))
}

#[test]
fn a_cyrus_takes_over_from_a_dead_one_and_nothing_of_that_is_lost() -> anyhow::Result<()> {
    Lab::run(|lab| takes_over(lab, &mut Cluster::of_cyrus(lab, &["one", "two", "three"])?))
}

fn takes_over<S: Server>(lab: &Lab, cluster: &mut Cluster<S>) -> anyhow::Result<()> {
    cluster.deliver(0, 0, 20)?;
    cluster.nodes[0].replctl(lab, &["drain"])?.expect(0)?;
    let alive = cluster.nodes[1].replctl(lab, &["failover", "force"])?.expect(4)?;
    ensure!(alive.stdout.contains("is alive"), "{}", alive.stdout);

    die_with_mail(lab, cluster)?;
    // Somebody delivers past the gate: its UID means another message on each side.
    cluster.gates[1].open_by_hand()?;
    cluster.servers[1].deliver("u1", &corpus::short("c0"))?;
    lab.wait("the message has a UID", || {
        let imap = Account::read(&cluster.servers[1], "u1")?;
        Ok(if imap.serials().contains_key("c0") { Ok(()) } else { Err("not yet".into()) })
    })?;
    cluster.servers[0].stop()?;

    let forced = cluster.force(lab, 1)?;
    ensure!(forced.stdout.contains("is the master of epoch 2"), "{}", forced.stdout);
    let mut imap = cluster.servers[1].imap("u1")?;
    imap.select("INBOX")?;
    imap.command("UID STORE 1 +FLAGS (\\Answered)")?;
    imap.command("UID STORE 3 +FLAGS (\\Deleted)")?;
    imap.command("EXPUNGE")?;
    imap.logout()?;
    cluster.deliver(1, 26, 32)?;

    // The dead one comes back by itself, thinks that it is the master, and learns better.
    cluster.rise(lab, 0)?;
    cluster.wait_master(lab, 1)?;
    let merged = |ledger: &serde_json::Value, kind: &str| {
        let lines = ledger["ledger"].as_array().map_or(&[][..], |lines| &lines[..]);
        // By way of the third node, if the returning one has reached that first.
        lines.iter().filter(|line| line["kind"] == kind).count()
    };
    let ledger = lab.wait("what the old master had is copied back", || {
        let ledger = cluster.nodes[1].ask(lab, &["ledger"])?;
        let copied = merged(&ledger, "tail") + merged(&ledger, "clash") >= 7;
        let done = copied && merged(&ledger, "copied") > 0;
        Ok(if done { Ok(ledger) } else { Err(ledger.to_string()) })
    })?;
    cluster.wait_all_equal(lab, 1)?;
    let counts =
        ["tail", "clash", "moved", "copied", "expunged", "flags"].map(|kind| merged(&ledger, kind));
    ensure!(counts == [6, 1, 1, 1, 1, 1], "exactly what was done: {counts:?}: {ledger}");

    let there = cluster.serials(1)?;
    let expected: BTreeSet<String> = (0..32)
        // Expunged: the second message of u1 on the old master, the third on the new one.
        .filter(|serial| ![2, 4].contains(serial))
        .map(|serial| format!("m{serial}"))
        .chain(["c0".to_owned(), "t0".to_owned()])
        .collect();
    ensure!(there == expected, "there: {there:?}");
    let copy = Account::read(&cluster.servers[0], "u1")?;
    let inbox = copy.mailboxes.get("INBOX").context("an INBOX")?;
    let first = format!("{:?}", inbox.messages.get(&1).context("the first message")?);
    for flag in ["Flagged", "Answered", "$There"] {
        ensure!(first.to_lowercase().contains(&flag.to_lowercase()), "{flag}: {first}");
    }
    ensure!(copy.list.contains("There"), "the mailbox made on the old master is there");
    // Which of the others had it first is not said; one that had nothing is no incident.
    let lines = ledger["ledger"].as_array().map_or(&[][..], |lines| &lines[..]);
    let from: BTreeSet<_> = lines.iter().filter_map(|line| line["node"].as_str()).collect();
    let incidents = [vec!["force"], vec!["merged"; from.len()]].concat();
    told(lab, &cluster.nodes[1], &incidents)?;
    conflicts_are_told(lab, &cluster.nodes[1])?;
    told(lab, &cluster.nodes[0], &["stepped-down"])?;
    told(lab, &cluster.nodes[2], &[])
}

#[test]
fn the_hook_that_mails_incidents_hands_a_message_over() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let (sendmail, mail) = (lab.dir().join("sendmail"), lab.dir().join("mail"));
        files::write(
            &sendmail,
            format!("#!/bin/sh\necho \"$@\" > {0}; cat >> {0}\n", mail.display()),
        )?;
        files::chmod(&sendmail, 0o755)?;
        let hook = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ops/hooks/incident-mail");
        let status = Command::new(hook)
            .arg("admin@example.org")
            .env("SENDMAIL", &sendmail)
            .env("MAILTWIN_NODE", "mx2")
            .env("MAILTWIN_INCIDENT", "merged")
            .env("MAILTWIN_TEXT", "mx1 has come back")
            .status()?;
        ensure!(status.success(), "{status}");
        let sent = fs::read_to_string(mail)?;
        let expected = "-i admin@example.org\nTo: admin@example.org\nSubject: Mailtwin on mx2: merged\n\
                        Auto-Submitted: auto-generated\n\nmx1 has come back\n";
        ensure!(sent == expected, "{sent}");
        Ok(())
    })
}

/// What was decided against one of the sides can be looked at, brought back, and acknowledged.
fn conflicts_are_told(lab: &Lab, master: &Node) -> anyhow::Result<()> {
    let listed = master.replctl(lab, &["conflicts", "list"])?.expect(1)?.stdout;
    ensure!(!listed.contains("  tail  "), "only what is a conflict: {listed}");
    let open = master.ask(lab, &["conflicts", "list"])?;
    let of = |kind: &str| {
        let all = open["conflicts"].as_array().into_iter().flatten();
        all.filter(|entry| entry["kind"] == kind).cloned().collect::<Vec<_>>()
    };
    let [clash, expunged] = ["clash", "expunged"].map(|kind| of(kind).into_iter().next());
    let (clash, expunged) = (clash.context("a clash")?, expunged.context("an expunge")?);
    let id = |entry: &serde_json::Value| entry["id"].as_str().map(str::to_owned).context("an id");
    let (clash, id) = (id(&clash)?, id(&expunged)?);
    let both = master.replctl(lab, &["conflicts", "show", &clash])?.expect(0)?.stdout;
    ensure!(both.contains("clash") && both.contains("moved"), "both versions: {both}");

    let shown = master.replctl(lab, &["conflicts", "show", &id])?.expect(0)?.stdout;
    let command = shown.lines().find_map(|line| line.trim().strip_prefix("way back  replctl "));
    let dir = lab.mail_dir("given-back")?;
    let dir = dir.to_str().context("a path of letters")?;
    let command = command.context("a way back")?.replace("DIR", dir);
    master.replctl(lab, &command.split(' ').collect::<Vec<_>>())?.expect(0)?;
    ensure!(files::walk(&Path::new(dir).join("u1"))?.len() == 1, "{command}");

    master.replctl(lab, &["conflicts", "ack", &id])?.expect(0)?;
    master.replctl(lab, &["conflicts", "ack", &id])?.expect(1).context("seen before")?;
    let left = master.replctl(lab, &["conflicts", "list"])?.expect(1)?.stdout;
    ensure!(!left.contains(&id) && left.contains(&clash), "{left}");
    master.replctl(lab, &["conflicts", "ack", "--all"])?.expect(0)?;
    master.replctl(lab, &["conflicts", "list"])?.expect(0)?;
    let all = master.replctl(lab, &["conflicts", "list", "--all"])?.expect(0)?.stdout;
    ensure!(all.contains(&id), "{all}");
    Ok(())
}

#[test]
fn the_gate_keeps_everybody_out_of_cyrus_but_admins() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let server = Cyrus::start(lab, "old")?;
        server.create_user("u1")?;
        server.deliver("u1", &corpus::short("m0"))?;
        let turn = |what: &str| server.hook()?.run(what, "0");
        let (mut imap, mut admin) = (server.imap("u1")?, server.imap(ADMIN)?);
        let mut letter = lmtp::Connection::open(server.lmtp_address())?;
        letter.begin("u1")?;
        ensure!(turn("open")?.0 == 0 && server.is_open(), "it is open");
        imap.command("NOOP").context("nobody is thrown out of an open gate")?;
        for _ in 0..2 {
            let (code, told) = turn("close")?;
            ensure!((code, told.as_str()) == (0, ""), "close: {code} {told}");
            ensure!(!server.is_open(), "clients do not get in");
        }
        ensure!(imap.command("NOOP").is_err(), "the session was ended");
        ensure!(letter.finish(&corpus::short("late")).is_err(), "what was being sent is not taken");
        let refused = server.deliver("u1", &corpus::short("later")).err().context("refused")?;
        ensure!(format!("{refused:#}").contains("421"), "it is to come again: {refused:#}");
        let mut client = TcpStream::connect(server.imap_address())?;
        client.write_all(format!("a LOGIN u1 {PASSWORD}\r\nb NOOP\r\n").as_bytes())?;
        let mut told = String::new();
        client.read_to_string(&mut told)?;
        ensure!(told.contains("* BYE [ALERT] Your mail is moving"), "it is told why: {told}");
        admin.command("NOOP").context("an admin stays")?;
        server.imap(ADMIN)?.command("LIST \"\" *").context("an admin gets in")?;
        server.told("u1").context("and replication")?;
        ensure!(turn("open")?.0 == 0, "it opens");
        server.deliver("u1", &corpus::short("m1"))?;
        let there = Account::read(&server, "u1")?.serials();
        ensure!(there.keys().collect::<Vec<_>>() == ["m0", "m1"], "{there:?}");

        // An admin's own file stays, and stays the admin's.
        files::write(&server.shutdown_file(), "Closed for repairs.\n")?;
        ensure!(turn("close")?.0 == 0, "closed already");
        let (code, told) = turn("open")?;
        ensure!(code == 1 && told.contains("written by somebody else"), "{code} {told}");
        ensure!(!server.is_open(), "still closed");
        Ok(())
    })
}

/// The first node's daemons die, and its clients go on for a while: nothing of that is replicated.
fn die_with_mail<S: Server>(lab: &Lab, cluster: &mut Cluster<S>) -> anyhow::Result<()> {
    cluster.nodes[0].kill_both()?;
    let mut imap = cluster.servers[0].imap("u1")?;
    let validity = imap.select("INBOX")?.uid_validity.context("UIDVALIDITY")?;
    // Of two mailboxes made in the same second one is not copied as it is: it gets another UIDVALIDITY.
    lab.wait("another second", || {
        let now = lab.clock().unix_ms() / 1000;
        Ok(if now > u64::from(validity) { Ok(()) } else { Err(now.to_string()) })
    })?;
    imap.command("UID STORE 1 +FLAGS (\\Flagged $There)")?;
    imap.command("UID STORE 2 +FLAGS (\\Deleted)")?;
    imap.command("EXPUNGE")?;
    imap.create("There")?;
    imap.append("There", &corpus::short("t0")).finish()?;
    imap.logout()?;
    cluster.deliver(0, 20, 26)
}

/// Delivers until told to end, to whichever server takes it; returns what was accepted.
fn deliver_all_the_while(
    lab: &Lab,
    addresses: &[SocketAddr],
    go_on: &AtomicBool,
) -> BTreeSet<String> {
    let mut accepted = BTreeSet::new();
    let mut number = 0;
    while go_on.load(Ordering::Relaxed) {
        for address in addresses {
            // A number is used once: one that was refused may have been taken all the same.
            let serial = format!("t{number}");
            number += 1;
            let account = ACCOUNTS[number % ACCOUNTS.len()];
            if lmtp::deliver(*address, account, &corpus::short(&serial)).is_ok() {
                accepted.insert(serial);
            }
        }
        lab.clock().pause(std::time::Duration::from_millis(20));
    }
    accepted
}

#[test]
fn a_switch_survives_the_death_of_any_daemon_at_any_moment() -> anyhow::Result<()> {
    Lab::run(|lab| switch_under_kills(lab, &mut Cluster::start(lab, &["one", "two"])?))
}

#[test]
fn a_switch_between_cyruses_survives_the_death_of_any_daemon() -> anyhow::Result<()> {
    Lab::run(|lab| switch_under_kills(lab, &mut Cluster::of_cyrus(lab, &["one", "two"])?))
}

fn switch_under_kills<S: Server>(lab: &Lab, cluster: &mut Cluster<S>) -> anyhow::Result<()> {
    const ROUNDS: usize = 12;
    let addresses: Vec<_> = cluster.servers.iter().map(S::lmtp_address).collect();
    let go_on = AtomicBool::new(true);
    let mut random = Random::new(0x5eed);
    let accepted = thread::scope(|scope| {
        let deliveries = scope.spawn(|| deliver_all_the_while(lab, &addresses, &go_on));
        let rounds = (0..ROUNDS).try_for_each(|round| {
            switch_and_kill(lab, cluster, &mut random).with_context(|| format!("round {round}"))
        });
        go_on.store(false, Ordering::Relaxed);
        let accepted = deliveries.join().expect("deliveries do not panic");
        rounds.map(|()| accepted)
    })?;
    let master = wait_for_a_master(lab, cluster)?;
    cluster.wait_all_equal(lab, master)?;
    let there = cluster.serials(master)?;
    let lost: Vec<_> = accepted.difference(&there).collect();
    ensure!(lost.is_empty(), "accepted and lost: {lost:?}");
    ensure!(accepted.len() > ROUNDS, "mail did flow: {}", accepted.len());
    Ok(())
}

/// Begins a switch and kills one daemon somewhere in it.
fn switch_and_kill<S: Server>(
    lab: &Lab,
    cluster: &mut Cluster<S>,
    random: &mut Random,
) -> anyhow::Result<()> {
    let master = wait_for_a_master(lab, cluster)?;
    let other = 1 - master;
    cluster.nodes[master].replctl(lab, &["drain"])?;
    let to = name(cluster, other);
    let words = ["failover", "switch", "--to", &to, "--kick-after", "0s"];
    let mut switching = cluster.nodes[master].spawn_replctl(lab, &words)?;
    lab.clock().pause(std::time::Duration::from_millis(random.draw() % 1_500));
    let (victim, daemon) = match random.below(4) {
        0 => (master, AGENT),
        1 => (master, REPLICA),
        2 => (other, AGENT),
        _ => (other, REPLICA),
    };
    cluster.nodes[victim].crash(lab, daemon)?;
    switching.ended()?;
    let open: Vec<bool> = cluster.servers.iter().map(S::is_open).collect();
    ensure!(open != [true, true], "two masters");
    Ok(())
}

/// Waits until exactly one node is the master, all daemons answer, and only its gate is open.
fn wait_for_a_master<S: Server>(lab: &Lab, cluster: &Cluster<S>) -> anyhow::Result<usize> {
    lab.wait("there is one master", || {
        let role = |node: &Node| Some(node.ask(lab, &["status"]).ok()?["role"] == "master");
        let roles: Vec<Option<bool>> = cluster.nodes.iter().map(role).collect();
        let open: Vec<bool> = cluster.servers.iter().map(S::is_open).collect();
        let found = (0..roles.len()).find(|&at| roles[at] == Some(true) && open[at]);
        let others = found.is_some_and(|at| roles[1 - at] == Some(false) && !open[1 - at]);
        Ok(found.filter(|_| others).ok_or_else(|| format!("masters {roles:?}, open {open:?}")))
    })
}
