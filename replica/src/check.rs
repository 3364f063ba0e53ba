//! Answers what a check asks: always from the store as it is now.

use std::{io::Read as _, sync::Arc};

use mailtwin_logic::{
    check::{BRANCHES, branch},
    digest::{self, Digest},
    ids::{Account, MailboxId, Uid},
    limits::CHUNK_OCTETS,
    mailbox::{MailboxName, Record},
    plan::Mode,
    wire::message::Reply,
};
use mailtwin_store::{Destination, Octets, Staged, StoreError};

use crate::{
    answer::{ACCOUNTS_PER_LOOK, digest_of, work},
    apply::take_in,
    stream::{Broken, Stream},
};

/// One digest for each branch. An account that cannot be read counts as one that is not there: its
/// branch then differs, and a closer look says why.
pub(crate) async fn tree(stream: &Stream) -> Result<(), Broken> {
    let store = Arc::clone(&stream.shared().store);
    let names = match work(stream, move || store.accounts()).await? {
        Ok(names) => names,
        Err(error) => return stream.fail(&error).await,
    };
    let mut branches = vec![Digest::default(); BRANCHES];
    for some in names.chunks(ACCOUNTS_PER_LOOK) {
        let (store, some) = (Arc::clone(&stream.shared().store), some.to_vec());
        let look = move || {
            let digest = |name: Account| digest_of(&*store, &name).map(|digest| (name, digest));
            Ok(some.into_iter().filter_map(digest).collect::<Vec<_>>())
        };
        let digests = match work(stream, look).await? {
            Ok(digests) => digests,
            Err(error) => return stream.fail(&error).await,
        };
        for (name, digest) in digests {
            if let Some(sum) = branches.get_mut(usize::from(branch(&name))) {
                sum.merge(digest::twig(&name, digest));
            }
        }
    }
    stream.send(&Reply::Tree(branches)).await
}

/// Sends a message's octets.
pub(crate) async fn fetch(
    stream: &Stream,
    account: Account,
    mailbox: MailboxId,
    uid: Uid,
) -> Result<(), Broken> {
    let store = Arc::clone(&stream.shared().store);
    let mut octets = match work(stream, move || store.open(&account, mailbox, uid)).await? {
        Ok(octets) => octets,
        Err(error) => return stream.fail(&error).await,
    };
    loop {
        let (back, chunk) = match work(stream, move || chunk_of(octets, uid)).await? {
            Ok(read) => read,
            Err(error) => return stream.fail(&error).await,
        };
        octets = back;
        let more = chunk.len() == CHUNK_OCTETS;
        stream.send(&Reply::Octets { octets: chunk, more }).await?;
        if !more {
            return Ok(());
        }
    }
}

fn chunk_of(mut octets: Octets, uid: Uid) -> Result<(Octets, Vec<u8>), StoreError> {
    let mut chunk = Vec::new();
    let read = octets.by_ref().take(CHUNK_OCTETS as u64).read_to_end(&mut chunk);
    read.map_err(|source| {
        let path = format!("message {uid}").into();
        StoreError::Io { op: "read", path, source }
    })?;
    Ok((octets, chunk))
}

/// Mends one message: with its own octets, with the same from elsewhere here, or with those the
/// agent sends.
pub(crate) async fn mend(
    stream: &mut Stream,
    account: Account,
    mailbox: MailboxId,
    record: Record,
) -> Result<(), Broken> {
    let uid = record.uid;
    // The name is not looked at where nothing is built.
    let name = MailboxName::inbox();
    let to = Destination { account: account.clone(), mailbox, name, mode: Mode::Repair };
    let (store, whose, place, wanted) =
        (Arc::clone(&stream.shared().store), account.clone(), to.clone(), record.clone());
    let alone = move || {
        if store.mend(&whose, mailbox, uid, None)? {
            return Ok(None);
        }
        store.stage_held(&place, &wanted).map(Some)
    };
    let staged = match work(stream, alone).await? {
        Ok(None) => {
            stream.send(&Reply::Need(Vec::new())).await?;
            return stream.send(&Reply::Done).await;
        }
        Ok(Some(Some(staged))) => {
            stream.send(&Reply::Need(Vec::new())).await?;
            staged
        }
        Ok(Some(None)) => match take(stream, &to, record).await? {
            Ok(staged) => staged,
            Err(error) => return stream.fail(&error).await,
        },
        Err(error) => return stream.fail(&error).await,
    };
    let store = Arc::clone(&stream.shared().store);
    let put = move || store.mend(&account, mailbox, uid, Some(staged)).map(drop);
    match work(stream, put).await? {
        Ok(()) => stream.send(&Reply::Done).await,
        Err(error) => stream.fail(&error).await,
    }
}

async fn take(
    stream: &mut Stream,
    to: &Destination,
    record: Record,
) -> Result<Result<Staged, StoreError>, Broken> {
    stream.send(&Reply::Need(vec![0])).await?;
    let taken = take_in(stream, to, vec![(0, record)]).await?;
    Ok(taken.and_then(|mut staged| {
        let absent = || StoreError::NotFound { what: "the message that was sent".into() };
        staged.pop().map(|(_, staged)| staged).ok_or_else(absent)
    }))
}
