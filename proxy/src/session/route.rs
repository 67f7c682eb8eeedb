//! From a proven identity to where its statements go and what they are judged by.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use portcullis_catalog::{Login, PlaneStatus, PolicyDocument, Snapshot, WorkspaceId};
use portcullis_policy::{Policy, RolePolicy, Scope, VerdictCache};

use super::end::SessionEnd;
use super::exchange::ResultLimits;
use crate::upstream::Destination;

/// Where a session's statements go and what they are judged by. Immutable; a newer snapshot makes a newer one.
pub struct Route {
    /// The workspace.
    pub workspace: WorkspaceId,
    /// The database and the role behind the login.
    pub destination: Destination,
    /// What the login may do, and where: what its statements are judged by.
    pub scope: Scope,
    /// The policy document's digest, in hexadecimal.
    pub policy: Arc<str>,
    /// The workspace's own limit for one statement, where it has one.
    pub query_timeout: Option<Duration>,
    /// The most that one statement may give to the client.
    pub result_limits: ResultLimits,
    /// The most client sessions of the workspace, where it has its own limit.
    pub sessions_max: Option<u32>,
}

impl Route {
    /// The way of this login in this snapshot.
    ///
    /// # Errors
    /// When the workspace is gone or suspended, or has nothing for this kind of login yet.
    pub fn find(
        login: &Login,
        snapshot: &Snapshot,
        policies: &Policies,
        verdicts: &VerdictCache,
    ) -> Result<Self, SessionEnd> {
        let entry = snapshot.workspace(&login.workspace).ok_or(SessionEnd::WorkspaceClosed("not there any more"))?;
        let workspace = &entry.workspace;
        if workspace.plane.status == PlaneStatus::Suspended {
            return Err(SessionEnd::WorkspaceClosed("suspended"));
        }
        let closed = SessionEnd::WorkspaceClosed("not ready yet");
        let Some(backend) = entry.backend.get(&login.kind) else { return Err(closed) };
        let Some(document) = snapshot.policy(&workspace.profile) else { return Err(closed) };
        let Some((role, policy)) = policies.role(document, &login.kind) else { return Err(closed) };
        let of_workspace = ResultLimits { rows: workspace.settings.max_rows_per_query, bytes: None };
        let result_limits = of_workspace.and(ResultLimits { rows: role.rows_max(), bytes: role.bytes_max() });
        Ok(Self {
            workspace: workspace.id.clone(),
            destination: Destination::new(
                entry.server.clone(),
                workspace.database.clone(),
                backend.clone(),
                role.search_path(),
            ),
            scope: verdicts.scope(&role, &[workspace.database.clone(), workspace.alias.clone()]),
            policy,
            result_limits,
            query_timeout: workspace.settings.query_timeout_ms.map(Duration::from_millis),
            sessions_max: workspace.settings.max_connections,
        })
    }

    /// What the login may do.
    pub fn role(&self) -> &RolePolicy {
        self.scope.role()
    }

    /// Whether the login may connect under this database name.
    pub fn opens(&self, database: &str) -> bool {
        self.scope.database_names().iter().any(|name| name == database)
    }
}

/// Where the statements of every kind of login go that could log in now.
pub fn destinations<'a>(snapshot: &'a Snapshot, policies: &'a Policies) -> impl Iterator<Item = Destination> + 'a {
    let open = snapshot.workspaces().filter(|entry| entry.workspace.plane.status == PlaneStatus::Active);
    open.flat_map(move |entry| {
        let document = snapshot.policy(&entry.workspace.profile);
        entry.backend.iter().filter_map(move |(kind, backend)| {
            let (role, _) = policies.role(document?, kind)?;
            let database = entry.workspace.database.clone();
            Some(Destination::new(entry.server.clone(), database, backend.clone(), role.search_path()))
        })
    })
}

type Compiled = (Arc<str>, Option<Arc<Policy>>);

/// The compiled policies, by the digest of their documents.
#[derive(Default)]
pub struct Policies {
    compiled: Mutex<HashMap<[u8; 32], Compiled>>,
}

impl Policies {
    fn role(&self, document: &PolicyDocument, kind: &str) -> Option<(Arc<RolePolicy>, Arc<str>)> {
        /// Old documents leave when there are more than this; the profiles are a handful.
        const COMPILED_MAX: usize = 64;
        let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        if compiled.len() >= COMPILED_MAX && !compiled.contains_key(&document.digest) {
            compiled.clear();
        }
        let (digest, policy) = compiled.entry(document.digest).or_insert_with(|| compile(document));
        let role = policy.as_ref()?.kind(kind)?.clone();
        Some((role, digest.clone()))
    }
}

fn compile(document: &PolicyDocument) -> Compiled {
    let digest: String = document.digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let policy = match Policy::parse(&document.text) {
        Ok(policy) => Some(Arc::new(policy)),
        Err(errors) => {
            tracing::error!(profile = %document.name, %errors, "a policy document cannot be used; its logins are closed");
            None
        }
    };
    (digest.into(), policy)
}
