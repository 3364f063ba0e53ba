//! `dovecot-uidlist`, version 3: which UID a base name has.
//!
//! ```text
//! 3 V<uidvalidity> N<next uid when last rewritten> G<mailbox id>[ <other keys>]
//! <uid> [<key><value> ...] :<base name>
//! ```
//!
//! Lines of expunged messages stay until a rewrite; real UIDNEXT is the larger of `N` and the last
//! line's UID + 1. What follows the last line end is half a line, and not read.

use mailtwin_logic::ids::{MailboxId, Uid, UidValidity};

use super::names;

/// The file.
pub(crate) const NAME: &[u8] = b"dovecot-uidlist";

/// Its lock.
pub(crate) const LOCK: &[u8] = b"dovecot-uidlist.lock";

/// Longest file that is read, in octets: some two million messages.
pub(crate) const FILE_OCTETS_MAX: u64 = 256 << 20;

/// Longest keys of one line that are kept and replicated, in octets.
pub(crate) const KEYS_OCTETS_MAX: usize = 160;

/// The first line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Heading {
    pub uid_validity: UidValidity,
    pub next: Uid,
    pub id: Option<MailboxId>,
    /// Other keys, each with a space before it.
    pub rest: Vec<u8>,
}

/// One message's line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Line<'a> {
    pub uid: Uid,
    /// Keys between UID and base name.
    pub keys: &'a [u8],
    pub base: &'a [u8],
}

/// Lines as far as they make sense.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lines<'a> {
    pub read: Vec<Line<'a>>,
    /// Octets of whole lines.
    pub octets: usize,
    /// What is wrong with the first line that makes none: Dovecot would build the list anew from
    /// there, so what stands behind it has no UID to be relied on.
    pub damage: Option<String>,
}

/// Whether `part`, the last octets that were read of a list, ends where a line with UID `last`
/// does; a list without lines ends behind its first line, which `is_start` says is in `part`.
pub(crate) fn ends_with(part: &[u8], is_start: bool, last: Uid) -> bool {
    let Some(lines) = part.strip_suffix(b"\n") else { return false };
    let (line, is_first) = match lines.iter().rposition(|&octet| octet == b'\n') {
        Some(at) => (lines.get(at + 1..).unwrap_or_default(), false),
        None => (lines, is_start),
    };
    let number = line.split(|&octet| octet == b' ').next().unwrap_or_default();
    let uid = std::str::from_utf8(number).ok().and_then(|text| text.parse().ok()).map(Uid);
    if is_first { last == Uid(0) } else { uid == Some(last) }
}

impl Heading {
    /// Splits off and reads the first line.
    pub(crate) fn parse(content: &[u8]) -> Result<(Self, &[u8]), String> {
        let end = content.iter().position(|&octet| octet == b'\n').ok_or("it has no first line")?;
        let (line, rest) = content.split_at_checked(end).ok_or("it has no first line")?;
        let mut words = line.split(|&octet| octet == b' ');
        if words.next() != Some(b"3") {
            return Err("its first line does not start with 3, the version".into());
        }
        let mut heading = Self::default();
        for word in words.filter(|word| !word.is_empty()) {
            let value = || word.get(1..).and_then(|value| std::str::from_utf8(value).ok());
            let number = || value().and_then(|value| value.parse().ok());
            let bad = || format!("its first line says {}", word.escape_ascii());
            match word.first() {
                Some(b'V') => heading.uid_validity = UidValidity(number().ok_or_else(bad)?),
                Some(b'N') => heading.next = Uid(number().ok_or_else(bad)?),
                Some(b'G') => {
                    heading.id = value().and_then(|value| value.parse().ok());
                }
                _ => heading.rest.extend([b" ", word].concat()),
            }
        }
        if heading.uid_validity.0 == 0 || heading.next.0 == 0 {
            return Err("its first line lacks UIDVALIDITY or next UID".into());
        }
        Ok((heading, rest.get(1..).unwrap_or_default()))
    }

    /// The line, with its end.
    pub(crate) fn render(&self) -> Vec<u8> {
        let mut line = format!("3 V{} N{}", self.uid_validity, self.next).into_bytes();
        if let Some(id) = self.id {
            line.extend(format!(" G{id}").bytes());
        }
        line.extend(&self.rest);
        line.push(b'\n');
        line
    }
}

impl<'a> Lines<'a> {
    /// Reads lines that follow one with UID `last`.
    pub(crate) fn parse(mut content: &'a [u8], mut last: Uid) -> Self {
        let mut found = Self::default();
        while let Some(end) = content.iter().position(|&octet| octet == b'\n') {
            let (text, rest) = content.split_at(end);
            match parse_line(text) {
                Some(line) if line.uid > last => {
                    last = line.uid;
                    found.read.push(line);
                }
                Some(line) => {
                    found.damage = Some(format!("UID {} follows UID {last}", line.uid));
                    break;
                }
                None => {
                    let text = text.get(..text.len().min(60)).unwrap_or_default();
                    found.damage = Some(format!("a line says {}", text.escape_ascii()));
                    break;
                }
            }
            found.octets += end + 1;
            content = rest.get(1..).unwrap_or_default();
        }
        found
    }
}

/// A line, with its end.
pub(crate) fn render(uid: Uid, keys: &[u8], base: &[u8]) -> Vec<u8> {
    let space: &[u8] = if keys.is_empty() { b"" } else { b" " };
    [uid.to_string().as_bytes(), b" ", keys, space, b":", base, b"\n"].concat()
}

/// A line that brings UIDNEXT to `next` and has no file.
pub(crate) fn gap(next: Uid) -> Vec<u8> {
    let uid = Uid(next.0.saturating_sub(1));
    render(uid, b"", format!("0.gap{uid}").as_bytes())
}

/// What goes to another node about a message's line: keys and base name.
pub(crate) fn hint(keys: &[u8], base: &[u8]) -> Box<[u8]> {
    let space: &[u8] = if keys.is_empty() { b"" } else { b" " };
    [keys, space, b":", base].concat().into()
}

/// Reads another node's hint as if it were hostile: keys that can be kept, and a base name that
/// can be stored. Sizes are left out, since Dovecot would believe them and can compute them.
pub(crate) fn parse_hint(hint: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let (keys, base) = split_line(hint)?;
    let is_plain = |word: &[u8]| word.iter().all(u8::is_ascii_graphic);
    let wanted = |word: &&[u8]| matches!(word.first(), Some(b'G' | b'O' | b'P'));
    let words: Vec<&[u8]> = keys.split(|&octet| octet == b' ').filter(wanted).collect();
    let keys = words.join(&b' ');
    let fits = keys.len() <= KEYS_OCTETS_MAX && words.iter().copied().all(is_plain);
    names::is_storable(base).then(|| (if fits { keys } else { Vec::new() }, base))
}

/// Keys with Dovecot's own message GUID set to `guid`, unless they name one.
pub(crate) fn with_guid(keys: &[u8], guid: &[u8]) -> Vec<u8> {
    let mut words = keys.split(|&octet| octet == b' ');
    let is_plain = guid.iter().all(u8::is_ascii_graphic);
    let fits = keys.len() + guid.len() + 2 <= KEYS_OCTETS_MAX;
    if words.any(|word| word.first() == Some(&b'G')) || !is_plain || !fits {
        return keys.to_vec();
    }
    let space: &[u8] = if keys.is_empty() { b"" } else { b" " };
    [b"G", guid, space, keys].concat()
}

fn parse_line(text: &[u8]) -> Option<Line<'_>> {
    let space = text.iter().position(|&octet| octet == b' ')?;
    let uid = Uid(std::str::from_utf8(text.get(..space)?).ok()?.parse().ok()?);
    let (keys, base) = split_line(text.get(space + 1..)?)?;
    ((Uid(1)..=Uid::MAX).contains(&uid) && !base.is_empty()).then_some(Line { uid, keys, base })
}

/// Splits `[<key><value> ...] :<base>`; a base name ends before a colon of its own.
fn split_line(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut at = 0;
    loop {
        match text.get(at)? {
            b':' => break,
            b'A'..=b'Z' => {}
            _ => return None,
        }
        let word = text.get(at..)?.iter().position(|&octet| octet == b' ')?;
        at += word + 1;
    }
    let keys = text.get(..at.saturating_sub(1)).unwrap_or_default();
    Some((keys, names::base(text.get(at + 1..)?)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn headings() {
        let text = b"3 V1795185165 N2 Ge9eb72390c5a006ba676000083ecc375 P%v Xq\n1 :a\n";
        let (heading, rest) = Heading::parse(text).unwrap();
        assert_eq!((heading.uid_validity, heading.next), (UidValidity(1_795_185_165), Uid(2)));
        assert_eq!(heading.rest, b" P%v Xq");
        assert_eq!(rest, b"1 :a\n");
        assert_eq!([&heading.render(), rest].concat(), text);
        assert_eq!(Heading::parse(b"3 V1 N1 Gxx\n").unwrap().0.id, None);
        for bad in ["", "3 V1 N1", "1 5 6\n", "3 V1\n", "3 N1\n", "3 Vx N1\n", "3 V0 N1\n", "\n"] {
            assert!(Heading::parse(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn lines() {
        let cases: [(&str, &str, Option<&str>); 10] = [
            ("1 :a\n4 P O7 Gx W3 :b,S=3\n", "1||a 4|P O7 Gx W3|b,S=3", None),
            ("1 :a\n2 :b", "1||a", None),
            ("1 :a\n9 :1700.torn4 :1795.x\n", "1||a 9||1700.torn4 ", None),
            ("5 :a\n5 :b\n6 :c\n", "5||a", Some("UID 5 follows UID 5")),
            ("5 :a\nx\n6 :c\n", "5||a", Some("a line says x")),
            ("0 :a\n", "", Some("a line says 0 :a")),
            ("4294967295 :a\n", "", Some("a line says 4294967295 :a")),
            ("4294967294 :a\n", "4294967294||a", None),
            ("1 lower :a\n", "", Some("a line says 1 lower :a")),
            ("1 :\n", "", Some("a line says 1 :")),
        ];
        for (text, want, damage) in cases {
            let found = Lines::parse(text.as_bytes(), Uid(0));
            let show = |line: &Line<'_>| {
                let text = |octets: &[u8]| String::from_utf8_lossy(octets).into_owned();
                format!("{}|{}|{}", line.uid, text(line.keys), text(line.base))
            };
            let got: Vec<String> = found.read.iter().map(show).collect();
            assert_eq!(got.join(" "), want, "{text:?}");
            assert_eq!(found.damage.as_deref(), damage, "{text:?}");
        }
        let (first, second) = ("1 :a\n", "4 Gx :b\n");
        let both = [render(Uid(1), b"", b"a"), render(Uid(4), b"Gx", b"b")].concat();
        assert_eq!(both, [first, second].concat().as_bytes());
        assert_eq!(Lines::parse(b"1 :a\n2 :b\n3 :", Uid(0)).octets, 10);
    }

    #[test]
    fn hints() {
        type Parts<'a> = Option<(&'a [u8], &'a [u8])>;
        let cases: [(&[u8], Parts<'_>); 8] = [
            (b":1.a", Some((b"", b"1.a"))),
            (b"P O3 Gold W4 S5 :1.a,S=5", Some((b"P O3 Gold", b"1.a,S=5"))),
            (b"Ga\nb :1.a", Some((b"", b"1.a"))),
            (b":../../etc/passwd", None),
            (b":.hidden", None),
            (b":a\nb", None),
            (b"", None),
            (b"G", None),
        ];
        for (text, want) in cases {
            let got = parse_hint(text);
            let got = got.as_ref().map(|(keys, base)| (keys.as_slice(), *base));
            assert_eq!(got, want, "{}", text.escape_ascii());
        }
        assert_eq!(parse_hint(&hint(b"Gx", b"b")), Some((b"Gx".to_vec(), &b"b"[..])));
        assert_eq!(with_guid(b"O3", b"old"), b"Gold O3");
        assert_eq!(with_guid(b"Gfirst", b"old"), b"Gfirst");
        assert_eq!(with_guid(b"", b"o ld"), b"");
    }

    proptest! {
        #[test]
        fn any_octets(content in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Heading::parse(&content);
            let found = Lines::parse(&content, Uid(0));
            prop_assert!(found.octets <= content.len());
            if let Some((keys, base)) = parse_hint(&content) {
                prop_assert!(names::is_storable(base) && !keys.contains(&b'\n'));
            }
        }

        #[test]
        fn nearly_right(text in "([0-9]{1,3} ([A-Z][a-z]{0,3} )?:[a-z.]{1,5}\n){0,6}") {
            let found = Lines::parse(text.as_bytes(), Uid(0));
            prop_assert!(found.read.windows(2).all(|pair| pair[0].uid < pair[1].uid));
        }
    }

    #[test]
    fn another_list_is_told_from_one_that_grew() {
        let cases: [(&[u8], bool, u32, bool); 7] = [
            (b"3 V1 N5 Gx\n", true, 0, true),
            (b"3 V1 N5 Gx\n", true, 4, false),
            (b"3 V1 N5 Gx\n3 :a\n4 :b\n", true, 4, true),
            (b":a\n4 G1 :b\n", false, 4, true),
            (b":a\n9 :b\n", false, 4, false),
            (b":a\n4 :b", false, 4, false),
            (b"", false, 0, false),
        ];
        for (part, is_start, last, expected) in cases {
            let told = ends_with(part, is_start, Uid(last));
            assert_eq!(told, expected, "{}", part.escape_ascii());
        }
    }
}
