//! `replctl mirror`: one tree into another on this machine.

pub(crate) mod pair;
mod progress;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use mailtwin_agent::source::{self, Source};
use mailtwin_logic::link::Phase;
use mailtwin_store::{
    MailStore,
    maildir::{IdentityKind, Layout, MaildirOptions, UidBookkeeping},
};
use tokio::time::{Instant, interval_at};
use tokio_util::sync::CancellationToken;

use crate::{args, exit, output::Output, runtime};
use pair::{Pair, Places};

/// How long tasks may take to end.
const GRACE: Duration = Duration::from_secs(10);

/// Runs the verb.
pub(crate) fn run(args: &args::Mirror, output: &Output) -> anyhow::Result<u8> {
    let (src, dst) = trees(&args.src, &args.dst)?;
    let places = Places::beside(&dst)?;
    let stop = CancellationToken::new();
    let (source, copy) = options(args, &src, &dst, &places)?;
    if args.accept_new_source {
        let _ = std::fs::remove_file(&source.identity_record);
    }
    mailtwin_disk::dir::create(&dst, 0o755)?;
    runtime::run(&stop, async {
        let pair = Pair::start(&places, source, copy, &stop)?;
        let result = if args.once {
            once(&pair, &src, output, &stop).await
        } else {
            follow(&pair, output, &stop).await
        };
        if let Err(hanging) = pair.tasks.shutdown(GRACE).await {
            tracing::warn!(code = "ending-anyway", %hanging, "ending anyway");
        }
        result
    })
}

/// Both trees as absolute paths, neither inside the other.
fn trees(src: &Path, dst: &Path) -> anyhow::Result<(PathBuf, PathBuf)> {
    let real = src.canonicalize().with_context(|| format!("open {}", src.display()))?;
    if !real.is_dir() {
        bail!("{} is not a directory", src.display());
    }
    let dst = match dst.canonicalize() {
        Ok(dst) => dst,
        Err(_) => std::path::absolute(dst)?,
    };
    if dst.starts_with(&real) || real.starts_with(&dst) {
        bail!("{} and {} lie one inside the other", real.display(), dst.display());
    }
    Ok((real, dst))
}

fn options(
    args: &args::Mirror,
    src: &Path,
    dst: &Path,
    places: &Places,
) -> anyhow::Result<(MaildirOptions, MaildirOptions)> {
    let layout = match args.layout {
        args::Layout::MaildirPlusPlus => Layout::MaildirPlusPlus,
        args::Layout::Fs => Layout::Fs,
    };
    let graveyard = mailtwin_host::config::parse_duration(&args.graveyard)
        .with_context(|| format!("--graveyard {}", args.graveyard))?;
    let source = MaildirOptions {
        layout,
        identity: IdentityKind::Inode,
        work_dir: Some(places.state.join("source-work")),
        assigns_uids: true,
        uid_bookkeeping: if args.read_only_source {
            UidBookkeeping::ReadOnly
        } else {
            UidBookkeeping::Shared
        },
        ..MaildirOptions::new(&src.join("{path}"), &places.state.join("source.json"))
    };
    let copy = MaildirOptions {
        layout,
        identity: IdentityKind::Inode,
        work_dir: Some(places.state.join("work")),
        graveyard,
        ..MaildirOptions::new(&dst.join("{path}"), &places.state.join("copy.json"))
    };
    Ok((source, copy))
}

/// Ends when the copy is equal, or nothing more can be done about what differs.
async fn once(
    pair: &Pair,
    src: &Path,
    output: &Output,
    stop: &CancellationToken,
) -> anyhow::Result<u8> {
    let progress = progress::Progress::new(src, Arc::clone(&pair.clock));
    let mut news = pair.agent.news();
    let mut ticks = interval_at(Instant::now() + progress::EVERY, progress::EVERY);
    loop {
        let link = pair.agent.links().remove(0);
        match link.phase {
            Phase::InSync | Phase::Degraded => break,
            Phase::Fenced(epoch) => bail!("the copy belongs to a newer epoch, {epoch}"),
            Phase::Waiting if link.last_error.is_some() => {
                bail!("{}", link.last_error.unwrap_or_default());
            }
            Phase::Waiting
            | Phase::Connecting
            | Phase::Merging
            | Phase::Replaying
            | Phase::Paused => {}
        }
        tokio::select! {
            () = stop.cancelled() => bail!("interrupted; run the same command again to go on"),
            () = news.changed() => {}
            _ = ticks.tick() => progress.show(pair.agent.totals()),
        }
    }
    progress.finish(pair.agent.totals());
    report(pair, output, &progress)
}

fn report(pair: &Pair, output: &Output, progress: &progress::Progress) -> anyhow::Result<u8> {
    let link = pair.agent.links().remove(0);
    let (messages, sent, saved) = pair.agent.totals();
    let problems = pair.source.problems();
    output.mirror(&crate::output::MirrorReport {
        messages,
        octets: sent + saved,
        octets_sent: sent,
        seconds: progress.seconds(),
        set_aside: link.aside.iter().map(|a| (a.object.clone(), a.last.clone())).collect(),
        problems: problems.iter().map(|p| (p.place(), p.detail.clone())).collect(),
    })?;
    let fine = link.aside.is_empty() && problems.is_empty();
    Ok(if fine { 0 } else { exit::FOUND })
}

/// Follows SRC until interrupted.
async fn follow(pair: &Pair, output: &Output, stop: &CancellationToken) -> anyhow::Result<u8> {
    let store = Arc::clone(&pair.source) as Arc<dyn MailStore>;
    let log = Arc::clone(pair.agent.log());
    let _source = Source::start(store, log, source::Options::default(), Arc::clone(&pair.clock))?;
    output.say("following; interrupt to end")?;
    let mut before = (0, 0, 0);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
        let now = pair.agent.totals();
        let link = pair.agent.links().remove(0);
        if now != before {
            output.follow(now.0, now.1 + now.2, link.lag_ms(pair.agent.now()))?;
            before = now;
        }
    }
    let link = pair.agent.links().remove(0);
    Ok(if link.aside.is_empty() { 0 } else { exit::FOUND })
}
