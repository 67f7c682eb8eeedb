//! The HTTP API: who is asking (`caller`), what they ask (`ingestion`, `workspaces`), what they are told when it fails (`error`).
//!
//! Plain HTTP/1.1 on a Unix socket or loopback: TLS ends at the proxy's admin port, which forwards here. Every request
//! has an id, a time limit and a bounded body; the number of requests and connections at once is bounded too.

pub mod body;
pub mod caller;
pub mod error;
pub mod formats;
pub mod idempotency;
pub mod ingestion;
pub mod workspaces;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderName, HeaderValue, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use portcullis_config::SidecarAddress;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::{Provisioner, StartError};
use error::{Code, Problem};

/// How long a connection may take to send a request's head, the idle time between two requests included.
const HEADER_TIMEOUT: Duration = Duration::from_secs(75);
/// How long running requests may take to end when the process stops.
const DRAIN: Duration = Duration::from_secs(10);
/// The header that carries a request's id, both ways.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// A request's id: the caller's own, if it is harmless, or ours.
#[derive(Debug, Clone)]
pub struct RequestId(pub String);

/// All paths.
pub fn router(provisioner: Arc<Provisioner>) -> Router {
    let limits = provisioner.api.clone();
    let requests = Arc::new(Semaphore::new(limits.requests_max));
    let time = Duration::from_millis(limits.request_timeout_ms);
    let ingestion = Router::new()
        .route("/status", get(ingestion::status))
        .route("/provision", post(ingestion::provision))
        .route("/connection-uris/metadata", get(ingestion::metadata))
        .route("/connection-uris/reveal", post(ingestion::reveal))
        .route("/connection-uris/rotate", post(ingestion::rotate));
    Router::new()
        .route("/workspaces", get(workspaces::list).post(workspaces::create))
        .route("/workspaces/{id}", get(workspaces::get))
        .nest("/api/v2/ingestion", ingestion)
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .fallback(|| async { Problem::new(Code::NotFound, "There is nothing at this path.") })
        .layer(DefaultBodyLimit::max(limits.body_bytes_max))
        .layer(middleware::from_fn(move |request: Request, next: Next| bounded(requests.clone(), time, request, next)))
        .layer(middleware::from_fn(named))
        .with_state(provisioner)
}

async fn readyz(State(provisioner): State<Arc<Provisioner>>) -> Response {
    match provisioner.store.revision().await {
        Ok(_) => "ready\n".into_response(),
        Err(error) => Problem::from(error).into_response(),
    }
}

/// No more requests at once than configured, and none for longer.
///
/// A handler runs as a task of its own: when its client goes away or runs out of time, it still comes to its end, since
/// a half-made workspace helps nobody.
async fn bounded(requests: Arc<Semaphore>, time: Duration, request: Request, next: Next) -> Response {
    let Ok(permit) = requests.try_acquire_owned() else {
        return Problem::new(Code::Unavailable, "Too many requests at once; try again in a moment.").into_response();
    };
    let running = tokio::spawn(async move {
        let response = next.run(request).await;
        drop(permit);
        response
    });
    match tokio::time::timeout(time, running).await {
        Ok(Ok(response)) => response,
        Ok(Err(_)) => Problem::new(Code::InternalError, "The request failed.").into_response(),
        Err(_) => {
            let text = "The request takes longer than allowed; it goes on, ask again later.";
            Problem::new(Code::Unavailable, text).into_response()
        }
    }
}

/// Gives the request its id, and every refusal its one shape, also those that axum makes.
async fn named(mut request: Request, next: Next) -> Response {
    let id = request_id(request.headers().get(REQUEST_ID));
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    request.extensions_mut().insert(RequestId(id.clone()));
    let started = std::time::Instant::now();
    let response = next.run(request).await;
    let mut response = error::render(response, &id);
    let status = response.status().as_u16();
    let elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    tracing::info!(%method, path, status, elapsed_ms, request_id = id, "answered");
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response.headers_mut().entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

fn request_id(given: Option<&HeaderValue>) -> String {
    let harmless = |text: &&str| {
        (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    if let Some(given) = given.and_then(|value| value.to_str().ok()).filter(harmless) {
        return given.to_owned();
    }
    let mut bytes = [0; 8];
    // Without randomness ids repeat, which harms nobody.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    format!("req_{:016x}", u64::from_be_bytes(bytes))
}

/// Where requests arrive.
pub enum Listener {
    /// Loopback, as a rule.
    Tcp(TcpListener),
    /// Only processes of our own user and group get in.
    Unix(UnixListener),
}

impl Listener {
    /// The address that was bound, for logs and for tests that asked for port 0.
    #[must_use]
    pub fn address(&self) -> String {
        match self {
            Listener::Tcp(listener) => listener.local_addr().map_or_else(|_| "?".to_owned(), |a| a.to_string()),
            Listener::Unix(listener) => {
                let address = listener.local_addr().ok();
                let path = address.as_ref().and_then(|a| a.as_pathname()).map(|p| p.display().to_string());
                format!("unix:{}", path.unwrap_or_default())
            }
        }
    }
}

/// Begins to listen. A socket file that nobody listens on any more is replaced.
///
/// # Errors
/// When the address is taken or may not be used.
pub async fn listen(address: &SidecarAddress) -> Result<Listener, StartError> {
    let bound = match address {
        SidecarAddress::Tcp { host, port } => TcpListener::bind((host.as_str(), *port)).await.map(Listener::Tcp),
        SidecarAddress::Unix(path) => listen_unix(path).await.map(Listener::Unix),
    };
    let listener = bound.map_err(|source| StartError::Io { what: format!("api.listen {address}"), source })?;
    tracing::info!(address = listener.address(), "listening");
    Ok(listener)
}

async fn listen_unix(path: &Path) -> std::io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt as _;
    if tokio::net::UnixStream::connect(path).await.is_err() && path.exists() {
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

/// Answers until `stop`, then lets running requests end.
pub async fn serve(listener: Listener, provisioner: Arc<Provisioner>, stop: CancellationToken) {
    let connections = Arc::new(Semaphore::new(provisioner.api.requests_max.saturating_mul(2)));
    let router = router(provisioner);
    let tracker = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accept(&listener, &connections) => accepted,
        };
        match accepted {
            Ok((stream, permit)) => {
                let (router, stop) = (router.clone(), stop.clone());
                tracker.spawn(async move {
                    connection(stream, router, stop).await;
                    drop(permit);
                });
            }
            Err(error) => {
                // Out of file descriptors, as a rule: a pause instead of a loop.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
    tracker.close();
    if tokio::time::timeout(DRAIN, tracker.wait()).await.is_err() {
        tracing::warn!("stopped with requests still running");
    }
}

trait Stream: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> Stream for T {}

async fn accept(
    listener: &Listener,
    connections: &Arc<Semaphore>,
) -> std::io::Result<(Box<dyn Stream>, tokio::sync::OwnedSemaphorePermit)> {
    let permit = connections.clone().acquire_owned().await.map_err(std::io::Error::other)?;
    let stream: Box<dyn Stream> = match listener {
        Listener::Tcp(listener) => Box::new(listener.accept().await?.0),
        Listener::Unix(listener) => Box::new(listener.accept().await?.0),
    };
    Ok((stream, permit))
}

async fn connection(stream: Box<dyn Stream>, router: Router, stop: CancellationToken) {
    let service = TowerToHyperService::new(router);
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_buf_size(64 * 1024);
    let served = http.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(served);
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        () = stop.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended");
    }
}
