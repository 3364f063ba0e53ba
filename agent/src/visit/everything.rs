//! Visits the whole store: one digest per account tells which of them differ.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::OnceLock,
};

use mailtwin_logic::{
    digest::{self, Digest},
    entry::Target,
    ids::Account,
    limits::LISTED_ACCOUNTS_MAX,
    wire::message::{Reply, Request},
};
use mailtwin_store::{Listing, MailStore};

use super::{Listed, VisitError, Visited, Visitor, held::Moment, refused};
use crate::link::Finds;

/// What accounts are compared with.
struct Comparison<'a> {
    moment: Moment,
    /// The replica's accounts, once it has said all.
    theirs: &'a OnceLock<BTreeMap<Account, Digest>>,
    finds: &'a Finds,
}

impl Visitor {
    /// What differs is told at once: a first copy must not wait until all mail has been read.
    pub(super) async fn everything(&self, finds: &Finds) -> Result<Visited, VisitError> {
        let moment = self.held.moment();
        self.progress.begin();
        let names = self.work(|store| store.accounts()).await?;
        self.brake.set_accounts(names.len());
        let theirs = OnceLock::new();
        let ask = async {
            // Set once, here.
            let ours: BTreeSet<&Account> = names.iter().collect();
            let is_ours = |name: &Account| ours.contains(name);
            let _ = theirs.set(self.their_accounts(&Request::Accounts, is_ours).await?);
            Ok(())
        };
        let comparison = Comparison { moment, theirs: &theirs, finds };
        // Two at once: a first look reads every message. More would keep other visits waiting.
        let (some, others) = names.split_at(names.len() / 2);
        let (some, others) = (self.look_at(some, &comparison), self.look_at(others, &comparison));
        let ((), mut some, mut others) = tokio::try_join!(ask, some, others)?;
        some.append(&mut others);
        self.compare_accounts(&mut some, &comparison).await;
        self.progress.counted();
        Ok(Visited::default())
    }

    /// Returns what was seen before the replica's accounts were known.
    async fn look_at(
        &self,
        names: &[Account],
        comparison: &Comparison<'_>,
    ) -> Result<Vec<(Account, Listing)>, VisitError> {
        let mut seen = Vec::new();
        for name in names {
            let account = name.clone();
            // What cannot be read here fails in its own visit, not in everybody's.
            let look = move |store: &dyn MailStore| {
                Ok(store.account(&account).unwrap_or_else(|_| Some(unreadable())))
            };
            seen.extend(self.work(look).await?.map(|listing| (name.clone(), listing)));
            self.compare_accounts(&mut seen, comparison).await;
        }
        Ok(seen)
    }

    /// Takes accounts out of `seen`, if the replica's are known.
    async fn compare_accounts(
        &self,
        seen: &mut Vec<(Account, Listing)>,
        Comparison { moment, theirs, finds }: &Comparison<'_>,
    ) {
        let Some(theirs) = theirs.get() else { return };
        let mut differing = Vec::new();
        for (account, listing) in seen.drain(..) {
            let digest = digest::account(&listing.state);
            let whole = listing.unread.is_empty() && listing.ailing.is_empty();
            if whole && theirs.get(&account) == Some(&digest) {
                self.progress.equal(&listing.state.mailboxes);
                for mailbox in &listing.state.mailboxes {
                    self.held.equal_since(*moment, &account, mailbox);
                }
            } else {
                self.progress.account(&account, &listing.state.mailboxes, None);
                differing.push(Target::Account(account));
            }
        }
        if !differing.is_empty() {
            finds.tell(differing).await;
        }
    }

    /// The replica's accounts, as `request` asks for them, as far as they are `wanted`. Others are
    /// not remembered, however many it lists.
    pub(crate) async fn their_accounts(
        &self,
        request: &Request,
        wanted: impl Fn(&Account) -> bool,
    ) -> Result<BTreeMap<Account, Digest>, VisitError> {
        let mut stream = self.connection.ask(request).await?;
        let (mut all, mut parts) = (BTreeMap::new(), Listed::of_at_most(LISTED_ACCOUNTS_MAX));
        loop {
            match stream.reply().await? {
                Reply::Accounts { accounts, more } => {
                    parts.take(accounts.len())?;
                    all.extend(accounts.into_iter().filter(|(account, _)| wanted(account)));
                    if !more {
                        return Ok(all);
                    }
                }
                other => return Err(refused(other)),
            }
        }
    }
}

/// Stands for a listing that failed: equal to none.
fn unreadable() -> Listing {
    let unread = (
        mailtwin_logic::mailbox::MailboxName::inbox(),
        mailtwin_store::Reason::Io,
        "cannot be listed".to_owned(),
    );
    Listing { unread: vec![unread], ..Listing::default() }
}
