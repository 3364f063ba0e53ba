//! Whole machines: a Debian with systemd as its first process, in containers that are joined by a cable.
//! Everything of one runs in a process namespace of its own, so it ends with its launcher, whatever
//! happens to the test.

use std::{
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    debootstrap::{TRIXIE, Tree},
    files,
    lab::Lab,
    process::{self, Launch, Output, Process},
    volume::tool,
};

/// A Debian 12 with a mail server.
const BOOKWORM: Tree = Tree {
    name: "bookworm",
    variable: "MAILTWIN_BOOKWORM",
    suite: "bookworm",
    packages: "systemd,systemd-sysv,dbus,iproute2,procps,dovecot-core,dovecot-imapd,dovecot-lmtpd,\
               postfix",
    marker: "usr/sbin/postfix",
    skip: SKIP,
};

/// The same with another mail server.
const BOOKWORM_CYRUS: Tree = Tree {
    name: "bookworm-cyrus",
    variable: "MAILTWIN_BOOKWORM_CYRUS",
    packages: "systemd,systemd-sysv,dbus,iproute2,procps,cyrus-imapd,cyrus-replication,sasl2-bin,\
               postfix",
    marker: "usr/lib/cyrus/bin/sync_server",
    ..BOOKWORM
};

/// Set to 1 where containers or debootstrap cannot work.
pub const SKIP: &str = "MAILTWIN_SKIP_MACHINES";

/// Hierarchies of control groups that there may be: each machine needs a group of its own in all.
const HIERARCHIES: [&str; 6] = ["systemd", "unified", "memory", "pids", "cpu", "cpuacct"];

/// Where systemd-nspawn has a place for each container's mounts.
const MOUNTS: &str = "/run/systemd/nspawn/propagate";

/// What starts a machine: its groups, a namespace of processes and mounts, its disk as a layer over the
/// common tree, systemd.
const BOOT: &str = r#"
    name=$1 network=$2 base=$3 dir=$4; shift 4
    for hierarchy in "$@"; do
        group=/sys/fs/cgroup/$hierarchy/$name
        if [ -d "/sys/fs/cgroup/$hierarchy" ]; then
            mkdir -p "$group" && echo $$ > "$group/cgroup.procs"
        fi
    done
    exec unshare --mount --propagation private --pid --fork --kill-child sh -ec '
        name=$1 network=$2 base=$3 dir=$4
        mount -t proc proc /proc
        mount -t overlay overlay -o "lowerdir=$base,upperdir=$dir/disk,workdir=$dir/work" "$dir/root"
        exec systemd-nspawn --quiet --boot --register=no --keep-unit --machine="$name" --directory="$dir/root" \
            --network-namespace-path="/run/netns/$network" --console=pipe --resolv-conf=off --timezone=off
    ' sh "$name" "$network" "$base" "$dir""#;

/// A cable between two machines.
#[derive(Debug)]
pub struct Cable {
    ends: [String; 2],
}

impl Cable {
    /// Lays one. Its ends have the addresses 10.77.0.1 and 10.77.0.2.
    pub fn lay() -> anyhow::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        sweep();
        let id = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let cable = Self { ends: ["a", "b"].map(|end| format!("mailtwin-{id}-{end}")) };
        let [a, b] = &cable.ends;
        for line in [
            format!("netns add {a}"),
            format!("netns add {b}"),
            format!("-n {a} link add name host0 type veth peer name host0 netns {b}"),
        ] {
            ip(&line)?;
        }
        for (end, number) in cable.ends.iter().zip(1..) {
            for line in ["link set lo up", "link set host0 up"] {
                ip(&format!("-n {end} {line}"))?;
            }
            ip(&format!("-n {end} addr add 10.77.0.{number}/24 dev host0"))?;
        }
        Ok(cable)
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for end in &self.ends {
            let _ = ip(&format!("netns del {end}"));
        }
    }
}

fn ip(line: &str) -> anyhow::Result<()> {
    let words: Vec<&OsStr> = std::iter::once("ip").chain(line.split(' ')).map(OsStr::new).collect();
    tool(&words)
}

/// A running machine.
#[derive(Debug)]
pub struct Machine {
    name: String,
    tree: Tree,
    group: String,
    network: String,
    dir: PathBuf,
    launcher: Option<Process>,
}

/// Runs a test of machines that are to stand at the ends of a cable, unless such tests are to be left
/// out, and says so then.
#[expect(clippy::print_stderr, reason = "a test that does nothing says so")]
pub fn connected(test: impl FnOnce(&Lab, &Cable) -> anyhow::Result<()>) -> anyhow::Result<()> {
    if std::env::var_os(SKIP).is_some() {
        eprintln!("skipped: {SKIP} is set");
        return Ok(());
    }
    Lab::run(|lab| test(lab, &Cable::lay()?))
}

impl Machine {
    /// Boots a machine with Debian 12 at one end of a cable.
    pub fn boot(lab: &Lab, name: &str, cable: &Cable, end: usize) -> anyhow::Result<Self> {
        Self::boot_with(BOOKWORM, lab, name, cable, end)
    }

    /// Boots one with Debian 12's Cyrus instead.
    pub fn boot_cyrus(lab: &Lab, name: &str, cable: &Cable, end: usize) -> anyhow::Result<Self> {
        Self::boot_with(BOOKWORM_CYRUS, lab, name, cable, end)
    }

    /// Boots one with Debian 13.
    pub fn boot_debian_13(
        lab: &Lab,
        name: &str,
        cable: &Cable,
        end: usize,
    ) -> anyhow::Result<Self> {
        Self::boot_with(Tree { skip: SKIP, ..TRIXIE }, lab, name, cable, end)
    }

    fn boot_with(
        tree: Tree,
        lab: &Lab,
        name: &str,
        cable: &Cable,
        end: usize,
    ) -> anyhow::Result<Self> {
        let network = cable.ends[end].clone();
        let dir = lab.dir().join(name);
        for part in ["disk", "work", "root"] {
            fs::create_dir_all(dir.join(part))?;
        }
        let group = format!("{network}-{name}");
        let mut machine = Self { name: name.to_owned(), tree, group, network, dir, launcher: None };
        machine.put("/etc/hostname", &format!("{name}\n"))?;
        let hosts =
            "127.0.0.1 localhost\n10.77.0.1 mx1.example.org mx1\n10.77.0.2 mx2.example.org mx2\n";
        machine.put("/etc/hosts", hosts)?;
        machine.power_on(lab)?;
        Ok(machine)
    }

    /// Starts it again as it was when its power went.
    pub fn power_on(&mut self, lab: &Lab) -> anyhow::Result<()> {
        let base = self.tree.root()?;
        let mut command: Vec<OsString> = ["sh", "-ec", BOOT, "sh"].map(OsString::from).to_vec();
        command.extend([OsString::from(&self.group), OsString::from(&self.network)]);
        command.extend([base.into_os_string(), self.dir.clone().into_os_string()]);
        command.extend(HIERARCHIES.map(OsString::from));
        let launch = Launch {
            name: self.name.clone(),
            command,
            as_mail_user: false,
            log: self.dir.join("console.log"),
        };
        self.launcher = Some(Process::start(lab, &launch)?);
        self.wait_up(lab)
    }

    /// Waits until it has booted.
    pub fn wait_up(&self, lab: &Lab) -> anyhow::Result<()> {
        lab.wait(&format!("{} is up", self.name), || {
            let Ok(output) = self.run(lab, "systemctl is-system-running") else {
                return Ok(Err("it has no first process yet".into()));
            };
            let state = output.stdout.trim();
            let up = ["running", "degraded"].contains(&state);
            Ok(if up { Ok(()) } else { Err(format!("it is {state}")) })
        })
    }

    /// Reboots it as an admin would, and waits until it is up again.
    pub fn reboot(&mut self, lab: &Lab) -> anyhow::Result<()> {
        // Its end takes the answer along.
        self.run(lab, "systemctl reboot")?;
        if let Some(mut launcher) = self.launcher.take() {
            launcher.ended()?;
        }
        self.power_on(lab)
    }

    /// Ends all of it at once, without a word to anybody.
    pub fn reset(&mut self, lab: &Lab) -> anyhow::Result<()> {
        let leader = i32::try_from(self.leader()?).ok().and_then(Pid::from_raw);
        kill_process(leader.context("a process number")?, Signal::KILL)?;
        if let Some(mut launcher) = self.launcher.take() {
            launcher.ended()?;
        }
        self.power_on(lab)
    }

    /// Runs a line of shell on it, as root; its exit code may be any.
    pub fn run(&self, lab: &Lab, line: &str) -> anyhow::Result<Output> {
        let leader = self.leader()?.to_string();
        let path = "PATH=/usr/sbin:/usr/bin:/sbin:/bin";
        let line = format!("cd / && {{ {line}\n}}");
        let words = [
            "nsenter", "--target", &leader, "--all", "env", "-i", path, "HOME=/", "sh", "-c", &line,
        ];
        process::run(lab, &words.map(OsStr::new), false)
    }

    /// The same; fails unless the exit code is 0. Returns what it printed.
    pub fn sh(&self, lab: &Lab, line: &str) -> anyhow::Result<String> {
        let output = self.run(lab, line)?.expect(0);
        Ok(output.with_context(|| format!("{} on {}", line, self.name))?.stdout)
    }

    /// Writes a file of it.
    pub fn put(&self, path: &str, content: &str) -> anyhow::Result<()> {
        let path = match self.leader() {
            // What is written below a mounted layer is not seen above it.
            Ok(leader) => PathBuf::from(format!("/proc/{leader}/root{path}")),
            Err(_) => self.dir.join("disk").join(path.trim_start_matches('/')),
        };
        let parent = path.parent().context("a file has a parent")?;
        fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
        files::write(&path, content)
    }

    /// Copies a file to it.
    pub fn copy(&self, from: &Path, to: &str) -> anyhow::Result<()> {
        let to = PathBuf::from(format!("/proc/{}/root{to}", self.leader()?));
        let parent = to.parent().context("a file has a parent")?;
        fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
        fs::copy(from, &to).with_context(|| format!("copy to {}", to.display()))?;
        Ok(())
    }

    /// Its first process, as this machine counts: the launcher's grandchild.
    fn leader(&self) -> anyhow::Result<u32> {
        let launcher = self.launcher.as_ref().context("it is off")?;
        first_child(first_child(launcher.id())?)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // A signal to its first process is the quickest way out.
        if let Some(leader) =
            self.leader().ok().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw)
        {
            let _ = kill_process(leader, Signal::KILL);
        }
        drop(self.launcher.take());
        // Where the container's own mounts were.
        let _ = fs::remove_dir(Path::new(MOUNTS).join(&self.group));
        for hierarchy in HIERARCHIES {
            remove_group(&Path::new("/sys/fs/cgroup").join(hierarchy).join(&self.group));
        }
    }
}

/// Removes a control group in which nothing runs, and those below it.
fn remove_group(group: &Path) {
    let words = ["-depth", "-type", "d", "-exec", "rmdir", "{}", ";"].map(OsStr::new);
    let find = [OsStr::new("find"), group.as_os_str()];
    let _ = tool(&find.into_iter().chain(words).collect::<Vec<_>>());
}

/// Removes what a test program that was killed has left behind: its machines went with it, their
/// networks and groups did not.
fn sweep() {
    let left = |dir: &Path| {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        let is_left = |name: &String| {
            let program = name.strip_prefix("mailtwin-").and_then(|rest| rest.split('-').next());
            let program = program.and_then(|id| id.parse::<u32>().ok());
            program.is_some_and(|id| !Path::new(&format!("/proc/{id}")).exists())
        };
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(is_left).collect::<Vec<_>>()
    };
    for network in left(Path::new("/run/netns")) {
        let _ = ip(&format!("netns del {network}"));
    }
    for name in left(Path::new(MOUNTS)) {
        let _ = fs::remove_dir(Path::new(MOUNTS).join(name));
    }
    for hierarchy in HIERARCHIES {
        let hierarchy = Path::new("/sys/fs/cgroup").join(hierarchy);
        for name in left(&hierarchy) {
            remove_group(&hierarchy.join(name));
        }
    }
}

fn first_child(parent: u32) -> anyhow::Result<u32> {
    let path = format!("/proc/{parent}/task/{parent}/children");
    let children = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let Some(child) = children.split(' ').next().filter(|child| !child.is_empty()) else {
        bail!("{parent} has no child");
    };
    Ok(child.parse()?)
}
