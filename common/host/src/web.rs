//! What a daemon serves over HTTP: `/metrics` for scrapers, `/healthz`, `/readyz`, `/master` and
//! `/replica` for load balancers, and a status page for people. Read-only, without names of accounts
//! or mailboxes.

mod lags;
mod page;
mod report;

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{self, HeaderName, HeaderValue},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::Registry;
use serde_json::json;
use tokio::{net::TcpStream, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    accept::{self, Door},
    clock::SystemClock,
    config, metrics,
    tasks::Tasks,
};
use lags::{Lags, STEP_SECONDS};
pub use report::{
    CheckLine, CopyLine, FailoverLine, Level, LogLine, MasterLine, ReasonLine, ReplicaLine, Report,
};

/// A scraper or two, load balancers, and an admin.
const DOOR: Door = Door { name: "http", clients: "http client", most: 16 };
/// How long a client may take over one connection.
const CLIENT_WITHIN: Duration = Duration::from_secs(10);
/// Most octets of a request's head; hyper's least.
const HEAD_OCTETS_MAX: usize = 8 << 10;
/// Most lines of it.
const HEADERS_MAX: usize = 64;

/// What a daemon has to say of itself. None of it may block for long.
pub trait Site: Send + Sync + 'static {
    /// Whether it does its work; the error says why not.
    fn ready(&self) -> Result<(), String>;
    /// Whether this node is the master with its gate open; the error says why not.
    fn master(&self) -> Result<(), String>;
    /// How far this replica is behind; the error says why that is not known, or that it is none.
    fn lag(&self) -> Result<Duration, String>;
    /// For the chart: who lags by how many seconds.
    fn lags(&self) -> Vec<(String, f64)>;
    /// For the status page.
    fn report(&self) -> Report;
}

/// What is served.
struct Served {
    registry: Registry,
    site: Arc<dyn Site>,
    lags: Mutex<Lags>,
}

/// Serves `registry` and `site` at `address` until `stop`; returns where, since a port of 0 means any.
pub async fn serve(
    address: SocketAddr,
    registry: Registry,
    site: Arc<dyn Site>,
    tasks: &Tasks,
    stop: CancellationToken,
) -> std::io::Result<SocketAddr> {
    let listener = accept::bind(address).await?;
    let bound = listener.local_addr()?;
    let served = Arc::new(Served { registry, site, lags: Mutex::default() });
    served.sample();
    tasks.spawn("lag samples", sample(Arc::clone(&served), stop.clone()));
    accept::spawn(DOOR, listener, tasks, stop, move |(socket, _)| {
        let client = timeout(CLIENT_WITHIN, client(socket, Arc::clone(&served)));
        async move { client.await.unwrap_or_default() }
    });
    Ok(bound)
}

async fn sample(served: Arc<Served>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(Duration::from_secs(STEP_SECONDS)) => served.sample(),
        }
    }
}

async fn client(socket: TcpStream, served: Arc<Served>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let uri = request.uri();
        let response = served.answer(request.method(), uri.path(), uri.query());
        async move { Ok::<_, Infallible>(response) }
    });
    // Whatever a client does wrong is its own loss.
    let _ = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(CLIENT_WITHIN)
        .max_buf_size(HEAD_OCTETS_MAX)
        .max_headers(HEADERS_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(socket), service)
        .await;
}

impl Served {
    fn sample(&self) {
        let (now, lags) = (SystemClock::shared().unix_ms(), self.site.lags());
        self.lags.lock().expect("no panic while it is held").add(now, lags);
    }

    fn answer(&self, method: &Method, path: &str, query: Option<&str>) -> Response<Full<Bytes>> {
        if method != Method::GET && method != Method::HEAD {
            return text(StatusCode::METHOD_NOT_ALLOWED, "GET only");
        }
        match path {
            "/" => {
                let mut response =
                    body(StatusCode::OK, "text/html; charset=utf-8", page::HTML.as_str());
                // Digests and words of ours always make a header.
                if let Ok(policy) = HeaderValue::from_str(&page::POLICY) {
                    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
                }
                response
            }
            "/status.json" => self.status(),
            "/metrics" => {
                let octets = metrics::text(&self.registry);
                body(StatusCode::OK, "text/plain; version=0.0.4", octets)
            }
            "/healthz" => text(StatusCode::OK, "ok"),
            "/readyz" => verdict(self.site.ready().map(|()| "ready".to_owned())),
            "/master" => verdict(self.site.master().map(|()| "master".to_owned())),
            "/replica" => match bound(query) {
                Ok(bound) => verdict(self.replica(bound)),
                Err(why) => text(StatusCode::BAD_REQUEST, &why),
            },
            _ => text(StatusCode::NOT_FOUND, "see / and /metrics"),
        }
    }

    fn replica(&self, bound: Option<Duration>) -> Result<String, String> {
        let lag = self.site.lag()?;
        let said = format!("replica, lag {:.1} s", lag.as_secs_f64());
        if bound.is_some_and(|bound| lag > bound) { Err(said) } else { Ok(said) }
    }

    fn status(&self) -> Response<Full<Bytes>> {
        let now = SystemClock::shared().unix_ms();
        let series = self.lags.lock().expect("no panic while it is held").series(now);
        // Strings and numbers always encode.
        let mut value = serde_json::to_value(self.site.report()).unwrap_or_else(|_| json!({}));
        value["now"] = json!(now);
        value["lag_step_seconds"] = json!(STEP_SECONDS);
        value["lag_history"] = json!(series);
        body(StatusCode::OK, "application/json", value.to_string())
    }
}

/// `lag=30s`, or nothing.
fn bound(query: Option<&str>) -> Result<Option<Duration>, String> {
    let Some(query) = query.filter(|query| !query.is_empty()) else { return Ok(None) };
    let value = query.strip_prefix("lag=").ok_or("the only parameter is lag, as in lag=30s")?;
    config::parse_duration(value).map(Some).map_err(|error| error.to_string())
}

fn verdict(result: Result<String, String>) -> Response<Full<Bytes>> {
    match result {
        Ok(said) => text(StatusCode::OK, &said),
        Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, &why),
    }
}

fn text(status: StatusCode, line: &str) -> Response<Full<Bytes>> {
    body(status, "text/plain; charset=utf-8", format!("{line}\n"))
}

fn body(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers: [(HeaderName, &'static str); 5] = [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    for (name, value) in headers {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests;
