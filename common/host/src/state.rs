//! The index of a node's store, opened and, if it was damaged, announced.

use std::path::Path;

use mailtwin_disk::index::{Index, IndexError, Opened};

/// Opens the index in `state_dir`. One that is damaged is set aside and rebuilt by scanning: that
/// costs time, never mail, and nothing is deleted on a replica before both sides were compared.
pub fn open_index(state_dir: &Path) -> Result<Index, IndexError> {
    let (index, opened) = Index::open(&state_dir.join("index"))?;
    match opened {
        Opened::Fresh | Opened::Kept => {}
        Opened::Replaced { why, aside } => {
            let aside = aside.display();
            tracing::warn!(why, %aside, "the index was damaged: rebuilding it from the mail; the old one is kept");
        }
    }
    Ok(index)
}
