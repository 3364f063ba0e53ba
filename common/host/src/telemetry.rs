//! Log lines: to the journal, if that is behind stderr, otherwise as text.

use std::{io::IsTerminal as _, str::FromStr as _};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::{
    filter::Targets, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

use crate::journal::Journal;

/// Starts logging. `filter` is a level, or levels for single targets: `info,mailtwin_agent=debug`;
/// one that makes no sense counts as `info` and is complained about. Only the first call counts.
pub fn init(filter: &str) {
    let (targets, complaint) = match Targets::from_str(filter) {
        Ok(targets) => (targets, None),
        Err(error) => (Targets::new().with_default(LevelFilter::INFO), Some(error)),
    };
    let registry = tracing_subscriber::registry().with(targets);
    let started = if let Some(journal) = Journal::behind_stderr() {
        registry.with(journal).try_init()
    } else {
        let layer = fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(false);
        registry.with(layer).try_init()
    };
    if started.is_ok()
        && let Some(error) = complaint
    {
        tracing::warn!(code = "log-filter", filter, %error, "the log filter makes no sense: using info");
    }
}
