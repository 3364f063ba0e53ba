//! A throw-away Cyrus 3.6 on loopback, from Debian's packages unpacked into a folder: installed, it
//! would push Dovecot off the machine. It stops when dropped.
//!
//! It runs in mount and process namespaces of its own: there its user has an entry in the list of
//! users, and none of its many processes outlives it. The first process there is a shell: a signal
//! that comes with a parent's death does not reach who has changed its user, as Cyrus's master does.

mod own;
mod processes;
mod server;

use std::{
    ffi::OsString,
    fs,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex},
};

use anyhow::{Context as _, bail, ensure};
use mailtwin_disk::clock::Clock;

pub use own::Held;

use crate::{
    dovecot::PASSWORD,
    files,
    imap::Imap,
    lab::{self, Lab, MAIL_USER},
    lmtp, managesieve,
    process::{Launch, Process},
};

/// The admin, as whom our daemons log in.
pub const ADMIN: &str = "repl";

/// Who logs in to find out whether clients may; without mail.
const PROBE: &str = "probe";

/// Name of our channel of the sync log.
const CHANNEL: &str = "mailtwin";

/// Where the unpacked packages are kept.
const CACHE: &str = "/var/cache/mailtwin-tests";

/// What is unpacked: the server, and libraries that nothing else here needs.
const PACKAGES: [&str; 9] = [
    "cyrus-imapd",
    "cyrus-common",
    "cyrus-replication",
    "sasl2-bin",
    "libdb5.3",
    "libical3",
    "libpcre3",
    "libxapian30",
    "libsasl2-modules",
];

/// A Cyrus.
#[derive(Debug)]
pub struct Cyrus {
    name: String,
    dir: PathBuf,
    root: PathBuf,
    imap: u16,
    lmtp: u16,
    csync: u16,
    sieve: u16,
    /// `imapd` once more, for options that its clients are not to have: `strict_NAME` in imapd.conf.
    strict: u16,
    clock: Arc<dyn Clock>,
    process: Option<Process>,
}

impl Cyrus {
    /// Starts one without users.
    pub fn start(lab: &Lab, name: &str) -> anyhow::Result<Self> {
        Self::with_extra(lab, name, "")
    }

    /// Starts one with lines of the caller's in imapd.conf.
    pub fn with_extra(lab: &Lab, name: &str, extra: &str) -> anyhow::Result<Self> {
        let dir = lab.mail_dir(name)?;
        for part in ["conf", "conf/sync", "spool", "sieve"] {
            lab.mail_dir(&format!("{name}/{part}"))?;
        }
        let (imap, lmtp) = (lab.port()?, lab.port()?);
        let (csync, sieve, strict) = (lab.port()?, lab.port()?, lab.port()?);
        let (name, root) = (name.to_owned(), unpacked()?);
        let clock = lab.shared_clock();
        let mut cyrus =
            Self { name, dir, root, imap, lmtp, csync, sieve, strict, clock, process: None };
        cyrus.configure(extra)?;
        cyrus.set_password(ADMIN)?;
        cyrus.set_password(PROBE)?;
        cyrus.resume(lab)?;
        Ok(cyrus)
    }

    fn configure(&self, extra: &str) -> anyhow::Result<()> {
        let dir = self.dir.display();
        let imapd = format!(
            "configdirectory: {dir}/conf\npartition-default: {dir}/spool\n\
             defaultpartition: default\nservername: cyrus.test\ncyrus_user: cyrus\n\
             cyrus_group: cyrus\nadmins: {ADMIN}\nsasl_pwcheck_method: auxprop\n\
             sasl_auxprop_plugin: sasldb\nsasl_sasldb_path: {dir}/sasldb2\n\
             sasl_mech_list: PLAIN\nallowplaintext: yes\nsieveusehomedir: no\n\
             sievedir: {dir}/sieve\nhashimapspool: yes\numask: 077\nfailedloginpause: 0s\n\
             sync_log: yes\nsync_log_channels: {CHANNEL}\n{extra}\n"
        );
        files::write(&self.dir.join("imapd.conf"), imapd)?;
        let bin = self.root.join("usr/lib/cyrus/bin");
        let bin = bin.display();
        let service = |name: &str, program: &str, port: u16| {
            let listen = format!("listen=\"127.0.0.1:{port}\" prefork=0");
            format!("  {name} cmd=\"{bin}/{program} -C {dir}/imapd.conf\" {listen}\n")
        };
        let services = [
            service("imap", "imapd", self.imap),
            service("strict", "imapd", self.strict),
            service("lmtp", "lmtpd -a", self.lmtp),
            service("csync", "sync_server", self.csync),
            service("sieve", "timsieved", self.sieve),
            format!(
                "  local cmd=\"{bin}/sync_server -C {dir}/imapd.conf\" listen=\"{dir}/csync\" \
                 prefork=0\n"
            ),
        ];
        let recover = format!("  recover cmd=\"{bin}/ctl_cyrusdb -C {dir}/imapd.conf -r\"\n");
        let services = services.concat();
        let cyrus = format!("START {{\n{recover}}}\nSERVICES {{\n{services}}}\nEVENTS {{\n}}\n");
        files::write(&self.dir.join("cyrus.conf"), cyrus)?;
        let user = format!("cyrus:x:{MAIL_USER}:{MAIL_USER}::/:/bin/false\n");
        files::write(&self.dir.join("passwd"), list_with("/etc/passwd", &user)?)?;
        let group = format!("cyrus:x:{MAIL_USER}:\n");
        files::write(&self.dir.join("group"), list_with("/etc/group", &group)?)?;
        files::write_mail(&self.dir.join("password"), PASSWORD)
    }

    /// Starts it again after [`Cyrus::kill`].
    pub fn resume(&mut self, lab: &Lab) -> anyhow::Result<()> {
        let dir = self.dir.display();
        let script = format!(
            "mount --bind {dir}/passwd /etc/passwd && mount --bind {dir}/group /etc/group && \
             cd / && {{ {root}/usr/lib/cyrus/bin/master -C {dir}/imapd.conf -M {dir}/cyrus.conf \
             -p {dir}/master.pid & wait $!; }}",
            root = self.root.display(),
        );
        let words = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];
        let mut command: Vec<OsString> = vec!["env".into(), self.libraries().into()];
        command.extend(words.map(OsString::from));
        command.extend(["--propagation", "private", "sh", "-c", &script].map(OsString::from));
        let _ = fs::remove_file(self.dir.join("master.pid"));
        let log = self.dir.join("start.log");
        let launch =
            Launch { name: self.name.clone(), command, as_mail_user: false, log: log.clone() };
        let mut process = Process::start(lab, &launch)?;
        let ports = [self.imap, self.lmtp, self.csync];
        lab.wait(&format!("{} listens", self.name), || {
            if !process.is_running() {
                bail!("Cyrus ended: {}", fs::read_to_string(&log)?);
            }
            let open = |&port: &u16| TcpStream::connect(("127.0.0.1", port)).is_ok();
            Ok(if ports.iter().all(open) { Ok(()) } else { Err("connection refused".into()) })
        })?;
        // What is started in its namespaces from outside must know where they are.
        let shell = process.id();
        let children = format!("/proc/{shell}/task/{shell}/children");
        let master = fs::read_to_string(&children).with_context(|| format!("read {children}"))?;
        files::write(&self.namespace(), master.trim())?;
        self.process = Some(process);
        Ok(())
    }

    /// kill -9 of all of its processes.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.process.take().context("a running Cyrus")?.kill()?;
        // The others die with the first of their namespace, a moment later, and hold ports until then.
        let first = fs::read_to_string(self.namespace())?;
        // It is dead, though perhaps not buried, when all others are.
        let stat = Path::new("/proc").join(first).join("stat");
        lab::wait(&*self.clock, &format!("{} is gone", self.name), || {
            let stat = fs::read_to_string(&stat).unwrap_or_default();
            let lives =
                stat.rsplit(") ").next().is_some_and(|state| !state.starts_with(['Z', 'X']));
            Ok(if lives && !stat.is_empty() { Err(stat) } else { Ok(()) })
        })
    }

    /// The file with the number of the first process of its namespaces, as it is outside of them.
    fn namespace(&self) -> PathBuf {
        self.dir.join("namespace.pid")
    }

    /// What failures call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where `imapd` listens.
    pub fn imap_address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.imap))
    }

    /// Where `sync_server` listens.
    pub fn csync_address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.csync))
    }

    /// Directory of the default partition.
    pub fn spool(&self) -> PathBuf {
        self.dir.join("spool")
    }

    /// The file with which its admins tell users that it is not to be used.
    pub fn shutdown_file(&self) -> PathBuf {
        self.dir.join("conf/msg/shutdown")
    }

    /// Directory of our channel of the sync log.
    pub fn channel(&self) -> PathBuf {
        self.dir.join("conf/sync").join(CHANNEL)
    }

    /// The sections `[store]` and `[cyrus]` of a node beside it.
    pub fn store_config(&self) -> String {
        let dir = self.dir.display();
        format!(
            "[store]\nengine = \"cyrus\"\nroot = \"{dir}/spool\"\n\n[cyrus]\n\
             imap = \"{}\"\ncsync = \"unix:{dir}/csync\"\nuser = \"{ADMIN}\"\n\
             password_file = \"{dir}/password\"\nchannel = \"{}\"\n",
            self.imap_address(),
            self.channel().display(),
        )
    }

    /// The same by way of the strict ports, which show the certificate of this file.
    pub fn strict_config(&self, certificate: &Path) -> String {
        let dir = self.dir.display();
        format!(
            "[store]\nengine = \"cyrus\"\nroot = \"{dir}/spool\"\n\n[cyrus]\n\
             imap = \"127.0.0.1:{}\"\ncsync = \"127.0.0.1:{}\"\nuser = \"{ADMIN}\"\n\
             password_file = \"{dir}/password\"\nchannel = \"{}\"\ncertificate = \"{}\"\n",
            self.strict,
            self.csync,
            self.channel().display(),
            certificate.display(),
        )
    }

    /// Lets a user log in.
    pub fn set_password(&self, user: &str) -> anyhow::Result<()> {
        let mut child = Command::new("env")
            .arg(self.libraries())
            .arg(self.root.join("usr/sbin/saslpasswd2"))
            .args(["-p", "-c", "-u", "cyrus.test", "-f"])
            .arg(self.dir.join("sasldb2"))
            .arg(user)
            .stdin(Stdio::piped())
            .spawn()
            .context("run saslpasswd2")?;
        let mut stdin = child.stdin.take().context("its standard input")?;
        std::io::Write::write_all(&mut stdin, PASSWORD.as_bytes())?;
        drop(stdin);
        ensure!(child.wait()?.success(), "saslpasswd2 {user}");
        files::give_to_mail_user(&self.dir.join("sasldb2"))
    }

    /// Makes a user with an INBOX.
    pub fn create_user(&self, user: &str) -> anyhow::Result<()> {
        self.set_password(user)?;
        let mut admin = self.imap(ADMIN)?;
        admin.create(format!("user/{user}")).with_context(|| format!("create {user}"))
    }

    /// Logs in as a user.
    pub fn imap(&self, user: &str) -> anyhow::Result<Imap> {
        Imap::login(self.imap_address(), user, PASSWORD)
            .with_context(|| format!("log in to {} as {user}", self.name))
    }

    /// Logs a user in to store Sieve scripts.
    pub fn sieve(&self, user: &str) -> anyhow::Result<managesieve::Client> {
        let address = SocketAddr::from(([127, 0, 0, 1], self.sieve));
        managesieve::Client::open(address, user)
            .with_context(|| format!("store scripts of {user} on {}", self.name))
    }

    /// Delivers a message by LMTP.
    pub fn deliver(&self, user: &str, message: &[u8]) -> anyhow::Result<()> {
        let lmtp = SocketAddr::from(([127, 0, 0, 1], self.lmtp));
        lmtp::deliver(lmtp, user, message)
            .with_context(|| format!("deliver to {user} on {}", self.name))
    }

    fn libraries(&self) -> String {
        let root = self.root.display();
        format!("LD_LIBRARY_PATH={root}/usr/lib/x86_64-linux-gnu:{root}/lib/x86_64-linux-gnu")
    }
}

impl Drop for Cyrus {
    fn drop(&mut self) {
        // What holds its namespaces heeds no other signal.
        if let Some(process) = self.process.take() {
            let _ = process.kill();
        }
    }
}

/// The machine's list with another line for `cyrus`.
fn list_with(path: &str, line: &str) -> anyhow::Result<String> {
    let list = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    let others = list.split_inclusive('\n').filter(|line| !line.starts_with("cyrus:"));
    Ok(others.chain([line]).collect())
}

/// The folder with the unpacked packages; they are fetched when it is not there yet.
fn unpacked() -> anyhow::Result<PathBuf> {
    static MAKING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = MAKING.lock();
    let root = Path::new(CACHE).join("cyrus36");
    if root.join("usr/lib/cyrus/bin/master").exists() {
        return Ok(root);
    }
    fs::create_dir_all(CACHE).with_context(|| format!("make {CACHE}"))?;
    let part = tempfile::Builder::new().prefix("cyrus36-").tempdir_in(CACHE)?;
    let (debs, tree) = (part.path().join("debs"), part.path().join("tree"));
    fs::create_dir(&debs)?;
    let apt = |words: &[&str]| {
        let mut apt = Command::new("apt-get");
        apt.arg("--quiet").args(words).current_dir(&debs);
        run(apt)
    };
    let download = [&["download"][..], &PACKAGES].concat();
    if apt(&download).is_err() {
        // The lists may never have been fetched, or name what has been replaced.
        apt(&["update"])?;
        apt(&download).context("fetch Debian's Cyrus")?;
    }
    for package in fs::read_dir(&debs)? {
        let mut unpack = Command::new("dpkg-deb");
        unpack.arg("--extract").arg(package?.path()).arg(&tree);
        run(unpack)?;
    }
    files::chmod(&tree, 0o755)?;
    match fs::rename(&tree, &root) {
        // Another test program was faster.
        Err(_) if root.join("usr/lib/cyrus/bin/master").exists() => {}
        renamed => renamed.with_context(|| format!("rename to {}", root.display()))?,
    }
    Ok(root)
}

fn run(mut command: Command) -> anyhow::Result<()> {
    let output = command.stdin(Stdio::null()).output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {errors}");
    Ok(())
}
