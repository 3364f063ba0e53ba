//! Which accounts and mailboxes a check is about.

use std::collections::{BTreeMap, BTreeSet};

use mailtwin_logic::{
    check::{Difference, Kind},
    entry::Target,
    ids::{Account, MailboxId, Uid},
    mailbox::MailboxName,
};

/// What was asked for. Empty is everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Scope(BTreeMap<Account, Option<BTreeSet<MailboxName>>>);

impl Scope {
    /// Of `targets`; one of the whole store makes it everything.
    pub(crate) fn new(targets: Vec<Target>) -> Self {
        let mut scope = BTreeMap::new();
        for target in targets {
            match target {
                Target::Store => return Self::default(),
                Target::Account(account) => {
                    scope.insert(account, None);
                }
                Target::Mailbox(account, name) => {
                    let names = scope.entry(account).or_insert_with(|| Some(BTreeSet::new()));
                    if let Some(names) = names {
                        names.insert(name);
                    }
                }
            }
        }
        Self(scope)
    }

    /// The accounts; `None` for all there are.
    pub(super) fn accounts(&self) -> Option<Vec<Account>> {
        (!self.0.is_empty()).then(|| self.0.keys().cloned().collect())
    }

    /// The same text for the same scope; empty for everything.
    pub(super) fn key(&self) -> String {
        if self.0.is_empty() { String::new() } else { format!("{:?}", self.0) }
    }

    /// Whether a mailbox, or what belongs to no mailbox, is meant.
    pub(super) fn has(&self, account: &Account, name: Option<&MailboxName>) -> bool {
        match (self.0.get(account), name) {
            (None, _) => self.0.is_empty(),
            (Some(None), _) => true,
            (Some(Some(names)), Some(name)) => names.contains(name),
            (Some(Some(_)), None) => false,
        }
    }
}

/// What of an account is looked at again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Suspect {
    /// Mailboxes, with the messages that were not what they were.
    pub(super) mailboxes: BTreeMap<MailboxId, BTreeSet<Uid>>,
}

/// Where `differences` were found.
pub(super) fn suspects(differences: &[Difference]) -> BTreeMap<Account, Suspect> {
    let mut suspects: BTreeMap<Account, Suspect> = BTreeMap::new();
    for found in differences {
        let suspect = suspects.entry(found.account.clone()).or_default();
        let Some(mailbox) = found.mailbox else { continue };
        let uids = suspect.mailboxes.entry(mailbox).or_default();
        if let (Kind::Corrupt, Some(uid)) = (found.kind, found.uid) {
            uids.insert(uid);
        }
    }
    suspects
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_has_what_was_asked_for() {
        let (ann, bob) = (Account::new("ann").unwrap(), Account::new("bob").unwrap());
        let (inbox, work) = (MailboxName::inbox(), MailboxName::new(b"Work").unwrap());
        let all = Scope::new(vec![Target::Account(ann.clone()), Target::Store]);
        assert!(all.accounts().is_none() && all.has(&bob, None));
        let some = Scope::new(vec![Target::Mailbox(ann.clone(), work.clone())]);
        assert_eq!(some.accounts(), Some(vec![ann.clone()]));
        assert!(some.has(&ann, Some(&work)) && !some.has(&ann, Some(&inbox)));
        assert!(!some.has(&ann, None) && !some.has(&bob, None));
        let whole = vec![Target::Account(ann.clone()), Target::Mailbox(ann.clone(), work)];
        assert!(Scope::new(whole).has(&ann, Some(&inbox)));
    }
}
