//! A throw-away Dovecot on loopback: own folders, ports, log and mail; 2.3 of this machine or 2.4
//! from a Debian 13 in a folder. It stops when dropped.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};

use crate::{
    corpus, daemon, dovecot24, files,
    gate::Hook,
    imap::Imap,
    lab::{Lab, MAIL_USER},
    lmtp,
    process::{Launch, Process},
    random::Random,
    server::Server,
};

/// Password of every account.
pub const PASSWORD: &str = "secret";

/// Which Dovecot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// Debian 12's, installed on the machine.
    V23,
    /// Debian 13's, in a folder of its own.
    V24,
}

/// How mailboxes lie on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Flat, with dots: `.Work.Sub`.
    MaildirPlusPlus,
    /// Nested folders: `Work/Sub`.
    Fs,
}

impl Layout {
    /// Its name in our configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MaildirPlusPlus => "maildir++",
            Self::Fs => "fs",
        }
    }

    /// What stands between the parts of a mailbox name in IMAP.
    pub fn separator(self) -> char {
        match self {
            Self::MaildirPlusPlus => '.',
            Self::Fs => '/',
        }
    }
}

/// A Dovecot.
#[derive(Debug)]
pub struct Dovecot {
    name: String,
    dir: PathBuf,
    version: Version,
    layout: Layout,
    imap: u16,
    lmtp: u16,
    process: Option<Process>,
}

impl Dovecot {
    /// Starts one with Maildir++ on an empty mail root `<lab>/<name>/mail`.
    pub fn start(lab: &Lab, name: &str, version: Version) -> anyhow::Result<Self> {
        Self::with_layout(lab, name, version, Layout::MaildirPlusPlus)
    }

    /// Starts one for random work of several clients. It lists mailboxes from their tree: Dovecot's
    /// index of them forgets some when clients rename and delete at once.
    pub fn busy(lab: &Lab, name: &str, version: Version) -> anyhow::Result<Self> {
        let extra = "mailbox_list_index = no";
        Self::with_extra(lab, name, version, Layout::MaildirPlusPlus, extra)
    }

    /// Starts one with a chosen layout.
    pub fn with_layout(
        lab: &Lab,
        name: &str,
        version: Version,
        layout: Layout,
    ) -> anyhow::Result<Self> {
        Self::with_extra(lab, name, version, layout, "")
    }

    /// Starts one with a chosen layout and settings of the caller's, placed before those of the
    /// plug-ins.
    pub fn with_extra(
        lab: &Lab,
        name: &str,
        version: Version,
        layout: Layout,
        extra: &str,
    ) -> anyhow::Result<Self> {
        let dir = lab.dir().join(name);
        for part in ["etc", "run", "state"] {
            fs::create_dir_all(dir.join(part))?;
        }
        lab.mail_dir(&format!("{name}/mail"))?;
        let (imap, lmtp) = (lab.port()?, lab.port()?);
        let mut dovecot =
            Self { name: name.to_owned(), dir, version, layout, imap, lmtp, process: None };
        let configuration = match version {
            Version::V23 => dovecot.configuration_23(extra),
            Version::V24 => dovecot.configuration_24(extra),
        };
        files::write(&dovecot.config(), configuration)?;
        dovecot.resume(lab)?;
        Ok(dovecot)
    }

    /// Starts it again after [`Dovecot::stop`].
    pub fn resume(&mut self, lab: &Lab) -> anyhow::Result<()> {
        let configuration = self.config();
        let mut command: Vec<OsString> = match self.version {
            Version::V23 => vec!["dovecot".into()],
            Version::V24 => dovecot24::enter(lab)?,
        };
        command.extend(["-F".into(), "-c".into(), configuration.into_os_string()]);
        lab.watch_log(&self.log());
        let mut process = Process::start(
            lab,
            &Launch {
                name: self.name.clone(),
                command,
                as_mail_user: false,
                log: self.dir.join("start.log"),
            },
        )?;
        let ports = [self.imap, self.lmtp];
        lab.wait(&format!("{} listens", self.name), || {
            if !process.is_running() {
                bail!("Dovecot ended: {}", fs::read_to_string(self.dir.join("start.log"))?);
            }
            let open = |&port: &u16| TcpStream::connect(("127.0.0.1", port)).is_ok();
            Ok(if ports.iter().all(open) { Ok(()) } else { Err("connection refused".into()) })
        })?;
        self.process = Some(process);
        Ok(())
    }

    /// Stops it; what it wrote stays.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        if let Some(process) = self.process.take() {
            process.terminate()?;
        }
        Ok(())
    }

    /// What failures call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How its mailboxes lie on disk.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Its configuration file.
    pub fn config(&self) -> PathBuf {
        self.dir.join("etc/dovecot.conf")
    }

    /// Whether it takes clients and deliveries in.
    pub fn is_open(&self) -> bool {
        let open = |port: u16| TcpStream::connect(("127.0.0.1", port)).is_ok();
        open(self.imap) && open(self.lmtp)
    }

    /// How to call its doveadm, as a shell does.
    pub fn doveadm(&self) -> anyhow::Result<String> {
        let config = path_text(&self.config());
        Ok(match self.version {
            Version::V23 => format!("doveadm -c {config}"),
            Version::V24 => {
                let pid = self.process.as_ref().context("a running Dovecot")?.id();
                format!("nsenter --target {pid} --mount --root doveadm -c {config}")
            }
        })
    }

    /// Folder of all homes.
    pub fn mail_root(&self) -> PathBuf {
        self.dir.join("mail")
    }

    /// An account's home: Sieve scripts and the Maildir.
    pub fn home(&self, account: &str) -> PathBuf {
        self.mail_root().join(account)
    }

    /// An account's Maildir, which is its INBOX.
    pub fn maildir(&self, account: &str) -> PathBuf {
        self.home(account).join("Maildir")
    }

    /// The folder of a mailbox, by its IMAP name.
    pub fn mailbox_dir(&self, account: &str, mailbox: &str) -> PathBuf {
        let maildir = self.maildir(account);
        match self.layout {
            _ if mailbox == "INBOX" => maildir,
            Layout::MaildirPlusPlus => maildir.join(format!(".{mailbox}")),
            Layout::Fs => maildir.join(mailbox),
        }
    }

    /// An IMAP session.
    pub fn imap(&self, account: &str) -> anyhow::Result<Imap> {
        Imap::login(SocketAddr::from(([127, 0, 0, 1], self.imap)), account, PASSWORD)
            .with_context(|| format!("log in to {} as {account}", self.name))
    }

    /// Delivers a message by LMTP.
    pub fn deliver(&self, account: &str, message: &[u8]) -> anyhow::Result<()> {
        lmtp::deliver(self.lmtp_address(), account, message)
            .with_context(|| format!("deliver to {account} at {}", self.name))
    }

    /// Where it takes deliveries.
    pub fn lmtp_address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.lmtp))
    }

    /// Its log.
    pub fn log(&self) -> PathBuf {
        self.dir.join("dovecot.log")
    }

    /// Lines of its log that a healthy server never writes.
    pub fn log_problems(&self) -> anyhow::Result<Vec<String>> {
        let log = fs::read(self.log()).context("read Dovecot's log")?;
        let log = String::from_utf8_lossy(&log);
        Ok(log.lines().filter(|line| is_problem(line)).map(str::to_owned).collect())
    }

    /// Fails if there are such lines.
    pub fn expect_quiet_log(&self) -> anyhow::Result<()> {
        self.expect_quiet_log_but(&[])
    }

    /// Fails if there are such lines without any of these words in them.
    pub fn expect_quiet_log_but(&self, tolerated: &[&str]) -> anyhow::Result<()> {
        let mut problems = self.log_problems()?;
        problems.retain(|line| !tolerated.iter().any(|words| line.contains(words)));
        if !problems.is_empty() {
            bail!("the log of {} has problems:\n{}", self.name, problems.join("\n"));
        }
        Ok(())
    }

    fn configuration_23(&self, extra: &str) -> String {
        let layout = match self.layout {
            Layout::MaildirPlusPlus => "",
            Layout::Fs => ":LAYOUT=fs",
        };
        let home = format!("{}/%u", path_text(&self.mail_root()));
        format!(
            "{common}
{extra}
disable_plaintext_auth = no
mail_location = maildir:~/Maildir{layout}
mail_max_userip_connections = 500
mail_plugins = $mail_plugins acl quota
passdb {{
  driver = static
  args = password={PASSWORD}
}}
userdb {{
  driver = static
  args = uid={MAIL_USER} gid={MAIL_USER} home={home} allow_all_users=yes
}}
plugin {{
  sieve = file:~/sieve;active=~/.dovecot.sieve
  acl = vfile
  quota = maildir:User quota
  quota_rule = *:storage=1G
}}
protocol imap {{
  mail_plugins = $mail_plugins imap_acl imap_quota
}}
protocol lmtp {{
  mail_plugins = $mail_plugins sieve
}}
",
            common = self.configuration_common(),
        )
    }

    fn configuration_24(&self, extra: &str) -> String {
        let layout = match self.layout {
            Layout::MaildirPlusPlus => "maildir++",
            Layout::Fs => "fs",
        };
        format!(
            "dovecot_config_version = 2.4.0
dovecot_storage_version = 2.4.0
{common}
{extra}
auth_allow_cleartext = yes
mail_driver = maildir
mail_path = ~/Maildir
mailbox_list_layout = {layout}
mail_max_userip_connections = 500
mail_plugins = acl quota
acl_driver = vfile
quota \"User quota\" {{
  driver = maildir
  storage_size = 1G
}}
passdb static {{
  password = {PASSWORD}
}}
userdb static {{
  allow_all_users = yes
  fields {{
    uid = {MAIL_USER}
    gid = {MAIL_USER}
    home = {root}/%{{user}}
  }}
}}
sieve_script personal {{
  path = ~/sieve
  active_path = ~/.dovecot.sieve
}}
protocol imap {{
  mail_plugins = acl quota imap_acl imap_quota
}}
protocol lmtp {{
  mail_plugins = acl quota sieve
}}
",
            common = self.configuration_common(),
            root = path_text(&self.mail_root()),
        )
    }

    /// What both versions spell alike.
    fn configuration_common(&self) -> String {
        let dir = path_text(&self.dir);
        let (imap, lmtp) = (self.imap, self.lmtp);
        let separator = self.layout.separator();
        format!(
            "base_dir = {dir}/run
state_dir = {dir}/state
log_path = {dir}/dovecot.log
info_log_path = {dir}/dovecot.log
protocols = imap lmtp
listen = 127.0.0.1
ssl = no
auth_mechanisms = plain
first_valid_uid = 1
mail_uid = {MAIL_USER}
mail_gid = {MAIL_USER}
default_client_limit = 3000
namespace inbox {{
  inbox = yes
  separator = {separator}
}}
service imap-login {{
  inet_listener imap {{
    port = {imap}
  }}
  inet_listener imaps {{
    port = 0
  }}
}}
service lmtp {{
  inet_listener lmtp {{
    port = {lmtp}
  }}
}}"
        )
    }
}

impl Server for Dovecot {
    fn name(&self) -> &str {
        &self.name
    }

    /// It lets everybody in, and whoever comes first gets an INBOX.
    fn add_account(&self, _account: &str, _is_master: bool) -> anyhow::Result<()> {
        Ok(())
    }

    /// `G` in the header of its uidlist.
    fn identity(&self, account: &str, mailbox: &str) -> anyhow::Result<String> {
        let path = self.mailbox_dir(account, mailbox).join("dovecot-uidlist");
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let mut words = text.lines().next().unwrap_or_default().split(' ');
        let id = words.find_map(|word| word.strip_prefix('G'));
        Ok(id.with_context(|| format!("no identity in {}", path.display()))?.to_owned())
    }

    fn serials_by_guid(&self, account: &str) -> anyhow::Result<BTreeMap<String, String>> {
        let mut serials = BTreeMap::new();
        for path in files::messages(&self.maildir(account))? {
            let octets = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
            let serial = corpus::serial(&octets);
            let serial = serial.with_context(|| format!("no serial in {}", path.display()))?;
            serials.insert(files::sha1(&octets), serial);
        }
        Ok(serials)
    }

    fn shows_all(&self, account: &str, shown: usize) -> anyhow::Result<bool> {
        Ok(shown == files::messages(&self.maildir(account))?.len())
    }

    fn imap(&self, account: &str) -> anyhow::Result<Imap> {
        Self::imap(self, account)
    }

    fn deliver(&self, account: &str, message: &[u8]) -> anyhow::Result<()> {
        Self::deliver(self, account, message)
    }

    fn lmtp_address(&self) -> SocketAddr {
        Self::lmtp_address(self)
    }

    fn separator(&self) -> char {
        self.layout.separator()
    }

    fn is_open(&self) -> bool {
        Self::is_open(self)
    }

    fn hook(&self) -> anyhow::Result<Hook> {
        Hook::dovecot(&self.doveadm()?)
    }

    fn store_config(&self) -> String {
        daemon::maildir_store(self)
    }

    fn has_inbox(&self, account: &str) -> bool {
        self.maildir(account).join("cur").is_dir()
    }

    /// Files, by their path below the home.
    fn beside_messages(&self, account: &str) -> anyhow::Result<BTreeMap<String, String>> {
        let home = self.home(account);
        let mut found = BTreeMap::new();
        if !home.exists() {
            return Ok(found);
        }
        for path in files::walk(&home)? {
            let below = path.strip_prefix(&home).context("a path below the home")?;
            let below = below.to_string_lossy().into_owned();
            let is_script = below.starts_with("sieve/")
                && path.extension().is_some_and(|extension| extension == "sieve");
            let is_rights = path.file_name().is_some_and(|name| name == "dovecot-acl");
            if below == ".dovecot.sieve" {
                let target = fs::read_link(&path).with_context(|| format!("read {below}"))?;
                found.insert(below, target.to_string_lossy().into_owned());
            } else if (is_script || is_rights) && path.is_file() {
                let content = fs::read(&path).with_context(|| format!("read {below}"))?;
                found.insert(below, content.escape_ascii().to_string());
            }
        }
        Ok(found)
    }

    fn edit_script(&self, account: &str, random: &mut Random) -> anyhow::Result<String> {
        let home = self.home(account);
        let name = format!("s{}", random.below(3));
        let path = home.join(format!("sieve/{name}.sieve"));
        files::make_mail_dir(&home.join("sieve"))?;
        let active = home.join(".dovecot.sieve");
        if path.exists() && random.once_in(3) {
            files::link_mail(&format!("sieve/{name}.sieve"), &active)?;
            return Ok(format!("{name} is active"));
        }
        if random.once_in(4) && !active.exists() {
            let _ = fs::remove_file(&path);
            return Ok(format!("{name} is gone"));
        }
        files::write_mail(&path, format!("# {}\nkeep;\n", random.draw()))?;
        Ok(format!("{name} is written"))
    }

    fn stop(&mut self) -> anyhow::Result<()> {
        Self::stop(self)
    }

    fn resume(&mut self, lab: &Lab) -> anyhow::Result<()> {
        Self::resume(self, lab)
    }
}

/// Whether a log line tells of trouble. Not trouble: a server that is told to stop says so as a
/// warning, and its workers count the sessions that ended with it; on a busy machine its own
/// processes wait for each other; a message that was moved away and back has its old name again,
/// which Dovecot lists twice, and says so, until it writes the list anew.
fn is_problem(line: &str) -> bool {
    const TROUBLE: [&str; 4] = ["Error: ", "Warning: ", "Panic: ", "Fatal: "];
    const ROUTINE: [&str; 6] = [
        "Warning: Killed with signal 15",
        "Server shutting down",
        "stats-writer",
        // It was told to stop while it was still starting.
        "Error reading configuration",
        "dovecot-uidlist: Duplicate file entry at line",
        // What a session says that has a mailbox open while it is deleted and made again, also
        // where nobody but two of Dovecot's own clients work (tried with nothing of ours running).
        "duplicate transaction log sequence",
    ];
    TROUBLE.iter().any(|word| line.contains(word))
        && !ROUTINE.iter().any(|word| line.contains(word))
}

fn path_text(path: &Path) -> String {
    path.display().to_string()
}
