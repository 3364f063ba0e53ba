//! What an admin follows while it goes on, over a change of role, too.

use std::sync::{Arc, Mutex};

use mailtwin_host::admin::{OperationOutcome, OperationStatus, OperationStep};
use tokio::time::Instant;

/// The running operation, or the last one.
#[derive(Clone, Debug)]
pub(crate) struct Operations {
    now: Arc<Mutex<(Instant, OperationStatus)>>,
}

/// Whether an operation did what it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It did.
    Done,
    /// Nothing was touched.
    Refused,
    /// Everything is as before.
    Undone,
}

impl Ended {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Refused => "refused",
            Self::Undone => "undone",
        }
    }
}

impl Operations {
    pub(crate) fn new() -> Self {
        Self { now: Arc::new(Mutex::new((Instant::now(), OperationStatus::default()))) }
    }

    /// Begins one, unless another still runs.
    pub(crate) fn begin(&self) -> Option<OperationStatus> {
        let mut now = self.lock();
        let (_, last) = &*now;
        if runs(last) {
            return None;
        }
        let new = OperationStatus { id: last.id + 1, ..OperationStatus::default() };
        *now = (Instant::now(), new.clone());
        Some(new)
    }

    /// Whether one runs.
    pub(crate) fn is_under_way(&self) -> bool {
        runs(&self.lock().1)
    }

    /// Notes that something was done.
    pub(crate) fn step(&self, text: String) {
        tracing::info!(step = text, "failover");
        let (began, now) = &mut *self.lock();
        let at_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        now.steps.push(OperationStep { at_ms, text });
    }

    /// Ends the one that runs.
    pub(crate) fn end(&self, ended: Ended, message: String) {
        match ended {
            Ended::Done => tracing::info!(message, "failover done"),
            Ended::Refused | Ended::Undone => {
                tracing::warn!(
                    code = "failover-ended",
                    state = ended.as_str(),
                    message,
                    "failover"
                );
            }
        }
        let (_, now) = &mut *self.lock();
        now.outcome = Some(OperationOutcome { state: ended.as_str().into(), message });
    }

    pub(crate) fn status(&self) -> OperationStatus {
        self.lock().1.clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, (Instant, OperationStatus)> {
        self.now.lock().expect("no panic while it is held")
    }
}

fn runs(operation: &OperationStatus) -> bool {
    operation.id > 0 && operation.outcome.is_none()
}
