//! A store looked at by itself: whether index, list of UIDs and files agree.

use std::collections::BTreeSet;

use mailtwin_logic::{
    chain::Chain,
    check::{
        Depth, Difference, Flaw, FlawKind, Inspect, Inspected, Kind, Local, Repair, Side, Slots,
        is_meant,
    },
    entry::Target,
    ids::{Account, Uid},
    mailbox::{MailboxName, MailboxState},
};

use crate::{MailStore, StoreError};

/// Mailboxes in one part: it has to fit an answer.
const MAILBOXES: usize = 2_000;
/// Octets read in one part: it has to end soon.
const OCTETS: u64 = 64 << 20;
/// Differences listed of one part.
const FOUND: usize = 2_000;

/// Looks at accounts behind `after`, of those that are meant, until it is enough for one part.
pub fn look(
    store: &dyn MailStore,
    side: Side,
    targets: &[Target],
    depth: Depth,
    after: Option<&Account>,
) -> Result<Local, StoreError> {
    let mut local = Local::default();
    let accounts = store.accounts()?.into_iter();
    let accounts = accounts.filter(|account| after.is_none_or(|after| account > after));
    for account in accounts.filter(|account| is_meant(targets, account, None)) {
        let full = local.mailboxes.len() >= MAILBOXES
            || local.octets_read >= OCTETS
            || local.differences.len() >= FOUND;
        if full {
            return Ok(local);
        }
        local.accounts += 1;
        match look_at(store, side, targets, depth, &account, &mut local) {
            Ok(()) => {}
            Err(error) if error.is_fatal() => return Err(error),
            Err(error) => local.incomplete.push(format!("{account}: {}", Chain(&error))),
        }
        local.differences.truncate(FOUND);
        local.next = Some(account);
    }
    local.next = None;
    Ok(local)
}

fn look_at(
    store: &dyn MailStore,
    side: Side,
    targets: &[Target],
    depth: Depth,
    account: &Account,
    local: &mut Local,
) -> Result<(), StoreError> {
    let Some(listing) = store.account(account)? else { return Ok(()) };
    for (name, reason, detail) in listing.unread {
        if is_meant(targets, account, Some(&name)) {
            local.found += 1;
            local.differences.push(unread(account, name, side, format!("{reason}: {detail}")));
        }
    }
    let mailboxes = listing.state.mailboxes.into_iter();
    for state in mailboxes.filter(|state| is_meant(targets, account, Some(&state.name))) {
        let whole = Inspect {
            account: account.clone(),
            mailbox: state.id,
            depth,
            from: Uid(0),
            octets_max: OCTETS,
            slots: Slots::ALL,
            only: Vec::new(),
        };
        let Some((state, flaws)) = inspect(store, whole.clone(), local)? else { continue };
        let stays = again(store, whole, &flaws)?;
        let flaws = flaws.into_iter().filter(|flaw| stays.contains(&(flaw.uid, flaw.kind)));
        for flaw in flaws {
            local.found += 1;
            local.differences.push(Difference::of_flaw(account, &state, side, flaw));
        }
        local.mailboxes.push((account.clone(), state));
    }
    Ok(())
}

/// All of a mailbox, part by part; `None` if it is gone.
fn inspect(
    store: &dyn MailStore,
    mut wanted: Inspect,
    local: &mut Local,
) -> Result<Option<(MailboxState, Vec<Flaw>)>, StoreError> {
    let mut flaws = Vec::new();
    loop {
        let part = store.inspect(&wanted)?;
        let Some(state) = part.state else { return Ok(None) };
        let Inspected { messages, octets, read, octets_read, next, .. } = part;
        local.messages += u64::from(messages);
        local.octets = local.octets.saturating_add(octets);
        local.read += u64::from(read);
        local.octets_read = local.octets_read.saturating_add(octets_read);
        flaws.extend(part.flaws);
        match next {
            Some(next) if next > wanted.from => wanted.from = next,
            _ => return Ok(Some((state, flaws))),
        }
    }
}

/// What of the flaws is still there: mail servers and clients were at work meanwhile.
fn again(
    store: &dyn MailStore,
    wanted: Inspect,
    flaws: &[Flaw],
) -> Result<BTreeSet<(Option<Uid>, FlawKind)>, StoreError> {
    let mut stays = BTreeSet::new();
    let uids: Vec<Uid> = flaws.iter().filter_map(|flaw| flaw.uid).collect();
    if !uids.is_empty() {
        let only = Inspect { only: uids, octets_max: u64::MAX, ..wanted.clone() };
        stays.extend(store.inspect(&only)?.flaws.into_iter().map(|flaw| (flaw.uid, flaw.kind)));
    }
    if flaws.iter().any(|flaw| flaw.uid.is_none()) {
        // The list is looked at where a mailbox begins.
        let first = Inspect { depth: Depth::Files, octets_max: 0, ..wanted };
        stays.extend(store.inspect(&first)?.flaws.into_iter().map(|flaw| (flaw.uid, flaw.kind)));
    }
    Ok(stays)
}

fn unread(account: &Account, name: MailboxName, side: Side, detail: String) -> Difference {
    Difference {
        account: account.clone(),
        mailbox: None,
        name: Some(name),
        uid: None,
        kind: Kind::MailboxUnreadable,
        side,
        detail,
        repair: Repair::None,
        marks: (0, 0),
    }
}
