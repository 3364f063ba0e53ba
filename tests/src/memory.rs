//! A limit of memory for some processes: a control group, of the first or the second version.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};

use crate::files;

/// Where control groups of the first version that count memory are mounted.
const FIRST: &str = "/sys/fs/cgroup/memory";

/// Where those of the second version are.
const SECOND: &str = "/sys/fs/cgroup";

/// A group of processes whose memory is limited; gone when dropped, if none is left in it.
#[derive(Debug)]
pub struct Group {
    dir: PathBuf,
    limit: &'static str,
    used: &'static str,
    /// The limit's value for "none".
    none: &'static str,
}

impl Group {
    /// Makes one without a limit, and puts a process in.
    pub fn with(process: u32) -> anyhow::Result<Self> {
        let first = Path::new(FIRST).is_dir();
        let (root, limit, used, none) = if first {
            (FIRST, "memory.limit_in_bytes", "memory.usage_in_bytes", "-1")
        } else {
            (SECOND, "memory.max", "memory.current", "max")
        };
        let dir = Path::new(root).join(format!("mailtwin-{}", std::process::id()));
        fs::create_dir(&dir).with_context(|| format!("make {}", dir.display()))?;
        let group = Self { dir, limit, used, none };
        ensure!(group.dir.join(limit).exists(), "no limits of memory on this machine");
        group.set("cgroup.procs", &process.to_string())?;
        Ok(group)
    }

    /// Leaves the processes that much more than they use.
    pub fn leave(&self, octets: u64) -> anyhow::Result<()> {
        let used = fs::read_to_string(self.dir.join(self.used)).context("memory in use")?;
        let used: u64 = used.trim().parse().context("memory in use")?;
        self.set(self.limit, &(used + octets).to_string())
    }

    /// Takes the limit away.
    pub fn lift(&self) -> anyhow::Result<()> {
        self.set(self.limit, self.none)
    }

    fn set(&self, name: &str, value: &str) -> anyhow::Result<()> {
        files::write(&self.dir.join(name), value)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.dir);
    }
}
