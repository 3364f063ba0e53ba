//! Codes about mail: what is set aside, what a check finds, what is wrong in a store.

use mailtwin_host::codes::{CheckResult, LedgerKind};
use mailtwin_logic::{
    check::{Kind, Repair},
    quarantine::{Reason, Step},
};
use mailtwin_store::ProblemKind;

use super::Topic;

pub(super) fn topics() -> Vec<Topic> {
    [reasons(), steps(), problems(), kinds(), repairs(), results(), ledger()].concat()
}

fn reasons() -> Vec<Topic> {
    topics! { Reason, "why something is set aside", "quarantine.md#codes", Reason::as_str;
        Busy => "It changed all the time, or did not become equal in several comparisons.",
            "As a rule it passes; if it stays, find out what writes there.";
        Missing => "It vanished while it was read, again and again.", "As a rule it passes.";
        GuidMismatch => "A message is no longer what it was when it was first read: the disk, or \
            somebody, changed it.",
            "Restore the message from a backup, or: replctl check --repair.";
        Conflict => "The replica has mail of its own there, one UID means two messages, or two \
            mailboxes have one identity.",
            "Somebody wrote into the replica: move that mail to the master, then remove it on the \
            replica; replctl quarantine show names it.";
        Name => "The other side cannot store this name.", "Rename the mailbox on the master.";
        Locked => "A lock of the mail server was never free.",
            "The error names the process that holds it: see what that is doing.";
        Corrupt => "A file of the mail server is damaged, or a message is shorter than it was.",
            "replctl check --repair; on a replica, dovecot-uidlist may be copied from the master.";
        WrongStore => "The store is not mounted, or is another one than it was: nothing is replayed.",
            "Mount the right file system; .mailtwin-store at its top says which it is.";
        Denied => "A file or directory may not be read, or on the replica not be written.",
            "Mend owner and mode; replctl doctor says where, the error on which side.";
        Full => "The disk of the replica is full: the whole replica waits.",
            "Make room, then: replctl quarantine retry.";
        OverQuota => "A quota of the replica's file system is used up.",
            "Raise it: quotas of replicas must not be below the master's.";
        Io => "Another error of the operating system.", "Look at the kernel's log: dmesg.";
        Refused => "The other side refused for a reason that this version does not know.",
            "Read the error, and compare versions: replctl doctor.";
        Unreadable => "Single messages cannot be read on the master; the rest is replicated.",
            "replctl quarantine show names their files: mend owner, mode or file system.";
        Brake => "Deletions are held, because much vanished at once.",
            "replctl brake show; look at the master; then replctl brake release.";
    }
}

fn steps() -> Vec<Topic> {
    topics! { Step, "what the next trial of something set aside does", "quarantine.md#the-ladder",
        |step: Step| step;
        Retry => "It is visited like any other, after a growing pause.", "";
        Compare => "All records of both sides are compared.", "";
        Reseed => "The replica's mailbox goes to its graveyard and is built anew, if the master has \
            all that is in it.", "";
        Human => "Trials go on, but none has helped for long.",
            "replctl quarantine show ACCOUNT/MAILBOX, and replctl explain with its code.";
    }
}

fn problems() -> Vec<Topic> {
    topics! { ProblemKind, "problems in a store", "quarantine.md", ProblemKind::as_str;
        WrongStore => "The store is not the one it was: no deletion is believed.",
            "Mount the right file system.";
        NoAccounts => "Not one account was found.",
            "Compare [store] root with the mail server: replctl doctor.";
        MailboxUnreadable => "A mailbox cannot be read: it is not replicated.",
            "Mend owner and mode of what the line names.";
        MessageUnreadable => "A message cannot be read: it is left out.",
            "Mend owner and mode of its file, or restore it from a backup.";
        ListDamaged => "dovecot-uidlist is damaged: messages behind the damage wait.",
            "Have Dovecot rebuild it: doveadm force-resync -u ACCOUNT MAILBOX.";
        Name => "A name cannot be replicated.", "Rename it, or leave it as it is.";
        NotAMessage => "There is a file in cur or new that is no message.", "Remove it.";
        KeywordsFull => "The mailbox uses all 26 keywords of Maildir: further ones are not replicated.",
            "Have clients use fewer keywords, and remove unused ones.";
        FileSkipped => "A file beside the mail is too large, or is no regular file: it is not replicated.",
            "Make it smaller, or leave it as it is.";
        NotCarried => "Something of an account that replication has no place for.",
            "See what it is in `replctl status`, and set it up on each node by hand: docs/cyrus.md.";
    }
}

fn kinds() -> Vec<Topic> {
    topics! { Kind, "what a check finds", "check.md#what-is-reported", Kind::name;
        Corrupt => "A message's octets are not what they were when it was first seen.",
            "replctl check --repair puts them back from the other side.";
        Size => "A message's file has another size than it had.",
            "replctl check --repair puts it back from the other side.";
        Unreadable => "A message cannot be read on the side named.",
            "Mend owner and mode, or: replctl check --repair.";
        Missing => "The replica lacks a message.", "replctl check --repair replays it.";
        Clash => "One UID means two messages, each as it was first seen: no side can be blamed.",
            "replctl check --plan FILE; put bury where the replica's message may go, then --apply.";
        AccountMissing => "The replica lacks an account.", "replctl check --repair replays it.";
        MailboxMissing => "The replica lacks a mailbox.", "replctl check --repair replays it.";
        MailboxUnreadable => "A mailbox cannot be read on the side named.",
            "Mend owner and mode there: replctl doctor.";
        MailboxId => "Another mailbox stands under its name on the replica.",
            "replctl check --repair; what is the replica's own stays.";
        UidValidity => "UIDVALIDITY differs.", "replctl check --repair.";
        UidNext => "UIDNEXT differs, or the mail server's list says less than was given out.",
            "replctl check --repair.";
        List => "dovecot-uidlist is damaged.", "replctl check --repair writes it anew.";
        Contents => "The messages of a mailbox differ.", "replctl check --level full says which.";
        Extra => "Only the replica has a message.",
            "replctl check --repair, if replication put it there; otherwise move it to the master first.";
        Unnumbered => "There are files without a UID on the replica.",
            "The mail server numbers them when the mailbox is opened.";
        Flags => "System flags differ.", "replctl check --repair replays them.";
        Keywords => "Keywords differ.", "replctl check --repair replays them.";
        Date => "INTERNALDATE, the file's date, differs.", "replctl check --repair.";
        MailboxName => "A mailbox stands under another name on the replica.",
            "replctl check --repair.";
        MailboxExtra => "Only the replica has a mailbox.",
            "replctl check --repair; one with mail of its own stays.";
        File => "Subscriptions, access rights or a Sieve script differ.", "replctl check --repair.";
        AccountExtra => "Only the replica has an account.",
            "Whole accounts are never removed: remove it by hand if it may go.";
    }
}

fn repairs() -> Vec<Topic> {
    topics! { Repair, "how a check repairs", "check.md#repair", name_of;
        Replay => "The replica takes over what the master has, as after any change.", "";
        Replace => "The message gets the octets and date that were recorded, verified.", "";
        Rewrite => "dovecot-uidlist is written anew from the index.", "";
        Bury => "What only the replica has goes to its graveyard.", "";
        Raise => "The master's UIDNEXT becomes the replica's, for none ever falls.", "";
        None => "Nothing is done without you.",
            "replctl check --plan FILE; edit it; replctl check --apply FILE.";
    }
}

fn name_of(repair: Repair) -> String {
    let name = serde_json::to_value(repair).ok();
    name.and_then(|name| name.as_str().map(str::to_owned)).unwrap_or_default()
}

fn results() -> Vec<Topic> {
    topics! { CheckResult, "how a check ended", "check.md", CheckResult::as_str;
        Equal => "Both sides are equal, as closely as was looked.", "";
        Different => "Something differs.",
            "replctl check shows what; replctl check --repair mends what can be decided.";
        Incomplete => "Not everything could be compared.",
            "The lines below the result say why; try again when that has passed.";
    }
}

fn ledger() -> Vec<Topic> {
    topics! { LedgerKind, "decisions in the ledger", "failover.md#what-becomes-of-the-old-master",
        LedgerKind::as_str;
        Tail => "The old master had accepted it and the new one never had it: it was copied.", "";
        Clash => "The same UID meant another message on the master: it was copied under a new one.", "";
        Changed => "It was expunged on the master but changed on the other node: it was copied.", "";
        Moved => "The master's own message of a UID that clashed has a new UID now.", "";
        Expunged => "It was expunged on the master as on the other node; it is in the graveyard.", "";
        Flags => "Flags and keywords of both sides were merged one by one.", "";
        Renamed => "The mailbox was renamed as on the other node.", "";
        Deleted => "The mailbox was deleted as on the other node; it is in the graveyard.", "";
        Copied => "A mailbox that only the other node had was copied whole.", "";
    }
}
