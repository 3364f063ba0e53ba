//! The frame header: 4 octets payload length and 4 octets stream, little endian, 1 octet kind.

use crate::limits::FRAME_OCTETS_MAX;

/// Octets of a header.
pub const HEADER_OCTETS: usize = 9;

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One encoded message.
    Message,
    /// Octets of mail.
    Octets,
}

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Octets that follow; at most [`FRAME_OCTETS_MAX`].
    pub octets: usize,
    /// Which stream.
    pub stream: u32,
    /// What follows.
    pub kind: Kind,
}

/// Why nine octets are no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// More octets announced than a frame may have.
    #[error("a frame of {0} octets is over the limit of {FRAME_OCTETS_MAX}")]
    TooLong(u32),
    /// No kind we know.
    #[error("{0} is no kind of frame")]
    Kind(u8),
}

impl Header {
    /// As it goes over the wire; `None` if the frame would be too long.
    pub fn encode(self) -> Option<[u8; HEADER_OCTETS]> {
        if self.octets > FRAME_OCTETS_MAX {
            return None;
        }
        let length = u32::try_from(self.octets).ok()?.to_le_bytes();
        let kind = match self.kind {
            Kind::Message => 0,
            Kind::Octets => 1,
        };
        let fields = length.into_iter().chain(self.stream.to_le_bytes()).chain([kind]);
        let mut header = [0; HEADER_OCTETS];
        header.iter_mut().zip(fields).for_each(|(octet, field)| *octet = field);
        Some(header)
    }

    /// Reads a header.
    pub fn decode(header: [u8; HEADER_OCTETS]) -> Result<Self, HeaderError> {
        let [length @ .., _, _, _, _, _] = header;
        let [_, _, _, _, stream @ .., kind] = header;
        let announced = u32::from_le_bytes(length);
        let octets = usize::try_from(announced).unwrap_or(usize::MAX);
        if octets > FRAME_OCTETS_MAX {
            return Err(HeaderError::TooLong(announced));
        }
        let kind = match kind {
            0 => Kind::Message,
            1 => Kind::Octets,
            other => return Err(HeaderError::Kind(other)),
        };
        Ok(Self { octets, stream: u32::from_le_bytes(stream), kind })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_bounds() {
        let header = Header { octets: 77, stream: 5, kind: Kind::Octets };
        assert_eq!(header.encode().unwrap(), [77, 0, 0, 0, 5, 0, 0, 0, 1]);
        assert_eq!(Header::decode(header.encode().unwrap()), Ok(header));
        let long = Header { octets: FRAME_OCTETS_MAX + 1, ..header };
        assert_eq!(long.encode(), None);
        let octets = [255, 255, 255, 255, 0, 0, 0, 0, 0];
        assert_eq!(Header::decode(octets), Err(HeaderError::TooLong(u32::MAX)));
        assert_eq!(Header::decode([0, 0, 0, 0, 0, 0, 0, 0, 9]), Err(HeaderError::Kind(9)));
    }
}
