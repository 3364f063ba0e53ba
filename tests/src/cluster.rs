//! Nodes whose roles move: real mail servers with the gate that is shipped, and both daemons on each.

use std::collections::BTreeSet;

use anyhow::ensure;

use crate::{
    corpus,
    cyrus::Cyrus,
    daemon::Node,
    dovecot::{Dovecot, Version},
    gate::Gatekeeper,
    lab::Lab,
    oracle::{self, Account},
    process::Output,
    server::Server,
};

/// Accounts of every cluster.
pub const ACCOUNTS: [&str; 2] = ["u1", "u2"];

/// Nodes whose roles move, each with a mail server and a gate.
#[derive(Debug)]
pub struct Cluster<S = Dovecot> {
    /// Mail servers.
    pub servers: Vec<S>,
    /// Daemons, in the same order.
    pub nodes: Vec<Node>,
    /// What closes and opens each server.
    pub gates: Vec<Gatekeeper>,
    /// [`ACCOUNTS`].
    pub accounts: Vec<String>,
}

impl Cluster {
    /// Dovecots; the first is the master's.
    pub fn start(lab: &Lab, names: &[&str]) -> anyhow::Result<Self> {
        let start = |name: &&str| Dovecot::start(lab, name, Version::V23);
        let servers = names.iter().map(start).collect::<anyhow::Result<Vec<_>>>()?;
        Self::around(lab, servers)
    }
}

impl Cluster<Cyrus> {
    /// Cyruses; the first is the master's.
    pub fn of_cyrus(lab: &Lab, names: &[&str]) -> anyhow::Result<Self> {
        let start = |name: &&str| Cyrus::start(lab, name);
        let servers = names.iter().map(start).collect::<anyhow::Result<Vec<_>>>()?;
        Self::around(lab, servers)
    }
}

impl<S: Server> Cluster<S> {
    fn around(lab: &Lab, servers: Vec<S>) -> anyhow::Result<Self> {
        for (place, server) in servers.iter().enumerate() {
            for account in ACCOUNTS {
                server.add_account(account, place == 0)?;
            }
        }
        let stores = servers.iter().map(|server| (server.name(), server.store_config()));
        let nodes = Node::beside(lab, &stores.collect::<Vec<_>>())?;
        let mut gates = Vec::new();
        for (node, server) in nodes.iter().zip(&servers) {
            gates.push(Gatekeeper::install(lab, node, server)?);
            node.tell_incidents()?;
        }
        let accounts = ACCOUNTS.map(str::to_owned).to_vec();
        let mut cluster = Self { servers, nodes, gates, accounts };
        for node in cluster.nodes.iter_mut().rev() {
            node.start_both(lab)?;
        }
        cluster.wait_master(lab, 0)?;
        // The master's gate was open before its agent was there to look at it.
        cluster.nodes[0].ask(lab, &["log", "stat"])?;
        Ok(cluster)
    }

    /// Waits until only this node's gate is open.
    pub fn wait_master(&self, lab: &Lab, place: usize) -> anyhow::Result<()> {
        lab.wait(&format!("only {} is open", self.servers[place].name()), || {
            let open: Vec<bool> = self.servers.iter().map(S::is_open).collect();
            let right = open.iter().enumerate().all(|(at, &open)| open == (at == place));
            Ok(if right { Ok(()) } else { Err(format!("open: {open:?}")) })
        })
    }

    /// Opens every gate and waits until all servers show the same mail.
    pub fn wait_all_equal(&self, lab: &Lab, master: usize) -> anyhow::Result<()> {
        self.nodes[master].replctl(lab, &["drain"])?.expect(0)?;
        for gate in &self.gates {
            gate.open_by_hand()?;
        }
        for place in (0..self.servers.len()).filter(|&place| place != master) {
            let (ours, theirs) = (&self.servers[master], &self.servers[place]);
            oracle::wait_equal(lab, ours, theirs, &self.accounts)?;
        }
        Ok(())
    }

    /// Makes a node the master without the old one, which is dead; waits until it is open.
    pub fn force(&self, lab: &Lab, place: usize) -> anyhow::Result<Output> {
        let node = &self.nodes[place];
        let forced = lab.wait("the dead master's sessions are gone", || {
            // What was heard last may be some seconds old, and older than a drain.
            let output = node.replctl(lab, &["failover", "force", "--accept-loss", "all"])?;
            Ok(if output.code == Some(0) { Ok(output) } else { Err(output.stdout) })
        })?;
        lab.wait("the new master is one, and open", || {
            let status = node.ask(lab, &["status"])?;
            let ready = status["role"] == "master" && self.servers[place].is_open();
            Ok(if ready { Ok(()) } else { Err(status.to_string()) })
        })?;
        Ok(forced)
    }

    /// Starts a dead node's mail server and daemons.
    pub fn rise(&mut self, lab: &Lab, place: usize) -> anyhow::Result<()> {
        self.servers[place].resume(lab)?;
        self.nodes[place].start_both(lab)
    }

    /// Waits until `master` has copied back what only a returning node had, and all are equal.
    pub fn wait_merged(&self, lab: &Lab, master: usize) -> anyhow::Result<()> {
        self.wait_master(lab, master)?;
        lab.wait("what only the old master had is copied back", || {
            let status = self.nodes[master].ask(lab, &["status"])?;
            let state = &status["replicas"][0]["state"];
            Ok(if state == "in-sync" { Ok(()) } else { Err(status.to_string()) })
        })?;
        self.wait_all_equal(lab, master)
    }

    /// Delivers the messages of these numbers, `m` before each, to the accounts in turn.
    pub fn deliver(&self, place: usize, from: usize, to: usize) -> anyhow::Result<()> {
        for serial in from..to {
            let account = &self.accounts[serial % self.accounts.len()];
            self.servers[place].deliver(account, &corpus::short(&format!("m{serial}")))?;
        }
        Ok(())
    }

    /// Every serial number that is on a server, and that none is there twice.
    pub fn serials(&self, place: usize) -> anyhow::Result<BTreeSet<String>> {
        let mut all = BTreeSet::new();
        for account in &self.accounts {
            for (serial, times) in Account::read(&self.servers[place], account)?.serials() {
                ensure!(times == 1, "{serial} is there {times} times");
                all.insert(serial);
            }
        }
        Ok(all)
    }
}

/// Waits until a node's admin has been told of these incidents, and fails if there are others.
pub fn told(lab: &Lab, node: &Node, expected: &[&str]) -> anyhow::Result<()> {
    lab.wait(&format!("{} tells of {expected:?}", node.name()), || {
        let told = node.incidents()?;
        let kinds: Vec<&str> = told.lines().filter_map(|line| line.split(' ').next()).collect();
        Ok(if kinds == expected { Ok(()) } else { Err(told) })
    })
}
