//! Two machines with Debian's own Cyrus, set up as the page says, in the sandbox of the packages' units.

use anyhow::{Context as _, ensure};
use mailtwin_tests::{
    lab::Lab,
    machine::{self, Machine},
    site::{self, AGENT, Page, REPLICA},
};

/// Says commands of IMAP one after the other, and prints what comes: nothing if nobody listens yet.
const TALK: &str = r#"
    exec 3<>/dev/tcp/127.0.0.1/143
    for command in "$@"; do
        printf '%s\r\n' "$command" >&3
        while IFS= read -r line <&3; do
            echo "$line"
            case $line in "${command%% *} "*) break ;; esac
        done
    done"#;

/// What a server on the machine answers.
fn imap(machine: &Machine, lab: &Lab, commands: &[&str]) -> anyhow::Result<String> {
    machine.put("/tmp/talk", TALK)?;
    let tagged = commands.iter().enumerate().map(|(n, command)| format!(" 'a{n} {command}'"));
    let commands = tagged.collect::<Vec<_>>().concat();
    Ok(machine.run(lab, &format!("bash /tmp/talk{commands}"))?.stdout)
}

/// Lets a user log in with the password `x`.
fn add_password(machine: &Machine, lab: &Lab, user: &str) -> anyhow::Result<()> {
    machine.sh(lab, &format!("printf x | saslpasswd2 -p -c {user}")).map(drop)
}

fn deliver(machine: &Machine, lab: &Lab, subject: &str) -> anyhow::Result<()> {
    let message = format!("From: a@example.org\\r\\nSubject: {subject}\\r\\n\\r\\n{subject}\\r\\n");
    let deliver = "setpriv --reuid cyrus --regid mail --init-groups /usr/lib/cyrus/bin/deliver ann";
    machine.sh(lab, &format!("printf '{message}' | {deliver}")).map(drop)
}

/// What ann sees in her INBOX.
fn inbox(machine: &Machine, lab: &Lab) -> anyhow::Result<String> {
    let fetch = "UID FETCH 1:* (UID INTERNALDATE BODY.PEEK[])";
    let told = imap(machine, lab, &["LOGIN ann x", "EXAMINE INBOX", fetch])?;
    let lines = told.lines().skip_while(|line| !line.contains("FETCH ("));
    Ok(lines.take_while(|line| !line.starts_with("a2 ")).collect::<Vec<_>>().join("\n"))
}

/// Waits until a message lies on a replica, whose gate is closed to ann.
fn wait_there(lab: &Lab, machine: &Machine, subject: &str) -> anyhow::Result<()> {
    lab.wait(&format!("{subject:?} is there"), || {
        let find = format!("grep -rls 'Subject: {subject}' /var/spool/cyrus/mail");
        let found = machine.run(lab, &find)?;
        Ok(if found.stdout.is_empty() { Err("not yet".into()) } else { Ok(()) })
    })
}

/// What the page has in files, as an admin would write it there.
fn configure(
    page: &Page,
    lab: &Lab,
    machine: &Machine,
    (name, peer): (&str, &str),
) -> anyhow::Result<()> {
    let config = site::renamed(&page.block("config_version")?, name, peer);
    machine.put("/etc/mailtwin/mailtwin.toml", &config)?;
    for unit in [AGENT, REPLICA] {
        let path = format!("/etc/systemd/system/{unit}.service.d/override.conf");
        machine.put(&path, &page.block("[Service]")?)?;
    }
    let imapd = machine.sh(lab, "cat /etc/imapd.conf")?;
    let others = imapd.split_inclusive('\n').filter(|line| !line.starts_with("admins:"));
    let imapd = others.collect::<String>() + &page.block("admins:")?;
    machine.put("/etc/imapd.conf", &imapd)?;
    let cyrus = machine.sh(lab, "cat /etc/cyrus.conf")?;
    let (above, below) = cyrus.split_once("SERVICES {\n").context("a section SERVICES")?;
    let service = page.block("csync ")?;
    machine.put("/etc/cyrus.conf", &format!("{above}SERVICES {{\n{service}{below}"))
}

#[test]
fn the_page_makes_a_pair_of_cyruses_whose_role_moves() -> anyhow::Result<()> {
    machine::connected(|lab, cable| {
        let packages = site::packages(lab, None)?;
        let machines = [
            Machine::boot_cyrus(lab, "mx1", cable, 0)?,
            Machine::boot_cyrus(lab, "mx2", cable, 1)?,
        ];
        for machine in &machines {
            site::bring(machine, lab, &packages)?;
            // Debian's configuration names services that are packages of their own.
            machine.sh(lab, "sed -Ei 's/^\\s*(pop3|nntp|http)\\s/#&/' /etc/cyrus.conf")?;
            machine.sh(lab, "systemctl restart cyrus-imapd")?;
            add_password(machine, lab, "ann")?;
        }
        add_password(&machines[0], lab, "cyrus")?;
        let restart = "echo 'admins: cyrus' >> /etc/imapd.conf && systemctl restart cyrus-imapd";
        machines[0].sh(lab, restart)?;
        lab.wait("Cyrus makes a mailbox", || {
            let made = imap(&machines[0], lab, &["LOGIN cyrus x", "CREATE user.ann"])?;
            Ok(if made.contains("a1 OK") { Ok(()) } else { Err(made) })
        })?;
        deliver(&machines[0], lab, "before")?;

        let page = Page::read("docs/cyrus.md")?;
        site::follow_page(lab, &machines, &page, |machine, name, peer| {
            configure(&page, lab, machine, (name, peer))
        })?;
        let seen = inbox(&machines[0], lab)?;
        ensure!(seen.contains("before"), "{seen}");
        wait_there(lab, &machines[1], "before")?;
        deliver(&machines[0], lab, "live")?;
        wait_there(lab, &machines[1], "live")?;
        machines[0].sh(lab, "systemctl start mailtwin-check.service").context("all is equal")?;
        for machine in &machines {
            for unit in [AGENT, REPLICA] {
                let id = site::main_pid(machine, lab, unit)?;
                let user = machine.sh(lab, &format!("ps -o user= -p {id}"))?;
                ensure!(user.trim() == "cyrus", "{unit} runs as {user}");
            }
        }
        for (from, to, name) in [(0, 1, "mx2"), (1, 0, "mx1")] {
            site::switch(&machines[from], lab, name)?;
            lab.wait("ann finds all her mail there", || {
                let found = inbox(&machines[to], lab)?;
                let is_all = found.starts_with(&seen) && found.contains("Subject: live");
                Ok(if is_all { Ok(()) } else { Err(format!("{found} after {seen}")) })
            })?;
            let refused = imap(&machines[from], lab, &["LOGIN ann x", "SELECT INBOX"])?;
            ensure!(refused.contains("moving to another server"), "closed on {from}: {refused}");
            deliver(&machines[to], lab, &format!("at {name}"))?;
            wait_there(lab, &machines[from], &format!("at {name}"))?;
            machines[to].sh(lab, "replctl check --level deep")?;
        }
        Ok(())
    })
}
