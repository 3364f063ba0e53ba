//! Commands of the admin's that a daemon runs.

use std::{process::Stdio, time::Duration};

use tokio::{io::AsyncReadExt as _, process::Command, time::timeout};

/// How long its complaint is waited for when it has ended.
const TOLD_WITHIN: Duration = Duration::from_secs(1);
/// Octets of what a command complains about that are kept.
const TOLD_MAX: u64 = 2_000;

/// Runs `command` with the shell and waits for its end. What it was told is in its environment.
/// Fails with what it complained about, if it does not end with 0, or not `within`.
pub(crate) async fn run(
    command: &str,
    input: Stdio,
    told: &[(&str, String)],
    within: Duration,
) -> Result<(), String> {
    let mut child = Command::new("/bin/sh")
        .args(["-c", command])
        .envs(told.iter().map(|(name, value)| (name, value)))
        .stdin(input)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| error.to_string())?;
    let stderr = child.stderr.take();
    let ended = timeout(within, async {
        let (status, mut said) = (child.wait().await, Vec::new());
        if let Some(stderr) = stderr {
            // What it left running may hold the pipe open; and what it said is not worth
            // failing for.
            let _ = timeout(TOLD_WITHIN, stderr.take(TOLD_MAX).read_to_end(&mut said)).await;
        }
        (status, said)
    });
    match ended.await {
        Err(_) => Err(format!("not done after {} s", within.as_secs())),
        Ok((Err(error), _)) => Err(error.to_string()),
        Ok((Ok(status), _)) if status.success() => Ok(()),
        Ok((Ok(status), said)) => {
            Err(format!("{status}: {}", String::from_utf8_lossy(&said).trim()))
        }
    }
}
