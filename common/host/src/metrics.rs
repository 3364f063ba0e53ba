//! `/metrics` over HTTP, from a registry that belongs to the daemon and to nobody else.

use std::{convert::Infallible, fmt::Write as _, net::SocketAddr, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request, Response, StatusCode, body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::{Encoder as _, IntGaugeVec, Opts, Registry, TextEncoder};
use tokio::{
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    accept::{self, Door},
    tasks::Tasks,
};

/// A scraper or two, and an admin.
const DOOR: Door = Door { name: "metrics", clients: "metrics client", most: 8 };
/// How long a client may take over one connection.
const CLIENT_WITHIN: Duration = Duration::from_secs(10);

/// Serves `registry` at `address` until `stop`; returns where, since a port of 0 means any.
pub async fn serve(
    address: SocketAddr,
    registry: Registry,
    tasks: &Tasks,
    stop: CancellationToken,
) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind(address).await?;
    let bound = listener.local_addr()?;
    accept::spawn(DOOR, listener, tasks, stop, move |(socket, _)| {
        let served = timeout(CLIENT_WITHIN, client(socket, registry.clone()));
        async move { served.await.unwrap_or_default() }
    });
    Ok(bound)
}

async fn client(socket: TcpStream, registry: Registry) {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = answer(request.method(), request.uri().path(), &registry);
        async move { Ok::<_, Infallible>(response) }
    });
    // Whatever a client does wrong is its own loss.
    let _ = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(CLIENT_WITHIN)
        .keep_alive(false)
        .serve_connection(TokioIo::new(socket), service)
        .await;
}

fn answer(method: &Method, path: &str, registry: &Registry) -> Response<Full<Bytes>> {
    let (status, body) = match (method, path) {
        (&Method::GET, "/metrics") => (StatusCode::OK, text(registry)),
        (&Method::GET, "/healthz") => (StatusCode::OK, b"ok\n".to_vec()),
        (&Method::GET, _) => (StatusCode::NOT_FOUND, b"see /metrics\n".to_vec()),
        _ => (StatusCode::METHOD_NOT_ALLOWED, b"GET only\n".to_vec()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let kind = hyper::header::HeaderValue::from_static("text/plain; version=0.0.4");
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, kind);
    response
}

fn text(registry: &Registry) -> Vec<u8> {
    let mut text = process();
    // Metrics of our own making always encode.
    let _ = TextEncoder::new().encode(&registry.gather(), &mut text);
    text
}

/// The usual process metrics, read from `/proc/self` at each scrape.
fn process() -> Vec<u8> {
    let mut text = String::new();
    let mut metric = |name: &str, kind: &str, help: &str, value: f64| {
        // Writing to a string cannot fail.
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
    };
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The command's name, in parentheses, may hold spaces.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split(' ').collect();
    let number = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok());
    #[expect(clippy::cast_precision_loss, reason = "clock ticks and pages are small numbers")]
    let (tick, page) =
        (rustix::param::clock_ticks_per_second() as f64, rustix::param::page_size() as f64);
    if let (Some(user), Some(system)) = (number(12), number(13)) {
        let help = "Time of processors, its own and the kernel's for it";
        metric("process_cpu_seconds_total", "counter", help, (user + system) / tick);
    }
    if let Some(pages) = number(22) {
        metric("process_resident_memory_bytes", "gauge", "Resident memory", pages * page);
    }
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        let open = f64::from(u32::try_from(open.count()).unwrap_or(0));
        metric("process_open_fds", "gauge", "Open file descriptors", open);
    }
    text.into_bytes()
}

/// Registers `mailtwin_build_info`, always 1, with the version as its label.
pub fn build_info(registry: &Registry, daemon: &str) -> Result<(), prometheus::Error> {
    let opts = Opts::new("mailtwin_build_info", "1, with the version as a label");
    let info = IntGaugeVec::new(opts, &["daemon", "version"])?;
    registry.register(Box::new(info.clone()))?;
    info.with_label_values(&[daemon, env!("CARGO_PKG_VERSION")]).set(1);
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    async fn server() -> (SocketAddr, Tasks) {
        let registry = Registry::new();
        build_info(&registry, "agent").unwrap();
        let stop = CancellationToken::new();
        let tasks = Tasks::new(stop.clone());
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        (serve(any, registry, &tasks, stop).await.unwrap(), tasks)
    }

    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn metrics_and_nothing_else() {
        let (address, tasks) = server().await;
        let answer = ask(address, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(answer.contains("\nmailtwin_build_info{daemon=\"agent\",version=\""), "{answer}");
        for name in
            ["process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"]
        {
            let value = answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            assert!(
                value.and_then(|value| value.parse::<f64>().ok()).is_some(),
                "{name}: {answer}"
            );
        }
        let cases = [
            ("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", "200"),
            ("GET /etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n", "404"),
            ("POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", "405"),
            ("garbage\r\n\r\n", "400"),
        ];
        for (request, status) in cases {
            let answer = ask(address, request).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {answer}");
        }
        tasks.shutdown(Duration::from_mins(1)).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn silent_clients_are_let_go_and_take_no_more_than_their_places() {
        let (address, tasks) = server().await;
        let mut silent = Vec::new();
        for _ in 0..2 * DOOR.most {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        for mut client in silent {
            assert!(matches!(client.read(&mut [0]).await, Ok(0) | Err(_)));
        }
        tasks.shutdown(Duration::from_mins(1)).await.unwrap();
    }
}
