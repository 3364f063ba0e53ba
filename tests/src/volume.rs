//! Small file systems of a test's own: images in memory, loop-mounted, with pictures of what a power
//! cut would leave. Everything is unmounted on drop; what a killed test program left behind goes
//! when the next one begins.

use std::{
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{self, Command},
    sync::{
        Once,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::{Context as _, bail};

use crate::{files, lab::Lab};

/// Where images lie, and how their folders are called: with the number of the process they belong
/// to.
const IMAGES: &str = "/dev/shm";
const PREFIX: &str = "mailtwin-volume.";

/// Size of an image. It is sparse: what nobody writes takes no memory.
pub const MEGABYTES: u32 = 512;

/// Size of the file system that holds images which pictures are taken of.
const SHELF_MEGABYTES: u32 = 8 << 10;

/// File systems that can be mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// With a journal, data ordered. On an error it becomes read-only.
    Ext4,
    /// With reflinks.
    Xfs,
    /// With quota groups.
    Btrfs,
    /// Memory, with room for so many files.
    Tmpfs {
        /// Number of inodes.
        inodes: u32,
    },
}

impl Kind {
    fn make(self, image: &Path) -> anyhow::Result<()> {
        let words: &[&str] = match self {
            Self::Ext4 => &["mkfs.ext4", "-q", "-F", "-m", "0"],
            Self::Xfs => &["mkfs.xfs", "-q", "-f", "-m", "reflink=1"],
            Self::Btrfs => &["mkfs.btrfs", "-q", "-f"],
            Self::Tmpfs { .. } => return Ok(()),
        };
        let image = image.as_os_str();
        tool(&words.iter().map(OsStr::new).chain([image]).collect::<Vec<_>>())
    }

    fn mount(self, image: &Path, megabytes: u32, at: &Path) -> anyhow::Result<()> {
        let (kind, options) = match self {
            Self::Ext4 => ("ext4", "loop,errors=remount-ro".to_owned()),
            // A picture has the same identity as its original, which is mounted too.
            Self::Xfs => ("xfs", "loop,nouuid".to_owned()),
            Self::Btrfs => ("btrfs", "loop".to_owned()),
            Self::Tmpfs { inodes } => {
                ("tmpfs", format!("size={megabytes}m,nr_inodes={inodes},mode=0700"))
            }
        };
        let what = match self {
            Self::Tmpfs { .. } => image.file_name().unwrap_or_default(),
            Self::Ext4 | Self::Xfs | Self::Btrfs => image.as_os_str(),
        };
        let words = ["mount", "-t", kind, "-o", &options].map(OsStr::new);
        tool(&words.into_iter().chain([what, at.as_os_str()]).collect::<Vec<_>>())
            .context("the tests of power cuts and disk faults need loop mounts: run them as root, and not in a container without them")
    }
}

/// A mounted file system.
#[derive(Debug)]
pub struct Volume {
    kind: Kind,
    image: PathBuf,
    megabytes: u32,
    at: PathBuf,
    /// Folders of it that are mounted elsewhere, too.
    binds: Vec<(String, PathBuf)>,
    mounted: bool,
    /// The folder of the image; `None` if it lies on another volume.
    _folder: Option<Folder>,
}

impl Volume {
    /// Makes and mounts one at `at`, which the mail user owns.
    pub fn mount(kind: Kind, megabytes: u32, at: &Path) -> anyhow::Result<Self> {
        let folder = Folder::make()?;
        let image = match kind {
            // What is mounted has no file; its source tells whose it is.
            Kind::Tmpfs { .. } => folder.0.clone(),
            Kind::Ext4 | Kind::Xfs | Kind::Btrfs => folder.0.join("image"),
        };
        Self::of(kind, megabytes, at, image, Some(folder))
    }

    fn of(
        kind: Kind,
        megabytes: u32,
        at: &Path,
        image: PathBuf,
        folder: Option<Folder>,
    ) -> anyhow::Result<Self> {
        if !matches!(kind, Kind::Tmpfs { .. }) {
            let file = File::create(&image).context("make an image")?;
            file.set_len(u64::from(megabytes) << 20)?;
            kind.make(&image)?;
        }
        fs::create_dir_all(at)?;
        let (at, binds) = (at.to_path_buf(), Vec::new());
        let mut volume =
            Self { kind, image, megabytes, at, binds, mounted: false, _folder: folder };
        volume.attach()?;
        let _ = fs::remove_dir(volume.at.join("lost+found"));
        files::give_to_mail_user(&volume.at)?;
        Ok(volume)
    }

    /// Where it is mounted.
    pub fn at(&self) -> &Path {
        &self.at
    }

    /// Makes a folder of the mail user on it, and mounts that at `at` as well.
    pub fn bind(&mut self, folder: &str, at: &Path) -> anyhow::Result<()> {
        files::make_mail_dir(&self.at.join(folder))?;
        fs::create_dir_all(at)?;
        self.binds.push((folder.to_owned(), at.to_path_buf()));
        bind(&self.at.join(folder), at)
    }

    /// Mounts it again after [`Volume::unmount`].
    pub fn attach(&mut self) -> anyhow::Result<()> {
        self.kind.mount(&self.image, self.megabytes, &self.at)?;
        self.mounted = true;
        self.binds.iter().try_for_each(|(folder, at)| bind(&self.at.join(folder), at))
    }

    /// Unmounts it once nobody uses it any more.
    pub fn unmount(&mut self, lab: &Lab) -> anyhow::Result<()> {
        let places = self.binds.iter().map(|(_, at)| at).chain([&self.at]);
        for at in places {
            lab.wait("a volume can be unmounted", || {
                let done = tool(&["umount".as_ref(), at.as_os_str()]);
                Ok(done.map_err(|error| format!("{error:#}")))
            })?;
        }
        self.mounted = false;
        // Whoever made a mount namespace of their own meanwhile still has it mounted, and what is
        // mounted again then is the file system in the state that it was in.
        lab.wait("the device is free", || {
            Ok(if self.has_device()? { Err("somebody has it mounted".into()) } else { Ok(()) })
        })
    }

    fn has_device(&self) -> anyhow::Result<bool> {
        let devices = fs::read_dir("/sys/block").context("list block devices")?;
        for device in devices {
            let path = device?.path().join("loop/backing_file");
            let backing = fs::read_to_string(path).unwrap_or_default();
            if Path::new(backing.trim_end()) == self.image {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Takes it away from whoever uses it: they keep what they have open, and find nothing new.
    pub fn tear_off(&mut self) -> anyhow::Result<()> {
        let places = self.binds.iter().map(|(_, at)| at).chain([&self.at]);
        for at in places {
            tool(&["umount".as_ref(), "--lazy".as_ref(), at.as_os_str()])?;
        }
        self.mounted = false;
        Ok(())
    }

    /// The name of its block device, `loop7`.
    pub fn device(&self) -> anyhow::Result<String> {
        let mounts = fs::read_to_string("/proc/self/mounts").context("list what is mounted")?;
        let at = self.at.to_string_lossy();
        let line = mounts.lines().find(|line| line.split(' ').nth(1) == Some(&*at));
        let device = line.and_then(|line| line.split(' ').next()?.strip_prefix("/dev/"));
        device.map(str::to_owned).context("it is mounted from a device")
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if self.mounted {
            let _ = self.tear_off();
        }
    }
}

fn bind(from: &Path, at: &Path) -> anyhow::Result<()> {
    tool(&["mount".as_ref(), "--bind".as_ref(), from.as_os_str(), at.as_os_str()])
}

/// A volume whose image lies on an XFS of its own, so that it can be copied in one moment.
#[derive(Debug)]
pub struct PowerCut {
    /// What is written to. Dropped first: it lies on the other.
    pub volume: Volume,
    shelf: Volume,
}

impl PowerCut {
    /// Makes a volume at `at`.
    pub fn mount(kind: Kind, at: &Path) -> anyhow::Result<Self> {
        let folder = Folder::make()?;
        let (image, at_shelf) = (folder.0.join("image"), folder.0.join("shelf"));
        let shelf = Volume::of(Kind::Xfs, SHELF_MEGABYTES, &at_shelf, image, Some(folder))?;
        let volume = Volume::of(kind, MEGABYTES, at, at_shelf.join("disk"), None)?;
        Ok(Self { volume, shelf })
    }

    /// What the disk would hold if power failed now, as an image for [`PowerCut::resume`]. A clone
    /// is made under the lock of the image's inode: what the file system has not yet handed to its
    /// device is not in it.
    pub fn picture(&self, number: usize) -> anyhow::Result<PathBuf> {
        let picture = self.shelf.at().join(format!("picture{number}"));
        let (from, to) = (File::open(&self.volume.image)?, File::create(&picture)?);
        rustix::fs::ioctl_ficlone(&to, &from).context("clone an image")?;
        Ok(picture)
    }

    /// Mounts a picture in the volume's place, which must be unmounted. The picture changes with
    /// it.
    pub fn resume(&mut self, picture: PathBuf) -> anyhow::Result<()> {
        self.volume.image = picture;
        self.volume.attach()
    }

    /// Unmounts what [`PowerCut::resume`] mounted and forgets the picture.
    pub fn forget(&mut self, lab: &Lab) -> anyhow::Result<()> {
        self.volume.unmount(lab)?;
        fs::remove_file(&self.volume.image).context("remove a picture")
    }
}

/// A folder for images, gone on drop.
#[derive(Debug)]
struct Folder(PathBuf);

impl Folder {
    fn make() -> anyhow::Result<Self> {
        static LEFTOVERS: Once = Once::new();
        static NEXT: AtomicU32 = AtomicU32::new(0);
        LEFTOVERS.call_once(remove_leftovers);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = Path::new(IMAGES).join(format!("{PREFIX}{}.{number}", process::id()));
        fs::create_dir(&dir).with_context(|| format!("make {}", dir.display()))?;
        Ok(Self(dir))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Unmounts and removes what test programs left that did not live to do it.
fn remove_leftovers() {
    let listed = Command::new("losetup").args(["-l", "-n", "-O", "NAME,BACK-FILE"]).output();
    let listed = listed.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let mut dead: Vec<(String, String)> = Vec::new();
    for line in listed.unwrap_or_default().lines() {
        if let Some((device, file)) = line.split_once(char::is_whitespace)
            && is_of_the_dead(file)
        {
            dead.push((device.to_owned(), file.trim().to_owned()));
        }
    }
    // What lies on another volume goes first.
    dead.sort_by_key(|(_, file)| std::cmp::Reverse(file.matches('/').count()));
    let sources = dead.iter().map(|(device, _)| device.clone());
    for source in sources.chain(tmpfs_of_the_dead()) {
        unmount_all_of(&source);
    }
    for (device, _) in &dead {
        let _ = Command::new("losetup").args(["-d", device]).output();
    }
    for entry in fs::read_dir(IMAGES).into_iter().flatten().flatten() {
        if is_of_the_dead(&entry.path().to_string_lossy()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Whether a path or source names a volume of a process that is no more.
fn is_of_the_dead(name: &str) -> bool {
    let owner = name.split_once(PREFIX).and_then(|(_, rest)| rest.split('.').next());
    owner.is_some_and(|id| !Path::new("/proc").join(id).exists())
}

fn mounts() -> Vec<(String, String)> {
    let text = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let pair = |line: &str| {
        let mut words = line.split(' ');
        Some((words.next()?.to_owned(), words.next()?.to_owned()))
    };
    text.lines().filter_map(pair).collect()
}

fn tmpfs_of_the_dead() -> Vec<String> {
    let sources = mounts().into_iter().map(|(source, _)| source);
    sources.filter(|source| source.starts_with(PREFIX) && is_of_the_dead(source)).collect()
}

fn unmount_all_of(source: &str) {
    for (_, at) in mounts().iter().rev().filter(|(other, _)| other == source) {
        let _ = Command::new("umount").args(["--lazy", at]).output();
    }
}

/// Runs a small program that must succeed.
pub fn tool(words: &[&OsStr]) -> anyhow::Result<()> {
    let Some((program, arguments)) = words.split_first() else { bail!("no program") };
    let output =
        Command::new(program).args(arguments).output().with_context(|| format!("{words:?}"))?;
    if !output.status.success() {
        bail!("{words:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Leaves no room on a volume; returns the file whose removal makes room again.
pub fn fill(volume: &Path) -> anyhow::Result<PathBuf> {
    let ballast = volume.join("ballast");
    let full = Command::new("dd")
        .args(["if=/dev/zero", "bs=4k", "status=none"])
        .arg(format!("of={}", ballast.display()))
        .output()?;
    anyhow::ensure!(!full.status.success(), "the volume is full");
    Ok(ballast)
}

/// Leaves no inode on a volume; returns the folder whose removal makes room again.
pub fn use_all_inodes(volume: &Path) -> anyhow::Result<PathBuf> {
    let ballast = volume.join("many");
    fs::create_dir(&ballast)?;
    for number in 0_u32.. {
        let made = File::create(ballast.join(number.to_string()));
        if made.is_err_and(|error| error.kind() == std::io::ErrorKind::StorageFull) {
            break;
        }
    }
    Ok(ballast)
}

/// A tmpfs of `megabytes` at `at`, with inodes for most purposes.
pub fn memory(at: &Path, megabytes: u32) -> anyhow::Result<Volume> {
    Volume::mount(Kind::Tmpfs { inodes: 100_000 }, megabytes, at)
}
