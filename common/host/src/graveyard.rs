//! Every node empties its graveyard of what has been there for long enough, whatever its role.

use std::{error::Error, time::Duration};

use mailtwin_logic::chain::Chain;
use tokio_util::sync::CancellationToken;

use crate::workers::Workers;

/// How often it is gone through.
const EVERY: Duration = Duration::from_hours(1);

/// Has a worker `bury` now and then, until `stop`. It returns the number of messages that are gone.
pub async fn keep<E: Error + Send + 'static>(
    workers: Workers,
    stop: CancellationToken,
    bury: impl Fn() -> Result<u64, E> + Clone + Send + 'static,
) {
    let mut ticks = tokio::time::interval(EVERY);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        match workers.run(bury.clone()).await {
            Ok(Ok(0)) => {}
            Ok(Ok(messages)) => tracing::info!(messages, "removed from the graveyard"),
            Ok(Err(error)) => {
                tracing::warn!(code = "graveyard-kept", error = %Chain(&error), "cannot empty the graveyard");
            }
            Err(error) => {
                tracing::error!(code = "graveyard-kept", error = %Chain(&error), "cannot empty the graveyard");
            }
        }
    }
}
