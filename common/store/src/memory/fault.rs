//! Faults that a test asks for: the next calls of a kind fail.

use mailtwin_logic::ids::{Account, Guid, MailboxId};

use crate::StoreError;

/// A kind of call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// `MailStore::accounts`.
    Accounts,
    /// `MailStore::account`.
    Account,
    /// `MailStore::find`.
    Find,
    /// `MailStore::delta`.
    Delta,
    /// `MailStore::open`.
    Open,
    /// `MailStore::file`.
    File,
    /// `MailStore::set_file`.
    SetFile,
    /// `MailStore::restructure`.
    Restructure,
    /// `MailStore::stage` and `MailStore::stage_held`.
    Stage,
    /// `MailStore::apply`, one batch.
    Apply,
}

/// Calls that shall fail.
pub struct Fault {
    /// Of which kind.
    pub call: Call,
    /// Only those about this account.
    pub account: Option<Account>,
    /// Only those about this mailbox.
    pub mailbox: Option<MailboxId>,
    /// How many of them.
    pub times: u32,
    /// With which error.
    pub error: Box<dyn Fn() -> StoreError + Send>,
}

impl std::fmt::Debug for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Fault({:?} x{}: {})", self.call, self.times, (self.error)())
    }
}

#[derive(Debug, Default)]
pub(super) struct Faults {
    calls: Vec<Fault>,
    /// Messages that cannot be read (`Call::Open`) or taken in (`Call::Stage`).
    bad: Vec<(Call, Guid)>,
    /// Changes that an apply still makes before it breaks off.
    pub(super) tear: Option<usize>,
}

impl Faults {
    pub(super) fn add(&mut self, fault: Fault) {
        self.calls.push(fault);
    }

    pub(super) fn add_message(&mut self, call: Call, guid: Guid) {
        self.bad.push((call, guid));
    }

    /// Fails for a message that was made bad.
    pub(super) fn trip_message(&self, call: Call, guid: Guid) -> Result<(), StoreError> {
        if !self.bad.contains(&(call, guid)) {
            return Ok(());
        }
        let source = std::io::Error::from_raw_os_error(5);
        Err(StoreError::Io { op: "read", path: format!("message {guid}").into(), source })
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(super) fn trip(
        &mut self,
        call: Call,
        account: Option<&Account>,
        mailbox: Option<MailboxId>,
    ) -> Result<(), StoreError> {
        let meant = |fault: &&mut Fault| {
            fault.times > 0
                && fault.call == call
                && (fault.account.is_none() || fault.account.as_ref() == account)
                && (fault.mailbox.is_none() || fault.mailbox == mailbox)
        };
        let Some(fault) = self.calls.iter_mut().find(meant) else { return Ok(()) };
        fault.times -= 1;
        let error = (fault.error)();
        self.calls.retain(|fault| fault.times > 0);
        Err(error)
    }
}
