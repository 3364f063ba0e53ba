//! Where Cyrus's own replication falls short, one test each: a replica that dies, a mailbox that breaks,
//! changes that the sync log never heard of, folders on one side only, a drain that fails, a
//! replica that joins while clients work. None of it is ours. Damaged messages and bit rot are in
//! `cyrus.rs`.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use anyhow::{Context as _, ensure};
use mailtwin_tests::{
    cluster::Cluster,
    corpus,
    cyrus::Cyrus,
    daemon::Node,
    files,
    lab::Lab,
    oracle::{self, Account},
    server::Server as _,
};
use rustix::process::Signal;

const ACCOUNTS: [&str; 2] = ["ann", "ben"];

/// Cyruses with mail of two accounts on the first, and a node beside each; nothing of ours runs yet.
fn beside<const N: usize>(lab: &Lab) -> anyhow::Result<([Cyrus; N], [Node; N], Vec<String>)> {
    let names = ["one", "two", "three"];
    let servers: Vec<Cyrus> =
        names[..N].iter().map(|name| Cyrus::start(lab, name)).collect::<anyhow::Result<_>>()?;
    for (place, server) in servers.iter().enumerate() {
        ACCOUNTS.iter().try_for_each(|account| server.add_account(account, place == 0))?;
    }
    let stores: Vec<_> = servers.iter().map(|one| (one.name(), one.store_config())).collect();
    let nodes = Node::beside(lab, &stores)?;
    let servers = servers.try_into().map_err(|_| anyhow::anyhow!("as many servers"))?;
    let nodes = nodes.try_into().map_err(|_| anyhow::anyhow!("as many nodes"))?;
    Ok((servers, nodes, ACCOUNTS.map(str::to_owned).to_vec()))
}

fn deliver(server: &Cyrus, serials: &[&str]) -> anyhow::Result<()> {
    for serial in serials {
        for account in ACCOUNTS {
            server.deliver(account, &corpus::short(&format!("{account}-{serial}")))?;
        }
    }
    Ok(())
}

fn wait_listed(lab: &Lab, node: &Node, words: &str) -> anyhow::Result<()> {
    lab.wait(&format!("{words} is set aside"), || {
        let told = node.replctl(lab, &["quarantine", "list"])?.stdout;
        Ok(if told.contains(words) { Ok(()) } else { Err(told) })
    })
}

#[test]
fn a_dead_replica_is_waited_for_and_a_drain_without_it_fails() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let ([master, mut replica], [mut agent, mut copy], accounts) = beside::<2>(lab)?;
        copy.start(lab)?;
        agent.start(lab)?;
        deliver(&master, &["before"])?;
        oracle::wait_equal(lab, &master, &replica, &accounts)?;
        replica.kill()?;
        deliver(&master, &["meanwhile", "later"])?;
        let drained = agent.replctl(lab, &["drain", "--timeout", "3s"])?;
        ensure!(drained.code == Some(1), "a drain that failed says so: {drained:?}");
        ensure!(agent.daemon()?.is_running() && copy.daemon()?.is_running(), "nobody gave up");
        // One server is away: that is said once, and not of each mailbox.
        lab.wait("status says that Cyrus does not answer", || {
            let told = agent.replctl(lab, &["status"])?.stdout;
            Ok(if told.contains("connect to Cyrus") { Ok(()) } else { Err(told) })
        })?;
        let listed = agent.replctl(lab, &["--output", "json", "quarantine", "list"])?.stdout;
        ensure!(!listed.contains("connect to Cyrus"), "nothing is set aside: {listed}");
        replica.resume(lab)?;
        oracle::wait_equal(lab, &master, &replica, &accounts)?;
        agent.replctl(lab, &["drain"])?.expect(0)?;
        Ok(())
    })
}

#[test]
fn a_service_that_cyrus_has_switched_off_is_told_and_waited_for() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let ([master, replica], [mut agent, mut copy], accounts) = beside::<2>(lab)?;
        copy.start(lab)?;
        agent.start(lab)?;
        deliver(&master, &["before"])?;
        oracle::wait_equal(lab, &master, &replica, &accounts)?;
        replica.switch_off_replication(lab)?;
        deliver(&master, &["meanwhile"])?;
        lab.wait("status says that Cyrus does not answer", || {
            let told = agent.replctl(lab, &["status"])?.stdout;
            Ok(if told.contains("connect to Cyrus") { Ok(()) } else { Err(told) })
        })?;
        replica.reload()?;
        oracle::wait_equal(lab, &master, &replica, &accounts)?;
        agent.replctl(lab, &["drain"])?.expect(0)?;
        Ok(())
    })
}

#[test]
fn a_mailbox_that_the_replica_cannot_read_holds_up_no_other() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let ([master, replica], [mut agent, mut copy], accounts) = beside::<2>(lab)?;
        copy.start(lab)?;
        agent.start(lab)?;
        let mut imap = master.imap("ann")?;
        imap.create("Broken")?;
        imap.append("Broken", &corpus::short("first")).finish()?;
        oracle::wait_equal(lab, &master, &replica, &accounts)?;
        let index = replica.mailbox_dir("user.ann.Broken")?.join("cyrus.index");
        let sound = fs::read(&index).with_context(|| format!("read {}", index.display()))?;
        files::overwrite(&index, b"not an index")?;
        imap.append("Broken", &corpus::short("second")).finish()?;
        deliver(&master, &["behind it", "and more"])?;
        for account in ACCOUNTS {
            lab.wait(&format!("{account}'s mail comes all the same"), || {
                let mut imap = replica.imap(account)?;
                let inbox = oracle::Mailbox::read(&mut imap, "INBOX")?;
                let count = inbox.messages.len();
                Ok(if count == 2 { Ok(()) } else { Err(format!("{count} messages")) })
            })?;
        }
        wait_listed(lab, &agent, "Broken")?;
        files::overwrite(&index, &sound)?;
        agent.replctl(lab, &["quarantine", "retry"])?;
        oracle::wait_equal(lab, &master, &replica, &accounts)
    })
}

/// What ends the connection when `sync_server` is told of a mailbox: what a bug of Cyrus's would do.
struct Poison {
    address: SocketAddr,
    works: Arc<AtomicBool>,
}

impl Poison {
    /// In front of `server`, against one mailbox.
    fn before(server: &Cyrus, mailbox: &str) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let (address, works) = (listener.local_addr()?, Arc::new(AtomicBool::new(true)));
        let (target, words) = (server.csync_address(), format!(" MBOXNAME {mailbox} "));
        let still = Arc::clone(&works);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(target) else { continue };
                let (Ok(back_to), Ok(back_from)) = (client.try_clone(), server.try_clone()) else {
                    continue;
                };
                thread::spawn(move || carry(back_from, back_to, |_| true));
                let (words, still) = (words.clone(), Arc::clone(&still));
                thread::spawn(move || {
                    carry(client, server, |text| {
                        let mut applied = text.split("APPLY MAILBOX %(").skip(1);
                        let hit = applied.any(|rest| {
                            let head: String = rest.chars().take(200).collect();
                            head.contains(&words)
                        });
                        !(hit && still.load(Ordering::Relaxed))
                    });
                });
            }
        });
        Ok(Self { address, works })
    }
}

/// Carries octets until `goes_on` says no of the latest ones.
fn carry(mut from: TcpStream, mut to: TcpStream, goes_on: impl Fn(&str) -> bool) {
    let (mut buffer, mut latest) = (vec![0; 16 << 10], Vec::new());
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        let octets = buffer.get(..read).unwrap_or_default();
        latest.extend_from_slice(octets);
        if !goes_on(&String::from_utf8_lossy(&latest)) || to.write_all(octets).is_err() {
            break;
        }
        latest.drain(..latest.len().saturating_sub(1 << 10));
    }
    // Either may be closed already.
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

#[test]
fn a_mailbox_over_which_cyrus_ends_the_connection_is_set_aside_alone() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let ([master, replica], [mut agent, mut copy], accounts) = beside::<2>(lab)?;
        let poison = Poison::before(&replica, "user.ann.Poison")?;
        let text = copy.config_text()?;
        let socket = text.lines().find(|line| line.starts_with("csync = ")).context("csync")?;
        let proxied = format!("csync = \"{}\"", poison.address);
        copy.write_config(&text.replace(socket, &proxied))?;
        copy.start(lab)?;
        agent.start(lab)?;
        let mut imap = master.imap("ann")?;
        for name in ["Poison", "Sound"] {
            imap.create(name)?;
            imap.append(name, &corpus::short(name)).finish()?;
        }
        deliver(&master, &["beside it"])?;
        wait_listed(lab, &agent, "Poison")?;
        deliver(&master, &["after it"])?;
        lab.wait("all other mail comes", || {
            let there = |account: &str| Account::read(&replica, account);
            let (ann, ben) = (there("ann")?.serials(), there("ben")?.serials());
            Ok(if (ann.len(), ben.len()) == (3, 2) {
                Ok(())
            } else {
                Err(format!("{ann:?} {ben:?}"))
            })
        })?;
        poison.works.store(false, Ordering::Relaxed);
        agent.replctl(lab, &["quarantine", "retry"])?;
        oracle::wait_equal(lab, &master, &replica, &accounts)
    })
}

#[test]
fn what_cyrus_did_not_log_is_found_by_the_scan() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let ([master, replica], [mut agent, mut copy], accounts) = beside::<2>(lab)?;
        agent.write_config(&format!("{}\n[scan]\ninterval = \"2s\"\n", agent.config_text()?))?;
        copy.start(lab)?;
        agent.start(lab)?;
        deliver(&master, &["first", "second"])?;
        oracle::wait_equal(lab, &master, &replica, &accounts)?;
        // What Cyrus writes while the agent is frozen is lost, as when it cannot write its log.
        agent.daemon()?.signal(Signal::STOP)?;
        deliver(&master, &["unlogged"])?;
        let mut imap = master.imap("ann")?;
        imap.select("INBOX")?;
        imap.command("UID STORE 1:2 +FLAGS (\\Flagged $Unlogged)")?;
        imap.logout()?;
        let log = master.channel().join("log");
        fs::remove_file(&log).with_context(|| format!("remove {}", log.display()))?;
        agent.daemon()?.signal(Signal::CONT)?;
        oracle::wait_equal(lab, &master, &replica, &accounts)?;
        let there = Account::read(&replica, "ann")?.serials();
        ensure!(there.contains_key("ann-unlogged"), "{there:?}");
        Ok(())
    })
}

#[test]
fn a_replica_added_while_sessions_are_open_misses_nothing_of_them() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let ([master, first, second], [mut agent, mut one, mut two], accounts) = beside::<3>(lab)?;
        let (name, port) = (two.name().to_owned(), two.port);
        let peer = format!("\n[[peer]]\nname = \"{name}\"\naddress = \"127.0.0.1:{port}\"\n");
        let text = agent.config_text()?;
        ensure!(text.contains(&peer), "the peer is there: {text}");
        agent.write_config(&text.replace(&peer, ""))?;
        one.start(lab)?;
        agent.start(lab)?;
        deliver(&master, &["first", "second", "third"])?;
        // These sessions are open before anybody thinks of another replica.
        let mut sessions = BTreeMap::new();
        for account in ACCOUNTS {
            let mut imap = master.imap(account)?;
            imap.select("INBOX")?;
            sessions.insert(account, imap);
        }
        oracle::wait_equal(lab, &master, &first, &accounts)?;
        two.start(lab)?;
        let address = format!("127.0.0.1:{port}");
        agent.replctl(lab, &["replica", "add", &name, &address])?.expect(0)?;
        for imap in sessions.values_mut() {
            imap.command("UID STORE 1 +FLAGS (\\Flagged $Later)")?;
            imap.command("UID STORE 2 +FLAGS (\\Deleted)")?;
            imap.command("EXPUNGE")?;
        }
        oracle::wait_equal(lab, &master, &second, &accounts)?;
        oracle::wait_equal(lab, &master, &first, &accounts)?;
        let copy = Account::read(&second, "ben")?;
        let inbox = copy.mailboxes.get("INBOX").context("an INBOX")?;
        ensure!(inbox.messages.keys().copied().collect::<Vec<_>>() == [1, 3], "{inbox:?}");
        ensure!(inbox.messages[&1].flags.contains("\\flagged"), "{inbox:?}");
        Ok(())
    })
}

#[test]
fn folders_and_users_of_one_side_are_copied_back_and_namesakes_become_one() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let mut cluster = Cluster::of_cyrus(lab, &["one", "two"])?;
        cluster.deliver(0, 0, 4)?;
        cluster.nodes[0].replctl(lab, &["drain"])?.expect(0)?;
        cluster.nodes[0].kill_both()?;
        cluster.gates[1].open_by_hand()?;
        // A user and a folder that only the old master has, and one name on both sides.
        cluster.servers[0].create_user("u9")?;
        cluster.servers[1].set_password("u9")?;
        cluster.accounts.push("u9".into());
        cluster.servers[0].deliver("u9", &corpus::short("only-user"))?;
        for (place, own) in [(0, "There"), (1, "Here")] {
            let mut imap = cluster.servers[place].imap("u1")?;
            for name in ["Alike", own, "Zebra"] {
                imap.create(name)?;
                let serial = format!("{}-{place}", name.to_lowercase());
                imap.append(name, &corpus::short(&serial)).finish()?;
            }
            imap.logout()?;
        }
        cluster.servers[0].kill()?;
        cluster.force(lab, 1)?;
        cluster.rise(lab, 0)?;
        cluster.wait_merged(lab, 1)?;
        let wanted = ["alike-0", "alike-1", "here-1", "m0", "m2", "there-0", "zebra-0", "zebra-1"];
        for server in &cluster.servers {
            let ours = Account::read(server, "u1")?;
            let serials: Vec<String> = ours.serials().into_keys().collect();
            let alike = ours.mailboxes.get("Alike").context("Alike")?.messages.len();
            let u9 = Account::read(server, "u9")?.serials();
            ensure!(
                alike == 2 && u9.contains_key("only-user"),
                "{}: {ours:?} {u9:?}",
                server.name()
            );
            ensure!(serials == wanted, "{serials:?}");
        }
        Ok(())
    })
}
