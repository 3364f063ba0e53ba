//! Answers what a check asks: always from the store as it is now.

use std::{collections::BTreeSet, io::Read as _, sync::Arc};

use mailtwin_logic::{
    check::{BRANCHES, branch},
    digest::{self, Digest},
    graveyard::Wanted,
    ids::{Account, MailboxId, Uid, UidValidity},
    limits::CHUNK_OCTETS,
    mailbox::{MailboxName, Record},
    plan::Mode,
    wire::message::Reply,
};
use mailtwin_store::{Destination, Grave, Octets, Staged, StoreError, graves};

use crate::{
    answer::{ACCOUNTS_PER_LOOK, digest_of, work},
    apply::take_in,
    stream::{Broken, Stream},
};

/// One digest for each branch. That of an account that cannot be read differs, and a closer look says why.
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
    match work(stream, move || store.open(&account, mailbox, uid)).await? {
        Ok(octets) => send_octets(stream, octets, uid).await.map(drop),
        Err(error) => stream.fail(&error).await,
    }
}

/// Sends a message's octets; false if they could not be read to their end, which has then been told.
async fn send_octets(stream: &Stream, octets: Octets, uid: Uid) -> Result<bool, Broken> {
    let mut octets = octets;
    loop {
        let (back, chunk) = match work(stream, move || chunk_of(octets, uid)).await? {
            Ok(read) => read,
            Err(error) => return stream.fail(&error).await.map(|()| false),
        };
        octets = back;
        let more = chunk.len() == CHUNK_OCTETS;
        stream.send(&Reply::Octets { octets: chunk, more }).await?;
        if !more {
            return Ok(true);
        }
    }
}

/// Tells what lies in the graveyard of some messages, with its octets.
pub(crate) async fn graves(
    stream: &Stream,
    (account, mailbox, uid_validity): (Account, MailboxName, UidValidity),
    uids: Vec<Uid>,
) -> Result<(), Broken> {
    let uids: BTreeSet<Uid> = uids.into_iter().collect();
    let wanted = Wanted { account: Some(account), mailbox: Some(mailbox), ..Wanted::default() };
    let store = Arc::clone(&stream.shared().store);
    let look = move || graves::of_messages(&*store, &wanted, uid_validity, &uids);
    let found = match work(stream, look).await? {
        Ok(found) => found,
        Err(error) => return stream.fail(&error).await,
    };
    for grave in found {
        let Grave { at_ms: at, uid, octets, internal_date, .. } = grave;
        let store = Arc::clone(&stream.shared().store);
        match work(stream, move || store.exhume(&grave)).await? {
            Ok(open) => {
                stream.send(&Reply::Grave { at, uid, octets, internal_date }).await?;
                if !send_octets(stream, open, uid.unwrap_or_default()).await? {
                    return Ok(());
                }
            }
            Err(error) => {
                let error = error.of_message(uid.unwrap_or_default());
                stream.fail(&error).await?;
                if !matches!(error, StoreError::Message { .. }) {
                    return Ok(());
                }
            }
        }
    }
    stream.send(&Reply::Done).await
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
