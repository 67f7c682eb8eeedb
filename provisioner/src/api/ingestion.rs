//! Customer data access (D12–D17): is it there, make it, tell about it, reveal it, rotate it.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use jiff::Timestamp;
use portcullis_catalog::{LoginRecord, PlaneStatus, Workspace};
use serde_json::{Value, json};

use super::body::Fields;
use super::caller::Caller;
use super::error::{self, Code, Problem};
use super::formats::{Connection, Format};
use super::idempotency;
use crate::Provisioner;
use crate::ops::{credentials, workspaces};
use crate::reconcile::{self, IfMissing, Outcome};

/// One week.
const GRACE_SECONDS_MAX: u64 = 604_800;

/// `GET /status` (D5, D6, D12): never 404 for a workspace that exists; it is the call that tells one to provision.
///
/// # Errors
/// As the caller or the catalog fail.
pub async fn status(
    State(provisioner): State<Arc<Provisioner>>,
    caller: Caller,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let workspace = caller.current_workspace(&provisioner, &headers).await?;
    let mut plane = workspace.plane.clone();
    // Seen sooner here than by the next tick: whoever asks is about to use it.
    let gone = plane.status == PlaneStatus::Active
        && workspaces::is_database_there(&provisioner, &workspace).await == Some(false);
    if gone {
        reconcile::reconcile(&provisioner, &workspace, IfMissing::Report).await?;
        plane = caller.workspace(&provisioner, workspace.id.as_str()).await?.plane;
    }
    Ok(Json(status_body(&provisioner, &Workspace { plane, ..workspace })?).into_response())
}

fn status_body(provisioner: &Provisioner, workspace: &Workspace) -> Result<Value, Problem> {
    let policy = &provisioner.profile(workspace)?.policy;
    let mut writable: Vec<&str> =
        policy.kinds().iter().filter(|kind| kind.revealable()).flat_map(|kind| kind.writable_schemas()).collect();
    writable.sort_unstable();
    writable.dedup();
    let plane = &workspace.plane;
    let provisioned = plane.schema_version.is_some() && plane.status != PlaneStatus::Missing;
    Ok(json!({
        "provisioned": provisioned,
        "plane": {
            "status": plane.status.as_str(),
            "since": plane.since,
            "schema_version": plane.schema_version,
            "last_error": plane.last_error,
        },
        "workspace_id": workspace.id,
        "profile": workspace.profile,
        "writable_schemas": writable,
        "fork": null,
    }))
}

/// `POST /provision` (D13, D24): makes it, or restores what was deleted by hand. May be called as often as one likes; with
/// an `Idempotency-Key` a repeat gets the first answer.
///
/// # Errors
/// 503 with the reason when the server cannot be reached; what [`idempotency::once`] refuses.
pub async fn provision(
    State(provisioner): State<Arc<Provisioner>>,
    caller: Caller,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    caller.require_admin()?;
    Fields::parse(body)?.end()?;
    let workspace = caller.current_workspace(&provisioner, &headers).await?;
    let request = format!("POST provision {}", workspace.id);
    idempotency::once(&provisioner, &caller, &headers, &request, provisioned(&provisioner, &caller, &workspace)).await
}

async fn provisioned(
    provisioner: &Provisioner,
    caller: &Caller,
    workspace: &Workspace,
) -> Result<idempotency::Answer, Problem> {
    let outcome = reconcile::reconcile(provisioner, workspace, IfMissing::Restore).await?;
    let workspace = caller.workspace(provisioner, workspace.id.as_str()).await?;
    let mut body = status_body(provisioner, &workspace)?;
    body["created"] = json!(outcome.created);
    body["walls"] = json!(outcome.walls);
    let Outcome { created, repaired, unrepaired, .. } = outcome;
    for (member, names) in [("repaired", repaired), ("unrepaired", unrepaired)] {
        if !names.is_empty() {
            body[member] = json!(names);
        }
    }
    let status = if created { StatusCode::CREATED } else { StatusCode::OK };
    Ok(idempotency::Answer { status, body })
}

/// `GET /connection-uris/metadata` (D14).
///
/// # Errors
/// 409 unless the workspace is active.
pub async fn metadata(
    State(provisioner): State<Arc<Provisioner>>,
    caller: Caller,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    caller.require_admin()?;
    let workspace = active_workspace(&provisioner, &caller, &headers).await?;
    let logins = provisioner.store.logins(&workspace.id).await?;
    let policy = &provisioner.profile(&workspace)?.policy;
    let now = Timestamp::now();
    let role = |record: &LoginRecord| {
        let kind = policy.kind(&record.login.kind)?;
        let first = record.versions.iter().map(|version| version.created_at).min();
        let active = record.active();
        Some(json!({
            "kind": kind.kind(),
            "role": kind.contract_role(),
            "username": record.login.username,
            "credential_version": active.map(|version| version.version),
            "created_at": first,
            "rotated_at": active.filter(|version| version.version > 1).and_then(|version| version.activated_at),
            "previous_valid_until": record.previous_valid_until(now),
            "last_used_at": record.last_used_at,
        }))
    };
    let public = &provisioner.public;
    let roles: Vec<Value> = logins.iter().filter_map(role).collect();
    Ok(Json(json!({
        "project": {"id": provisioner.project.id, "name": provisioner.project.name},
        "database": {
            "name": workspace.database,
            "host": public.host,
            "port": public.port,
            "sslmode": public.sslmode.as_str(),
        },
        "roles": roles,
    }))
    .into_response())
}

/// `POST /connection-uris/reveal` (D15, D17).
///
/// # Errors
/// 400 for an unknown kind or format, 403 for the platform's role, 409 unless the workspace is active.
pub async fn reveal(
    State(provisioner): State<Arc<Provisioner>>,
    caller: Caller,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    caller.require_admin()?;
    let mut fields = Fields::parse(body)?;
    let (kind, format) = (fields.required_text("kind")?, fields.text("format")?);
    fields.end()?;
    let format = format.map_or(Ok(Format::Uri), |name| Format::parse(&name).ok_or_else(|| unknown_format(&name)))?;
    let workspace = active_workspace(&provisioner, &caller, &headers).await?;
    let credential = credentials::reveal(&provisioner, &caller.actor(), &workspace, &kind).await?;
    let connection = Connection::new(&provisioner.public, &workspace, &credential);
    Ok(Json(connection.body(format)).into_response())
}

/// `POST /connection-uris/rotate` (D16, D17).
///
/// # Errors
/// As `reveal`; 422 for a grace that is none.
pub async fn rotate(
    State(provisioner): State<Arc<Provisioner>>,
    caller: Caller,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    caller.require_admin()?;
    let mut fields = Fields::parse(body)?;
    let kind = fields.required_text("kind")?;
    let grace = fields.integer("grace_seconds", GRACE_SECONDS_MAX)?;
    let terminate = fields.flag("terminate_sessions")?;
    fields.end()?;
    let workspace = active_workspace(&provisioner, &caller, &headers).await?;
    let (actor, grace) = (caller.actor(), Duration::from_secs(grace));
    let rotated = credentials::rotate(&provisioner, &actor, &workspace, &kind, grace, terminate).await?;
    let connection = Connection::new(&provisioner.public, &workspace, &rotated.credential);
    let mut body = connection.body(Format::Uri);
    body["previous_valid_until"] = json!(rotated.previous_valid_until);
    body["sessions_terminated"] = json!(rotated.sessions_terminated);
    body["acknowledged"] = json!({
        "all": rotated.acknowledged.all,
        "proxies": rotated.acknowledged.proxies,
        "missing": rotated.acknowledged.missing,
    });
    Ok(Json(body).into_response())
}

async fn active_workspace(
    provisioner: &Provisioner,
    caller: &Caller,
    headers: &HeaderMap,
) -> Result<Workspace, Problem> {
    let workspace = caller.current_workspace(provisioner, headers).await?;
    match workspace.plane.status {
        PlaneStatus::Active => Ok(workspace),
        other => Err(error::not_active(other.as_str())),
    }
}

fn unknown_format(name: &str) -> Problem {
    let allowed: Vec<&str> = Format::ALL.iter().map(|(name, _)| *name).collect();
    let text = format!("There is no format `{name}`; there are: {}.", allowed.join(", "));
    Problem::new(Code::BadRequest, text).with("allowed", json!(allowed))
}
