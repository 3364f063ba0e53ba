//! What it takes to make a replica equal: compares two sides, returns steps and reasons.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};

use serde::{Deserialize, Serialize};

use crate::{
    digest::Digest,
    ids::{Guid, MailboxId, Uid},
    limits::{BUILD_CHANGES, BUILD_OCTETS},
    mailbox::{AccountState, FileKey, Flags, Head, Keywords, MailboxName, MailboxState, Record},
};

/// One change to a replica's mailbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// A message the replica lacks.
    Add(Record),
    /// Other flags, keywords or INTERNALDATE than the replica has.
    Update {
        /// Which message.
        uid: Uid,
        /// INTERNALDATE in seconds since 1970.
        internal_date: i64,
        /// All its system flags.
        flags: Flags,
        /// All its keywords.
        keywords: Keywords,
    },
    /// A message the master no longer has.
    Expunge(Uid),
    /// A message that replication put there and the master does not know any more, though it never
    /// expunged it: from now on it is the replica's own.
    Keep(Uid),
}

/// How a replica's mailbox is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// It is not there: built aside, shown when whole.
    Build,
    /// In place; new UIDs are at or above its UIDNEXT.
    Update,
    /// In place, with other UIDs below UIDNEXT, or under another UIDVALIDITY or identity. Costs
    /// connected clients their session.
    Repair,
}

/// Steps for one mailbox, and what stands against full equality.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// How.
    pub mode: Mode,
    /// Expunges and updates first, then additions by ascending UID.
    pub changes: Vec<Change>,
    /// UIDs of messages that only the replica has, and that replication did not put there or the
    /// master has forgotten. They are kept (I2).
    pub foreign: Vec<Uid>,
    /// UIDs that mean another message on each side. Not touched (I3).
    pub clashes: Vec<Uid>,
}

/// Compares the records of one mailbox, both in order of UID.
///
/// `held` is the replica's head, `None` if it has no such mailbox.
pub fn mailbox(master: &[Record], target: Head, replica: &[Record], held: Option<Head>) -> Plan {
    let theirs: BTreeMap<Uid, &Record> = replica.iter().map(|r| (r.uid, r)).collect();
    let ours: BTreeSet<Uid> = master.iter().map(|r| r.uid).collect();
    let (mut changes, mut adds) = (Vec::new(), Vec::new());
    let (mut foreign, mut clashes) = (Vec::new(), Vec::new());
    let forgotten = forgotten(master, target, &theirs, held);
    let known: BTreeSet<Guid> = master.iter().map(|record| record.guid).collect();
    for record in replica.iter().filter(|record| !ours.contains(&record.uid)) {
        if record.replicated && record.uid < forgotten {
            changes.push(Change::Expunge(record.uid));
            continue;
        }
        foreign.push(record.uid);
        if record.replicated && !known.contains(&record.guid) {
            changes.push(Change::Keep(record.uid));
        }
    }
    for record in master {
        match theirs.get(&record.uid) {
            None => adds.push(record),
            Some(held) if held.guid != record.guid => {
                clashes.push(record.uid);
                if held.replicated && !known.contains(&held.guid) {
                    changes.push(Change::Keep(record.uid));
                }
            }
            Some(held) if same_state(held, record) => {}
            Some(_) => changes.push(update(record)),
        }
    }
    let mode = mode(target, held, adds.first().map(|record| record.uid));
    changes.extend(adds.into_iter().cloned().map(Change::Add));
    Plan { mode, changes, foreign, clashes }
}

/// Whether a replica's mailbox may go to the graveyard and be built anew: only if nothing is lost with
/// it that the master could not give again, and no number falls (I3).
pub fn may_reseed(master: &[Record], target: Head, replica: &[Record], held: Head) -> bool {
    let ours: BTreeSet<Guid> = master.iter().map(|record| record.guid).collect();
    let is_ours = |record: &Record| record.replicated && ours.contains(&record.guid);
    replica.iter().all(is_ours)
        && (held.uid_validity != target.uid_validity || held.uid_next <= target.uid_next)
}

/// The first UID that the master has given out, if at all, after it was restored from a backup: the
/// replica's messages from there on are not those that the master may have expunged. Its UIDNEXT,
/// or before that a UID that meant another message when it was replicated.
fn forgotten(
    master: &[Record],
    target: Head,
    replica: &BTreeMap<Uid, &Record>,
    held: Option<Head>,
) -> Uid {
    if held.is_some_and(|held| held.uid_validity != target.uid_validity) {
        return Uid::MAX.next();
    }
    let is_other = |record: &&Record| {
        let held = replica.get(&record.uid);
        held.is_some_and(|held| held.replicated && held.guid != record.guid)
    };
    let other = master.iter().find(is_other).map(|record| record.uid);
    other.unwrap_or(target.uid_next).min(target.uid_next)
}

/// Steps for one mailbox when the two sides were equal at head `held`, from what the master changed
/// since: `records` that are new or changed and UIDs `expunged`.
pub fn since(records: &[Record], expunged: &[Uid], target: Head, held: Head) -> Plan {
    let (old, new): (Vec<&Record>, Vec<&Record>) =
        records.iter().partition(|record| record.uid < held.uid_next);
    let went = expunged.iter().filter(|&&uid| uid < held.uid_next);
    let changes = went
        .map(|&uid| Change::Expunge(uid))
        .chain(old.into_iter().map(update))
        .chain(new.iter().map(|&record| Change::Add(record.clone())));
    let first = new.first().map(|record| record.uid);
    Plan {
        mode: mode(target, Some(held), first),
        changes: changes.collect(),
        foreign: Vec::new(),
        clashes: Vec::new(),
    }
}

/// The change that gives the replica `record`'s flags, keywords and date.
pub fn update(record: &Record) -> Change {
    Change::Update {
        uid: record.uid,
        internal_date: record.internal_date,
        flags: record.flags,
        keywords: record.keywords.clone(),
    }
}

/// How a mailbox with head `held` gets to `target` when `first` is the lowest UID it lacks.
pub fn mode(target: Head, held: Option<Head>, first: Option<Uid>) -> Mode {
    match held {
        None => Mode::Build,
        Some(held) if held.uid_validity != target.uid_validity => Mode::Repair,
        Some(held) if first.is_some_and(|uid| uid < held.uid_next) => Mode::Repair,
        Some(_) => Mode::Update,
    }
}

/// Cuts a plan that builds a very large mailbox down to its first part, and gives the head that the
/// mailbox has with that. What is left is found by the next comparison, and added.
pub fn first_part(plan: &mut Plan, target: Head) -> Option<Head> {
    if plan.mode != Mode::Build {
        return None;
    }
    let octets = |change: &Change| if let Change::Add(record) = change { record.octets } else { 0 };
    let mut sum = 0_u64;
    let fits = plan.changes.iter().take(BUILD_CHANGES).take_while(|change| {
        sum = sum.saturating_add(octets(change));
        sum <= BUILD_OCTETS
    });
    let count = fits.count().max(1);
    if plan.changes.len() <= count {
        return None;
    }
    plan.changes.truncate(count);
    let mut head = Head { messages: 0, digest: Digest::default(), ..target };
    for change in &plan.changes {
        if let Change::Add(record) = change {
            head.messages += 1;
            head.digest.add(record);
            head.uid_next = record.uid.next();
        }
    }
    Some(head)
}

fn same_state(a: &Record, b: &Record) -> bool {
    a.flags == b.flags && a.keywords == b.keywords && a.internal_date == b.internal_date
}

/// A change to a replica's list of mailboxes. All of one account's are carried out together, so
/// that names may be swapped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// To the graveyard, whole.
    Delete {
        /// Which.
        id: MailboxId,
        /// Where it stands.
        name: MailboxName,
    },
    /// To another place in the hierarchy.
    Rename {
        /// Which.
        id: MailboxId,
        /// Where it stands.
        from: MailboxName,
        /// Where it goes.
        to: MailboxName,
    },
    /// The mailbox standing at `name` takes another identity. Only for the INBOX, which cannot be
    /// moved away, and only when replication may empty it: its messages go to the graveyard.
    Reset {
        /// Identity it has.
        id: MailboxId,
        /// Where it stands.
        name: MailboxName,
    },
}

/// Steps for one account.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccountPlan {
    /// Deletes, then renames.
    pub steps: Vec<Step>,
    /// Mailboxes of the master whose messages need a visit afterwards, with the replica's head.
    pub visits: Vec<(MailboxState, Option<Head>)>,
    /// Files to write: the master's content differs.
    pub write: Vec<FileKey>,
    /// Files the master no longer has.
    pub remove: Vec<(FileKey, Guid)>,
    /// Mailboxes only the replica has, and that hold mail which replication did not put there or
    /// which the master may have forgotten: kept.
    pub extra: Vec<MailboxName>,
    /// Mailboxes of the master whose place on the replica is taken by such a one.
    pub blocked: Vec<MailboxName>,
}

/// Compares two accounts' lists.
pub fn account(master: &AccountState, replica: &AccountState) -> AccountPlan {
    let mut plan = AccountPlan::default();
    let ours: BTreeSet<MailboxId> = master.mailboxes.iter().map(|m| m.id).collect();
    let theirs: BTreeMap<MailboxId, &MailboxState> =
        replica.mailboxes.iter().map(|m| (m.id, m)).collect();
    let mut taken = BTreeSet::new();
    let doubtful = is_doubtful(master, &theirs);
    for extra in replica.mailboxes.iter().filter(|m| !ours.contains(&m.id)) {
        let (id, name) = (extra.id, extra.name.clone());
        if extra.foreign > 0 || doubtful && extra.head.messages > 0 {
            taken.insert(name.clone());
            plan.extra.push(name);
        } else if name.is_inbox() {
            plan.steps.push(Step::Reset { id, name });
        } else {
            plan.steps.push(Step::Delete { id, name });
        }
    }
    // What cannot go to its place stays in the way of others.
    let stuck = |taken: &BTreeSet<MailboxName>| {
        let blocked = master.mailboxes.iter().filter(|mailbox| taken.contains(&mailbox.name));
        let places = blocked.filter_map(|mailbox| Some(&theirs.get(&mailbox.id)?.name));
        places.cloned().collect::<Vec<_>>()
    };
    loop {
        let before = taken.len();
        taken.extend(stuck(&taken));
        if taken.len() == before {
            break;
        }
    }
    for mailbox in &master.mailboxes {
        let held = theirs.get(&mailbox.id);
        if taken.contains(&mailbox.name) {
            plan.blocked.push(mailbox.name.clone());
            continue;
        }
        if let Some(held) = held.filter(|held| held.name != mailbox.name) {
            let (from, to) = (held.name.clone(), mailbox.name.clone());
            plan.steps.push(Step::Rename { id: mailbox.id, from, to });
        }
        if held.is_none_or(|held| held.head != mailbox.head) {
            plan.visits.push((mailbox.clone(), held.map(|held| held.head)));
        }
    }
    let theirs: BTreeMap<&FileKey, Guid> = replica.files.iter().map(|f| (&f.key, f.guid)).collect();
    let ours: BTreeSet<&FileKey> = master.files.iter().map(|f| &f.key).collect();
    let changed = master.files.iter().filter(|file| theirs.get(&file.key) != Some(&file.guid));
    plan.write = changed.map(|file| file.key.clone()).collect();
    let gone = replica.files.iter().filter(|file| !ours.contains(&file.key));
    plan.remove = gone.map(|file| (file.key.clone(), file.guid)).collect();
    plan
}

/// Adds visits of mailboxes that are equal but for the replica's HIGHESTMODSEQ, which is lower: a client
/// that moves there would miss changes (RFC 7162).
pub fn raise_modseqs(plan: &mut AccountPlan, master: &AccountState, replica: &AccountState) {
    let theirs: BTreeMap<MailboxId, &MailboxState> =
        replica.mailboxes.iter().map(|m| (m.id, m)).collect();
    for ours in &master.mailboxes {
        if let Some(held) = theirs.get(&ours.id)
            && (held.head, &held.name) == (ours.head, &ours.name)
            && held.highest_modseq < ours.highest_modseq
        {
            plan.visits.push((ours.clone(), Some(held.head)));
        }
    }
}

/// Takes every deletion of a mailbox out of a plan, and with it what would need its place; returns
/// the names of the mailboxes that stay.
pub fn hold(plan: &mut AccountPlan) -> Vec<MailboxName> {
    let mut held = Vec::new();
    plan.steps.retain(|step| match step {
        Step::Delete { name, .. } | Step::Reset { name, .. } => {
            held.push(name.clone());
            false
        }
        Step::Rename { .. } => true,
    });
    // What cannot move stays in the way of others.
    let mut taken: BTreeSet<MailboxName> = held.iter().cloned().collect();
    let mut stuck = BTreeSet::new();
    loop {
        let before = plan.steps.len();
        plan.steps.retain(|step| match step {
            Step::Rename { id, from, to } if taken.contains(to) => {
                taken.insert(from.clone());
                stuck.insert(*id);
                false
            }
            Step::Rename { .. } | Step::Delete { .. } | Step::Reset { .. } => true,
        });
        if plan.steps.len() == before {
            break;
        }
    }
    let is_new = |held: &Option<Head>| held.is_none();
    plan.visits.retain(|(mailbox, held)| {
        let blocked = stuck.contains(&mailbox.id) || is_new(held) && taken.contains(&mailbox.name);
        if blocked {
            plan.blocked.push(mailbox.name.clone());
        }
        !blocked
    });
    held
}

/// Whether the master may have been restored from a backup that knows nothing of the newest
/// mailboxes: the replica has UIDs that the master has not given out yet, or mail of its own, for that
/// is what the messages become that the master has forgotten.
fn is_doubtful(master: &AccountState, replica: &BTreeMap<MailboxId, &MailboxState>) -> bool {
    master.mailboxes.iter().any(|ours| {
        let ahead = |theirs: &MailboxState| {
            let (ours, theirs) = (ours.head, theirs.head);
            theirs.uid_validity == ours.uid_validity && theirs.uid_next > ours.uid_next
        };
        replica.get(&ours.id).is_some_and(|theirs| theirs.foreign > 0 || ahead(theirs))
    })
}

#[cfg(test)]
mod tests {
    use alloc::{format, string::String, vec};

    use crate::ids::{ModSeq, UidValidity};

    use super::*;

    /// `"1a 2bS f3c n9"`: UID 1 with content `a`, UID 2 with content `b` and `\Seen`, UID 3 not put
    /// there by replication, UIDNEXT 9; without `n`, UIDNEXT follows the last UID.
    fn parse(text: &str) -> (Vec<Record>, Head) {
        let mut records = Vec::new();
        let mut head = Head { uid_validity: UidValidity(1), uid_next: Uid(1), ..Head::default() };
        for word in text.split_whitespace() {
            if let Some(next) = word.strip_prefix('n') {
                head.uid_next = Uid(next.parse().unwrap());
                continue;
            }
            let bare = word.strip_prefix('f').unwrap_or(word);
            let uid = Uid(u32::from(bare.as_bytes()[0] - b'0'));
            records.push(Record {
                uid,
                guid: Guid([bare.as_bytes()[1]; 20]),
                octets: 1,
                internal_date: 0,
                flags: if bare.ends_with('S') { Flags::SEEN } else { Flags::default() },
                keywords: Keywords::default(),
                modseq: ModSeq(1),
                replicated: bare == word,
                hint: [].into(),
            });
            head.uid_next = uid.next();
        }
        head.digest = Digest::of(&records);
        (records, head)
    }

    fn show(plan: &Plan) -> String {
        let changes = plan.changes.iter().map(|change| match change {
            Change::Add(record) => format!(" +{}", record.uid),
            Change::Update { uid, .. } => format!(" ~{uid}"),
            Change::Expunge(uid) => format!(" -{uid}"),
            Change::Keep(uid) => format!(" own{uid}"),
        });
        let foreign = plan.foreign.iter().map(|uid| format!(" keep{uid}"));
        let clashes = plan.clashes.iter().map(|uid| format!(" clash{uid}"));
        let all: String = changes.chain(foreign).chain(clashes).collect();
        format!("{:?}{all}", plan.mode)
    }

    #[test]
    fn mailbox_cases() {
        let cases = [
            ("both empty", "", "", "Update"),
            ("equal", "1a", "1a", "Update"),
            ("appended", "1a 2b", "1a", "Update +2"),
            ("flag changed", "1aS", "1a", "Update ~1"),
            ("first one expunged", "2b", "1a 2b", "Update -1"),
            ("last one expunged", "1a n3", "1a 2b", "Update -2"),
            ("delivered to the replica", "1a", "1a f2b", "Update keep2"),
            ("same UID, other content", "1a", "f1b", "Update clash1"),
            ("restored master", "1a", "1a 2b 3c", "Update own2 own3 keep2 keep3"),
            ("restored, and went on", "1a 2d n9", "1a 2b 3c", "Update own3 own2 keep3 clash2"),
            (
                "restored, mail came again",
                "1a 2c 3b",
                "1a 2b 3c 4d n9",
                "Update own4 keep4 clash2 clash3",
            ),
            ("restored, other changes", "2bS n3", "1a 2b 3c", "Update -1 own3 ~2 keep3"),
            ("lost on the replica", "1a 2b", "2b", "Repair +1"),
            ("several", "1aS 4d", "1a 3c", "Update -3 ~1 +4"),
        ];
        for (name, master, replica, want) in cases {
            let ((ours, target), (theirs, held)) = (parse(master), parse(replica));
            assert_eq!(show(&mailbox(&ours, target, &theirs, Some(held))), want, "{name}");
        }
        let (ours, target) = parse("1a");
        assert_eq!(show(&mailbox(&ours, target, &[], None)), "Build +1");
    }

    #[test]
    fn only_what_the_master_has_as_well_is_built_anew() {
        let cases = [
            ("swapped", "1a 2b", "1b 2a", true),
            ("the replica has less", "1a 2b", "1b", true),
            ("mail of its own", "1a 2b", "1b f2a", false),
            ("mail that the master lost", "1a 2b", "1c 2a", false),
            ("UIDNEXT would fall", "1a 2b", "1b 2a n9", false),
        ];
        for (name, master, replica, want) in cases {
            let ((ours, target), (theirs, held)) = (parse(master), parse(replica));
            assert_eq!(may_reseed(&ours, target, &theirs, held), want, "{name}");
        }
    }

    /// `"1=A f2=B n3=C"`: three mailboxes, the second with a message of its own, the third with one
    /// that was replicated.
    fn state(text: &str) -> AccountState {
        let mailboxes = text.split_whitespace().map(|word| {
            let (id, name) = word.split_once('=').unwrap();
            let foreign = u32::from(id.starts_with('f'));
            let messages = u32::from(id.len() > 1);
            let id = MailboxId([id.as_bytes()[id.len() - 1]; 16]);
            let name = MailboxName::new(name.as_bytes()).unwrap();
            let head = Head { uid_next: Uid(messages + 1), messages, ..Head::default() };
            MailboxState { id, name, head, highest_modseq: ModSeq(0), foreign }
        });
        AccountState { mailboxes: mailboxes.collect(), files: Vec::new() }
    }

    #[test]
    fn a_very_large_mailbox_is_built_in_part_and_a_large_message_is_no_obstacle() {
        let record = |uid: u32, octets: u64| {
            let (records, _) = parse("1a");
            Record { uid: Uid(uid), octets, ..records[0].clone() }
        };
        let built = |sizes: &[u64]| {
            let records: Vec<Record> = (1..).zip(sizes).map(|(uid, &o)| record(uid, o)).collect();
            let uid_next = Uid(u32::try_from(sizes.len()).unwrap() + 1);
            let target = Head { uid_next, messages: uid_next.0 - 1, ..parse("1a").1 };
            let mut plan = mailbox(&records, target, &[], None);
            let part = first_part(&mut plan, target);
            assert!(
                part.is_none_or(|part| part.digest == Digest::of(&records[..plan.changes.len()]))
            );
            (plan.changes.len(), part.map(|part| (part.uid_next.0, part.messages)))
        };
        assert_eq!(built(&vec![1; BUILD_CHANGES]), (BUILD_CHANGES, None));
        let most = u32::try_from(BUILD_CHANGES).unwrap();
        assert_eq!(built(&vec![1; BUILD_CHANGES + 1]), (BUILD_CHANGES, Some((most + 1, most))));
        assert_eq!(built(&[BUILD_OCTETS, 1, 1]), (1, Some((2, 1))));
        assert_eq!(built(&[BUILD_OCTETS + 1, 1]), (1, Some((2, 1))));
        assert_eq!(built(&[BUILD_OCTETS + 1]), (1, None));
        assert_eq!(built(&[]), (0, None));
    }

    #[test]
    fn account_cases() {
        let cases = [
            ("equal", "1= 2=A", "1= 2=A", "[] visits [] extra [] blocked []"),
            ("created", "1= 2=A", "1=", "[] visits [A] extra [] blocked []"),
            ("deleted", "1=", "1= 2=A", "[-A] visits [] extra [] blocked []"),
            ("recreated", "1= 3=A", "1= 2=A", "[-A] visits [A] extra [] blocked []"),
            ("chain", "1=B 2=C", "1=A 2=B", "[A>B B>C] visits [] extra [] blocked []"),
            ("swap", "1=B 2=A", "1=A 2=B", "[A>B B>A] visits [] extra [] blocked []"),
            ("foreign inbox", "1=", "2=", "[!INBOX] visits [INBOX] extra [] blocked []"),
            ("foreign mail", "1=A", "f2=A", "[] visits [] extra [A] blocked [A]"),
            ("in the way", "1=A 2=B 3=C", "f9=A 1=B 3=C", "[] visits [] extra [A] blocked [A, B]"),
            ("likewise", "1=A 2=B", "f9=A 1=B 2=C", "[] visits [] extra [A] blocked [A, B]"),
            ("deleted with mail", "n1=", "n1= n2=A", "[-A] visits [] extra [] blocked []"),
            ("restored master", "1=", "n1= n2=A", "[] visits [INBOX] extra [A] blocked []"),
            ("the same later", "n1=", "f1= n2=A 3=B", "[-B] visits [] extra [A] blocked []"),
        ];
        for (name, master, replica, want) in cases {
            let plan = account(&state(master), &state(replica));
            let steps: Vec<String> = plan.steps.iter().map(show_step).collect();
            let visits: Vec<_> = plan.visits.iter().map(|(mailbox, _)| &mailbox.name).collect();
            let got = format!(
                "[{}] visits {visits:?} extra {:?} blocked {:?}",
                steps.join(" "),
                plan.extra,
                plan.blocked
            );
            assert_eq!(got, want, "{name}");
        }
    }

    #[test]
    fn what_is_held_keeps_its_place() {
        let cases = [
            ("deleted", "1=", "1= 2=A", "[] held [A] visits [] blocked []"),
            ("recreated", "1= 3=A", "1= 2=A", "[] held [A] visits [] blocked [A]"),
            ("renamed onto it", "1=A", "1=B 2=A", "[] held [A] visits [] blocked []"),
            ("a chain", "1=A 3=B 4=D", "1=B 2=A 3=C 4=E", "[E>D] held [A] visits [] blocked []"),
            ("others are made", "1= 3=C", "1= 2=A", "[] held [A] visits [C] blocked []"),
        ];
        for (what, master, replica, want) in cases {
            let mut plan = account(&state(master), &state(replica));
            let held = hold(&mut plan);
            let steps: Vec<String> = plan.steps.iter().map(show_step).collect();
            let visits: Vec<_> = plan.visits.iter().map(|(mailbox, _)| &mailbox.name).collect();
            let steps = steps.join(" ");
            let blocked = &plan.blocked;
            let got = format!("[{steps}] held {held:?} visits {visits:?} blocked {blocked:?}");
            assert_eq!(got, want, "{what}");
        }
    }

    fn show_step(step: &Step) -> String {
        match step {
            Step::Delete { name, .. } => format!("-{name}"),
            Step::Rename { from, to, .. } => format!("{from}>{to}"),
            Step::Reset { name, .. } => format!("!{name}"),
        }
    }
}
