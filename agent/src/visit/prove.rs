//! Proves that a replica holds what the master holds: a fresh look at both sides, nothing remembered.

use std::collections::BTreeSet;

use mailtwin_host::proof::{Proven, ProvenMailbox};
use mailtwin_logic::{digest, ids::Account, wire::message::Request};
use mailtwin_store::Listing;

use super::{VisitError, Visitor};

/// What a proof came to.
#[derive(Debug)]
pub(crate) enum Proved {
    /// Every account is equal.
    Equal(Vec<Proven>),
    /// These are not.
    Differs(Vec<Account>),
}

impl Visitor {
    /// Looks at every account on both sides.
    pub(crate) async fn prove(&self) -> Result<Proved, VisitError> {
        let ours = self.work(|store| store.accounts()).await?;
        let ours: BTreeSet<Account> = ours.into_iter().collect();
        let theirs = self.their_accounts(&Request::Accounts, |name| ours.contains(name)).await?;
        let (mut proven, mut differs) = (Vec::new(), Vec::new());
        for account in self.work(|store| store.accounts()).await? {
            let name = account.clone();
            let Some(listing) = self.work(move |store| store.account(&name)).await? else {
                continue;
            };
            let digest = digest::account(&listing.state);
            let whole = listing.unread.is_empty() && listing.ailing.is_empty();
            if whole && theirs.get(&account) == Some(&digest) {
                proven.push(proven_account(account, digest, &listing));
            } else {
                differs.push(account);
            }
        }
        Ok(if differs.is_empty() { Proved::Equal(proven) } else { Proved::Differs(differs) })
    }
}

fn proven_account(account: Account, digest: digest::Digest, listing: &Listing) -> Proven {
    let mailboxes = listing.state.mailboxes.iter().map(|mailbox| ProvenMailbox {
        id: mailbox.id,
        uid_next: mailbox.head.uid_next,
        messages: mailbox.head.messages,
    });
    Proven { account, digest, mailboxes: mailboxes.collect() }
}
