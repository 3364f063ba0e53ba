//! The daemons' side of the admin socket.

use std::{
    fs, io,
    os::unix::{fs::PermissionsExt as _, net::UnixStream as StdStream},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{FailureCode, LINE_MAX, Request, Response};
use crate::{
    accept::{self, Door},
    tasks::Tasks,
};

/// Each a `replctl`.
const DOOR: Door = Door { name: "admin", clients: "admin client", most: 16 };
/// How long a client may take to ask its next question or to take an answer.
const CLIENT_WITHIN: Duration = Duration::from_secs(30);
/// Mode of the socket: its directory's group may use it.
const MODE: u32 = 0o660;

/// Whoever answers what `replctl` asks.
pub trait Answer: Send + Sync + 'static {
    /// Answers one request.
    fn answer(&self, request: Request) -> impl Future<Output = Response> + Send;
}

/// Serves `socket` until `stop`. A socket that a crash left behind is replaced; one that somebody
/// listens on is an error.
pub fn serve(
    socket: &Path,
    answers: Arc<impl Answer>,
    tasks: &Tasks,
    stop: CancellationToken,
) -> io::Result<()> {
    if is_served(socket) {
        let text = format!("another daemon listens on {} already", socket.display());
        return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
    }
    if let Some(dir) = socket.parent() {
        fs::create_dir_all(dir)?;
    }
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(socket)?;
    fs::set_permissions(socket, fs::Permissions::from_mode(MODE))?;
    let gone = Gone(socket.to_owned());
    accept::spawn(DOOR, listener, tasks, stop, move |stream| {
        // It is taken away with the listener, not with its last client.
        let _ = &gone;
        let answers = Arc::clone(&answers);
        // A client that goes away or talks nonsense ends its own connection only.
        async move { client(stream, &*answers).await.unwrap_or_default() }
    });
    Ok(())
}

/// Whether a daemon listens on `socket`.
pub fn is_served(socket: &Path) -> bool {
    StdStream::connect(socket).is_ok()
}

/// Takes the socket away with its daemon.
struct Gone(PathBuf);

impl Drop for Gone {
    fn drop(&mut self) {
        // Whoever comes next replaces a leftover.
        let _ = fs::remove_file(&self.0);
    }
}

async fn client(stream: UnixStream, answers: &impl Answer) -> io::Result<()> {
    let (input, mut output) = stream.into_split();
    let mut input = BufReader::new(input);
    loop {
        let mut line = Vec::new();
        let mut bounded = (&mut input).take(LINE_MAX as u64);
        timeout(CLIENT_WITHIN, bounded.read_until(b'\n', &mut line)).await??;
        if line.is_empty() {
            return Ok(());
        }
        let complete = line.ends_with(b"\n");
        let response = match serde_json::from_slice::<Request>(&line) {
            Ok(request) if complete => answers.answer(request).await,
            Ok(_) | Err(_) => Response::Failed {
                code: FailureCode::Usage,
                message: "that is no request: are replctl and the daemon of one version?".into(),
            },
        };
        let mut answer = serde_json::to_vec(&response)?;
        answer.push(b'\n');
        timeout(CLIENT_WITHIN, output.write_all(&answer)).await??;
        if !complete {
            return Ok(()); // the rest of an over-long line is no request either
        }
    }
}
