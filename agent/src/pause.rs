//! Which replicas the admin has paused: kept over restarts in `<state>/paused.json`.

use std::{
    collections::{BTreeSet, HashMap},
    path::{Path, PathBuf},
    sync::Mutex,
};

use mailtwin_disk::{
    DiskError,
    replace::{PRIVATE, replace},
};
use tokio::sync::watch;

/// All replicas' switches.
#[derive(Debug)]
pub(crate) struct Pauses {
    path: PathBuf,
    paused: Mutex<BTreeSet<String>>,
    switches: Mutex<HashMap<String, watch::Sender<bool>>>,
}

impl Pauses {
    /// Reads the file. One that is damaged is an error: replaying on a guess is not what the admin
    /// asked for.
    pub(crate) fn open(state_dir: &Path) -> Result<Self, DiskError> {
        let path = state_dir.join("paused.json");
        let paused = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| DiskError::during("read", &path)(error.into()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeSet::new(),
            Err(error) => return Err(DiskError::during("read", &path)(error)),
        };
        Ok(Self { path, paused: Mutex::new(paused), switches: Mutex::default() })
    }

    /// The switch of one replica.
    pub(crate) fn watch(&self, replica: &str) -> watch::Receiver<bool> {
        let paused = self.paused.lock().expect("no panic while it is held").contains(replica);
        let mut switches = self.switches.lock().expect("no panic while it is held");
        let switch =
            switches.entry(replica.to_owned()).or_insert_with(|| watch::Sender::new(paused));
        switch.subscribe()
    }

    /// Sets it, durably first.
    pub(crate) fn set(&self, replica: &str, pause: bool) -> Result<(), DiskError> {
        let mut paused = self.paused.lock().expect("no panic while it is held");
        let mut next = paused.clone();
        if pause {
            next.insert(replica.to_owned())
        } else {
            next.remove(replica)
        };
        let text = serde_json::to_vec(&next).expect("strings always encode");
        if *paused != next {
            replace(&self.path, &text, PRIVATE)?;
        }
        *paused = next;
        let switches = self.switches.lock().expect("no panic while it is held");
        if let Some(switch) = switches.get(replica) {
            switch.send_replace(pause);
        }
        Ok(())
    }
}
