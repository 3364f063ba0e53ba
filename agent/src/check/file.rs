//! Signed reports of checks, in files that say when: `reports/check-SECONDS.json`.

use std::{
    io,
    path::{Path, PathBuf},
};

use mailtwin_disk::{
    DiskError, dir,
    replace::{PRIVATE, replace},
};
use mailtwin_host::{admin::CheckReport, seal::seal};

use super::Bench;

/// Reports kept; the oldest go first.
const REPORTS_MAX: usize = 400;

/// Leaves a signed report; returns where.
pub(super) fn leave(bench: &Bench, report: &CheckReport) -> Result<PathBuf, DiskError> {
    let dir = &bench.reports;
    dir::create(dir, 0o700)?;
    let path = dir.join(format!("check-{:013}.json", report.began));
    let text = seal(report, &bench.key.now());
    let text = text.map_err(|error| DiskError::during("encode", &path)(error.into()))?;
    replace(&path, &text, PRIVATE)?;
    forget_oldest(dir, REPORTS_MAX)?;
    Ok(path)
}

/// Keeps the `most` last of a directory's files, whose names are in the order in which they were made.
pub(super) fn forget_oldest(dir: &Path, most: usize) -> Result<(), DiskError> {
    let read = std::fs::read_dir(dir).map_err(DiskError::during("list", dir))?;
    let mut all: Vec<PathBuf> = read.flatten().map(|entry| entry.path()).collect();
    all.sort();
    let old = all.len().saturating_sub(most);
    for path in all.into_iter().take(old) {
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(DiskError::during("remove", &path)(error));
            }
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}
