//! The drivers: each runs its own script with a tour of connecting, parameters, introspection, writing, a refusal in a
//! transaction, cancel, COPY and a large result. The scripts are in tests/drivers, their environments in target/test-env.

use std::{collections::BTreeMap, path::PathBuf, process::Stdio, time::Duration};

use portcullis_tests::{Stack, programs, wait::within};
use tokio::process::Command;

/// Runs a driver's script in a workspace of its own and expects it to end well.
async fn run(program: PathBuf, arguments: &[&str]) {
    assert!(program.exists() || !program.is_absolute(), "{} is missing; run tests/run", program.display());
    let workspace = Stack::shared().await.filled().await;
    let credentials = workspace.reveal("customer_db").await;
    let ca = workspace.access.home.join(format!("{}.crt", workspace.name));
    std::fs::write(&ca, &credentials.ca_pem).unwrap();
    let plain = credentials.uri.split('?').next().unwrap().to_owned();
    let environment = BTreeMap::from([
        ("PORTCULLIS_URI", format!("{plain}?sslmode=verify-full&sslrootcert={}", ca.display())),
        ("PORTCULLIS_URI_PLAIN", plain),
        ("PORTCULLIS_CA", ca.display().to_string()),
        ("PGUSER", credentials.username.clone()),
        ("PGPASSWORD", credentials.password.clone()),
        ("PGDATABASE", credentials.database.clone()),
        ("PGPORT", credentials.port.to_string()),
        ("NODE_PATH", programs::drivers().join("node/node_modules").display().to_string()),
    ]);
    let child = Command::new(&program)
        .args(arguments)
        .current_dir(programs::root().join("tests/drivers"))
        .envs(environment)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    let output = within(Duration::from_secs(240), "the driver's tour", child.wait_with_output()).await.unwrap();
    let text = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes)).concat();
    assert!(output.status.success() && text.contains("ok "), "{arguments:?}:\n{text}");
}

fn python() -> PathBuf {
    programs::drivers().join("venv/bin/python")
}

#[tokio::test]
async fn psycopg() {
    run(python(), &["psycopg_sync.py"]).await;
}

#[tokio::test]
async fn psycopg_async() {
    run(python(), &["psycopg_async.py"]).await;
}

#[tokio::test]
async fn asyncpg() {
    run(python(), &["asyncpg_driver.py"]).await;
}

#[tokio::test]
async fn node_postgres() {
    run(PathBuf::from("node"), &["node_pg.js"]).await;
}

#[tokio::test]
async fn jdbc() {
    let classes = programs::drivers().join("java");
    let path = format!("{}:/usr/share/java/postgresql.jar", classes.display());
    run(PathBuf::from("java"), &["-Xmx512m", "-cp", &path, "Jdbc"]).await;
}
