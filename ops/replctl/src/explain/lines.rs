//! Codes of warnings and errors in the daemons' logs.

use std::sync::LazyLock;

use mailtwin_host::lines::LogLine;

use super::Topic;

pub(super) fn topics() -> Vec<Topic> {
    TOPICS.clone()
}

/// One list, for the compiler misses a code only in a whole one.
static TOPICS: LazyLock<Vec<Topic>> = LazyLock::new(|| {
    topics! { LogLine, "log lines", "logs.md", LogLine::as_str;
        AcceptFailed => "A connection could not be accepted, as a rule for want of file descriptors.",
            "Raise LimitNOFILE of the unit; replctl doctor.";
        AdoptUnmarked => "After a hand-over, a mailbox could not be marked as the same on both sides; it \
            is compared without the mark, and nothing is deleted in it on a guess.",
            "Look at its permissions; replctl check ACCOUNT.";
        ApplyDropped => "A master sent changes that make no sense, and they were not carried out; it \
            plans them anew.",
            "If it comes again and again: compare the versions with replctl doctor.";
        BrakeEngaged => "Much of the mail has vanished from the master at once; none of it is removed on \
            the replica.",
            "replctl brake show; mount what is missing, or replctl brake release if it is \
            meant.";
        BrakeUnsaved => "What the brake holds, or let go, could not be written down; after a restart it \
            is found again, or held again.",
            "Make room in the state directory; replctl doctor.";
        BuildsTooMany => "A master began far more mailboxes than it may have under way, and lost its \
            session; it dials again.",
            "If it comes again: compare the versions with replctl doctor.";
        CanaryMissing => "A message that the agent had delivered, to see it arrive, was not accepted by \
            the mail server, not found in the canary's INBOX, or not found on every replica in time. What \
            happens to it happens to users' mail.",
            "replctl canary; replctl status.";
        CheckReportUnsaved => "A check ended, and its signed report could not be written; what it found was \
            shown.",
            "Make room in the state directory, then run the check again.";
        CheckUnsaved => "What a check has read, or came to, could not be written; status shows an older \
            one, and messages are read again.",
            "Make room in the state directory.";
        ConfigNotTaken => "The configuration was to be read again and is wrong; the daemon goes on with the \
            old one, but would not start with the new one.",
            "The line names file, line and key; mend it, then systemctl reload again.";
        ConnectionRefused => "Somebody connected to the replica daemon and was refused, or broke off; the line \
            says who and why.",
            "A peer of yours: replctl doctor, on both. A stranger: close the port for all but \
            your nodes.";
        ConnectionsTooMany => "As many connections are open as may be, so that one more was refused.",
            "Find out who holds them (ss -tnp), and close the port for all but your nodes.";
        CursorUnsaved => "How far a replica is could not be written; after a restart more is compared than \
            need be, and old parts of the log stay.",
            "Make room in the state directory; replctl doctor.";
        EndingAnyway => "The daemon ends although one of its tasks has not; what it was doing is done \
            again after the next start.",
            "If it comes again: tell the maintainers which task the line names.";
        FailoverEnded => "A change of this node's role has ended; the line says how.",
            "replctl failover history.";
        FailoverStep => "A step of a forced failover was done.",
            "replctl failover status.";
        GateMisplaced => "The command that opens or closes the gate failed: clients may be kept out of the \
            master, or let into a replica. It is tried again.",
            "Run the command of [gate] by hand, as the daemons' user; replctl doctor.";
        GraveyardKept => "What is old enough to leave the graveyard could not be removed; it takes room, \
            and nothing else.",
            "Look at the permissions below the mail directory.";
        HandoverNoPeer => "This node has given its role to a node that is no peer any more, and so cannot \
            be told: nobody may be the master.",
            "replctl replica add it again, and restart mailtwin-agent; replctl failover \
            status.";
        HandoverUnfinished => "The new master knows, but that could not be written down here; it is told once \
            more after the next start, which changes nothing.",
            "Make room in the state directory.";
        HandoverUntold => "This node has given its role away, and the new master does not answer: nobody is \
            the master until it does. It is tried again.",
            "Start mailtwin-replica there; replctl doctor; if it is dead: replctl failover \
            force on another replica.";
        Hanging => "The daemon has made no progress for so long that systemd will end it and start \
            it anew.",
            "If it comes again: replctl doctor, for a disk that hangs; then tell the \
            maintainers.";
        HistoryUnwritten => "A change of role could not be written into failover.jsonl; the line holds what \
            it would have said.",
            "Make room in the state directory.";
        IncidentUntold => "The command of [incident] failed, so nobody was told; it is tried again.",
            "Run the command by hand, as the daemons' user.";
        IndexDamaged => "The index of the mail was damaged; it is rebuilt from the mail, and no mail is \
            lost or deleted for it.",
            "Look for the cause: the disk's health, a power cut. The old index is kept aside \
            until you remove it.";
        IndexFailed => "The index of the mail cannot be used any more; the daemon ends, and the next \
            start repairs it.",
            "replctl doctor: room, inodes, the disk's health.";
        IndexNotClosed => "The index could not be marked as closed in order; the next start checks all of \
            it, and takes longer.",
            "";
        IndexRecordsLost => "The index knows less of a mailbox than it should; the mailbox is read anew from \
            its files.",
            "If it comes again: the disk's health.";
        IndexUnwritable => "The index of the mail cannot be written; the daemon ends, and the next start \
            repairs it.",
            "Make room in the state directory; replctl doctor.";
        KeyUnreadable => "keys/node.pem has changed and cannot be read: the daemon goes on with the key it \
            has, but would not start again.",
            "replctl doctor; replctl explain key-file.";
        LinkBroke => "The connection to a replica broke; it is made again by itself.",
            "If it comes again and again: the network between the nodes, and the other side's \
            log.";
        LinkProtocol => "What a replica answered is no answer; it is dialled again.",
            "Compare the versions with replctl doctor.";
        LinkSilent => "A replica has said nothing for so long that its connection is given up; it is \
            dialled again.",
            "On the replica: is its disk or its machine hanging? replctl doctor.";
        LinkStuck => "A replica answers, but takes none of what is sent; it is dialled again.",
            "On the replica: is its disk hanging? replctl doctor.";
        ListenDiffers => "mailtwin-replica.socket listens elsewhere than replica.listen says; masters have to \
            connect to where the socket unit listens.",
            "Make the two the same: systemctl edit mailtwin-replica.socket, or the configuration.";
        LockTakenOver => "A lock of a mailbox was left by a program that is gone, and was taken over, as \
            the mail server does.",
            "If it comes often: look for what is killed while it delivers.";
        LogDamageKept => "A damaged segment of the sync log could not be set aside; everything is compared \
            all the same.",
            "Look at the state directory's permissions and disk.";
        LogDamaged => "A part of the sync log cannot be read; every replica is compared with everything \
            instead, and no mail is lost.",
            "Look for the cause: the disk's health. replctl status follows the comparison.";
        LogFilter => "What node.log says is no filter; the daemon logs at level info.",
            "A level, or levels for single parts: info,mailtwin_agent=debug.";
        LogNotDurable => "The disk of the state directory failed to sync; the agent ends, and begins with \
            a scan at its next start.",
            "Look at the disk: dmesg, smartctl. replctl doctor.";
        LogPlaceAtRisk => "What a replica lacks fills most of what the sync log may hold.",
            "Bring it back soon, or raise log.bound and restart mailtwin-agent.";
        LogPlaceLost => "What a replica lacks is gone from the sync log; it is compared with everything \
            when it is back, and no mail is lost.",
            "Bring it back; replctl explain lost.";
        LogSegmentKept => "An old segment of the sync log could not be removed; it takes room, and nothing \
            else.",
            "Look at the state directory's permissions.";
        LogUnreadable => "What a replica needs cannot be read from the sync log; it is compared with \
            everything instead.",
            "Look at the disk of the state directory; replctl doctor.";
        LogUnwritable => "The sync log cannot be written: nothing is replicated until it can, and then \
            everything that changed meanwhile is.",
            "Make room in the state directory, or look at the disk: replctl doctor.";
        MailboxRebuilt => "A mailbox could not be brought up to date on the replica by anything else; it is \
            built anew there.",
            "replctl check ACCOUNT when it is done; replctl quarantine show says what had \
            failed.";
        MergeNoBase => "A node came back, and what it had when the roles changed is not known: all that \
            only it has is copied, nothing is deleted.",
            "replctl conflicts list; mail that was expunged meanwhile may be back.";
        MergeStuck => "What only a returning node has of one account could not be copied; it is tried \
            again, and nothing is replicated to that account there before.",
            "Mend what the line names; replctl quarantine list, then replctl quarantine retry.";
        MovePlaceTaken => "A mailbox was to be renamed and another one has its place; the mail is kept \
            where the line says.",
            "replctl check ACCOUNT; if it stays, move what is in the way.";
        NewerEpoch => "A replica knows a newer epoch: this node is not the master any more. It closes \
            its gate and becomes a replica.",
            "replctl failover history; keep clients away from this node.";
        NoCursor => "It is not known how far a replica is, so it is compared with everything. Of a \
            new replica, that is as it should be.",
            "";
        NotConnected => "A replica is not connected, for the reason in the line; it is tried again by \
            itself. What arrives meanwhile is on the master alone.",
            "replctl status; replctl doctor.";
        NotStarted => "The daemon could not start, or had to end; the line says why.",
            "replctl doctor.";
        PeerStillConfigured => "A peer was removed by command, but its lines are still in the configuration, \
            where they do not count.",
            "Take its [[peer]] out of the file.";
        PeersUnsaved => "It could not be written down which removed peers have left the configuration.",
            "Make room in the state directory, then systemctl reload mailtwin-agent.";
        ProofMissing => "What was equal at a hand-over is not known here; mail is compared without it, \
            and what the new master expunges is kept and reported.",
            "replctl conflicts list.";
        QuarantineLineLost => "A line of the list of what is set aside was damaged and is dropped; what it told \
            of is found again by comparison.",
            "Look at the disk of the state directory.";
        QuarantineUnsaved => "What is no longer set aside could not be written down; after a restart it is \
            tried once more.",
            "Make room in the state directory.";
        RoleUnsaved => "This node is not the master any more, and that could not be written down; its \
            gate may be open still.",
            "Keep clients away from this node, make room in the state directory, then restart \
            mailtwin-agent.";
        ScrubDifference => "The background check found that a replica differs where it should not.",
            "replctl check --replica NAME.";
        ServerLogKept => "What was read of the mail server's sync log could not be removed; it is read \
            again, which costs time only.",
            "Give the daemons' user the right to write there.";
        ServerLogUnreadable => "The mail server's sync log cannot be read: its changes are found by scans only. \
            It is tried again.",
            "Give the daemons' user the right to read it; replctl doctor.";
        SetAside => "A mailbox or an account could not be replicated and is set aside; the rest goes \
            on, and it is tried again.",
            "replctl quarantine show; replctl explain with the reason in the line.";
        SetAsideForGood => "A mailbox or an account could not be replicated by anything that was tried.",
            "replctl quarantine show says what and why.";
        SyncFailed => "The disk failed to make mail durable; the replica daemon ends, so that nothing \
            unsure is said to be safe.",
            "Look at the disk: dmesg, smartctl. replctl doctor.";
        WatchEnded => "Changes are not noticed as they happen any more; only scans find them.",
            "Restart mailtwin-agent; replctl doctor.";
        WatchFailed => "A directory cannot be watched, for the reason in the line; only scans find its \
            changes.",
            "Look at its permissions; replctl doctor.";
        WatchLimit => "The kernel allows no more directories to be watched: in the others, only scans \
            find changes.",
            "sysctl -w fs.inotify.max_user_watches with the number in the line, then restart \
            mailtwin-agent.";
        WatchOverflow => "Changes came faster than they could be read; everything is looked at instead, \
            and nothing is missed.",
            "If it comes often: raise fs.inotify.max_queued_events.";
        WatchUnseen => "A directory of accounts could not be read; the next scan tries again.",
            "Look at its permissions; replctl doctor.";
    }
});
