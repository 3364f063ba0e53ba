//! Machines with the packages on them, and with mail, as the ten-minute start makes them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail, ensure};

use crate::{
    daemon,
    lab::Lab,
    machine::{Cable, Machine},
};

/// The unit on the master.
pub const AGENT: &str = "mailtwin-agent";
/// The unit on a replica.
pub const REPLICA: &str = "mailtwin-replica";
/// What holds the replica's port, where it is enabled.
pub const SOCKET: &str = "mailtwin-replica.socket";
/// A version that is newer than the workspace's.
pub const NEWER: &str = "0.1.0+next";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Builds the packages into a folder of the lab.
pub fn packages(lab: &Lab, version: Option<&str>) -> anyhow::Result<Vec<PathBuf>> {
    let built = daemon::built_with_xtask()?;
    let out = lab.dir().join(version.unwrap_or("packages"));
    let mut command = Command::new(built.join("xtask"));
    command.args(["deb", "--built"]).arg(&built).arg("--out").arg(&out);
    command.args(version.map(|version| format!("--version={version}")));
    let output = command.output().context("run xtask")?;
    ensure!(output.status.success(), "xtask deb: {}", String::from_utf8_lossy(&output.stderr));
    let mut all = Vec::new();
    for entry in fs::read_dir(&out)? {
        all.push(entry?.path());
    }
    ensure!(all.len() == 3, "{all:?}");
    Ok(all)
}

/// Puts packages where the ten-minute start has them: in `packages` of the folder it is in.
pub fn bring(machine: &Machine, lab: &Lab, packages: &[PathBuf]) -> anyhow::Result<()> {
    machine.sh(lab, "rm -rf /packages")?;
    for package in packages {
        let name = package.file_name().context("a package has a name")?.to_string_lossy();
        machine.copy(package, &format!("/packages/{name}"))?;
    }
    Ok(())
}

/// What an admin types once the packages are there.
pub const INSTALL: &str = "apt-get install -y ./packages/*.deb";

/// Process number of a unit; 0 for none.
pub fn main_pid(machine: &Machine, lab: &Lab, unit: &str) -> anyhow::Result<u32> {
    let shown = machine.sh(lab, &format!("systemctl show --value -p MainPID {unit}"))?;
    Ok(shown.trim().parse()?)
}

/// Waits until nothing stands against a planned switch to another machine, and makes it.
pub fn switch(from: &Machine, lab: &Lab, to: &str) -> anyhow::Result<()> {
    let switch = format!("replctl failover switch --to {to}");
    lab.wait("nothing stands against it", || {
        let ready = from.run(lab, &format!("{switch} --dry-run"))?;
        Ok(if ready.code == Some(0) { Ok(()) } else { Err(format!("{ready:?}")) })
    })?;
    from.sh(lab, &switch).map(drop)
}

/// Waits until a unit runs.
pub fn wait_active(machine: &Machine, lab: &Lab, unit: &str) -> anyhow::Result<()> {
    lab.wait(&format!("{unit} is active"), || {
        let output = machine.run(lab, &format!("systemctl is-active {unit}"))?;
        Ok(if output.code == Some(0) { Ok(()) } else { Err(output.stdout) })
    })
}

/// The configuration that the ten-minute start has for `mx1`, with other names.
pub fn config(name: &str, peer: &str) -> String {
    let block = Page::read(TEN_MINUTES).and_then(|page| page.block("config_version"));
    renamed(&block.unwrap_or_default(), name, peer)
}

/// A configuration that a page has for `mx1` and its peer `mx2`, with other names.
pub fn renamed(block: &str, name: &str, peer: &str) -> String {
    block.replace("\"mx1\"", "NAME").replace("mx2", peer).replace("NAME", &format!("\"{name}\""))
}

/// The ten-minute start.
const TEN_MINUTES: &str = "docs/ten-minutes.md";

/// A page whose commands say where they are to be typed.
pub struct Page(String);

impl Page {
    /// Reads one by its path in the repository.
    pub fn read(path: &str) -> anyhow::Result<Self> {
        let path = root().join(path);
        fs::read_to_string(&path).map(Self).with_context(|| format!("read {}", path.display()))
    }

    /// The indented block that begins with `start`.
    pub fn block(&self, start: &str) -> anyhow::Result<String> {
        let begins = |line: &&str| !line.starts_with(&format!("    {start}"));
        let lines = self.0.lines().skip_while(begins);
        let block = lines.take_while(|line| line.is_empty() || line.starts_with("    "));
        let lines: Vec<&str> = block.map(str::trim_start).collect();
        ensure!(!lines.is_empty(), "a block that begins with {start}");
        Ok(format!("{}\n", lines.join("\n").trim_end()))
    }

    /// Every command that says where it is to be typed, in order: `COMMAND   # on WHERE`.
    fn commands(&self) -> Vec<(String, String)> {
        let typed = self.0.lines().filter(|line| line.starts_with("    "));
        let split = typed.filter_map(|line| line.split_once("# on "));
        split.map(|(command, place)| (command.trim().to_owned(), place.trim().to_owned())).collect()
    }
}

/// A Dovecot and a Postfix as the ten-minute start takes them for granted.
pub fn mail_server(machine: &Machine, lab: &Lab) -> anyhow::Result<()> {
    machine.put(
        "/etc/dovecot/local.conf",
        "protocols = imap lmtp\nssl = no\nmail_location = maildir:/var/vmail/%d/%n/Maildir\n\
         passdb {\n  driver = static\n  args = password=x\n}\n\
         userdb {\n  driver = static\n  args = uid=vmail gid=vmail home=/var/vmail/%d/%n\n}\n\
         service lmtp {\n  unix_listener /var/spool/postfix/private/dovecot-lmtp {\n    mode = 0600\n    \
         user = postfix\n    group = postfix\n  }\n}\n",
    )?;
    machine.put(
        "/etc/postfix/main.cf",
        "compatibility_level = 3.6\nmyhostname = mail.example.org\nmydestination = localhost\n\
         inet_interfaces = loopback-only\nvirtual_mailbox_domains = example.org\n\
         virtual_transport = lmtp:unix:private/dovecot-lmtp\n",
    )?;
    machine.sh(lab, "getent passwd vmail || useradd --system --home-dir /var/vmail vmail")?;
    machine.sh(lab, "systemctl restart postfix dovecot")?;
    Ok(())
}

/// Two machines with their mail servers; `mx1` has mail.
pub fn two_machines(lab: &Lab, cable: &Cable) -> anyhow::Result<[Machine; 2]> {
    let machines = [Machine::boot(lab, "mx1", cable, 0)?, Machine::boot(lab, "mx2", cable, 1)?];
    for machine in &machines {
        mail_server(machine, lab)?;
    }
    machines[0].sh(lab, "install -d -m 700 -o vmail -g vmail /var/vmail")?;
    for number in 0..5 {
        deliver(&machines[0], lab, &format!("before {number}"))?;
    }
    Ok(machines)
}

/// Has the machine's mail server deliver a message to ann.
pub fn deliver(machine: &Machine, lab: &Lab, subject: &str) -> anyhow::Result<()> {
    machine.sh(lab, &format!("echo 'Subject: {subject}' | sendmail ann@example.org"))?;
    Ok(())
}

/// What is in ann's INBOX.
fn inbox(machine: &Machine, lab: &Lab) -> anyhow::Result<String> {
    let fetch = "doveadm fetch -u ann@example.org 'uid guid hdr.subject' mailbox INBOX";
    Ok(machine.run(lab, fetch)?.stdout)
}

/// Waits until both have the same, and a message with this subject.
pub fn wait_equal(lab: &Lab, machines: &[Machine; 2], subject: &str) -> anyhow::Result<()> {
    lab.wait(&format!("{subject:?} is on both"), || {
        let [one, two] = [inbox(&machines[0], lab)?, inbox(&machines[1], lab)?];
        let equal = one == two && one.contains(subject);
        Ok(if equal { Ok(()) } else { Err(format!("mx1: {one}\nmx2: {two}")) })
    })
}

/// Types what the ten-minute start says, where it says.
pub fn follow(lab: &Lab, machines: &[Machine; 2]) -> anyhow::Result<()> {
    let configure = |machine: &Machine, name: &str, peer: &str| {
        machine.put("/etc/mailtwin/mailtwin.toml", &config(name, peer))
    };
    follow_page(lab, machines, &Page::read(TEN_MINUTES)?, configure)
}

/// Types what a page says, where it says. Once the packages are there, `configure` writes what it has in
/// other blocks: on a machine, with its name and that of its peer.
pub fn follow_page(
    lab: &Lab,
    machines: &[Machine; 2],
    page: &Page,
    configure: impl Fn(&Machine, &str, &str) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let commands = page.commands();
    ensure!(commands.len() >= 9, "{commands:?}");
    for (command, place) in commands {
        let places: &[Machine] = match place.as_str() {
            "mx1" => &machines[..1],
            "mx2" => &machines[1..],
            "both" => machines,
            _ => bail!("nobody knows where {place} is: {command}"),
        };
        if command.ends_with("--watch") {
            // An admin looks until it says so, and presses Ctrl-C.
            lab.wait("status says in-sync", || {
                let shown = machines[0].run(lab, command.trim_end_matches("--watch"))?;
                let said = shown.stdout.contains("in-sync");
                Ok(if said { Ok(()) } else { Err(format!("{shown:?}")) })
            })?;
            continue;
        }
        for machine in places {
            if command.starts_with("replctl doctor") {
                ask_doctor(machine, lab, &command)?;
            } else {
                machine.sh(lab, &command)?;
            }
        }
        if command.starts_with("apt-get install") {
            configure(&machines[0], "mx1", "mx2")?;
            configure(&machines[1], "mx2", "mx1")?;
        }
    }
    Ok(())
}

/// Has the doctor look at a machine, which finds nothing wrong: all but how full the disk below the
/// tests is, for which the page can do nothing.
fn ask_doctor(machine: &Machine, lab: &Lab, command: &str) -> anyhow::Result<()> {
    let told = machine.run(lab, command)?;
    let is_complaint = |line: &&str| line.starts_with("RISK") || line.starts_with("BROKEN");
    let of_disk = [" space: ", " inodes: ", " log-bound: "];
    let is_disk = |line: &str| of_disk.iter().any(|about| line.contains(about));
    let mut complaints = told.stdout.lines().filter(is_complaint);
    ensure!(complaints.all(is_disk), "{command}: {told:?}");
    ensure!(told.stdout.contains("mail-server: "), "the doctor looked at it all: {told:?}");
    Ok(())
}
