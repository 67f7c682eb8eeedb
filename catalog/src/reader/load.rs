//! Loads what changed since a snapshot, in one consistent read.
//!
//! Writers raise the revision first and commit one after the other, so a read that sees revision N sees every change up
//! to N and none after it. Only the views `catalog.proxy_*` are read.

use std::collections::HashMap;

use tokio_postgres::{Client, IsolationLevel, Row, Transaction, types::Type};

use crate::{
    error::{CatalogError, Result},
    id::Revision,
    login::Login,
    migrate::READER_NEEDS,
    rows::{self, BACKEND_COLUMNS, LOGIN_COLUMNS, POLICY_COLUMNS, SERVER_COLUMNS, WORKSPACE_COLUMNS},
    snapshot::{Delta, Removal, Snapshot},
};

/// What changed since `snapshot`; `None` if nothing did. One round trip in that case.
pub(super) async fn changes(client: &mut Client, snapshot: &Snapshot) -> Result<Option<Delta>> {
    let head = Head::read(client.query_typed(HEAD, &[]).await?)?;
    if head.revision == snapshot.revision() && snapshot.revision() > Revision(0) {
        return Ok(None);
    }
    let read = client.build_transaction().isolation_level(IsolationLevel::RepeatableRead).read_only(true);
    let transaction = read.start().await?;
    let delta = Box::pin(read_delta(&transaction, snapshot.revision())).await?;
    transaction.commit().await?;
    Ok(Some(delta))
}

/// Everything there is.
pub(super) async fn everything(client: &mut Client) -> Result<Delta> {
    let read = client.build_transaction().isolation_level(IsolationLevel::RepeatableRead).read_only(true);
    let transaction = read.start().await?;
    let delta = Box::pin(read_delta(&transaction, Revision(0))).await?;
    transaction.commit().await?;
    Ok(delta)
}

const HEAD: &str = "SELECT value, horizon, schema_version FROM catalog.proxy_revision";

struct Head {
    revision: Revision,
    horizon: Revision,
}

impl Head {
    fn read(rows: Vec<Row>) -> Result<Self> {
        let row = rows.first().ok_or(CatalogError::Corrupt { what: "revision" })?;
        let version: Option<i32> = row.try_get(2)?;
        if version.unwrap_or(0) < READER_NEEDS {
            let found = version.unwrap_or(0);
            return Err(CatalogError::Schema(format!(
                "it is at version {found}, and this proxy needs {READER_NEEDS}: start the newer provisioner first"
            )));
        }
        Ok(Self { revision: Revision(row.try_get(0)?), horizon: Revision(row.try_get(1)?) })
    }
}

async fn read_delta(transaction: &Transaction<'_>, since: Revision) -> Result<Delta> {
    let head = Head::read(transaction.query_typed(HEAD, &[]).await?)?;
    // Older than what is remembered of removals, or newer than the catalog (it was restored from a backup): start again.
    let whole = since == Revision(0) || since < head.horizon || head.revision < since;
    let since = if whole { Revision(0) } else { since };
    let select = |columns: &str, view: &str| format!("SELECT {columns} FROM catalog.{view} WHERE revision > $1");
    let [servers, policies, workspaces, backend_roles, logins, versions, removals] = [
        select(SERVER_COLUMNS, "proxy_server"),
        select(POLICY_COLUMNS, "proxy_policy"),
        select(WORKSPACE_COLUMNS, "proxy_workspace"),
        select(BACKEND_COLUMNS, "proxy_backend_role"),
        select(LOGIN_COLUMNS, "proxy_login"),
        format!("{} ORDER BY version DESC", select("*", "proxy_login_version")),
        select("relation, key", "proxy_removal"),
    ];
    // Sent together, answered in order.
    let ask = |sql: String| async move { transaction.query_typed(&sql, &[(&since.0, Type::INT8)]).await };
    let (servers, policies, workspaces, backend_roles, logins, versions, removals) = tokio::try_join!(
        ask(servers),
        ask(policies),
        ask(workspaces),
        ask(backend_roles),
        ask(logins),
        ask(versions),
        ask(removals),
    )?;
    Ok(Delta {
        revision: head.revision,
        whole,
        removals: if whole { Vec::new() } else { collect(&removals, removal)? },
        servers: collect(&servers, rows::server)?,
        policies: collect(&policies, rows::policy)?,
        workspaces: collect(&workspaces, rows::workspace)?,
        backend_roles: collect(&backend_roles, rows::backend_role)?,
        logins: with_versions(&logins, &versions)?,
    })
}

fn collect<T>(rows: &[Row], read: impl Fn(&Row) -> Result<T>) -> Result<Vec<T>> {
    rows.iter().map(read).collect()
}

fn removal(row: &Row) -> Result<Removal> {
    match (row.try_get("relation")?, row.try_get("key")?) {
        ("login", username) => Ok(Removal::Login { username }),
        ("workspace", id) => Ok(Removal::Workspace { id }),
        _ => Err(CatalogError::Corrupt { what: "removal" }),
    }
}

fn with_versions(logins: &[Row], versions: &[Row]) -> Result<Vec<Login>> {
    let mut logins = collect(logins, rows::login)?;
    let places: HashMap<_, _> = logins.iter().enumerate().map(|(place, login)| (login.id.clone(), place)).collect();
    for row in versions {
        let id = crate::id::LoginId::from_column(row.try_get("login_id")?)?;
        let place = *places.get(&id).ok_or(CatalogError::Corrupt { what: "login's version" })?;
        logins[place].versions.push(rows::login_version(row)?);
    }
    Ok(logins)
}
