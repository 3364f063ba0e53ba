//! The code of every warning and error that a daemon logs, as the field `code` of its line. A test of the
//! suite `tidy` finds each of them in the sources, and no line without one.

codes! {
    /// A line of level WARN or ERROR.
    LogLine {
        /// A connection could not be accepted.
        AcceptFailed = "accept-failed",
        /// A mailbox could not be marked after a hand-over.
        AdoptUnmarked = "adopt-unmarked",
        /// What an agent sent made no sense.
        ApplyDropped = "apply-dropped",
        /// Deletions are held.
        BrakeEngaged = "brake-engaged",
        /// What the brake holds cannot be saved.
        BrakeUnsaved = "brake-unsaved",
        /// An agent began too many mailboxes.
        BuildsTooMany = "builds-too-many",
        /// A canary did not arrive everywhere.
        CanaryMissing = "canary-missing",
        /// A check's signed report cannot be saved.
        CheckReportUnsaved = "check-report-unsaved",
        /// What was checked cannot be remembered.
        CheckUnsaved = "check-unsaved",
        /// A changed configuration is wrong.
        ConfigNotTaken = "config-not-taken",
        /// A connection was refused or broke.
        ConnectionRefused = "connection-refused",
        /// All places for connections are taken.
        ConnectionsTooMany = "connections-too-many",
        /// A cursor cannot be saved.
        CursorUnsaved = "cursor-unsaved",
        /// A task did not end in time.
        EndingAnyway = "ending-anyway",
        /// A change of role has ended.
        FailoverEnded = "failover-ended",
        /// A step of a change of role was done.
        FailoverStep = "failover-step",
        /// The gate is not where it belongs.
        GateMisplaced = "gate-misplaced",
        /// The graveyard cannot be emptied.
        GraveyardKept = "graveyard-kept",
        /// The new master is no peer any more.
        HandoverNoPeer = "handover-no-peer",
        /// The end of a hand-over cannot be saved.
        HandoverUnfinished = "handover-unfinished",
        /// The new master could not be told yet.
        HandoverUntold = "handover-untold",
        /// The daemon hangs.
        Hanging = "hanging",
        /// A line of the history cannot be written.
        HistoryUnwritten = "history-unwritten",
        /// An incident cannot be told of.
        IncidentUntold = "incident-untold",
        /// The index was damaged.
        IndexDamaged = "index-damaged",
        /// The index failed.
        IndexFailed = "index-failed",
        /// The index was not closed in order.
        IndexNotClosed = "index-not-closed",
        /// Records of a mailbox are missing in the index.
        IndexRecordsLost = "index-records-lost",
        /// The index cannot be written.
        IndexUnwritable = "index-unwritable",
        /// The node's key cannot be read again.
        KeyUnreadable = "key-unreadable",
        /// The connection to a replica broke.
        LinkBroke = "link-broke",
        /// A replica broke the protocol.
        LinkProtocol = "link-protocol",
        /// A replica is silent.
        LinkSilent = "link-silent",
        /// A replica takes nothing.
        LinkStuck = "link-stuck",
        /// A socket unit listens elsewhere than the configuration says.
        ListenDiffers = "listen-differs",
        /// A lock was taken over.
        LockTakenOver = "lock-taken-over",
        /// A damaged part of the sync log stays in place.
        LogDamageKept = "log-damage-kept",
        /// The sync log is damaged.
        LogDamaged = "log-damaged",
        /// The log filter makes no sense.
        LogFilter = "log-filter",
        /// The sync log cannot be made durable.
        LogNotDurable = "log-not-durable",
        /// A replica's place in the log is at risk.
        LogPlaceAtRisk = "log-place-at-risk",
        /// A replica has lost its place in the log.
        LogPlaceLost = "log-place-lost",
        /// An old part of the sync log stays.
        LogSegmentKept = "log-segment-kept",
        /// The sync log cannot be read.
        LogUnreadable = "log-unreadable",
        /// The sync log cannot be written.
        LogUnwritable = "log-unwritable",
        /// A replica's mailbox is built anew.
        MailboxRebuilt = "mailbox-rebuilt",
        /// There is no base for a merge.
        MergeNoBase = "merge-no-base",
        /// An account cannot be merged yet.
        MergeStuck = "merge-stuck",
        /// A moved mailbox finds its place taken.
        MovePlaceTaken = "move-place-taken",
        /// There is a newer master.
        NewerEpoch = "newer-epoch",
        /// A replica has no place in this sync log.
        NoCursor = "no-cursor",
        /// A replica is not connected.
        NotConnected = "not-connected",
        /// The daemon has ended with an error.
        NotStarted = "not-started",
        /// A removed peer is still in the configuration.
        PeerStillConfigured = "peer-still-configured",
        /// The list of peers cannot be saved.
        PeersUnsaved = "peers-unsaved",
        /// The proof of a hand-over is gone.
        ProofMissing = "proof-missing",
        /// A line of the quarantine list is damaged.
        QuarantineLineLost = "quarantine-line-lost",
        /// The quarantine list cannot be saved.
        QuarantineUnsaved = "quarantine-unsaved",
        /// This node's role cannot be saved.
        RoleUnsaved = "role-unsaved",
        /// The background check found a difference.
        ScrubDifference = "scrub-difference",
        /// The mail server's sync log cannot be emptied.
        ServerLogKept = "server-log-kept",
        /// The mail server's sync log cannot be read.
        ServerLogUnreadable = "server-log-unreadable",
        /// Something is set aside.
        SetAside = "set-aside",
        /// Something set aside needs a human.
        SetAsideForGood = "set-aside-for-good",
        /// A disk failed to sync.
        SyncFailed = "sync-failed",
        /// The watcher has ended.
        WatchEnded = "watch-ended",
        /// A directory cannot be watched.
        WatchFailed = "watch-failed",
        /// There is no inotify watch left.
        WatchLimit = "watch-limit",
        /// Changes came too fast.
        WatchOverflow = "watch-overflow",
        /// It cannot be seen what there is to watch.
        WatchUnseen = "watch-unseen",
    }
}
