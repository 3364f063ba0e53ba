//! The first thing an old master does as a replica: it marks its mail as what the new one holds.

use std::{path::Path, sync::Arc};

use anyhow::Context as _;
use mailtwin_host::{
    node::{ChangeError, NodeFile},
    proof::{Proof, Proven},
};
use mailtwin_logic::chain::Chain;
use mailtwin_store::{MailStore, Reason, StoreError};

use crate::session::Work;

/// Marks every message that the proof of the hand-over covers as replicated, once. What came
/// afterwards stays unmarked: nobody else has it, so it is kept, and reported.
pub(crate) async fn mark(work: &Work, file: &NodeFile, state_dir: &Path) -> anyhow::Result<()> {
    let Some(handover) = file.now().handover.filter(|handover| handover.unmarked) else {
        return Ok(());
    };
    match Proof::load(state_dir) {
        Ok(Some(proof)) if proof.to == handover.to => {
            let (mailboxes, messages) = proof.totals();
            for proven in proof.accounts {
                let store = Arc::clone(&work.store);
                let marked = work.workers.run(move || account(&*store, &proven)).await?;
                marked.context("mark what the new master holds")?;
            }
            tracing::info!(mailboxes, messages, to = %handover.to, "marked as what the new master holds");
        }
        Ok(_) => tracing::warn!(
            code = "proof-missing",
            "the proof of the hand-over is gone: mail is compared without it"
        ),
        Err(error) => {
            tracing::warn!(code = "proof-missing", error = %Chain(&error), "mail is compared without the proof");
        }
    }
    file.change::<ChangeError>(|node| {
        let open = node
            .handover
            .take()
            .map(|old| mailtwin_host::node::Handover { unmarked: false, ..old });
        node.handover = open.filter(|open| open.untold);
        node.merged = node.epoch;
        Ok(())
    })?;
    Ok(())
}

fn account(store: &dyn MailStore, proven: &Proven) -> Result<(), StoreError> {
    for mailbox in &proven.mailboxes {
        match store.adopt(&proven.account, mailbox.id, mailbox.uid_next) {
            Ok(_) => {}
            // One that is broken or gone now differs, and says so in its own visit.
            Err(error) if error.reason() != Reason::WrongStore => {
                let account = &proven.account;
                tracing::warn!(code = "adopt-unmarked", %account, mailbox = %mailbox.id, error = %Chain(&error), "not marked");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
