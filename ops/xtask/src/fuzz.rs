//! `cargo xtask fuzz`: looks for inputs that break a parser, with coverage in hand (libFuzzer).
//!
//! It builds `tests/fuzz/guided` with the flags that cargo-fuzz would use, on stable Rust and without
//! address sanitizer: there is no unsafe code of ours to watch. Needs a C++ compiler.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use crate::bench::report::talk;

/// Coverage, comparisons, and what makes the targets public.
const FLAGS: [&str; 7] = [
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
];

/// Octets of a corpus in the repository.
const CORPUS_OCTETS_MAX: u64 = 16 << 10;
/// Inputs of a corpus in the repository.
const CORPUS_INPUTS_MAX: usize = 100;

/// What to try.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Targets, as in `tests/fuzz/guided/fuzz_targets`; all of them if none is named.
    targets: Vec<String>,
    /// How long each.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// How many beside each other.
    #[arg(long, default_value_t = 1)]
    at_once: usize,
    /// Memory a target may take, in MiB.
    #[arg(long, default_value_t = 512)]
    memory: u64,
    /// Puts what covers more into the repository's corpora, the shortest first.
    #[arg(long)]
    keep: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let guided = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/guided");
    let guided = guided.canonicalize().context("find tests/fuzz/guided")?;
    let root = guided.join("../../..").canonicalize()?;
    let place = root.join("target/fuzz");
    let known = targets(&guided)?;
    let wanted = if options.targets.is_empty() { &known } else { &options.targets };
    for target in wanted {
        ensure!(known.contains(target), "no target {target}: there are {}", known.join(" "));
    }
    build(&guided, &place)?;
    let broken = attempt_all(wanted, options, |target| Paths::of(&root, &place, target))?;
    if broken.is_empty() {
        return Ok(());
    }
    bail!("broken: {}; the inputs are in {}/artifacts", broken.join(" "), place.display())
}

/// Names of those that broke.
fn attempt_all(
    targets: &[String],
    options: &Options,
    paths: impl Fn(&str) -> Result<Paths> + Sync,
) -> Result<Vec<String>> {
    let next = AtomicUsize::new(0);
    let work = || -> Result<Vec<String>> {
        let mut broken = Vec::new();
        while let Some(target) = targets.get(next.fetch_add(1, Ordering::Relaxed)) {
            let paths = paths(target)?;
            if !attempt(target, &paths, options)? {
                broken.push(target.clone());
            } else if options.keep {
                keep(&paths)?;
            }
        }
        Ok(broken)
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..options.at_once.max(1)).map(|_| scope.spawn(work)).collect();
        let mut broken = Vec::new();
        for worker in workers {
            broken.extend(worker.join().map_err(|_| anyhow!("a thread panicked"))??);
        }
        Ok(broken)
    })
}

fn targets(guided: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(guided.join("fuzz_targets"))? {
        let path = entry?.path();
        names.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
    }
    names.sort();
    Ok(names)
}

fn build(guided: &Path, place: &Path) -> Result<()> {
    let status = Command::new(env!("CARGO"))
        // Not `--locked`: that lock file knows of a new dependency only when this is run.
        .args(["build", "--release", "--bins", "--target-dir"])
        .arg(place.join("build"))
        // With a target of its own, build scripts are not built with these flags.
        .args(["--target", &triple()])
        .current_dir(guided)
        .env("RUSTFLAGS", FLAGS.join(" "))
        .status()
        .context("run cargo build")?;
    ensure!(status.success(), "cargo build: {status}");
    Ok(())
}

fn triple() -> String {
    format!("{}-unknown-linux-gnu", std::env::consts::ARCH)
}

struct Paths {
    program: PathBuf,
    /// In the repository.
    corpus: PathBuf,
    /// What was found beyond, kept between runs.
    found: PathBuf,
    artifacts: PathBuf,
}

impl Paths {
    fn of(root: &Path, place: &Path, target: &str) -> Result<Self> {
        let built = place.join("build").join(triple()).join("release");
        let paths = Self {
            program: built.join(target),
            corpus: root.join("tests/fuzz/corpus").join(target),
            found: place.join("corpus").join(target),
            artifacts: place.join("artifacts").join(target),
        };
        fs::create_dir_all(&paths.found)?;
        fs::create_dir_all(&paths.artifacts)?;
        Ok(paths)
    }

    fn program(&self) -> Command {
        let mut command = Command::new(&self.program);
        // Targets that need a directory have it in memory.
        command.env("TMPDIR", "/dev/shm").env("RUST_BACKTRACE", "0");
        command
    }
}

/// Whether the target holds.
fn attempt(target: &str, paths: &Paths, options: &Options) -> Result<bool> {
    let output = paths
        .program()
        .args([format!("-max_total_time={}", options.seconds)])
        .args([format!("-rss_limit_mb={}", options.memory)])
        .args(["-timeout=10", "-max_len=4096", "-print_final_stats=1"])
        .arg(format!("-artifact_prefix={}/", paths.artifacts.display()))
        .args([&paths.found, &paths.corpus])
        .output()
        .with_context(|| format!("run {}", paths.program.display()))?;
    let log = String::from_utf8_lossy(&output.stderr);
    let stat = |name: &str| {
        let line = log.lines().find(|line| line.starts_with(&format!("stat::{name}:")));
        line.and_then(|line| line.split_whitespace().last()).unwrap_or("?").to_owned()
    };
    let coverage = log.lines().rev().find_map(|line| line.split_once("cov: ")?.1.split(' ').next());
    talk(&format!(
        "{target}: {} executions in {} s, {} edges, at most {} MiB: {}",
        stat("number_of_executed_units"),
        options.seconds,
        coverage.unwrap_or("?"),
        stat("peak_rss_mb"),
        if output.status.success() { "nothing found" } else { "BROKEN" },
    ));
    if !output.status.success() {
        let lines: Vec<&str> = log.lines().filter(|line| !line.starts_with('#')).collect();
        lines.iter().rev().take(25).rev().for_each(|line| talk(line));
    }
    Ok(output.status.success())
}

/// Merges what was found into the repository's corpus, as far as it stays small.
fn keep(paths: &Paths) -> Result<()> {
    let fresh = paths.found.with_extension("merged");
    fs::create_dir_all(&fresh)?;
    let merged = paths
        .program()
        .args(["-merge=1", "-max_len=1024", "-timeout=10"])
        .args([&fresh, &paths.corpus, &paths.found])
        .output()?;
    ensure!(merged.status.success(), "merge: {}", String::from_utf8_lossy(&merged.stderr));
    let files = |dir: &Path| -> Result<Vec<(u64, PathBuf)>> {
        let entries = fs::read_dir(dir)?;
        let sized = |entry: fs::DirEntry| Ok((entry.metadata()?.len(), entry.path()));
        entries.map(|entry| sized(entry?)).collect()
    };
    let held = files(&paths.corpus)?;
    let (mut octets, mut inputs) = (held.iter().map(|(octets, _)| octets).sum::<u64>(), held.len());
    let mut new = files(&fresh)?;
    new.sort();
    for (length, path) in new {
        let name = path.file_name().context("a file has a name")?;
        let known = paths.corpus.join(name);
        let has_room = octets + length <= CORPUS_OCTETS_MAX && inputs < CORPUS_INPUTS_MAX;
        if has_room && !known.exists() {
            octets += length;
            inputs += 1;
            fs::copy(&path, &known)?;
        }
    }
    Ok(fs::remove_dir_all(&fresh)?)
}
