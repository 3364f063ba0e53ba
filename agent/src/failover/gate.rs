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
/// How long an operation that is under way is left alone.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(200);
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
                    // What is under way opens it when it ends, if this node is the master then.
                    Role::Master => {
                        let under_way = || failover.operations.is_under_way();
                        failover.gate.open_unless(occasion, under_way).await
                    }
                    Role::Replica => failover.gate.close(occasion).await.map(|()| true),
                }
            };
            let again_after = tokio::select! {
                () = stop.cancelled() => return,
                moved = moved => match moved {
                    Ok(true) => return,
                    Ok(false) => LOOK_AGAIN_AFTER,
                    Err(error) => {
                        tracing::error!(code = "gate-misplaced", error = %Chain(&error), "the gate is not where it belongs; trying again");
                        AGAIN_AFTER
                    }
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(again_after) => {}
            }
        }
    });
}
