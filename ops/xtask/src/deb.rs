//! Builds the Debian packages from programs that are built already: files into a tree, `dpkg-deb` over
//! it. Man pages and completions come from the command lines' own definitions.

use std::{
    ffi::OsStr,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};
use clap::{Args, CommandFactory as _};
use clap_complete::{Shell, generate_to};
use mailtwin_tests::files;

use crate::bench::report::talk;

#[path = "../../../agent/src/args.rs"]
mod agent;
#[path = "../../replctl/src/args/mod.rs"]
mod replctl;
#[path = "../../../replica/src/args.rs"]
mod replica;

/// What to build from, and where to.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Folder of the built programs; `target/release` if absent.
    #[arg(long, value_name = "DIR")]
    built: Option<PathBuf>,
    /// Where the packages go.
    #[arg(long, value_name = "DIR", default_value = "target/deb")]
    out: PathBuf,
    /// Version of the packages; the workspace's if absent.
    #[arg(long)]
    version: Option<String>,
}

/// One package.
struct Package {
    name: &'static str,
    command: clap::Command,
    depends: &'static str,
    summary: &'static str,
    /// Extended description, a line each.
    about: &'static [&'static str],
    files: Vec<(String, String, u32)>,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let built = options.built.clone().unwrap_or_else(|| root.join("target/release"));
    let version = options.version.as_deref().unwrap_or(env!("CARGO_PKG_VERSION"));
    fs::create_dir_all(&options.out).with_context(|| format!("make {}", options.out.display()))?;
    for package in packages(&root)? {
        let stage = tempfile::tempdir().context("make a folder for the package")?;
        let out = build(&package, &root, &built, version, stage.path(), &options.out)
            .with_context(|| package.name)?;
        talk(&out.display().to_string());
    }
    Ok(())
}

fn packages(root: &Path) -> anyhow::Result<[Package; 3]> {
    let units = |names: &[&str]| -> Vec<_> {
        let place = |name: &&str| {
            (format!("systemd/{name}"), format!("usr/lib/systemd/system/{name}"), 0o644)
        };
        names.iter().map(place).collect()
    };
    let mut agent_files =
        units(&["mailtwin-agent.service", "mailtwin-check.service", "mailtwin-check.timer"]);
    for hook in ["cyrus-gate", "dovecot-gate", "incident-mail"] {
        let to = format!("usr/lib/mailtwin/hooks/{hook}");
        agent_files.push((format!("ops/hooks/{hook}"), to, 0o755));
    }
    Ok([
        Package {
            name: "replctl",
            command: replctl::Cli::command(),
            depends: "systemd, ",
            summary: "live, verified copies of a mail server: command line",
            about: &[
                "Mailtwin keeps live, verified copies of a mail server's mailboxes on other",
                "machines, and turns any of them into the master. This package has its command",
                "line, its configuration, and rules, runbooks and a dashboard for monitoring.",
            ],
            files: shared_files(root)?,
        },
        Package {
            name: "mailtwin-agent",
            command: agent::Arguments::command(),
            depends: "replctl (= VERSION), ",
            summary: "live, verified copies of a mail server: the master's side",
            about: &[
                "Notices what changes in the mail directories of a Dovecot, keeps a durable log",
                "of it, and replays it to the replicas.",
            ],
            files: agent_files,
        },
        Package {
            name: "mailtwin-replica",
            command: replica::Arguments::command(),
            depends: "replctl (= VERSION), ",
            summary: "live, verified copies of a mail server: the replicas' side",
            about: &[
                "Takes in what a master's agent replays, verifies every message by its SHA-1,",
                "and acknowledges what is safely on its disk.",
            ],
            files: units(&["mailtwin-replica.service", "mailtwin-replica.socket"]),
        },
    ])
}

/// What both daemons need: configuration, target, and what is read rather than run.
fn shared_files(root: &Path) -> anyhow::Result<Vec<(String, String, u32)>> {
    let fixed = [
        ("ops/packaging/mailtwin.toml", "etc/mailtwin/mailtwin.toml"),
        ("systemd/mailtwin.target", "usr/lib/systemd/system/mailtwin.target"),
        ("ops/packaging/mailtwin.sysusers", "usr/lib/sysusers.d/mailtwin.conf"),
        ("ops/packaging/mailtwin.tmpfiles", "usr/lib/tmpfiles.d/mailtwin.conf"),
    ];
    let mut files: Vec<_> =
        fixed.iter().map(|&(from, to)| (from.to_owned(), to.to_owned(), 0o644)).collect();
    for (dir, to) in [
        ("ops/prometheus", "usr/share/mailtwin/prometheus"),
        ("ops/grafana", "usr/share/mailtwin/grafana"),
        ("ops/runbooks", "usr/share/doc/replctl/ops/runbooks"),
        ("docs", "usr/share/doc/replctl/docs"),
    ] {
        let at = root.join(dir);
        for entry in fs::read_dir(&at).with_context(|| format!("list {}", at.display()))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.file_type()?.is_file() {
                files.push((format!("{dir}/{name}"), format!("{to}/{name}"), 0o644));
            }
        }
    }
    Ok(files)
}

fn build(
    package: &Package,
    root: &Path,
    built: &Path,
    version: &str,
    stage: &Path,
    out: &Path,
) -> anyhow::Result<PathBuf> {
    let Package { name, .. } = package;
    let program = built.join(name);
    let tree = stage.join("tree");
    place(&program, &tree.join("usr/bin").join(name), 0o755)?;
    // Debug information is for those who build it.
    tool("strip", ["--strip-unneeded".as_ref(), tree.join("usr/bin").join(name).as_os_str()])?;
    for (from, to, mode) in &package.files {
        place(&root.join(from), &tree.join(to), *mode)?;
    }
    let doc = tree.join("usr/share/doc").join(name);
    write(&doc.join("copyright"), &copyright(root)?)?;
    place(&root.join("CHANGELOG.md"), &doc.join("changelog"), 0o644)?;
    tool("gzip", ["-9n".as_ref(), doc.join("changelog").as_os_str()])?;
    manual(package, &tree)?;
    control(package, root, version, &tree)?;
    tool("chmod", ["-R", "u=rwX,go=rX"].map(OsStr::new).into_iter().chain([tree.as_os_str()]))?;
    let architecture = tool("dpkg", ["--print-architecture".as_ref()])?;
    let file = out.join(format!("{name}_{version}_{}.deb", architecture.trim()));
    let words = ["--root-owner-group", "--build", "-Zgzip"].map(OsStr::new);
    tool("dpkg-deb", words.into_iter().chain([tree.as_os_str(), file.as_os_str()]))?;
    Ok(file)
}

/// Man pages, one for each verb, and completions.
fn manual(package: &Package, tree: &Path) -> anyhow::Result<()> {
    let man = tree.join("usr/share/man/man8");
    fs::create_dir_all(&man)?;
    let command = package.command.clone().disable_help_subcommand(true);
    let mut all = vec![command];
    while let Some(mut command) = all.pop() {
        command.build();
        let name = command.get_display_name().unwrap_or(package.name).to_owned();
        let mut page = Vec::new();
        clap_mangen::Man::new(command.clone()).section("8").render(&mut page)?;
        let path = man.join(format!("{name}.8"));
        write(&path, &String::from_utf8(page).context("a man page is text")?)?;
        tool("gzip", ["-9n".as_ref(), path.as_os_str()])?;
        all.extend(command.get_subcommands().cloned());
    }
    for (shell, dir) in [
        (Shell::Bash, "usr/share/bash-completion/completions"),
        (Shell::Zsh, "usr/share/zsh/vendor-completions"),
        (Shell::Fish, "usr/share/fish/vendor_completions.d"),
    ] {
        let dir = tree.join(dir);
        fs::create_dir_all(&dir)?;
        let path = generate_to(shell, &mut package.command.clone(), package.name, &dir)?;
        if shell == Shell::Bash {
            // Debian's loader looks for the name of the program alone.
            fs::rename(path, dir.join(package.name))?;
        }
    }
    Ok(())
}

/// What `dpkg` wants to know, and the scripts that it runs.
fn control(package: &Package, root: &Path, version: &str, tree: &Path) -> anyhow::Result<()> {
    let Package { name, summary, .. } = package;
    let debian = tree.join("DEBIAN");
    let architecture = tool("dpkg", ["--print-architecture".as_ref()])?;
    let libc = newest_libc(&tree.join("usr/bin").join(name))?;
    let depends = package.depends.replace("VERSION", version);
    let about = format!(" {}\n", package.about.join("\n "));
    let text = format!(
        "Package: {name}\nVersion: {version}\nArchitecture: {}\nSection: mail\nPriority: optional\n\
         Maintainer: Mailtwin developers <root@localhost>\n\
         Depends: {depends}libc6 (>= {libc}), libgcc-s1\n\
         Description: {summary}\n{about}",
        architecture.trim()
    );
    write(&debian.join("control"), &text)?;
    let conffiles: Vec<String> = package
        .files
        .iter()
        .filter(|(_, to, _)| to.starts_with("etc/"))
        .map(|(_, to, _)| format!("/{to}\n"))
        .collect();
    if !conffiles.is_empty() {
        write(&debian.join("conffiles"), &conffiles.concat())?;
    }
    for script in ["postinst", "prerm", "postrm"] {
        let from = root.join("ops/packaging/deb").join(format!("{name}.{script}"));
        if from.exists() {
            place(&from, &debian.join(script), 0o755)?;
        }
    }
    Ok(())
}

/// The newest version of the C library that a program asks for.
fn newest_libc(program: &Path) -> anyhow::Result<String> {
    let symbols = tool("objdump", ["-T".as_ref(), program.as_os_str()])?;
    let versions = symbols.split("GLIBC_").skip(1).filter_map(|rest| {
        let version = rest.split(|c: char| !c.is_ascii_digit() && c != '.').next()?;
        let numbers: Vec<u32> = version.split('.').filter_map(|part| part.parse().ok()).collect();
        Some((numbers, version))
    });
    let newest = versions.max().context("the program uses the C library")?;
    Ok(newest.1.to_owned())
}

fn copyright(root: &Path) -> anyhow::Result<String> {
    let mut text = "Mailtwin is licensed under MIT or Apache-2.0, as you like.\n".to_owned();
    for license in ["LICENSE-MIT", "LICENSE-APACHE"] {
        let license_text = fs::read_to_string(root.join(license))?;
        text = format!("{text}\n---- {license}\n\n{license_text}");
    }
    Ok(text)
}

fn place(from: &Path, to: &Path, mode: u32) -> anyhow::Result<()> {
    let octets = fs::read(from).with_context(|| format!("read {}", from.display()))?;
    make(to, &octets, mode)
}

fn write(to: &Path, text: &str) -> anyhow::Result<()> {
    make(to, text.as_bytes(), 0o644)
}

fn make(to: &Path, octets: &[u8], mode: u32) -> anyhow::Result<()> {
    if let Some(dir) = to.parent() {
        fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    }
    files::write(to, octets)?;
    fs::set_permissions(to, fs::Permissions::from_mode(mode))
        .with_context(|| format!("chmod {}", to.display()))
}

fn tool<'a>(program: &str, words: impl IntoIterator<Item = &'a OsStr>) -> anyhow::Result<String> {
    let output =
        Command::new(program).args(words).output().with_context(|| format!("run {program}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program}: {said}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
