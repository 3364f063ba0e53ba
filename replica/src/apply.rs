//! One apply, from the request to the ack: what is held, what is needed, octets in, commit.

use std::sync::Arc;

use bytes::Bytes;
use mailtwin_logic::{
    mailbox::{Head, Record},
    plan::{Change, Mode},
    wire::message::{Apply, Reply},
};
use mailtwin_store::{Batch, Destination, MailStore, Staged, StoreError};

use crate::{
    intake::Intake,
    stream::{Broken, Stream},
};

/// Octets taken from the stream before a store worker is asked to write them.
const GULP: usize = 256 << 10;

/// Carries one apply out. Refusals are told to the agent here; an `Err` means the stream is gone.
pub(crate) async fn run(stream: &mut Stream, apply: Apply) -> Result<(), Broken> {
    let to = Destination {
        account: apply.account.clone(),
        mailbox: apply.mailbox,
        name: apply.name.clone(),
        mode: apply.mode,
    };
    let under_way = stream.shared().is_building(&to);
    if under_way.as_ref().is_some_and(|name| *name != to.name) {
        // Renamed on the master between two visits: that of the old name is still under way.
        return stream.fail(&StoreError::Stale(None)).await;
    }
    let (begun, last) = (under_way.is_some(), apply.last);
    // Noted before anything is built, so that nothing half-built outlives its session unnoticed.
    stream.shared().builds(&to, to.mode == Mode::Build);
    let result = carry_out(stream, &to, apply, begun).await;
    let built = matches!(result, Ok(Ok(_)));
    if to.mode == Mode::Build && !built {
        abandon(stream, &to).await?;
    }
    if last || !built {
        stream.shared().builds(&to, false);
    }
    match result? {
        Ok(head) => stream.send(&Reply::Applied(head)).await,
        Err(error) => stream.fail(&error).await,
    }
}

async fn carry_out(
    stream: &mut Stream,
    to: &Destination,
    apply: Apply,
    begun: bool,
) -> Result<Result<Head, StoreError>, Broken> {
    let adds: Vec<Record> = apply.changes.iter().filter_map(added).cloned().collect();
    if to.mode == Mode::Build && !begun {
        abandon(stream, to).await?; // what a session that broke off may have left
    }
    let (held, needed) = match prepare(stream, to, apply.expect, adds, begun).await? {
        Ok(prepared) => prepared,
        Err(error) => return Ok(Err(error)),
    };
    let _turn = if needed.is_empty() { None } else { stream.shared().committer.turn().await };
    let coming = (to.mode == Mode::Build).then(|| stream.shared().committer.expect());
    let places = needed.iter().map(|(place, _)| u32::try_from(*place).unwrap_or(u32::MAX));
    stream.send(&Reply::Need(places.collect())).await?;
    let taken = match take_in(stream, to, needed).await? {
        Ok(taken) => taken,
        Err(error) => return Ok(Err(error)),
    };
    let mut staged: Vec<(usize, Staged)> = held.into_iter().chain(taken).collect();
    staged.sort_by_key(|(place, _)| *place);
    let batch = Batch {
        to: to.clone(),
        expect: apply.expect,
        target: apply.target,
        modseq: apply.modseq,
        keywords: apply.keywords,
        changes: apply.changes,
        staged: staged.into_iter().map(|(_, staged)| staged).collect(),
        last: apply.last,
    };
    let (messages, octets) = (batch.staged.len(), batch.staged.iter().map(Staged::octets).sum());
    drop(coming);
    let (committer, live) = (&stream.shared().committer, &stream.shared().live);
    let result = committer.apply(batch, live).await.ok_or(Broken)?;
    if result.is_ok() {
        stream.shared().metrics.count_applied(messages, octets);
    }
    Ok(result)
}

async fn abandon(stream: &Stream, to: &Destination) -> Result<(), Broken> {
    let store = Arc::clone(&stream.shared().store);
    let (account, mailbox) = (to.account.clone(), to.mailbox);
    let forget = move || store.abandon(&account, mailbox);
    stream.shared().workers.run(forget).await.map_err(|_| Broken)
}

fn added(change: &Change) -> Option<&Record> {
    match change {
        Change::Add(record) => Some(record),
        Change::Update { .. } | Change::Expunge(_) | Change::Keep(_) => None,
    }
}

pub(crate) type Placed<T> = Vec<(usize, T)>;

/// Refuses what is stale before any octet is sent, and finds what this store already holds.
async fn prepare(
    stream: &Stream,
    to: &Destination,
    expect: Option<Head>,
    adds: Vec<Record>,
    begun: bool,
) -> Result<Result<(Placed<Staged>, Placed<Record>), StoreError>, Broken> {
    let (store, to) = (Arc::clone(&stream.shared().store), to.clone());
    let look = move || {
        if !begun {
            check_head(&*store, &to, expect)?;
        }
        let (mut held, mut needed) = (Vec::new(), Vec::new());
        for (place, record) in adds.into_iter().enumerate() {
            match store.stage_held(&to, &record).map_err(|error| error.of_message(record.uid))? {
                Some(staged) => held.push((place, staged)),
                None => needed.push((place, record)),
            }
        }
        Ok((held, needed))
    };
    stream.shared().workers.run(look).await.map_err(|_| Broken)
}

fn check_head(
    store: &dyn MailStore,
    to: &Destination,
    expect: Option<Head>,
) -> Result<(), StoreError> {
    let now = store.find(&to.account, &to.name)?;
    let head = now.filter(|now| now.id == to.mailbox).map(|now| now.head);
    if head == expect { Ok(()) } else { Err(StoreError::Stale(head)) }
}

/// Takes the octets of `needed` in, in their order.
pub(crate) async fn take_in(
    stream: &mut Stream,
    to: &Destination,
    needed: Placed<Record>,
) -> Result<Result<Placed<Staged>, StoreError>, Broken> {
    if needed.is_empty() {
        return Ok(Ok(Vec::new()));
    }
    let mut intake = Intake::new(Arc::clone(&stream.shared().store), to.clone(), needed);
    let mut gulp = Vec::new();
    loop {
        let (back, result) = stream
            .shared()
            .workers
            .run(move || {
                let result = intake.take(&gulp);
                (intake, result)
            })
            .await
            .map_err(|_| Broken)?;
        intake = back;
        match result {
            Ok(()) if intake.is_complete() => return Ok(Ok(intake.into_staged())),
            Ok(()) => gulp = next_gulp(stream).await?,
            Err(crate::intake::TakeError::Store(error)) => return Ok(Err(error)),
            Err(error @ crate::intake::TakeError::TooMany) => {
                tracing::warn!(code = "apply-dropped", %error, "dropping an apply of a confused agent");
                return Err(Broken);
            }
        }
    }
}

/// Waits for octets, then takes as many as are there already.
async fn next_gulp(stream: &mut Stream) -> Result<Vec<Bytes>, Broken> {
    let mut gulp = vec![stream.octets().await?];
    let mut octets = gulp[0].len();
    while octets < GULP
        && let Some(more) = stream.octets_now()?
    {
        octets += more.len();
        gulp.push(more);
    }
    Ok(gulp)
}
