//! What each repair was about to take from where it was, in `repairs/repair-NUMBER.jsonl`: one JSON
//! object a line, on disk before anything is touched.

use std::path::{Path, PathBuf};

use mailtwin_disk::{
    DiskError, dir,
    lines::{self, LineFile},
    replace::PRIVATE,
};
use mailtwin_logic::check::Taken;
use serde::{Deserialize, Serialize};

use super::file::forget_oldest;

/// Repairs remembered; the oldest go first.
const REPAIRS_MAX: usize = 400;

/// A line of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Line {
    /// In whose graveyard it is; absent for the master's own.
    pub(super) replica: Option<String>,
    /// What it is.
    pub(super) taken: Taken,
}

/// Writes down what repair `id` will take, durably.
pub(super) fn note(dir: &Path, id: u64, taken: &[Line]) -> Result<(), DiskError> {
    dir::create(dir, 0o700)?;
    let mut file = LineFile::open(&path(dir, id), PRIVATE)?;
    for line in taken {
        file.append(&serde_json::to_string(line).expect("strings and numbers always encode"))?;
    }
    forget_oldest(dir, REPAIRS_MAX)
}

/// What repair `id` took; `None` if it is not known.
pub(super) fn read(dir: &Path, id: u64) -> Result<Option<Vec<Line>>, DiskError> {
    let path = path(dir, id);
    if !path.exists() {
        return Ok(None);
    }
    let mut taken = Vec::new();
    lines::read(&path, |line| taken.extend(serde_json::from_str::<Line>(line)))?;
    Ok(Some(taken))
}

fn path(dir: &Path, id: u64) -> PathBuf {
    dir.join(format!("repair-{id:013}.jsonl"))
}

#[cfg(test)]
mod tests {
    use mailtwin_logic::{
        check::Octets,
        ids::{Account, Guid, Uid, UidValidity},
        mailbox::MailboxName,
    };

    use super::*;

    #[test]
    fn what_was_taken_is_known_by_the_repair() {
        let state = tempfile::tempdir().unwrap();
        let dir = state.path().join("repairs");
        let line = |uid| Line {
            replica: Some("mx2".into()),
            taken: Taken {
                account: Account::new("ann").unwrap(),
                mailbox: MailboxName::new(b"\xe4 b").unwrap(),
                uid_validity: UidValidity(7),
                uid: Uid(uid),
                what: Octets::Instead(Guid([7; 20])),
            },
        };
        note(&dir, 5, &[line(1)]).unwrap();
        note(&dir, 5, &[line(2)]).unwrap();
        note(&dir, 6, &[line(3)]).unwrap();
        assert_eq!(read(&dir, 5).unwrap(), Some(vec![line(1), line(2)]));
        assert_eq!(read(&dir, 4).unwrap(), None);
    }
}
