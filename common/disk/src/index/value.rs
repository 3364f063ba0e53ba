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
        let (first, further) = split(value);
        for piece in further {
            count += 1;
            batch.insert(further_key(key, count), piece);
        }
        batch.insert(first_key(key), first);
    } else {
        batch.remove(first_key(key));
    }
    for number in count + 1..=held {
        batch.remove(further_key(key, number));
    }
}

/// The record of a value's first piece, and the other pieces.
fn split(value: &[u8]) -> (Vec<u8>, impl Iterator<Item = &[u8]>) {
    let mut pieces = value.chunks(PIECE_OCTETS);
    let start = pieces.next().unwrap_or_default();
    let count = u8::try_from(pieces.len()).expect("values are at most VALUE_MAX long");
    let crc = crc32c::crc32c(value).to_le_bytes();
    ([&[count], &crc[..], start].concat(), pieces)
}

/// Puts a value together; `None` if the pieces are not of one value.
pub(super) fn join(db: &sled::Db, key: &[u8], first: &[u8]) -> sled::Result<Option<Vec<u8>>> {
    assemble(first, |number| db.get(further_key(key, number)))
}

fn assemble<P: AsRef<[u8]>, E>(
    first: &[u8],
    mut piece: impl FnMut(u8) -> Result<Option<P>, E>,
) -> Result<Option<Vec<u8>>, E> {
    let Some((&[count, crc @ ..], start)) = first.split_first_chunk::<5>() else {
        return Ok(None);
    };
    let mut value = start.to_vec();
    for number in 1..=count {
        match piece(number)? {
            Some(piece) => value.extend_from_slice(piece.as_ref()),
            None => return Ok(None),
        }
    }
    Ok((crc32c::crc32c(&value) == u32::from_le_bytes(crc)).then_some(value))
}

/// Fuzz target: any pieces, and those of a value, whole and damaged.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(input: &[u8]) {
    let piece =
        |number: u8| -> Result<Option<&[u8]>, ()> { Ok(input.chunks(7).nth(usize::from(number))) };
    let Ok(found) = assemble(input, piece) else { return };
    assert!(found.is_none_or(|value| value.len() <= input.len() + 7 * usize::from(u8::MAX)));
    // Long enough for several pieces.
    let value = input.repeat(1 + usize::from(input.first().copied().unwrap_or(0)) % 64);
    let (first, further) = split(&value);
    let further: Vec<Vec<u8>> = further.map(<[u8]>::to_vec).collect();
    let piece = |number: u8| -> Result<_, ()> { Ok(further.get(usize::from(number) - 1)) };
    assert_eq!(assemble(&first, piece), Ok(Some(value.clone())));
    let mut damaged = first;
    let at = input.iter().map(|&octet| usize::from(octet)).sum::<usize>() % damaged.len();
    damaged[at] ^= 1;
    assert_ne!(assemble(&damaged, piece), Ok(Some(value)));
}
