//! Pairs with a live Cyrus on one side or both: what clients and deliveries do on the master is seen
//! over IMAP at the replica.

use std::{collections::BTreeMap, ffi::OsStr, fs, path::PathBuf};

use anyhow::{Context as _, ensure};
use imap::types::Flag;
use mailtwin_cyrus::{Command, Value};
use mailtwin_tests::{
    corpus,
    cyrus::{ADMIN, Cyrus},
    daemon::{AGENT, Node, maildir_store},
    dovecot::{Dovecot, Layout, Version},
    files,
    imap::Imap,
    lab::Lab,
    oracle::Mailbox,
};

/// A master and a replica of whatever kind.
struct Pair {
    agent: Node,
    copy: Node,
}

impl Pair {
    fn start(lab: &Lab, master: (&str, String), replica: (&str, String)) -> anyhow::Result<Self> {
        let nodes: [Node; 2] = Node::start_beside(lab, &[master, replica])?
            .try_into()
            .map_err(|_| anyhow::anyhow!("a node for each server"))?;
        let [agent, copy] = nodes;
        Ok(Self { agent, copy })
    }

    fn of_cyrus(lab: &Lab, master: &Cyrus, replica: &Cyrus) -> anyhow::Result<Self> {
        let named = |cyrus: &Cyrus| cyrus.store_config();
        Self::start(lab, (master.name(), named(master)), (replica.name(), named(replica)))
    }

    /// `replctl check --level full` and its exit code.
    fn check(&self, lab: &Lab, level: &str) -> anyhow::Result<(i32, String)> {
        let output = self.agent.replctl(lab, &["check", "--level", level])?;
        Ok((output.code.unwrap_or(-1), format!("{}{}", output.stdout, output.stderr)))
    }
}

/// All mailboxes of an account, as a client sees them, with `/` between the parts of their names.
fn state(imap: &mut Imap, separator: char) -> anyhow::Result<BTreeMap<String, Mailbox>> {
    let mut mailboxes = BTreeMap::new();
    let names: Vec<String> = imap
        .list(None, Some("*"))
        .context("LIST")?
        .iter()
        .filter(|name| !format!("{:?}", name.attributes()).contains("NoSelect"))
        .map(|name| name.name().to_owned())
        .collect();
    for name in names {
        let mailbox = Mailbox::read(imap, &name).with_context(|| format!("read {name}"))?;
        mailboxes.insert(name.replace(separator, "/"), mailbox);
    }
    Ok(mailboxes)
}

fn wait_equal(
    lab: &Lab,
    what: &str,
    mut sides: impl FnMut() -> anyhow::Result<[BTreeMap<String, Mailbox>; 2]>,
) -> anyhow::Result<BTreeMap<String, Mailbox>> {
    lab.wait(what, || {
        let Ok([ours, theirs]) = sides() else { return Ok(Err("a server does not answer".into())) };
        Ok(if ours == theirs { Ok(ours) } else { Err(format!("{ours:#?}\n{theirs:#?}")) })
    })
}

/// Both Cyruses as `user` sees them, once they are equal.
fn equal(
    lab: &Lab,
    (master, replica): (&Cyrus, &Cyrus),
    user: &str,
) -> anyhow::Result<BTreeMap<String, Mailbox>> {
    let what = format!("{user} is equal on both");
    wait_equal(lab, &what, || {
        Ok([state(&mut master.imap(user)?, '/')?, state(&mut replica.imap(user)?, '/')?])
    })
}

fn messages(mailboxes: &BTreeMap<String, Mailbox>, name: &str) -> anyhow::Result<usize> {
    let mailbox = mailboxes.get(name).with_context(|| format!("{name} in {mailboxes:?}"))?;
    Ok(mailbox.messages.len())
}

#[test]
fn a_cyrus_pair_replays_deliveries_and_changes_of_clients() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let (master, replica) = (Cyrus::start(lab, "a")?, Cyrus::start(lab, "b")?);
        master.create_user("ann")?;
        replica.set_password("ann")?;
        master.deliver("ann", &corpus::short("before"))?;
        let pair = Pair::of_cyrus(lab, &master, &replica)?;
        let both = (&master, &replica);
        ensure!(messages(&equal(lab, both, "ann")?, "INBOX")? == 1, "the first copy");
        for number in 0..5 {
            master.deliver("ann", &corpus::short(&format!("by LMTP {number}")))?;
        }
        let mut imap = master.imap("ann")?;
        for name in ["Work", "Work/Sub", "b&AOk-n", "dots.in it"] {
            imap.create(name)?;
            imap.subscribe(name)?;
        }
        let date = chrono::DateTime::parse_from_rfc3339("1999-12-31T23:59:58+02:00")?;
        for number in 0..3 {
            imap.append("Work/Sub", &corpus::short(&format!("appended {number}")))
                .flags([Flag::Seen, Flag::from("$Label1")])
                .internal_date(date)
                .finish()?;
        }
        let now = equal(lab, both, "ann").context("deliveries and APPEND")?;
        ensure!((messages(&now, "INBOX")?, messages(&now, "Work/Sub")?) == (6, 3), "{now:?}");
        for command in [
            "UID STORE 1 +FLAGS (\\Answered \\Flagged)",
            "UID STORE 2:3 +FLAGS ($Junk later)",
            "UID STORE 2 -FLAGS (later)",
            "UID COPY 1:3 Work",
            "UID MOVE 4 Work",
            "UID STORE 5 +FLAGS (\\Deleted)",
            "EXPUNGE",
        ] {
            imap.select("INBOX")?;
            imap.command(command)?;
            equal(lab, both, "ann").context(command)?;
        }
        imap.rename("Work", "Renamed")?;
        imap.delete("b&AOk-n")?;
        let now = equal(lab, both, "ann").context("RENAME and DELETE")?;
        let names: Vec<&String> = now.keys().collect();
        ensure!(names == ["INBOX", "Renamed", "Renamed/Sub", "dots.in it"], "{names:?}");

        let subscribed: Vec<String> = replica
            .imap("ann")?
            .lsub(None, Some("*"))?
            .iter()
            .map(|name| name.name().to_owned())
            .collect();
        ensure!(subscribed.contains(&"dots.in it".to_owned()), "{subscribed:?}");
        let (code, text) = pair.check(lab, "deep")?;
        ensure!(code == 0, "check: {code}\n{text}");
        Ok(())
    })
}

#[test]
fn nothing_is_lost_when_daemons_beside_cyrus_are_killed() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let (mut master, replica) = (Cyrus::start(lab, "a")?, Cyrus::start(lab, "b")?);
        master.create_user("ann")?;
        replica.set_password("ann")?;
        let mut pair = Pair::of_cyrus(lab, &master, &replica)?;
        let both = (&master, &replica);
        // The replica daemon is killed while mail comes in.
        for number in 0..20 {
            master.deliver("ann", &corpus::short(&format!("around a kill {number}")))?;
            if number == 7 {
                pair.copy.kill()?;
            }
            if number == 14 {
                pair.copy.start(lab)?;
            }
        }
        ensure!(messages(&equal(lab, both, "ann")?, "INBOX")? == 20, "all, each once");
        // The agent is away: what Cyrus notes meanwhile is waiting in its sync log.
        pair.agent.kill()?;
        master.deliver("ann", &corpus::short("while nobody looked"))?;
        master.create_user("ben")?;
        replica.set_password("ben")?;
        master.deliver("ben", &corpus::short("a new user"))?;
        pair.agent.start(lab)?;
        ensure!(messages(&equal(lab, both, "ann")?, "INBOX")? == 21, "what came meanwhile");
        ensure!(messages(&equal(lab, both, "ben")?, "INBOX")? == 1, "a user who came meanwhile");
        lab.wait("Cyrus's sync log is taken", || {
            let left = fs::read_dir(master.channel())?.flatten();
            let left = left.filter(|entry| entry.file_name() != ".mailtwin-store").count();
            Ok(if left == 0 { Ok(()) } else { Err(format!("{left} files")) })
        })?;
        // Cyrus itself is killed, all of it, and comes back.
        master.kill()?;
        master.resume(lab)?;
        master.deliver("ann", &corpus::short("after Cyrus was killed"))?;
        let now = equal(lab, (&master, &replica), "ann")?;
        ensure!(messages(&now, "INBOX")? == 22, "what came after that");
        let (code, text) = pair.check(lab, "deep")?;
        ensure!(code == 0, "check: {code}\n{text}");
        Ok(())
    })
}

/// The file of a message, found by its GUID's octets.
fn file_of(cyrus: &Cyrus, words: &str) -> anyhow::Result<PathBuf> {
    let all = files::walk(&cyrus.spool())?;
    let has = |path: &&PathBuf| {
        path.is_file() && fs::read(path).is_ok_and(|o| String::from_utf8_lossy(&o).contains(words))
    };
    let found = all.iter().find(|path| path.extension().is_some_and(OsStr::is_empty) && has(path));
    found.cloned().with_context(|| format!("a file of {} with {words:?}", cyrus.name()))
}

#[test]
fn a_damaged_message_on_a_cyrus_master_stops_no_other() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let (master, replica) = (Cyrus::start(lab, "a")?, Cyrus::start(lab, "b")?);
        for user in ["ann", "ben"] {
            master.create_user(user)?;
            replica.set_password(user)?;
        }
        for words in ["sound", "victim", "sound too"] {
            master.deliver("ann", &corpus::short(words))?;
        }
        let victim = file_of(&master, "victim")?;
        let whole = fs::read(&victim)?;
        files::overwrite(&victim, b"Subject: rotten\r\n\r\nrotten\r\n")?;
        let pair = Pair::of_cyrus(lab, &master, &replica)?;
        for number in 0..5 {
            master.deliver("ben", &corpus::short(&format!("ben {number}")))?;
        }
        let both = (&master, &replica);
        ensure!(messages(&equal(lab, both, "ben")?, "INBOX")? == 5, "others go on");
        master.deliver("ann", &corpus::short("later"))?;
        let inbox = |cyrus: &Cyrus| -> anyhow::Result<Vec<u32>> {
            let mailboxes = state(&mut cyrus.imap("ann")?, '/')?;
            let inbox = mailboxes.get("INBOX").context("an INBOX")?;
            Ok(inbox.messages.keys().copied().collect())
        };
        lab.wait("the neighbours arrive", || {
            let uids = inbox(&replica).unwrap_or_default();
            Ok(if uids == [1, 3, 4] { Ok(()) } else { Err(format!("{uids:?}")) })
        })?;
        lab.wait("the message is named", || {
            let told = pair.agent.replctl(lab, &["quarantine", "list"])?.stdout;
            Ok(if told.contains("ann") { Ok(()) } else { Err(told) })
        })?;
        let (code, text) = pair.check(lab, "deep")?;
        ensure!(
            code == 1 && text.contains("size     master  ann"),
            "check names it: {code}\n{text}"
        );
        // Mended, it comes, under its UID.
        files::overwrite(&victim, &whole)?;
        pair.agent.replctl(lab, &["quarantine", "retry"])?;
        ensure!(messages(&equal(lab, both, "ann")?, "INBOX")? == 4, "all of them");
        Ok(())
    })
}

#[test]
fn bit_rot_on_a_cyrus_replica_is_found_and_mended() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let (master, replica) = (Cyrus::start(lab, "a")?, Cyrus::start(lab, "b")?);
        master.create_user("ann")?;
        replica.set_password("ann")?;
        for words in ["sound", "victim", "sound too"] {
            master.deliver("ann", &corpus::short(words))?;
        }
        let pair = Pair::of_cyrus(lab, &master, &replica)?;
        let both = (&master, &replica);
        let before = equal(lab, both, "ann")?;
        files::overwrite(&file_of(&replica, "victim")?, b"Subject: rotten\r\n\r\nrotten\r\n")?;
        let (code, text) = pair.check(lab, "deep")?;
        ensure!(code == 1, "it is found: {code}\n{text}");
        pair.agent.replctl(lab, &["check", "--level", "deep", "--repair"])?.expect(0)?;
        let (code, text) = pair.check(lab, "deep")?;
        ensure!(code == 0, "it is mended: {code}\n{text}");
        ensure!(equal(lab, both, "ann")? == before, "no UID has changed");
        Ok(())
    })
}

#[test]
fn a_cyrus_master_feeds_a_maildir_replica() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let master = Cyrus::start(lab, "a")?;
        let replica = Dovecot::with_layout(lab, "b", Version::V23, Layout::Fs)?;
        let copied = || files::messages(&replica.home("ann")).is_ok_and(|all| !all.is_empty());
        master.create_user("ann")?;
        let mut imap = master.imap("ann")?;
        fill(&mut imap)?;
        let store = maildir_store(&replica);
        let pair =
            Pair::start(lab, (master.name(), master.store_config()), (replica.name(), store))?;
        // What a client makes there before is replaced, while that client has it open.
        lab.wait("the first message is on the replica's disk", || {
            Ok(if copied() { Ok(()) } else { Err("nothing yet".into()) })
        })?;
        mixed(lab, &pair, &mut imap, || {
            Ok([state(&mut master.imap("ann")?, '/')?, state(&mut replica.imap("ann")?, '/')?])
        })
    })
}

#[test]
fn a_maildir_master_feeds_a_cyrus_replica() -> anyhow::Result<()> {
    Lab::run(|lab| {
        // Cyrus gives out what it has: line ends must be those of IMAP.
        let (version, extra) = (Version::V23, "mail_save_crlf = yes");
        let master = Dovecot::with_extra(lab, "a", version, Layout::Fs, extra)?;
        let replica = Cyrus::start(lab, "b")?;
        replica.set_password("ann")?;
        let mut imap = master.imap("ann")?;
        fill(&mut imap)?;
        let store = maildir_store(&master);
        let pair =
            Pair::start(lab, (master.name(), store), (replica.name(), replica.store_config()))?;
        mixed(lab, &pair, &mut imap, || {
            Ok([state(&mut master.imap("ann")?, '/')?, state(&mut replica.imap("ann")?, '/')?])
        })
    })
}

fn fill(imap: &mut Imap) -> anyhow::Result<()> {
    imap.create("Work")?;
    imap.create("Work/Sub")?;
    let date = chrono::DateTime::parse_from_rfc3339("2001-02-03T04:05:06+00:00")?;
    for (number, mailbox) in ["INBOX", "Work", "Work/Sub", "INBOX", "INBOX"].iter().enumerate() {
        imap.append(mailbox, &corpus::short(&format!("before {number}")))
            .flags([Flag::Flagged, Flag::from("$label1")])
            .internal_date(date)
            .finish()?;
    }
    Ok(())
}

/// What clients do on the master is the same on the replica: UIDs, UIDVALIDITY, flags, dates, octets.
fn mixed(
    lab: &Lab,
    pair: &Pair,
    imap: &mut Imap,
    mut sides: impl FnMut() -> anyhow::Result<[BTreeMap<String, Mailbox>; 2]>,
) -> anyhow::Result<()> {
    let first = wait_equal(lab, "the first copy is equal", &mut sides)?;
    ensure!((messages(&first, "INBOX")?, messages(&first, "Work/Sub")?) == (3, 1), "{first:?}");
    for command in [
        "UID STORE 1 +FLAGS (\\Answered \\Seen)",
        "UID STORE 2 FLAGS (\\Draft later)",
        "UID COPY 1:2 Work",
        "UID STORE 3 +FLAGS (\\Deleted)",
        "EXPUNGE",
    ] {
        imap.select("INBOX")?;
        imap.command(command)?;
        wait_equal(lab, command, &mut sides)?;
    }
    imap.rename("Work/Sub", "Elsewhere")?;
    imap.append("Elsewhere", &corpus::short("after")).finish()?;
    let last = wait_equal(lab, "RENAME and APPEND", &mut sides)?;
    ensure!(messages(&last, "Elsewhere")? == 2, "{last:?}");
    let output = pair.agent.replctl(lab, &["check", "--level", "deep"])?;
    let log = pair.agent.log(AGENT);
    output.expect(0).with_context(|| format!("the agent's log is {}", log.display()))?;
    Ok(())
}

/// What Cyrus tells of ann beside messages: rights, identities, subscriptions, scripts.
fn told(cyrus: &Cyrus) -> anyhow::Result<String> {
    let answers = cyrus.told("ann")?;
    let is_other = |name: &str| name != "MAILBOX" && name != "QUOTA";
    let values = answers.iter().filter(|answer| is_other(&answer.name));
    let mut told: Vec<String> = values.map(|answer| format!("{answer:?}")).collect();
    for answer in answers.iter().filter(|answer| answer.name == "MAILBOX") {
        let value = &answer.values[0];
        told.push(format!("{:?} {:?}", value.get("MBOXNAME"), value.get("ACL")));
        told.push(format!("{:?}", value.get("UNIQUEID")));
    }
    // When a script was written is the server's own.
    told.retain(|line| !line.contains("LAST_UPDATE"));
    Ok(told.join("\n"))
}

#[test]
fn rights_and_scripts_go_to_a_cyrus_replica() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let (master, replica) = (Cyrus::start(lab, "a")?, Cyrus::start(lab, "b")?);
        master.create_user("ann")?;
        replica.set_password("ann")?;
        let _pair = Pair::of_cyrus(lab, &master, &replica)?;
        let mut imap = master.imap("ann")?;
        imap.create("Shared")?;
        imap.run_command_and_check_ok("SETACL Shared bob lrs")?;
        let mut admin = master.link()?;
        for (name, argument) in [
            (
                "SIEVE",
                Value::map([
                    ("USERID", Value::text("ann")),
                    ("FILENAME", Value::text("main.script")),
                    ("LAST_UPDATE", Value::number(1)),
                    ("CONTENT", Value::text("keep;\r\n")),
                ]),
            ),
            (
                "ACTIVATE_SIEVE",
                Value::map([("USERID", Value::text("ann")), ("FILENAME", Value::text("main.bc"))]),
            ),
        ] {
            admin.run(&Command::Apply(name, &argument))?;
        }
        let script = |cyrus: &Cyrus| -> anyhow::Result<String> {
            let wanted = Value::map([
                ("USERID", Value::text("ann")),
                ("FILENAME", Value::text("main.script")),
            ]);
            Ok(format!("{:?}", cyrus.link()?.run(&Command::Get("FETCH_SIEVE", &wanted))?))
        };
        lab.wait("rights, scripts and UNIQUEIDs are equal", || {
            let (ours, theirs) = (told(&master)?, told(&replica)?);
            let (our_script, their_script) =
                (script(&master)?, script(&replica).unwrap_or_default());
            let equal = ours == theirs && our_script == their_script && ours.contains("bob\\tlrs");
            Ok(if equal { Ok(()) } else { Err(format!("{ours}\n--\n{theirs}\n{their_script}")) })
        })
    })
}

#[test]
fn an_admin_that_cyrus_does_not_know_is_told_so() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let cyrus = Cyrus::start(lab, "a")?;
        let config = cyrus.store_config().replace(ADMIN, "nobody");
        let mut nodes = Node::beside(lab, &[("a", config)])?;
        let node = nodes.first_mut().context("a node")?;
        let doctor = || node.replctl(lab, &["doctor"]);
        let told = doctor()?.stdout;
        ensure!(told.contains("BROKEN  mail-server: imap: log in to Cyrus"), "{told}");
        node.write_config(&node.config_text()?.replace("nobody", ADMIN))?;
        let told = doctor()?.stdout;
        for port in ["imap", "csync"] {
            ensure!(told.contains(&format!("({port}) lets us in")), "{told}");
        }
        node.write_config(&node.config_text()?.replace("\"repl\"", "\"nobody\""))?;
        node.start(lab)?;
        lab.wait("the log says what to do", || {
            let log = node.log_text(AGENT)?;
            let told = log.contains("stand in `admins` of imapd.conf");
            Ok(if told { Ok(()) } else { Err(log) })
        })
    })
}
