//! Fuzz targets: octets from a Cyrus server and its sync log (docs/testing.md says how they are run).

use crate::{
    dlist::Value,
    journal,
    mailbox::{Mailbox, Message},
    names,
    session::{Dialect, Outcome, Session},
};

/// What a server sends, in pieces whose size the first octet says: answers, and what is made of them.
pub fn csync_answers(input: &[u8]) {
    let Some((&first, rest)) = input.split_first() else { return };
    let dialect = if first & 1 == 0 { Dialect::Csync } else { Dialect::Imap };
    let mut session = Session::new(dialect);
    for piece in rest.chunks(usize::from(first >> 1).max(1)) {
        let Ok(outcome) = session.receive(piece) else { return };
        let Some(Outcome::Done(answers)) = outcome else { continue };
        for value in answers.iter().flat_map(|answer| &answer.values) {
            if let Ok(mailbox) = Mailbox::parse(value) {
                names::meaning(&mailbox.name);
                names::identity(&mailbox.unique_id);
            }
            let records = value.get("RECORD").and_then(Value::as_list).unwrap_or_default();
            for message in records.iter().flat_map(Message::parse) {
                assert_eq!(Message::parse(&message.value(0)), Ok(message));
            }
        }
    }
}

/// One value: what was read is read again from what is sent for it.
pub fn csync_values(input: &[u8]) {
    let Ok(value) = Value::parse(&mut &*input) else { return };
    let mut wire = Vec::new();
    value.encode(&mut wire);
    assert_eq!(Value::parse(&mut &wire[..]), Ok(value));
}

/// A sync log.
pub fn csync_journal(input: &[u8]) {
    let dirty = journal::read(input);
    for name in dirty.mailboxes.iter().chain(&dirty.messages) {
        names::meaning(name);
        names::external(name, b'/');
    }
}

#[cfg(test)]
mod tests {
    use mailtwin_fuzz::replay;

    #[test]
    fn csync_answers() {
        replay("csync_answers", super::csync_answers);
    }

    #[test]
    fn csync_values() {
        replay("csync_values", super::csync_values);
    }

    #[test]
    fn csync_journal() {
        replay("csync_journal", super::csync_journal);
    }
}
