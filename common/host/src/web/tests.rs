//! Every path with its answers; clients that do no good.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::node::Role;

/// A replica that lags by so many seconds, or the master.
struct Node(Option<u64>);

impl Site for Node {
    fn ready(&self) -> Result<(), String> {
        if self.0 == Some(99) { Err("not yet".into()) } else { Ok(()) }
    }

    fn master(&self) -> Result<(), String> {
        self.0.map_or(Ok(()), |_| Err("a replica".into()))
    }

    fn lag(&self) -> Result<Duration, String> {
        self.0.map(Duration::from_secs).ok_or_else(|| "the master".into())
    }

    fn lags(&self) -> Vec<(String, f64)> {
        vec![("mx2".into(), 1.5)]
    }

    fn report(&self) -> Report {
        Report {
            schema_version: 1,
            daemon: "replica",
            version: "1",
            // No name of a node looks like this: should one ever, it is text.
            node: "<script>alert(1)</script>".into(),
            role: Role::Replica,
            epoch: 1,
            level: Level::Ok,
            headline: "fine".into(),
            gate_open: false,
            log: None,
            replicas: Vec::new(),
            master: None,
            at_risk: None,
            quarantine: Vec::new(),
            problems: 0,
            last_failover: None,
        }
    }
}

async fn server(node: Node) -> (SocketAddr, Tasks) {
    let registry = Registry::new();
    metrics::build_info(&registry, "agent").unwrap();
    let stop = CancellationToken::new();
    let tasks = Tasks::new(stop.clone());
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    (serve(any, registry, Arc::new(node), &tasks, stop).await.unwrap(), tasks)
}

async fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    // One that is told no may be cut off before it has said everything.
    let _ = stream.read_to_string(&mut answer).await;
    answer
}

async fn get(address: SocketAddr, path: &str) -> String {
    ask(address, &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await
}

#[tokio::test]
async fn metrics_of_the_process_and_of_the_daemon() {
    let (address, tasks) = server(Node(Some(3))).await;
    let answer = get(address, "/metrics").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.contains("\nmailtwin_build_info{daemon=\"agent\",version=\""), "{answer}");
    for name in ["process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"] {
        let value = answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let value = value.and_then(|value| value.parse::<f64>().ok());
        assert!(value.is_some(), "{name}: {answer}");
    }
    tasks.shutdown(Duration::from_mins(1)).await.unwrap();
}

#[tokio::test]
async fn a_load_balancer_is_told_what_this_node_is() {
    let (replica, one) = server(Node(Some(30))).await;
    let (master, two) = server(Node(None)).await;
    let (starting, three) = server(Node(Some(99))).await;
    let cases = [
        (replica, "/healthz", "200"),
        (replica, "/readyz", "200"),
        (starting, "/readyz", "503"),
        (replica, "/master", "503"),
        (master, "/master", "200"),
        (replica, "/replica", "200"),
        (replica, "/replica?", "200"),
        (replica, "/replica?lag=30s", "200"),
        (replica, "/replica?lag=29s", "503"),
        (replica, "/replica?lag=1m%20", "400"),
        (replica, "/replica?lag=30", "400"),
        (replica, "/replica?delay=30s", "400"),
        (master, "/replica?lag=30s", "503"),
        (master, "/etc/passwd", "404"),
        (master, "/../metrics", "404"),
    ];
    for (address, path, status) in cases {
        let answer = get(address, path).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {answer}");
    }
    let head = ask(master, "HEAD /master HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"), "{head}");
    for tasks in [one, two, three] {
        tasks.shutdown(Duration::from_mins(1)).await.unwrap();
    }
}

#[tokio::test]
async fn the_page_runs_nothing_that_is_not_its_own() {
    let (address, tasks) = server(Node(Some(0))).await;
    let page = get(address, "/").await;
    assert!(page.contains("content-security-policy: default-src 'none'; style-src 'sha256-"));
    assert!(page.contains("x-content-type-options: nosniff") && page.contains("<!doctype html>"));
    assert!(!page.contains("alert(1)"), "what it shows comes as data");
    let json = get(address, "/status.json").await;
    let (head, body) = json.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("content-type: application/json") && head.contains("no-store"), "{head}");
    let status: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(status["node"], "<script>alert(1)</script>");
    assert_eq!(status["lag_step_seconds"], STEP_SECONDS);
    assert_eq!(status["lag_history"][0]["points"][0][1], 1.5);
    tasks.shutdown(Duration::from_mins(1)).await.unwrap();
}

#[tokio::test]
async fn nonsense_and_floods_are_answered_shortly() {
    let (address, tasks) = server(Node(Some(0))).await;
    let long = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(2 * HEAD_OCTETS_MAX));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "X-Y: z\r\n".repeat(HEADERS_MAX + 1));
    let cases = [
        ("POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", "405"),
        ("DELETE / HTTP/1.1\r\nHost: x\r\n\r\n", "405"),
        ("garbage\r\n\r\n", "400"),
        (&long, "4"),
        (&many, "431"),
    ];
    for (request, status) in cases {
        let answer = ask(address, request).await;
        let short: String = request.chars().take(40).collect();
        // Told so, or cut off while it still talked.
        let told = answer.is_empty() || answer.starts_with(&format!("HTTP/1.1 {status}"));
        assert!(told && answer.len() < 1_000, "{short}: {answer}");
    }
    assert!(get(address, "/healthz").await.starts_with("HTTP/1.1 200 "));
    tasks.shutdown(Duration::from_mins(1)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn silent_clients_are_let_go_and_take_no_more_than_their_places() {
    let (address, tasks) = server(Node(Some(0))).await;
    let mut silent = Vec::new();
    for _ in 0..2 * DOOR.most {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    for mut client in silent {
        assert!(matches!(client.read(&mut [0]).await, Ok(0) | Err(_)));
    }
    tasks.shutdown(Duration::from_mins(1)).await.unwrap();
}
