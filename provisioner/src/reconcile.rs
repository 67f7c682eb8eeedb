//! Makes each workspace's database what the catalog says it should be: wake or tick → observe → plan → apply.
//!
//! First provisioning, what a crash left behind, and what somebody dropped or altered by hand are the same run. One thing
//! the tick does not do by itself: a database that was finished and is gone is reported as `missing` and restored when
//! `provision` is called (D24), because what customers kept in it does not come back with it.
//!
//! An advisory lock per database, taken in the server's maintenance database, keeps two sidecars (and two requests)
//! apart. It belongs to the connection, so it cannot outlive who holds it.

pub mod apply;
pub mod intent;
pub mod observe;
pub mod plan;
pub mod step;

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use jiff::Timestamp;
use portcullis_catalog::{Actor, CatalogError, PlaneStatus, Workspace};
use portcullis_policy::grants;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::Provisioner;
use crate::ops::credentials;
use crate::server::{ServerAccess, ServerError, Session};
use intent::{Intent, KindIntent, LoginIntent};
use observe::{Inside, Observed, Record};
use step::Step;

/// Rounds of observe → plan → apply: one that works, one that finds nothing left, and a spare for a race.
const ROUNDS: usize = 3;
/// Workspaces looked at side by side in a tick.
const TICK_PARALLEL: usize = 4;
/// Workspaces read from the catalog at a time.
const PAGE: u32 = 500;

/// Why a workspace could not be brought to what it should be.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The catalog failed.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The server failed.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The workspace names something that this process does not know.
    #[error("the configuration has no {what} named {name}")]
    Unknown {
        /// A server or a profile.
        what: &'static str,
        /// Its name.
        name: String,
    },
}

impl ReconcileError {
    /// Whether it is likely to pass without anybody's help.
    #[must_use]
    pub fn passes(&self) -> bool {
        match self {
            ReconcileError::Catalog(error) => error.is_unavailable(),
            ReconcileError::Server(error) => error.is_unreachable(),
            ReconcileError::Unknown { .. } => false,
        }
    }
}

/// What to do with a finished database that is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfMissing {
    /// Make it again, empty.
    Restore,
    /// Say so in the plane's status.
    Report,
}

/// What a run found and did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Whether this run finished the database for the first time.
    pub created: bool,
    /// What had to be put right in a database that had been finished before.
    pub repaired: Vec<String>,
    /// What was altered by hand and is left as it is, because putting it right would take something away.
    pub unrepaired: Vec<String>,
    /// The database is gone and was not restored.
    pub missing: bool,
    /// `full`, or `partial` where the provisioner is no superuser.
    pub walls: &'static str,
}

/// Brings one workspace to what it should be and records how that went.
///
/// # Errors
/// Whatever stopped it; the plane's `last_error` then says the same, and the next tick tries again.
pub async fn reconcile(
    provisioner: &Provisioner,
    workspace: &Workspace,
    if_missing: IfMissing,
) -> Result<Outcome, ReconcileError> {
    let result = run(provisioner, workspace, if_missing).await;
    if let Err(error) = &result {
        record_failure(provisioner, workspace, error).await;
    }
    result
}

async fn run(
    provisioner: &Provisioner,
    workspace: &Workspace,
    if_missing: IfMissing,
) -> Result<Outcome, ReconcileError> {
    let server = provisioner.server(workspace)?;
    let maintenance = Session::open(server, &server.database).await?;
    lock(&maintenance, &workspace.database).await?;
    // Read again under the lock: somebody else may just have finished the same work.
    let workspace = provisioner.store.workspace(workspace.id.as_str()).await?;
    let workspace = workspace.ok_or(CatalogError::NotFound { what: "the workspace" })?;
    credentials::ensure(provisioner, &workspace).await?;
    let intent = intent_of(provisioner, &workspace).await?;
    let finished_before = workspace.plane.schema_version.is_some();
    let mut outcome = Outcome { created: !finished_before, ..Outcome::default() };
    for round in 1..=ROUNDS {
        let observed = observe(provisioner, server, &maintenance, &workspace, &intent).await?;
        let steps = plan::plan(&intent, &observed);
        if steps.is_empty() {
            outcome.walls = observed.inside.as_ref().map_or("partial", Inside::walls);
            if let (Some(record), Some(inside)) = (&observed.record, &observed.inside) {
                outcome.unrepaired = record.still_unrepaired(inside);
            }
            outcome.repaired.retain(|name| !outcome.unrepaired.contains(name));
            finish(provisioner, &workspace, &outcome).await?;
            return Ok(outcome);
        }
        if finished_before && observed.cluster.database.is_none() && if_missing == IfMissing::Report && round == 1 {
            report_missing(provisioner, &workspace).await?;
            return Ok(Outcome { missing: true, ..outcome });
        }
        if round == ROUNDS {
            let left = steps.iter().flat_map(Step::repairs).collect::<Vec<_>>().join(", ");
            return Err(ServerError::Unsettled { rounds: ROUNDS - 1, left }.into());
        }
        if finished_before {
            outcome.repaired.extend(steps.iter().flat_map(Step::repairs));
            set_plane(provisioner, &workspace, PlaneStatus::Repairing, None, None).await?;
        }
        match apply::apply(server, &maintenance, &intent, &steps).await {
            Ok(Some(inside)) => {
                let (major, before) = (observed.cluster.major, observed.record.as_ref());
                let record = Record::laid_out(intent.digest(), major, inside.objects, before);
                remember(provisioner, &workspace, &record).await?;
            }
            Ok(None) => {}
            // Somebody made the same thing meanwhile: look again.
            Err(error) if error.is_race() => info!(workspace = %workspace.id, %error, "looking again"),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(outcome)
}

/// Runs until `stop`: everything at the start and at every tick, one workspace when it is woken for it.
pub async fn follow(provisioner: Arc<Provisioner>, tick: Duration, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(tick);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
            () = provisioner.wake.notified() => {}
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = everything(&provisioner) => {}
        }
    }
}

/// Looks at every workspace once, and forgets logins whose time is over.
pub async fn everything(provisioner: &Provisioner) {
    let actor = Actor::program("reconcile");
    if let Err(error) = provisioner.store.expire_logins(&actor, Timestamp::now()).await {
        warn!(%error, "cannot record the end of logins");
    }
    if let Err(error) = provisioner.store.forget_old_observations().await {
        warn!(%error, "cannot forget old observations");
    }
    if let Err(error) = provisioner.store.forget_old_answers(Timestamp::now()).await {
        warn!(%error, "cannot forget old answers");
    }
    let mut after: Option<String> = None;
    loop {
        let page = match provisioner.store.workspaces(after.as_deref(), PAGE).await {
            Ok(page) => page,
            Err(error) => {
                warn!(%error, "cannot read the workspaces");
                return;
            }
        };
        let Some(last) = page.last() else { return };
        after = Some(last.name.clone());
        let open = page.iter().filter(|w| !matches!(w.plane.status, PlaneStatus::Suspended | PlaneStatus::Missing));
        let runs = futures_util::stream::iter(open.cloned().collect::<Vec<_>>());
        runs.for_each_concurrent(TICK_PARALLEL, |workspace| async move {
            match reconcile(provisioner, &workspace, IfMissing::Report).await {
                Ok(outcome) if !outcome.repaired.is_empty() => {
                    warn!(workspace = %workspace.id, repaired = ?outcome.repaired, "repaired a database");
                }
                Ok(outcome) if outcome.missing => warn!(workspace = %workspace.id, "the database is gone"),
                Ok(_) => {}
                Err(error) => warn!(workspace = %workspace.id, %error, "cannot bring a database to what it should be"),
            }
        })
        .await;
    }
}

async fn lock(maintenance: &Session, database: &str) -> Result<(), ServerError> {
    let sql = "SELECT pg_advisory_lock(hashtextextended('portcullis:' || $1::text, 0))";
    maintenance.rows("waiting for another sidecar", sql, &[&database]).await.map(|_| ())
}

/// What the server holds of it now, and what was remembered of it.
///
/// # Errors
/// When the server or the catalog go away or refuse.
pub async fn observe(
    provisioner: &Provisioner,
    server: &ServerAccess,
    maintenance: &Session,
    workspace: &Workspace,
    intent: &Intent,
) -> Result<Observed, ReconcileError> {
    let cluster = observe::cluster(maintenance, intent).await?;
    let mut inside = None;
    if cluster.database.is_some() {
        let session = Session::open(server, &intent.database).await?;
        inside = Some(observe::inside(&session, intent).await?);
    }
    let record = provisioner.store.layout(&workspace.id).await?;
    // What cannot be read any more was written by another release: laid out again, it is written anew.
    let record = record.and_then(|text| serde_json::from_str(&text).ok());
    Ok(Observed { cluster, inside, record })
}

async fn remember(provisioner: &Provisioner, workspace: &Workspace, record: &Record) -> Result<(), ReconcileError> {
    let text = serde_json::to_string(record).unwrap_or_default();
    provisioner.store.record_layout(&workspace.id, &text).await?;
    Ok(())
}

async fn finish(provisioner: &Provisioner, workspace: &Workspace, outcome: &Outcome) -> Result<(), ReconcileError> {
    let version = provisioner.profile(workspace)?.schema_version();
    let error = (!outcome.unrepaired.is_empty()).then(|| {
        format!("altered by hand, and left so because a repair would lose data: {}", outcome.unrepaired.join(", "))
    });
    // Read anew: a repair has set the status on its way.
    let now = provisioner.store.workspace(workspace.id.as_str()).await?;
    let plane = &now.ok_or(CatalogError::NotFound { what: "the workspace" })?.plane;
    let same = plane.status == PlaneStatus::Active
        && plane.last_error == error
        && plane.schema_version.as_deref() == Some(version);
    if same {
        return Ok(());
    }
    if outcome.walls == "partial" {
        warn!(workspace = %workspace.id, "the server's own wall stands only in part: the provisioner is no superuser");
    }
    set_plane(provisioner, workspace, PlaneStatus::Active, Some(version), error.as_deref()).await
}

async fn report_missing(provisioner: &Provisioner, workspace: &Workspace) -> Result<(), ReconcileError> {
    let why = format!("the database {} does not exist any more; provision restores it", workspace.database);
    set_plane(provisioner, workspace, PlaneStatus::Missing, None, Some(&why)).await
}

async fn set_plane(
    provisioner: &Provisioner,
    workspace: &Workspace,
    status: PlaneStatus,
    version: Option<&str>,
    error: Option<&str>,
) -> Result<(), ReconcileError> {
    let actor = Actor::program("reconcile");
    provisioner.store.set_plane(&actor, &workspace.id, status, version, error, Timestamp::now()).await?;
    Ok(())
}

/// A server that is away leaves the status as it was: what is in it has not changed. Anything else is a failure.
async fn record_failure(provisioner: &Provisioner, workspace: &Workspace, error: &ReconcileError) {
    if matches!(error, ReconcileError::Catalog(_)) {
        return;
    }
    let Ok(Some(now)) = provisioner.store.workspace(workspace.id.as_str()).await else { return };
    let status = if error.passes() { now.plane.status } else { PlaneStatus::Failed };
    let text = error.to_string();
    if now.plane.status == status && now.plane.last_error.as_deref() == Some(&text) {
        return;
    }
    if let Err(error) = set_plane(provisioner, workspace, status, None, Some(&text)).await {
        warn!(workspace = %workspace.id, %error, "cannot record a failure");
    }
}

/// What the catalog and the profile say about a workspace's database.
///
/// # Errors
/// When the catalog fails, the profile is unknown, or a sealed key does not open.
pub async fn intent_of(provisioner: &Provisioner, workspace: &Workspace) -> Result<Intent, ReconcileError> {
    let profile = provisioner.profile(workspace)?;
    let names = crate::names::Names::of(workspace.id.as_str());
    let backends = provisioner.store.backend_roles(&workspace.id).await?;
    let mut intent = Intent {
        database: workspace.database.clone(),
        owner: names.owner(),
        kinds: Vec::new(),
        internal: Vec::new(),
        migrations: profile.migrations.iter().map(|(_, sql)| (*sql).to_owned()).collect(),
        managed_schemas: profile.policy.managed_schemas().to_vec(),
        customer_schemas: profile.policy.customer_schemas().to_vec(),
        walls: crate::walls::walls(),
        closed_functions: crate::walls::closed_functions(),
        grants: Vec::new(),
        event_triggers: crate::walls::event_triggers(&profile.policy, &names.owner()),
        connections_max: connections_max(workspace),
    };
    for kind in profile.policy.kinds() {
        let group = names.group(kind.kind());
        intent.grants.extend(grants::grants(kind, &group));
        for other in profile.policy.kinds().iter().filter(|other| other.kind() != kind.kind()) {
            intent.grants.extend(grants::shared_grants(kind, &group, other, &names.group(other.kind())));
        }
        let Some(backend) = backends.iter().find(|role| role.kind == kind.kind()) else {
            intent.internal.push(group);
            continue;
        };
        let [a, b] = names.logins(kind.kind());
        let idle = if backend.login == a { b } else { a };
        let verifier = credentials::backend_verifier(&provisioner.proxy_key, backend)?;
        intent.kinds.push(KindIntent {
            group,
            active: LoginIntent { name: backend.login.clone(), verifier },
            idle,
            temporary_tables: kind.temporary_tables(),
            temp_file_limit: kind.temp_file_kb_max().map(|limit| format!("{limit}kB")),
        });
    }
    Ok(intent)
}

/// Backend connections per login, the server's own wall behind the proxies' limits. It follows a workspace's limit on
/// sessions upwards only: a limit that is lowered while sessions run sends none of them away, so each of them still needs
/// its connection, and so does every proxy that keeps one for the next session.
fn connections_max(workspace: &Workspace) -> i32 {
    let default = crate::ops::workspaces::MAX_CONNECTIONS;
    let sessions = workspace.settings.max_connections.map_or(default, |own| own.max(default));
    i32::try_from(sessions).unwrap_or(i32::MAX)
}
