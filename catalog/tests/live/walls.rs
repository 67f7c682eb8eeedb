//! What the proxy's role may do in the catalog: read views without secrets, report what it saw, and nothing else.

use tokio_postgres::error::SqlState;

use crate::fixture::{Catalog, PROXY};

#[tokio::test]
async fn the_proxys_role_reads_no_secret_and_writes_no_intent() {
    let catalog = Catalog::new().await;
    let workspace = catalog.workspace("acme").await;
    catalog.login(&workspace, "customer_db").await;
    let client = catalog.client(PROXY).await;
    for sql in [
        "SELECT sealed_password FROM catalog.login_version",
        "SELECT wrapped_key FROM catalog.workspace",
        "SELECT * FROM catalog.login",
        "SELECT * FROM catalog.login_version",
        "SELECT * FROM catalog.api_key",
        "SELECT * FROM catalog.backend_role",
        "SELECT * FROM catalog.audit_head",
        "SELECT * FROM catalog.revision",
        "SELECT * FROM observed.audit",
        "UPDATE catalog.revision SET value = 0",
        "UPDATE catalog.proxy_login SET username = 'x'",
        "UPDATE catalog.proxy_server SET host = 'evil'",
        "INSERT INTO catalog.proxy_policy VALUES ('x', 'x', '', 1)",
        "INSERT INTO catalog.removal VALUES (1, 'login', 'x')",
        "DELETE FROM catalog.proxy_workspace",
        "UPDATE observed.audit SET actor = 'x'",
        "DELETE FROM observed.audit",
        "DELETE FROM observed.proxy",
        "UPDATE observed.proxy SET name = 'x'",
        "TRUNCATE observed.last_used",
        "CREATE TABLE observed.t ()",
        "CREATE TABLE catalog.t ()",
        "CREATE TABLE public.t ()",
        "CREATE TEMP TABLE t ()",
        "CREATE SCHEMA s",
        "SET ROLE portcullis_provisioner",
        "ALTER TABLE observed.audit DISABLE TRIGGER ALL",
    ] {
        let error = client.batch_execute(sql).await.expect_err(sql);
        assert_eq!(error.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE), "{sql}: {error:?}");
    }
}

#[tokio::test]
async fn no_view_of_the_proxy_has_a_column_of_the_provisioner() {
    let catalog = Catalog::new().await;
    let client = catalog.client(PROXY).await;
    let columns = "SELECT table_name || '.' || column_name FROM information_schema.columns \
                   WHERE table_schema = 'catalog' ORDER BY 1";
    let rows = client.query(columns, &[]).await.unwrap();
    let columns: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    assert!(columns.len() > 30, "the views are visible: {columns:?}");
    for column in columns {
        assert!(column.starts_with("proxy_"), "{column}");
        for secret in ["password", "wrapped", "hash"] {
            assert!(!column.contains(secret), "{column}");
        }
    }
}

#[tokio::test]
async fn only_the_two_roles_may_connect() {
    let catalog = Catalog::new().await;
    let admin = catalog.client("postgres").await;
    admin.batch_execute(&format!("CREATE ROLE stranger_{} LOGIN", catalog.database)).await.unwrap();
    let url = catalog.cluster.url(&format!("stranger_{}", catalog.database), &catalog.database);
    let error = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.err().unwrap();
    assert_eq!(error.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE));
}
