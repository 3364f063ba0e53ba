//! Tells the admin, once for each, of what happened to the master's role without a plan: a command of
//! theirs is run for every new line of the node's history that is an incident.

use std::{
    io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use mailtwin_disk::{
    DiskError,
    replace::{PRIVATE, replace},
};
use mailtwin_logic::chain::Chain;
use tokio_util::sync::CancellationToken;

use crate::{admin::HistoryEntry, codes::HistoryKind, history, hook, tasks::Tasks};

/// How often the history is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a command that failed is left alone.
const AGAIN_AFTER: Duration = Duration::from_secs(10);
/// How long a command that is running when its daemon ends may go on.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// How long a command may take.
const WITHIN: Duration = Duration::from_mins(1);

/// Whoever tells.
#[derive(Clone, Debug)]
pub struct Teller {
    node: String,
    state_dir: PathBuf,
    command: String,
}

impl Teller {
    /// Of the node `node`, by `command`.
    pub fn new(node: &str, state_dir: &Path, command: &str) -> Self {
        let (node, command) = (node.to_owned(), command.to_owned());
        Self { node, state_dir: state_dir.to_owned(), command }
    }

    /// Tells until `tasks` end. What was told is remembered, and told again only if the machine
    /// dies in between, or the command is still running a while after the end.
    pub fn spawn(self, tasks: &Tasks) {
        let stop = tasks.stop().clone();
        tasks.spawn("incidents", async move {
            let telling = std::pin::pin!(self.run(&stop));
            let too_late = async {
                stop.cancelled().await;
                tokio::time::sleep(LAST_WORDS).await;
            };
            tokio::select! {
                () = too_late => {}
                () = telling => {}
            }
        });
    }

    async fn run(&self, stop: &CancellationToken) {
        let mut seen = None;
        while !stop.is_cancelled() {
            let octets = history::octets(&self.state_dir);
            let mut pause = LOOK_EVERY;
            if seen != Some(octets) {
                match self.tell_news(stop).await {
                    Ok(()) => seen = Some(octets),
                    Err(why) => {
                        tracing::error!(
                            code = "incident-untold",
                            why,
                            "an incident cannot be told of; trying again"
                        );
                        pause = AGAIN_AFTER;
                    }
                }
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn tell_news(&self, stop: &CancellationToken) -> Result<(), String> {
        let failed = |error: DiskError| Chain(&error).to_string();
        let all = history::all(&self.state_dir).map_err(failed)?;
        // What was there before there was a command to tell it is no news.
        let told = self.told().map_err(failed)?.unwrap_or(all.len());
        self.remember(told).map_err(failed)?;
        for (place, entry) in all.iter().enumerate().skip(told) {
            if stop.is_cancelled() {
                break;
            }
            if let Some(text) = sentence(entry) {
                self.tell(entry, text).await?;
            }
            self.remember(place + 1).map_err(failed)?;
        }
        Ok(())
    }

    async fn tell(&self, entry: &HistoryEntry, text: String) -> Result<(), String> {
        let (kind, epoch) = (entry.kind.clone(), entry.epoch);
        tracing::info!(kind, epoch, text, "incident");
        let told = [
            ("MAILTWIN_NODE", self.node.clone()),
            ("MAILTWIN_INCIDENT", kind),
            ("MAILTWIN_EPOCH", epoch.to_string()),
            ("MAILTWIN_TEXT", text),
        ];
        let done = hook::run(&self.command, Stdio::null(), &told, WITHIN).await;
        done.map_err(|why| format!("`{}` (incident.command): {why}", self.command))
    }

    fn told_file(&self) -> PathBuf {
        self.state_dir.join("incidents.told")
    }

    fn told(&self) -> Result<Option<usize>, DiskError> {
        let path = self.told_file();
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(text.trim().parse().ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(None),
            Err(error) => Err(DiskError::during("read", &path)(error)),
        }
    }

    fn remember(&self, told: usize) -> Result<(), DiskError> {
        if self.told()? == Some(told) {
            return Ok(());
        }
        replace(&self.told_file(), format!("{told}\n").as_bytes(), PRIVATE)
    }
}

/// What an admin is told, if nobody planned it.
fn sentence(entry: &HistoryEntry) -> Option<String> {
    let HistoryEntry { epoch, detail, .. } = entry;
    let name = |node: &Option<String>| node.clone().unwrap_or_else(|| "another node".into());
    let (from, to) = (name(&entry.from), name(&entry.to));
    match HistoryKind::of_code(&entry.kind)? {
        HistoryKind::Force => Some(format!(
            "{to} was made the master of epoch {epoch} without {from}: see `replctl failover status`"
        )),
        HistoryKind::SteppedDown => {
            Some(format!("{from} is no longer the master: {to} is, in epoch {epoch}"))
        }
        HistoryKind::Merged => Some(format!(
            "{from} has come back; copied back from it: {detail}; `replctl ledger` lists it"
        )),
        HistoryKind::Switch | HistoryKind::Drill | HistoryKind::Promoted => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(kind: &str, detail: &str) -> HistoryEntry {
        HistoryEntry {
            at: 5,
            kind: kind.into(),
            outcome: "done".into(),
            epoch: 2,
            from: Some("mx1".into()),
            to: Some("mx2".into()),
            gate_closed_ms: None,
            detail: detail.into(),
        }
    }

    #[tokio::test]
    async fn each_incident_is_told_once_and_what_was_planned_never() {
        let (dir, go_on) = (tempfile::tempdir().unwrap(), CancellationToken::new());
        let log = dir.path().join("log");
        let command = format!(
            r#"echo "$MAILTWIN_NODE $MAILTWIN_INCIDENT $MAILTWIN_EPOCH $MAILTWIN_TEXT" >> {}"#,
            log.display()
        );
        let teller = Teller::new("mx2", dir.path(), &command);
        history::append(dir.path(), &entry("force", "long ago")).unwrap();
        teller.tell_news(&go_on).await.unwrap();
        assert!(!log.exists(), "nothing old is told");
        for kind in ["switch", "force", "merged"] {
            history::append(dir.path(), &entry(kind, "3 tail")).unwrap();
        }
        // It fails once, and nothing is skipped or told twice then.
        let broken = Teller { command: "echo no mail here >&2; false".into(), ..teller.clone() };
        let why = broken.tell_news(&go_on).await.unwrap_err();
        assert!(why.contains("no mail here") && why.contains("incident.command"), "{why}");
        teller.tell_news(&go_on).await.unwrap();
        teller.tell_news(&go_on).await.unwrap();
        let told = std::fs::read_to_string(&log).unwrap();
        let lines: Vec<&str> = told.lines().collect();
        assert_eq!(lines.len(), 2, "{told}");
        assert!(lines[0].starts_with("mx2 force 2 mx2 was made the master of epoch 2 without mx1"));
        assert!(
            lines[1].starts_with("mx2 merged 2 mx1 has come back; copied back from it: 3 tail")
        );
    }

    #[tokio::test]
    async fn what_is_being_told_when_the_daemon_ends_is_not_told_again() {
        let (dir, go_on) = (tempfile::tempdir().unwrap(), CancellationToken::new());
        let (log, end) = (dir.path().join("log"), dir.path().join("end"));
        let (told, until) = (log.display(), end.display());
        let command = format!("echo told >> {told}; until [ -e {until} ]; do sleep 0.01; done");
        let teller = Teller::new("mx2", dir.path(), &command);
        teller.tell_news(&go_on).await.unwrap();
        history::append(dir.path(), &entry("force", "")).unwrap();
        let tasks = Tasks::new(CancellationToken::new());
        teller.clone().spawn(&tasks);
        while !log.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tasks.stop().cancel();
        std::fs::File::create(&end).unwrap();
        tasks.shutdown(Duration::from_mins(1)).await.unwrap();
        teller.tell_news(&go_on).await.unwrap();
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "told\n");
    }
}
