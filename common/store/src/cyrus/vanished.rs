//! Messages that the master had, and that this node never saw: a client with QRESYNC (RFC 7162) that
//! comes from there must hear that they are gone, or it goes on showing them.

use std::ops::RangeInclusive;

use mailtwin_cyrus::mailbox::{EXPUNGED, Message};
use mailtwin_logic::ids::Uid;

use crate::guid_of;

/// UIDs told one by one, the highest. When `cyr_expire` next clears the mailbox, Cyrus raises its
/// DELETEDMODSEQ to theirs, and from then on tells clients of all that is not there.
const TOLD_MAX: usize = 1000;

/// Records of expunged messages for the UIDs in `uids` that are not `there`, the highest first.
pub(super) fn vanished(
    unique_id: &str,
    uids: RangeInclusive<u32>,
    there: impl Fn(Uid) -> bool,
    modseq: u64,
) -> impl Iterator<Item = Message> {
    let free = uids.rev().filter(move |uid| !there(Uid(*uid)));
    free.take(TOLD_MAX).map(move |uid| Message {
        uid,
        modseq,
        // Cyrus wants an octet and a GUID of its own, and does not look for a file.
        octets: 1,
        guid: guid_of(format!("{unique_id} {uid}").as_bytes()).0,
        internal_date: 0,
        flags: vec![EXPUNGED.to_vec()],
        annotations: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(uids: RangeInclusive<u32>, there: &[u32]) -> Vec<u32> {
        let all = vanished("id", uids, |uid| there.contains(&uid.0), 7);
        all.inspect(|message| assert!(message.is_expunged() && message.modseq == 7))
            .map(|message| message.uid)
            .collect()
    }

    #[test]
    fn what_is_not_there_is_told_from_the_highest() {
        assert_eq!(told(1..=6, &[2, 5]), [6, 4, 3, 1]);
        assert_eq!(told(3..=3, &[3]), [0; 0]);
        let many = told(1..=u32::MAX - 2, &[u32::MAX - 3]);
        assert_eq!((many.len(), many.first()), (TOLD_MAX, Some(&(u32::MAX - 2))));
    }
}
