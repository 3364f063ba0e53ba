//! Dovecot 2.4: Debian 13 in a folder, made once by debootstrap and kept for later runs. It shares
//! this machine's processes and network, and sees the lab's folder under the same path.

use std::{
    ffi::OsString,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Mutex,
};

use anyhow::{Context as _, bail};

use crate::lab::Lab;

/// Where the folder is kept, unless `MAILTWIN_DOVECOT24` names another place.
const CACHE: &str = "/var/cache/mailtwin-tests/dovecot24";

/// What goes into it beside Debian's minimal set.
const PACKAGES: &str = "dovecot-core,dovecot-imapd,dovecot-lmtpd,dovecot-sieve";

/// The words that start a command inside: a mount namespace of its own with the lab bound to its
/// path, then chroot. Makes the folder when it is not there yet, which takes minutes.
pub fn enter(lab: &Lab) -> anyhow::Result<Vec<OsString>> {
    let root = root()?;
    let lab = lab.dir();
    let inside = root.join(lab.strip_prefix("/").context("the lab's path starts at the root")?);
    fs::create_dir_all(&inside).with_context(|| format!("make {}", inside.display()))?;
    let script = r#"
        root=$1 lab=$2; shift 2
        mount --bind "$lab" "$root$lab" && mount -t proc proc "$root/proc" &&
        exec chroot "$root" /usr/sbin/dovecot "$@""#;
    let words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"];
    let mut command: Vec<OsString> = words.iter().map(OsString::from).collect();
    command.push(root.into_os_string());
    command.push(lab.as_os_str().to_owned());
    Ok(command)
}

fn root() -> anyhow::Result<PathBuf> {
    static MAKING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = MAKING.lock();
    let root = std::env::var_os("MAILTWIN_DOVECOT24").map_or_else(|| CACHE.into(), PathBuf::from);
    if !root.join("usr/sbin/dovecot").exists() {
        make(&root)?;
    }
    Ok(root)
}

/// Builds aside and renames into place, so that an interrupted build is never taken for a whole one.
fn make(root: &Path) -> anyhow::Result<()> {
    let parent = root.parent().context("the folder of Dovecot 2.4 has a parent")?;
    fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
    let part = tempfile::Builder::new().prefix("dovecot24-").tempdir_in(parent)?;
    let log = part.path().with_extension("log");
    let output = File::create(&log).with_context(|| format!("make {}", log.display()))?;
    let status = Command::new("debootstrap")
        .args(["--variant=minbase", &format!("--include={PACKAGES}"), "trixie"])
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
            "debootstrap could not make a Debian 13 with Dovecot 2.4 ({status}); to leave these \
             tests out, set MAILTWIN_SKIP_DOVECOT24=1. Its last lines, newest first:\n{}",
            tail.join("\n")
        );
    }
    fs::remove_file(&log)?;
    crate::files::chmod(part.path(), 0o755)?;
    let made = part.keep();
    fs::rename(&made, root).with_context(|| format!("rename to {}", root.display()))
}
