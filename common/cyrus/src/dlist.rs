//! Cyrus's "dlist" values: what stands behind the name in every command and answer.
//!
//! ```text
//! value   = "(" [value *(SP value)] ")"                   list
//!         / "%(" [key SP value *(SP key SP value)] ")"    keys and values
//!         / "%{" part SP guid SP size "}" CRLF *OCTET     file
//!         / atom / quoted / literal / "NIL"
//! ```
//!
//! Literals are sent as `{n+}`, so that nobody waits, and taken as `{n}` as well.

use std::fmt;

/// Lists within lists that are taken.
pub const DEPTH_MAX: usize = 16;

/// Text that is sent as an atom or in quotes; what is longer goes as a literal.
const SHORT_MAX: usize = 1024;

/// One value.
#[derive(Clone, PartialEq, Eq)]
pub enum Value {
    /// `NIL`, unquoted.
    Nil,
    /// Atom, quoted string or literal: octets.
    Text(Vec<u8>),
    /// Values in order.
    List(Vec<Value>),
    /// Keys and values in order.
    Map(Vec<(String, Value)>),
    /// A message's octets.
    File(File),
}

/// A message's octets on the wire.
#[derive(Clone, PartialEq, Eq)]
pub struct File {
    /// Cyrus partition.
    pub partition: String,
    /// SHA-1 as 40 hexadecimal digits; not checked here.
    pub guid: String,
    /// The message.
    pub octets: Vec<u8>,
}

/// Octets that are no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DlistError {
    /// It ends in the middle.
    #[error("a value ends too early")]
    Short,
    /// Something stands where it may not.
    #[error("a value is not well-formed")]
    Malformed,
    /// Deeper than [`DEPTH_MAX`].
    #[error("lists are nested too deeply")]
    Deep,
}

impl Value {
    /// Text.
    pub fn text(text: impl AsRef<[u8]>) -> Self {
        Self::Text(text.as_ref().to_vec())
    }

    /// A number, as text.
    pub fn number(number: impl fmt::Display) -> Self {
        Self::Text(number.to_string().into_bytes())
    }

    /// Keys and values.
    pub fn map<const N: usize>(entries: [(&str, Self); N]) -> Self {
        Self::Map(entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
    }

    /// The octets of a text; `None` for anything else.
    pub fn as_text(&self) -> Option<&[u8]> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    /// The entries of a list; `None` for anything else.
    pub fn as_list(&self) -> Option<&[Self]> {
        if let Self::List(list) = self { Some(list) } else { None }
    }

    /// The value of `key` in a map.
    pub fn get(&self, key: &str) -> Option<&Self> {
        let Self::Map(entries) = self else { return None };
        entries.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// The text of `key` in a map.
    pub fn text_of(&self, key: &str) -> Option<&[u8]> {
        self.get(key)?.as_text()
    }

    /// The number of `key` in a map, decimal without sign.
    pub fn number_of(&self, key: &str) -> Option<u64> {
        std::str::from_utf8(self.text_of(key)?).ok()?.parse().ok()
    }

    /// Appends its form on the wire.
    pub fn encode(&self, wire: &mut Vec<u8>) {
        match self {
            Self::Nil => wire.extend_from_slice(b"NIL"),
            Self::Text(text) => encode_text(text, wire),
            Self::List(list) => {
                wire.push(b'(');
                separated(list, wire, Value::encode);
                wire.push(b')');
            }
            Self::Map(entries) => {
                wire.extend_from_slice(b"%(");
                separated(entries, wire, |(key, value), wire| {
                    encode_text(key.as_bytes(), wire);
                    wire.push(b' ');
                    value.encode(wire);
                });
                wire.push(b')');
            }
            Self::File(file) => {
                let File { partition, guid, octets } = file;
                let head = format!("%{{{partition} {guid} {}}}\r\n", octets.len());
                wire.extend_from_slice(head.as_bytes());
                wire.extend_from_slice(octets);
            }
        }
    }

    /// Takes one value off the front of `input`.
    pub fn parse(input: &mut &[u8]) -> Result<Self, DlistError> {
        parse(input, 0)
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nil => f.write_str("NIL"),
            Self::Text(text) => write!(f, "\"{}\"", text.escape_ascii()),
            Self::List(list) => f.debug_list().entries(list).finish(),
            Self::Map(entries) => {
                f.debug_map().entries(entries.iter().map(|(key, value)| (key, value))).finish()
            }
            Self::File(file) => file.fmt(f),
        }
    }
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "File({}, {} octets)", self.guid, self.octets.len())
    }
}

fn separated<T>(items: &[T], wire: &mut Vec<u8>, encode: impl Fn(&T, &mut Vec<u8>)) {
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            wire.push(b' ');
        }
        encode(item, wire);
    }
}

fn encode_text(text: &[u8], wire: &mut Vec<u8>) {
    let plain =
        |octet: &u8| octet.is_ascii_alphanumeric() || b"!#$&'+,./:;<=>?@[]^_`|}~-".contains(octet);
    // A system flag is only known as an atom.
    let body =
        text.strip_prefix(b"\\").filter(|rest| rest.first().is_some_and(u8::is_ascii_alphabetic));
    let is_atom = !text.is_empty() && !text.eq_ignore_ascii_case(b"NIL");
    if is_atom && text.len() <= SHORT_MAX && body.unwrap_or(text).iter().all(plain) {
        wire.extend_from_slice(text);
    } else if text.len() <= SHORT_MAX
        && text.iter().all(|octet| matches!(octet, b' '..=b'~') && !b"\"\\".contains(octet))
    {
        wire.push(b'"');
        wire.extend_from_slice(text);
        wire.push(b'"');
    } else {
        wire.extend_from_slice(format!("{{{}+}}\r\n", text.len()).as_bytes());
        wire.extend_from_slice(text);
    }
}

fn parse(input: &mut &[u8], depth: usize) -> Result<Value, DlistError> {
    if depth >= DEPTH_MAX {
        return Err(DlistError::Deep);
    }
    match *input {
        [b'(', rest @ ..] => {
            *input = rest;
            let mut list = Vec::new();
            while !closes(input)? {
                list.push(parse(input, depth + 1)?);
            }
            Ok(Value::List(list))
        }
        [b'%', b'(', rest @ ..] => {
            *input = rest;
            let mut entries = Vec::new();
            while !closes(input)? {
                let key = text(input)?.ok_or(DlistError::Malformed)?;
                let key = String::from_utf8(key).map_err(|_| DlistError::Malformed)?;
                skip_spaces(input);
                entries.push((key, parse(input, depth + 1)?));
            }
            Ok(Value::Map(entries))
        }
        [b'%', b'{', rest @ ..] => {
            *input = rest;
            file(input).map(Value::File)
        }
        [b' ' | b')' | b'\r' | b'\n', ..] => Err(DlistError::Malformed),
        [] => Err(DlistError::Short),
        _ => Ok(text(input)?.map_or(Value::Nil, Value::Text)),
    }
}

fn skip_spaces(input: &mut &[u8]) {
    while let [b' ', rest @ ..] = *input {
        *input = rest;
    }
}

/// Whether a list ends here; its bracket is taken then.
fn closes(input: &mut &[u8]) -> Result<bool, DlistError> {
    skip_spaces(input);
    match *input {
        [b')', rest @ ..] => {
            *input = rest;
            Ok(true)
        }
        [] => Err(DlistError::Short),
        _ => Ok(false),
    }
}

/// Atom, quoted string or literal; `None` for an unquoted `NIL`.
pub(crate) fn text(input: &mut &[u8]) -> Result<Option<Vec<u8>>, DlistError> {
    match *input {
        [b'"', rest @ ..] => {
            *input = rest;
            quoted(input).map(Some)
        }
        [b'{', rest @ ..] => {
            let (digits, rest) = split_at_octet(rest, b'}')?;
            let digits = digits.strip_suffix(b"+").unwrap_or(digits);
            *input = rest;
            sized(input, digits).map(Some)
        }
        all => {
            let ends = |octet: &u8| b" ()\"\r\n\t".contains(octet);
            let end = all.iter().position(ends).unwrap_or(all.len());
            let (atom, rest) = all.split_at(end);
            *input = rest;
            match atom {
                b"" => Err(DlistError::Malformed),
                b"NIL" => Ok(None),
                atom => Ok(Some(atom.to_vec())),
            }
        }
    }
}

fn quoted(input: &mut &[u8]) -> Result<Vec<u8>, DlistError> {
    let mut text = Vec::new();
    loop {
        match *input {
            [b'"', rest @ ..] => {
                *input = rest;
                return Ok(text);
            }
            [b'\r' | b'\n', ..] => return Err(DlistError::Malformed),
            [b'\\', octet, rest @ ..] | [octet, rest @ ..] => {
                text.push(*octet);
                *input = rest;
            }
            [] => return Err(DlistError::Short),
        }
    }
}

fn file(input: &mut &[u8]) -> Result<File, DlistError> {
    let (head, rest) = split_at_octet(input, b'}')?;
    *input = rest;
    let head = std::str::from_utf8(head).map_err(|_| DlistError::Malformed)?;
    let mut words = head.split(' ');
    match (words.next(), words.next(), words.next(), words.next()) {
        (Some(partition), Some(guid), Some(size), None) => {
            let (partition, guid) = (partition.to_owned(), guid.to_owned());
            Ok(File { partition, guid, octets: sized(input, size.as_bytes())? })
        }
        _ => Err(DlistError::Malformed),
    }
}

/// The octets behind `{digits}`: the end of its line, and as many as it says.
fn sized(input: &mut &[u8], digits: &[u8]) -> Result<Vec<u8>, DlistError> {
    let size = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse::<usize>().ok());
    let size = size.ok_or(DlistError::Malformed)?;
    let rest = input.strip_prefix(b"\r\n").or_else(|| input.strip_prefix(b"\n"));
    let rest = rest.ok_or(DlistError::Malformed)?;
    let (octets, rest) = rest.split_at_checked(size).ok_or(DlistError::Short)?;
    *input = rest;
    Ok(octets.to_vec())
}

fn split_at_octet(input: &[u8], octet: u8) -> Result<(&[u8], &[u8]), DlistError> {
    let at = input.iter().position(|&o| o == octet).ok_or(DlistError::Short)?;
    let (head, rest) = input.split_at(at);
    Ok((head, rest.get(1..).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wire(value: &Value) -> Vec<u8> {
        let mut wire = Vec::new();
        value.encode(&mut wire);
        wire
    }

    #[test]
    fn what_the_server_sends_is_read() {
        let line = b"%(UID 1 FLAGS (\\Seen $Label1) ACL \"alice\tlrs\t\" BODY {5}\r\nab)\r\n LIT {2+}\r\nxy N NIL)";
        let value = Value::parse(&mut &line[..]).unwrap();
        assert_eq!(value.number_of("UID"), Some(1));
        assert_eq!(value.get("FLAGS").unwrap().as_list().unwrap().len(), 2);
        assert_eq!(value.text_of("ACL"), Some(&b"alice\tlrs\t"[..]));
        assert_eq!(value.text_of("BODY"), Some(&b"ab)\r\n"[..]));
        assert_eq!(value.text_of("LIT"), Some(&b"xy"[..]));
        assert_eq!(value.get("N"), Some(&Value::Nil));
        let file = Value::parse(&mut &b"%{default abc 3}\r\n\0)\""[..]).unwrap();
        assert!(matches!(file, Value::File(file) if file.octets == b"\0)\""));
    }

    #[test]
    fn nonsense_is_refused() {
        let deep = [b'('; 99];
        let cases = [
            &b""[..],
            b"(",
            b")",
            b"\"a",
            b"\"a\nb\"",
            b"{3}\r\nab",
            b"{99999999999999999999}\r\n",
        ];
        for bad in
            cases.into_iter().chain([&deep[..], b"%(A)", b"%(A ", b"%{a b}\r\n", b"{-1}\r\n"])
        {
            assert!(Value::parse(&mut &*bad).is_err(), "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn text_takes_the_form_that_is_safe() {
        let cases: [(&[u8], &[u8]); 7] = [
            (b"user.alice", b"user.alice"),
            (b"\\Seen", b"\\Seen"),
            (b"", b"\"\""),
            (b"nil", b"\"nil\""),
            (b"a b", b"\"a b\""),
            (b"a\tb", b"{3+}\r\na\tb"),
            (b"a\"b", b"{3+}\r\na\"b"),
        ];
        for (text, want) in cases {
            assert_eq!(wire(&Value::text(text)), want, "{}", text.escape_ascii());
        }
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let octets = || proptest::collection::vec(any::<u8>(), 0..40);
        let leaf = prop_oneof![
            Just(Value::Nil),
            octets().prop_map(Value::Text),
            "[A-Za-z0-9.()\" {}%\\\\]{0,12}".prop_map(Value::text),
            octets().prop_map(|octets| Value::File(File {
                partition: "default".into(),
                guid: "00".into(),
                octets
            })),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            let key = "[A-Z_]{1,10}";
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::List),
                proptest::collection::vec((key, inner), 0..6).prop_map(Value::Map),
            ]
        })
    }

    proptest! {
        #[test]
        fn every_value_comes_back(value in any_value()) {
            let wire = wire(&value);
            let mut rest = &wire[..];
            prop_assert_eq!(Value::parse(&mut rest), Ok(value));
            prop_assert!(rest.is_empty());
        }
    }
}
