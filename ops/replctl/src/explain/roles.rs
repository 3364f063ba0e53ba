//! Codes about nodes and their roles: what a link does, what stands against a switch, what happened.

use mailtwin_host::codes::{HistoryKind, KeyNews, KeyStage, KeyTrouble};
use mailtwin_logic::{
    cursor::Claim, failover::Blocker, ids::Epoch, link::Phase, wire::message::Refusal,
};

use super::Topic;

pub(super) fn topics() -> Vec<Topic> {
    [phases(), keys(), rotation(), claims(), blockers(), refusals(), history()].concat()
}

fn phases() -> Vec<Topic> {
    topics! { Phase, "states of a replica", "replicas.md#what-each-state-means", Phase::as_str;
        Waiting => "It is not connected; it is tried again by itself.",
            "The line below says why: replctl doctor looks at the rest.";
        Connecting => "The connection is being made.", "";
        Merging => "It came back after a failover; what only it has is copied to the master first.",
            "Wait; replctl ledger lists what came of it.";
        Replaying => "It is connected and catching up; a first copy is this, too.", "";
        InSync => "It is connected and has everything.", "";
        Degraded => "It is connected and has everything but what is set aside.",
            "replctl quarantine list; replctl brake show.";
        Paused => "An admin has paused it; its place in the log is kept.",
            "replctl replica resume NAME.";
        Fenced(Epoch(0)) => "It knows a newer epoch: this node is not the master any more.",
            "replctl failover history; keep clients away from this node.";
    }
}

fn keys() -> Vec<Topic> {
    topics! { KeyTrouble, "links refused over a key", "security.md#when-a-key-changed", KeyTrouble::as_str;
        PeerKeyChanged => "The replica shows a key that is not pinned for it: it was installed anew, \
            or another machine answers in its place. No mail is sent to it.",
            "replctl keys show, on that node; if it prints the key that status names, replctl keys pin \
            NAME KEY here, and replctl keys unpin NAME OLDKEY. If not, pin nothing, and find out who answers.";
        OwnKeyRefused => "The replica has another key pinned for this node: this node was installed \
            anew, or its state directory was replaced. No mail is sent.",
            "replctl keys show, here; then on the replica: replctl keys pin THISNODE KEY.";
    }
}

fn rotation() -> Vec<Topic> {
    let stages = topics! { KeyStage, "stages of a key's rotation", "security.md#another-key-for-a-node",
        KeyStage::as_str;
        Settled => "This node has one key, and its peers know no other.", "";
        Prepared => "There is a next key; the present one is still in use.",
            "When every peer has pinned it: replctl keys rotate --switch.";
        Retiring => "The next key is in use; some peer has still to unpin the one before.",
            "When that peer is back: replctl keys rotate --switch.";
    };
    let news = topics! { KeyNews, "what a peer knows of a rotation", "security.md#another-key-for-a-node",
        KeyNews::as_str;
        Pinned => "It has pinned the next key beside the present one.", "";
        Unpinned => "It knows the key before no more.", "";
        Configured => "It knows the key before from its configuration, and so trusts it still.",
            "Take the key out of its [[peer]], and reload its daemons.";
        LeftOut => "An admin has said that it need not be told.",
            "On that node: replctl keys pin, and keys unpin, as rotate printed it.";
        NotTold => "It could not be reached, or has refused.",
            "replctl doctor; then the same command again, or --without PEER for one that is dead.";
    };
    [stages, news].concat()
}

fn claims() -> Vec<Topic> {
    topics! { Claim, "a replica's place in the sync log", "replicas.md#what-each-state-means",
        Claim::as_str;
        Ok => "The log has all that the replica lacks.", "";
        AtRisk => "What the replica lacks fills three quarters of what the log may hold.",
            "Bring it back soon, or raise log.bound and restart mailtwin-agent.";
        Lost => "The log has reached its bound: what the replica lacks is gone from it.",
            "Bring it back: it is compared with everything, and no mail is lost.";
    }
}

fn blockers() -> Vec<Topic> {
    topics! { Blocker, "what stands against a switch", "failover.md#planned-replctl-failover-switch",
        Blocker::as_str;
        Store => "The mail store of the master is not what it was, or cannot be read.",
            "Mount it; replctl doctor.";
        Log => "The sync log cannot be written.", "Make room, or look at the disk: replctl doctor.";
        NoGate => "There are no commands that keep clients out while the role moves.",
            "Configure gate.close and gate.open, or keep clients out and say --no-gate.";
        NotConnected => "The replica is not connected.", "replctl status says why.";
        Merging => "What only the replica has is still being copied back.", "Wait until that is done.";
        Paused => "The replica is paused.", "replctl replica resume NAME.";
        Fenced => "The replica knows a newer epoch: this node is not the master any more.",
            "replctl failover history.";
        Lag => "The replica lacks so much that draining takes longer than users wait.",
            "Wait until replctl status shows less.";
        SetAside => "Something is set aside, and would be missing on the new master.",
            "replctl quarantine list.";
        Clocks => "The clocks of both nodes are too far apart.", "Set them with NTP.";
        OtherSide => "Something on the other node stands against it.",
            "replctl doctor, on that node.";
    }
}

fn refusals() -> Vec<Topic> {
    topics! { Refusal, "why a replica refuses a master", "protocol.md", refusal;
        Version => "The versions of both sides do not meet.", "Upgrade the side that it names.";
        Epoch(Epoch(0)) => "The replica knows a higher epoch: that master is fenced.",
            "Nothing: the old master closes its gate and becomes a replica.";
        Role => "That node is the master itself, or another is, or it is changing its role.",
            "replctl status, on both nodes: there must be one master.";
        Identity => "Name and key of the master do not belong together.",
            "replctl keys show, on both nodes; replctl keys pin.";
    }
}

fn refusal(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::Version => "refused-version",
        Refusal::Epoch(_) => "refused-epoch",
        Refusal::Role => "refused-role",
        Refusal::Identity => "refused-identity",
    }
}

fn history() -> Vec<Topic> {
    topics! { HistoryKind, "changes of role, and incidents", "failover.md", HistoryKind::as_str;
        Switch => "This node handed its role over, or tried to.",
            "If it was undone, its line says why.";
        Drill => "A switch was practised, up to the hand-over: the role stayed where it is.", "";
        Force => "This node was made the master without the old one (an incident).",
            "When the old one returns, replctl ledger lists what only that had.";
        Promoted => "This node was made the master by the one before it.", "";
        SteppedDown => "This node learned that it is not the master any more (an incident).",
            "replctl failover history, on the new master, says how that came.";
        Merged => "A node came back, and what only that had was copied from it (an incident).",
            "replctl ledger lists it.";
    }
}
