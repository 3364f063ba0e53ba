//! What a message is, for humans: in logs, conflicts and status. Never part of a decision.

use std::{
    fmt,
    io::Read as _,
    panic::{AssertUnwindSafe, catch_unwind},
};

use mail_parser::MessageParser;
use mailtwin_logic::ids::{Account, MailboxId, Uid};

use crate::{MailStore, graves::Grave};

/// Octets looked at: headers are shorter, or are not worth more.
const HEADER_OCTETS_MAX: u64 = 64 << 10;
/// Longest text shown of one header, in characters.
const SHOWN_MAX: usize = 100;

/// The headers by which people know a message; printable whatever they hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Description {
    /// `Message-ID`, without angle brackets.
    pub message_id: Option<String>,
    /// `Date`, RFC 3339.
    pub date: Option<String>,
    /// `Subject`, decoded.
    pub subject: Option<String>,
}

impl Description {
    /// Of a message that begins with `octets`. Headers that make no sense are left out.
    pub fn of(octets: &[u8]) -> Self {
        // The parser is not ours and the octets are anybody's: a panic of it stays here.
        let parse = || {
            let message = MessageParser::default().parse_headers(octets)?;
            Some(Self {
                message_id: message.message_id().map(printable),
                date: message.date().map(mail_parser::DateTime::to_rfc3339),
                subject: message.subject().map(printable),
            })
        };
        catch_unwind(AssertUnwindSafe(parse)).ok().flatten().unwrap_or_default()
    }

    /// Of a message in a store; empty if it cannot be read.
    pub fn read(store: &dyn MailStore, account: &Account, mailbox: MailboxId, uid: Uid) -> Self {
        let mut octets = Vec::new();
        let read = store.open(account, mailbox, uid).map(|message| {
            // What can be read of it is described.
            let _ = message.take(HEADER_OCTETS_MAX).read_to_end(&mut octets);
        });
        if read.is_ok() { Self::of(&octets) } else { Self::default() }
    }
}

impl Description {
    /// Of a message in a graveyard; empty if it cannot be read.
    pub fn of_grave(store: &dyn MailStore, grave: &Grave) -> Self {
        let mut octets = Vec::new();
        let read = store.exhume(grave).map(|message| {
            // What can be read of it is described.
            let _ = message.take(HEADER_OCTETS_MAX).read_to_end(&mut octets);
        });
        if read.is_ok() { Self::of(&octets) } else { Self::default() }
    }
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let none = || "-".to_owned();
        let date = self.date.clone().unwrap_or_else(none);
        let subject = self.subject.clone().unwrap_or_else(none);
        let message_id = self.message_id.clone().unwrap_or_else(none);
        write!(f, "\"{subject}\" of {date}, <{message_id}>")
    }
}

fn printable(text: &str) -> String {
    let one_line = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    one_line.take(SHOWN_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn real_headers_and_hostile_ones() {
        let text = b"Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\nMessage-ID: <a@b>\n\
            Date: Thu, 01 Jan 2026 10:00:00 +0100\n\nbody";
        assert_eq!(
            Description::of(text).to_string(),
            "\"Gr\u{fc}\u{df}e\" of 2026-01-01T10:00:00+01:00, <a@b>"
        );
        for hostile in [&b""[..], b"\n", b"\0\xff:", b"Subject:", b"Subject: \x1b[31mred\r\n\r\n"] {
            let shown = Description::of(hostile).to_string();
            assert!(!shown.contains(char::is_control), "{shown:?}");
        }
    }
}
