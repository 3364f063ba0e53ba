//! A plan of repairs in a file: written by a check, read and edited by people, applied.

use std::path::Path;

use anyhow::Context as _;
use mailtwin_disk::replace::{PRIVATE, replace};
use mailtwin_host::admin::{CheckDifference, CheckReport};
use serde::{Deserialize, Serialize};

/// Version of the file's shape.
const VERSION: u32 = 1;

/// What stands in the file.
#[derive(Debug, Serialize, Deserialize)]
struct Plan {
    schema_version: u32,
    /// For whoever reads it.
    #[serde(default)]
    about: Vec<String>,
    repairs: Vec<CheckDifference>,
}

pub(super) fn write(file: &Path, report: &CheckReport) -> anyhow::Result<()> {
    let about = [
        "Each repair is carried out as its field `repair` says; take one out to leave it alone.",
        "replay: the replica takes over what the master has. replace: the message gets the octets and \
         date that were recorded when it was first seen. rewrite: the list of UIDs is written anew. \
         raise: the master's UIDNEXT becomes the replica's. bury: the replica's message goes to its graveyard. none: nothing is done.",
        "Where it says none, a human has to decide: for kinds extra and clash, bury may be put there.",
    ];
    let about = about.map(str::to_owned).to_vec();
    let plan = Plan { schema_version: VERSION, about, repairs: report.differences.clone() };
    let mut text = serde_json::to_string_pretty(&plan)?;
    text.push('\n');
    replace(file, text.as_bytes(), PRIVATE)
        .with_context(|| format!("write the plan {}", file.display()))
}

pub(super) fn read(file: &Path) -> anyhow::Result<Vec<CheckDifference>> {
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("read the plan {}", file.display()))?;
    let plan: Plan = serde_json::from_str(&text)
        .with_context(|| format!("{} is no plan of `replctl check --plan`", file.display()))?;
    anyhow::ensure!(plan.schema_version == VERSION, "{} is of another version", file.display());
    Ok(plan.repairs)
}
