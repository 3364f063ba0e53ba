//! One node by itself: what of it is meant, and what it came to, in parts.

use alloc::{string::String, vec::Vec};

use super::Difference;
use crate::{
    entry::Target,
    ids::Account,
    mailbox::{MailboxName, MailboxState},
};

/// What was found in some of a node's accounts.
#[derive(Debug, Default)]
pub struct Local {
    /// Accounts looked at.
    pub accounts: u64,
    /// Mailboxes as they were found.
    pub mailboxes: Vec<(Account, MailboxState)>,
    /// Messages looked at.
    pub messages: u64,
    /// Their octets.
    pub octets: u64,
    /// Messages read.
    pub read: u64,
    /// Their octets.
    pub octets_read: u64,
    /// All that is wrong, also what is not listed.
    pub found: u64,
    /// What is wrong.
    pub differences: Vec<Difference>,
    /// What could not be looked at, and why.
    pub incomplete: Vec<String>,
    /// The last account looked at, if there are more.
    pub next: Option<Account>,
}

/// Whether a mailbox of `account` is meant, or with `None` anything of it. No targets mean everything.
pub fn is_meant(targets: &[Target], account: &Account, name: Option<&MailboxName>) -> bool {
    targets.is_empty()
        || targets.iter().any(|target| match target {
            Target::Store => true,
            Target::Account(whose) => whose == account,
            Target::Mailbox(whose, meant) => {
                whose == account && name.is_none_or(|name| name == meant)
            }
        })
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    #[test]
    fn what_is_meant() {
        let (ann, bob) = (Account::new("ann").unwrap(), Account::new("bob").unwrap());
        let (inbox, work) = (MailboxName::inbox(), MailboxName::new(b"Work").unwrap());
        assert!(is_meant(&[], &bob, Some(&work)) && is_meant(&[Target::Store], &bob, None));
        let some = vec![Target::Mailbox(ann.clone(), work.clone()), Target::Account(bob.clone())];
        assert!(is_meant(&some, &ann, None) && is_meant(&some, &ann, Some(&work)));
        assert!(!is_meant(&some, &ann, Some(&inbox)) && is_meant(&some, &bob, Some(&inbox)));
        assert!(!is_meant(&some, &Account::new("eve").unwrap(), None));
    }
}
