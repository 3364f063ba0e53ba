//! Runs a verb that needs an async runtime; the first interrupt stops it cleanly.

use std::future::Future;

use anyhow::Context as _;
use mailtwin_host::signals::{self, Signal};
use tokio_util::sync::CancellationToken;

/// Runs `verb`; `stop` is cancelled by SIGINT or SIGTERM.
pub(crate) fn run<T>(
    stop: &CancellationToken,
    verb: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start the runtime")?;
    runtime.block_on(async {
        let mut signals = signals::listen().context("listen for signals")?;
        tokio::pin!(verb);
        loop {
            tokio::select! {
                result = &mut verb => return result,
                Some(signal) = signals.recv() => match signal {
                    Signal::Stop => stop.cancel(),
                    Signal::Reload | Signal::Report => {}
                },
            }
        }
    })
}
