//! The admin port: health, metrics, the operator's view, and the way to the sidecar.
//!
//! Few paths are answered here; every other request goes to the sidecar as it came, which authenticates it itself
//! ([`forward`]). This module must not read, keep or log a body or an `Authorization` header, and must not know what
//! the sidecar's API looks like.
//!
//! Bounds: connections, time for a TLS handshake, for a request's head, for a whole exchange, for a connection, bytes of
//! a head and of a body.

mod answer;
mod forward;
mod headers;
mod operator;
mod ready;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use jiff::Timestamp;
use portcullis_config::{AdminConfig, ProxyConfig};
use portcullis_policy::CacheSize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::metrics::{Memory, Metrics, Observed};
use crate::pool::{Order, Standing};
use crate::tls::Tls;
use answer::Body;
pub use operator::{PoolRow, SessionRow};

/// Connections at once. Each costs a request's head and body buffers, and one connection to the sidecar.
const CONNECTIONS_MAX: usize = 256;
/// For a TLS handshake.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// For the head of a request, and for a kept-alive connection to send the next one.
const HEAD_MAX: Duration = Duration::from_secs(10);
/// For one exchange with the sidecar, from the request's head to the answer's last byte.
const EXCHANGE_MAX: Duration = Duration::from_secs(60);
/// A connection is closed after this even if it is in use.
const CONNECTION_MAX: Duration = Duration::from_secs(600);
/// Bytes of a request's head.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Header lines of a request.
const HEADERS_MAX: usize = 100;
/// After a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// What the admin port asks of the data plane. Implemented by the gate; by rows of data in tests.
pub trait DataPlane: Send + Sync + 'static {
    /// How long ago the catalog was last heard; none before the first snapshot.
    fn catalog_age(&self) -> Option<Duration>;
    /// The revision of the catalog that is served; 0 before the first snapshot.
    fn catalog_revision(&self) -> i64;
    /// Sums over all pools, cheap enough for every scrape.
    fn pool_totals(&self) -> PoolTotals;
    /// What the cache of verdicts holds.
    fn verdicts(&self) -> CacheSize;
    /// What the process holds of its memory budget.
    fn memory(&self) -> Memory;
    /// One row per pool.
    fn pools(&self) -> Vec<PoolRow>;
    /// One row per session.
    fn sessions(&self) -> Vec<SessionRow>;
    /// Carries out an operator's order for the workspace of this id or name, within this time; `None`: there is none.
    fn operate<'a>(&'a self, workspace: &'a str, order: Order, patience: Duration) -> BoxFuture<'a, Option<Standing>>;
}

/// Sums over all pools.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolTotals {
    /// Pools that exist.
    pub pools: u64,
    /// Connections that sessions hold.
    pub active: u64,
    /// Connections that wait for work.
    pub idle: u64,
    /// Connections being opened.
    pub connecting: u64,
    /// Sessions that wait for a connection.
    pub waiters: u64,
    /// Workspaces that are paused.
    pub paused: u64,
}

/// The admin port's view of the process.
pub struct Admin {
    config: AdminConfig,
    clients_max: u64,
    snapshot_age_max: Duration,
    started_at: Timestamp,
    tls: Arc<Tls>,
    metrics: Arc<Metrics>,
    draining: CancellationToken,
    plane: Arc<dyn DataPlane>,
}

impl Admin {
    /// `draining` is cancelled by `POST /drain`, and read by `/readyz`.
    pub fn new(
        config: &ProxyConfig,
        tls: Arc<Tls>,
        metrics: Arc<Metrics>,
        draining: CancellationToken,
        plane: Arc<dyn DataPlane>,
    ) -> Self {
        Self {
            config: config.admin.clone(),
            clients_max: config.listen.clients_max as u64,
            snapshot_age_max: Duration::from_millis(config.catalog.snapshot_age_max_ms),
            started_at: Timestamp::now(),
            tls,
            metrics,
            draining,
            plane,
        }
    }
}

/// Answers until `stop` is cancelled; then running exchanges may end, at most [`EXCHANGE_MAX`].
pub async fn serve(listener: TcpListener, admin: Arc<Admin>, stop: CancellationToken) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let socket = match accepted {
            Ok((socket, _)) => socket,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection on the admin port");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Beyond the bound: closed at once, so that the port cannot be kept busy by those who wait.
        if let Ok(permit) = permits.clone().try_acquire_owned() {
            let (admin, stop) = (admin.clone(), stop.clone());
            tokio::spawn(async move {
                let _permit = permit;
                connection(socket, admin, stop).await;
            });
        }
    }
}

async fn connection(socket: TcpStream, admin: Arc<Admin>, stop: CancellationToken) {
    let _ = socket.set_nodelay(true);
    if !admin.config.tls {
        return exchange(socket, admin, stop).await;
    }
    let acceptor = TlsAcceptor::from(admin.tls.current().admin.clone());
    match tokio::time::timeout(HANDSHAKE_MAX, acceptor.accept(socket)).await {
        Ok(Ok(stream)) => exchange(stream, admin, stop).await,
        Ok(Err(error)) => tracing::debug!(%error, "TLS handshake on the admin port failed"),
        Err(_) => tracing::debug!("TLS handshake on the admin port took too long"),
    }
}

/// All requests of one connection.
async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    admin: Arc<Admin>,
    stop: CancellationToken,
) {
    let service = service_fn(move |request| {
        let admin = admin.clone();
        async move { Ok::<_, Infallible>(admin.logged(request).await) }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_MAX)
            .max_headers(HEADERS_MAX)
            .max_buf_size(HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service)
    );
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        () = stop.cancelled() => None,
        () = tokio::time::sleep(CONNECTION_MAX) => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(EXCHANGE_MAX, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        // The caller's fault or the network's; hyper has answered 400 where it could.
        tracing::debug!(%error, "a connection to the admin port ended early");
    }
}

impl Admin {
    async fn logged(&self, request: Request<Incoming>) -> Response<Body> {
        let (method, path, began) = (request.method().clone(), request.uri().path().to_owned(), Instant::now());
        let response = self.answer(request).await;
        let status = response.status();
        self.metrics.admin_request(answer::class(status));
        // The path without its query: that may hold anything.
        tracing::debug!(%method, path, status = status.as_u16(), millis = began.elapsed().as_millis() as u64, "admin request");
        response
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let get = matches!(*request.method(), Method::GET | Method::HEAD);
        match request.uri().path() {
            "/livez" if get => answer::text("ok\n"),
            "/readyz" if get => self.readyz(),
            "/metrics" if get => self.scrape(&request),
            "/pools" if get => self.operator(&request, || answer::json(&self.plane.pools())),
            "/sessions" if get => self.operator(&request, || answer::json(&self.plane.sessions())),
            "/drain" if request.method() == Method::POST => self.operator(&request, || self.drain()),
            path if operator::order(path).is_some() => self.operate(&request).await,
            "/livez" | "/readyz" | "/metrics" | "/pools" | "/sessions" => answer::wrong_method("GET, HEAD"),
            "/drain" => answer::wrong_method("POST"),
            _ => forward::forward(&self.config, &self.metrics, request).await,
        }
    }

    fn scrape(&self, request: &Request<Incoming>) -> Response<Body> {
        match &self.config.metrics_token {
            Some(token) if !operator::bears(request.headers(), token) => answer::unauthorized(),
            _ => answer::scrape(self.metrics.render(&self.observe())),
        }
    }

    fn operator(&self, request: &Request<Incoming>, allowed: impl FnOnce() -> Response<Body>) -> Response<Body> {
        match &self.config.operator_key {
            None => answer::not_found(),
            Some(key) if operator::bears(request.headers(), key) => allowed(),
            Some(_) => answer::unauthorized(),
        }
    }

    /// PAUSE, RESUME, RECONNECT or KILL of one workspace.
    async fn operate(&self, request: &Request<Incoming>) -> Response<Body> {
        let uri = request.uri();
        let Some((workspace, order)) = operator::order(uri.path()) else { return answer::not_found() };
        let patience = operator::patience(uri.query());
        let refusal = match (&self.config.operator_key, patience) {
            (None, _) => Some(answer::not_found()),
            (Some(key), _) if !operator::bears(request.headers(), key) => Some(answer::unauthorized()),
            _ if request.method() != Method::POST => Some(answer::wrong_method("POST")),
            (_, None) => Some(answer::bad_request(operator::PATIENCE)),
            _ => None,
        };
        if let Some(refusal) = refusal {
            return refusal;
        }
        match self.plane.operate(&workspace, order, patience.unwrap_or_default()).await {
            None => answer::no_workspace(),
            Some(standing) => {
                tracing::info!(?order, ?standing, "asked for on the admin port");
                if standing.settled { answer::json(&standing) } else { answer::accepted(&standing) }
            }
        }
    }

    /// The same path as SIGTERM: whoever waits for `draining` ends the process.
    fn drain(&self) -> Response<Body> {
        tracing::info!("drain asked for on the admin port");
        self.draining.cancel();
        answer::accepted(&serde_json::json!({ "draining": true, "sessions": self.metrics.sessions_open() }))
    }

    fn observe(&self) -> Observed {
        let totals = self.plane.pool_totals();
        Observed {
            clients_max: self.clients_max,
            draining: self.draining.is_cancelled(),
            ready: self.not_ready_because().is_empty(),
            pools: totals.pools,
            upstream_active: totals.active,
            upstream_idle: totals.idle,
            upstream_connecting: totals.connecting,
            waiters: totals.waiters,
            paused: totals.paused,
            verdicts: self.plane.verdicts(),
            memory: self.plane.memory(),
            // Before the first snapshot the age is that of the process: it grows, as an alert expects.
            catalog_age_seconds: self
                .plane
                .catalog_age()
                .unwrap_or_else(|| (Timestamp::now() - self.started_at).try_into().unwrap_or_default())
                .as_secs_f64(),
            catalog_revision: self.plane.catalog_revision(),
            certificate_not_after: self.tls.current().not_after.as_second(),
            started_at: self.started_at.as_second(),
            resident_bytes: ready::resident_bytes(),
        }
    }
}
