//! Who is asking: `Authorization: Bearer pk_…`, checked in constant time, as a value that only this module can make.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use jiff::{SignedDuration, Timestamp};
use portcullis_catalog::{Actor, ApiKeyId, Workspace, WorkspaceId};

use super::RequestId;
use super::error::{Code, Problem};
use crate::Provisioner;
use crate::ops::keys::{self, PresentedKey};

/// The use of a key is recorded no more often than this.
const USED_EVERY: SignedDuration = SignedDuration::from_secs(60);

/// The header in which an organisation-wide key names the workspace that it means.
const X_WORKSPACE: &str = "x-workspace";

/// An authenticated caller.
#[derive(Debug, Clone)]
pub struct Caller {
    key: ApiKeyId,
    scopes: Vec<String>,
    workspace: Option<WorkspaceId>,
    request_id: String,
}

impl Caller {
    /// The caller as the audit names them.
    #[must_use]
    pub fn actor(&self) -> Actor {
        Actor { name: self.key.to_string(), request_id: Some(self.request_id.clone()) }
    }

    /// Only an admin may go on.
    ///
    /// # Errors
    /// 403 otherwise.
    pub fn require_admin(&self) -> Result<(), Problem> {
        if self.scopes.iter().any(|scope| scope == keys::ADMIN) {
            return Ok(());
        }
        Err(Problem::new(Code::SessionRequired, "This takes an admin session or an admin key."))
    }

    /// A workspace that this caller may see, by id or name (C8).
    ///
    /// # Errors
    /// 404 if there is none; the same for one that the key is not bound to, so that nobody learns of it.
    pub async fn workspace(&self, provisioner: &Provisioner, id_or_name: &str) -> Result<Workspace, Problem> {
        let found = provisioner.store.workspace(id_or_name).await?;
        found
            .filter(|workspace| self.may_see(&workspace.id))
            .ok_or_else(|| Problem::new(Code::NotFound, "There is no workspace of this id or name."))
    }

    /// The workspaces of a listing that this caller may see.
    #[must_use]
    pub fn may_see(&self, workspace: &WorkspaceId) -> bool {
        self.workspace.as_ref().is_none_or(|bound| bound == workspace)
    }

    /// The caller's current workspace: the one that the key is bound to, else the one that `X-Workspace` names.
    ///
    /// # Errors
    /// 400 when it is not named, 403 when the key is bound to another one, 404 when there is none.
    pub async fn current_workspace(
        &self,
        provisioner: &Provisioner,
        headers: &HeaderMap,
    ) -> Result<Workspace, Problem> {
        let mut given = headers.get_all(X_WORKSPACE).iter();
        let named = match (given.next(), given.next()) {
            (None, _) => None,
            (Some(value), None) => Some(
                std::str::from_utf8(value.as_bytes())
                    .map_err(|_| Problem::new(Code::BadRequest, "The header X-Workspace is not valid UTF-8."))?,
            ),
            (Some(_), Some(_)) => {
                return Err(Problem::new(Code::BadRequest, "The header X-Workspace must be given once."));
            }
        };
        match (&self.workspace, named) {
            (None, None) => Err(Problem::new(
                Code::BadRequest,
                "This key belongs to no single workspace: name one in the header X-Workspace (id or name).",
            )),
            (None, Some(named)) => self.workspace(provisioner, named).await,
            (Some(bound), None) => self.workspace(provisioner, bound.as_str()).await,
            (Some(bound), Some(named)) => {
                let workspace = self.workspace(provisioner, bound.as_str()).await?;
                if named == workspace.id.as_str() || named == workspace.name {
                    return Ok(workspace);
                }
                Err(Problem::new(Code::ScopeDenied, "This key is bound to another workspace than X-Workspace names."))
            }
        }
    }
}

impl FromRequestParts<Arc<Provisioner>> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, provisioner: &Arc<Provisioner>) -> Result<Caller, Problem> {
        let request_id = parts.extensions.get::<RequestId>().map(|RequestId(id)| id.clone()).unwrap_or_default();
        authenticate(provisioner, &parts.headers, request_id, Timestamp::now()).await
    }
}

async fn authenticate(
    provisioner: &Provisioner,
    headers: &HeaderMap,
    request_id: String,
    now: Timestamp,
) -> Result<Caller, Problem> {
    let mut given = headers.get_all(header::AUTHORIZATION).iter();
    let text = match (given.next(), given.next()) {
        (Some(value), None) => value.to_str().unwrap_or_default(),
        _ => return Err(Problem::new(Code::AuthRequired, "Send an API key: `Authorization: Bearer pk_…`.")),
    };
    let wrong = || Problem::new(Code::Unauthorized, "This API key is not valid.");
    let (scheme, token) = text.split_once(' ').ok_or_else(wrong)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(wrong());
    }
    let presented = PresentedKey::parse(token.trim()).ok_or_else(wrong)?;
    let stored = provisioner.store.api_key(&presented.id).await?;
    let hash = stored.as_ref().map_or([0; 32], |key| key.secret_hash);
    let same = presented.is(&hash);
    let key = stored.filter(|key| same && key.is_accepted(now)).ok_or_else(wrong)?;
    if key.last_used_at.is_none_or(|at| now.duration_since(at) > USED_EVERY) {
        provisioner.store.api_key_used(&key.id, now).await?;
    }
    Ok(Caller { key: key.id, scopes: key.scopes, workspace: key.workspace, request_id })
}
