//! sqlx over the list of checks: every statement is prepared, the pool is its own.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt as _, TryStreamExt as _, future::join_all};
use portcullis_tests::certificates::Authority;
use serde_json::{Value, json};
use sqlx_core::{
    Error,
    connection::{ConnectOptions as _, Connection as _},
    executor::Executor as _,
    pool::PoolOptions,
    query::query,
    raw_sql::raw_sql,
    row::Row as _,
    statement::Statement as _,
    types::Uuid,
};
use sqlx_postgres::{PgConnectOptions, PgConnection, PgDatabaseError, PgListener, PgSslMode, Postgres};

use super::rust::{Scene, Tour};
use crate::PEOPLE;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlx() {
    let mut tour = Tour::start("sqlx", "as in Cargo.lock, rustls").await;
    tour.check("connect", connecting).await;
    tour.not_applicable("channel_binding", "sqlx 0.8 speaks SCRAM-SHA-256 without channel binding");
    tour.check("wrong_authority", wrong_authority).await;
    tour.check("no_tls", no_tls).await;
    tour.check("wrong_password", wrong_password).await;
    tour.check("unknown_database", unknown_database).await;
    tour.check("startup_options", startup_options).await;
    tour.check("types", types).await;
    tour.check("wide_rows", wide_rows).await;
    tour.check("large_result", large_result).await;
    tour.check("prepared", prepared).await;
    tour.check("prepared_redefined", prepared_redefined).await;
    tour.check("batch", batch).await;
    tour.check("insert_many", insert_many).await;
    tour.check("empty", empty).await;
    tour.not_applicable("notice", "sqlx gives notices to its log only");
    tour.check("refusal", refusal).await;
    tour.check("server_error", server_error).await;
    tour.check("listen", listen).await;
    tour.check("transaction", transaction).await;
    tour.check("refused_in_transaction", refused_in_transaction).await;
    tour.check("refused_in_savepoint", refused_in_savepoint).await;
    tour.check("refused_in_batch", refused_in_batch).await;
    tour.check("copy_in", copy_in).await;
    tour.check("copy_out", copy_out).await;
    tour.check("copy_broken", copy_broken).await;
    tour.not_applicable("cancel", "sqlx sends no CancelRequest");
    tour.check("timeout", timeout).await;
    tour.check("settings", settings).await;
    tour.check("introspection", introspection).await;
    tour.check("pool", pool).await;
    tour.check("rotation", rotation).await;
    tour.end();
}

fn options(scene: &Scene) -> PgConnectOptions {
    let credentials = &scene.credentials;
    PgConnectOptions::new_without_pgpass()
        .host("localhost")
        .port(credentials.port)
        .username(&credentials.username)
        .password(&credentials.password)
        .database(&credentials.database)
        .ssl_mode(PgSslMode::VerifyFull)
        .ssl_root_cert_from_pem(credentials.ca_pem.clone().into_bytes())
}

async fn open(scene: &Scene) -> PgConnection {
    options(scene).connect().await.unwrap()
}

async fn refused(options: PgConnectOptions, state: &str) {
    let error = options.connect().await.expect_err("no connection");
    assert_eq!(told(&error).code(), state, "{error}");
}

fn told(error: &Error) -> &PgDatabaseError {
    error.as_database_error().unwrap_or_else(|| panic!("no error of the server: {error}")).downcast_ref()
}

async fn run(connection: &mut PgConnection, text: &str) {
    raw_sql(text).execute(connection).await.unwrap();
}

async fn text(connection: &mut PgConnection, sql: &str) -> String {
    query(sql).fetch_one(connection).await.unwrap().get(0)
}

async fn count(connection: &mut PgConnection, table: &str) -> i64 {
    query(&format!("SELECT count(*) FROM {table}")).fetch_one(connection).await.unwrap().get(0)
}

async fn connecting(scene: Arc<Scene>) {
    assert_eq!(text(&mut open(&scene).await, "SELECT 'x'").await, "x");
}

async fn wrong_authority(scene: Arc<Scene>) {
    let other = options(&scene).ssl_root_cert_from_pem(Authority::new().certificate.into_bytes());
    let error = other.connect().await.expect_err("no connection");
    assert!(matches!(error, Error::Tls(_)) || error.to_string().contains("certificate"), "{error:?}");
}

async fn no_tls(scene: Arc<Scene>) {
    refused(options(&scene).ssl_mode(PgSslMode::Disable), "28000").await;
}

async fn wrong_password(scene: Arc<Scene>) {
    refused(options(&scene).password("wrong"), "28P01").await;
}

async fn unknown_database(scene: Arc<Scene>) {
    refused(options(&scene).database("postgres"), "3D000").await;
}

async fn startup_options(scene: Arc<Scene>) {
    let options =
        options(&scene).application_name("tour").extra_float_digits(2).options([("statement_timeout", "61s")]);
    let mut connection = options.connect().await.unwrap();
    assert_eq!(text(&mut connection, "SHOW statement_timeout").await, "61s");
    assert_eq!(text(&mut connection, "SHOW application_name").await, "tour");
    assert_eq!(text(&mut connection, "SHOW extra_float_digits").await, "2");
}

async fn types(scene: Arc<Scene>) {
    let mut connection = open(&scene).await;
    let table = format!("{}_types", scene.prefix);
    let columns = "id int, a boolean, b smallint, c bigint, d double precision, e text, f text, g bytea, h uuid, i int[], j text[], k jsonb";
    run(&mut connection, &format!("CREATE TABLE {table} ({columns})")).await;
    let bytes: Vec<u8> = (0..=255).collect();
    let written = "Þóra 東京 🐘 ' \" \\ \n\t $1";
    let numbers = vec![Some(1), None, Some(3)];
    let texts =
        [Some("a,b"), Some("q\"uote"), None, Some(""), Some("NULL")].map(|text| text.map(str::to_owned)).to_vec();
    let document = json!({"a": [1, null, "ü"]});
    let insert = format!("INSERT INTO {table} VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)");
    query(&insert)
        .bind(1)
        .bind(true)
        .bind(i16::MIN)
        .bind(i64::MIN)
        .bind(f64::INFINITY)
        .bind(written)
        .bind("")
        .bind(&bytes)
        .bind(Uuid::from_u128(7))
        .bind(&numbers)
        .bind(&texts)
        .bind(&document)
        .execute(&mut connection)
        .await
        .unwrap();
    query(&format!("INSERT INTO {table} (id) VALUES ($1)")).bind(2).execute(&mut connection).await.unwrap();
    let rows = query(&format!("SELECT * FROM {table} ORDER BY id")).fetch_all(&mut connection).await.unwrap();
    let (row, nulls) = (&rows[0], &rows[1]);
    assert_eq!((row.get(1), row.get(2), row.get(3), row.get(4)), (true, i16::MIN, i64::MIN, f64::INFINITY));
    assert_eq!((row.get(5), row.get(6), row.get(7)), (written, "", bytes));
    assert_eq!((row.get::<Uuid, _>(8), row.get(9), row.get(10)), (Uuid::from_u128(7), numbers, texts));
    assert_eq!(row.get::<Value, _>(11), document);
    assert_eq!((nulls.get(5), nulls.get(9)), (None::<&str>, None::<Vec<i32>>));
}

async fn wide_rows(scene: Arc<Scene>) {
    let rows = query(scene.text("wide")).fetch_all(&mut open(&scene).await).await.unwrap();
    assert_eq!(rows.iter().map(|row| row.get::<&str, _>(1).len()).sum::<usize>(), 5_000_000);
}

async fn large_result(scene: Arc<Scene>) {
    let mut connection = open(&scene).await;
    let rows = query(scene.text("stream")).fetch(&mut connection);
    let size = rows.try_fold(0, async |size, row| Ok(size + row.get::<&str, _>(1).len())).await.unwrap();
    assert_eq!(size, 20_000_000);
    // Given up after one row: the driver reads the rest away before the next statement.
    assert!(query(scene.text("stream")).fetch(&mut connection).next().await.unwrap().is_ok());
    assert_eq!(text(&mut connection, "SELECT 'x'").await, "x");
}

async fn prepared(scene: Arc<Scene>) {
    let options = options(&scene).statement_cache_capacity(3);
    let mut connections = Vec::new();
    for _ in 0..3 {
        connections.push(options.connect().await.unwrap());
    }
    for i in 1..=12_i64 {
        let holder = usize::try_from(i).unwrap() % 3;
        run(&mut connections[holder], "BEGIN").await;
        for connection in &mut connections {
            let row = query("SELECT person_id FROM dl_resolved.people WHERE id = $1")
                .bind(i)
                .fetch_one(&mut *connection)
                .await;
            assert_eq!(row.unwrap().get::<&str, _>(0), format!("pe_{i:06}"));
            // More than the cache holds: the oldest are closed.
            assert_eq!(text(connection, &format!("SELECT '{i}'")).await, i.to_string());
        }
        run(&mut connections[holder], "COMMIT").await;
    }
}

async fn prepared_redefined(scene: Arc<Scene>) {
    let (mut connection, mut other) = (open(&scene).await, open(&scene).await);
    let table = format!("{}_redefined", scene.prefix);
    run(&mut connection, &format!("CREATE TABLE {table} AS SELECT 1 AS a")).await;
    let select = format!("SELECT * FROM {table}");
    assert_eq!(query(&select).fetch_one(&mut connection).await.unwrap().len(), 1);
    run(&mut other, &format!("ALTER TABLE {table} ADD COLUMN b int")).await;
    if let Err(error) = query(&select).fetch_one(&mut connection).await {
        assert_eq!(told(&error).code(), "0A000");
    }
    connection.clear_cached_statements().await.unwrap();
    assert_eq!(query(&select).fetch_one(&mut connection).await.unwrap().len(), 2);
}

async fn batch(scene: Arc<Scene>) {
    let mut connection = open(&scene).await;
    let table = format!("{}_batch", scene.prefix);
    run(&mut connection, &format!("CREATE TABLE {table} (id int)")).await;
    let insert = format!("INSERT INTO {table} SELECT * FROM unnest($1::int[])");
    query(&insert).bind((0..500).collect::<Vec<i32>>()).execute(&mut connection).await.unwrap();
    for i in 0..50 {
        query(&format!("INSERT INTO {table} VALUES ($1)")).bind(i).execute(&mut connection).await.unwrap();
    }
    assert_eq!(count(&mut connection, &table).await, 550);
}

async fn insert_many(scene: Arc<Scene>) {
    let mut connection = open(&scene).await;
    let table = format!("{}_keys", scene.prefix);
    run(&mut connection, &format!("CREATE TABLE {table} (id bigint GENERATED ALWAYS AS IDENTITY, body text)")).await;
    let insert = format!("INSERT INTO {table} (body) VALUES ($1), ($2), ($3) RETURNING id");
    let rows = query(&insert).bind("a").bind("b").bind(None::<&str>).fetch_all(&mut connection).await.unwrap();
    assert_eq!(rows.iter().map(|row| row.get(0)).collect::<Vec<i64>>(), [1, 2, 3]);
}

async fn empty(scene: Arc<Scene>) {
    let mut connection = open(&scene).await;
    for text in ["", "-- nothing", ";"] {
        assert!(query(text).fetch_all(&mut connection).await.unwrap().is_empty());
        run(&mut connection, text).await;
    }
}

async fn refusal(scene: Arc<Scene>) {
    let mut connection = open(&scene).await;
    let with_parameter = format!("{} WHERE person_id = $1", scene.text("foreign_write"));
    for error in [
        raw_sql(scene.text("foreign_write")).execute(&mut connection).await.unwrap_err(),
        query(&with_parameter).bind("x").execute(&mut connection).await.unwrap_err(),
    ] {
        let told = told(&error);
        assert_eq!((told.code(), told.message()), ("42501", scene.text("foreign_write_message")));
        assert!(told.detail().unwrap().contains("Rule target.") && told.hint().unwrap().contains("storage"));
    }
    assert_eq!(text(&mut connection, "SELECT 'x'").await, "x");
}

async fn server_error(scene: Arc<Scene>) {
    let mut connection = open(&scene).await;
    let table = format!("{}_unique", scene.prefix);
    run(&mut connection, &format!("CREATE TABLE {table} (id int CONSTRAINT one_of_a_kind UNIQUE)")).await;
    let insert = format!("INSERT INTO {table} VALUES ($1)");
    query(&insert).bind(1).execute(&mut connection).await.unwrap();
    let error = query(&insert).bind(1).execute(&mut connection).await.unwrap_err();
    assert_eq!((told(&error).code(), told(&error).constraint()), ("23505", Some("one_of_a_kind")));
    assert_eq!(text(&mut connection, "SELECT 'x'").await, "x");
}

async fn listen(scene: Arc<Scene>) {
    let pool = PoolOptions::<Postgres>::new().connect_with(options(&scene)).await.unwrap();
    let mut listener = PgListener::connect_with(&pool).await.unwrap();
    assert_eq!(told(&listener.listen("a").await.unwrap_err()).code(), "42501");
}

async fn transaction(scene: Arc<Scene>) {
    let mut connection = open(&scene).await;
    let table = format!("{}_transaction", scene.prefix);
    run(&mut connection, &format!("CREATE TABLE {table} (id int)")).await;
    let insert = format!("INSERT INTO {table} VALUES (1)");
    for keep in [true, false] {
        let mut transaction = connection.begin().await.unwrap();
        transaction.execute(query("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")).await.unwrap();
        transaction.execute(query(&insert)).await.unwrap();
        if keep { transaction.commit().await.unwrap() } else { transaction.rollback().await.unwrap() }
    }
    // Dropped: rolled back before the next statement.
    connection.begin().await.unwrap().execute(query(&insert)).await.unwrap();
    assert_eq!(count(&mut connection, &table).await, 1);
}

async fn refused_in_transaction(scene: Arc<Scene>) {
    let mut connection = open(&scene).await;
    let table = format!("{}_refused", scene.prefix);
    run(&mut connection, &format!("CREATE TABLE {table} (id int)")).await;
    let mut transaction = connection.begin().await.unwrap();
    transaction.execute(query(&format!("INSERT INTO {table} VALUES (1)"))).await.unwrap();
    let error = transaction.execute(query(scene.text("foreign_write"))).await.unwrap_err();
    assert_eq!(told(&error).code(), "42501");
    assert_eq!(told(&transaction.execute(query("SELECT 1")).await.unwrap_err()).code(), "25P02");
    transaction.rollback().await.unwrap();
    assert_eq!(count(&mut connection, &table).await, 0);
}

async fn refused_in_savepoint(scene: Arc<Scene>) {
    let mut connection = open(&scene).await;
    let table = format!("{}_savepoint", scene.prefix);
    run(&mut connection, &format!("CREATE TABLE {table} (id int)")).await;
    let mut transaction = connection.begin().await.unwrap();
    let mut inner = transaction.begin().await.unwrap();
    let error = inner.execute(query("CREATE TABLE unqualified (id int)")).await.unwrap_err();
    assert_eq!(told(&error).code(), "42501");
    inner.rollback().await.unwrap();
    transaction.execute(query(&format!("INSERT INTO {table} VALUES (1)"))).await.unwrap();
    transaction.commit().await.unwrap();
    assert_eq!(count(&mut connection, &table).await, 1);
}

async fn refused_in_batch(scene: Arc<Scene>) {
    let mut connection = open(&scene).await;
    let batch = format!("BEGIN; {}; COMMIT", scene.text("foreign_write"));
    assert_eq!(told(&raw_sql(&batch).execute(&mut connection).await.unwrap_err()).code(), "42501");
    run(&mut connection, "ROLLBACK").await;
    let error = raw_sql("SELECT 1; SELECT 2").execute(&mut connection).await.unwrap_err();
    assert_eq!(told(&error).code(), "42501");
}

async fn copy_in(scene: Arc<Scene>) {
    let mut connection = open(&scene).await;
    let table = format!("{}_copy", scene.prefix);
    run(&mut connection, &format!("CREATE TABLE {table} (id int, body text)")).await;
    let mut copy = connection.copy_in_raw(&format!("COPY {table} FROM STDIN")).await.unwrap();
    for i in 0..20_000 {
        copy.send(format!("{i}\t東京\n").as_bytes()).await.unwrap();
    }
    assert_eq!(copy.finish().await.unwrap(), 20_000);
}

async fn copy_out(scene: Arc<Scene>) {
    let mut connection = open(&scene).await;
    let out = connection.copy_out_raw(&format!("COPY {}_copy TO STDOUT", scene.prefix)).await.unwrap();
    let lines = out.try_fold(0, async |lines, part| Ok(lines + part.iter().filter(|byte| **byte == b'\n').count()));
    assert_eq!(lines.await.unwrap(), 20_000);
}

async fn copy_broken(scene: Arc<Scene>) {
    let mut connection = open(&scene).await;
    let table = format!("{}_copy", scene.prefix);
    let text = format!("COPY {table} FROM STDIN");
    let mut copy = connection.copy_in_raw(&text).await.unwrap();
    copy.send(&b"no number\tx\n"[..]).await.unwrap();
    assert_eq!(told(&copy.finish().await.unwrap_err()).code(), "22P02");
    let mut copy = connection.copy_in_raw(&text).await.unwrap();
    copy.send(&b"1\tx\n"[..]).await.unwrap();
    copy.abort("given up").await.unwrap();
    assert_eq!(count(&mut connection, &table).await, 20_000);
}

async fn timeout(scene: Arc<Scene>) {
    let mut connection = options(&scene).options([("statement_timeout", "300")]).connect().await.unwrap();
    let error = query(scene.text("long")).execute(&mut connection).await.unwrap_err();
    assert_eq!(told(&error).code(), "57014");
}

async fn settings(scene: Arc<Scene>) {
    let mut connections = join_all((0..3).map(|_| open(&scene))).await;
    for (i, connection) in connections.iter_mut().enumerate() {
        run(connection, &format!("SET extra_float_digits = {i}")).await;
    }
    for _ in 0..5 {
        for (i, connection) in connections.iter_mut().enumerate() {
            assert_eq!(text(connection, "SHOW extra_float_digits").await, i.to_string());
        }
    }
}

async fn introspection(scene: Arc<Scene>) {
    let mut connection = open(&scene).await;
    // Columns of types that it does not know make it read the catalog. (Its describe() for the macros asks for EXPLAIN of
    // EXECUTE of the protocol's statement, which is a known limit.)
    let statement =
        connection.prepare("SELECT id, salary, active FROM dl_resolved.people WHERE id = $1").await.unwrap();
    assert_eq!(statement.columns().len(), 3);
}

async fn pool(scene: Arc<Scene>) {
    let options = options(&scene);
    let pool = PoolOptions::<Postgres>::new()
        .max_connections(4)
        .acquire_timeout(Duration::from_secs(60))
        .connect_with(options);
    let pool = pool.await.unwrap();
    let answers = join_all((0..100).map(|i| {
        let pool = pool.clone();
        async move { query("SELECT $1::int").bind(i).fetch_one(&pool).await.unwrap().get::<i32, _>(0) }
    }));
    assert_eq!(answers.await, (0..100).collect::<Vec<_>>());
    pool.close().await;
}

async fn rotation(scene: Arc<Scene>) {
    let mut running = open(&scene).await;
    let (fresh, _) = scene.workspace.rotate("customer_db", 0, false).await;
    let mut connection = options(&scene).password(&fresh.password).connect().await.unwrap();
    assert_eq!(text(&mut connection, "SELECT 'x'").await, "x");
    refused(options(&scene), "28P01").await;
    assert_eq!(count(&mut running, "dl_resolved.people").await, PEOPLE);
}
