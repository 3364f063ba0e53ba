//! File names of messages: `<base>:2,<flags and keyword letters>`.

use mailtwin_logic::mailbox::Flags;

/// Longest file name any Linux file system takes.
pub(crate) const NAME_OCTETS_MAX: usize = 255;

/// Room for `:2,`, all system flags and all keyword letters.
const LETTERS_OCTETS_MAX: usize = 3 + 6 + 26;

const LETTERS: [(u8, Flags); 6] = [
    (b'D', Flags::DRAFT),
    (b'F', Flags::FLAGGED),
    (b'P', Flags::PASSED),
    (b'R', Flags::ANSWERED),
    (b'S', Flags::SEEN),
    (b'T', Flags::DELETED),
];

/// What a file name says beside its base.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Letters {
    /// System flags.
    pub flags: Flags,
    /// Bit `n` is the keyword of letter `a` + `n`.
    pub keywords: u32,
    /// Letters we do not know, which are kept.
    pub others: Vec<u8>,
}

/// The part of a file name that never changes. Dovecot cuts at the first colon.
pub(crate) fn base(name: &[u8]) -> &[u8] {
    name.split(|&octet| octet == b':').next().unwrap_or_default()
}

/// Reads the letters of a file name; there are none without `:2,`. Order and repetition do not
/// matter, and what follows a comma is somebody else's.
pub(crate) fn letters(name: &[u8]) -> Letters {
    let mut found = Letters::default();
    let info = name.get(base(name).len()..).unwrap_or_default();
    let Some(info) = info.strip_prefix(b":2,") else { return found };
    for &letter in info.iter().take_while(|&&octet| octet != b',') {
        match (LETTERS.iter().find(|(known, _)| *known == letter), letter) {
            (Some((_, flag)), _) => found.flags = found.flags.with(*flag),
            (None, b'a'..=b'z') => found.keywords |= 1 << (letter - b'a'),
            (None, _) if !found.others.contains(&letter) => found.others.push(letter),
            (None, _) => {}
        }
    }
    found
}

/// A file name for `cur/`, its letters in ASCII order as Dovecot writes them.
pub(crate) fn compose(base: &[u8], letters: &Letters) -> Vec<u8> {
    let mut set = letters.others.clone();
    let known = LETTERS.iter().filter(|(_, flag)| letters.flags.contains(*flag));
    set.extend(known.map(|(letter, _)| letter));
    set.extend((b'a'..=b'z').filter(|letter| letters.keywords >> (letter - b'a') & 1 == 1));
    set.sort_unstable();
    [base, b":2,", &set].concat()
}

/// Whether `base` may stand in a uidlist and in a directory, with any letters behind it.
pub(crate) fn is_storable(base: &[u8]) -> bool {
    !base.is_empty()
        && !base.starts_with(b".")
        && base.len() + LETTERS_OCTETS_MAX <= NAME_OCTETS_MAX
        && !base.iter().any(|&octet| matches!(octet, b'/' | b':') || octet < b' ' || octet == 0x7f)
}

/// The size a base name tells (`,S=`), if it does.
pub(crate) fn told_size(base: &[u8]) -> Option<u64> {
    let mut fields = base.split(|&octet| octet == b',').skip(1);
    let size = fields.find_map(|field| field.strip_prefix(b"S="))?;
    std::str::from_utf8(size).ok()?.parse().ok()
}

/// Seconds since 1970 at which a base name says the message was delivered; 0 if it does not.
pub(crate) fn told_time(base: &[u8]) -> u64 {
    let digits = base.iter().take_while(|octet| octet.is_ascii_digit()).take(18);
    digits.fold(0, |secs, digit| secs * 10 + u64::from(digit - b'0'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn read_and_written() {
        let cases: [(&[u8], &[u8], &[u8]); 8] = [
            (b"1.M2.h,S=3:2,FS", b"1.M2.h,S=3", b"1.M2.h,S=3:2,FS"),
            (b"1.M2.h:2,SFS", b"1.M2.h", b"1.M2.h:2,FS"),
            (b"1.M2.h", b"1.M2.h", b"1.M2.h:2,"),
            (b"1:2,", b"1", b"1:2,"),
            (b"1:2,bZaS", b"1", b"1:2,SZab"),
            (b"1:1,S", b"1", b"1:2,"),
            (b"1:2,S,x", b"1", b"1:2,S"),
            (b"\xff\n:2,T", b"\xff\n", b"\xff\n:2,T"),
        ];
        for (name, want_base, want) in cases {
            assert_eq!(base(name), want_base);
            assert_eq!(compose(base(name), &letters(name)), want, "{}", name.escape_ascii());
        }
        let found = letters(b"1:2,DFPRSTacQ");
        assert_eq!((found.flags, found.keywords, found.others), (Flags(63), 5, b"Q".to_vec()));
    }

    #[test]
    fn what_a_base_tells() {
        assert_eq!(told_size(b"1.M2.h,S=30,W=31"), Some(30));
        for none in [&b"1.M2.h"[..], b"S=3", b"1,S=x", b"1,W=3", b""] {
            assert_eq!(told_size(none), None);
        }
        assert_eq!(told_time(b"1700.M2"), 1700);
        assert_eq!(told_time(b"x"), 0);
        assert!(told_time(&[b'9'; 300]) > 0);
    }

    #[test]
    fn hostile_bases_are_not_storable() {
        let long = [b'a'; 221];
        for bad in [&b""[..], b".x", b"../x", b"a/b", b"a:b", b"a\nb", b"a\0", b"\x7f", &long] {
            assert!(!is_storable(bad), "{}", bad.escape_ascii());
        }
        assert!(is_storable(&long[..220]) && is_storable(b"1.M2.h,S=3") && is_storable(b"\xff"));
    }

    proptest! {
        #[test]
        fn any_octets(name in proptest::collection::vec(any::<u8>(), 0..40)) {
            let found = letters(&name);
            let again = compose(base(&name), &found);
            let (reread, sorted) = (letters(&again), letters(&compose(base(&name), &found)));
            prop_assert_eq!(reread.flags, found.flags);
            prop_assert_eq!(reread.keywords, found.keywords);
            prop_assert_eq!(sorted.others.len(), found.others.len());
            let _ = (told_size(&name), told_time(&name));
        }
    }
}
