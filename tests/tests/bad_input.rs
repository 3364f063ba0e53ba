//! Bad configuration, bad peers, broken mailboxes: each said clearly, and the rest goes on.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::net::UnixStream,
};

use anyhow::{Context as _, ensure};
use mailtwin_logic::{
    ids::Epoch,
    wire::message::{Greeting, Hello, Refusal, VERSION_MAX, decode},
};
use mailtwin_tests::{
    corpus,
    daemon::{AGENT, Pair, REPLICA},
    dovecot::{Dovecot, Version},
    files,
    lab::{Lab, PATIENCE},
    oracle::Account,
    peer::{self, Peer},
};

/// A pair with one message on the master, nothing started.
fn still_pair(lab: &Lab) -> anyhow::Result<Pair> {
    let master = Dovecot::start(lab, "master", Version::V23)?;
    let replica = Dovecot::start(lab, "replica", Version::V23)?;
    master.deliver("u1", &corpus::short("first"))?;
    Pair::around(lab, master, replica, &["u1"])
}

#[test]
fn configuration_mistakes_are_named_with_file_line_and_key() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let pair = still_pair(lab)?;
        let good = pair.agent.config_text()?;
        let cases = [
            ("unknown key", "layout =", "layoutt =", "layoutt"),
            ("unknown section", "[metrics]", "[metric]", "metric"),
            ("wrong type", "config_version = 1", "config_version = \"1\"", "config_version"),
            ("wrong layout", "\"maildir++\"", "\"mbox\"", "store.layout"),
            ("wrong unit", "[replica]\n", "[replica]\ngraveyard = \"7 parsecs\"\n", "graveyard"),
            ("number without unit", "[replica]\n", "[replica]\ngraveyard = 7\n", "graveyard"),
            ("no port", "listen = \"127.0.0.1:", "listen = \"127.0.0.1;", "replica.listen"),
        ];
        for (what, right, wrong, key) in cases {
            ensure!(good.contains(right), "{what}: the configuration has {right}");
            pair.agent.write_config(&good.replacen(right, wrong, 1))?;
            let mut agent = pair.agent.spawn(lab, AGENT)?;
            let status = agent.ended()?;
            ensure!(status.code() == Some(2), "{what}: {status}");
            let log = pair.agent.log_text(AGENT)?;
            let line = log.lines().find(|line| line.contains("mailtwin.toml:"));
            let line = line.with_context(|| format!("{what}: no line names the file: {log}"))?;
            ensure!(line.contains(key), "{what}: {line}");
            fs::remove_file(pair.agent.log(AGENT))?;
            let output = pair.agent.replctl(lab, &["status"])?.expect(2)?;
            ensure!(output.stderr.contains(key), "{what}: {output:?}");
        }
        Ok(())
    })
}

#[test]
fn a_missing_store_and_a_node_that_was_never_made_are_refused() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let pair = still_pair(lab)?;
        let good = pair.agent.config_text()?;
        let missing = lab.dir().join("not-mounted");
        let mail = pair.master.mail_root().display().to_string();
        let nowhere = missing.display().to_string();
        let never_made = pair.agent.state_dir().display().to_string();
        let fresh = format!("{never_made}-fresh");
        let cases = [
            (mail, nowhere.clone(), 1, ["mount or create it", &nowhere]),
            (never_made, fresh.clone(), 2, ["run `replctl init", &fresh]),
        ];
        for (right, wrong, code, words) in cases {
            ensure!(good.contains(&right), "the configuration has {right}");
            pair.agent.write_config(&good.replace(&right, &wrong))?;
            let status = pair.agent.spawn(lab, AGENT)?.ended()?;
            ensure!(status.code() == Some(code), "{wrong}: {status}");
            let log = pair.agent.log_text(AGENT)?;
            ensure!(words.iter().all(|word| log.contains(word)), "{wrong}: {log}");
        }
        ensure!(!missing.exists(), "nothing is made where a volume may be missing");
        pair.agent.write_config(&good)?;
        files::chmod(&pair.master.mail_root(), 0)?;
        let status = pair.agent.spawn(lab, AGENT)?.ended()?;
        let log = pair.agent.log_text(AGENT)?;
        let last = log.lines().last().unwrap_or_default();
        ensure!(status.code() == Some(1), "a store that may not be read: {status}");
        let root = pair.master.mail_root().display().to_string();
        ensure!(last.contains(&root) && last.contains("ermission denied"), "{last}");
        files::chmod(&pair.master.mail_root(), 0o755)?;
        let again = pair.agent.replctl(lab, &["init", "--role", "master"])?;
        ensure!(again.code != Some(0), "a node is made once");
        ensure!(again.stderr.contains("made before"), "{again:?}");
        Ok(())
    })
}

#[test]
fn a_second_daemon_on_the_same_state_directory_is_refused() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mut pair = still_pair(lab)?;
        pair.agent.start(lab)?;
        pair.copy.start(lab)?;
        pair.wait_equal(lab)?;
        for (node, daemon) in [(&pair.agent, AGENT), (&pair.copy, REPLICA)] {
            let mut second = node.spawn(lab, daemon)?;
            let status = second.ended()?;
            ensure!(!status.success(), "the second {daemon} ended with {status}");
            let log = node.log_text(daemon)?;
            let state = node.state_dir().display().to_string();
            ensure!(log.contains(&state), "the log names {state}: {log}");
        }
        pair.master.deliver("u1", &corpus::short("second"))?;
        pair.wait_equal(lab)
    })
}

#[test]
fn garbage_and_silence_on_the_port_harm_nobody() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mut pair = still_pair(lab)?;
        pair.copy.start(lab)?;
        let address = ("127.0.0.1", pair.copy.port);
        lab.wait("the replica listens", || {
            Ok(TcpStream::connect(address).map(drop).map_err(|error| error.to_string()))
        })?;
        let silent: Vec<TcpStream> =
            (0..100).map(|_| TcpStream::connect(address)).collect::<Result<_, _>>()?;
        let garbage: [&[u8]; 5] = [
            b"GET / HTTP/1.1\r\n\r\n",
            &b"\xff".repeat(70_000),
            // A TLS record that says it is longer than any may be.
            &[0x16, 3, 1, 0xff, 0xff, 1, 0, 0, 0],
            &b"\0".repeat(4096),
            b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00",
        ];
        for octets in garbage {
            let mut stream = TcpStream::connect(address)?;
            // It may be cut off before everything is written.
            let _ = stream.write_all(octets);
        }
        pair.agent.start(lab)?;
        pair.wait_equal(lab).context("beside a hundred silent peers")?;
        for mut stream in silent {
            stream.set_read_timeout(Some(PATIENCE))?;
            let mut octets = Vec::new();
            let ended = stream.read_to_end(&mut octets);
            let hung = ended
                .as_ref()
                .is_err_and(|error| matches!(error.kind(), std::io::ErrorKind::WouldBlock));
            ensure!(!hung, "a silent peer is let go of");
        }
        ensure!(pair.copy.daemon()?.is_running(), "the replica daemon runs on");
        pair.master.deliver("u1", &corpus::short("after"))?;
        pair.wait_equal(lab)
    })
}

#[test]
fn garbage_on_an_admin_socket_harms_nobody() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mut pair = still_pair(lab)?;
        pair.agent.start(lab)?;
        pair.copy.start(lab)?;
        pair.wait_equal(lab)?;
        let mut sockets = 0;
        for node in [&pair.agent, &pair.copy] {
            for path in files::walk(&node.run_dir())? {
                let Ok(mut stream) = UnixStream::connect(&path) else { continue };
                sockets += 1;
                for octets in [&b"{\"what\": [[[[[["[..], &b"\xff".repeat(100_000), b"\n\n\0\n"] {
                    let _ = stream.write_all(octets);
                }
                let _silent = UnixStream::connect(&path)?;
            }
        }
        ensure!(sockets >= 2, "each daemon has a socket");
        pair.master.deliver("u1", &corpus::short("after"))?;
        pair.wait_equal(lab)?;
        pair.agent.replctl(lab, &["status"])?.expect(0)?;
        Ok(())
    })
}

#[test]
fn a_peer_with_another_key_is_refused_until_it_is_pinned() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mut pair = still_pair(lab)?;
        pair.agent.start(lab)?;
        pair.copy.start(lab)?;
        pair.wait_equal(lab)?;
        let old = pair.agent.key(lab)?;
        pair.agent.stop()?;
        fs::remove_dir_all(pair.agent.state_dir())?;
        pair.agent.replctl(lab, &["init", "--role", "master"])?.expect(0)?;
        pair.agent.start(lab)?;
        let new = pair.agent.key(lab)?;
        ensure!(old != new, "a new key: {new}");
        pair.master.deliver("u1", &corpus::short("second"))?;
        lab.wait("the replica says why it refuses", || {
            let log = pair.copy.log_text(REPLICA)?;
            let said = log.lines().rev().take(20).any(|line| line.contains("key"));
            Ok(if said { Ok(()) } else { Err("nothing in the log".into()) })
        })?;
        lab.wait("the agent says what to do", || {
            let status = pair.agent.replctl(lab, &["--output", "json", "status"])?;
            let said = status.stdout.contains("the replica knows this node by another key");
            Ok(if said { Ok(()) } else { Err(status.stdout) })
        })?;
        let copy = Account::read(&pair.replica, "u1")?;
        ensure!(!copy.serials().contains_key("second"), "nothing came through");
        pair.copy.replctl(lab, &["keys", "unpin", pair.agent.name(), &old])?.expect(0)?;
        pair.copy.replctl(lab, &["keys", "pin", pair.agent.name(), &new])?.expect(0)?;
        pair.wait_equal(lab).context("with the new key pinned")
    })
}

#[test]
fn one_unreadable_mailbox_holds_up_no_other() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mut pair = still_pair(lab)?;
        let mut imap = pair.master.imap("u1")?;
        for name in ["Broken", "Whole"] {
            imap.create(name)?;
            imap.append(name, &corpus::short(name)).finish()?;
        }
        pair.agent.start(lab)?;
        pair.copy.start(lab)?;
        pair.wait_equal(lab)?;
        let broken = pair.master.mailbox_dir("u1", "Broken").join("cur");
        files::chmod(&broken, 0o000)?;
        let new = pair.master.mailbox_dir("u1", "Broken").join("new");
        files::write_mail(&new.join("1700000000.unseen.host"), corpus::short("unseen"))?;
        imap.append("Whole", &corpus::short("another")).finish()?;
        pair.master.deliver("u1", &corpus::short("inbox"))?;
        lab.wait("the other mailboxes go on", || {
            let serials = Account::read(&pair.replica, "u1")?.serials();
            let there = ["another", "inbox", "Broken"].map(|name| serials.contains_key(name));
            Ok(if there == [true; 3] { Ok(()) } else { Err(format!("{serials:?}")) })
        })?;
        lab.wait("status names the mailbox", || {
            let shown = pair.agent.replctl(lab, &["status"])?;
            let named = shown.stdout.contains("Broken");
            Ok(if named { Ok(()) } else { Err(format!("{shown:?}")) })
        })?;
        files::chmod(&broken, 0o700)?;
        imap.append("Broken", &corpus::short("healed")).finish()?;
        pair.wait_equal(lab)?;
        pair.replica.expect_quiet_log()
    })
}

#[test]
fn odd_files_beside_live_mail_are_left_alone() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mut pair = still_pair(lab)?;
        let mut imap = pair.master.imap("u1")?;
        imap.select("INBOX")?;
        let cur = pair.master.maildir("u1").join("cur");
        files::make_mail_dir(&cur.join("1700000000.directory.host:2,S"))?;
        std::os::unix::fs::symlink("/etc/passwd", cur.join("1700000001.link.host:2,S"))?;
        let made =
            std::process::Command::new("mkfifo").arg(cur.join("1700000002.fifo")).status()?;
        ensure!(made.success(), "mkfifo: {made}");
        pair.agent.start(lab)?;
        pair.copy.start(lab)?;
        lab.wait("the real message arrives", || {
            let there = files::messages(&pair.replica.maildir("u1"))?.len();
            Ok(if there == 1 { Ok(()) } else { Err(format!("{there} messages")) })
        })?;
        pair.master.deliver("u1", &corpus::short("second"))?;
        lab.wait("and the next one", || {
            let there = files::messages(&pair.replica.maildir("u1"))?.len();
            Ok(if there == 2 { Ok(()) } else { Err(format!("{there} messages")) })
        })
    })
}

#[test]
fn keywords_beyond_the_twenty_sixth_do_no_harm() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mut pair = still_pair(lab)?;
        let mut imap = pair.master.imap("u1")?;
        imap.select("INBOX")?;
        for n in 0..30 {
            imap.command(&format!("UID STORE 1 +FLAGS (word{n})"))?;
        }
        pair.agent.start(lab)?;
        pair.copy.start(lab)?;
        // Nobody logs in while the INBOX gets its place, which is another matter.
        lab.wait("the first copy", || {
            let there = files::messages(&pair.replica.maildir("u1"));
            let some = there.is_ok_and(|messages| !messages.is_empty());
            Ok(if some { Ok(()) } else { Err("nothing yet".to_owned()) })
        })?;
        lab.wait("26 of them arrive", || {
            let copy = Account::read(&pair.replica, "u1")?;
            let inbox = copy.mailboxes.get("INBOX").cloned().unwrap_or_default();
            let count = inbox.messages.get(&1).map_or(0, |message| message.flags.len());
            Ok(if count == 26 { Ok(()) } else { Err(format!("{count} keywords")) })
        })?;
        imap.command("UID STORE 1 +FLAGS (\\Seen)")?;
        pair.master.deliver("u1", &corpus::short("second"))?;
        lab.wait("what comes next arrives", || {
            let copy = Account::read(&pair.replica, "u1")?;
            let inbox = copy.mailboxes.get("INBOX").cloned().unwrap_or_default();
            let seen = |message: &mailtwin_tests::oracle::Message| message.flags.contains("\\seen");
            let done = inbox.messages.len() == 2 && inbox.messages.get(&1).is_some_and(seen);
            Ok(if done { Ok(()) } else { Err(format!("{inbox:?}")) })
        })?;
        let status = pair.agent.ask(lab, &["status"])?;
        let problems = status["problems"].as_array().context("problems")?;
        let is_named =
            |problem: &serde_json::Value| problem["object"] == "u1/INBOX: dovecot-keywords";
        ensure!(problems.iter().any(is_named), "says in which mailbox: {status}");
        pair.replica.expect_quiet_log()
    })
}

/// After an upgrade of one side only: who is older is said on both, and nothing else happens.
#[test]
fn a_peer_of_another_version_is_told_which_side_to_upgrade() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mut pair = still_pair(lab)?;
        pair.copy.start(lab)?;
        let mut newer = lab.wait("the replica answers", || {
            Ok(Peer::dial(&pair.agent, &pair.copy).map_err(|error| error.to_string()))
        })?;
        let hello = peer::hello(pair.agent.name(), Epoch(1));
        let (version_min, version_max) = (VERSION_MAX + 1, VERSION_MAX + 1);
        newer.message(0, &Hello { version_min, version_max, ..hello })?;
        let answer = newer.receive()?.context("an answer")?;
        let Some(Greeting::Refused { why, detail }) = decode(&answer.payload) else {
            anyhow::bail!("{answer:?}");
        };
        ensure!(why == Refusal::Version && detail.contains("upgrade the replica"), "{detail}");
        ensure!(newer.receive()?.is_none(), "the connection ends");

        // A real agent that meets a replica which refuses it.
        pair.copy.stop()?;
        pair.agent.start(lab)?;
        let mut refusing = Peer::accept(&pair.copy)?;
        let detail = "this replica speaks version 9: upgrade the agent".to_owned();
        refusing.message(0, &Greeting::Refused { why: Refusal::Version, detail })?;
        lab.wait("the status says it", || {
            let status = pair.agent.replctl(lab, &["status"])?;
            let said = status.stdout.contains("upgrade the agent");
            Ok(if said { Ok(()) } else { Err(status.stdout) })
        })?;
        drop(refusing);
        pair.copy.start(lab)?;
        pair.wait_equal(lab).context("both of one version again")
    })
}
