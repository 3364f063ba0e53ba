//! `replctl brake`: tells what is held, and lets it go.

use mailtwin_host::admin::{
    BrakeReport, FailureCode, HeldReport, Response, SCHEMA_VERSION, answer as reply,
};
use mailtwin_logic::{
    brake::{Engaged, Scope},
    chain::Chain,
    entry::Target,
    quarantine::Reason,
};

use super::quarantine::Wanted;
use crate::{Agent, link::LinkStatus};

/// What one link's brake holds.
pub(super) fn held(link: &LinkStatus) -> Vec<HeldReport> {
    let one = |(scope, engaged): &(Scope, Engaged)| report(link, scope, engaged);
    link.brake.iter().map(one).collect()
}

/// Tells what is held of what is wanted, and unless it is a rehearsal, lets it go if that is wanted.
pub(super) async fn answer(
    agent: &Agent,
    wanted: &Wanted,
    release: bool,
    dry_run: bool,
) -> Response {
    let (mut all, mut done) = (Vec::new(), false);
    for link in agent.links().iter().filter(|link| wanted.means(&link.name)) {
        let scopes: Vec<(Scope, Engaged)> = match scopes(link, wanted) {
            Ok(scopes) => scopes,
            Err(message) => return reply::failed(FailureCode::Usage, message),
        };
        all.extend(scopes.iter().map(|(scope, engaged)| report(link, scope, engaged)));
        let scopes: Vec<Scope> = scopes.into_iter().map(|(scope, _)| scope).collect();
        if release && !dry_run && !scopes.is_empty() {
            if let Err(error) = agent.release(&link.name, scopes).await {
                return reply::failed(FailureCode::Failed, Chain(&error).to_string());
            }
            done = true;
        }
    }
    Response::Brake(BrakeReport { schema_version: SCHEMA_VERSION, done, held: all })
}

/// What is meant of what a link holds. An account may be meant while all are held.
fn scopes(link: &LinkStatus, wanted: &Wanted) -> Result<Vec<(Scope, Engaged)>, String> {
    if wanted.targets().is_empty() {
        return Ok(link.brake.to_vec());
    }
    let mut scopes = Vec::new();
    for target in wanted.targets() {
        let Target::Account(account) = target else {
            return Err(format!("{target}: the brake holds whole accounts"));
        };
        let own = Scope::Account(account.clone());
        let held = |scope: &Scope| link.brake.iter().find(|(held, _)| held == scope);
        let held = held(&own).or_else(|| held(&Scope::Store));
        scopes.extend(held.map(|(_, engaged)| (own, engaged.clone())));
    }
    Ok(scopes)
}

fn report(link: &LinkStatus, scope: &Scope, engaged: &Engaged) -> HeldReport {
    let account = match scope {
        Scope::Store => None,
        Scope::Account(account) => Some(account),
    };
    let meant = link.aside.iter().filter(|aside| {
        aside.reason == Reason::Brake && account.is_none_or(|account| *account == aside.account)
    });
    let (messages, mailboxes) =
        meant.fold((0, 0), |sum, aside| (sum.0 + aside.held.0, sum.1 + aside.held.1));
    HeldReport {
        replica: link.name.clone(),
        account: account.map(ToString::to_string),
        since: engaged.since,
        why: engaged.why.clone(),
        messages,
        mailboxes,
    }
}
