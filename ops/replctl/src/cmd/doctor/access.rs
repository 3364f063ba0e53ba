//! Permissions: what the daemons' user may do with their own files and with the mail.

use std::{
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use mailtwin_host::config::Config;

use super::finding::{Code, Finding};

/// Paths asked about in one go.
const ASKED_MAX: usize = 200;
/// Paths named in one finding.
const NAMED_MAX: usize = 3;

/// Prints one line of `r`, `w`, `x` or `-` for each argument; a directory that is not there is `?`.
const PROBE: &str = r#"for p do
if [ -e "$p" ]; then r=-; w=-; x=-; [ -r "$p" ] && r=r; [ -w "$p" ] && w=w; [ -x "$p" ] && x=x
else r='?'; w='?'; x='?'; fi
echo "$r$w$x"; done"#;

/// Whom the daemons run as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Whether they pass by permissions: the units give them that (`CAP_DAC_OVERRIDE`), for mail that
    /// belongs to others.
    pub(super) overrides: bool,
}

/// What a user may do with a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// It is not there, or a directory above it may not be entered.
    Missing,
    /// It is there.
    May {
        read: bool,
        write: bool,
        /// Run it or, for a directory, enter it.
        enter: bool,
    },
}

impl Access {
    fn is_full(self) -> bool {
        self == Self::May { read: true, write: true, enter: true }
    }

    fn lacks(self) -> String {
        match self {
            Self::Missing => "is not there, or cannot be reached".to_owned(),
            Self::May { read, write, enter } => {
                let words = [(read, "read"), (write, "write"), (enter, "enter")];
                let lacking = words.iter().filter(|(has, _)| !has).map(|(_, word)| *word);
                format!("may not {} it", lacking.collect::<Vec<_>>().join(", "))
            }
        }
    }
}

/// A path, and what the daemons' user may do with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) path: PathBuf,
    pub(super) access: Access,
}

/// What was found out about permissions.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    /// Absent if it cannot be told whom the daemons run as.
    pub(super) user: Option<User>,
    /// Why nobody could be asked what that user may do.
    pub(super) unknown: Option<String>,
    pub(super) state_dir: Option<Asked>,
    pub(super) run_dir: Option<Asked>,
    /// The mail directory, and mailboxes that look as if they were somebody else's.
    pub(super) mail: Vec<Asked>,
    /// Mode of the private key; absent if it is not there or cannot be looked at.
    pub(super) key_mode: Option<u32>,
}

/// Whom the daemons run as: what a running one says, or who owns their state.
pub(super) fn user(running: Option<User>, config: &Config) -> Option<User> {
    running.or_else(|| {
        let metadata = std::fs::metadata(&config.node.state_dir).ok()?;
        Some(User { uid: metadata.uid(), gid: metadata.gid(), overrides: unit_overrides() })
    })
}

/// Whether a process passes by permissions.
pub(super) fn overrides(pid: i32) -> bool {
    const CAP_DAC_OVERRIDE: u32 = 1;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    effective.is_some_and(|mask| mask >> CAP_DAC_OVERRIDE & 1 == 1)
}

/// Whether the unit would let a daemon do so, where none runs.
fn unit_overrides() -> bool {
    let mut show = Command::new("systemctl");
    show.args(["show", "--property=AmbientCapabilities", "--value", "mailtwin-agent.service"]);
    let shown = show.output().map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&shown).contains("cap_dac_override")
}

/// Looks. `odd` are mailboxes that another user owns or that lack permissions of their owner.
pub(super) fn gather(
    config: &Config,
    user: Option<User>,
    mail_dir: Option<&Path>,
    odd: &[PathBuf],
) -> Facts {
    let key = config.node.state_dir.join("keys/node.pem");
    let key_mode = std::fs::metadata(key).ok().map(|metadata| metadata.mode() & 0o777);
    let mut facts = Facts { user, key_mode, ..Facts::default() };
    let Some(user) = user else { return facts };
    let mut paths = vec![config.node.state_dir.clone(), config.node.run_dir.clone()];
    paths.extend(mail_dir.map(Path::to_owned));
    paths.extend(odd.iter().take(ASKED_MAX).cloned());
    match ask(user, &paths) {
        Ok(answers) => {
            let mut asked = paths.into_iter().zip(answers);
            let mut next = || asked.next().map(|(path, access)| Asked { path, access });
            (facts.state_dir, facts.run_dir) = (next(), next());
            facts.mail = std::iter::from_fn(next).collect();
        }
        Err(why) => facts.unknown = Some(why),
    }
    facts
}

/// Asks the kernel, as that user, so that groups and access lists count.
fn ask(user: User, paths: &[PathBuf]) -> Result<Vec<Access>, String> {
    let own = rustix::process::geteuid();
    if own.as_raw() == user.uid && !user.overrides {
        return run(Command::new("/bin/sh"), paths);
    }
    if !own.is_root() {
        return Err(if user.overrides {
            "run `replctl doctor` as root".to_owned()
        } else {
            format!("run `replctl doctor` as root or as user {}", user.uid)
        });
    }
    let become_user = |groups: &str| {
        let mut command = Command::new("setpriv");
        command.args([format!("--reuid={}", user.uid), format!("--regid={}", user.gid)]);
        if user.overrides {
            command.args(["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]);
        }
        command.args([groups, "--", "/bin/sh"]);
        command
    };
    // A user without an entry has no other groups.
    run(become_user("--init-groups"), paths).or_else(|_| run(become_user("--clear-groups"), paths))
}

fn run(mut command: Command, paths: &[PathBuf]) -> Result<Vec<Access>, String> {
    let output = command.args(["-c", PROBE, "sh"]).args(paths).output();
    let output = output.map_err(|error: io::Error| format!("run setpriv or /bin/sh: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let answers: Vec<Access> = text.lines().filter_map(parse).collect();
    if answers.len() == paths.len() {
        return Ok(answers);
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    Err(format!("ask what the daemons' user may do: {}", complaint.trim()))
}

fn parse(line: &str) -> Option<Access> {
    match line.as_bytes() {
        b"???" => Some(Access::Missing),
        &[read, write, enter] => {
            Some(Access::May { read: read == b'r', write: write == b'w', enter: enter == b'x' })
        }
        _ => None,
    }
}

/// Judges what was found; while no daemon runs, there need be no directory of sockets.
pub(super) fn judge(facts: &Facts, config: &Config, any_runs: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(key_file(facts.key_mode, config));
    let Some(user) = facts.user else { return findings };
    if let Some(why) = &facts.unknown {
        let what = format!("cannot be told what user {} may do", user.uid);
        findings.push(Finding::note(Code::StoreAccess, what).next(why.clone()));
        return findings;
    }
    findings.extend(facts.state_dir.as_ref().map(|asked| state_dir(asked, user)));
    findings.extend(facts.run_dir.as_ref().map(|asked| run_dir(asked, user, any_runs)));
    findings.extend(mail(&facts.mail, user, config.store.read_only));
    findings
}

fn key_file(mode: Option<u32>, config: &Config) -> Option<Finding> {
    let path = config.node.state_dir.join("keys/node.pem");
    let path = path.display();
    // That it is missing is said of the node's state.
    let mode = mode?;
    if mode.trailing_zeros() >= 6 {
        return Some(Finding::ok(Code::KeyFile, format!("{path} has mode {mode:o}")));
    }
    Some(
        Finding::broken(Code::KeyFile, format!("{path} has mode {mode:o}"))
            .because("others can read the private key: the daemons refuse to start with it")
            .next(format!("chmod 600 {path}; if others may have read it, make a new key")),
    )
}

fn state_dir(asked: &Asked, user: User) -> Finding {
    let path = asked.path.display();
    if asked.access.is_full() {
        return Finding::ok(Code::NodeState, format!("user {} may use {path}", user.uid));
    }
    let what = format!("{path}: user {} {}", user.uid, asked.access.lacks());
    Finding::broken(Code::NodeState, what)
        .because("the daemons keep role, keys, sync log and index there")
        .next(format!("chown -R {}:{} {path} && chmod 700 {path}", user.uid, user.gid))
}

fn run_dir(asked: &Asked, user: User, any_runs: bool) -> Finding {
    let path = asked.path.display();
    match asked.access {
        access if access.is_full() => {
            Finding::ok(Code::RunDir, format!("user {} may use {path}", user.uid))
        }
        Access::Missing if !any_runs => {
            let what = format!("{path} is not there; it is made when a daemon starts");
            Finding::note(Code::RunDir, what)
        }
        access => {
            Finding::broken(Code::RunDir, format!("{path}: user {} {}", user.uid, access.lacks()))
                .because("the daemons cannot make their admin sockets")
                .next(format!("install -d -o {} -g {} {path}", user.uid, user.gid))
        }
    }
}

fn mail(asked: &[Asked], user: User, read_only: bool) -> Option<Finding> {
    let first = asked.first()?;
    let may = |access: Access| match access {
        Access::May { read, write, enter } => read && enter && (write || read_only),
        Access::Missing => false,
    };
    let bad: Vec<&Asked> = asked.iter().filter(|asked| !may(asked.access)).collect();
    let Some(worst) = bad.first() else {
        let what = format!("user {} may use the mail below {}", user.uid, first.path.display());
        return Some(Finding::ok(Code::StoreAccess, what));
    };
    let some: Vec<String> =
        bad.iter().take(NAMED_MAX).map(|asked| asked.path.display().to_string()).collect();
    let more = bad.len().saturating_sub(NAMED_MAX);
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    let what = format!("{}{more}: user {} {}", some.join(", "), user.uid, worst.access.lacks());
    Some(
        Finding::broken(Code::StoreAccess, what)
            .because(
                "what cannot be read is not replicated; what cannot be written is not taken in",
            )
            .next(format!("ls -ld {}, then chown it to user {}", worst.path.display(), user.uid)),
    )
}

#[cfg(test)]
mod tests {
    use super::{super::finding::Level, *};

    fn config() -> Config {
        let text = "config_version = 1\nnode.name = \"a\"\nnode.state_dir = \"/s\"\n\
                    store.root = \"/mail/{user}\"\n";
        Config::parse(Path::new("x.toml"), text).unwrap()
    }

    fn asked(path: &str, rwx: &str) -> Asked {
        Asked { path: path.into(), access: parse(rwx).unwrap() }
    }

    fn good() -> Facts {
        Facts {
            user: Some(User { uid: 5000, gid: 5000, overrides: false }),
            unknown: None,
            state_dir: Some(asked("/s", "rwx")),
            run_dir: Some(asked("/run", "rwx")),
            mail: vec![asked("/mail", "rwx")],
            key_mode: Some(0o600),
        }
    }

    #[test]
    fn permissions() {
        use Level::{Broken, Note, Ok};
        let cases = [
            (good(), Ok, Code::StoreAccess, "may use the mail below /mail"),
            (Facts { key_mode: Some(0o640), ..good() }, Broken, Code::KeyFile, "mode 640"),
            (
                Facts { state_dir: Some(asked("/s", "r-x")), ..good() },
                Broken,
                Code::NodeState,
                "may not write it",
            ),
            (
                Facts { run_dir: Some(asked("/run", "???")), ..good() },
                Broken,
                Code::RunDir,
                "is not there",
            ),
            (
                Facts { mail: vec![asked("/mail", "rwx"), asked("/mail/u", "---")], ..good() },
                Broken,
                Code::StoreAccess,
                "/mail/u: user 5000 may not read, write, enter it",
            ),
            (
                Facts { unknown: Some("run it as root".into()), ..good() },
                Note,
                Code::StoreAccess,
                "cannot be told",
            ),
        ];
        for (facts, level, code, says) in cases {
            let findings = judge(&facts, &config(), true);
            let found = findings.iter().find(|finding| finding.code == code).unwrap();
            assert_eq!(found.level, level, "{found:?}");
            assert!(found.what.contains(says), "{found:?}");
            let others = findings.iter().filter(|finding| finding.code != code);
            assert!(others.map(|finding| finding.level).all(|level| level == Ok), "{findings:?}");
        }
    }

    #[test]
    fn a_store_that_is_only_read_need_not_be_writable() {
        let facts = Facts { mail: vec![asked("/mail", "r-x")], ..good() };
        let mut config = config();
        assert_eq!(
            mail(&facts.mail, User { uid: 1, gid: 1, overrides: false }, false).unwrap().level,
            Level::Broken
        );
        config.store.read_only = true;
        let findings = judge(&facts, &config, true);
        assert!(findings.iter().all(|finding| finding.level == Level::Ok), "{findings:?}");
    }

    #[test]
    fn a_daemon_that_never_ran_has_no_run_dir_yet() {
        let facts = Facts { run_dir: Some(asked("/run", "???")), ..good() };
        let findings = judge(&facts, &config(), false);
        let found = findings.iter().find(|finding| finding.code == Code::RunDir).unwrap();
        assert_eq!(found.level, Level::Note);
    }

    #[test]
    fn the_kernel_is_asked() {
        let dir = std::env::temp_dir();
        let own = rustix::process::geteuid().as_raw();
        let user = User { uid: own, gid: rustix::process::getegid().as_raw(), overrides: false };
        let answers = ask(user, &[dir.clone(), dir.join("no such thing")]).unwrap();
        assert_eq!(answers[1], Access::Missing);
        assert!(answers[0].is_full(), "{answers:?}");
    }
}
