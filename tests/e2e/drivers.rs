//! The matrix of drivers and tools: each runs its program over the one list of checks in tests/drivers/checks.toml, in a
//! workspace of its own, and answers for every check of the list: ok, not applicable and why, or failed.
//!
//! A runtime that tests/run could not install is skipped, which tests/run says at its end; one that it did not try to
//! install fails.

mod report;
mod rust;
mod rust_sqlx;
mod rust_tokio_postgres;

use std::{collections::BTreeMap, fs, path::PathBuf, process::Stdio, time::Duration};

use portcullis_tests::{Stack, Workspace, certificates::Authority, programs, wait::within};
use report::{List, Report, Wish};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, Command},
};

/// Longer than any program takes on a slow machine; each bounds its own waits.
const LIMIT: Duration = Duration::from_secs(300);

/// A program of the matrix: what it is called, what tests/run prepares for it, and how it starts.
struct Program {
    name: &'static str,
    runtime: &'static str,
    command: PathBuf,
    arguments: Vec<String>,
    environment: BTreeMap<String, String>,
}

fn program(name: &'static str, runtime: &'static str, command: impl Into<PathBuf>, arguments: &[&str]) -> Program {
    let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
    Program { name, runtime, command: command.into(), arguments, environment: BTreeMap::new() }
}

fn python(name: &'static str, script: &str) -> Program {
    program(name, "python", programs::drivers().join("venv/bin/python"), &[script])
}

impl Program {
    fn with(mut self, key: &str, value: impl Into<String>) -> Program {
        self.environment.insert(key.to_owned(), value.into());
        self
    }

    /// Runs it and expects every check of the list.
    async fn run(self) {
        if skipped(self.runtime) {
            return;
        }
        let list = List::read();
        let workspace = Stack::shared().await.filled().await;
        let mut child = self.start(&workspace, &list).await;
        let mut report = Report::default();
        within(LIMIT, self.name, listen(&mut child, &workspace, &mut report)).await;
        report.settle(self.name, &list);
    }

    async fn start(&self, workspace: &Workspace, list: &List) -> Child {
        let credentials = workspace.reveal("customer_db").await;
        let home = &workspace.access.home;
        let (ca, other) =
            (home.join(format!("{}.crt", workspace.name)), home.join(format!("{}-other.crt", workspace.name)));
        fs::write(&ca, &credentials.ca_pem).unwrap();
        fs::write(&other, Authority::named("Another test CA").certificate).unwrap();
        Command::new(&self.command)
            .args(&self.arguments)
            .current_dir(programs::root().join("tests/drivers"))
            .envs([
                ("PGHOST", "localhost".to_owned()),
                ("PGPORT", credentials.port.to_string()),
                ("PGDATABASE", credentials.database),
                ("PGUSER", credentials.username),
                ("PGPASSWORD", credentials.password),
                ("PGSSLMODE", "verify-full".to_owned()),
                ("PGSSLROOTCERT", ca.display().to_string()),
                ("PGOTHERCERT", other.display().to_string()),
                ("TABLE_PREFIX", self.name.replace('-', "_")),
                ("HOME", home.display().to_string()),
                ("PYTHONDONTWRITEBYTECODE", "1".to_owned()),
            ])
            .envs(list.texts.iter().map(|(name, text)| (name.to_uppercase(), text)))
            .envs(&self.environment)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{} starts (tests/run prepares it): {error}", self.command.display()))
    }
}

/// Whether tests/run tried to install a runtime and could not; it tells why at its end.
fn skipped(runtime: &str) -> bool {
    programs::drivers().join("skipped").join(runtime).exists()
}

/// Takes what the program says, and does what it asks, until it ends.
async fn listen(child: &mut Child, workspace: &Workspace, report: &mut Report) {
    let mut stdin = child.stdin.take().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let errors = tokio::spawn(all_of(child.stderr.take().unwrap()));
    while let Some(line) = lines.next_line().await.unwrap() {
        if let Some(Wish::Rotate) = report.line(&line) {
            let (credentials, _) = workspace.rotate("customer_db", 0, false).await;
            stdin.write_all(format!("{}\n", credentials.password).as_bytes()).await.unwrap();
        }
    }
    let status = child.wait().await.unwrap();
    report.noise.push_str(&errors.await.unwrap());
    assert!(status.success(), "{status}: {}", report.noise);
}

async fn all_of(mut stream: impl AsyncRead + Unpin) -> String {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes).await;
    String::from_utf8_lossy(&bytes).into_owned()
}

/// psql, and the libpq of the system.
#[tokio::test]
async fn psql() {
    python("psql", "psql.py").run().await;
}

/// With the libpq that the package brings, newer than the system's.
#[tokio::test]
async fn psycopg() {
    python("psycopg", "psycopg_sync.py").with("PSYCOPG_IMPL", "binary").run().await;
}

/// With the system's libpq.
#[tokio::test]
async fn psycopg_system_libpq() {
    python("psycopg-system-libpq", "psycopg_sync.py").with("PSYCOPG_IMPL", "python").run().await;
}

#[tokio::test]
async fn psycopg_async() {
    python("psycopg-async", "psycopg_async.py").run().await;
}

#[tokio::test]
async fn psycopg2() {
    python("psycopg2", "psycopg2_driver.py").run().await;
}

#[tokio::test]
async fn asyncpg() {
    python("asyncpg", "asyncpg_driver.py").run().await;
}

#[tokio::test]
async fn pg8000() {
    python("pg8000", "pg8000_driver.py").run().await;
}

#[tokio::test]
async fn sqlalchemy() {
    python("sqlalchemy", "sqlalchemy_tool.py").run().await;
}

#[tokio::test]
async fn django() {
    python("django", "django_tool.py").run().await;
}

#[tokio::test]
async fn dbt() {
    python("dbt", "dbt_tool.py").run().await;
}

#[tokio::test]
async fn odbc() {
    if !skipped("odbc") {
        python("odbc", "odbc.py").run().await;
    }
}

fn node(name: &'static str, script: &str) -> Program {
    let modules = programs::drivers().join("node/node_modules").display().to_string();
    program(name, "node", "node", &[script]).with("NODE_PATH", modules)
}

#[tokio::test]
async fn node_pg() {
    node("node-pg", "node_pg.js").run().await;
}

#[tokio::test]
async fn node_postgres() {
    node("node-postgres", "node_postgres.js").run().await;
}

#[tokio::test]
async fn jdbc() {
    let path = format!("{}:/usr/share/java/postgresql.jar", programs::drivers().join("java").display());
    program("jdbc", "java", "java", &["-Xmx512m", "-cp", &path, "Jdbc"]).run().await;
}

#[tokio::test]
async fn go_pgx() {
    program("go-pgx", "go", programs::drivers().join("go/pgx"), &[]).run().await;
}

#[tokio::test]
async fn go_pq() {
    program("go-pq", "go", programs::drivers().join("go/pq"), &[]).run().await;
}

#[tokio::test]
async fn ruby_pg() {
    program("ruby-pg", "ruby", "ruby", &["ruby_pg.rb"]).run().await;
}

#[tokio::test]
async fn activerecord() {
    program("activerecord", "ruby", "ruby", &["activerecord.rb"]).run().await;
}

#[tokio::test]
async fn php_pdo() {
    program("php-pdo", "php", "php", &["php_pdo.php"]).run().await;
}

#[tokio::test]
async fn perl_dbd_pg() {
    program("perl-dbd-pg", "perl", "perl", &["perl_dbd_pg.pl"]).run().await;
}
