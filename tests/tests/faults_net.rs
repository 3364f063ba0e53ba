//! Networks that are cut, one-way, silent, half open, reset in mid-frame, or slow: nothing is lost,
//! and the link mends itself.

use std::{sync::atomic::Ordering, time::Duration};

use anyhow::{Context as _, ensure};
use mailtwin_tests::{
    corpus,
    daemon::Pair,
    dovecot::{Dovecot, Version},
    faults::{metric, wait_status},
    lab::Lab,
    proxy::Proxy,
};

/// Milliseconds one way, of 300 there and back.
const DELAY_MS: u64 = 150;

/// 1 Mbit/s.
const OCTETS_PER_SECOND: u64 = 125_000;

/// Longest time a slow link may take for what is little.
const SLOW_MAX: Duration = Duration::from_mins(1);

/// A pair with a path between its nodes that a test can spoil.
fn pair_over(lab: &Lab) -> anyhow::Result<(Pair, Proxy)> {
    let master = Dovecot::start(lab, "master", Version::V23)?;
    let replica = Dovecot::start(lab, "replica", Version::V23)?;
    let mut pair = Pair::around(lab, master, replica, &["u1"])?;
    let proxy = Proxy::start(lab, pair.copy.port)?;
    let (direct, detour) = (pair.copy.port, proxy.port);
    let text = pair.agent.config_text()?;
    let text = text.replace(
        &format!("address = \"127.0.0.1:{direct}\""),
        &format!("address = \"127.0.0.1:{detour}\""),
    );
    pair.agent.write_config(&text)?;
    pair.copy.start(lab)?;
    pair.agent.start(lab)?;
    pair.first_copy(lab)?;
    pair.wait_equal(lab)?;
    ensure!(proxy.faults.connections() > 0, "the agent takes the detour");
    Ok((pair, proxy))
}

fn deliver(pair: &Pair, what: &str, count: usize) -> anyhow::Result<()> {
    (0..count).try_for_each(|n| pair.master.deliver("u1", &corpus::short(&format!("{what}{n}"))))
}

/// Waits until the agent knows that it has no connection.
fn wait_noticed(lab: &Lab, pair: &Pair) -> anyhow::Result<()> {
    lab.wait("the agent notices", || {
        let connected = metric(pair.agent.metrics.0, "mailtwin_replica_connected")?;
        Ok(if connected == 0.0 { Ok(()) } else { Err("connected".into()) })
    })
}

#[test]
fn a_cut_is_said_and_ends() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let (pair, proxy) = pair_over(lab)?;
        proxy.faults.refuse.store(true, Ordering::SeqCst);
        proxy.faults.reset_all();
        deliver(&pair, "cut", 5)?;
        wait_noticed(lab, &pair)?;
        wait_status(lab, &pair, "replica-node")?;
        pair.agent.replctl(lab, &["status", "--nagios"])?.expect(2)?;
        pair.copy.replctl(lab, &["status"])?.expect(1).context("the replica says so, too")?;
        proxy.faults.refuse.store(false, Ordering::SeqCst);
        pair.wait_equal(lab).context("joined again")?;
        pair.expect_quiet_logs()
    })
}

fn silence(there: bool, back: bool) -> anyhow::Result<()> {
    Lab::run(|lab| {
        let (pair, proxy) = pair_over(lab)?;
        proxy.faults.hold(there, back);
        deliver(&pair, "silent", 5)?;
        wait_noticed(lab, &pair)?;
        deliver(&pair, "later", 5)?;
        proxy.faults.hold(false, false);
        pair.wait_equal(lab).context("heard again")?;
        pair.expect_quiet_logs()
    })
}

#[test]
fn a_link_that_is_silent_towards_the_replica_is_given_up_and_made_anew() -> anyhow::Result<()> {
    silence(true, false)
}

#[test]
fn a_link_that_is_silent_towards_the_agent_is_given_up_and_made_anew() -> anyhow::Result<()> {
    silence(false, true)
}

#[test]
fn a_black_hole_is_given_up_and_made_anew() -> anyhow::Result<()> {
    silence(true, true)
}

#[test]
fn a_half_open_connection_is_given_up_and_made_anew() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let (pair, proxy) = pair_over(lab)?;
        let before = proxy.faults.connections();
        proxy.faults.forget_all();
        deliver(&pair, "half-open", 5)?;
        // The path is fine for new connections: the agent must find out by itself.
        pair.wait_equal(lab)?;
        ensure!(proxy.faults.connections() > before, "there is a new connection");
        pair.expect_quiet_logs()
    })
}

#[test]
fn resets_in_mid_frame_lose_and_double_nothing() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let (pair, proxy) = pair_over(lab)?;
        for octets in [1, 600, 2_000, 5_000, 9_000, 20_000] {
            proxy.faults.reset_after.store(octets, Ordering::SeqCst);
            let before = proxy.faults.connections();
            proxy.faults.reset_all();
            deliver(&pair, &format!("reset{octets}-"), 10)?;
            lab.wait("it is reset twice", || {
                let now = proxy.faults.connections();
                Ok(if now >= before + 2 { Ok(()) } else { Err(format!("{now} connections")) })
            })?;
        }
        proxy.faults.reset_after.store(0, Ordering::SeqCst);
        pair.wait_equal(lab).context("without resets")?;
        pair.expect_quiet_logs()
    })
}

#[test]
fn a_slow_link_is_used_well() -> anyhow::Result<()> {
    Lab::run(|lab| {
        let (pair, proxy) = pair_over(lab)?;
        proxy.faults.delay_ms.store(DELAY_MS, Ordering::SeqCst);
        proxy.faults.rate.store(OCTETS_PER_SECOND, Ordering::SeqCst);
        let start = lab.clock().monotonic();
        deliver(&pair, "slow", 200)?;
        pair.wait_equal(lab)?;
        let took = lab.clock().monotonic().saturating_sub(start);
        // One after the other, 200 messages would wait 60 s for their answers alone.
        ensure!(took < SLOW_MAX, "200 messages took {took:?}");
        pair.agent.sync(lab)?;
        pair.agent.replctl(lab, &["status"])?.expect(0)?;
        pair.expect_quiet_logs()
    })
}
