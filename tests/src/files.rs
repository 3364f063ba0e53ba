//! Small file work of the harness. Nothing in tests needs to survive a power cut, so these write
//! plainly.

use std::{
    fmt::Write as _,
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, lchown, symlink},
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

use anyhow::Context as _;
use sha1::Digest as _;

use crate::lab::MAIL_USER;

/// Writes a whole file.
#[expect(clippy::disallowed_methods, reason = "test files need not be durable")]
pub fn write(path: &Path, content: impl AsRef<[u8]>) -> anyhow::Result<()> {
    fs::write(path, content).with_context(|| format!("write {}", path.display()))
}

/// Writes a file of the mail user into a folder that exists; as mail servers do, by a rename.
pub fn write_mail(path: &Path, content: impl AsRef<[u8]>) -> anyhow::Result<()> {
    let aside = aside(path);
    write(&aside, content)?;
    give_to_mail_user(&aside)?;
    fs::rename(&aside, path).with_context(|| format!("rename to {}", path.display()))
}

/// Makes a symbolic link of the mail user, replacing one that is there.
pub fn link_mail(target: &str, path: &Path) -> anyhow::Result<()> {
    let aside = aside(path);
    symlink(target, &aside).with_context(|| format!("link {}", aside.display()))?;
    lchown(&aside, Some(MAIL_USER), Some(MAIL_USER))?;
    fs::rename(&aside, path).with_context(|| format!("rename to {}", path.display()))
}

/// A name beside `path` that no other thread uses.
fn aside(path: &Path) -> PathBuf {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{}.aside{number}", name.trim_start_matches('.')))
}

/// Makes a folder of the mail user; folders that exist stay as they are.
pub fn make_mail_dir(path: &Path) -> anyhow::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        make_mail_dir(parent)?;
    }
    match fs::create_dir(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Ok(()),
        made => made.with_context(|| format!("make {}", path.display()))?,
    }
    give_to_mail_user(path)
}

/// Sets permission bits.
pub fn chmod(path: &Path, mode: u32) -> anyhow::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .with_context(|| format!("change the mode of {}", path.display()))
}

/// Makes the mail user own one file or folder.
pub fn give_to_mail_user(path: &Path) -> anyhow::Result<()> {
    chown(path, Some(MAIL_USER), Some(MAIL_USER))
        .with_context(|| format!("change the owner of {}", path.display()))
}

/// Every file, folder, link and so on below `root`, in order, symbolic links not followed.
pub fn walk(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut pending = vec![root.to_path_buf()];
    while let Some(dir) = pending.pop() {
        let entries = match fs::read_dir(&dir) {
            // A mail server may remove a folder while we look.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            entries => entries.with_context(|| format!("list {}", dir.display()))?,
        };
        for entry in entries {
            let entry = entry.with_context(|| format!("list {}", dir.display()))?;
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                pending.push(entry.path());
            }
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// SHA-1 over names, kinds, owners, modes, sizes, times and contents of everything below `root`.
pub fn fingerprint(root: &Path) -> anyhow::Result<String> {
    let mut sum = sha1::Sha1::new();
    for path in walk(root)? {
        let meta = fs::symlink_metadata(&path)?;
        sum.update(path.as_os_str().as_encoded_bytes());
        sum.update([0]);
        for number in [meta.mode(), meta.uid(), meta.gid()] {
            sum.update(number.to_le_bytes());
        }
        for number in [meta.mtime(), meta.mtime_nsec()] {
            sum.update(number.to_le_bytes());
        }
        if meta.is_file() {
            sum.update(fs::read(&path).with_context(|| format!("read {}", path.display()))?);
        } else if meta.is_symlink() {
            sum.update(fs::read_link(&path)?.as_os_str().as_encoded_bytes());
        }
        sum.update([0]);
    }
    Ok(hex(&sum.finalize()))
}

/// Message files (in `cur` and `new`) below `root`.
pub fn messages(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if !root.exists() {
        return Ok(Vec::new());
    }
    let in_maildir = |path: &PathBuf| {
        let parent = path.parent().and_then(Path::file_name);
        parent.is_some_and(|name| name == "cur" || name == "new") && path.is_file()
    };
    Ok(walk(root)?.into_iter().filter(in_maildir).collect())
}

/// SHA-1 of octets, in hexadecimal.
pub fn sha1(octets: &[u8]) -> String {
    hex(&sha1::Sha1::digest(octets))
}

fn hex(octets: &[u8]) -> String {
    octets.iter().fold(String::new(), |mut text, octet| {
        let _ = write!(text, "{octet:02x}");
        text
    })
}

/// Changes a file in place: neither its name, inode nor date tells.
pub fn overwrite(path: &Path, octets: &[u8]) -> anyhow::Result<()> {
    let date = fs::metadata(path)?.modified()?;
    let file = fs::File::options().write(true).open(path)?;
    std::os::unix::fs::FileExt::write_all_at(&file, octets, 0)?;
    file.set_len(octets.len() as u64)?;
    Ok(file.set_modified(date)?)
}
