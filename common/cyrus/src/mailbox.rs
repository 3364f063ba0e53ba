//! What a server says of a mailbox and its messages, taken out of dlist values and put into them.

use std::fmt::Write as _;

use crate::dlist::Value;

/// Where new mailboxes are made.
pub const NEW_PARTITION: &str = "default";

/// The mark of a message that was expunged and not yet forgotten.
pub const EXPUNGED: &[u8] = b"\\Expunged";

/// Keys of a `MAILBOX` answer that say what only this server knows, so that they are not sent back.
const OWN: [&str; 5] = ["SYNC_CRC", "SYNC_CRC_ANNOT", "QUOTAROOT", "RECORD", "ISARCHIVE"];

/// A mailbox without its messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mailbox {
    /// Internal name, `user.alice.Work`.
    pub name: Vec<u8>,
    /// UNIQUEID.
    pub unique_id: String,
    /// UIDVALIDITY.
    pub uid_validity: u32,
    /// Highest UID ever given.
    pub last_uid: u32,
    /// HIGHESTMODSEQ.
    pub highest_modseq: u64,
    /// Sums over all records, that change with any of them; 0 where the server gives none.
    pub crc: (u64, u64),
    /// Letters that say what it holds; empty or `e`: mail.
    pub kind: String,
    /// Access rights: identifier, tab, rights, tab, and so on.
    pub acl: Vec<u8>,
    /// Where its files are.
    pub partition: String,
    /// Whether it has annotations of its own.
    pub annotated: bool,
    /// All that was said, for sending it back.
    pub fields: Vec<(String, Value)>,
}

/// One message's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// UID, from 1.
    pub uid: u32,
    /// MODSEQ.
    pub modseq: u64,
    /// SHA-1 of the octets.
    pub guid: [u8; 20],
    /// Number of octets.
    pub octets: u64,
    /// INTERNALDATE in seconds since 1970.
    pub internal_date: i64,
    /// System flags with their backslash, and keywords.
    pub flags: Vec<Vec<u8>>,
    /// Annotations that somebody made, as they were said; `None` if there are none.
    pub annotations: Option<Value>,
}

/// An answer that lacks something, or has it in a form that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} without a valid {key}")]
pub struct FieldError {
    what: &'static str,
    key: &'static str,
}

impl Mailbox {
    /// Reads the value of a `MAILBOX` answer.
    pub fn parse(value: &Value) -> Result<Self, FieldError> {
        let error = |key| FieldError { what: "a mailbox", key };
        let text = |key| value.text_of(key).ok_or_else(|| error(key));
        let number = |key| value.number_of(key);
        let small = |key| number(key).and_then(|n| u32::try_from(n).ok());
        let string = |key| Some(String::from_utf8_lossy(value.text_of(key)?).into_owned());
        let Value::Map(fields) = value else { return Err(error("MBOXNAME")) };
        let is_own = |(key, _): &&(String, Value)| !OWN.contains(&&key[..]);
        Ok(Self {
            name: text("MBOXNAME")?.to_vec(),
            unique_id: string("UNIQUEID").ok_or_else(|| error("UNIQUEID"))?,
            uid_validity: small("UIDVALIDITY").ok_or_else(|| error("UIDVALIDITY"))?,
            last_uid: small("LAST_UID").ok_or_else(|| error("LAST_UID"))?,
            highest_modseq: number("HIGHESTMODSEQ").ok_or_else(|| error("HIGHESTMODSEQ"))?,
            crc: (number("SYNC_CRC").unwrap_or(0), number("SYNC_CRC_ANNOT").unwrap_or(0)),
            kind: string("MBOXTYPE").unwrap_or_default(),
            acl: value.text_of("ACL").unwrap_or_default().to_vec(),
            partition: string("PARTITION").unwrap_or_default(),
            annotated: value.get("ANNOTATIONS").is_some(),
            fields: fields.iter().filter(is_own).cloned().collect(),
        })
    }

    /// One that is not there yet, with `acl`; it has no message.
    pub fn new(name: Vec<u8>, unique_id: String, uid_validity: u32, acl: Vec<u8>) -> Self {
        let zero = || Value::number(0);
        let fields = [
            ("UNIQUEID", Value::text(&unique_id)),
            ("MBOXNAME", Value::text(&name)),
            ("LAST_UID", zero()),
            ("HIGHESTMODSEQ", Value::number(1)),
            ("RECENTUID", zero()),
            ("RECENTTIME", zero()),
            ("LAST_APPENDDATE", zero()),
            ("POP3_LAST_LOGIN", zero()),
            ("POP3_SHOW_AFTER", zero()),
            ("UIDVALIDITY", Value::number(uid_validity)),
            ("PARTITION", Value::text(NEW_PARTITION)),
            ("ACL", Value::text(&acl)),
            ("OPTIONS", Value::text("P")),
            ("CREATEDMODSEQ", Value::number(1)),
            ("FOLDERMODSEQ", Value::number(1)),
        ];
        Self {
            name,
            unique_id,
            uid_validity,
            last_uid: 0,
            highest_modseq: 1,
            crc: (0, 0),
            kind: String::new(),
            acl,
            partition: NEW_PARTITION.to_owned(),
            annotated: false,
            fields: fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
        }
    }

    /// The argument of `APPLY MAILBOX` that makes a place in the hierarchy only.
    pub fn place(name: &[u8], unique_id: &str) -> Value {
        Value::map([
            ("UNIQUEID", Value::text(unique_id)),
            ("MBOXNAME", Value::text(name)),
            ("MBOXTYPE", Value::text("i")),
            ("HIGHESTMODSEQ", Value::number(1)),
            ("CREATEDMODSEQ", Value::number(1)),
            ("FOLDERMODSEQ", Value::number(1)),
        ])
    }

    /// Letters of its options.
    pub fn options(&self) -> &[u8] {
        let options = self.fields.iter().find(|(key, _)| key == "OPTIONS");
        options.and_then(|(_, value)| value.as_text()).unwrap_or_default()
    }

    /// Whether it is a place in the hierarchy only, without messages.
    pub fn is_intermediate(&self) -> bool {
        self.kind.contains('i')
    }

    /// Whether it holds mail, and not a calendar, address book or the like.
    pub fn is_mail(&self) -> bool {
        self.kind.is_empty() || self.kind == "e"
    }

    /// The argument of `APPLY MAILBOX` that makes it what it is here, with `records`. With `since`
    /// the server refuses if the mailbox has changed from that.
    pub fn value(&self, records: Vec<Value>, since: Option<&Self>) -> Value {
        let mut fields = self.fields.clone();
        let mut set =
            |key: &str, value: Value| match fields.iter_mut().find(|(name, _)| name == key) {
                Some((_, held)) => *held = value,
                None => fields.push((key.to_owned(), value)),
            };
        set("UIDVALIDITY", Value::number(self.uid_validity));
        set("LAST_UID", Value::number(self.last_uid));
        set("HIGHESTMODSEQ", Value::number(self.highest_modseq));
        set("ACL", Value::text(&self.acl));
        if let Some(since) = since {
            set("SINCE_MODSEQ", Value::number(since.highest_modseq));
            set("SINCE_CRC", Value::number(since.crc.0));
            set("SINCE_CRC_ANNOT", Value::number(since.crc.1));
        }
        set("RECORD", Value::List(records));
        Value::Map(fields)
    }
}

impl Message {
    /// Reads one entry of `RECORD`.
    pub fn parse(value: &Value) -> Result<Self, FieldError> {
        let error = |key| FieldError { what: "a message", key };
        let number = |key| value.number_of(key).ok_or_else(|| error(key));
        let date = value.text_of("INTERNALDATE").and_then(|text| std::str::from_utf8(text).ok());
        let uid = u32::try_from(number("UID")?).ok().filter(|&uid| uid > 0 && uid < u32::MAX);
        let flags = value.get("FLAGS").and_then(Value::as_list).ok_or_else(|| error("FLAGS"))?;
        let flags = flags.iter().map(|flag| Some(flag.as_text()?.to_vec()));
        Ok(Self {
            uid: uid.ok_or_else(|| error("UID"))?,
            modseq: number("MODSEQ")?,
            guid: value.text_of("GUID").and_then(hex).ok_or_else(|| error("GUID"))?,
            octets: number("SIZE")?,
            internal_date: date
                .and_then(|date| date.parse().ok())
                .ok_or_else(|| error("INTERNALDATE"))?,
            flags: flags.collect::<Option<_>>().ok_or_else(|| error("FLAGS"))?,
            annotations: made_annotations(value),
        })
    }

    /// Whether it was expunged.
    pub fn is_expunged(&self) -> bool {
        self.flags.iter().any(|flag| flag.eq_ignore_ascii_case(EXPUNGED))
    }

    /// Its entry in `RECORD`, changed last at `now`, in seconds since 1970.
    pub fn value(&self, now: u64) -> Value {
        let mut fields = vec![
            ("UID", Value::number(self.uid)),
            ("MODSEQ", Value::number(self.modseq)),
            ("LAST_UPDATED", Value::number(now)),
            ("FLAGS", Value::List(self.flags.iter().map(Value::text).collect())),
            ("INTERNALDATE", Value::number(self.internal_date)),
            ("SIZE", Value::number(self.octets)),
            ("GUID", Value::text(guid_text(self.guid))),
        ];
        fields.extend(self.annotations.clone().map(|list| ("ANNOTATIONS", list)));
        Value::Map(fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
    }
}

/// A record's annotations without those that are fields of the index, which the server makes itself.
fn made_annotations(record: &Value) -> Option<Value> {
    let is_made = |annotation: &&Value| {
        let entry = annotation.text_of("ENTRY").unwrap_or_default();
        !entry.starts_with(b"/vendor/cmu/cyrus-imapd/")
    };
    let all = record.get("ANNOTATIONS")?.as_list()?;
    let made: Vec<Value> = all.iter().filter(is_made).cloned().collect();
    (!made.is_empty()).then_some(Value::List(made))
}

/// A GUID as it stands on the wire.
pub fn guid_text(guid: [u8; 20]) -> String {
    guid.iter().fold(String::with_capacity(40), |mut text, octet| {
        // Writing to a string does not fail.
        let _ = write!(text, "{octet:02x}");
        text
    })
}

fn hex(text: &[u8]) -> Option<[u8; 20]> {
    let mut guid = [0; 20];
    if text.len() != 40 {
        return None;
    }
    for (octet, pair) in guid.iter_mut().zip(text.chunks_exact(2)) {
        *octet = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(guid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_sent_back() {
        let line = b"%(UNIQUEID abc MBOXNAME user.alice SYNC_CRC 5 SYNC_CRC_ANNOT 6 LAST_UID 3 \
            HIGHESTMODSEQ 9 UIDVALIDITY 7 PARTITION default ACL \"alice\tlr\t\" OPTIONS PS \
            ANNOTATIONS (%(ENTRY /comment USERID \"\" VALUE x)) RECORD ())";
        let value = Value::parse(&mut &line[..]).unwrap();
        let mailbox = Mailbox::parse(&value).unwrap();
        assert_eq!((mailbox.last_uid, mailbox.crc, mailbox.is_mail()), (3, (5, 6), true));
        let sent = Mailbox { last_uid: 4, ..mailbox.clone() }.value(Vec::new(), Some(&mailbox));
        assert_eq!((sent.number_of("LAST_UID"), sent.number_of("SINCE_CRC")), (Some(4), Some(5)));
        assert_eq!((sent.text_of("OPTIONS"), sent.get("SYNC_CRC")), (Some(&b"PS"[..]), None));
        assert!(sent.get("ANNOTATIONS").is_some(), "what we do not know is passed through");
    }

    #[test]
    fn records_come_back_and_nonsense_does_not() {
        let message = Message {
            uid: 3,
            modseq: 9,
            guid: [0xa5; 20],
            octets: 10,
            internal_date: -5,
            flags: vec![b"\\Seen".to_vec(), b"todo".to_vec()],
            annotations: None,
        };
        assert_eq!(Message::parse(&message.value(1)), Ok(message.clone()));
        assert!(!message.is_expunged());
        for uid in ["0", "4294967295", "-1", "x"] {
            let Value::Map(mut fields) = message.value(1) else { panic!() };
            fields[0].1 = Value::text(uid);
            assert!(Message::parse(&Value::Map(fields)).is_err(), "{uid}");
        }
    }
}
