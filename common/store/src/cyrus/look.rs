//! Looks at accounts and mailboxes as they are now, cheaply where nothing has changed.

use std::collections::{BTreeMap, BTreeSet};

use mailtwin_cyrus::{
    mailbox::Mailbox,
    names::{self, Named},
};
use mailtwin_logic::{
    ids::{Account, MailboxId},
    mailbox::{AccountState, MailboxName},
};

use super::{
    Cell, Cyrus,
    server::User,
    snapshot::{Snapshot, id_of},
};
use crate::{Listing, Problem, ProblemKind, StoreError};

/// Problems told of.
pub(super) const PROBLEMS_MAX: usize = 1000;

/// How often an account is looked at whose mailboxes move meanwhile.
const LOOKS: usize = 8;

/// Messages remembered by their octets.
const BODIES_MAX: usize = 1_000_000;

impl Cyrus {
    pub(super) fn list_accounts(&self) -> Result<Vec<Account>, StoreError> {
        self.verify_store()?;
        let users = self.server.users()?;
        Ok(users.iter().filter_map(|user| Account::new(user).ok()).collect())
    }

    pub(super) fn look_at_account(
        &self,
        account: &Account,
        cell: &mut Cell,
    ) -> Result<Option<Listing>, StoreError> {
        let (user, untold) = self.tell_all(account, cell)?;
        cell.has_list |= !user.subscribed.is_empty();
        let mut listing = Listing::default();
        let mut problems = Vec::new();
        let mut seen = BTreeMap::new();
        for mailbox in &user.mailboxes {
            let Some(name) = folder(account, mailbox, &mut listing, &mut problems) else {
                continue;
            };
            cell.virtual_domain = Some(mailbox.name.contains(&b'!'));
            if mailbox.is_intermediate() {
                continue;
            }
            seen.insert(id_of(mailbox), name.clone());
            match self.refresh(account, cell, mailbox.clone(), name.clone()) {
                Ok(Some(snapshot)) => listing.state.mailboxes.push(snapshot.state()),
                Ok(None) => {}
                Err(error) => unread(&mut listing, &name, &error)?,
            }
        }
        self.miss_none(cell, untold, &seen, &mut listing)?;
        if user.mailboxes.is_empty() && listing.unread.is_empty() {
            return Ok(None);
        }
        listing.state.files = self.list_files(account, &user, cell, &mut problems)?;
        let AccountState { mailboxes, .. } = &mut listing.state;
        mailboxes.sort_by(|a, b| a.name.cmp(&b.name));
        super::lock(&self.problems).insert(account.clone(), problems);
        Ok(Some(listing))
    }

    /// All about an account, and which names are listed but nothing is told of them. What moves while
    /// it is looked at may be met at neither of its places: then it is looked at again.
    fn tell_all(
        &self,
        account: &Account,
        cell: &Cell,
    ) -> Result<(User, BTreeSet<Vec<u8>>), StoreError> {
        let mut before = None;
        for _ in 0..LOOKS {
            let listed = self.listed(account, cell)?;
            let user = self.server.user(account.as_str(), &listed)?;
            let mut untold: BTreeSet<Vec<u8>> = listed.into_iter().collect();
            let mut lost: BTreeSet<MailboxId> = cell.boxes.keys().copied().collect();
            for mailbox in &user.mailboxes {
                untold.remove(&mailbox.name);
                lost.remove(&id_of(mailbox));
            }
            let missing = (untold, lost);
            let is_steady = missing.0.is_subset(&cell.silent) && missing.1.is_empty();
            if is_steady || before.as_ref() == Some(&missing) {
                return Ok((user, missing.0));
            }
            before = Some(missing);
        }
        let source = std::io::Error::other("its mailboxes move faster than they are listed");
        Err(StoreError::Io { op: "look at", path: account.as_str().into(), source })
    }

    /// Neither what was there the last time nor what IMAP lists may be missing without a proof: the
    /// replication protocol says nothing of mailboxes that it cannot read.
    fn miss_none(
        &self,
        cell: &mut Cell,
        mut untold: BTreeSet<Vec<u8>>,
        seen: &BTreeMap<MailboxId, MailboxName>,
        listing: &mut Listing,
    ) -> Result<(), StoreError> {
        let lost: Vec<MailboxId> =
            cell.boxes.keys().filter(|id| !seen.contains_key(id)).copied().collect();
        for id in lost {
            let Some(snapshot) = cell.boxes.get(&id) else { continue };
            let (at, name) = (snapshot.mailbox.name.clone(), snapshot.name.clone());
            match self.server.full(&at) {
                Ok(_) => drop(cell.boxes.remove(&id)),
                Err(error) => {
                    unread(listing, &name, &error)?;
                    untold.remove(&at);
                }
            }
        }
        cell.silent.retain(|at| untold.contains(at));
        untold.retain(|at| !cell.silent.contains(at));
        for at in untold {
            let Named::Folder { folder, .. } = names::meaning(&at) else { continue };
            let Ok(name) = MailboxName::new(&folder) else { continue };
            match self.server.full(&at) {
                Ok(Some(_)) => drop(cell.silent.insert(at)),
                // With an `@` it may have been another's, in a virtual domain.
                Ok(None) if at.contains(&b'@') => drop(cell.silent.insert(at)),
                Ok(None) => {
                    let why = "Cyrus lists it, and knows no such mailbox".to_owned();
                    let path = at.escape_ascii().to_string().into();
                    unread(listing, &name, &StoreError::Corrupt { path, why })?;
                }
                Err(error) => unread(listing, &name, &error)?,
            }
        }
        Ok(())
    }

    /// Internal names of an account's mailboxes, as IMAP lists them.
    pub(super) fn listed(
        &self,
        account: &Account,
        cell: &Cell,
    ) -> Result<Vec<Vec<u8>>, StoreError> {
        let whose = account.as_str();
        if names::is_shared(whose) {
            let listed = self.server.list_shared(whose)?.into_iter();
            return Ok(listed.filter(|(_, is_place)| !is_place).map(|(name, _)| name).collect());
        }
        let separator = self.server.separator()?;
        let mut found = Vec::new();
        for in_domain in [true, false] {
            let is_known = cell.virtual_domain.is_some_and(|known| known != in_domain);
            if is_known || (in_domain && !whose.contains('@')) {
                continue;
            }
            let Ok(inbox) = names::internal(whose, b"", in_domain) else { continue };
            let inbox = names::external(&inbox, separator);
            let inbox = String::from_utf8_lossy(&inbox);
            let patterns = names::with_all_below(&inbox, separator, in_domain);
            let listed = self.server.list(&patterns)?.into_iter();
            found.extend(listed.map(|n| names::internal_of(&n, separator, in_domain)));
        }
        found.retain(|name| match names::meaning(name) {
            Named::Folder { user, .. } | Named::Odd { user } => user == whose,
            Named::Other => false,
        });
        Ok(found)
    }

    /// A mailbox by its name, as it is now.
    pub(super) fn find_one<'a>(
        &self,
        account: &Account,
        cell: &'a mut Cell,
        name: &MailboxName,
    ) -> Result<Option<&'a Snapshot>, StoreError> {
        let Ok(at) = self.internal(account, cell, name)? else { return Ok(None) };
        let Some(mailbox) = self.server.by_name(&at)? else { return Ok(None) };
        if mailbox.is_intermediate() || !mailbox.is_mail() {
            return Ok(None);
        }
        let refreshed = self.refresh(account, cell, mailbox, name.clone())?;
        Ok(refreshed.map(|snapshot| &*snapshot))
    }

    /// A mailbox by its identity, as it is now.
    pub(super) fn refresh_id<'a>(
        &self,
        account: &Account,
        cell: &'a mut Cell,
        id: MailboxId,
    ) -> Result<Option<&'a mut Snapshot>, StoreError> {
        if !cell.boxes.contains_key(&id) {
            self.look_at_account(account, cell)?;
        }
        let Some(snapshot) = cell.boxes.get(&id) else { return Ok(None) };
        let Mailbox { unique_id, name, .. } = &snapshot.mailbox;
        let mailbox = self.server.by_id(unique_id, name)?;
        let Some(mailbox) = mailbox.filter(|mailbox| !mailbox.is_intermediate()) else {
            cell.boxes.remove(&id);
            return Ok(None);
        };
        let Named::Folder { user, folder } = names::meaning(&mailbox.name) else {
            cell.boxes.remove(&id); // deleted, and not yet gone
            return Ok(None);
        };
        match MailboxName::new(&folder) {
            Ok(name) if user == account.as_str() => self.refresh(account, cell, mailbox, name),
            _ => Ok(None),
        }
    }

    /// The internal name of a mailbox, or why it can have none.
    pub(super) fn internal(
        &self,
        account: &Account,
        cell: &mut Cell,
        name: &MailboxName,
    ) -> Result<Result<Vec<u8>, StoreError>, StoreError> {
        let user = account.as_str();
        if names::is_shared(user) {
            cell.virtual_domain = Some(true);
        }
        if cell.virtual_domain.is_none() && user.contains('@') {
            let listed = self.listed(account, cell)?;
            cell.virtual_domain = listed.first().map(|name| name.contains(&b'!'));
        }
        let virtual_domain = cell.virtual_domain.unwrap_or(true);
        let internal = names::internal(user, name.as_octets(), virtual_domain);
        Ok(internal.map_err(|why| StoreError::Name { name: format!("{account}/{name}"), why }))
    }

    /// Brings what is known of a mailbox up to what `header` says; `None` if it has gone meanwhile.
    pub(super) fn refresh<'a>(
        &self,
        account: &Account,
        cell: &'a mut Cell,
        header: Mailbox,
        name: MailboxName,
    ) -> Result<Option<&'a mut Snapshot>, StoreError> {
        let id = id_of(&header);
        let is_known = cell.boxes.get(&id).is_some_and(|snapshot| snapshot.is_of(&header));
        if is_known {
            let snapshot = cell.boxes.get_mut(&id);
            if let Some(snapshot) = snapshot {
                (snapshot.mailbox, snapshot.name) = (header, name);
                return Ok(Some(snapshot));
            }
            return Ok(None);
        }
        let Some((mailbox, messages)) = self.server.full(&header.name)? else {
            cell.boxes.remove(&id);
            return Ok(None);
        };
        if id_of(&mailbox) != id {
            return Ok(None); // another one stands there by now
        }
        let held = self.held(id)?;
        let new = || Snapshot::new(header, name.clone());
        let snapshot = cell.boxes.entry(id).or_insert_with(new);
        snapshot.name = name;
        snapshot.learn(mailbox, messages, &held);
        self.remember(account, snapshot);
        Ok(Some(snapshot))
    }

    pub(super) fn remember(&self, account: &Account, snapshot: &Snapshot) {
        let mut bodies = super::lock(&self.bodies);
        if bodies.len() > BODIES_MAX {
            bodies.clear();
        }
        for record in snapshot.records() {
            bodies.insert(record.guid, (account.clone(), snapshot.id(), record.uid));
        }
    }
}

/// The name of a mailbox of ours; one that cannot be replicated is told of.
fn folder(
    account: &Account,
    mailbox: &Mailbox,
    listing: &mut Listing,
    problems: &mut Vec<Problem>,
) -> Option<MailboxName> {
    let object = mailbox.name.escape_ascii().to_string();
    let tell = |kind, detail: &str| Problem {
        kind,
        account: Some(account.clone()),
        mailbox: None,
        object: object.clone(),
        detail: detail.to_owned(),
    };
    match names::meaning(&mailbox.name) {
        Named::Folder { user, folder } if user == account.as_str() => {
            if !mailbox.is_mail() && !mailbox.is_intermediate() {
                let kind = &mailbox.kind;
                let detail = format!("of type {kind}, which is not mail: it is not replicated");
                problems.push(tell(ProblemKind::NotAMessage, &detail));
                return None;
            }
            let name = MailboxName::new(&folder).ok();
            if name.is_none() {
                problems.push(tell(ProblemKind::Name, "the name is too long to be replicated"));
            }
            name
        }
        Named::Odd { .. } => {
            let detail = "a part of the name is `.`, `..` or has a slash: it is not replicated";
            problems.push(tell(ProblemKind::Name, detail));
            // It is there: what a replica has under its identity is not to be taken away.
            let reason = crate::Reason::Name;
            let name = MailboxName::new(object.replace('/', "_").as_bytes())
                .unwrap_or_else(|_| MailboxName::inbox());
            listing.unread.push((name, reason, detail.to_owned()));
            None
        }
        // Deleted and not yet gone.
        Named::Folder { .. } | Named::Other => None,
    }
}

/// Lists a mailbox that cannot be read, unless it is not the mailbox's fault.
fn unread(listing: &mut Listing, name: &MailboxName, error: &StoreError) -> Result<(), StoreError> {
    let detail = mailtwin_logic::chain::Chain(error).to_string();
    if error.reason() == crate::Reason::Busy {
        let source = std::io::Error::other(detail);
        return Err(StoreError::Io { op: "look at", path: name.to_string().into(), source });
    }
    listing.unread.push((name.clone(), error.reason(), detail));
    Ok(())
}
