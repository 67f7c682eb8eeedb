//! Brings the catalog's schema to the version that this program needs: numbered files, forward only, all or none.
//!
//! Whoever migrates holds an advisory lock, so two sidecars that start together take turns. Each applied file is
//! recorded with its digest: a file that was changed after it was applied, or a version that this program does not
//! know, is refused rather than guessed at.

use aws_lc_rs::digest::{SHA256, digest};
use tokio_postgres::{Client, Transaction};

use crate::error::{CatalogError, Result};

/// One file of `catalog/schema`.
struct Migration {
    version: i32,
    name: &'static str,
    sql: &'static str,
}

const MIGRATIONS: [Migration; 5] = [
    Migration { version: 1, name: "intent", sql: include_str!("../schema/0001_intent.sql") },
    Migration { version: 2, name: "observed", sql: include_str!("../schema/0002_observed.sql") },
    Migration { version: 3, name: "proxy_views", sql: include_str!("../schema/0003_proxy_views.sql") },
    Migration { version: 4, name: "layout", sql: include_str!("../schema/0004_layout.sql") },
    Migration { version: 5, name: "idempotency", sql: include_str!("../schema/0005_idempotency.sql") },
];

/// The schema that the store needs and makes.
pub const SCHEMA_VERSION: i32 = 5;

/// The schema that a reader needs at least: the newest migration that touched what it reads or writes. Proxies may be
/// upgraded before the provisioner where this one is not new.
pub(crate) const READER_NEEDS: i32 = 3;

/// Any constant that no other program on the catalog's database uses: "portcull" in ASCII.
const ADVISORY_LOCK: i64 = 0x706f_7274_6375_6c6c;

/// Applies what is missing and grants a proxy's role what it needs; see [`crate::Store::migrate`].
pub(crate) async fn migrate(client: &mut Client, proxy_role: &str) -> Result<()> {
    let transaction = client.transaction().await?;
    // Waiting for another sidecar's migration may take longer than a statement should.
    transaction.batch_execute("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0").await?;
    transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&ADVISORY_LOCK]).await?;
    prepare(&transaction).await?;
    let applied = applied(&transaction).await?;
    verify(&applied)?;
    for migration in &MIGRATIONS[applied.len()..] {
        apply(&transaction, migration).await?;
    }
    grant(&transaction, proxy_role).await?;
    transaction.commit().await?;
    Ok(())
}

async fn prepare(transaction: &Transaction<'_>) -> Result<()> {
    // Asked first, because IF NOT EXISTS would want the right to create even where there is nothing to do.
    let row = transaction.query_one("SELECT to_regclass('catalog.migration') IS NOT NULL", &[]).await?;
    if row.try_get(0)? {
        return Ok(());
    }
    transaction
        .batch_execute(
            "CREATE SCHEMA IF NOT EXISTS catalog; CREATE SCHEMA IF NOT EXISTS observed; \
             CREATE TABLE catalog.migration (version integer PRIMARY KEY, name text NOT NULL, digest bytea NOT NULL, \
             applied_at timestamptz NOT NULL DEFAULT now())",
        )
        .await?;
    Ok(())
}

/// Version and digest of what was applied, in order.
async fn applied(transaction: &Transaction<'_>) -> Result<Vec<(i32, Vec<u8>)>> {
    let rows = transaction.query("SELECT version, digest FROM catalog.migration ORDER BY version", &[]).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

fn verify(applied: &[(i32, Vec<u8>)]) -> Result<()> {
    if applied.len() > MIGRATIONS.len() {
        let newest = applied.last().map_or(0, |(version, _)| *version);
        return Err(CatalogError::Schema(format!(
            "it is at version {newest}, and this program knows only {SCHEMA_VERSION}: run the newer program"
        )));
    }
    for ((version, stored), known) in applied.iter().zip(&MIGRATIONS) {
        if *version != known.version || stored != digest(&SHA256, known.sql.as_bytes()).as_ref() {
            let (version, name) = (known.version, known.name);
            return Err(CatalogError::Schema(format!(
                "migration {version:04}_{name} is not the one that was applied: migrations are never edited"
            )));
        }
    }
    Ok(())
}

async fn apply(transaction: &Transaction<'_>, migration: &Migration) -> Result<()> {
    transaction.batch_execute(migration.sql).await?;
    let digest = digest(&SHA256, migration.sql.as_bytes());
    transaction
        .execute(
            "INSERT INTO catalog.migration (version, name, digest) VALUES ($1, $2, $3)",
            &[&migration.version, &migration.name, &digest.as_ref()],
        )
        .await?;
    tracing::info!(version = migration.version, name = migration.name, "applied a migration of the catalog");
    Ok(())
}

/// Everything that a proxy's role may do; what it could do before is taken away first, so that this is the whole list.
async fn grant(transaction: &Transaction<'_>, proxy_role: &str) -> Result<()> {
    let row = transaction
        .query_one(
            "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1), \
             (SELECT rolsuper FROM pg_roles WHERE rolname = $1), current_user::text = $1",
            &[&proxy_role],
        )
        .await?;
    let (exists, superuser, own): (bool, Option<bool>, bool) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    if !exists {
        return Err(CatalogError::Schema(format!(
            "the role \"{proxy_role}\" does not exist: create it as deploy/bootstrap.sql does"
        )));
    }
    if superuser == Some(true) || own {
        return Err(CatalogError::Schema(format!(
            "the role \"{proxy_role}\" may do everything: proxies need their own"
        )));
    }
    let role = quote_identifier(proxy_role);
    let views = transaction
        .query("SELECT viewname::text FROM pg_views WHERE schemaname = 'catalog' AND viewname LIKE 'proxy\\_%'", &[])
        .await?;
    let mut sql = format!(
        "REVOKE ALL ON SCHEMA catalog, observed FROM {role}; \
         REVOKE ALL ON ALL TABLES IN SCHEMA catalog, observed FROM {role}; \
         GRANT USAGE ON SCHEMA catalog, observed TO {role}; \
         GRANT SELECT, INSERT ON observed.proxy, observed.termination, observed.last_used TO {role}; \
         GRANT UPDATE (heartbeat_at, stopped_at, revision) ON observed.proxy TO {role}; \
         GRANT UPDATE (sessions) ON observed.termination TO {role}; \
         GRANT UPDATE (at) ON observed.last_used TO {role}; \
         GRANT INSERT ON observed.audit TO {role};"
    );
    for view in &views {
        let view: &str = view.try_get(0)?;
        sql.push_str(&format!("GRANT SELECT ON catalog.{} TO {role};", quote_identifier(view)));
    }
    transaction.batch_execute(&sql).await?;
    Ok(())
}

/// <https://www.postgresql.org/docs/current/sql-syntax-lexical.html#SQL-SYNTAX-IDENTIFIERS>
fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn migrations_are_numbered_from_one_and_named_as_their_files() {
        let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("schema");
        let mut files: Vec<_> =
            std::fs::read_dir(directory).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
        files.sort();
        let names: Vec<_> = MIGRATIONS.iter().map(|m| format!("{:04}_{}.sql", m.version, m.name)).collect();
        assert_eq!(files, names);
        assert!(MIGRATIONS.iter().zip(1..).all(|(migration, number)| migration.version == number));
        assert_eq!(usize::try_from(SCHEMA_VERSION).unwrap(), MIGRATIONS.len());
    }

    #[test]
    fn changed_and_unknown_migrations_are_refused() {
        let good: Vec<_> =
            MIGRATIONS.iter().map(|m| (m.version, digest(&SHA256, m.sql.as_bytes()).as_ref().to_vec())).collect();
        assert!(verify(&[]).is_ok());
        assert!(verify(&good[..1]).is_ok());
        assert!(verify(&good).is_ok());
        let mut changed = good.clone();
        changed[1].1[0] ^= 1;
        assert!(matches!(verify(&changed), Err(CatalogError::Schema(text)) if text.contains("0002_observed")));
        let mut newer = good;
        newer.push((SCHEMA_VERSION + 1, vec![0; 32]));
        assert!(matches!(verify(&newer), Err(CatalogError::Schema(text)) if text.contains("newer program")));
    }
}
