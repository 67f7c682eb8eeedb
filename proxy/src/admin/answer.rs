//! The answers that the admin port gives itself.
//!
//! Errors are `application/problem+json` (RFC 9457) with the members that the sidecar's errors have, so that a caller
//! need not know who answered.

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{Response, StatusCode};
use serde::Serialize;

/// Any answer's body: ours is whole, the sidecar's streams.
pub type Body = UnsyncBoxBody<Bytes, BodyError>;
/// Why a body stopped early.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

pub fn text(content: &'static str) -> Response<Body> {
    respond(StatusCode::OK, "text/plain; charset=utf-8", content)
}

pub fn scrape(content: String) -> Response<Body> {
    respond(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", content)
}

pub fn json(content: &impl Serialize) -> Response<Body> {
    as_json(StatusCode::OK, content)
}

pub fn accepted(content: &impl Serialize) -> Response<Body> {
    as_json(StatusCode::ACCEPTED, content)
}

pub fn readiness(ready: bool, content: &impl Serialize) -> Response<Body> {
    as_json(if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, content)
}

pub fn unauthorized() -> Response<Body> {
    let mut response =
        problem(StatusCode::UNAUTHORIZED, "auth_required", "This needs its key: Authorization: Bearer …");
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

pub fn not_found() -> Response<Body> {
    problem(StatusCode::NOT_FOUND, "not_found", "Not found.")
}

pub fn no_workspace() -> Response<Body> {
    problem(StatusCode::NOT_FOUND, "not_found", "There is no workspace of this id or name.")
}

pub fn wrong_method(allow: &'static str) -> Response<Body> {
    let mut response = problem(StatusCode::METHOD_NOT_ALLOWED, "bad_request", "This path does not take this method.");
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
    response
}

pub fn bad_request(error: &str) -> Response<Body> {
    problem(StatusCode::BAD_REQUEST, "bad_request", error)
}

pub fn too_long(bytes_max: usize) -> Response<Body> {
    problem(StatusCode::PAYLOAD_TOO_LARGE, "too_long", &format!("The body is longer than {bytes_max} bytes."))
}

/// The sidecar cannot answer now. Sessions and logins on the wire port are not affected, which is worth saying.
pub fn sidecar_away(status: StatusCode, error: &str) -> Response<Body> {
    let mut response = problem(status, "unavailable", error);
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("5"));
    response
}

/// RFC 9457, with the members of this product's errors.
fn problem(status: StatusCode, code: &'static str, error: &str) -> Response<Body> {
    let request_id = request_id();
    let title = status.canonical_reason().unwrap_or("Error");
    let content = serde_json::json!({
        "type": "about:blank", "title": title, "status": status.as_u16(), "detail": error,
        "success": false, "http_status": status.as_u16(), "code": code, "error": error, "request_id": request_id,
    });
    let mut response = respond(status, "application/problem+json", content.to_string());
    if let Ok(value) = HeaderValue::from_str(&request_id) {
        response.headers_mut().insert(HeaderName::from_static("x-request-id"), value);
    }
    response
}

/// Sixteen random hexadecimal digits; zeros if the kernel gives no randomness, since only logs are the worse for it.
pub fn request_id() -> String {
    let mut bytes = [0; 8];
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    format!("{:016x}", u64::from_be_bytes(bytes))
}

fn as_json(status: StatusCode, content: &impl Serialize) -> Response<Body> {
    match serde_json::to_vec(content) {
        Ok(content) => respond(status, "application/json", content),
        Err(_) => problem(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", "The answer could not be written."),
    }
}

fn respond(status: StatusCode, kind: &'static str, content: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(content.into()).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// For metrics: `2xx` and so on.
pub fn class(status: StatusCode) -> &'static str {
    match status.as_u16() / 100 {
        1 => "1xx",
        2 => "2xx",
        3 => "3xx",
        4 => "4xx",
        _ => "5xx",
    }
}
