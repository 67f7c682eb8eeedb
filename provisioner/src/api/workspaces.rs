//! Workspaces (T4–T18) in their shapes to the letter.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use portcullis_catalog::{Mode, Workspace};
use serde_json::{Value, json};

use super::body::Fields;
use super::caller::Caller;
use super::error::{Code, Problem};
use super::formats::encoded;
use crate::Provisioner;
use crate::ops::workspaces::{self, MAX_CONNECTIONS, MAX_ROWS_PER_QUERY, Name, QUERY_TIMEOUT_MS, Wanted};

/// T15.
const MASK: &str = "••••••••";
/// What T8's field `database` says in answers.
const POSTGRESQL: &str = "PostgreSQL";
/// Workspaces read from the catalog at a time.
const PAGE: u32 = 1_000;
/// Workspaces in one answer at most.
const LIST_MAX: usize = 100_000;

/// `POST /workspaces` (T6–T12).
///
/// # Errors
/// 400 for what the contract does not have, 409 for a name that is taken, 503 when no server is there.
pub async fn create(
    State(provisioner): State<Arc<Provisioner>>,
    caller: Caller,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    caller.require_admin()?;
    let wanted = wanted(&provisioner, Fields::parse(body)?)?;
    let (workspace, credential) = workspaces::create(&provisioner, &caller.actor(), &wanted).await?;
    let (username, password) = (&credential.username, credential.password.expose());
    let public = &provisioner.public;
    let mut body = json!({
        "success": true,
        "http_status": 201,
        "code": "created",
        "id": workspace.id,
        "mode": workspace.mode.as_str(),
        "database": POSTGRESQL,
        "connection": {
            "host": public.host,
            "port": public.port,
            "database": workspace.alias,
            "user": username,
            "password": password,
        },
        "connection_string": connection_string(&provisioner, &workspace, username, password),
        "name": workspace.name,
        "profile": workspace.profile,
    });
    if workspace.mode == Mode::Tenant {
        body["blueprint"] = json!(workspace.name);
    }
    Ok((StatusCode::CREATED, Json(body)).into_response())
}

fn wanted(provisioner: &Provisioner, mut fields: Fields) -> Result<Wanted, Problem> {
    let bad = |text: &str| Problem::new(Code::BadRequest, text);
    let (name, database) = (fields.required_text("name")?, fields.required_text("database")?);
    let (mode, profile) = (fields.text("mode")?, fields.text("profile")?);
    fields.end()?;
    let name = Name::parse(&name).map_err(|why| bad(&format!("{why}.")).with("field", json!("name")))?;
    if !matches!(database.to_ascii_lowercase().as_str(), "postgresql" | "postgres") {
        return Err(bad("Only PostgreSQL is supported as `database`.").with("field", json!("database")));
    }
    // C14: a request with a mode is for a development workspace, unless it says otherwise.
    let default_profile = if mode.is_some() { "design" } else { "storage" };
    let profile = profile.unwrap_or_else(|| default_profile.to_owned());
    if provisioner.profiles.get(&profile).is_none() {
        let known: Vec<&str> = provisioner.profiles.iter().map(|known| known.policy.name()).collect();
        let text = format!("There is no profile `{profile}`; there are: {}.", known.join(", "));
        return Err(bad(&text).with("field", json!("profile")));
    }
    // C7: tenant is the default mode.
    let mode = mode.map_or(Some(Mode::Tenant), |mode| Mode::parse(&mode));
    let mode = mode.ok_or_else(|| bad("`mode` must be `tenant` or `control`.").with("field", json!("mode")))?;
    Ok(Wanted { name, mode, profile })
}

/// `GET /workspaces` (T4, T5).
///
/// # Errors
/// As the catalog fails.
pub async fn list(State(provisioner): State<Arc<Provisioner>>, caller: Caller) -> Result<Response, Problem> {
    let mut listed = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let page = provisioner.store.workspaces(after.as_deref(), PAGE).await?;
        let full = page.len() == PAGE as usize;
        after = page.last().map(|workspace| workspace.name.clone());
        listed.extend(page.iter().filter(|workspace| caller.may_see(&workspace.id)).map(entry));
        if !full || listed.len() >= LIST_MAX {
            break;
        }
    }
    Ok(Json(json!({"count": listed.len(), "workspaces": listed})).into_response())
}

fn entry(workspace: &Workspace) -> Value {
    let mut entry = json!({
        "id": workspace.id,
        "name": workspace.name,
        "mode": workspace.mode.as_str(),
        "database": POSTGRESQL,
        "created_at": workspace.created_at,
    });
    if workspace.mode == Mode::Tenant {
        entry["version"] = json!(0);
    }
    entry
}

/// `GET /workspaces/{id}`, by id or name (T14–T18, C8).
///
/// # Errors
/// 404 when there is none.
pub async fn get(
    State(provisioner): State<Arc<Provisioner>>,
    caller: Caller,
    path: Result<Path<String>, PathRejection>,
) -> Result<Response, Problem> {
    let Path(id) = path.map_err(|_| Problem::new(Code::BadRequest, "The path is not valid UTF-8."))?;
    let workspace = caller.workspace(&provisioner, &id).await?;
    let logins = provisioner.store.logins(&workspace.id).await?;
    let policy = &provisioner.profile(&workspace)?.policy;
    let primary = policy.primary().and_then(|kind| logins.iter().find(|record| record.login.kind == kind.kind()));
    let username = primary.map(|record| record.login.username.as_str()).unwrap_or_default();
    let settings = workspace.settings;
    let mut body = json!({
        "id": workspace.id,
        "name": workspace.name,
        "mode": workspace.mode.as_str(),
        "database": POSTGRESQL,
        "created_at": workspace.created_at,
        "profile": workspace.profile,
        "schema": [],
        "schema_error": null,
        "connection": {
            "host": provisioner.public.host,
            "port": provisioner.public.port,
            "database": workspace.alias,
            "username": username,
            "password": MASK,
        },
        "connection_string": connection_string(&provisioner, &workspace, username, MASK),
        "settings": {
            "query_timeout_ms": settings.query_timeout_ms.unwrap_or(QUERY_TIMEOUT_MS),
            "max_rows_per_query": settings.max_rows_per_query.unwrap_or(MAX_ROWS_PER_QUERY),
            "max_connections": settings.max_connections.unwrap_or(MAX_CONNECTIONS),
        },
    });
    if workspace.mode == Mode::Tenant {
        body["undeployed_changes"] = json!(0);
        body["version"] = json!(0);
    }
    Ok(Json(body).into_response())
}

/// T12: opens the database under the name that the contract gives it.
fn connection_string(provisioner: &Provisioner, workspace: &Workspace, username: &str, password: &str) -> String {
    let public = &provisioner.public;
    format!(
        "postgresql://{username}:{password}@{}:{}/{}?sslmode={}",
        super::formats::uri_host(&public.host),
        public.port,
        encoded(&workspace.alias),
        public.sslmode.as_str(),
    )
}
