//! `node.json`: who this node is, its role, and the highest epoch it knows. Replaced whole.

mod file;

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use mailtwin_disk::{DiskError, replace};
use mailtwin_logic::ids::Epoch;
use serde::{Deserialize, Serialize};

/// Version of the file that this program writes, and the newest it reads.
const FORMAT_VERSION: u32 = 2;

pub use file::{ChangeError, NodeFile};

/// What `node.json` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The node's name when it was made; the configuration's must be the same.
    pub name: String,
    /// Its role in `epoch`.
    pub role: Role,
    /// The highest epoch it knows; never falls.
    pub epoch: Epoch,
    /// Who is the master in `epoch`, as far as this node was told.
    pub master: Option<String>,
    /// A hand-over by this node that is not finished.
    pub handover: Option<Handover>,
    /// The epoch whose master's mail and this node's were last made one. While the last forced epoch
    /// is newer, this node may have mail that nobody else has.
    pub merged: Epoch,
    /// The last epoch that began without the consent of the master before it.
    pub forced: Option<Epoch>,
}

/// A master that has given up its role for another node's sake. It is recorded before the other
/// one is told, so that there are never two.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Handover {
    /// The new master.
    pub to: String,
    /// Whether the new master has yet to confirm that it was told.
    pub untold: bool,
    /// Whether this node's mail has yet to be marked as what the new master holds, too.
    pub unmarked: bool,
    /// When the gate was closed, in milliseconds since 1970.
    pub closed_at: u64,
}

/// The role a node holds in an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Accepts writes.
    Master,
    /// Receives them.
    Replica,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Master => "master",
            Self::Replica => "replica",
        })
    }
}

/// Why there is no node.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// There is none yet.
    #[error("{path} is not there: run `replctl init --role master|replica` first", path = path.display())]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
    /// There is one already.
    #[error(
        "{path} is there already: this node was made before; `replctl status` shows it; to begin \
         anew, stop its daemons and move the state directory away",
        path = path.display()
    )]
    Exists {
        /// Where.
        path: PathBuf,
    },
    /// A newer program wrote it.
    #[error(
        "{path} has format version {found}, this program reads up to {FORMAT_VERSION}: install the \
         newer one",
        path = path.display()
    )]
    Version {
        /// Where.
        path: PathBuf,
        /// What it says.
        found: u32,
    },
    /// It makes no sense.
    #[error("read {path}", path = path.display())]
    Damaged {
        /// Where.
        path: PathBuf,
        /// Cause.
        source: serde_json::Error,
    },
    /// The configuration speaks of another node.
    #[error(
        "the configuration names this node {configured:?}, but {path} was made for {recorded:?}",
        path = path.display()
    )]
    Name {
        /// Where.
        path: PathBuf,
        /// `node.name`.
        configured: String,
        /// What the file says.
        recorded: String,
    },
    /// The operating system refused.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct File {
    format_version: u32,
    name: String,
    role: Role,
    epoch: Epoch,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    master: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    handover: Option<Handover>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    merged: Option<Epoch>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    forced: Option<Epoch>,
}

#[derive(Deserialize)]
struct Version {
    format_version: u32,
}

impl Node {
    /// A node as it begins, in the first epoch.
    pub fn new(name: &str, role: Role) -> Self {
        let master = (role == Role::Master).then(|| name.to_owned());
        let (epoch, merged) = (Epoch(1), Epoch(1));
        Self { name: name.to_owned(), role, epoch, master, handover: None, merged, forced: None }
    }

    /// Writes the file for the first time; refuses if there is one.
    pub fn create(&self, state_dir: &Path) -> Result<(), NodeError> {
        let path = path_in(state_dir);
        if path.symlink_metadata().is_ok() {
            return Err(NodeError::Exists { path });
        }
        self.save(state_dir)
    }

    /// Reads the file under `state_dir`.
    pub fn load(state_dir: &Path) -> Result<Self, NodeError> {
        let path = path_in(state_dir);
        let octets = std::fs::read(&path).map_err(|source| {
            if source.kind() == io::ErrorKind::NotFound {
                return NodeError::Missing { path: path.clone() };
            }
            DiskError::during("read", &path)(source).into()
        })?;
        Self::parse(&octets, &path)
    }

    /// Reads what stands in the file at `path`.
    pub(crate) fn parse(octets: &[u8], path: &Path) -> Result<Self, NodeError> {
        let damaged = |source| NodeError::Damaged { path: path.to_owned(), source };
        // The version first: a newer file may have keys that this program does not know.
        let Version { format_version } = serde_json::from_slice(octets).map_err(damaged)?;
        if format_version > FORMAT_VERSION {
            return Err(NodeError::Version { path: path.to_owned(), found: format_version });
        }
        let file: File = serde_json::from_slice(octets).map_err(damaged)?;
        let File { name, role, epoch, master, handover, merged, forced, .. } = file;
        let merged = merged.unwrap_or(epoch);
        Ok(Self { name, role, epoch, master, handover, merged, forced })
    }

    /// What the file says of this node.
    pub(crate) fn render(&self) -> serde_json::Result<Vec<u8>> {
        let Self { name, role, epoch, master, handover, merged, forced } = self.clone();
        let (format_version, merged) = (FORMAT_VERSION, Some(merged));
        let file = File { format_version, name, role, epoch, master, handover, merged, forced };
        let mut octets = serde_json::to_vec_pretty(&file)?;
        octets.push(b'\n');
        Ok(octets)
    }

    /// As [`Node::load`], and refuses a state directory that was made for another node.
    pub fn load_as(state_dir: &Path, configured: &str) -> Result<Self, NodeError> {
        let node = Self::load(state_dir)?;
        if node.name == configured {
            return Ok(node);
        }
        let (path, configured) = (path_in(state_dir), configured.to_owned());
        Err(NodeError::Name { path, configured, recorded: node.name })
    }

    /// Replaces the file under `state_dir`; durable on return.
    pub fn save(&self, state_dir: &Path) -> Result<(), NodeError> {
        let path = path_in(state_dir);
        let damaged = |source| NodeError::Damaged { path: path.clone(), source };
        let octets = self.render().map_err(damaged)?;
        Ok(replace::replace(&path, &octets, replace::PRIVATE)?)
    }
}

fn path_in(state_dir: &Path) -> PathBuf {
    state_dir.join("node.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> Node {
        Node { epoch: Epoch(7), merged: Epoch(7), ..Node::new("mx1", Role::Master) }
    }

    #[test]
    fn what_was_saved_is_loaded() {
        let state = tempfile::tempdir().unwrap();
        assert!(matches!(Node::load(state.path()), Err(NodeError::Missing { .. })));
        node().create(state.path()).unwrap();
        assert_eq!(Node::load(state.path()).unwrap(), node());
        assert!(matches!(node().create(state.path()), Err(NodeError::Exists { .. })));
        let handover =
            Some(Handover { to: "mx2".into(), untold: true, unmarked: true, closed_at: 5 });
        let next = Node { epoch: Epoch(8), handover, ..node() };
        next.save(state.path()).unwrap();
        assert_eq!(Node::load_as(state.path(), "mx1").unwrap(), next);
        let error = Node::load_as(state.path(), "mx2").unwrap_err().to_string();
        assert!(error.contains("\"mx2\"") && error.contains("\"mx1\""), "{error}");
    }

    #[test]
    fn damage_and_newer_formats_are_told_apart() {
        let state = tempfile::tempdir().unwrap();
        let write = |text: &str| {
            replace::replace(&path_in(state.path()), text.as_bytes(), replace::PRIVATE).unwrap();
        };
        write(r#"{"format_version": 3, "new": true}"#);
        assert!(matches!(Node::load(state.path()), Err(NodeError::Version { found: 3, .. })));
        for bad in ["", "{}", "null", r#"{"format_version":1,"name":"a","role":"king","epoch":1}"#]
        {
            write(bad);
            assert!(matches!(Node::load(state.path()), Err(NodeError::Damaged { .. })), "{bad}");
        }
    }

    #[test]
    fn the_first_format_still_reads() {
        let state = tempfile::tempdir().unwrap();
        let text = r#"{"format_version":1,"name":"mx1","role":"master","epoch":7}"#;
        replace::replace(&path_in(state.path()), text.as_bytes(), replace::PRIVATE).unwrap();
        assert_eq!(Node::load(state.path()).unwrap(), Node { master: None, ..node() });
    }
}
