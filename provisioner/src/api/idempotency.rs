//! `Idempotency-Key`: a repeat of a request gets the first answer, whichever sidecar it reaches.
//!
//! After the IETF's draft-ietf-httpapi-idempotency-key-header: the same key with another request is 422, a repeat while
//! the first one runs is 409. Only successes are remembered, for a day: what failed may be tried again under its key.

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use jiff::Timestamp;
use portcullis_catalog::{Claimed, KeyedRequest};
use serde_json::Value;

use super::caller::Caller;
use super::error::{Code, Problem};
use crate::Provisioner;

const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// Bytes of a key at most.
const KEY_MAX: usize = 255;
/// Says that an answer is the remembered one.
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// A success: its status and body.
pub struct Answer {
    /// 200 to 299.
    pub status: StatusCode,
    /// JSON without secrets: it may be kept.
    pub body: Value,
}

/// Answers a request at most once per key. Without a key it is simply answered.
///
/// `request` says everything that was asked for, e.g. `POST /provision ws_…`.
///
/// # Errors
/// 400 for a key that is none, 409 while the first request runs, 422 when the key was used for something else, and
/// whatever `answer` fails with.
pub async fn once(
    provisioner: &Provisioner,
    caller: &Caller,
    headers: &HeaderMap,
    request: &str,
    answer: impl Future<Output = Result<Answer, Problem>>,
) -> Result<Response, Problem> {
    let Some(key) = key(headers)? else {
        let Answer { status, body } = answer.await?;
        return Ok(json(status, body.to_string()));
    };
    let caller = caller.actor().name;
    let keyed = KeyedRequest { caller: &caller, key, request: request.as_bytes() };
    let claim = match provisioner.store.claim_request(&keyed, Timestamp::now()).await? {
        Claimed::Ours(claim) => claim,
        Claimed::Answered { status, answer } => {
            let mut response = json(StatusCode::from_u16(status).unwrap_or(StatusCode::OK), answer);
            response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
            return Ok(response);
        }
        Claimed::Running => {
            let text = "A request with this Idempotency-Key is running; ask again for its answer.";
            return Err(Problem::new(Code::Conflict, text));
        }
        Claimed::AnotherRequest => {
            let text = "This Idempotency-Key was used for another request; use a new key for a new request.";
            return Err(Problem::new(Code::Invalid, text));
        }
    };
    match answer.await {
        Ok(Answer { status, body }) => {
            let body = body.to_string();
            provisioner.store.remember_answer(&claim, status.as_u16(), &body).await?;
            Ok(json(status, body))
        }
        Err(problem) => {
            if let Err(error) = provisioner.store.release_claim(&claim).await {
                tracing::warn!(%error, "cannot give back an idempotency key; it ends by itself");
            }
            Err(problem)
        }
    }
}

/// The header's value. The draft wants a quoted string (RFC 8941), most clients send a bare one: either is taken as it is.
fn key(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let wrong = |text: String| Problem::new(Code::BadRequest, text);
    let mut given = headers.get_all(IDEMPOTENCY_KEY).iter();
    let value = match (given.next(), given.next()) {
        (None, _) => return Ok(None),
        (Some(value), None) => value,
        (Some(_), Some(_)) => return Err(wrong("The header Idempotency-Key must be given once.".to_owned())),
    };
    let text = value.to_str().ok().map(str::trim).filter(|text| (1..=KEY_MAX).contains(&text.len()));
    text.map(Some).ok_or_else(|| wrong(format!("An Idempotency-Key has 1 to {KEY_MAX} visible ASCII characters.")))
}

fn json(status: StatusCode, body: String) -> Response {
    let mut response = (status, Body::from(body)).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
