//! `/metrics` over HTTP, from a registry that belongs to the daemon and to nobody else.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request, Response, StatusCode, body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::{Encoder as _, IntGaugeVec, Opts, Registry, TextEncoder};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::sync::CancellationToken;

use crate::tasks::Tasks;

/// Connections served at once: a scraper or two, and an admin.
const CONNECTIONS_MAX: usize = 8;
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
    let (room, inner) = (Arc::new(Semaphore::new(CONNECTIONS_MAX)), tasks.clone());
    tasks.spawn("metrics", async move {
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            // Nobody is refused for a moment's lack of descriptors: the next one may be served.
            let Ok((socket, _)) = accepted else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let Ok(place) = Arc::clone(&room).try_acquire_owned() else { continue };
            let (registry, stop) = (registry.clone(), stop.clone());
            inner.spawn("metrics client", async move {
                let _place = place;
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = tokio::time::sleep(CLIENT_WITHIN) => {}
                    () = client(socket, registry) => {}
                }
            });
        }
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
    let mut metric = |name: &str, kind: &str, value: f64| {
        text += &format!("# TYPE {name} {kind}\n{name} {value}\n");
    };
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The command's name, in parentheses, may hold spaces.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split(' ').collect();
    let number = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok());
    #[expect(clippy::cast_precision_loss, reason = "clock ticks and pages are small numbers")]
    let (tick, page) =
        (rustix::param::clock_ticks_per_second() as f64, rustix::param::page_size() as f64);
    if let (Some(user), Some(system)) = (number(12), number(13)) {
        metric("process_cpu_seconds_total", "counter", (user + system) / tick);
    }
    if let Some(pages) = number(22) {
        metric("process_resident_memory_bytes", "gauge", pages * page);
    }
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        metric("process_open_fds", "gauge", f64::from(u32::try_from(open.count()).unwrap_or(0)));
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
