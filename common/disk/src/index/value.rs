//! Values in pieces, each in a record of its own.
//!
//! sled keeps some twenty records in one page, and a page of over 128 KiB in a file under `blobs/`
//! that it never syncs. Pieces keep every page well below that.
//!
//! The first piece stands under `1 key`, behind the number of further pieces (u8) and a CRC-32C of
//! the whole value (u32, little-endian); the others under `2 key number`. The checksum shows a
//! reader that a value is being replaced while it is put together.

use super::VALUE_MAX;

/// Octets of a piece.
const PIECE_OCTETS: usize = 4000;

const _: () = assert!(VALUE_MAX / PIECE_OCTETS < u8::MAX as usize);

/// Where the first piece of `key` stands; also the common prefix of all keys that start with it.
pub(super) fn first_key(key: &[u8]) -> Vec<u8> {
    [&[1], key].concat()
}

fn further_key(key: &[u8], number: u8) -> Vec<u8> {
    [&[2], key, &[number]].concat()
}

/// Number of further pieces behind a first one.
pub(super) fn further(first: &[u8]) -> u8 {
    first.first().copied().unwrap_or_default()
}

/// Adds to `batch` what makes `value` (`None`: nothing) what `key` stands for, instead of a value
/// that has `held` further pieces.
pub(super) fn change(batch: &mut sled::Batch, key: &[u8], value: Option<&[u8]>, held: u8) {
    let mut count = 0;
    if let Some(value) = value {
        let mut pieces = value.chunks(PIECE_OCTETS);
        let start = pieces.next().unwrap_or_default();
        for piece in pieces {
            count += 1;
            batch.insert(further_key(key, count), piece);
        }
        let crc = crc32c::crc32c(value).to_le_bytes();
        batch.insert(first_key(key), [&[count], &crc[..], start].concat());
    } else {
        batch.remove(first_key(key));
    }
    for number in count + 1..=held {
        batch.remove(further_key(key, number));
    }
}

/// Puts a value together; `None` if the pieces are not of one value.
pub(super) fn join(db: &sled::Db, key: &[u8], first: &[u8]) -> sled::Result<Option<Vec<u8>>> {
    let Some((&[count, crc @ ..], start)) = first.split_first_chunk::<5>() else {
        return Ok(None);
    };
    let mut value = start.to_vec();
    for number in 1..=count {
        match db.get(further_key(key, number))? {
            Some(piece) => value.extend_from_slice(&piece),
            None => return Ok(None),
        }
    }
    Ok((crc32c::crc32c(&value) == u32::from_le_bytes(crc)).then_some(value))
}
