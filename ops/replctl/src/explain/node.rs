//! Codes about one node: what `replctl doctor` looks at, and exit codes.

use super::Topic;
use crate::{cmd::doctor::Code, exit::Exit};

pub(super) fn topics() -> Vec<Topic> {
    [doctor(), exits()].concat()
}

fn doctor() -> Vec<Topic> {
    topics! { Code, "what the doctor looks at", "doctor.md", Code::as_str;
        Configuration => "The configuration file: whether it can be read and makes sense.",
            "Each line names file, line and key.";
        NodeState => "node.json and its directory: role, epoch and name of this node.",
            "A node that was never made: replctl init. Damage: restore it from a backup, or have \
            another node take over and begin anew.";
        KeyFile => "The node's private key, keys/node.pem in the state directory: nobody else may \
            read it.",
            "A key that others may know: replctl keys rotate. One that is lost: stop the daemons, \
            move keys/ away, replctl init with this node's role makes a new one; pin it on every \
            other node.";
        RunDir => "The directory of the admin sockets.",
            "It is made by the units; by hand it belongs to the daemons' user.";
        StoreAccess => "Whether the daemons' user may read and write the mail.",
            "Give the mail to that user, or run the daemons as the mail's user.";
        WorkDir => "The directory where messages are staged, store.work_dir.",
            "It must be on the file system of the mail.";
        FileSystem => "The kind of file system, and whether it may be written.",
            "Run Mailtwin on the machine that has the disk.";
        InotifyWatches => "How many directories may be watched, against the number of mailboxes.",
            "Raise fs.inotify.max_user_watches: beyond it only scans find changes.";
        InotifyInstances => "How many programs of one user may watch directories.",
            "Raise fs.inotify.max_user_instances.";
        OpenFiles => "The daemons' limit of open files.", "Raise LimitNOFILE of the units.";
        Clock => "The clocks of this node and its peers.", "Set them with NTP.";
        Space => "Free space for state and mail.", "Make room.";
        Inodes => "Free inodes: each message is a file.", "A file system with more of them.";
        LogBound => "Whether the sync log fits the disk when it grows to log.bound.",
            "Set log.bound lower, or make room.";
        MailServer => "Which mail server there is.", "";
        MailLocation => "Where the mail server says the mail is, against [store].",
            "Both must mean the same places and the same layout.";
        DirtySyncs => "maildir_very_dirty_syncs: with it, Dovecot trusts its index.",
            "Set it to no, at least on replicas.";
        MailFsync => "mail_fsync: whether Dovecot makes mail durable before it accepts it.",
            "Set it to optimized.";
        Keywords => "Mailboxes that use all 26 keywords of Maildir.",
            "Further ones live in Dovecot's index only and are not replicated.";
        Daemons => "Whether both daemons run.", "systemctl status; journalctl.";
        Gate => "The commands that close and open the gate.",
            "They must be there, and be allowed to the daemons' user.";
        Peers => "The other nodes that this one knows.", "replctl replica add, or a [[peer]].";
        PeerReachable => "Whether a peer's replica daemon answers.",
            "The daemon must run there, the address be right, the port (4710) be open.";
        PeerKey => "Whether a peer shows the key that is pinned for it.",
            "Compare fingerprints with replctl keys show on that node before you pin a key.";
        PeerLink => "What the link to a peer is doing.", "replctl status --watch.";
        PeerReadiness => "What would keep a peer from becoming the master.",
            "replctl doctor, on that node.";
        Version => "The versions of programs and peers.", "Upgrade the older side.";
        Status => "What replctl status complains about.", "replctl status.";
        OtherServer => "What a node beside another mail server could not hold of the mail here.",
            "What is set aside there needs another name or place here, before the move.";
    }
}

fn exits() -> Vec<Topic> {
    topics! { Exit, "exit codes of replctl", "json.md", |exit: Exit| format!("exit-{}", exit.code());
        Fine => "It ran, and there is nothing to complain about.", "";
        Found => "It ran and found something: differences, something set aside, lag over its bound.",
            "Read what it printed.";
        Usage => "The words of the command, or the configuration, are wrong.", "replctl help VERB.";
        Unreachable => "A daemon or a peer could not be reached.", "replctl doctor.";
        Refused => "It may not be done now: wrong role, fenced, or held by the brake.",
            "The message says why.";
    }
}
