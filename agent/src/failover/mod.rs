//! Moving the master's role: gate, drain, proof, hand-over. What is here outlasts a change of role.
#![expect(clippy::wildcard_enum_match_arm, reason = "whatever reply was not asked for is an error")]

mod freeze;
mod gate;
mod operation;
mod switch;
mod tell;

use std::{path::PathBuf, sync::Arc, time::Duration};

use mailtwin_host::{
    admin::HistoryEntry,
    clock::Clock,
    codes::HistoryKind,
    gate::{Gate, Occasion},
    history,
    node::{ChangeError, Node, NodeFile, Role},
};
use mailtwin_logic::{chain::Chain, ids::Epoch};

pub(crate) use gate::follow_role;
pub(crate) use operation::{Ended, Operations};
pub(crate) use switch::{Order, switch};
pub(crate) use tell::tell;

/// What every change of role works with.
#[derive(Clone)]
pub(crate) struct Failover {
    pub(crate) state_dir: PathBuf,
    pub(crate) file: Arc<NodeFile>,
    pub(crate) gate: Gate,
    pub(crate) operations: Operations,
    pub(crate) clock: Arc<dyn Clock>,
}

impl Failover {
    /// What a gate command is told, for the role that `node` holds.
    fn occasion(node: &Node, wait: Duration) -> Occasion {
        Occasion { role: node.role, epoch: node.epoch, wait }
    }

    /// This node's time as a master is over: a replica knows a newer epoch.
    pub(crate) fn step_down(&self, by: Epoch) -> Result<(), ChangeError> {
        let mut was_master = false;
        self.file.change::<ChangeError>(|node| {
            if by > node.epoch {
                was_master = node.role == Role::Master;
                node.role = Role::Replica;
                node.epoch = by;
                node.master = None;
            }
            Ok(())
        })?;
        if was_master {
            tracing::error!(code = "newer-epoch", epoch = %by, "a newer epoch has begun: this node is no longer the master");
            let note = Note { gate_closed_ms: None, detail: "a replica knows a newer epoch" };
            self.note(HistoryKind::SteppedDown, Ended::Done, by, None, &note);
        }
        Ok(())
    }

    /// Writes a line into the node's history; what cannot be written is logged.
    fn note(
        &self,
        kind: HistoryKind,
        ended: Ended,
        epoch: Epoch,
        to: Option<&str>,
        note: &Note<'_>,
    ) {
        let entry = HistoryEntry {
            at: self.clock.unix_ms(),
            kind: kind.as_str().to_owned(),
            outcome: ended.as_str().to_owned(),
            epoch: epoch.0,
            from: Some(self.file.now().name),
            to: to.map(str::to_owned),
            gate_closed_ms: note.gate_closed_ms,
            detail: note.detail.to_owned(),
        };
        if let Err(error) = history::append(&self.state_dir, &entry) {
            tracing::error!(code = "history-unwritten", error = %Chain(&error), ?entry, "cannot write the history of failovers");
        }
    }
}

/// The rest of a line.
struct Note<'a> {
    gate_closed_ms: Option<u64>,
    detail: &'a str,
}
