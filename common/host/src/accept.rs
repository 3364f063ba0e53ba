//! One loop for everything that listens: so many clients at once, each a task of its own.

use std::{
    io,
    net::{self, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::Semaphore,
};
use tokio_util::sync::CancellationToken;

use crate::tasks::Tasks;

/// How long to wait after the system could not accept: it may be a moment's lack of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// How often a port that is in use is tried again.
const TRIES: u32 = 40;
const AGAIN_AFTER: Duration = Duration::from_millis(50);

/// Listens at `address`. A daemon that starts anew in another role may find its own port in use for a
/// moment: a command that it has just started holds it, too, until that runs its program.
///
/// # Errors
/// What the system says; that the address is in use only after two seconds.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let mut tries = 1;
    loop {
        match TcpListener::bind(address).await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries < TRIES => {
                tries += 1;
                tokio::time::sleep(AGAIN_AFTER).await;
            }
            result => return result,
        }
    }
}

/// Listens on what was opened for us. That stays open when this ends, so that clients wait until it is
/// asked for again.
///
/// # Errors
/// What the system says.
pub fn share(opened: &net::TcpListener) -> io::Result<TcpListener> {
    let shared = opened.try_clone()?;
    shared.set_nonblocking(true)?;
    TcpListener::from_std(shared)
}

/// What clients connect to.
pub trait Listener: Send + 'static {
    /// A client's connection.
    type Client: Send + 'static;

    /// The next client. Cancelling it loses nobody.
    fn next(&self) -> impl Future<Output = io::Result<Self::Client>> + Send;
}

impl Listener for TcpListener {
    type Client = (TcpStream, SocketAddr);

    fn next(&self) -> impl Future<Output = io::Result<Self::Client>> + Send {
        self.accept()
    }
}

impl Listener for UnixListener {
    type Client = UnixStream;

    async fn next(&self) -> io::Result<UnixStream> {
        Ok(self.accept().await?.0)
    }
}

/// What a listener is called among the tasks, and how many it serves.
#[derive(Clone, Copy, Debug)]
pub struct Door {
    /// The task that accepts.
    pub name: &'static str,
    /// The tasks of its clients.
    pub clients: &'static str,
    /// So many at once; more are turned away.
    pub most: usize,
}

/// Serves every client with `serve` until `stop`, which ends those that are being served, too.
pub fn spawn<L, F>(
    door: Door,
    listener: L,
    tasks: &Tasks,
    stop: CancellationToken,
    serve: impl Fn(L::Client) -> F + Send + 'static,
) where
    L: Listener + Sync,
    F: Future<Output = ()> + Send + 'static,
{
    let (room, inner) = (Arc::new(Semaphore::new(door.most)), tasks.clone());
    tasks.spawn(door.name, async move {
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                accepted = listener.next() => accepted,
            };
            let client = match accepted {
                Ok(client) => client,
                Err(error) => {
                    tracing::warn!(code = "accept-failed", %error, door = door.name, "cannot accept a connection");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&room).try_acquire_owned() else {
                tracing::warn!(
                    code = "connections-too-many",
                    door = door.name,
                    "refused: {} connections are open already",
                    door.most
                );
                continue;
            };
            let (stop, served) = (stop.clone(), serve(client));
            inner.spawn(door.clients, async move {
                let _place = place;
                tokio::select! {
                    biased;
                    () = stop.cancelled() => {}
                    () = served => {}
                }
            });
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_that_is_free_in_a_moment_is_waited_for() {
        let first = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let address = first.local_addr().unwrap();
        let free = async {
            tokio::task::yield_now().await;
            drop(first);
        };
        let (second, ()) = tokio::join!(bind(address), free);
        assert_eq!(second.unwrap().local_addr().unwrap(), address);
    }

    #[tokio::test]
    async fn who_connects_while_nobody_shares_a_port_is_served_by_the_next() {
        let opened = net::TcpListener::bind("127.0.0.1:0").unwrap();
        drop(share(&opened).unwrap());
        let client = TcpStream::connect(opened.local_addr().unwrap()).await.unwrap();
        let (_served, from) = share(&opened).unwrap().next().await.unwrap();
        assert_eq!(from, client.local_addr().unwrap());
    }
}
