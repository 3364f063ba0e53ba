//! Asks both sides: this store by calls, the replica's over the connection.

use std::collections::BTreeMap;

use mailtwin_logic::{
    check::{BRANCHES, Flaw, Inspect, Inspected, Side, branch},
    digest::{self, Digest},
    ids::{Account, Uid},
    mailbox::MailboxState,
    wire::message::{Reply, Request},
};
use mailtwin_store::{Listing, Reason};

use super::Checker;
use crate::visit::{Trouble, VisitError, refused};

/// Flaws kept of one mailbox.
const FLAWS_MAX: usize = 10_000;

/// This side's accounts.
pub(super) struct Ours {
    pub(super) branches: Vec<Digest>,
    /// Absent where it could not be listed.
    pub(super) accounts: BTreeMap<Account, Option<Digest>>,
}

/// What one side found in a mailbox.
#[derive(Debug, Default)]
pub(super) struct Sum {
    pub(super) state: Option<MailboxState>,
    pub(super) digest: Digest,
    pub(super) messages: u64,
    pub(super) octets: u64,
    pub(super) read: u64,
    pub(super) octets_read: u64,
    pub(super) flaws: Vec<Flaw>,
}

impl Sum {
    fn take(&mut self, part: Inspected) {
        self.state = part.state.or_else(|| self.state.take());
        self.digest.merge(part.digest);
        self.messages += u64::from(part.messages);
        self.octets = self.octets.saturating_add(part.octets);
        self.read += u64::from(part.read);
        self.octets_read = self.octets_read.saturating_add(part.octets_read);
        let room = FLAWS_MAX.saturating_sub(self.flaws.len());
        self.flaws.extend(part.flaws.into_iter().take(room));
    }
}

impl Checker {
    pub(super) async fn our_listing(
        &self,
        account: &Account,
    ) -> Result<Option<Listing>, VisitError> {
        let name = account.clone();
        self.visitor.work(move |store| store.account(&name)).await
    }

    /// Every account of this side, two at once.
    pub(super) async fn ours(
        &self,
        names: Vec<Account>,
        count: impl Fn(&Listing) + Sync,
    ) -> Result<Ours, VisitError> {
        let (some, others) = names.split_at(names.len() / 2);
        let (mut accounts, others) =
            tokio::try_join!(self.digests(some, &count), self.digests(others, &count))?;
        accounts.extend(others);
        let mut branches = vec![Digest::default(); BRANCHES];
        for (account, digest) in &accounts {
            if let (Some(sum), Some(digest)) =
                (branches.get_mut(usize::from(branch(account))), digest)
            {
                sum.merge(digest::twig(account, *digest));
            }
        }
        Ok(Ours { branches, accounts })
    }

    async fn digests(
        &self,
        names: &[Account],
        count: &(impl Fn(&Listing) + Sync),
    ) -> Result<BTreeMap<Account, Option<Digest>>, VisitError> {
        let mut digests = BTreeMap::new();
        for name in names {
            let digest = match self.our_listing(name).await {
                Ok(Some(listing)) => {
                    count(&listing);
                    let whole = listing.unread.is_empty();
                    whole.then(|| digest::account(&listing.state))
                }
                // Gone since it was named.
                Ok(None) => continue,
                // Its own look says what is wrong.
                Err(VisitError::Target(_)) => None,
                Err(error) => return Err(error),
            };
            digests.insert(name.clone(), digest);
        }
        Ok(digests)
    }

    pub(super) async fn their_tree(&self) -> Result<Vec<Digest>, VisitError> {
        match self.visitor.connection.ask(&Request::Tree).await?.reply().await? {
            Reply::Tree(branches) => Ok(branches),
            other => Err(refused(other)),
        }
    }

    /// What one side finds in a mailbox, part by part.
    pub(super) async fn inspect(&self, side: Side, wanted: Inspect) -> Result<Sum, VisitError> {
        let pace = if side == Side::Master { &self.paces.0 } else { &self.paces.1 };
        let mut wanted = Inspect { octets_max: pace.part(), from: Uid(0), ..wanted };
        let mut sum = Sum::default();
        loop {
            let asked = wanted.clone();
            let part = if side == Side::Master {
                self.visitor.work(move |store| store.inspect(&asked)).await?
            } else {
                match self.visitor.connection.ask(&Request::Inspect(asked)).await?.reply().await? {
                    Reply::Inspected(part) => part,
                    other => return Err(refused(other)),
                }
            };
            let (next, octets) = (part.next, part.octets_read);
            sum.take(part);
            pace.took(octets).await;
            match next {
                None => return Ok(sum),
                Some(next) if next > wanted.from => wanted.from = next,
                Some(_) => {
                    return Err(VisitError::Replica(Trouble::new(
                        Reason::Refused,
                        "replica: its answer leads nowhere".into(),
                    )));
                }
            }
        }
    }
}
