//! Gives out what a repair replaced or took away, as files for the master's mail server to take in.
//!
//! Nothing is put back where it was: under its old UID a message would return after clients were
//! told that it is gone, and damaged octets would be damage again. What is in a mailbox now stays.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use mailtwin_host::admin::{GraveyardReport, SCHEMA_VERSION};
use mailtwin_logic::{
    chain::Chain,
    check::Taken,
    graveyard::{GraveReport, Wanted},
    ids::{Account, Guid, ModSeq, Uid, UidValidity},
    limits::SLICE_CHANGES,
    mailbox::MailboxName,
    wire::message::{Reply, Request, told},
};
use mailtwin_store::{
    Description, Grave, MailStore, Reason, StoreError,
    graves::{self, Exported},
    guid_of,
};

use super::{Bench, journal};
use crate::{
    link::connection::Stream,
    visit::{Trouble, VisitError, Visitor, refused},
};

/// Messages listed: with their headers they have to fit one answer.
const LISTED_MAX: usize = 1000;
/// Octets of a message that are looked at for what it is about.
const HEADER_OCTETS_MAX: usize = 64 << 10;

/// Where a repair took something: replica (absent for this node), account, mailbox, UIDVALIDITY.
type Place = (Option<String>, Account, MailboxName, UidValidity);

/// What one place comes to.
struct Undo {
    place: Place,
    /// What is to come back.
    wanted: Vec<Taken>,
    /// Of which of them something was found.
    found: BTreeSet<Uid>,
    /// What the master has in that mailbox.
    held: BTreeMap<Guid, Uid>,
    /// What was given out already: several repairs may have taken the same.
    given: BTreeSet<Guid>,
}

/// Gives out what repair `id` took, below `to`, or only tells of it. `None` if there was none.
pub(crate) async fn undo(
    bench: &Bench,
    id: u64,
    to: Option<PathBuf>,
) -> Result<Option<GraveyardReport>, String> {
    let dir = bench.repairs.clone();
    let lines = bench.work(move |_| Ok(journal::read(&dir, id))).await?;
    let Some(lines) = lines.map_err(|error| Chain(&error).to_string())? else { return Ok(None) };
    let mut places: BTreeMap<Place, Vec<Taken>> = BTreeMap::new();
    for journal::Line { replica, taken } in lines {
        let Taken { account, mailbox, uid_validity, .. } = taken.clone();
        places.entry((replica, account, mailbox, uid_validity)).or_default().push(taken);
    }
    let (schema_version, done) = (SCHEMA_VERSION, to.is_some());
    let (entries, left) = (Vec::new(), Vec::new());
    let mut report = GraveyardReport { schema_version, count: 0, octets: 0, done, entries, left };
    let mut exported = Vec::new();
    for (place, wanted) in places {
        let held = held_here(bench, &place).await?;
        let (found, given) = (BTreeSet::new(), BTreeSet::new());
        let mut undo = Undo { place, wanted, found, held, given };
        undo.wanted.retain(|taken| !taken.is_held(&undo.held));
        let found = undo.find(bench, to.as_deref(), &mut report, &mut exported).await;
        undo.tell_left(bench, found.err(), &mut report.left);
    }
    if let Some(to) = to {
        bench.work(move |_| graves::write_manifest(&exported, &to)).await?;
    }
    Ok(Some(report))
}

impl Bench {
    /// Makes a blocking call of this node's store.
    async fn work<T: Send + 'static>(
        &self,
        call: impl FnOnce(&dyn MailStore) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, String> {
        let store = Arc::clone(&self.store);
        match self.workers.run(move || call(&*store)).await {
            Ok(result) => result.map_err(|error| Chain(&error).to_string()),
            Err(error) => Err(Chain(&error).to_string()),
        }
    }

    /// Notes what repair `id` is about to take, durably.
    pub(super) async fn note(&self, id: u64, taken: Vec<journal::Line>) -> Result<(), String> {
        let dir = self.repairs.clone();
        let noted = self.work(move |_| Ok(journal::note(&dir, id, &taken)));
        noted.await?.map_err(|error| Chain(&error).to_string())
    }

    fn visitor(&self, replica: &str) -> Option<Visitor> {
        let link = self.links().into_iter().find(|link| link.status.borrow().name == replica)?;
        let visitor = link.visitor.borrow().clone();
        visitor.filter(|visitor| !visitor.connection.is_lost())
    }
}

/// The octets that the mailbox has on the master now.
async fn held_here(bench: &Bench, place: &Place) -> Result<BTreeMap<Guid, Uid>, String> {
    let (_, account, name, _) = place.clone();
    let look = move |store: &dyn MailStore| {
        let Some(state) = store.find(&account, &name)? else { return Ok(BTreeMap::new()) };
        let delta = store.delta(&account, state.id, ModSeq(0))?;
        Ok(delta.records.into_iter().map(|record| (record.guid, record.uid)).collect())
    };
    bench.work(look).await
}

impl Undo {
    /// Goes through the graveyard of the node on which it was.
    async fn find(
        &mut self,
        bench: &Bench,
        to: Option<&Path>,
        report: &mut GraveyardReport,
        exported: &mut Vec<Exported>,
    ) -> Result<(), String> {
        let uids: Vec<Uid> = self.wanted.iter().map(|taken| taken.uid).collect();
        for uids in uids.chunks(SLICE_CHANGES) {
            let mut graves = match &self.place.0 {
                None => Graves::Here(self.graves_here(bench, uids).await?),
                Some(replica) => {
                    let visitor = bench.visitor(replica);
                    let visitor = visitor.ok_or_else(|| format!("{replica} is not connected"))?;
                    let (_, account, mailbox, uid_validity) = self.place.clone();
                    let uids = uids.to_vec();
                    let request = Request::Graves { account, mailbox, uid_validity, uids };
                    let stream = visitor.connection.ask(&request).await;
                    Graves::There(stream.map_err(|_| broke(replica))?)
                }
            };
            while let Some((grave, octets)) = graves.next(bench, &self.place, report).await? {
                let Some(grave) = self.is_wanted(grave, &octets) else { continue };
                report.count += 1;
                report.octets += octets.len() as u64;
                if report.entries.len() < LISTED_MAX {
                    report.entries.push(entry(&grave, &octets));
                }
                if let Some(to) = to.map(Path::to_owned) {
                    let write = move |_: &dyn MailStore| graves::write(&grave, &octets, &to);
                    exported.push(bench.work(write).await?);
                }
            }
        }
        Ok(())
    }

    async fn graves_here(
        &self,
        bench: &Bench,
        uids: &[Uid],
    ) -> Result<std::vec::IntoIter<Grave>, String> {
        let (_, account, mailbox, uid_validity) = self.place.clone();
        let uids: BTreeSet<Uid> = uids.iter().copied().collect();
        let wanted = Wanted { account: Some(account), mailbox: Some(mailbox), ..Wanted::default() };
        let look =
            move |store: &dyn MailStore| graves::of_messages(store, &wanted, uid_validity, &uids);
        bench.work(look).await.map(Vec::into_iter)
    }

    /// Whether this is to come back: unless the master has it, or it was given out already.
    fn is_wanted(&mut self, mut grave: Grave, octets: &[u8]) -> Option<Grave> {
        let guid = guid_of(octets);
        grave.guid = Some(guid);
        let taken = self.wanted.iter().find(|taken| taken.is(grave.uid, guid))?;
        self.found.insert(taken.uid);
        (!self.held.contains_key(&guid) && self.given.insert(guid)).then_some(grave)
    }

    fn tell_left(&self, bench: &Bench, trouble: Option<String>, left: &mut Vec<String>) {
        let (replica, account, mailbox, _) = &self.place;
        let node = replica.as_ref().unwrap_or(&bench.node);
        let why =
            trouble.unwrap_or_else(|| format!("not in the graveyard of {node}, or no longer"));
        let messages = self.wanted.iter().map(|taken| taken.uid);
        let messages = messages.filter(|uid| !self.found.contains(uid));
        left.extend(messages.map(|uid| format!("{account} {mailbox} {uid}: {why}")));
    }
}

/// What lies in a graveyard, one after the other.
enum Graves {
    Here(std::vec::IntoIter<Grave>),
    There(Stream),
}

impl Graves {
    /// The next, with its octets; what cannot be read is told.
    async fn next(
        &mut self,
        bench: &Bench,
        place: &Place,
        report: &mut GraveyardReport,
    ) -> Result<Option<(Grave, Vec<u8>)>, String> {
        loop {
            let detail = match self {
                Self::Here(graves) => {
                    let Some(grave) = graves.next() else { return Ok(None) };
                    let read = move |store: &dyn MailStore| {
                        graves::read(store, &grave).map(|octets| (grave, octets))
                    };
                    match bench.work(read).await {
                        Ok(read) => return Ok(Some(read)),
                        Err(detail) => detail,
                    }
                }
                Self::There(stream) => match receive(stream, place).await {
                    Ok(found) => return Ok(found),
                    Err(VisitError::Message(_, Trouble { detail, .. })) => detail,
                    Err(
                        VisitError::Target(Trouble { detail, .. })
                        | VisitError::Replica(Trouble { detail, .. }),
                    ) => return Err(detail),
                    Err(VisitError::Gone) => {
                        return Err(broke(place.0.as_deref().unwrap_or_default()));
                    }
                },
            };
            report.left.push(format!("{} {}: {detail}", place.1, place.2));
        }
    }
}

/// The next message of another node's graveyard.
async fn receive(
    stream: &mut Stream,
    place: &Place,
) -> Result<Option<(Grave, Vec<u8>)>, VisitError> {
    let (_, account, name, uid_validity) = place;
    let grave = match stream.reply().await? {
        Reply::Grave { at, uid, octets, internal_date } => {
            let mut grave = Grave::elsewhere(at, (account, name, *uid_validity));
            (grave.uid, grave.octets, grave.internal_date) = (uid, octets, internal_date);
            grave
        }
        Reply::Done => return Ok(None),
        other => return Err(refused(other)),
    };
    let mut all = Vec::new();
    loop {
        match stream.reply().await? {
            Reply::Octets { octets, more } => {
                all.extend(octets);
                if all.len() as u64 > grave.octets {
                    let why = "replica: a message in its graveyard is longer than it says".into();
                    return Err(VisitError::Replica(Trouble::new(Reason::Refused, why)));
                }
                if !more {
                    return Ok(Some((grave, all)));
                }
            }
            other => return Err(refused(other)),
        }
    }
}

fn entry(grave: &Grave, octets: &[u8]) -> GraveReport {
    let head = octets.get(..octets.len().min(HEADER_OCTETS_MAX)).unwrap_or_default();
    grave.report(octets.len() as u64, told(&Description::of(head).to_string()))
}

fn broke(replica: &str) -> String {
    format!("the connection to {replica} broke")
}
