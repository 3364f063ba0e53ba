//! `cargo xtask bench`: Mailtwin beside the tools it is compared with, in one run, in one table.

mod arrivals;
mod check;
mod copy;
mod cyrus;
mod daemons;
mod events;
mod image;
mod live;
mod measure;
mod memory;
pub(crate) mod report;
mod switch;
mod tree;

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};
use mailtwin_disk::clock::{Clock, SystemClock};

use image::Image;
use report::talk;
use tree::Samples;

/// Arguments of `cargo xtask bench`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Measures only this; may be given more than once.
    #[arg(long, value_name = "NAME")]
    only: Vec<Suite>,

    /// How often each thing is measured; the table shows medians.
    #[arg(long, default_value_t = 3)]
    runs: usize,

    /// Where the image with all trees is made; needs about 10 GB, and everybody must be able to
    /// enter it.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// Folder of .eml files that all messages are made from [default: the demo's sample mail].
    #[arg(long, value_name = "DIR")]
    corpus: Option<PathBuf>,

    /// Writes the table to this file, too.
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,

    /// Measures only the tools that we compare with.
    #[arg(long)]
    peers_only: bool,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Suite {
    /// Initial copy and no-change pass.
    Copy,
    /// Deliveries into a live pair, as fast as they go.
    Burst,
    /// Deliveries into a live pair, 50 a second.
    Steady,
    /// Checking a quiet pair at every level.
    Check,
    /// Peak memory after a check of a million messages; wants 9 GB and a quarter of an hour.
    CheckMemory,
    /// Peak memory with few and many messages, and idling.
    Memory,
    /// First copy, no-change pass and deliveries between two Cyruses, beside `sync_client`.
    Cyrus,
    /// Moving the master's role, with and without messages that are not replicated yet.
    Switch,
}

/// What all measurements share.
#[derive(Debug)]
struct Bench {
    clock: Arc<dyn Clock>,
    image: Image,
    samples: Samples,
    /// Folder of Mailtwin's programs, which everybody can enter.
    binaries: PathBuf,
    runs: usize,
    peers_only: bool,
    /// Takes what the measured programs say.
    log: PathBuf,
}

/// Measures what `options` ask for.
pub(crate) fn run(options: &Options) -> Result<()> {
    ensure!(options.runs > 0, "--runs 0 measures nothing");
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let sample = workspace.join("ops/replctl/sample");
    let samples = Samples::read(options.corpus.as_ref().unwrap_or(&sample))?;
    if !options.peers_only {
        build_binaries(&workspace)?;
    }
    let dir = options.dir.clone().unwrap_or_else(|| std::env::temp_dir().join("mailtwin-bench"));
    fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    let image = Image::make(&dir)?;
    let binaries = image.path().join("bin");
    if !options.peers_only {
        copy_binaries(&binaries)?;
    }
    let bench = Bench {
        clock: SystemClock::shared(),
        image,
        samples,
        binaries,
        runs: options.runs,
        peers_only: options.peers_only,
        log: dir.join("bench.log"),
    };

    let mut rows = Vec::new();
    for suite in Suite::value_variants() {
        if !options.only.is_empty() && !options.only.contains(suite) {
            continue;
        }
        // What was measured is written at once: a later failure must not cost it.
        rows.extend(suite.measure(&bench)?);
        if let Some(path) = &options.write {
            fs::File::create(path)
                .and_then(|mut file| file.write_all(report::page(&bench, &rows).as_bytes()))
                .with_context(|| format!("write {}", path.display()))?;
        }
    }
    report::print(&report::page(&bench, &rows)).context("print the table")
}

impl Suite {
    fn measure(self, bench: &Bench) -> Result<Vec<report::Row>> {
        match self {
            Self::Copy => copy::measure(bench),
            Self::Burst => live::burst(bench),
            Self::Steady => live::steady(bench),
            Self::Cyrus => cyrus::measure(bench),
            Self::Check | Self::CheckMemory | Self::Memory | Self::Switch if bench.peers_only => {
                Ok(Vec::new())
            }
            Self::Check => check::measure(bench),
            Self::CheckMemory => check::memory(bench),
            Self::Memory => memory::measure(bench),
            Self::Switch => switch::measure(bench),
        }
    }
}

const PROGRAMS: [&str; 3] = ["mailtwin-agent", "mailtwin-replica", "replctl"];

/// The mail user may be kept out of the checkout.
fn copy_binaries(to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("create {}", to.display()))?;
    let own = std::env::current_exe()?;
    let built = own.parent().context("find the release binaries")?;
    for program in PROGRAMS {
        fs::copy(built.join(program), to.join(program))
            .with_context(|| format!("copy {program} to {}", to.display()))?;
    }
    Ok(())
}

fn build_binaries(workspace: &Path) -> Result<()> {
    talk("building the release binaries");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--release"])
        .args(PROGRAMS.iter().flat_map(|program| ["-p", program]))
        .current_dir(workspace)
        .status()
        .context("start cargo")?;
    ensure!(status.success(), "building the release binaries ended with {status}");
    Ok(())
}
