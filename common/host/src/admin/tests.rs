//! A daemon and its clients, well-behaved and not.

use std::{io::Write as _, os::unix::fs::PermissionsExt as _, sync::Arc};

use tokio_util::sync::CancellationToken;

use super::*;
use crate::tasks::Tasks;

fn done() -> Handler {
    Arc::new(|request| {
        Box::pin(async move {
            match request {
                Request::LogAppend { targets } => Response::Appended { seq: targets.len() as u64 },
                Request::Status => {
                    Response::Failed { code: FailureCode::Refused, message: "not now".into() }
                }
                _ => Response::Done,
            }
        })
    })
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
