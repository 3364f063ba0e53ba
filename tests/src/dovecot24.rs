//! Dovecot 2.4: Debian 13 in a folder, made once by debootstrap and kept for later runs. It shares
//! this machine's processes and network, and sees the lab's folder under the same path.

use std::{ffi::OsString, fs};

use anyhow::Context as _;

use crate::{debootstrap::TRIXIE, lab::Lab};

/// The words that start a command inside: a mount namespace of its own with the lab bound to its
/// path, then chroot. Makes the folder when it is not there yet, which takes minutes.
pub fn enter(lab: &Lab) -> anyhow::Result<Vec<OsString>> {
    let root = TRIXIE.root()?;
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
