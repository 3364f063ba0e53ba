//! The top of the tree of digests: accounts hang on branches, so that equal halves of two stores cost
//! one exchange of a few kilooctets, however many accounts there are.

use alloc::vec::Vec;

use sha1::{Digest as _, Sha1};

use crate::{digest::Digest, ids::Account};

/// Branches.
pub const BRANCHES: usize = 256;

/// The branch an account hangs on, the same on every node.
pub fn branch(account: &Account) -> u8 {
    let hash: [u8; 20] = Sha1::digest(account.as_str().as_bytes()).into();
    hash[0]
}

/// Branches that are not the same on both sides; all of them if a side has not said all.
pub fn differing(ours: &[Digest], theirs: &[Digest]) -> Vec<u8> {
    let differs = |at: &u8| {
        let at = usize::from(*at);
        ours.get(at).is_none() || ours.get(at) != theirs.get(at)
    };
    (0..=u8::MAX).filter(differs).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_differs() {
        let ours = alloc::vec![Digest::default(); BRANCHES];
        assert!(differing(&ours, &ours).is_empty());
        assert_eq!(differing(&ours, &[]).len(), BRANCHES);
        assert_eq!(differing(&ours, &ours[..255]), [255]);
        assert_eq!(differing(&[], &[]).len(), BRANCHES);
    }
}
