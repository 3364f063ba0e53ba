//! Single-user mode: the gate closed for a while, and reopened whatever happens to the admin.

use std::time::Duration;

use mailtwin_logic::chain::Chain;
use tokio_util::sync::CancellationToken;

use super::{Ended, Failover};

impl Failover {
    /// Closes the gate, and reopens it at `thaw` or after `expire`.
    pub(crate) async fn freeze(&self, wait: Duration, expire: Duration, thaw: CancellationToken) {
        let occasion = Self::occasion(&self.file.now(), wait);
        let closed = tokio::time::timeout(expire, self.gate.close(occasion)).await;
        let ended = match closed {
            Ok(Ok(())) => {
                let seconds = expire.as_secs();
                self.operations.step(format!("the gate is closed for at most {seconds} s"));
                let thawed = tokio::time::timeout(expire, thaw.cancelled()).await;
                Ok(if thawed.is_ok() { "thawed" } else { "the time is over" })
            }
            Ok(Err(error)) => Err(Chain(&error).to_string()),
            Err(_) => Err(format!("the gate was not closed within {} s", expire.as_secs())),
        };
        match (ended, self.gate.open(occasion).await) {
            (Ok(why), Ok(())) => {
                self.operations.end(Ended::Done, format!("{why}: the gate is open again"));
            }
            (Err(why), Ok(())) => {
                self.operations.end(Ended::Undone, format!("{why}; the gate is open"));
            }
            (Ok(_) | Err(_), Err(error)) => {
                let error = Chain(&error);
                let todo = "open it by hand, or restart mailtwin-agent, which tries again";
                self.operations.end(Ended::Undone, format!("{error}: {todo}"));
            }
        }
    }
}
