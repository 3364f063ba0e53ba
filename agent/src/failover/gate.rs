//! The gate follows the role: open on a master, closed on a replica.

use std::time::Duration;

use mailtwin_host::{
    node::{Node, Role},
    tasks::Tasks,
};
use mailtwin_logic::chain::Chain;

use super::Failover;

/// How long a command that failed is left alone.
const AGAIN_AFTER: Duration = Duration::from_secs(10);
/// How long clients of a node that has just become a replica may take to finish.
const WAIT: Duration = Duration::from_secs(5);

/// Brings the gate to where it belongs, and tries again until that succeeds: a daemon that starts
/// does not know how the last one left it.
pub(crate) fn follow_role(failover: &Failover, node: &Node, tasks: &Tasks) {
    let (failover, node, stop) = (failover.clone(), node.clone(), tasks.stop().clone());
    tasks.spawn("gate", async move {
        loop {
            let occasion = Failover::occasion(&node, WAIT);
            let moved = async {
                match node.role {
                    Role::Master => failover.gate.open(occasion).await,
                    Role::Replica => failover.gate.close(occasion).await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                moved = moved => match moved {
                    Ok(()) => return,
                    Err(error) => tracing::error!(error = %Chain(&error), "the gate is not where it belongs; trying again"),
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(AGAIN_AFTER) => {}
            }
        }
    });
}
