//! `replctl quarantine`: tells of what is set aside, has it tried, forgets it.

use std::collections::BTreeMap;

use mailtwin_host::admin::{
    AsideReport, BadMessageReport, QuarantineReport, QuarantineVerb, Response, SCHEMA_VERSION,
    answer,
};
use mailtwin_logic::entry::Target;

use crate::{
    Agent,
    quarantine::{Aside, BadMessage},
};

/// Entries listed: with their texts they have to fit one answer.
const LISTED_MAX: usize = 400;
/// Bad messages named of each, when there are many entries.
const NAMED_FEW: usize = 2;
/// So many entries are few.
const FEW: usize = 20;

/// What an admin asks for.
pub(super) struct Wanted {
    replica: Option<String>,
    targets: Vec<Target>,
}

impl Wanted {
    /// Reads `account` and `account/mailbox`; none is everything.
    pub(super) fn parse(replica: Option<String>, targets: &[String]) -> Result<Self, String> {
        let targets = targets.iter().map(|text| answer::target(text)).collect::<Result<_, _>>()?;
        Ok(Self { replica, targets })
    }

    /// Refuses a replica that there is not.
    pub(super) fn check(self, agent: &Agent) -> Result<Self, String> {
        let is_there = |name: &String| agent.links().iter().any(|link| link.name == *name);
        match &self.replica {
            Some(name) if !is_there(name) => Err(format!("no replica is called {name:?}")),
            _ => Ok(self),
        }
    }

    /// Whether `replica` is meant.
    pub(super) fn means(&self, replica: &str) -> bool {
        self.replica.as_ref().is_none_or(|name| name == replica)
    }

    /// What is meant of it; everything if nothing is named.
    pub(super) fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// An account stands for all that is its.
    fn has(&self, replica: &str, target: &Target) -> bool {
        let meant = |wanted: &Target| match wanted {
            Target::Store => true,
            Target::Account(account) => target.account() == Some(account),
            Target::Mailbox(..) => wanted == target,
        };
        self.means(replica) && (self.targets.is_empty() || self.targets.iter().any(meant))
    }
}

/// Tells of what is wanted, and unless it is a rehearsal, does it.
pub(super) async fn answer(
    agent: &Agent,
    what: QuarantineVerb,
    wanted: &Wanted,
    dry_run: bool,
) -> Response {
    let now = agent.now();
    let (mut count, mut entries) = (0, Vec::new());
    let mut by_replica: BTreeMap<String, Vec<Target>> = BTreeMap::new();
    for link in agent.links() {
        for aside in link.aside.iter().filter(|aside| wanted.has(&link.name, &aside.target())) {
            count += 1;
            by_replica.entry(link.name.clone()).or_default().push(aside.target());
            if entries.len() < LISTED_MAX {
                entries.push(report(&link.name, aside, now));
            }
        }
    }
    if entries.len() > FEW {
        for entry in &mut entries {
            entry.bad.truncate(NAMED_FEW);
        }
    }
    let done = !dry_run && what != QuarantineVerb::List;
    if done {
        for (replica, targets) in by_replica {
            match what {
                QuarantineVerb::List => {}
                QuarantineVerb::Retry => agent.retry(&replica, targets).await,
                QuarantineVerb::Release => agent.forgive(&replica, targets).await,
            }
        }
    }
    let schema_version = SCHEMA_VERSION;
    Response::Quarantine(QuarantineReport { schema_version, count, done, entries })
}

fn report(replica: &str, aside: &Aside, now: u64) -> AsideReport {
    let bad = |message: &BadMessage| BadMessageReport {
        uid: message.uid.map(|uid| uid.0),
        name: message.name.clone(),
        about: message.about.clone(),
        reason: message.reason.to_string(),
        detail: message.detail.clone(),
    };
    AsideReport {
        replica: replica.to_owned(),
        object: aside.object.clone(),
        reason: aside.reason.to_string(),
        step: aside.step(now).to_string(),
        tries: aside.tries,
        first_at: aside.since,
        first: aside.first.clone(),
        last_at: aside.last_at,
        last: aside.last.clone(),
        next_at: aside.next_at,
        messages: aside.messages,
        octets: aside.octets,
        bad: aside.bad.iter().map(bad).collect(),
    }
}
