//! Octets of one message on their way into memory.

use mailtwin_logic::ids::Guid;

use crate::{
    Staging, StoreError, guid_of,
    staged::{Place, Staged},
};

/// Octets being taken in.
pub(super) struct Intake {
    pub(super) what: String,
    pub(super) guid: Guid,
    pub(super) octets: u64,
    pub(super) taken: Vec<u8>,
}

impl Intake {
    fn mismatch(&self) -> StoreError {
        let (what, want) = (self.what.clone(), self.guid);
        StoreError::Mismatch { what, want, got: guid_of(&self.taken) }
    }
}

impl Staging for Intake {
    fn write(&mut self, octets: &[u8]) -> Result<(), StoreError> {
        if self.taken.len() as u64 + octets.len() as u64 > self.octets {
            return Err(self.mismatch());
        }
        self.taken.extend_from_slice(octets);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Staged, StoreError> {
        if self.taken.len() as u64 != self.octets || guid_of(&self.taken) != self.guid {
            return Err(self.mismatch());
        }
        Ok(Staged::new(self.guid, self.octets, Place::Memory(self.taken.into())))
    }
}
