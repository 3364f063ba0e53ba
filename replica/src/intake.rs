//! Takes the octets of several messages in, one after the other, from one run of octets.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use mailtwin_logic::{ids::Uid, mailbox::Record};
use mailtwin_store::{Destination, MailStore, Staged, Staging, StoreError};

/// Blocking; lives on store workers.
pub(crate) struct Intake {
    store: Arc<dyn MailStore>,
    to: Destination,
    wanted: VecDeque<(usize, Record)>,
    current: Option<Current>,
    staged: Vec<(usize, Staged)>,
}

struct Current {
    place: usize,
    uid: Uid,
    left: u64,
    staging: Box<dyn Staging>,
}

impl Intake {
    /// For the additions `wanted`, by their place among the additions.
    pub(crate) fn new(
        store: Arc<dyn MailStore>,
        to: Destination,
        wanted: Vec<(usize, Record)>,
    ) -> Self {
        Self { store, to, wanted: wanted.into(), current: None, staged: Vec::new() }
    }

    /// Whether every message is in.
    pub(crate) fn is_complete(&self) -> bool {
        self.wanted.is_empty() && self.current.is_none()
    }

    /// Takes the next octets; more than the messages have is an error of the peer.
    pub(crate) fn take(&mut self, chunks: &[Bytes]) -> Result<(), TakeError> {
        self.advance()?;
        for chunk in chunks {
            let mut rest = &chunk[..];
            while !rest.is_empty() {
                let Some(current) = &mut self.current else {
                    return Err(TakeError::TooMany);
                };
                let left = usize::try_from(current.left).unwrap_or(usize::MAX);
                let (now, later) = rest.split_at(rest.len().min(left));
                current.staging.write(now).map_err(|error| error.of_message(current.uid))?;
                current.left -= now.len() as u64;
                rest = later;
                self.advance()?;
            }
        }
        Ok(())
    }

    /// The messages taken in, with their places.
    pub(crate) fn into_staged(self) -> Vec<(usize, Staged)> {
        self.staged
    }

    /// Ends messages that are whole and opens the next one that has octets.
    fn advance(&mut self) -> Result<(), StoreError> {
        loop {
            match self.current.take() {
                Some(current) if current.left > 0 => {
                    self.current = Some(current);
                    return Ok(());
                }
                Some(Current { place, uid, staging, .. }) => {
                    let staged = staging.finish().map_err(|error| error.of_message(uid))?;
                    self.staged.push((place, staged));
                }
                None => {}
            }
            let Some((place, record)) = self.wanted.pop_front() else {
                return Ok(());
            };
            let uid = record.uid;
            let staging = self.store.stage(&self.to, &record);
            let staging = staging.map_err(|error| error.of_message(uid))?;
            self.current = Some(Current { place, uid, left: record.octets, staging });
        }
    }
}

/// Why octets were not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TakeError {
    /// The store's trouble.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The peer's.
    #[error("more octets came than the messages have")]
    TooMany,
}
