//! What systemd does for the daemons of a pair, on Debian 12: it starts anew what makes no progress, and holds the
//! replica's port.

use anyhow::{Context as _, ensure};
use mailtwin_tests::{
    lab::Lab,
    machine::{self, Cable, Machine},
    site::{self, AGENT, REPLICA, SOCKET},
};

/// The two machines of the ten-minute start, in sync.
fn pair(lab: &Lab, cable: &Cable) -> anyhow::Result<[Machine; 2]> {
    let packages = site::packages(lab, None)?;
    let machines = site::two_machines(lab, cable)?;
    for machine in &machines {
        site::bring(machine, lab, &packages)?;
    }
    site::follow(lab, &machines)?;
    site::wait_equal(lab, &machines, "hello")?;
    Ok(machines)
}

#[test]
fn a_daemon_that_stands_still_is_killed_and_started_again() -> anyhow::Result<()> {
    machine::connected(|lab, cable| {
        let machines = pair(lab, cable)?;
        let daemons = [(&machines[0], AGENT), (&machines[1], REPLICA)];
        let mut stopped = Vec::new();
        for (machine, unit) in daemons {
            let hurry = format!("/etc/systemd/system/{unit}.service.d/hurry.conf");
            machine.put(&hurry, "[Service]\nWatchdogSec=9s\n")?;
            machine.sh(lab, &format!("systemctl daemon-reload && systemctl restart {unit}"))?;
            stopped.push(site::main_pid(machine, lab, unit)?);
        }
        site::deliver(&machines[0], lab, "both hurry")?;
        site::wait_equal(lab, &machines, "both hurry")?;
        for ((machine, unit), id) in daemons.into_iter().zip(&stopped) {
            let restarts = format!("systemctl show --value -p NRestarts {unit}");
            ensure!(machine.sh(lab, &restarts)? == "0\n", "{unit} was not started anew before");
            machine.sh(lab, &format!("kill -STOP {id}"))?;
        }
        for ((machine, unit), id) in daemons.into_iter().zip(stopped) {
            lab.wait(&format!("{unit} is another process"), || {
                let now = site::main_pid(machine, lab, unit)?;
                Ok(if now == 0 || now == id { Err(format!("it is {now}")) } else { Ok(()) })
            })?;
            site::wait_active(machine, lab, unit)?;
            let why = format!("journalctl -u {unit} | grep 'Watchdog timeout'");
            machine.sh(lab, &why).context("it was the watchdog")?;
        }
        site::deliver(&machines[0], lab, "both were stopped")?;
        site::wait_equal(lab, &machines, "both were stopped")
    })
}

/// One connection to the replica's port, from the other machine.
const CONNECT: &str = "bash -c ': < /dev/tcp/mx2.example.org/4710'";

#[test]
fn a_port_that_systemd_holds_refuses_nobody() -> anyhow::Result<()> {
    machine::connected(|lab, cable| {
        let machines = pair(lab, cable)?;
        let [master, replica] = &machines;
        replica.sh(lab, &format!("systemctl stop {REPLICA}"))?;
        ensure!(master.run(lab, CONNECT)?.code != Some(0), "without it, it is refused");
        replica.sh(lab, &format!("systemctl enable --now {SOCKET}"))?;
        master.sh(lab, CONNECT)?;
        site::wait_active(replica, lab, REPLICA).context("whoever connects starts the daemon")?;
        site::deliver(master, lab, "systemd holds the port")?;
        site::wait_equal(lab, &machines, "systemd holds the port")?;
        upgrade(lab, &machines)?;
        wait_for_a_slow_start(lab, &machines)?;
        listen_elsewhere(lab, &machines)?;
        give_up_what_does_not_start(lab, &machines)?;

        // Stopped as a whole it stays stopped, and it comes back as a whole.
        replica.sh(lab, "systemctl stop mailtwin.target")?;
        ensure!(master.run(lab, CONNECT)?.code != Some(0), "stopped is stopped");
        replica.sh(lab, "systemctl start mailtwin.target")?;
        site::wait_active(replica, lab, SOCKET)
    })
}

/// An upgrade restarts the daemon and leaves the port as it is.
fn upgrade(lab: &Lab, machines: &[Machine; 2]) -> anyhow::Result<()> {
    let [master, replica] = machines;
    let before = [REPLICA, SOCKET].map(|unit| begun(replica, lab, unit));
    site::bring(replica, lab, &site::packages(lab, Some(site::NEWER))?)?;
    replica.sh(lab, site::INSTALL)?;
    let after = [REPLICA, SOCKET].map(|unit| begun(replica, lab, unit));
    let ([daemon, port], [new_daemon, new_port]) = (before, after);
    ensure!(daemon? != new_daemon?, "the daemon is the new one");
    ensure!(port? == new_port?, "the port was never closed");
    site::deliver(master, lab, "after an upgrade")?;
    site::wait_equal(lab, machines, "after an upgrade")
}

/// Since when a unit has been active.
fn begun(machine: &Machine, lab: &Lab, unit: &str) -> anyhow::Result<String> {
    machine.sh(lab, &format!("systemctl show --value -p ActiveEnterTimestampMonotonic {unit}"))
}

/// Between the end of one daemon and the start of the next, connections are taken.
fn wait_for_a_slow_start(lab: &Lab, machines: &[Machine; 2]) -> anyhow::Result<()> {
    let [master, replica] = machines;
    let slow = "[Service]\nExecStartPre=/bin/sh -c 'while test -e /hold; do sleep 0.1; done'\n";
    replica.put("/etc/systemd/system/mailtwin-replica.service.d/slow.conf", slow)?;
    replica.put("/hold", "")?;
    replica
        .sh(lab, &format!("systemctl daemon-reload && systemctl --no-block restart {REPLICA}"))?;
    lab.wait("the daemon has ended", || {
        let now = replica.run(lab, "pgrep -x mailtwin-replic")?;
        Ok(if now.code == Some(1) { Ok(()) } else { Err(now.stdout) })
    })?;
    master.sh(lab, CONNECT).context("nobody runs who could take it")?;
    replica.sh(lab, "rm /hold")?;
    site::wait_active(replica, lab, REPLICA)?;
    site::deliver(master, lab, "after a slow start")?;
    site::wait_equal(lab, machines, "after a slow start")
}

/// What the socket unit says counts, and the daemon says so.
fn listen_elsewhere(lab: &Lab, machines: &[Machine; 2]) -> anyhow::Result<()> {
    let [master, replica] = machines;
    let elsewhere = site::config("mx2", "mx1") + "\n[replica]\nlisten = \"[::]:4711\"\n";
    replica.put("/etc/mailtwin/mailtwin.toml", &elsewhere)?;
    let warned = "journalctl --sync && journalctl -q -p warning MAILTWIN_CODE=listen-differs";
    let before = replica.sh(lab, warned)?;
    ensure!(before.is_empty(), "said for no reason: {before}");
    replica.sh(lab, &format!("systemctl restart {REPLICA}"))?;
    let said = replica.sh(lab, warned)?;
    ensure!(said.contains("listens=[::]:4710 listen=[::]:4711"), "{said}");
    site::deliver(master, lab, "to the port of the socket")?;
    site::wait_equal(lab, machines, "to the port of the socket")?;
    replica.put("/etc/mailtwin/mailtwin.toml", &site::config("mx2", "mx1"))
}

/// A daemon that cannot start is not started for ever for those who wait; mended, all is as before.
fn give_up_what_does_not_start(lab: &Lab, machines: &[Machine; 2]) -> anyhow::Result<()> {
    let [master, replica] = machines;
    replica.sh(lab, &format!("systemctl stop {REPLICA}"))?;
    replica.put("/etc/mailtwin/mailtwin.toml", "config_version = 1\n[nodes]\n")?;
    lab.wait("the port is given up", || {
        // The agent does so, too, but takes its time.
        master.run(lab, CONNECT)?;
        let why = replica.sh(lab, &format!("systemctl show --value -p Result {SOCKET}"))?;
        Ok(if why == "trigger-limit-hit\n" { Ok(()) } else { Err(why) })
    })?;
    replica.put("/etc/mailtwin/mailtwin.toml", &site::config("mx2", "mx1"))?;
    site::deliver(master, lab, "after a wrong configuration")?;
    lab.wait("the port is opened again", || {
        // In the first ten seconds systemd closes it at the next connection.
        let daemon = format!("systemctl start {SOCKET}; systemctl is-active {REPLICA}");
        let state = replica.run(lab, &daemon)?;
        Ok(if state.code == Some(0) { Ok(()) } else { Err(state.stdout) })
    })?;
    site::wait_equal(lab, machines, "after a wrong configuration")
}
