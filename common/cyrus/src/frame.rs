//! Cuts what a server sends into whole answer lines, literals included, whatever pieces it comes in.
//!
//! ```text
//!            ┌─ `* NAME` with values: quotes and literals are followed to the line's end
//! octets ──▶─┤
//!            └─ anything else: text for humans, up to the line feed
//! ```

/// Octets of one answer line that are taken: about 400 000 messages in one `FULLMAILBOX`.
pub const ANSWER_OCTETS_MAX: usize = 128 << 20;

/// Longest name of an answer; what is longer is no answer with values.
const NAME_MAX: usize = 32;

/// Untagged lines whose rest is text for humans, or of no interest.
const PLAIN: [&[u8]; 14] = [
    b"OK",
    b"NO",
    b"BAD",
    b"BYE",
    b"PREAUTH",
    b"CAPABILITY",
    b"FLAGS",
    b"SASL",
    b"STARTTLS",
    b"COMPRESS",
    b"SIEVE-MAILBOX",
    b"REPLICATION-ARCHIVE",
    b"Fatal",
    b"ENABLED",
];

/// Octets that cannot be cut into lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A line over [`ANSWER_OCTETS_MAX`].
    #[error("an answer is longer than {ANSWER_OCTETS_MAX} octets")]
    TooLong,
    /// A literal's head makes no sense, or a quoted string has no end.
    #[error("an answer is not well-formed")]
    Malformed,
}

/// Collects octets, gives lines.
#[derive(Debug, Default)]
pub struct Framer {
    buffer: Vec<u8>,
    /// Octets of `buffer` that `state` has seen.
    scanned: usize,
    state: State,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Which kind of line it is, is not known yet.
    #[default]
    Start,
    /// Up to the line feed.
    Plain,
    /// Between two values.
    Gap,
    Atom,
    /// Behind a `%`.
    Percent,
    Quoted,
    Escaped,
    /// Within `{…}`: the number read last.
    Head(Option<usize>),
    /// Behind `{…}`: as many octets follow the line's end.
    Feed(usize),
}

impl Framer {
    /// Takes octets as they come.
    pub fn feed(&mut self, octets: &[u8]) {
        self.buffer.extend_from_slice(octets);
    }

    /// Whether nothing waits that came behind the last line.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// The next whole line with its line feed, if it is there.
    pub fn next_line(&mut self) -> Result<Option<Vec<u8>>, FrameError> {
        loop {
            if self.state == State::Start {
                match is_plain(&self.buffer) {
                    Some(true) => self.state = State::Plain,
                    Some(false) => (self.state, self.scanned) = (State::Gap, 2),
                    None => return Ok(None),
                }
            }
            let Some(&octet) = self.buffer.get(self.scanned) else { break };
            self.scanned += 1;
            if self.step(octet)? {
                let rest = self.buffer.split_off(self.scanned);
                let line = std::mem::replace(&mut self.buffer, rest);
                (self.scanned, self.state) = (0, State::Start);
                return Ok(Some(line));
            }
        }
        if self.buffer.len() > ANSWER_OCTETS_MAX {
            return Err(FrameError::TooLong);
        }
        Ok(None)
    }

    /// Goes on by one octet, or over a literal; true at the end of the line.
    fn step(&mut self, octet: u8) -> Result<bool, FrameError> {
        self.state = match (self.state, octet) {
            (State::Plain | State::Gap | State::Atom | State::Percent, b'\n') => return Ok(true),
            (State::Gap | State::Percent, b'{') => State::Head(None),
            (State::Gap | State::Atom, b'"') | (State::Escaped, _) => State::Quoted,
            (State::Gap, b'%') => State::Percent,
            (State::Gap | State::Atom | State::Percent, b' ' | b'(' | b')' | b'\r' | b'\t') => {
                State::Gap
            }
            (State::Gap | State::Percent, _) => State::Atom,
            (State::Quoted, b'"') => State::Gap,
            (State::Quoted, b'\\') => State::Escaped,
            (State::Head(number), b'0'..=b'9') => {
                let number = number.unwrap_or(0).saturating_mul(10);
                State::Head(Some(number.saturating_add(usize::from(octet - b'0'))))
            }
            (State::Head(Some(number)), b'}') => State::Feed(number),
            (State::Head(number), b'+') => State::Head(number),
            (State::Quoted, b'\r' | b'\n') | (State::Head(_), b'}' | b'\r' | b'\n') => {
                return Err(FrameError::Malformed);
            }
            (State::Head(_), _) => State::Head(None),
            (State::Feed(_), b'\r')
            | (State::Start | State::Plain | State::Atom | State::Quoted, _) => self.state,
            (State::Feed(octets), b'\n') => {
                self.scanned = self.scanned.saturating_add(octets);
                if self.scanned > ANSWER_OCTETS_MAX {
                    return Err(FrameError::TooLong);
                }
                State::Gap
            }
            (State::Feed(_), _) => return Err(FrameError::Malformed),
        };
        Ok(false)
    }
}

/// Whether a line that starts like this has no values; `None` if it is too early to tell.
fn is_plain(line: &[u8]) -> Option<bool> {
    let name = match line {
        [] | [b'*'] => return None,
        [b'*', b' ', name @ ..] => name,
        _ => return Some(true),
    };
    let Some(end) = name.iter().position(|octet| b" \r\n".contains(octet)) else {
        return (name.len() > NAME_MAX).then_some(true);
    };
    let name = name.get(..end).unwrap_or_default();
    Some(PLAIN.contains(&name) || name.iter().all(u8::is_ascii_digit))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(input: &[u8], piece: usize) -> Result<Vec<Vec<u8>>, FrameError> {
        let mut framer = Framer::default();
        let mut lines = Vec::new();
        for octets in input.chunks(piece) {
            framer.feed(octets);
            while let Some(line) = framer.next_line()? {
                lines.push(line);
            }
        }
        Ok(lines)
    }

    #[test]
    fn lines_come_whole_in_whatever_pieces() {
        let parts: [&[u8]; 8] = [
            b"* OK it's \"half a quote {3}\r\n",
            b"* MAILBOX %(ACL {4}\r\n\r\n\"( NAME \"a\\\")\")\r\n",
            b"* MESSAGE %{default 0a1 5}\r\n}\r\n* )\r\n",
            b"OK success\r\n",
            b"* LIST (\\HasNoChildren) \".\" {3+}\r\na\nb\r\n",
            b"* 12 EXISTS\r\n",
            b"T1 NO [X] \"\r\n",
            b"* MESSAGE NIL\r\n",
        ];
        let all = parts.concat();
        for piece in [1, 2, 3, 7, all.len()] {
            assert_eq!(lines(&all, piece).unwrap(), parts, "in pieces of {piece}");
        }
    }

    #[test]
    fn what_has_no_end_is_refused() {
        for bad in [&b"* X \"a\r\n"[..], b"* X {x}\r\n", b"* X {}\r\n", b"* X {3}z"] {
            assert_eq!(lines(bad, 1), Err(FrameError::Malformed), "{}", bad.escape_ascii());
        }
        assert_eq!(lines(b"* X {999999999999}\r\n", 1), Err(FrameError::TooLong));
    }
}
