//! The kernel's limits: directories that can be watched, and open files.

use std::{fs, path::Path};

use mailtwin_host::node::Role;

use super::finding::{Code, Finding};

/// Directories watched for each mailbox: itself, `new` and `cur`.
const WATCHES_PER_MAILBOX: u64 = 3;
/// Watches for accounts and the directories above them.
const WATCHES_BESIDE: u64 = 100;
/// Instances that others of the same user may have, too.
const INSTANCES_MIN: u64 = 8;
/// Files that a daemon has open at most, as a rule.
const OPEN_FILES_MIN: u64 = 1_024;

/// What was found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    /// `None` while the node has no role.
    pub(super) role: Option<Role>,
    pub(super) mailboxes: u64,
    /// Whether there are more than were counted.
    pub(super) more: bool,
    pub(super) max_user_watches: Option<u64>,
    pub(super) max_user_instances: Option<u64>,
}

/// Reads the kernel's settings.
pub(super) fn gather(role: Option<Role>, mailboxes: u64, more: bool) -> Facts {
    let read = |name: &str| {
        let text = fs::read_to_string(Path::new("/proc/sys/fs/inotify").join(name)).ok()?;
        text.trim().parse().ok()
    };
    Facts {
        role,
        mailboxes,
        more,
        max_user_watches: read("max_user_watches"),
        max_user_instances: read("max_user_instances"),
    }
}

/// The soft limit of open files of a running process, if it can be read.
pub(super) fn open_files(pid: i32) -> Option<u64> {
    parse_open_files(&fs::read_to_string(format!("/proc/{pid}/limits")).ok()?)
}

fn parse_open_files(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

/// Judges the kernel's limits.
pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let watches = facts.max_user_watches.map(|limit| watches(facts, limit));
    let instances = facts.max_user_instances.map(instances);
    watches.into_iter().chain(instances).collect()
}

fn watches(facts: &Facts, limit: u64) -> Finding {
    let Facts { mailboxes, more, .. } = *facts;
    let needed = mailboxes.saturating_mul(WATCHES_PER_MAILBOX).saturating_add(WATCHES_BESIDE);
    let counted = if more { "more than " } else { "" };
    let what = format!(
        "{counted}{mailboxes} mailboxes take about {needed} watches; fs.inotify.max_user_watches is \
         {limit}"
    );
    let wanted = needed.saturating_mul(2).max(524_288);
    let next = format!(
        "echo fs.inotify.max_user_watches={wanted} > /etc/sysctl.d/60-mailtwin.conf && sysctl --system"
    );
    let is_short = needed > limit || more;
    match (is_short, facts.role) {
        // Other programs of the mail user (IDLE of a mail server) take from the same limit.
        (false, _) if needed.saturating_mul(2) > limit => Finding::note(Code::InotifyWatches, what)
            .because("other programs of that user, a mail server's IDLE for one, take from it, too")
            .next(next),
        (false, _) => Finding::ok(Code::InotifyWatches, what),
        (true, Some(Role::Replica)) => Finding::note(Code::InotifyWatches, what)
            .because("once this node is the master, changes beyond it are found by scans only")
            .next(next),
        (true, _) => Finding::risk(Code::InotifyWatches, what)
            .because(
                "changes of mailboxes beyond it are found by scans only: the lag grows to minutes",
            )
            .next(next),
    }
}

fn instances(limit: u64) -> Finding {
    let what = format!("fs.inotify.max_user_instances is {limit}");
    if limit >= INSTANCES_MIN {
        return Finding::ok(Code::InotifyInstances, what);
    }
    Finding::risk(Code::InotifyInstances, what)
        .because("the agent does not start when the mail user's other programs have taken all")
        .next(
            "echo fs.inotify.max_user_instances=128 > /etc/sysctl.d/61-mailtwin.conf && \
             sysctl --system",
        )
}

/// Judges a running daemon's limit of open files.
pub(super) fn judge_open_files(daemon: &str, limit: u64) -> Finding {
    let what = format!("{daemon} may have {limit} files open");
    if limit >= OPEN_FILES_MIN {
        return Finding::ok(Code::OpenFiles, what);
    }
    Finding::risk(Code::OpenFiles, what)
        .because("with many mailboxes at work at once it fails to open files")
        .next(format!(
            "systemctl edit {daemon}: LimitNOFILE={OPEN_FILES_MIN}, then systemctl restart {daemon}"
        ))
}

#[cfg(test)]
mod tests {
    use super::{super::finding::Level, *};

    #[test]
    fn watches_against_mailboxes() {
        use Level::{Note, Ok, Risk};
        let cases = [
            (10, 8_192, Some(Role::Master), Ok),
            (1_200, 8_192, Some(Role::Master), Ok),
            (2_000, 8_192, Some(Role::Master), Note),
            (2_698, 8_192, Some(Role::Master), Risk),
            (1_000_000, 8_192, Some(Role::Master), Risk),
            (1_000_000, 8_192, Some(Role::Replica), Note),
            (1_000_000, 8_192, None, Risk),
            (u64::MAX, u64::MAX, None, Ok),
        ];
        for (mailboxes, limit, role, want) in cases {
            let (more, max_user_instances) = (false, None);
            let max_user_watches = Some(limit);
            let facts = Facts { role, mailboxes, more, max_user_watches, max_user_instances };
            let findings = judge(&facts);
            assert_eq!(findings.len(), 1);
            assert_eq!(findings[0].level, want, "{mailboxes} {limit} {:?}", findings[0]);
        }
        let cut = Facts {
            role: None,
            mailboxes: 1,
            more: true,
            max_user_watches: Some(8_192),
            max_user_instances: Some(4),
        };
        let levels: Vec<Level> = judge(&cut).iter().map(|finding| finding.level).collect();
        assert_eq!(levels, [Risk, Risk]);
    }

    #[test]
    fn open_files_of_a_process() {
        let text = "Limit                     Soft Limit           Hard Limit           Units\n\
                    Max open files            1024                 524288               files\n";
        assert_eq!(parse_open_files(text), Some(1_024));
        assert_eq!(parse_open_files("Max open files unlimited unlimited files"), Some(u64::MAX));
        assert_eq!(parse_open_files("nothing"), None);
        assert_eq!(judge_open_files("mailtwin-agent", 1_024).level, Level::Ok);
        assert_eq!(judge_open_files("mailtwin-agent", 256).level, Level::Risk);
    }
}
