//! Answers an agent's requests, one per stream.

use std::sync::Arc;

use mailtwin_host::clock::SystemClock;
use mailtwin_logic::{
    chain::Chain,
    check::branch,
    digest,
    ids::{Account, MailboxId, ModSeq},
    limits::{BLOCKERS_MAX, LISTING_PER_FRAME, RECORDS_WEIGHT_MAX},
    wire::message::{Failure, Remedy, Reply, Request},
};
use mailtwin_store::{Listing, MailStore, Reason, StoreError};

use crate::{
    apply, check,
    fence::{Fence, FenceError},
    stream::{Broken, Stream},
};

/// Accounts looked at in one go by a store worker.
pub(crate) const ACCOUNTS_PER_LOOK: usize = 32;

/// Characters of why a mailbox cannot be read: a list of them has to fit a frame.
const DETAIL_MAX: usize = 300;

/// Answers `request` to its end. What fails is told to the agent; `Err` means it is gone.
pub(crate) async fn run(mut stream: Stream, request: Request) -> Result<(), Broken> {
    let store = Arc::clone(&stream.shared().store);
    match request {
        Request::Accounts => accounts(&stream, |_| true).await,
        Request::Account(name) => {
            let look = move || store.account(&name);
            match work(&stream, look).await? {
                Ok(listing) => send_listing(&stream, listing.unwrap_or_default()).await,
                Err(error) => stream.fail(&error).await,
            }
        }
        Request::Records { account, mailbox } => records(&stream, account, mailbox).await,
        Request::Restructure { account, steps } => {
            done(&stream, move || store.restructure(&account, &steps)).await
        }
        Request::SetFile { account, key, content } => {
            done(&stream, move || store.set_file(&account, &key, content.as_deref())).await
        }
        Request::Apply(apply) => apply::run(&mut stream, apply).await,
        Request::Preflight => preflight(&stream).await,
        Request::About => {
            let (version, clock) = (env!("CARGO_PKG_VERSION").to_owned(), SystemClock::shared());
            stream.send(&Reply::About { version, clock: clock.unix_ms() }).await
        }
        Request::Promote { epoch, closed_at, forced } => {
            tracing::info!(%epoch, closed_at, from = %stream.shared().agent, "asked to be the master");
            let agent = stream.shared().agent.clone();
            fenced(&stream, move |fence| fence.promote(epoch, &agent, forced)).await
        }
        Request::Adopt { account, marks } => {
            let adopt = move || {
                marks.iter().try_for_each(|&(mailbox, below)| {
                    store.adopt(&account, mailbox, below).map(|_| ())
                })
            };
            done(&stream, adopt).await
        }
        Request::Merged { epoch } => {
            let agent = stream.shared().agent.clone();
            fenced(&stream, move |fence| fence.merged(epoch, &agent)).await
        }
        Request::Tree => check::tree(&stream).await,
        Request::Branch(wanted) => {
            accounts(&stream, |account| wanted.contains(&branch(account))).await
        }
        Request::Inspect(wanted) => match work(&stream, move || store.inspect(&wanted)).await? {
            Ok(inspected) => stream.send(&Reply::Inspected(inspected)).await,
            Err(error) => stream.fail(&error).await,
        },
        Request::Fetch { account, mailbox, uid } => {
            check::fetch(&stream, account, mailbox, uid).await
        }
        Request::Mend { account, mailbox, record } => {
            check::mend(&mut stream, account, mailbox, record).await
        }
        Request::GiveUp { account, mailbox, messages } => {
            done(&stream, move || store.give_up(&account, mailbox, &messages)).await
        }
        Request::Graves { account, mailbox, uid_validity, uids } => {
            check::graves(&stream, (account, mailbox, uid_validity), uids).await
        }
    }
}

async fn preflight(stream: &Stream) -> Result<(), Broken> {
    let readiness = Arc::clone(&stream.shared().readiness);
    let store = Arc::clone(&stream.shared().store);
    let look = move || {
        let mut blockers = readiness();
        let lost = store.verify().err();
        blockers.extend(lost.map(|error| format!("the mail store: {}", Chain(&error))));
        blockers.truncate(BLOCKERS_MAX);
        Ok(blockers)
    };
    match work(stream, look).await? {
        Ok(blockers) => {
            let clock = SystemClock::shared().unix_ms();
            stream.send(&Reply::Ready { clock, blockers }).await
        }
        Err(error) => stream.fail(&error).await,
    }
}

/// Changes what this node is; on disk before it is answered.
async fn fenced(
    stream: &Stream,
    change: impl FnOnce(&Fence) -> Result<(), FenceError> + Send + 'static,
) -> Result<(), Broken> {
    let fence = stream.shared().fence.clone();
    match work(stream, move || Ok(change(&fence))).await? {
        Ok(Ok(())) => stream.send(&Reply::Done).await,
        Ok(Err(error)) => {
            let (reason, detail) = (Reason::Refused.to_string(), Chain(&error).to_string());
            let failure = Failure { remedy: Remedy::Reconnect, reason, detail };
            stream.send(&Reply::Failed(failure)).await
        }
        Err(error) => stream.fail(&error).await,
    }
}

pub(crate) async fn work<T: Send + 'static>(
    stream: &Stream,
    call: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<Result<T, StoreError>, Broken> {
    stream.shared().workers.run(call).await.map_err(|_| Broken)
}

async fn done(
    stream: &Stream,
    call: impl FnOnce() -> Result<(), StoreError> + Send + 'static,
) -> Result<(), Broken> {
    match work(stream, call).await? {
        Ok(()) => stream.send(&Reply::Done).await,
        Err(error) => stream.fail(&error).await,
    }
}

async fn accounts(stream: &Stream, wanted: impl Fn(&Account) -> bool) -> Result<(), Broken> {
    let store = Arc::clone(&stream.shared().store);
    let mut names = match work(stream, move || store.accounts()).await? {
        Ok(names) => names,
        Err(error) => return stream.fail(&error).await,
    };
    names.retain(wanted);
    for some in names.chunks(ACCOUNTS_PER_LOOK) {
        let (store, some) = (Arc::clone(&stream.shared().store), some.to_vec());
        let look = move || {
            let digest = |name: &Account| digest_of(&*store, name);
            Ok(some.iter().filter_map(|name| Some((name.clone(), digest(name)?))).collect())
        };
        match work(stream, look).await? {
            Ok(accounts) => stream.send(&Reply::Accounts { accounts, more: true }).await?,
            Err(error) => return stream.fail(&error).await,
        }
    }
    stream.send(&Reply::Accounts { accounts: Vec::new(), more: false }).await
}

/// `None` if the account is not there. One that cannot be read differs from any that can: it must not
/// pass for one that has nothing to be copied back, and its visit says why.
pub(crate) fn digest_of(store: &dyn MailStore, account: &Account) -> Option<digest::Digest> {
    match store.account(account) {
        Ok(None) => None,
        Ok(Some(listing)) if listing.unread.is_empty() => Some(digest::account(&listing.state)),
        Ok(Some(_)) | Err(_) => Some(digest::Digest::UNREADABLE),
    }
}

async fn send_listing(stream: &Stream, listing: Listing) -> Result<(), Broken> {
    for some in listing.state.mailboxes.chunks(LISTING_PER_FRAME) {
        let (mailboxes, files, unread) = (some.to_vec(), Vec::new(), Vec::new());
        stream.send(&Reply::Account { mailboxes, files, unread, more: true }).await?;
    }
    for some in listing.state.files.chunks(LISTING_PER_FRAME) {
        let (mailboxes, files, unread) = (Vec::new(), some.to_vec(), Vec::new());
        stream.send(&Reply::Account { mailboxes, files, unread, more: true }).await?;
    }
    let unread = listing.unread.into_iter().take(LISTING_PER_FRAME);
    let unread = unread.map(|(name, reason, detail)| {
        let detail: String = detail.chars().take(DETAIL_MAX).collect();
        (name, format!("{reason}: {detail}"))
    });
    let unread = unread.collect();
    let (mailboxes, files) = (Vec::new(), Vec::new());
    stream.send(&Reply::Account { mailboxes, files, unread, more: false }).await
}

async fn records(stream: &Stream, account: Account, id: MailboxId) -> Result<(), Broken> {
    let store = Arc::clone(&stream.shared().store);
    let delta = match work(stream, move || store.delta(&account, id, ModSeq(0))).await? {
        Ok(delta) => delta,
        Err(StoreError::NotFound { .. }) => {
            let (state, records) = (None, Vec::new());
            return stream.send(&Reply::Records { state, records, more: false }).await;
        }
        Err(error) => return stream.fail(&error).await,
    };
    let state = Some(delta.state);
    let (mut part, mut weight) = (Vec::new(), 0);
    for mut record in delta.records {
        record.hint = Box::default(); // the agent has the master's own
        weight += record.weight();
        part.push(record);
        if weight > RECORDS_WEIGHT_MAX {
            let records = std::mem::take(&mut part);
            stream.send(&Reply::Records { state: state.clone(), records, more: true }).await?;
            weight = 0;
        }
    }
    stream.send(&Reply::Records { state, records: part, more: false }).await
}
