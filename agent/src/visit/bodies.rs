//! Reads the octets of several messages as one run of chunks.

use std::{collections::VecDeque, io::Read, sync::Arc};

use bytes::{Bytes, BytesMut};
use mailtwin_logic::{
    ids::{Account, MailboxId, Uid},
    limits::CHUNK_OCTETS,
};
use mailtwin_store::{MailStore, Octets, Reader, StoreError};

/// Chunks read in one go by a store worker.
const GULP_CHUNKS: usize = 8;

/// Blocking; lives on store workers.
pub(crate) struct Bodies {
    store: Arc<dyn MailStore>,
    account: Account,
    mailbox: MailboxId,
    left: VecDeque<(Uid, u64)>,
    current: Option<(Octets, Uid, u64)>,
    /// Octets of all that was not read yet.
    octets: u64,
}

impl Bodies {
    /// Of messages that have the given numbers of octets.
    pub(crate) fn new(
        store: Arc<dyn MailStore>,
        account: Account,
        mailbox: MailboxId,
        messages: Vec<(Uid, u64)>,
    ) -> Self {
        let octets = messages.iter().fold(0, |sum: u64, (_, octets)| sum.saturating_add(*octets));
        Self { store, account, mailbox, left: messages.into(), current: None, octets }
    }

    /// The next chunks; none at the end.
    pub(crate) fn gulp(&mut self) -> Result<Vec<Bytes>, StoreError> {
        let (store, account) = (Arc::clone(&self.store), self.account.clone());
        let mut reader = store.reader(&account, self.mailbox);
        let mut chunks = Vec::new();
        while chunks.len() < GULP_CHUNKS {
            let left = usize::try_from(self.octets).unwrap_or(usize::MAX);
            let mut chunk = BytesMut::zeroed(left.min(CHUNK_OCTETS));
            let filled = self.fill(&mut chunk, &mut reader)?;
            self.octets = self.octets.saturating_sub(filled as u64);
            if filled == 0 {
                break;
            }
            chunk.truncate(filled);
            chunks.push(chunk.freeze());
        }
        Ok(chunks)
    }

    fn fill(&mut self, chunk: &mut [u8], reader: &mut Reader<'_>) -> Result<usize, StoreError> {
        let mut filled = 0;
        while filled < chunk.len() {
            let Some((octets, uid, left)) = self.current.as_mut() else {
                let Some((uid, octets)) = self.left.pop_front() else {
                    return Ok(filled);
                };
                let opened = reader(uid).map_err(|error| error.of_message(uid))?;
                self.current = Some((opened, uid, octets));
                continue;
            };
            let room = usize::try_from(*left).unwrap_or(usize::MAX).min(chunk.len() - filled);
            if room == 0 {
                self.current = None;
                continue;
            }
            match octets.read(&mut chunk[filled..filled + room]) {
                Ok(0) => {
                    let path = format!("message {uid} of {}", self.account).into();
                    let why = "it is shorter than it was".into();
                    return Err(StoreError::Corrupt { path, why }.of_message(*uid));
                }
                Ok(read) => {
                    filled += read;
                    *left -= read as u64;
                }
                Err(source) if source.kind() == std::io::ErrorKind::Interrupted => {}
                Err(source) => {
                    let path = format!("message {uid} of {}", self.account).into();
                    return Err(StoreError::Io { op: "read", path, source }.of_message(*uid));
                }
            }
        }
        Ok(filled)
    }
}
