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
    sync::Semaphore,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{FailureCode, LINE_MAX, Request, Response};
use crate::tasks::Tasks;

/// Clients at once.
const CLIENTS_MAX: usize = 16;
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
    let (room, inner) = (Arc::new(Semaphore::new(CLIENTS_MAX)), tasks.clone());
    tasks.spawn("admin", async move {
        let _gone = gone;
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let Ok(place) = Arc::clone(&room).try_acquire_owned() else { continue };
            let (answers, stop) = (Arc::clone(&answers), stop.clone());
            inner.spawn("admin client", async move {
                let _place = place;
                tokio::select! {
                    () = stop.cancelled() => {}
                    // A client that goes away or talks nonsense ends its own connection only.
                    _ = client(stream, &*answers) => {}
                }
            });
        }
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
