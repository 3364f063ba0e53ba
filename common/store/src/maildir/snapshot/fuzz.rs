//! Fuzz target of what the index remembers of a mailbox: whatever it says, working with it goes on.

use mailtwin_logic::ids::{MailboxId, Uid, UidValidity};

use super::{Contents, Entry, Header, Snapshot, encode, parse_key};
use crate::maildir::keywords::Table;

pub(crate) fn snapshots(input: &[u8]) {
    if let Some((account, name)) = parse_key(input) {
        assert_eq!(parse_key(&super::key(&account, &name)), Some((account, name)));
    }
    let Ok((header, rest)) = postcard::take_from_bytes::<Header>(input) else { return };
    assert_eq!(postcard::from_bytes::<Header>(&encode(&header)).as_ref(), Ok(&header));
    let Ok(chunk) = postcard::from_bytes::<Vec<Entry>>(rest) else { return };
    assert_eq!(postcard::from_bytes::<Vec<Entry>>(&encode(&chunk)).as_ref(), Ok(&chunk));
    let entries: std::collections::BTreeMap<_, _> =
        chunk.iter().map(|entry| (entry.uid, entry.clone())).collect();
    let bases = entries.values().map(|entry| (entry.base().into(), entry.uid)).collect();
    let mut snapshot = Snapshot::of(header);
    snapshot.contents = Some(Contents { entries, bases, tombstones: Vec::new() });
    let before = snapshot.header.highest_modseq;
    for entry in chunk {
        let uid = entry.uid;
        snapshot.rename(uid, b"1.other:2,Sab", false);
        snapshot.put(entry);
        snapshot.set_table(Table::parse(input));
        if uid.0 % 2 == 0 {
            snapshot.expunge(uid);
        }
    }
    assert!(snapshot.header.highest_modseq >= before, "it never falls");
    let name = mailtwin_logic::mailbox::MailboxName::inbox();
    let _ = snapshot.state(&name);
    assert!(snapshot.expunged(mailtwin_logic::ids::ModSeq(0)).count() <= input.len());
    snapshot.restart(MailboxId([1; 16]), UidValidity(1));
    assert!(snapshot.entries().is_empty() && snapshot.header.uid_next == Uid(1));
}
