//! What systemd does for the daemons of a pair, on Debian 12: it starts anew what makes no progress.

use anyhow::{Context as _, ensure};
use mailtwin_tests::{
    lab::Lab,
    machine::{Cable, Machine},
    site::{self, AGENT, REPLICA},
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
    if Machine::are_skipped() {
        return Ok(());
    }
    Lab::run(|lab| {
        let cable = Cable::lay()?;
        let machines = pair(lab, &cable)?;
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
