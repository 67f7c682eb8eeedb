//! Tables and columns, opened and closed one by one: the GRANTs that a document compiles to hold alone, come back when they
//! are altered by hand, and agree with what the judge says of the same statements.

use futures_util::TryStreamExt as _;
use portcullis_catalog::Workspace;
use portcullis_policy::{Policy, Surface, Target, Verdict, grants, judge};
use portcullis_provisioner::reconcile::intent::Intent;
use portcullis_provisioner::reconcile::observe::Record;
use portcullis_provisioner::reconcile::step::Step;
use portcullis_provisioner::reconcile::{self, apply, plan};
use portcullis_provisioner::server::Session;
use serde_json::Value;
use tokio_postgres::Client;

use crate::fixture::{Sidecar, rows};
use crate::walls::{attempt, backend};

const DOCUMENT: &str = include_str!("../../../policy/corpus/columns.toml");
const ROWS: &str = include_str!("../../../policy/corpus/columns.jsonl");

/// A workspace of profile `storage` whose grants, database privileges and event triggers follow another document.
struct Ruled<'a> {
    sidecar: &'a Sidecar,
    workspace: Workspace,
    intent: Intent,
    record: Option<Record>,
}

impl<'a> Ruled<'a> {
    async fn new(sidecar: &'a Sidecar, document: &str) -> Ruled<'a> {
        let workspace = sidecar.create("acme", "storage").await;
        let policy = Policy::parse(document).unwrap_or_else(|errors| panic!("{errors}"));
        let kind = policy.kind("customer_db").unwrap();
        let mut intent = reconcile::intent_of(&sidecar.provisioner, &workspace).await.unwrap();
        intent.grants = grants::grants(kind, &intent.kinds[0].group);
        intent.kinds[0].temporary_tables = kind.temporary_tables();
        intent.event_triggers = portcullis_provisioner::walls::event_triggers(&policy, &intent.owner);
        let mut ruled = Ruled { sidecar, workspace, intent, record: None };
        ruled.settle().await;
        ruled
    }

    /// Observes, plans and applies until nothing is left; what had to be put right.
    async fn settle(&mut self) -> Vec<String> {
        let server = self.sidecar.provisioner.server(&self.workspace).unwrap();
        let maintenance = Session::open(server, &server.database).await.unwrap();
        let mut repaired = Vec::new();
        for _ in 0..3 {
            let provisioner = &self.sidecar.provisioner;
            let mut observed =
                reconcile::observe(provisioner, server, &maintenance, &self.workspace, &self.intent).await.unwrap();
            observed.record = self.record.clone();
            let steps = plan::plan(&self.intent, &observed);
            if steps.is_empty() {
                return repaired;
            }
            repaired.extend(steps.iter().flat_map(Step::repairs));
            if let Some(inside) = apply::apply(server, &maintenance, &self.intent, &steps).await.unwrap() {
                let major = observed.cluster.major;
                let before = self.record.as_ref();
                self.record = Some(Record::laid_out(self.intent.digest(), major, inside.objects, before));
            }
        }
        panic!("it does not settle: {repaired:?}");
    }

    async fn by_hand(&self, sql: &str) {
        let client = self.sidecar.superuser(&self.workspace.database).await;
        client.batch_execute(&sql.replace("$w", self.workspace.id.as_str())).await.unwrap();
    }

    async fn backend(&self) -> Client {
        backend(self.sidecar, &self.workspace, "customer_db").await
    }
}

/// `ok`, or the SQLSTATE; undone in either case, after a COPY by closing the connection.
async fn outcome(client: &Client, sql: &str) -> String {
    let code =
        |error: tokio_postgres::Error| error.code().map_or_else(|| panic!("{sql}: {error:?}"), |c| c.code().to_owned());
    if !sql.starts_with("COPY ") {
        return attempt(client, sql).await.unwrap_or_else(|| "ok".to_owned());
    }
    client.batch_execute("BEGIN").await.unwrap();
    let copied = if sql.ends_with("FROM STDIN") {
        match client.copy_in::<_, bytes::Bytes>(sql).await {
            Ok(sink) => Box::pin(sink).as_mut().finish().await.map(drop),
            Err(error) => Err(error),
        }
    } else {
        match client.copy_out(sql).await {
            Ok(stream) => Box::pin(stream).try_collect::<Vec<_>>().await.map(drop),
            Err(error) => Err(error),
        }
    };
    copied.err().map_or_else(|| "ok".to_owned(), code)
}

#[tokio::test]
async fn the_server_alone_refuses_what_is_closed_and_gives_what_is_open() {
    let sidecar = Sidecar::start().await;
    let ruled = Ruled::new(&sidecar, DOCUMENT).await;
    let client = ruled.backend().await;
    client.batch_execute("CREATE TABLE storage.notes (id serial, person_id text, body text)").await.unwrap();
    let database = &ruled.workspace.database;
    let mut wrong = Vec::new();
    for row in ROWS.lines() {
        let row: Value = serde_json::from_str(row).unwrap();
        let (sql, want) = (row["sql"].as_str().unwrap(), row["server"].as_str().unwrap());
        let found = match sql.starts_with("COPY ") {
            true => outcome(&ruled.backend().await, sql).await,
            false => outcome(&client, &sql.replace("ws_0123456789abcdef", database)).await,
        };
        client.batch_execute("DEALLOCATE ALL").await.unwrap();
        if found != want {
            wrong.push(format!("{want} expected, {found}: {sql}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn rights_on_tables_and_columns_come_back_when_they_are_altered() {
    let sidecar = Sidecar::start().await;
    let document = format!("{DOCUMENT}\n[[kind.table]]\nname = \"dl_cache.later\"\nread = {{ only = [\"id\"] }}\n");
    let mut ruled = Ruled::new(&sidecar, &document).await;
    assert_eq!(ruled.settle().await, [""; 0]);
    let client = ruled.backend().await;
    for (sql, repaired, then) in [
        (
            "GRANT SELECT (salary) ON dl_resolved.people TO $w_customer_db",
            "grants on view dl_resolved.people",
            ("42501", "SELECT salary FROM dl_resolved.people"),
        ),
        (
            "GRANT SELECT ON dl_resolved.companies TO $w_customer_db",
            "grants on view dl_resolved.companies",
            ("42501", "SELECT revenue FROM dl_resolved.companies"),
        ),
        (
            "REVOKE SELECT (name) ON dl_resolved.companies FROM $w_customer_db",
            "grants on view dl_resolved.companies",
            ("ok", "SELECT name FROM dl_resolved.companies"),
        ),
        (
            "GRANT ALL ON dl_override.company_overrides TO $w_customer_db",
            "grants on table dl_override.company_overrides",
            ("42501", "SELECT 1 FROM dl_override.company_overrides"),
        ),
        (
            "REVOKE UPDATE (note) ON dl_override.person_overrides FROM $w_customer_db",
            "grants on table dl_override.person_overrides",
            ("ok", "UPDATE dl_override.person_overrides SET note = 'x'"),
        ),
        // One that the document names and that was not there when the database was laid out.
        (
            "CREATE TABLE dl_cache.later (id int, revenue int)",
            "grants on table dl_cache.later",
            ("42501", "SELECT revenue FROM dl_cache.later"),
        ),
        (
            "GRANT SELECT ON dl_cache.later TO $w_customer_db",
            "grants on table dl_cache.later",
            ("ok", "SELECT id FROM dl_cache.later"),
        ),
        (
            "CREATE TABLE dl_resolved.later (id int)",
            "grants on table dl_resolved.later",
            ("ok", "SELECT * FROM dl_resolved.later"),
        ),
    ] {
        ruled.by_hand(sql).await;
        let found = ruled.settle().await;
        assert!(found.iter().any(|name| name == repaired), "{sql}: {found:?}");
        assert_eq!(outcome(&client, then.1).await, then.0, "{sql}: {}", then.1);
    }
    assert_eq!(ruled.settle().await, [""; 0]);
}

/// Of `except`, a name that is no column may be one that was misspelt: nothing is opened.
#[tokio::test]
async fn an_exception_that_does_not_exist_opens_nothing() {
    let sidecar = Sidecar::start().await;
    let document = DOCUMENT.replace(r#"["salary", "score"]"#, r#"["sallary"]"#);
    let ruled = Ruled::new(&sidecar, &document).await;
    assert_eq!(outcome(&ruled.backend().await, "SELECT email FROM dl_resolved.people").await, "42501");
}

#[tokio::test]
async fn what_a_document_switches_on_the_server_lets_through() {
    let sidecar = Sidecar::start().await;
    let switches = "advisory_locks = true\nlisten = true\ntemporary_tables = true\nfunctions = [\"public.twice\"]\n\
                    statements = { except = [\"DELETE\"] }\nprimary = true";
    let document = DOCUMENT.replacen("primary = true", switches, 1);
    let mut ruled = Ruled::new(&sidecar, &document).await;
    ruled
        .by_hand(
            "CREATE FUNCTION public.twice(int) RETURNS int LANGUAGE sql AS 'SELECT 2 * $1';
             REVOKE ALL ON FUNCTION public.twice FROM PUBLIC; GRANT SELECT ON dl_resolved.people TO PUBLIC",
        )
        .await;
    ruled.settle().await;
    let client = ruled.backend().await;
    for sql in [
        "SELECT pg_advisory_lock(1), pg_try_advisory_lock_shared(1), pg_advisory_unlock(1), pg_advisory_xact_lock(2)",
        "SELECT pg_notify('a', 'b')",
        "CREATE TEMPORARY TABLE t (id int); INSERT INTO t VALUES (1); DROP TABLE t",
        "SELECT public.twice(1)",
    ] {
        assert_eq!(outcome(&client, sql).await, "ok", "{sql}");
    }
    for sql in ["SELECT pg_sleep(0)", "CREATE TABLE public.t (id int)", "DELETE FROM dl_meta.tenant_settings"] {
        assert_eq!(outcome(&client, sql).await, "42501", "{sql}");
    }
    let taken =
        "REVOKE TEMPORARY ON DATABASE $w FROM $w_customer_db; REVOKE EXECUTE ON FUNCTION pg_notify FROM $w_customer_db";
    ruled.by_hand(taken).await;
    let repaired = ruled.settle().await;
    let database = format!("grants on database {}", ruled.workspace.id);
    assert!(repaired.contains(&database) && repaired.iter().any(|name| name == "grants on functions of pg_catalog"));
    assert_eq!(outcome(&client, "SELECT pg_notify('a', 'b')").await, "ok");
}

/// What another kind defines is readable where the document says so, now and later.
#[tokio::test]
async fn tables_that_another_kind_makes_are_readable_where_the_document_says_so() {
    let sidecar = Sidecar::start().await;
    let workspace = sidecar.create("acme", "override").await;
    let policy = Policy::parse(
        "name = \"x\"\ncustomer_schemas = [\"tenant_custom\"]\n\
         [[kind]]\nkind = \"runtime\"\nrole = \"r\"\nprimary = true\ndefine = [\"tenant_custom\"]\nwrite = [\"tenant_custom\"]\n\
         [[kind]]\nkind = \"read\"\nrole = \"r\"\nusername_suffix = \"read\"\nread = [\"tenant_custom\"]\n",
    )
    .unwrap_or_else(|errors| panic!("{errors}"));
    let (reader, maker) = (policy.kind("read").unwrap(), policy.kind("runtime").unwrap());
    let runtime = backend(&sidecar, &workspace, "runtime").await;
    runtime.batch_execute("CREATE TABLE tenant_custom.before (id int)").await.unwrap();
    let database = sidecar.superuser(&workspace.database).await;
    let (read_role, runtime_role) = (format!("{}_read", workspace.id), format!("{}_runtime", workspace.id));
    let shared = grants::shared_grants(reader, &read_role, maker, &runtime_role);
    for sql in grants::grants(reader, &read_role).iter().chain(&shared) {
        database.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }
    runtime.batch_execute("CREATE TABLE tenant_custom.after (id int)").await.unwrap();
    let client = backend(&sidecar, &workspace, "read").await;
    for table in ["before", "after"] {
        assert_eq!(outcome(&client, &format!("SELECT * FROM tenant_custom.{table}")).await, "ok");
        assert_eq!(outcome(&client, &format!("DELETE FROM tenant_custom.{table}")).await, "42501");
    }
}

/// `x.name` calls a function or aggregate that takes the whole row, where there is no column of that name: the judge must
/// know them all, but for `count`, which tells of no column.
#[tokio::test]
async fn no_function_of_a_row_is_unknown_to_the_judge() {
    let sidecar = Sidecar::start().await;
    let client = sidecar.superuser("postgres").await;
    let names = rows(
        &client,
        "SELECT DISTINCT proname FROM pg_proc WHERE pronargs >= 1 AND proname <> 'count'
            AND (prokind IN ('f', 'w') OR oid IN (SELECT aggfnoid FROM pg_aggregate WHERE aggkind = 'n'))
            AND (pronargs - pronargdefaults <= 1 OR provariadic <> 0)
            AND proargtypes[0] = ANY ('{record,\"\\\"any\\\"\",anyelement,anynonarray,anycompatible,anycompatiblenonarray}'::regtype[])",
    )
    .await;
    assert!(names.len() > 20, "{names:?}");
    let policy = Policy::parse(DOCUMENT).unwrap();
    let role = policy.kind("customer_db").unwrap();
    let passes = |name: &&String| {
        let sql = format!("SELECT p.\"{name}\" FROM dl_resolved.people p");
        matches!(judge(role, Surface::Parse, sql.as_bytes(), &Target { database_names: &[] }), Verdict::Allow(_))
    };
    assert_eq!(names.iter().filter(passes).collect::<Vec<_>>(), Vec::<&String>::new());
}
