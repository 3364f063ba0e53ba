//! Debian in a folder, made once by debootstrap and kept for later runs.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Mutex,
};

use anyhow::{Context as _, bail};

/// Where such folders are kept unless a variable names another place.
const CACHE: &str = "/var/cache/mailtwin-tests";

/// One of them.
#[derive(Clone, Copy, Debug)]
pub struct Tree {
    /// What its folder is called.
    pub name: &'static str,
    /// The variable that names another place.
    pub variable: &'static str,
    /// Debian's release.
    pub suite: &'static str,
    /// What goes into it beside Debian's minimal set.
    pub packages: &'static str,
    /// A file that is there when it is whole.
    pub marker: &'static str,
    /// The variable that leaves out the tests that need it.
    pub skip: &'static str,
}

/// A Debian 13 with systemd, and a Dovecot 2.4.
pub const TRIXIE: Tree = Tree {
    name: "trixie",
    variable: "MAILTWIN_TRIXIE",
    suite: "trixie",
    packages: "systemd,systemd-sysv,dbus,iproute2,procps,dovecot-core,dovecot-imapd,dovecot-lmtpd,\
               dovecot-sieve",
    marker: "usr/sbin/dovecot",
    skip: "MAILTWIN_SKIP_DOVECOT24",
};

impl Tree {
    /// The folder. It is made when it is not there yet, which takes minutes.
    pub fn root(&self) -> anyhow::Result<PathBuf> {
        static MAKING: Mutex<()> = Mutex::new(());
        let _one_at_a_time = MAKING.lock();
        let root = std::env::var_os(self.variable)
            .map_or_else(|| Path::new(CACHE).join(self.name), PathBuf::from);
        if !root.join(self.marker).exists() {
            self.make(&root)?;
        }
        Ok(root)
    }

    /// Builds aside and renames into place, so that an interrupted build is never taken for a whole
    /// one.
    fn make(&self, root: &Path) -> anyhow::Result<()> {
        let parent = root.parent().context("the folder of a Debian has a parent")?;
        fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
        let prefix = format!("{}-", self.name);
        let part = tempfile::Builder::new().prefix(&prefix).tempdir_in(parent)?;
        let log = part.path().with_extension("log");
        let output = File::create(&log).with_context(|| format!("make {}", log.display()))?;
        let status = Command::new("debootstrap")
            .args(["--variant=minbase", &format!("--include={}", self.packages), self.suite])
            .arg(part.path())
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .status()
            .context("run debootstrap (apt-get install debootstrap)")?;
        if !status.success() {
            let text = fs::read_to_string(&log).unwrap_or_default();
            let tail: Vec<&str> = text.lines().rev().take(20).collect();
            bail!(
                "debootstrap could not make the Debian {} ({status}); to leave these tests out, \
                 set {}=1. Its last lines, newest first:\n{}",
                self.suite,
                self.skip,
                tail.join("\n")
            );
        }
        fs::remove_file(&log)?;
        crate::files::chmod(part.path(), 0o755)?;
        let made = part.keep();
        fs::rename(&made, root).with_context(|| format!("rename to {}", root.display()))
    }
}
