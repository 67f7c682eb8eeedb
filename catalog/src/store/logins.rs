//! Logins and their versions: created, rotated, expired, read with their sealed passwords.
//!
//! What becomes of each version is decided by [`crate::credentials`]; here the decision is carried out.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;
use tokio_postgres::Row;

use super::{Change, Store};
use crate::{
    audit::{Actor, AuditEvent},
    credentials::{self, RotationError, Transition, VersionStatus},
    error::{CatalogError, Result},
    id::{LoginId, Revision, WorkspaceId},
    login::{Login, VersionState},
    rows::{self, LOGIN_COLUMNS},
    seal::Sealed,
};

/// A password to be, as its SCRAM keys under the login's salt and iterations.
#[derive(Clone)]
pub struct NewVersion {
    /// One more than the login's newest version: see [`LoginRecord::next_version`]. The sealed password is bound to it.
    pub version: i32,
    /// SCRAM's StoredKey.
    pub stored_key: [u8; 32],
    /// SCRAM's ServerKey.
    pub server_key: [u8; 32],
    /// The password itself, sealed, unless no passwords are kept.
    pub sealed_password: Option<Sealed>,
    /// When it ends by itself; `None` for never.
    pub valid_until: Option<Timestamp>,
}

impl std::fmt::Debug for NewVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewVersion").field("version", &self.version).finish_non_exhaustive()
    }
}

/// A login to be, with its first version.
#[derive(Debug)]
pub struct NewLogin {
    /// From [`LoginId::random`].
    pub id: LoginId,
    /// The workspace that it opens.
    pub workspace: WorkspaceId,
    /// Its kind; a workspace has one login of each.
    pub kind: String,
    /// The user name on the wire; unique.
    pub username: String,
    /// SCRAM's salt, 8 to 64 bytes, for all its versions.
    pub salt: Vec<u8>,
    /// SCRAM's iteration count, for all its versions.
    pub iterations: u32,
    /// The first password; its version is 1.
    pub version: NewVersion,
    /// The moment of creation.
    pub now: Timestamp,
}

/// A new password for a login.
#[derive(Debug)]
pub struct Rotation {
    /// The login.
    pub login: LoginId,
    /// The new password.
    pub version: NewVersion,
    /// How long the present one stays valid; zero revokes it at once.
    pub grace: Duration,
    /// Whether sessions that are open now are to end.
    pub terminate_sessions: bool,
    /// The moment of the rotation.
    pub now: Timestamp,
}

/// What a rotation did.
#[derive(Clone, Debug)]
pub struct Rotated {
    /// The revision that tells proxies.
    pub revision: Revision,
    /// The new version's number.
    pub version: i32,
    /// Until when the previous password is accepted; `None` if it is not.
    pub previous_valid_until: Option<Timestamp>,
    /// Versions that were revoked.
    pub revoked: Vec<i32>,
    /// The login's session epoch now; with `terminate_sessions` it was raised by one.
    pub session_epoch: i64,
}

/// A login with everything that the provisioner knows of it.
#[derive(Clone, Debug)]
pub struct LoginRecord {
    /// The login with its live versions.
    pub login: Login,
    /// Every version that there ever was, newest first.
    pub versions: Vec<VersionRecord>,
    /// When a password of it was last used to connect.
    pub last_used_at: Option<Timestamp>,
}

impl LoginRecord {
    /// The number of the version that a rotation must bring.
    pub fn next_version(&self) -> i32 {
        self.versions.iter().map(|v| v.version).max().unwrap_or(0) + 1
    }

    /// The active version.
    pub fn active(&self) -> Option<&VersionRecord> {
        self.versions.iter().find(|v| v.state == VersionState::Active)
    }

    /// Until when the version before the active one is accepted, if it is at `now`.
    pub fn previous_valid_until(&self, now: Timestamp) -> Option<Timestamp> {
        let grace = self.versions.iter().find(|v| v.state == VersionState::Grace)?;
        grace.valid_until.filter(|end| now < *end)
    }
}

/// One version of a login, as the provisioner sees it.
#[derive(Clone, Debug)]
pub struct VersionRecord {
    /// From 1.
    pub version: i32,
    /// Its state, as recorded: an end that has come is recorded by [`Store::expire_logins`].
    pub state: VersionState,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it became the active one.
    pub activated_at: Option<Timestamp>,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
    /// When it ends, or ended, by itself.
    pub valid_until: Option<Timestamp>,
    /// The password, sealed; gone once revoked.
    pub sealed_password: Option<Sealed>,
}

const NO_LOGIN: CatalogError = CatalogError::NotFound { what: "the login" };

impl Store {
    /// Creates a login whose first version is active at once.
    ///
    /// # Errors
    /// [`CatalogError::Exists`] if the user name is taken or the workspace has a login of this kind.
    pub async fn create_login(&self, actor: &Actor, new: &NewLogin) -> Result<Revision> {
        let mut client = self.client().await?;
        let change = Change::begin(&mut client, actor).await?;
        change
            .transaction
            .execute(
                "INSERT INTO catalog.login (id, workspace_id, kind, username, salt, iterations, revision) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7)",
                &[
                    &new.id.as_str(),
                    &new.workspace.as_str(),
                    &new.kind,
                    &new.username,
                    &new.salt,
                    &rows::unsigned::<u32, i32>(new.iterations)?,
                    &change.revision.0,
                ],
            )
            .await?;
        stage(&change, &new.id, &new.version, new.now).await?;
        carry_out(&change, &new.id, &[Transition::Activate { version: new.version.version }], new.now).await?;
        let detail = json!({"kind": new.kind, "username": new.username});
        let event = AuditEvent::new("login.create").workspace(&new.workspace).subject(new.id.as_str()).detail(detail);
        change.commit(&event).await
    }

    /// Replaces the password of a login.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`]; [`CatalogError::Stale`] if the new version is not the next one, because somebody else
    /// rotated meanwhile: read, derive, seal and try again.
    pub async fn rotate_login(&self, actor: &Actor, rotation: &Rotation) -> Result<Rotated> {
        let (id, version) = (&rotation.login, rotation.version.version);
        let mut client = self.client().await?;
        let change = Change::begin(&mut client, actor).await?;
        let row = change
            .transaction
            .query_opt(
                "UPDATE catalog.login SET revision = $2, session_epoch = session_epoch + $3 WHERE id = $1 \
                 RETURNING workspace_id, session_epoch, \
                 (SELECT max(version) FROM catalog.login_version WHERE login_id = $1)",
                &[&id.as_str(), &change.revision.0, &i64::from(rotation.terminate_sessions)],
            )
            .await?
            .ok_or(NO_LOGIN)?;
        let workspace = WorkspaceId::from_column(row.try_get(0)?)?;
        let (session_epoch, newest): (i64, Option<i32>) = (row.try_get(1)?, row.try_get(2)?);
        if version != newest.unwrap_or(0) + 1 {
            return Err(CatalogError::Stale { what: "the login" });
        }
        stage(&change, id, &rotation.version, rotation.now).await?;
        let versions = statuses(&change, id).await?;
        let steps = credentials::rotate(&versions, version, rotation.grace, rotation.now).map_err(|e| match e {
            RotationError::NotPending => CatalogError::Stale { what: "the login" },
            RotationError::GraceTooLong => CatalogError::Refused("the grace is too long"),
        })?;
        carry_out(&change, id, &steps, rotation.now).await?;
        let previous_valid_until = steps.iter().find_map(|step| match step {
            Transition::StartGrace { valid_until, .. } => Some(*valid_until),
            _ => None,
        });
        let revoked = revoked_by(&steps);
        let detail = json!({
            "version": version,
            "revoked": revoked,
            "previous_valid_until": previous_valid_until.map(|end| end.to_string()),
            "terminate_sessions": rotation.terminate_sessions,
        });
        let event = AuditEvent::new("login.rotate").workspace(&workspace).subject(id.as_str()).detail(detail);
        let revision = change.commit(&event).await?;
        Ok(Rotated { revision, version, previous_valid_until, revoked, session_epoch })
    }

    /// Records the end of every version whose time is over at `now`, and forgets its secrets. Proxies have refused them
    /// since; this tidies up. Returns what was revoked; call it again while it returns something.
    ///
    /// # Errors
    /// If the catalog is not available.
    pub async fn expire_logins(&self, actor: &Actor, now: Timestamp) -> Result<Vec<(LoginId, i32)>> {
        let due = "SELECT DISTINCT login_id FROM catalog.login_version \
                   WHERE state IN ('active', 'grace') AND valid_until <= $1 LIMIT 100";
        let mut client = self.client().await?;
        // Asked first without a change: nearly always there is nothing to do.
        let due = client.query(due, &[&now]).await?;
        if due.is_empty() {
            return Ok(Vec::new());
        }
        let change = Change::begin(&mut client, actor).await?;
        let mut revoked = Vec::new();
        for row in &due {
            let login = LoginId::from_column(row.try_get(0)?)?;
            let steps = credentials::expire(&statuses(&change, &login).await?, now);
            carry_out(&change, &login, &steps, now).await?;
            let touch = "UPDATE catalog.login SET revision = $2 WHERE id = $1";
            change.transaction.execute(touch, &[&login.as_str(), &change.revision.0]).await?;
            revoked.extend(revoked_by(&steps).into_iter().map(|version| (login.clone(), version)));
        }
        let listed: Vec<_> = revoked.iter().map(|(login, version)| json!([login.as_str(), version])).collect();
        change.commit(&AuditEvent::new("login.expire").detail(json!({"revoked": listed}))).await?;
        Ok(revoked)
    }

    /// The login of a kind.
    ///
    /// # Errors
    /// If the catalog is not available.
    pub async fn login(&self, workspace: &WorkspaceId, kind: &str) -> Result<Option<LoginRecord>> {
        Ok(self.logins(workspace).await?.into_iter().find(|record| record.login.kind == kind))
    }

    /// All logins of a workspace, in the order of their kinds.
    ///
    /// # Errors
    /// If the catalog is not available.
    pub async fn logins(&self, workspace: &WorkspaceId) -> Result<Vec<LoginRecord>> {
        let client = self.client().await?;
        let logins = format!(
            "SELECT {LOGIN_COLUMNS}, (SELECT max(at) FROM observed.last_used WHERE login_id = id) AS last_used_at \
             FROM catalog.login WHERE workspace_id = $1 ORDER BY kind"
        );
        let versions = "SELECT v.* FROM catalog.login_version v JOIN catalog.login l ON l.id = v.login_id \
                        WHERE l.workspace_id = $1 ORDER BY v.version DESC";
        let (logins, versions) = (
            client.query(&logins, &[&workspace.as_str()]).await?,
            client.query(versions, &[&workspace.as_str()]).await?,
        );
        logins.iter().map(|row| login_record(row, &versions)).collect()
    }
}

fn login_record(row: &Row, versions: &[Row]) -> Result<LoginRecord> {
    let mut login = rows::login(row)?;
    let mut records = Vec::new();
    for row in versions {
        if row.try_get::<_, &str>("login_id")? != login.id.as_str() {
            continue;
        }
        let record = version_record(row)?;
        if matches!(record.state, VersionState::Active | VersionState::Grace) {
            login.versions.push(rows::login_version(row)?);
        }
        records.push(record);
    }
    Ok(LoginRecord { login, versions: records, last_used_at: row.try_get("last_used_at")? })
}

fn version_record(row: &Row) -> Result<VersionRecord> {
    Ok(VersionRecord {
        version: row.try_get("version")?,
        state: VersionState::from_column(row.try_get("state")?)?,
        created_at: row.try_get("created_at")?,
        activated_at: row.try_get("activated_at")?,
        revoked_at: row.try_get("revoked_at")?,
        valid_until: row.try_get("valid_until")?,
        sealed_password: row.try_get::<_, Option<Vec<u8>>>("sealed_password")?.map(Sealed::from_bytes),
    })
}

/// Stores a version that is not accepted yet.
async fn stage(change: &Change<'_>, login: &LoginId, new: &NewVersion, now: Timestamp) -> Result<()> {
    change
        .transaction
        .execute(
            "INSERT INTO catalog.login_version \
             (login_id, version, state, stored_key, server_key, sealed_password, created_at, valid_until) \
             VALUES ($1, $2, 'pending', $3, $4, $5, $6, $7)",
            &[
                &login.as_str(),
                &new.version,
                &new.stored_key.as_slice(),
                &new.server_key.as_slice(),
                &new.sealed_password.as_ref().map(Sealed::as_bytes),
                &now,
                &new.valid_until,
            ],
        )
        .await?;
    Ok(())
}

async fn statuses(change: &Change<'_>, login: &LoginId) -> Result<Vec<VersionStatus>> {
    let sql =
        "SELECT version, state, valid_until FROM catalog.login_version WHERE login_id = $1 AND state <> 'revoked'";
    let rows = change.transaction.query(sql, &[&login.as_str()]).await?;
    let status = |row: &Row| {
        Ok(VersionStatus {
            version: row.try_get(0)?,
            state: VersionState::from_column(row.try_get(1)?)?,
            valid_until: row.try_get(2)?,
        })
    };
    rows.iter().map(status).collect()
}

/// Takes the steps in their order; the catalog's own constraints refuse a moment with three versions alive.
async fn carry_out(change: &Change<'_>, login: &LoginId, steps: &[Transition], now: Timestamp) -> Result<()> {
    const REVOKE: &str = "UPDATE catalog.login_version SET state = 'revoked', revoked_at = $3, stored_key = NULL, \
                          server_key = NULL, sealed_password = NULL WHERE login_id = $1 AND version = $2";
    const GRACE: &str =
        "UPDATE catalog.login_version SET state = 'grace', valid_until = $3 WHERE login_id = $1 AND version = $2";
    const ACTIVATE: &str =
        "UPDATE catalog.login_version SET state = 'active', activated_at = $3 WHERE login_id = $1 AND version = $2";
    for step in steps {
        let (sql, version, moment) = match step {
            Transition::Revoke { version } => (REVOKE, version, now),
            Transition::StartGrace { version, valid_until } => (GRACE, version, *valid_until),
            Transition::Activate { version } => (ACTIVATE, version, now),
        };
        if change.transaction.execute(sql, &[&login.as_str(), version, &moment]).await? != 1 {
            return Err(CatalogError::Stale { what: "the login" });
        }
    }
    Ok(())
}

fn revoked_by(steps: &[Transition]) -> Vec<i32> {
    steps.iter().filter_map(|s| if let Transition::Revoke { version } = s { Some(*version) } else { None }).collect()
}
