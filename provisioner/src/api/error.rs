//! What an outsider is told when something fails: the only place that chooses it.
//!
//! One shape for every family of requests: `application/problem+json` (RFC 9457) with the members `success`,
//! `http_status`, `code`, `error` and `request_id`. Inner errors are logged here, once, and never quoted unless they are
//! meant for whoever operates the workspace.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use portcullis_catalog::CatalogError;
use serde_json::{Map, Value, json};

use crate::ops::credentials::CredentialError;
use crate::ops::workspaces::CreateError;
use crate::reconcile::ReconcileError;

/// The stable codes and their statuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// 400
    BadRequest,
    /// 401: no key.
    AuthRequired,
    /// 401: a key that is not one.
    Unauthorized,
    /// 403
    Forbidden,
    /// 403: the key may not do this here.
    ScopeDenied,
    /// 403: only an admin session may.
    SessionRequired,
    /// 404
    NotFound,
    /// 405
    MethodNotAllowed,
    /// 409
    Conflict,
    /// 409: D14.
    WorkspaceNotActive,
    /// 412: no copy of the secret is kept.
    SecretNotKept,
    /// 413
    TooLong,
    /// 422
    Invalid,
    /// 500
    InternalError,
    /// 503
    Unavailable,
}

impl Code {
    fn parts(self) -> (StatusCode, &'static str) {
        match self {
            Code::BadRequest => (StatusCode::BAD_REQUEST, "bad_request"),
            Code::AuthRequired => (StatusCode::UNAUTHORIZED, "auth_required"),
            Code::Unauthorized => (StatusCode::UNAUTHORIZED, "unauthorized"),
            Code::Forbidden => (StatusCode::FORBIDDEN, "forbidden"),
            Code::ScopeDenied => (StatusCode::FORBIDDEN, "scope_denied"),
            Code::SessionRequired => (StatusCode::FORBIDDEN, "session_required"),
            Code::NotFound => (StatusCode::NOT_FOUND, "not_found"),
            Code::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
            Code::Conflict => (StatusCode::CONFLICT, "conflict"),
            Code::WorkspaceNotActive => (StatusCode::CONFLICT, "workspace_not_active"),
            Code::SecretNotKept => (StatusCode::PRECONDITION_FAILED, "secret_not_kept"),
            Code::TooLong => (StatusCode::PAYLOAD_TOO_LARGE, "too_long"),
            Code::Invalid => (StatusCode::UNPROCESSABLE_ENTITY, "invalid"),
            Code::InternalError => (StatusCode::INTERNAL_SERVER_ERROR, "internal_error"),
            Code::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
        }
    }
}

/// A refusal.
#[derive(Debug, Clone)]
pub struct Problem {
    code: Code,
    error: String,
    members: Map<String, Value>,
}

impl Problem {
    /// A refusal with a sentence for the caller.
    #[must_use]
    pub fn new(code: Code, error: impl Into<String>) -> Problem {
        Problem { code, error: error.into(), members: Map::new() }
    }

    /// The same with one more member.
    #[must_use]
    pub fn with(mut self, name: &str, value: Value) -> Problem {
        self.members.insert(name.to_owned(), value);
        self
    }

    fn body(&self, request_id: &str) -> Value {
        let (status, code) = self.code.parts();
        let mut body = self.members.clone();
        body.insert("type".to_owned(), json!("about:blank"));
        body.insert("title".to_owned(), json!(status.canonical_reason().unwrap_or_default()));
        body.insert("status".to_owned(), json!(status.as_u16()));
        body.insert("success".to_owned(), json!(false));
        body.insert("http_status".to_owned(), json!(status.as_u16()));
        body.insert("code".to_owned(), json!(code));
        body.insert("detail".to_owned(), json!(self.error));
        body.insert("error".to_owned(), json!(self.error));
        body.insert("request_id".to_owned(), json!(request_id));
        Value::Object(body)
    }
}

impl IntoResponse for Problem {
    /// Its body is made by [`render`], which knows the request's id.
    fn into_response(self) -> Response {
        let mut response = self.code.parts().0.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// Gives a refusal its body; anything else stays as it is. Refusals that axum made itself become ours.
#[must_use]
pub fn render(mut response: Response, request_id: &str) -> Response {
    let status = response.status();
    let problem = match response.extensions_mut().remove::<Problem>() {
        Some(problem) => problem,
        None if status.is_client_error() || status.is_server_error() => foreign(status),
        None => return response,
    };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    response.headers_mut().remove(header::CONTENT_LENGTH);
    if status == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
    }
    *response.body_mut() = Body::from(problem.body(request_id).to_string());
    response
}

fn foreign(status: StatusCode) -> Problem {
    match status {
        StatusCode::METHOD_NOT_ALLOWED => {
            Problem::new(Code::MethodNotAllowed, "This path does not take this method; see the header Allow.")
        }
        StatusCode::PAYLOAD_TOO_LARGE => Problem::new(Code::TooLong, "The request's body is too long."),
        StatusCode::NOT_FOUND => Problem::new(Code::NotFound, "There is nothing at this path."),
        status if status.is_client_error() => Problem::new(Code::BadRequest, "The request is malformed."),
        _ => Problem::new(Code::InternalError, "The request failed."),
    }
}

impl From<CatalogError> for Problem {
    fn from(error: CatalogError) -> Problem {
        match &error {
            CatalogError::Exists { what } => Problem::new(Code::Conflict, format!("There is {what} already.")),
            CatalogError::NotFound { what } => Problem::new(Code::NotFound, format!("There is no such thing: {what}.")),
            CatalogError::Stale { what } => {
                Problem::new(Code::Conflict, format!("Somebody else changed {what} at the same time; try again."))
            }
            CatalogError::Refused(why) => Problem::new(Code::Invalid, *why),
            _ if error.is_unavailable() => {
                tracing::warn!(error = causes(&error), "the catalog is away");
                Problem::new(Code::Unavailable, "The catalog is not available; try again in a moment.")
            }
            _ => {
                tracing::error!(error = causes(&error), "the catalog failed");
                Problem::new(Code::InternalError, "The request failed.")
            }
        }
    }
}

impl From<ReconcileError> for Problem {
    /// Whoever provisions operates the workspace, so they hear PostgreSQL's reason.
    fn from(error: ReconcileError) -> Problem {
        let passes = error.passes();
        match error {
            ReconcileError::Catalog(error) => error.into(),
            error if passes => {
                Problem::new(Code::Unavailable, error.to_string()).with("reason", json!("server_unreachable"))
            }
            error => {
                tracing::error!(%error, "cannot bring a database to what it should be");
                Problem::new(Code::InternalError, error.to_string())
            }
        }
    }
}

impl From<CredentialError> for Problem {
    fn from(error: CredentialError) -> Problem {
        match error {
            CredentialError::Catalog(error) => error.into(),
            CredentialError::Profile(error) => error.into(),
            CredentialError::UnknownKind { allowed } => {
                let text = format!("This workspace has no such kind of credential; it has: {}.", allowed.join(", "));
                Problem::new(Code::BadRequest, text).with("allowed", json!(allowed))
            }
            CredentialError::Internal => Problem::new(
                Code::Forbidden,
                "This role is the platform's own: it has no credential that could be given away.",
            ),
            CredentialError::NotProvisioned => not_active("provisioning"),
            CredentialError::NotKept => Problem::new(
                Code::SecretNotKept,
                "No copy of this password is kept. Rotate it: the new one is shown once.",
            ),
        }
    }
}

impl From<CreateError> for Problem {
    fn from(error: CreateError) -> Problem {
        match error {
            CreateError::Catalog(error) => error.into(),
            CreateError::Credential(error) => error.into(),
            CreateError::NoServer(error) => Problem::new(Code::Unavailable, format!("Nothing was created: {error}."))
                .with("reason", json!("server_unreachable")),
            CreateError::Unfinished { id, error } => Problem::from(error).with("id", json!(id)),
        }
    }
}

/// D14: the workspace is there, its database is not ready.
#[must_use]
pub fn not_active(status: &str) -> Problem {
    let text = format!("The workspace's database is not active but {status}: call provision, and look at status.");
    Problem::new(Code::WorkspaceNotActive, text).with("status_of_plane", json!(status))
}

/// An error with everything that caused it, for the log.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text.push_str(": ");
        text.push_str(&next.to_string());
        cause = next.source();
    }
    text
}
