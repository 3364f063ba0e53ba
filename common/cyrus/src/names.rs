//! Names: Cyrus's internal ones, the userids and folders they mean, and identities of 16 octets.
//!
//! Internally parts are joined by `.`, and a dot within a part is `^`, whatever clients see. A user's
//! INBOX is `user.NAME`, in a virtual domain `example.org!user.NAME`. What is below neither `user` nor
//! `DELETED` is shared: here it belongs to a user who cannot be, [`SHARED`], in each domain.

/// Longest internal name that is made, in octets: Cyrus refuses some more.
const INTERNAL_MAX: usize = 480;

/// Whose mailboxes the shared ones are; in a virtual domain an `@` and that follow. Nobody calls a user
/// that: what is behind the `+` of an address is a detail.
pub const SHARED: &str = "+shared";

/// What an internal name means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Named {
    /// A user's mailbox, or a shared one.
    Folder {
        /// The userid, `jane@example.org`, or [`SHARED`].
        user: String,
        /// Parts joined by `/`; empty: the INBOX, which shared mailboxes do not have.
        folder: Vec<u8>,
    },
    /// A mailbox whose name cannot be told as parts joined by `/`.
    Odd {
        /// The userid, or [`SHARED`].
        user: String,
    },
    /// Deleted and not yet gone.
    Other,
}

/// Tells what an internal name means.
pub fn meaning(internal: &[u8]) -> Named {
    let (domain, rest) = match internal.iter().position(|&octet| octet == b'!') {
        Some(at) => (internal.get(..at), internal.get(at + 1..).unwrap_or_default()),
        None => (None, internal),
    };
    let mut parts = rest.split(|&octet| octet == b'.').map(dotted).peekable();
    let user = match parts.peek().map(|first| &first[..]) {
        None | Some(b"DELETED") => return Named::Other,
        Some(b"user") => parts.nth(1).unwrap_or_default(),
        Some(_) => SHARED.as_bytes().to_vec(),
    };
    let domain = domain.map(|domain| [b"@", domain].concat()).unwrap_or_default();
    let is_user = rest.starts_with(b"user.");
    let Ok(user) = String::from_utf8([user, domain].concat()) else { return Named::Other };
    let parts: Vec<Vec<u8>> = parts.collect();
    let odd = |part: &Vec<u8>| part.contains(&b'/') || matches!(&part[..], b"" | b"." | b"..");
    let is_mixed_up = is_user == is_shared(&user);
    if user.is_empty() || is_mixed_up || user.contains('/') || parts.iter().any(odd) {
        return Named::Odd { user };
    }
    Named::Folder { user, folder: parts.join(&b'/') }
}

/// Whether this stands for the shared mailboxes of a domain.
pub fn is_shared(user: &str) -> bool {
    user.strip_prefix(SHARED).is_some_and(|rest| rest.is_empty() || rest.starts_with('@'))
}

/// Whether an internal name is that of a mailbox that was deleted and is kept for a while.
pub fn is_deleted(internal: &[u8]) -> bool {
    let domain = internal.iter().position(|&octet| octet == b'!').map_or(0, |at| at + 1);
    internal.get(domain..).is_some_and(|name| name.starts_with(b"DELETED."))
}

/// The internal name of a user's folder; `virtual_domains`: whether what follows an `@` is one.
pub fn internal(user: &str, folder: &[u8], virtual_domains: bool) -> Result<Vec<u8>, &'static str> {
    let (local, domain) = match user.rsplit_once('@').filter(|_| virtual_domains) {
        Some((local, domain)) => (local, format!("{domain}!")),
        None => (user, String::new()),
    };
    let folders = folder.split(|&octet| octet == b'/').filter(|part| !part.is_empty());
    let above: &[&[u8]] = if is_shared(user) { &[] } else { &[b"user", local.as_bytes()] };
    let parts: Vec<&[u8]> = above.iter().copied().chain(folders).collect();
    if above.is_empty() && matches!(parts.first(), None | Some(&(b"user" | b"DELETED"))) {
        return Err("a shared mailbox of Cyrus has a name, which is neither `user` nor `DELETED`");
    }
    let mut name = domain.into_bytes();
    for (depth, part) in parts.into_iter().enumerate() {
        if part.contains(&b'^') {
            return Err("Cyrus keeps `^` for a dot");
        }
        if !part.iter().all(|octet| matches!(octet, b' '..=b'~') && !b"\"\\%/".contains(octet)) {
            return Err("Cyrus takes printable ASCII only, without \" \\ % /");
        }
        name.extend_from_slice(if depth == 0 { b"" } else { b"." });
        name.extend(part.iter().map(|&octet| if octet == b'.' { b'^' } else { octet }));
    }
    if user.is_empty() || name.len() > INTERNAL_MAX {
        return Err("Cyrus takes names of 1 to 480 octets");
    }
    Ok(name)
}

/// The name that an admin sees over IMAP, where `separator` is `.` or `/`.
pub fn external(internal: &[u8], separator: u8) -> Vec<u8> {
    let (domain, rest) = match internal.iter().position(|&octet| octet == b'!') {
        Some(at) => (internal.get(..at), internal.get(at + 1..).unwrap_or_default()),
        None => (None, internal),
    };
    let turned = rest.iter().map(|&octet| match (separator, octet) {
        (b'/', b'.') => b'/',
        (b'/', b'^') => b'.',
        _ => octet,
    });
    let mut name: Vec<u8> = turned.collect();
    if let Some(domain) = domain {
        name.push(b'@');
        name.extend_from_slice(domain);
    }
    name
}

/// Patterns for `LIST` (RFC 3501 section 6.3.8) that find the mailbox an admin sees as `external`, and
/// all below it. A virtual domain is the end of every name in it.
pub fn with_all_below(external: &str, separator: u8, virtual_domains: bool) -> [String; 2] {
    let (name, domain) = match external.rfind('@').filter(|_| virtual_domains) {
        Some(at) => external.split_at(at),
        None => (external, ""),
    };
    [external.to_owned(), format!("{name}{}*{domain}", char::from(separator))]
}

/// The internal name of what an admin sees over IMAP as `external`; `virtual_domains`: whether what
/// follows an `@` is one.
pub fn internal_of(external: &[u8], separator: u8, virtual_domains: bool) -> Vec<u8> {
    let (rest, domain) = split_domain(external, virtual_domains);
    let mut name = Vec::new();
    if let Some(domain) = domain.strip_prefix(b"@") {
        name = [domain, b"!"].concat();
    }
    name.extend(rest.iter().map(|&octet| match (separator, octet) {
        (b'/', b'/') => b'.',
        (b'/', b'.') => b'^',
        _ => octet,
    }));
    name
}

fn split_domain(external: &[u8], virtual_domains: bool) -> (&[u8], &[u8]) {
    match external.iter().rposition(|&octet| octet == b'@').filter(|_| virtual_domains) {
        Some(at) => external.split_at(at),
        None => (external, b""),
    }
}

fn dotted(part: &[u8]) -> Vec<u8> {
    part.iter().map(|&octet| if octet == b'^' { b'.' } else { octet }).collect()
}

/// Digits of a UNIQUEID of 24 characters, which is how Cyrus 3 writes them: base 36.
const SHORT_DIGITS: u32 = 24;

/// The UNIQUEID that stands for an identity: 24 characters where they can hold it, else 32
/// hexadecimal digits.
pub fn unique_id(id: [u8; 16]) -> String {
    let mut number = u128::from_be_bytes(id);
    if number >= 36_u128.pow(SHORT_DIGITS) {
        return format!("{number:032x}");
    }
    let mut digits = Vec::new();
    for _ in 0..SHORT_DIGITS {
        let digit = u32::try_from(number % 36).unwrap_or(0);
        digits.push(char::from_digit(digit, 36).unwrap_or('0'));
        number /= 36;
    }
    digits.into_iter().rev().collect()
}

/// The identity that a UNIQUEID stands for; `None` if it is in neither of the forms that
/// [`unique_id`] gives.
pub fn identity(unique_id: &str) -> Option<[u8; 16]> {
    let radix = match unique_id.len() {
        24 => 36,
        32 => 16,
        _ => return None,
    };
    let number = u128::from_str_radix(unique_id, radix).ok()?;
    let id = number.to_be_bytes();
    (self::unique_id(id) == unique_id).then_some(id)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_and_what_they_mean() {
        let cases = [
            ("user.alice", "alice", "", "user.alice", "user/alice"),
            (
                "user.alice.Work.Sub",
                "alice",
                "Work/Sub",
                "user.alice.Work.Sub",
                "user/alice/Work/Sub",
            ),
            ("user.john^doe.a^b", "john.doe", "a.b", "user.john^doe.a^b", "user/john.doe/a.b"),
            (
                "example.org!user.jane.W",
                "jane@example.org",
                "W",
                "user.jane.W@example.org",
                "user/jane/W@example.org",
            ),
            ("news", SHARED, "news", "news", "news"),
            ("users.a^b", SHARED, "users/a.b", "users.a^b", "users/a.b"),
            ("b.c!news", "+shared@b.c", "news", "news@b.c", "news@b.c"),
        ];
        for (internal, user, folder, dots, slashes) in cases {
            let folder = folder.as_bytes().to_vec();
            let want = Named::Folder { user: user.into(), folder: folder.clone() };
            assert_eq!(meaning(internal.as_bytes()), want, "{internal}");
            assert_eq!(self::internal(user, &folder, true).unwrap(), internal.as_bytes());
            assert_eq!(external(internal.as_bytes(), b'.'), dots.as_bytes());
            assert_eq!(external(internal.as_bytes(), b'/'), slashes.as_bytes());
            assert_eq!(internal_of(dots.as_bytes(), b'.', true), internal.as_bytes());
            assert_eq!(internal_of(slashes.as_bytes(), b'/', true), internal.as_bytes());
        }
        for other in ["DELETED.user.alice.x.6B005B06", "DELETED", "b.c!DELETED.news.6B005B06"] {
            assert_eq!(meaning(other.as_bytes()), Named::Other, "{other}");
        }
        for odd in ["user", "user.", "user.+shared.news", "b.c!user.+shared", "news..x"] {
            assert!(matches!(meaning(odd.as_bytes()), Named::Odd { .. }), "{odd}");
        }
        for bad in ["", "user", "user/ann", "DELETED/x"] {
            assert!(internal(SHARED, bad.as_bytes(), true).is_err(), "{bad}");
        }
        assert_eq!(meaning(b"user.alice.a/b"), Named::Odd { user: "alice".into() });
        for bad in ["a^b", "a\"b", "\u{e4}", "a%b", &"x".repeat(500)] {
            assert!(internal("alice", bad.as_bytes(), false).is_err(), "{bad}");
        }
        assert_eq!(internal("a@b.c", b"", false).unwrap(), b"user.a@b^c");
    }

    #[test]
    fn patterns_of_a_mailbox_and_all_below() {
        let cases = [
            ("user/ann", b'/', true, "user/ann/*"),
            ("user.ann@example.org", b'.', true, "user.ann.*@example.org"),
            ("user/ann@example.org", b'/', false, "user/ann@example.org/*"),
        ];
        for (name, separator, virtual_domains, below) in cases {
            let patterns = with_all_below(name, separator, virtual_domains);
            assert_eq!(patterns, [name, below]);
        }
    }

    #[test]
    fn identities_of_cyrus_and_of_others() {
        assert!(identity("zoxlygdebj3dq1wrhd66urea").is_some());
        for other in ["", "Zoxlygdebj3dq1wrhd66urea", "0f8fad5b-d9cb-469f-a165-70867728950e"] {
            assert_eq!(identity(other), None, "{other}");
        }
        assert_eq!(unique_id([0xff; 16]), "f".repeat(32));
    }

    proptest! {
        #[test]
        fn an_identity_comes_back(id in any::<[u8; 16]>()) {
            prop_assert_eq!(identity(&unique_id(id)), Some(id));
        }

        #[test]
        fn a_name_cyrus_gave_comes_back(text in "[0-9a-z]{24}") {
            prop_assert_eq!(unique_id(identity(&text).unwrap()), text);
        }
    }
}
