//! `replctl failover`.

use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub(crate) enum Failover {
    /// Hand this master's role to a replica that has everything: close the gate, drain, prove both
    /// sides equal, promote. When anything fails before that, this node stays the master.
    Switch(Switch),
    /// Rehearse a switch: everything but the hand-over, with the time of each step. Clients go on
    /// working.
    Drill(Drill),
    /// Make this replica the master, because the old one is dead: on the node to be promoted.
    Force(Force),
    /// Follow the operation that runs, or show how the last one ended.
    Status,
    /// Past changes of this node's role.
    History,
}

/// What a switch and its rehearsal have in common.
#[derive(Debug, Args)]
pub(crate) struct Handing {
    /// The new master's node name.
    #[arg(long, value_name = "NAME")]
    pub(crate) to: String,
    /// How long clients may take to finish, when the gate closes, before their sessions are ended.
    #[arg(long, value_name = "DURATION", default_value = "2s")]
    pub(crate) kick_after: String,
    /// How long the drain and the proof may take.
    #[arg(long, value_name = "DURATION", default_value = "30s")]
    pub(crate) max_wait: String,
    /// Reopen the gate and stay the master if it is not done by then.
    #[arg(long, value_name = "DURATION", default_value = "2m")]
    pub(crate) expire: String,
}

#[derive(Debug, Args)]
pub(crate) struct Drill {
    #[command(flatten)]
    pub(crate) handing: Handing,
    /// Close the gate, too, and reopen it: nobody can work meanwhile.
    #[arg(long)]
    pub(crate) with_gate: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Switch {
    #[command(flatten)]
    pub(crate) handing: Handing,
    /// You keep clients and deliveries out of both nodes yourself; no gate is used.
    #[arg(long)]
    pub(crate) no_gate: bool,
    /// Only say what stands against it.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Force {
    /// Entries of the old master's log that may be missing here, or `all`.
    #[arg(long, value_name = "N", default_value = "0")]
    pub(crate) accept_loss: String,
    /// Only say what is at risk.
    #[arg(long)]
    pub(crate) dry_run: bool,
}
