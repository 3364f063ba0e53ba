//! The Debian packages and units, on Debian 12 with systemd: installed, upgraded, removed and purged; installed on
//! Debian 13; and the ten-minute start, followed line by line on two machines.

use std::{path::Path, process::Command};

use anyhow::{Context as _, bail, ensure};
use mailtwin_tests::{
    lab::Lab,
    machine::{self, Machine},
    site::{
        self, AGENT, INSTALL, NEWER, REPLICA, SOCKET, bring, config, deliver, main_pid, packages,
        two_machines, wait_active, wait_equal,
    },
};

/// What systemd may find exposed of a daemon, in tenths of ten.
const EXPOSURE_MAX: &str = "20";

#[test]
fn the_sandbox_leaves_little_exposed() -> anyhow::Result<()> {
    for unit in [AGENT, REPLICA, "mailtwin-check"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../systemd/{unit}.service"));
        let output = Command::new("systemd-analyze")
            .args(["security", "--offline=yes", "--threshold", EXPOSURE_MAX])
            .arg(&path)
            .output()
            .context("run systemd-analyze")?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "{unit}: {said}");
    }
    Ok(())
}

#[test]
fn packages_are_installed_upgraded_removed_and_purged() -> anyhow::Result<()> {
    machine::connected(|lab, cable| {
        let (old, new) = (packages(lab, None)?, packages(lab, Some(NEWER))?);
        let machine = Machine::boot(lab, "mx1", cable, 0)?;
        bring(&machine, lab, &old)?;
        machine.sh(lab, INSTALL)?;
        expect_installed(&machine, lab)?;

        // Started as it came, it says that it has no role, and is not tried again.
        machine.run(lab, &format!("systemctl start {REPLICA}"))?;
        let state = format!("systemctl show --value -p NRestarts,ExecMainStatus {REPLICA}");
        let shown = machine.sh(lab, &state)?;
        ensure!(shown.split_whitespace().eq(["0", "2"]), "restarts and exit code: {shown}");
        find_in_journal(&machine, lab)?;

        machine.sh(lab, "useradd --system vmail")?;
        start_as(&machine, lab, ("mx1", "mx2"), "replica")?;
        let said = machine.sh(lab, &format!("systemctl status {AGENT} {REPLICA}"))?;
        let status = said.contains("Status: \"replica, epoch 1; no master was heard of yet\"");
        ensure!(status && said.contains("Status: \"replica, epoch 1\""), "{said}");
        // The nightly check has nothing to do on a replica, and that is no failure.
        machine.sh(lab, "systemctl start mailtwin-check.service")?;
        refuse_wrong_configuration(&machine, lab)?;

        // What runs is restarted, what the admin wrote stays.
        let before = [main_pid(&machine, lab, AGENT)?, main_pid(&machine, lab, REPLICA)?];
        bring(&machine, lab, &new)?;
        machine.sh(lab, INSTALL)?;
        let versions = machine.sh(lab, "dpkg-query -W -f '${Version} ' replctl mailtwin-agent")?;
        ensure!(versions == format!("{NEWER} {NEWER} "), "{versions}");
        for (unit, before) in [AGENT, REPLICA].into_iter().zip(before) {
            wait_active(&machine, lab, unit)?;
            ensure!(main_pid(&machine, lab, unit)? != before, "{unit} was restarted");
        }
        let kept = machine.sh(lab, "cat /etc/mailtwin/mailtwin.toml")?;
        ensure!(kept == config("mx1", "mx2"), "{kept}");

        // Whatever is enabled goes with the packages.
        machine.sh(lab, &format!("systemctl enable {SOCKET}"))?;
        machine.sh(lab, "apt-get remove -y mailtwin-agent mailtwin-replica replctl")?;
        let left = "test -e /etc/mailtwin/mailtwin.toml && test -e /var/lib/mailtwin/node.json \
                    && test -e /var/vmail/.mailtwin-store && ! pgrep mailtwin";
        machine.sh(lab, left)?;
        machine.sh(lab, "apt-get purge -y mailtwin-agent mailtwin-replica replctl")?;
        let gone = "test ! -e /etc/mailtwin && test ! -e /var/lib/mailtwin && test -e /var/vmail";
        machine.sh(lab, gone)?;
        let links = machine.sh(lab, "find /etc/systemd/system -name 'mailtwin*'")?;
        ensure!(links.is_empty(), "{links}");
        Ok(())
    })
}

#[test]
fn packages_from_debian_12_run_on_debian_13() -> anyhow::Result<()> {
    machine::connected(|lab, cable| {
        let packages = packages(lab, None)?;
        let replica = Machine::boot_debian_13(lab, "mx2", cable, 1)?;
        let release = replica.sh(lab, "cut -d. -f1 /etc/debian_version")?;
        ensure!(release == "13\n", "Debian {release}");
        bring(&replica, lab, &packages)?;
        replica.sh(lab, INSTALL)?;
        expect_installed(&replica, lab)?;
        replica.sh(lab, "useradd --system vmail")?;
        start_as(&replica, lab, ("mx2", "mx1"), "replica")?;
        replica.sh(lab, &format!("systemctl stop {REPLICA} && systemctl enable --now {SOCKET}"))?;
        replica.sh(lab, &format!("systemctl start {REPLICA}"))?;
        let doctor = replica.run(lab, "replctl doctor")?;
        for said in ["mailtwin-agent runs", "mailtwin-replica runs", "Dovecot 2.4"] {
            ensure!(doctor.stdout.contains(said), "{doctor:?}");
        }
        // The mail belongs to vmail alone, and the units let the daemons pass by that.
        let denied = |line: &str| line.contains("BROKEN") && line.contains("store-access");
        ensure!(!doctor.stdout.lines().any(denied), "{doctor:?}");

        let master = Machine::boot(lab, "mx1", cable, 0)?;
        site::mail_server(&master, lab)?;
        bring(&master, lab, &packages)?;
        master.sh(lab, INSTALL)?;
        start_as(&master, lab, ("mx1", "mx2"), "master")?;
        deliver(&master, lab, "from 12 to 13")?;
        lab.wait("the mail is on Debian 13", || {
            let there = "grep -rlsx 'Subject: from 12 to 13' /var/vmail/example.org/ann/Maildir";
            let found = replica.run(lab, there)?;
            Ok(if found.code == Some(0) { Ok(()) } else { Err(format!("{found:?}")) })
        })?;
        let status = replica.run(lab, "replctl status")?;
        ensure!(status.stdout.contains("mx1"), "{status:?}");
        Ok(())
    })
}

/// Gives a node its configuration and role, and starts all of it.
fn start_as(
    machine: &Machine,
    lab: &Lab,
    (name, peer): (&str, &str),
    role: &str,
) -> anyhow::Result<()> {
    machine.put("/etc/mailtwin/mailtwin.toml", &config(name, peer))?;
    machine.sh(lab, "install -d -m 2770 -o vmail -g vmail /var/vmail")?;
    machine.sh(lab, &format!("replctl init --role {role}"))?;
    machine.sh(lab, "systemctl enable --now mailtwin.target")?;
    for unit in [AGENT, REPLICA] {
        wait_active(machine, lab, unit)?;
    }
    Ok(())
}

/// Right after the installation: nothing runs, and everything is where it belongs.
fn expect_installed(machine: &Machine, lab: &Lab) -> anyhow::Result<()> {
    for unit in [AGENT, REPLICA, SOCKET, "mailtwin-check.timer", "mailtwin.target"] {
        let state = machine
            .run(lab, &format!("systemctl is-active {unit}; systemctl is-enabled {unit}"))?;
        ensure!(state.stdout == "inactive\ndisabled\n", "{unit}: {state:?}");
    }
    machine.sh(
        lab,
        "cd /usr/lib/systemd/system && systemd-analyze verify --recursive-errors=no --man=no \
         mailtwin-*.service mailtwin-*.socket mailtwin-*.timer mailtwin.target",
    )?;
    machine.sh(lab, "id mailtwin && test \"$(stat -c %U:%a /var/lib/mailtwin)\" = mailtwin:700")?;
    machine.sh(lab, "bash -n /usr/share/bash-completion/completions/replctl")?;
    for file in [
        "man/man8/replctl.8.gz",
        "man/man8/replctl-failover-switch.8.gz",
        "man/man8/mailtwin-agent.8.gz",
        "zsh/vendor-completions/_replctl",
        "fish/vendor_completions.d/replctl.fish",
        "mailtwin/prometheus/mailtwin.rules.yml",
        "doc/replctl/ops/runbooks/MailtwinBrakeEngaged.md",
    ] {
        machine.sh(lab, &format!("test -s /usr/share/{file}"))?;
    }
    for hook in ["cyrus-gate", "dovecot-gate", "incident-mail"] {
        machine.sh(lab, &format!("test -x /usr/lib/mailtwin/hooks/{hook}"))?;
    }
    machine
        .sh(lab, "replctl --version && mailtwin-agent --version && mailtwin-replica --version")?;
    Ok(())
}

/// What the replica daemon has just said, that it has no role, is found by its code, with its level.
fn find_in_journal(machine: &Machine, lab: &Lab) -> anyhow::Result<()> {
    let query = format!(
        "journalctl --sync && journalctl -u {REPLICA} MAILTWIN_CODE=not-started -p err -o json \
         --output-fields=PRIORITY,SYSLOG_IDENTIFIER,MESSAGE,MAILTWIN_CODE"
    );
    let found = machine.sh(lab, &query)?;
    let lines: Vec<serde_json::Value> =
        found.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let [line] = &lines[..] else { bail!("one line: {found}") };
    let said = line["MESSAGE"].as_str().unwrap_or_default();
    let is_whole = line["PRIORITY"] == "3"
        && line["SYSLOG_IDENTIFIER"] == REPLICA
        && said.contains("node.json")
        && said.ends_with("code=\"not-started\"");
    ensure!(is_whole, "{line}");
    Ok(())
}

/// A reload with a wrong configuration fails, and the daemon goes on with the old one.
fn refuse_wrong_configuration(machine: &Machine, lab: &Lab) -> anyhow::Result<()> {
    let before = main_pid(machine, lab, REPLICA)?;
    machine.put("/etc/mailtwin/mailtwin.toml", "config_version = 1\n[nodes]\n")?;
    let reload = machine.run(lab, &format!("systemctl reload {REPLICA}"))?;
    ensure!(reload.code != Some(0), "refused: {reload:?}");
    machine.put("/etc/mailtwin/mailtwin.toml", &config("mx1", "mx2"))?;
    machine.sh(lab, &format!("systemctl reload {REPLICA}"))?;
    ensure!(main_pid(machine, lab, REPLICA)? == before, "the daemon goes on");
    Ok(())
}

#[test]
fn the_ten_minute_start_works_as_it_is_written() -> anyhow::Result<()> {
    machine::connected(|lab, cable| {
        let (old, new) = (packages(lab, None)?, packages(lab, Some(NEWER))?);
        let mut machines = two_machines(lab, cable)?;
        for machine in &machines {
            bring(machine, lab, &old)?;
        }
        site::follow(lab, &machines)?;
        wait_equal(lab, &machines, "hello")?;

        // kill -9, in turn; systemd starts them again.
        for (machine, unit) in machines.iter().zip([AGENT, REPLICA]) {
            machine.sh(lab, &format!("systemctl kill -s KILL {unit}"))?;
            deliver(&machines[0], lab, &format!("{unit} was killed"))?;
            wait_equal(lab, &machines, &format!("{unit} was killed"))?;
        }
        // Reboots, in turn; then both lose their power at once.
        for (number, name) in ["mx1", "mx2"].iter().enumerate() {
            machines[number].reboot(lab)?;
            deliver(&machines[0], lab, &format!("{name} was rebooted"))?;
            wait_equal(lab, &machines, &format!("{name} was rebooted"))?;
        }
        for machine in &mut machines {
            machine.reset(lab)?;
        }
        deliver(&machines[0], lab, "both were reset")?;
        wait_equal(lab, &machines, "both were reset")?;
        // An upgrade, the replica first.
        for machine in machines.iter().rev() {
            bring(machine, lab, &new)?;
            machine.sh(lab, INSTALL)?;
        }
        deliver(&machines[0], lab, "both were upgraded")?;
        wait_equal(lab, &machines, "both were upgraded")?;
        machines[0].sh(lab, "systemctl start mailtwin-check.service").context("all is equal")?;
        let owners =
            machines[1].sh(lab, "find /var/vmail -not -user vmail -not -path '*/.mailtwin*'")?;
        ensure!(owners.is_empty(), "mail belongs to vmail: {owners}");
        replicate_below_setgid(&machines, lab)?;
        move_the_role(&machines, lab)
    })
}

/// New directories have the setgid bit of the one above them. The sandbox lets nobody set it, so a
/// mailbox that is built aside, where there is none, does without; that sets nothing aside.
fn replicate_below_setgid(machines: &[Machine; 2], lab: &Lab) -> anyhow::Result<()> {
    for machine in machines {
        machine.sh(lab, "chmod 2770 /var/vmail")?;
    }
    machines[0].sh(lab, "echo 'Subject: group' | doveadm save -u bob@new.example.org")?;
    lab.wait("bob's mail is there, with the mode of what is above it", || {
        let bob = "cd /var/vmail/new.example.org && stat -c %a:%U . bob bob/Maildir";
        let modes = machines[1].run(lab, bob)?;
        let right = modes.stdout == "2770:vmail\n2770:vmail\n770:vmail\n";
        Ok(if right { Ok(()) } else { Err(format!("{modes:?}")) })
    })
}

/// Both daemons on both nodes, the gate that is shipped, and the role moved, all within the sandbox.
fn move_the_role(machines: &[Machine; 2], lab: &Lab) -> anyhow::Result<()> {
    let gate = "[gate]\nclose = \"/usr/lib/mailtwin/hooks/dovecot-gate close\"\n\
                open = \"/usr/lib/mailtwin/hooks/dovecot-gate open\"\n";
    for (machine, (name, peer)) in machines.iter().zip([("mx1", "mx2"), ("mx2", "mx1")]) {
        machine.put("/etc/mailtwin/mailtwin.toml", &format!("{}\n{gate}", config(name, peer)))?;
        machine.sh(lab, "systemctl enable --now mailtwin.target")?;
        // With the port held by systemd, for the daemon that starts anew in another role has to take it again.
        machine.sh(lab, &format!("systemctl stop {REPLICA} && systemctl start {SOCKET}"))?;
        machine.sh(lab, &format!("systemctl restart {AGENT} {REPLICA}"))?;
    }
    expect_gate(&machines[1], lab, "1\n").context("closed on a replica")?;
    site::switch(&machines[0], lab, "mx2")?;
    expect_gate(&machines[0], lab, "1\n").context("closed on the old master")?;
    expect_gate(&machines[1], lab, "0\n").context("open on the new master")?;
    deliver(&machines[1], lab, "after the switch")?;
    lab.wait("mail goes the other way", || {
        let there =
            machines[0].sh(lab, "grep -rlsx 'Subject: after the switch' /var/vmail || true")?;
        Ok(if there.is_empty() { Err("not yet".into()) } else { Ok(()) })
    })
}

/// Waits until so many of Dovecot's entrances for IMAP are closed.
fn expect_gate(machine: &Machine, lab: &Lab, closed: &str) -> anyhow::Result<()> {
    let stopped = "doveadm service status imap-login | grep -c '^doveadm_stop: y' || true";
    lab.wait("the gate is as it shall be", || {
        let found = machine.sh(lab, stopped)?;
        Ok(if found == closed { Ok(()) } else { Err(format!("{found:?}")) })
    })
}
