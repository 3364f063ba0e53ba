//! `replctl graveyard`: tells what this node expunged and still has, and gives it out as files.

use std::{path::Path, sync::Arc};

use mailtwin_host::admin::{
    FailureCode, GraveReport, GraveyardReport, Request, Response, SCHEMA_VERSION, answer,
};
use mailtwin_logic::{
    chain::Chain,
    ids::{Account, Uid},
    mailbox::MailboxName,
};
use mailtwin_store::{
    Description, Grave, MailStore, StoreError,
    graves::{self, Wanted},
};

use super::Answers;

/// Messages listed: with their headers they have to fit one answer.
const LISTED_MAX: usize = 1000;

impl Answers {
    pub(super) async fn graveyard(&self, request: Request) -> Response {
        let Request::Graveyard { export_to, dry_run, .. } = &request else {
            return answer::failed(FailureCode::Usage, "that is no question of a graveyard".into());
        };
        let to = export_to.clone().filter(|_| !dry_run);
        let wanted = match wanted(request) {
            Ok(wanted) => wanted,
            Err(message) => return answer::failed(FailureCode::Usage, message),
        };
        let Some(work) = &self.work else {
            let message = format!("{} is the master: it has no graveyard to tell of", self.node);
            return answer::failed(FailureCode::Refused, message);
        };
        let store = Arc::clone(&work.store);
        let look = move || look(&*store, &wanted, to.as_deref());
        match work.workers.run(look).await {
            Ok(Ok(report)) => Response::Graveyard(report),
            Ok(Err(error)) => answer::failed(FailureCode::Failed, Chain(&error).to_string()),
            Err(error) => answer::failed(FailureCode::Failed, Chain(&error).to_string()),
        }
    }
}

/// Reads what is meant.
fn wanted(request: Request) -> Result<Wanted, String> {
    let Request::Graveyard { account, mailbox, uid, guid, message_id, since_ms, .. } = request
    else {
        return Ok(Wanted::default());
    };
    let account = account.map(|text| Account::new(&text).map_err(|e| format!("{text:?}: {e}")));
    let mailbox = mailbox.map(|text| {
        let octets = if text.eq_ignore_ascii_case("inbox") { "" } else { text.as_str() };
        MailboxName::new(octets.as_bytes()).map_err(|e| format!("{text:?}: {e}"))
    });
    let guid = guid.map(|text| text.parse().map_err(|e| format!("{text:?} is no GUID: {e}")));
    let bare = |text: String| text.trim_matches(['<', '>']).to_owned();
    Ok(Wanted {
        account: account.transpose()?,
        mailbox: mailbox.transpose()?,
        uid: uid.map(Uid),
        guid: guid.transpose()?,
        message_id: message_id.map(bare),
        since_ms,
    })
}

/// Tells of what is meant, and writes it below `to`.
fn look(
    store: &dyn MailStore,
    wanted: &Wanted,
    to: Option<&Path>,
) -> Result<GraveyardReport, StoreError> {
    let (mut count, mut octets, mut entries) = (0, 0, Vec::new());
    graves::find(store, wanted, &mut |grave| {
        count += 1;
        octets += grave.octets;
        if entries.len() < LISTED_MAX {
            entries.push(report(store, grave));
        }
        Ok(())
    })?;
    if let Some(to) = to {
        let mut exported = Vec::new();
        graves::export(store, wanted, to, &mut |one| exported.push(one))?;
        count = exported.len() as u64;
        graves::write_manifest(&exported, to)?;
    }
    let (schema_version, done) = (SCHEMA_VERSION, to.is_some());
    let left = Vec::new();
    Ok(GraveyardReport { schema_version, count, octets, done, entries, left })
}

fn report(store: &dyn MailStore, grave: &Grave) -> GraveReport {
    GraveReport {
        at_ms: grave.at_ms,
        account: grave.account.to_string(),
        mailbox: grave.mailbox.to_string(),
        uid_validity: grave.uid_validity.0,
        uid: grave.uid.map(|uid| uid.0),
        guid: grave.guid.map(|guid| guid.to_string()),
        octets: grave.octets,
        internal_date: grave.internal_date,
        about: Description::of_grave(store, grave).to_string(),
    }
}
