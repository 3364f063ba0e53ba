//! Files of a mailbox: read whole, hashed, appended to, replaced.

use std::{
    io::{Read as _, Write as _},
    os::unix::fs::FileExt as _,
};

use mailtwin_logic::ids::Guid;
use sha1::{Digest as _, Sha1};

use super::{
    fsys::{Dir, Owner, during},
    uidlist::{self, Heading},
};
use crate::StoreError;

/// Octets of a list's first line, at most, where only that is read.
const HEADING_OCTETS_MAX: usize = 512;

/// Octets read at once.
const BUFFER: usize = 64 << 10;

/// GUID, number of octets, INTERNALDATE and inode of a message; `None` if it is not there, or not
/// a regular file.
pub(crate) fn message(dir: &Dir, name: &[u8]) -> Result<Option<(Guid, u64, i64, u64)>, StoreError> {
    let Some((mut file, stat)) = dir.read(name)? else { return Ok(None) };
    let expected = usize::try_from(stat.st_size).unwrap_or(BUFFER);
    // One octet more than there is, so that the end shows in the same call.
    let mut buffer = vec![0; (expected + 1).clamp(512, BUFFER)];
    let (mut hash, mut octets) = (Sha1::new(), 0_u64);
    loop {
        let read = file.read(&mut buffer).map_err(during("read", &dir.at(name)))?;
        hash.update(buffer.get(..read).unwrap_or_default());
        octets += u64::try_from(read).unwrap_or(0);
        let whole = octets >= u64::try_from(stat.st_size).unwrap_or(0);
        if read == 0 || (whole && read < buffer.len()) {
            break;
        }
    }
    Ok(Some((Guid(hash.finalize().into()), octets, stat.st_mtime, stat.st_ino)))
}

/// A file's octets from `from` on; `None` if it is not there.
pub(crate) fn tail(
    dir: &Dir,
    name: &[u8],
    from: u64,
    octets_max: u64,
) -> Result<Option<Vec<u8>>, StoreError> {
    if from == 0 {
        return dir.content(name, octets_max);
    }
    let Some((file, stat)) = dir.read(name)? else { return Ok(None) };
    let size = u64::try_from(stat.st_size).unwrap_or(0).min(octets_max);
    let mut content = vec![0; usize::try_from(size.saturating_sub(from)).unwrap_or(0)];
    file.read_exact_at(&mut content, from).map_err(during("read", &dir.at(name)))?;
    Ok(Some(content))
}

/// The first line of a mailbox's list; `None` if it has none that can be read.
pub(crate) fn heading(dir: &Dir) -> Result<Option<Heading>, StoreError> {
    let Some((mut file, _)) = dir.read(uidlist::NAME)? else { return Ok(None) };
    let mut start = vec![0; HEADING_OCTETS_MAX];
    let read = file.read(&mut start).map_err(during("read", &dir.at(uidlist::NAME)))?;
    let heading = Heading::parse(start.get(..read).unwrap_or_default());
    Ok(heading.ok().map(|(heading, _)| heading))
}

/// Writes a file that nobody can see yet, and that becomes durable with everything around it.
pub(crate) fn put(dir: &Dir, name: &[u8], content: &[u8], owner: Owner) -> Result<(), StoreError> {
    dir.remove(name)?;
    let mut file = dir.create(name, owner)?;
    file.write_all(content).map_err(during("write", &dir.at(name)))
}

/// Appends to a file after its first `whole` octets; half a line that stands behind them goes.
/// Durable on return.
pub(crate) fn append(dir: &Dir, name: &[u8], whole: u64, octets: &[u8]) -> Result<(), StoreError> {
    let mut file = dir.append(name)?;
    cut(dir, name, &file, whole)?;
    file.write_all(octets).map_err(during("write", &dir.at(name)))?;
    file.sync_data().map_err(during("sync", &dir.at(name)))
}

/// Cuts what stands behind `whole` octets, if anything does.
pub(crate) fn cut(
    dir: &Dir,
    name: &[u8],
    file: &std::fs::File,
    whole: u64,
) -> Result<(), StoreError> {
    let length = file.metadata().map_err(during("stat", &dir.at(name)))?.len();
    if length > whole {
        file.set_len(whole).map_err(during("write", &dir.at(name)))?;
    }
    Ok(())
}

/// Makes `content` the file's, by way of a file beside it; durable but for the name. With `date`,
/// the file is of that second.
pub(crate) fn replace(
    dir: &Dir,
    name: &[u8],
    content: &[u8],
    owner: Owner,
    date: Option<i64>,
) -> Result<(), StoreError> {
    // Dovecot's own name for it: whoever finds one left over knows what it was.
    let temporary = [name, b".tmp"].concat();
    dir.remove(&temporary)?;
    let mut file = dir.create(&temporary, owner)?;
    let path = dir.at(&temporary);
    file.write_all(content).map_err(during("write", &path))?;
    if let Some(secs) = date {
        rustix::fs::futimens(&file, &super::fsys::date(secs)).map_err(during("date", &path))?;
    }
    file.sync_all().map_err(during("sync", &path))?;
    dir.rename(&temporary, dir, name)
}
