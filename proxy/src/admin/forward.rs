//! From the admin port to the sidecar and back.
//!
//! One connection to the sidecar per request: nothing of one caller's exchange is left for another's, and a sidecar
//! that restarted is found at once. Bodies stream in both directions and are never looked at. Framing is hyper's own on
//! each side: of a request with both `Transfer-Encoding` and `Content-Length` it honours the former, as RFC 9112 says,
//! closes the caller's connection after it, and sends it on with one length. Trailers end here.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use http_body_util::BodyExt as _;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::client::conn::http1;
use hyper::header::{HOST, HeaderName, HeaderValue};
use hyper::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version};
use hyper_util::rt::TokioIo;
use portcullis_config::{AdminConfig, SidecarAddress};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::AbortHandle;
use tokio::time::{Instant, Sleep, timeout, timeout_at};

use super::answer::{self, Body, BodyError};
use super::{EXCHANGE_MAX, headers};
use crate::metrics::Metrics;

/// For connecting to the sidecar: it is on this machine.
const CONNECT_MAX: Duration = Duration::from_secs(2);

const AWAY: &str = "The provisioning sidecar cannot be reached. Sessions and logins go on; \
     start portcullis-provisioner (or check admin.sidecar in the proxy's configuration) and try again.";
const SLOW: &str = "The provisioning sidecar did not answer within 60 seconds. \
     Nothing is known of the outcome: ask for the status before trying again.";
const BROKEN: &str = "The provisioning sidecar broke off. \
     Nothing is known of the outcome: ask for the status before trying again.";

/// Why a request is not forwarded. The caller's fault, all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    Method,
    Host,
    TooLong,
}

/// Sends the request on and brings the answer back, or says why not.
pub async fn forward(config: &AdminConfig, metrics: &Metrics, request: Request<Incoming>) -> Response<Body> {
    let length = request.body().size_hint().exact();
    if let Some(refusal) = refusal(request.method(), request.version(), request.headers(), length, config) {
        return match refusal {
            Refusal::Method => answer::wrong_method("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"),
            Refusal::Host => answer::bad_request("A request has exactly one Host."),
            Refusal::TooLong => answer::too_long(config.body_bytes_max),
        };
    }
    let too_long = Arc::new(AtomicBool::new(false));
    match exchange(&config.sidecar, outgoing(request, config.body_bytes_max, too_long.clone())).await {
        Ok(response) => response,
        Err(_) if too_long.load(Relaxed) => answer::too_long(config.body_bytes_max),
        Err(failure) => failure.told(metrics, &config.sidecar),
    }
}

fn refusal(
    method: &Method,
    version: Version,
    headers: &HeaderMap,
    length: Option<u64>,
    config: &AdminConfig,
) -> Option<Refusal> {
    let known = [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS];
    if !known.contains(method) {
        return Some(Refusal::Method);
    }
    let hosts = headers.get_all(HOST).iter().count();
    if hosts > 1 || (hosts == 0 && version >= Version::HTTP_11) {
        return Some(Refusal::Host);
    }
    length.is_some_and(|length| length > config.body_bytes_max as u64).then_some(Refusal::TooLong)
}

fn outgoing(request: Request<Incoming>, bytes_max: usize, too_long: Arc<AtomicBool>) -> Request<Upload> {
    let (mut parts, body) = request.into_parts();
    headers::strip_request(&mut parts.headers);
    // Ours, so that the sidecar's log lines can be found by what this side logged.
    if let Ok(id) = HeaderValue::from_str(&answer::request_id()) {
        parts.headers.insert(HeaderName::from_static("x-request-id"), id);
    }
    parts.headers.entry(HOST).or_insert(HeaderValue::from_static("localhost"));
    // Origin form: a request may name a whole URL, and the sidecar must not see another host than Host.
    parts.uri = parts.uri.into_parts().path_and_query.map_or(Uri::from_static("/"), Uri::from);
    parts.version = Version::HTTP_11;
    Request::from_parts(parts, Upload { body, left: bytes_max as u64, too_long })
}

/// Why there is no answer.
enum Failure {
    Connect(io::Error),
    Broken(hyper::Error),
    Timeout,
}

impl Failure {
    fn told(self, metrics: &Metrics, sidecar: &SidecarAddress) -> Response<Body> {
        let (reason, status, sentence) = match &self {
            Self::Connect(_) => ("connect", StatusCode::SERVICE_UNAVAILABLE, AWAY),
            Self::Broken(_) => ("broken", StatusCode::BAD_GATEWAY, BROKEN),
            Self::Timeout => ("timeout", StatusCode::GATEWAY_TIMEOUT, SLOW),
        };
        metrics.sidecar_failed(reason);
        match self {
            Self::Connect(error) => tracing::warn!(%sidecar, %error, "cannot connect to the sidecar"),
            Self::Broken(error) => tracing::warn!(%sidecar, %error, "the sidecar broke off"),
            Self::Timeout => tracing::warn!(%sidecar, "the sidecar did not answer in time"),
        }
        answer::sidecar_away(status, sentence)
    }
}

async fn exchange(sidecar: &SidecarAddress, request: Request<Upload>) -> Result<Response<Body>, Failure> {
    let deadline = Instant::now() + EXCHANGE_MAX;
    let connect = async {
        match sidecar {
            SidecarAddress::Unix(path) => spawn(UnixStream::connect(path).await.map_err(Failure::Connect)?).await,
            SidecarAddress::Tcp { host, port } => {
                let socket = TcpStream::connect((host.as_str(), *port)).await.map_err(Failure::Connect)?;
                spawn(socket).await
            }
        }
    };
    let away = |_| Failure::Connect(io::ErrorKind::TimedOut.into());
    let (mut sender, connection) = timeout(CONNECT_MAX, connect).await.map_err(away)??;
    let response = timeout_at(deadline, sender.send_request(request))
        .await
        .map_err(|_| Failure::Timeout)?
        .map_err(Failure::Broken)?;
    let (mut parts, body) = response.into_parts();
    headers::strip_response(&mut parts.headers);
    parts.version = Version::HTTP_11;
    let deadline = Box::pin(tokio::time::sleep_until(deadline));
    Ok(Response::from_parts(parts, Download { body, deadline, _connection: connection }.boxed_unsync()))
}

/// Starts the task that drives one connection; it ends with the guard.
async fn spawn(
    socket: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
) -> Result<(http1::SendRequest<Upload>, Connection), Failure> {
    let (sender, connection) = http1::handshake(TokioIo::new(socket)).await.map_err(Failure::Broken)?;
    // Its error is the sender's or the body's error too.
    let task = tokio::spawn(async move { drop(connection.await) });
    Ok((sender, Connection(task.abort_handle())))
}

struct Connection(AbortHandle);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The caller's body on its way to the sidecar: counted, without trailers.
struct Upload {
    body: Incoming,
    left: u64,
    too_long: Arc<AtomicBool>,
}

impl HttpBody for Upload {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(cx)) else { return Poll::Ready(None) };
        let Ok(data) = frame?.into_data() else { return Poll::Ready(None) };
        match self.left.checked_sub(data.remaining() as u64) {
            Some(left) => {
                self.left = left;
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            None => {
                self.too_long.store(true, Relaxed);
                Poll::Ready(Some(Err("the body is too long".into())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The sidecar's body on its way to the caller, while the exchange may last.
struct Download {
    body: Incoming,
    deadline: Pin<Box<Sleep>>,
    _connection: Connection,
}

impl HttpBody for Download {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            // Trailers end the body without being passed on.
            return Poll::Ready(match frame {
                Some(Ok(frame)) => frame.into_data().ok().map(|data| Ok(Frame::data(data))),
                Some(Err(error)) => Some(Err(error.into())),
                None => None,
            });
        }
        ready!(self.deadline.as_mut().poll(cx));
        Poll::Ready(Some(Err("the exchange took too long".into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
