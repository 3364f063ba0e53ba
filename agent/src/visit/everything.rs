//! Visits the whole store: one digest per account tells which of them differ.

use std::collections::BTreeMap;

use mailtwin_logic::{
    digest::{self, Digest},
    entry::Target,
    ids::Account,
    wire::message::{Reply, Request},
};
use mailtwin_store::Listing;

use super::{VisitError, Visited, Visitor, refused};

/// Accounts looked at in one go by a store worker.
const ACCOUNTS_PER_LOOK: usize = 32;

impl Visitor {
    pub(super) async fn everything(&self) -> Result<Visited, VisitError> {
        let moment = self.held.moment();
        let (ours, theirs) = tokio::join!(self.our_accounts(), self.their_accounts());
        let (ours, theirs) = (ours?, theirs?);
        let mut visited = Visited::default();
        for (account, listing) in ours {
            let digest = digest::account(&listing.state);
            if listing.unread.is_empty() && theirs.get(&account) == Some(&digest) {
                for mailbox in &listing.state.mailboxes {
                    self.held.equal_since(moment, &account, mailbox);
                }
            } else {
                visited.dirty.push(Target::Account(account));
            }
        }
        Ok(visited)
    }

    async fn our_accounts(&self) -> Result<Vec<(Account, Listing)>, VisitError> {
        let names = self.work(|store| store.accounts()).await?;
        let mut accounts = Vec::with_capacity(names.len());
        for some in names.chunks(ACCOUNTS_PER_LOOK) {
            let some = some.to_vec();
            let look = self.work(move |store| {
                let mut seen = Vec::with_capacity(some.len());
                for name in some {
                    // What cannot be read here fails in its own visit, not in everybody's.
                    let listing = store.account(&name).unwrap_or_else(|_| Some(unreadable()));
                    seen.extend(listing.map(|listing| (name, listing)));
                }
                Ok(seen)
            });
            accounts.extend(look.await?);
        }
        Ok(accounts)
    }

    async fn their_accounts(&self) -> Result<BTreeMap<Account, Digest>, VisitError> {
        let mut stream = self.connection.ask(&Request::Accounts).await?;
        let mut all = BTreeMap::new();
        loop {
            match stream.reply().await? {
                Reply::Accounts { accounts, more } => {
                    all.extend(accounts);
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
