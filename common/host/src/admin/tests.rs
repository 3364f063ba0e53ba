//! A daemon and its clients, well-behaved and not.

use std::{io::Write as _, os::unix::fs::PermissionsExt as _, sync::Arc};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::UnixStream,
};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::tasks::Tasks;

struct Done;

impl Answer for Done {
    async fn answer(&self, request: Request) -> Response {
        if let Request::LogAppend { targets } = request {
            return Response::Appended { seq: targets.len() as u64 };
        }
        if request == Request::Status {
            let message = "not now".into();
            return Response::Failed { code: FailureCode::Refused, message };
        }
        Response::Done
    }
}

fn done() -> Arc<Done> {
    Arc::new(Done)
}

#[tokio::test]
async fn asks_and_answers_and_refusals() {
    let dir = tempfile::tempdir().unwrap();
    let socket = agent_socket(dir.path());
    let stop = CancellationToken::new();
    let tasks = Tasks::new(stop.clone());
    assert!(matches!(
        Client::new(&socket).call(&Request::Status).await,
        Err(AdminError::NoDaemon { .. })
    ));
    serve(&socket, done(), &tasks, stop.clone()).unwrap();
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o660);
    let client = Client::new(&socket);
    let append = Request::LogAppend { targets: vec!["ann".into()] };
    assert_eq!(client.call(&append).await.unwrap(), Response::Appended { seq: 1 });
    let refused = client.call(&Request::Status).await;
    assert!(matches!(refused, Err(AdminError::Refused { message }) if message == "not now"));
    let second = serve(&socket, done(), &tasks, stop.clone()).unwrap_err();
    assert!(second.to_string().contains("another daemon"), "{second}");
    tasks.shutdown(std::time::Duration::from_secs(20)).await.unwrap();
    assert!(!socket.exists());
}

#[tokio::test]
async fn garbage_and_leftovers_do_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let socket = replica_socket(dir.path());
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let stop = CancellationToken::new();
    let tasks = Tasks::new(stop.clone());
    serve(&socket, done(), &tasks, stop).unwrap();
    let path = socket.clone();
    let answer = tokio::task::spawn_blocking(move || {
        let mut stream = std::os::unix::net::UnixStream::connect(path).unwrap();
        stream.write_all(b"\xff\x00 garbage\n").unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stream), &mut line).unwrap();
        line
    });
    assert!(answer.await.unwrap().contains("no request"));
    let client = Client::new(&socket);
    assert_eq!(client.call(&Request::KeysShow).await.unwrap(), Response::Done);
    tasks.shutdown(std::time::Duration::from_secs(20)).await.unwrap();
}

/// Starts a daemon and returns a raw connection to it.
async fn connected() -> (tempfile::TempDir, Tasks, UnixStream) {
    let dir = tempfile::tempdir().unwrap();
    let socket = agent_socket(dir.path());
    let stop = CancellationToken::new();
    let tasks = Tasks::new(stop.clone());
    serve(&socket, done(), &tasks, stop).unwrap();
    let stream = UnixStream::connect(&socket).await.unwrap();
    (dir, tasks, stream)
}

#[tokio::test]
async fn many_requests_on_one_connection() {
    let (_dir, _tasks, stream) = connected().await;
    let mut stream = BufReader::new(stream);
    for _ in 0..3 {
        stream.write_all(b"\"log_stat\"\n").await.unwrap();
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        assert_eq!(line, "\"done\"\n");
    }
}

#[tokio::test]
async fn an_over_long_line_is_refused_and_ends_the_connection() {
    let (_dir, _tasks, stream) = connected().await;
    let (input, mut output) = stream.into_split();
    let send = async {
        // The daemon stops reading at its limit, so the end may meet a closed socket.
        let _ = output.write_all(&vec![b'['; LINE_MAX + 1000]).await;
    };
    let receive = async {
        let mut lines = BufReader::new(input).lines();
        let answer = lines.next_line().await.unwrap().unwrap();
        assert!(answer.contains("no request"), "{answer}");
        // A reset is as good an end as any: not everything was read.
        assert!(matches!(lines.next_line().await, Ok(None) | Err(_)));
    };
    tokio::join!(send, receive);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_says_nothing_is_let_go() {
    let (_dir, _tasks, mut stream) = connected().await;
    stream.write_all(b"\"log_st").await.unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    assert!(rest.is_empty());
}

#[tokio::test]
async fn a_daemon_that_hangs_up_is_told_from_one_of_another_version() {
    let dir = tempfile::tempdir().unwrap();
    let socket = agent_socket(dir.path());
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let client = Client::new(&socket);
    let daemon = async {
        drop(listener.accept().await.unwrap());
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"\"no such answer\"\n").await.unwrap();
        stream
    };
    let calls = async {
        let hung_up = client.call(&Request::LogStat).await.unwrap_err();
        assert!(matches!(hung_up, AdminError::Io { .. }), "{hung_up}");
        let other = client.call(&Request::LogStat).await.unwrap_err();
        assert!(matches!(other, AdminError::Answer { .. }), "{other}");
    };
    tokio::join!(daemon, calls);
}
