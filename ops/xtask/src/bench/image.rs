//! A file system of the benchmark's own: ext4 with a journal, in a file. The machine's root may be
//! anything, and what a sync costs depends on nothing so much as on that.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::report::talk;

/// Apparent size of the image; only what is used takes room.
const IMAGE_OCTETS: u64 = 24 << 30;

/// A mounted image; unmounted and removed on drop.
#[derive(Debug)]
pub(super) struct Image {
    file: PathBuf,
    mount: PathBuf,
}

impl Image {
    /// Makes and mounts an image in `dir`. Needs root, loop devices and mkfs.ext4.
    pub(super) fn make(dir: &Path) -> Result<Self> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "make an ext4 image to measure on: run as root"
        );
        let image = Self { file: dir.join("bench.ext4"), mount: dir.join("mnt") };
        fs::create_dir_all(&image.mount)
            .with_context(|| format!("create {}", image.mount.display()))?;
        File::create(&image.file)
            .and_then(|file| file.set_len(IMAGE_OCTETS))
            .with_context(|| format!("create {}", image.file.display()))?;
        // Inode tables are written at once: the kernel's lazy initialisation would otherwise be
        // measured too, at whatever moment it takes place.
        let eager = "lazy_itable_init=0,lazy_journal_init=0,nodiscard";
        let mkfs = ["-q", "-F", "-i", "8192", "-E", eager];
        run(Command::new("mkfs.ext4").args(mkfs).arg(&image.file))?;
        run(Command::new("mount").args(["-o", "loop"]).arg(&image.file).arg(&image.mount))?;
        image.without_second_cache()?;
        Ok(image)
    }

    /// Has what is written go straight to the file that holds the image. Otherwise a thread copies
    /// all of it into another cache first, which no disk makes a processor do, and which takes place
    /// while we still measure those who sync, and later for those who do not.
    fn without_second_cache(&self) -> Result<()> {
        let device =
            Command::new("losetup").args(["-n", "-O", "NAME", "-j"]).arg(&self.file).output();
        let device = device.context("start losetup")?.stdout;
        let device = String::from_utf8_lossy(&device);
        run(Command::new("losetup").arg("--direct-io=on").arg(device.trim()))
    }

    /// Where it is mounted.
    pub(super) fn path(&self) -> &Path {
        &self.mount
    }

    /// Waits until everything is on the disk, so that nobody pays for a predecessor's writes.
    pub(super) fn settle(&self) -> Result<()> {
        settle(&self.mount)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        if let Err(error) = run(Command::new("umount").arg(&self.mount)) {
            talk(&format!("{error:#}"));
            return; // The file is still in use; the next run makes a new one in its place.
        }
        if let Err(error) = fs::remove_file(&self.file) {
            talk(&format!("remove {}: {error}", self.file.display()));
        }
    }
}

/// Makes everything durable on the file system that holds `path`.
pub(super) fn settle(path: &Path) -> Result<()> {
    let directory = File::open(path).with_context(|| format!("open {}", path.display()))?;
    rustix::fs::syncfs(directory).with_context(|| format!("sync {}", path.display()))
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("start {command:?}"))?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}
