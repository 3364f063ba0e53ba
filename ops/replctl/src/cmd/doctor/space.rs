//! Space, inodes and the kind of file system, of state and mail.

use std::{os::unix::fs::MetadataExt as _, path::Path};

use indicatif::HumanBytes;
use mailtwin_host::config::Config;
use rustix::fs::StatVfsMountFlags;

use super::finding::{Code, Finding, Level};

/// Percent that should be free.
const FREE_PERCENT_MIN: u64 = 10;
/// Percent at which something is about to break.
const FREE_PERCENT_LEAST: u64 = 2;
/// Free space that is enough whatever share it is.
const FREE_ENOUGH: u64 = 64 << 30;
/// Magic numbers of file systems whose changes may be made by another machine.
const NETWORK: [(u64, &str); 5] = [
    (0x6969, "NFS"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB2"),
    (0x0bd0_0bd0, "Lustre"),
    (0x00c3_6400, "CephFS"),
];

/// One file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Volume {
    /// What lies there, for humans.
    pub(super) what: &'static str,
    pub(super) path: String,
    pub(super) device: u64,
    /// Octets that may still be written.
    pub(super) free: u64,
    pub(super) octets: u64,
    /// Inodes that may still be made; both 0 where the file system does not count them.
    pub(super) inodes_free: u64,
    pub(super) inodes: u64,
    pub(super) read_only: bool,
    /// Name of a network file system, if it is one.
    pub(super) network: Option<&'static str>,
}

/// Looks at the file system of `path`.
pub(super) fn gather(what: &'static str, path: &Path) -> Option<Volume> {
    let device = std::fs::metadata(path).ok()?.dev();
    let found = rustix::fs::statvfs(path).ok()?;
    let magic = rustix::fs::statfs(path).ok().and_then(|fs| u64::try_from(fs.f_type).ok());
    let network = NETWORK.iter().find(|(number, _)| Some(*number) == magic);
    Some(Volume {
        what,
        path: path.display().to_string(),
        device,
        free: found.f_bavail.saturating_mul(found.f_frsize),
        octets: found.f_blocks.saturating_mul(found.f_frsize),
        inodes_free: found.f_favail,
        inodes: found.f_files,
        read_only: found.f_flag.contains(StatVfsMountFlags::RDONLY),
        network: network.map(|(_, name)| *name),
    })
}

/// Judges one file system.
pub(super) fn judge(volume: &Volume) -> Vec<Finding> {
    let Volume { what, path, .. } = volume;
    if volume.read_only {
        return vec![
            Finding::broken(Code::FileSystem, format!("{what}: {path} is mounted read-only"))
                .because("nothing can be written there")
                .next(format!("mount -o remount,rw {path}; see dmesg for why it is so")),
        ];
    }
    vec![kind(volume), space(volume), inodes(volume)]
}

fn kind(volume: &Volume) -> Finding {
    let Volume { what, path, .. } = volume;
    let Some(network) = volume.network else {
        return Finding::ok(Code::FileSystem, format!("{what}: {path} is on a local file system"));
    };
    Finding::risk(Code::FileSystem, format!("{what}: {path} is on {network}"))
        .because("changes that another machine makes there are found by scans only")
        .next("run Mailtwin on the machine that has the disk, or set scan.interval lower")
}

fn space(volume: &Volume) -> Finding {
    let Volume { what, path, free, octets, .. } = volume;
    let share = percent(*free, *octets);
    let text = format!("{what}: {} ({share} %) free at {path}", HumanBytes(*free));
    let level = if *free >= FREE_ENOUGH { Level::Ok } else { level(share) };
    let next = format!("df -h {path}; du -xsh {path}/* | sort -h | tail");
    let why = match level {
        Level::Ok | Level::Note => return Finding::ok(Code::Space, text),
        Level::Risk => "when it is full, mail is set aside or the sync log cannot be written",
        Level::Broken => "it is about to be full: then nothing can be recorded or taken in",
    };
    Finding { level, ..Finding::ok(Code::Space, text) }.because(why).next(next)
}

fn inodes(volume: &Volume) -> Finding {
    let Volume { what, path, inodes_free, inodes, .. } = volume;
    if *inodes == 0 {
        return Finding::ok(Code::Inodes, format!("{what}: {path} has no limit of inodes"));
    }
    let share = percent(*inodes_free, *inodes);
    let text = format!("{what}: {inodes_free} ({share} %) inodes free at {path}");
    match level(share) {
        Level::Ok | Level::Note => Finding::ok(Code::Inodes, text),
        level @ (Level::Risk | Level::Broken) => {
            Finding { level, ..Finding::ok(Code::Inodes, text) }
                .because("each message is a file: without inodes none can be taken in")
                .next(format!("df -i {path}; a larger file system, or one with more inodes"))
        }
    }
}

fn level(share: u64) -> Level {
    match share {
        share if share < FREE_PERCENT_LEAST => Level::Broken,
        share if share < FREE_PERCENT_MIN => Level::Risk,
        _ => Level::Ok,
    }
}

fn percent(part: u64, whole: u64) -> u64 {
    u64::try_from(u128::from(part) * 100 / u128::from(whole.max(1))).unwrap_or(u64::MAX)
}

/// Judges whether the sync log may grow to its bound; `log` is its size now, if that is known.
pub(super) fn judge_log(config: &Config, state: &Volume, log: Option<u64>) -> Finding {
    let (bound, free) = (config.log.bound, state.free);
    let left = bound.saturating_sub(log.unwrap_or(0));
    let what = format!(
        "the sync log may grow to {}; {} are free at {}",
        HumanBytes(bound),
        HumanBytes(free),
        state.path
    );
    if left <= free {
        return Finding::ok(Code::LogBound, what);
    }
    Finding::risk(Code::LogBound, what)
        .because(
            "while a replica is away for long, the log fills the disk before its bound is reached",
        )
        .next("set log.bound lower, or make room; then systemctl restart mailtwin-agent")
}

/// Judges where messages are staged: they are renamed into place, which only works within one file
/// system. `work` is absent if that directory is not there yet.
pub(super) fn judge_work_dir(path: &Path, work: Option<u64>, mail: &Volume) -> Finding {
    let path = path.display();
    match work {
        None => Finding::broken(Code::WorkDir, format!("{path} (store.work_dir) is not there"))
            .because("a replica has nowhere to take messages in")
            .next(format!("install -d -m 700 {path}, owned by the daemons' user")),
        Some(device) if device == mail.device => {
            Finding::ok(Code::WorkDir, format!("{path} is on the file system of the mail"))
        }
        Some(_) => Finding::broken(
            Code::WorkDir,
            format!("{path} (store.work_dir) is on another file system than {}", mail.path),
        )
        .because("messages cannot be renamed from it to their mailboxes")
        .next("choose a directory on the file system of store.root, or leave work_dir out"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume() -> Volume {
        Volume {
            what: "mail",
            path: "/mail".into(),
            device: 1,
            free: 5 << 30,
            octets: 10 << 30,
            inodes_free: 50,
            inodes: 100,
            read_only: false,
            network: None,
        }
    }

    #[test]
    fn file_systems() {
        use Level::{Broken, Ok, Risk};
        let cases = [
            (volume(), Code::Space, Ok),
            (Volume { free: 1 << 30, ..volume() }, Code::Space, Ok),
            (Volume { free: 1_000 << 20, ..volume() }, Code::Space, Risk),
            (Volume { free: 1 << 20, ..volume() }, Code::Space, Broken),
            (Volume { free: 100 << 30, octets: 9_000 << 30, ..volume() }, Code::Space, Ok),
            (Volume { inodes_free: 5, ..volume() }, Code::Inodes, Risk),
            (Volume { inodes_free: 1, ..volume() }, Code::Inodes, Broken),
            (Volume { inodes_free: 0, inodes: 0, ..volume() }, Code::Inodes, Ok),
            (Volume { network: Some("NFS"), ..volume() }, Code::FileSystem, Risk),
            (Volume { read_only: true, ..volume() }, Code::FileSystem, Broken),
        ];
        for (volume, code, level) in cases {
            let findings = judge(&volume);
            let found = findings.iter().find(|finding| finding.code == code).unwrap();
            assert_eq!(found.level, level, "{found:?}");
            let others = findings.iter().filter(|finding| finding.code != code);
            assert!(others.map(|finding| finding.level).all(|level| level == Ok), "{findings:?}");
        }
    }

    #[test]
    fn the_log_and_the_staging_directory() {
        let text = "config_version = 1\nnode.name = \"a\"\nstore.root = \"/mail\"\n";
        let config = Config::parse(Path::new("x"), text).unwrap();
        let state = Volume { free: 1 << 29, ..volume() };
        assert_eq!(judge_log(&config, &volume(), None).level, Level::Ok);
        assert_eq!(judge_log(&config, &state, None).level, Level::Risk);
        assert_eq!(judge_log(&config, &state, Some(1 << 29)).level, Level::Ok, "it is there");
        let stage = Path::new("/stage");
        assert_eq!(judge_work_dir(stage, Some(1), &volume()).level, Level::Ok);
        assert_eq!(judge_work_dir(stage, Some(2), &volume()).level, Level::Broken);
        assert_eq!(judge_work_dir(stage, None, &volume()).level, Level::Broken);
    }

    #[test]
    fn a_real_file_system_is_read() {
        let volume = gather("state", Path::new("/")).unwrap();
        assert!(volume.octets > 0 && volume.octets >= volume.free, "{volume:?}");
        assert_eq!(gather("state", Path::new("/no such thing")), None);
    }
}
