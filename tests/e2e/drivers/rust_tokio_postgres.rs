//! tokio-postgres over the list of checks.

use std::{sync::Arc, time::Duration};

use futures_util::{SinkExt as _, StreamExt as _, TryStreamExt as _, future::join_all, pin_mut, stream};
use portcullis_tests::{
    certificates::Authority,
    customer::{connect, connector, explain, sqlstate},
};
use serde_json::{Value, json};
use tokio_postgres::{
    AsyncMessage, Client, Config, Error, IsolationLevel, NoTls, SimpleQueryMessage,
    binary_copy::BinaryCopyInWriter,
    config::{ChannelBinding, SslMode},
    types::{ToSql, Type},
};

use super::rust::{Scene, Tour};
use crate::PEOPLE;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokio_postgres() {
    let mut tour = Tour::start("tokio-postgres", "as in Cargo.lock, rustls").await;
    tour.check("connect", connecting).await;
    tour.check("channel_binding", channel_binding).await;
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
    tour.check("notice", notice).await;
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
    tour.check("cancel", cancel).await;
    tour.check("timeout", timeout).await;
    tour.check("settings", settings).await;
    tour.check("introspection", introspection).await;
    tour.not_applicable("pool", "tokio-postgres has no pool; sqlx's is in the matrix");
    tour.check("rotation", rotation).await;
    tour.end();
}

async fn open(scene: &Scene) -> Client {
    scene.credentials.connect().await
}

/// The error that a connection with another configuration ends with.
async fn refused(scene: &Scene, change: impl FnOnce(&mut Config)) -> Error {
    let mut config = scene.credentials.config();
    change(&mut config);
    connect(&config, &scene.credentials.ca_pem).await.expect_err("no connection")
}

async fn one(client: &Client, sql: &str) -> String {
    let messages = client.simple_query(sql).await.unwrap();
    messages
        .into_iter()
        .find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or("NULL").to_owned()),
            _ => None,
        })
        .expect("a row")
}

async fn connecting(scene: Arc<Scene>) {
    let client = open(&scene).await;
    assert_eq!(client.query_one("SELECT 1", &[]).await.unwrap().get::<_, i32>(0), 1);
}

async fn channel_binding(scene: Arc<Scene>) {
    let mut config = scene.credentials.config();
    config.channel_binding(ChannelBinding::Require);
    connect(&config, &scene.credentials.ca_pem).await.unwrap();
}

async fn wrong_authority(scene: Arc<Scene>) {
    let error = connect(&scene.credentials.config(), &Authority::new().certificate).await.expect_err("no connection");
    assert!(explain(&error).contains("InvalidCertificate"), "{error:?}");
}

async fn no_tls(scene: Arc<Scene>) {
    let error =
        scene.credentials.config().ssl_mode(SslMode::Disable).connect(NoTls).await.err().expect("no connection");
    assert_eq!(sqlstate(&error), "28000");
}

async fn wrong_password(scene: Arc<Scene>) {
    let error = refused(&scene, |config| {
        config.password("wrong");
    })
    .await;
    assert_eq!(sqlstate(&error), "28P01");
    assert!(explain(&error).contains("password authentication failed"));
}

async fn unknown_database(scene: Arc<Scene>) {
    let error = refused(&scene, |config| {
        config.dbname("postgres");
    })
    .await;
    assert_eq!(sqlstate(&error), "3D000");
}

async fn startup_options(scene: Arc<Scene>) {
    let mut config = scene.credentials.config();
    config.application_name("tour").options("-c statement_timeout=61s -c timezone=Asia/Tokyo -c search_path=storage");
    let clients = join_all((0..3).map(|_| connect(&config, &scene.credentials.ca_pem))).await;
    for round in 0..3 {
        let holder = clients[round].as_ref().unwrap();
        holder.batch_execute("BEGIN").await.unwrap();
        for client in &clients {
            let client = client.as_ref().unwrap();
            assert_eq!(one(client, "SHOW timezone").await, "Asia/Tokyo");
            assert_eq!(one(client, "SHOW statement_timeout").await, "61s");
            assert_eq!(one(client, "SHOW application_name").await, "tour");
        }
        holder.batch_execute("COMMIT").await.unwrap();
    }
}

async fn types(scene: Arc<Scene>) {
    let client = open(&scene).await;
    let table = format!("{}_types", scene.prefix);
    client
        .batch_execute(&format!(
            "CREATE TABLE {table} (id int, a boolean, b smallint, c integer, d bigint, e real, f double precision, g text, \
             h varchar(20), i bytea, j timestamptz, k timestamp, l date, m time, n int[], o text[], p jsonb, q json, r numeric)"
        ))
        .await
        .unwrap();
    let bytes: Vec<u8> = (0..=255).collect();
    let text = "Þóra 東京 🐘 ' \" \\ \n\t $1";
    let zoned: jiff::Timestamp = "2024-03-31T01:30:00Z".parse().unwrap();
    let local: jiff::civil::DateTime = "1999-12-31T23:59:59.000001".parse().unwrap();
    let (numbers, texts) =
        (vec![Some(1), None, Some(3)], vec![Some("a,b"), Some("q\"uote"), None, Some(""), Some("NULL")]);
    let (document, list) = (json!({"a": [1, null, "ü"], "b": {"c": 1.5}}), json!([true, {"x": "y"}]));
    let values: [&(dyn ToSql + Sync); 18] = [
        &1,
        &true,
        &i16::MIN,
        &i32::MAX,
        &i64::MIN,
        &1.5_f32,
        &f64::INFINITY,
        &text,
        &"",
        &bytes,
        &zoned,
        &local,
        &local.date(),
        &local.time(),
        &numbers,
        &texts,
        &document,
        &list,
    ];
    let insert = format!(
        "INSERT INTO {table} VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, \
         '-12345678901234567890.0123456789')"
    );
    client.execute(&insert, &values).await.unwrap();
    client.execute(&format!("INSERT INTO {table} (id) VALUES ($1)"), &[&2]).await.unwrap();
    let row = client.query_one(&format!("SELECT *, r::text FROM {table} WHERE id = $1"), &[&1]).await.unwrap();
    assert!(row.get::<_, bool>("a"));
    assert_eq!((row.get("b"), row.get("c"), row.get("d")), (i16::MIN, i32::MAX, i64::MIN));
    assert_eq!((row.get("e"), row.get("f")), (1.5_f32, f64::INFINITY));
    assert_eq!((row.get("g"), row.get("h"), row.get("i")), (text, "", bytes));
    assert_eq!((row.get("j"), row.get("k")), (zoned, local));
    assert_eq!((row.get("l"), row.get("m")), (local.date(), local.time()));
    assert_eq!((row.get("n"), row.get("o")), (numbers, texts));
    assert_eq!((row.get::<_, Value>("p"), row.get::<_, Value>("q")), (document, list));
    assert_eq!(row.get::<_, &str>(19), "-12345678901234567890.0123456789");
    let nulls = client.query_one(&format!("SELECT * FROM {table} WHERE id = $1"), &[&2]).await.unwrap();
    assert_eq!(
        (nulls.get("g"), nulls.get("j"), nulls.get("n")),
        (None::<&str>, None::<jiff::Timestamp>, None::<Vec<i32>>)
    );
}

async fn wide_rows(scene: Arc<Scene>) {
    let rows = open(&scene).await.query(scene.text("wide"), &[]).await.unwrap();
    assert_eq!(rows.iter().map(|row| row.get::<_, &str>(1).len()).sum::<usize>(), 5_000_000);
}

async fn large_result(scene: Arc<Scene>) {
    let mut client = open(&scene).await;
    let rows = client.query_raw(scene.text("stream"), Vec::<i32>::new()).await.unwrap();
    let size = rows.try_fold(0, async |size, row| Ok(size + row.get::<_, &str>(1).len())).await.unwrap();
    assert_eq!(size, 20_000_000);
    let transaction = client.transaction().await.unwrap();
    let portal = transaction.bind(scene.text("stream"), &[]).await.unwrap();
    let mut count = 0;
    loop {
        let rows = transaction.query_portal(&portal, 1500).await.unwrap();
        if rows.is_empty() {
            break;
        }
        count += rows.len();
    }
    assert_eq!(count, 20_000);
}

async fn prepared(scene: Arc<Scene>) {
    let clients = join_all((0..4).map(|_| open(&scene))).await;
    let text = "SELECT person_id FROM dl_resolved.people WHERE id = $1";
    let statements = join_all(clients.iter().map(|client| client.prepare(text))).await;
    for i in 1..=12_i64 {
        let holder = &clients[usize::try_from(i).unwrap() % 4];
        holder.batch_execute("BEGIN").await.unwrap();
        for (client, statement) in clients.iter().zip(&statements) {
            let row = client.query_one(statement.as_ref().unwrap(), &[&i]).await.unwrap();
            assert_eq!(row.get::<_, &str>(0), format!("pe_{i:06}"));
        }
        holder.batch_execute("COMMIT").await.unwrap();
    }
}

async fn prepared_redefined(scene: Arc<Scene>) {
    let (client, other) = (open(&scene).await, open(&scene).await);
    let table = format!("{}_redefined", scene.prefix);
    client.batch_execute(&format!("CREATE TABLE {table} AS SELECT 1 AS a")).await.unwrap();
    let statement = client.prepare(&format!("SELECT * FROM {table}")).await.unwrap();
    assert_eq!(client.query_one(&statement, &[]).await.unwrap().len(), 1);
    other.batch_execute(&format!("ALTER TABLE {table} ADD COLUMN b int")).await.unwrap();
    // Refused by the server, or healed by the gate: then it is the driver that finds a column more.
    let _ = client.query_one(&statement, &[]).await;
    let statement = client.prepare(&format!("SELECT * FROM {table}")).await.unwrap();
    assert_eq!(client.query_one(&statement, &[]).await.unwrap().len(), 2);
}

async fn batch(scene: Arc<Scene>) {
    let client = open(&scene).await;
    // Futures that are polled together go out as one pipeline.
    let answers = join_all((0..200_i32).map(|i| {
        let client = &client;
        async move { client.query_one("SELECT $1::int", &[&i]).await.unwrap().get::<_, i32>(0) }
    }))
    .await;
    assert_eq!(answers, (0..200).collect::<Vec<_>>());
}

async fn insert_many(scene: Arc<Scene>) {
    let client = open(&scene).await;
    let table = format!("{}_keys", scene.prefix);
    let create = format!("CREATE TABLE {table} (id bigint GENERATED ALWAYS AS IDENTITY, body text)");
    client.batch_execute(&create).await.unwrap();
    let insert = format!("INSERT INTO {table} (body) VALUES ($1), ($2), ($3) RETURNING id");
    let rows = client.query(&insert, &[&"a", &"b", &None::<&str>]).await.unwrap();
    assert_eq!(rows.iter().map(|row| row.get(0)).collect::<Vec<i64>>(), [1, 2, 3]);
}

async fn empty(scene: Arc<Scene>) {
    let client = open(&scene).await;
    for text in ["", "-- nothing", ";", "/* nothing */"] {
        assert!(client.query(text, &[]).await.unwrap().is_empty(), "{text:?}");
        client.batch_execute(text).await.unwrap();
    }
}

async fn notice(scene: Arc<Scene>) {
    let connecting = scene.credentials.config();
    let (client, mut connection) = connecting.connect(connector(&scene.credentials.ca_pem)).await.unwrap();
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut messages = stream::poll_fn(move |context| connection.poll_message(context));
        while let Some(Ok(message)) = messages.next().await {
            let _ = sender.send(message);
        }
    });
    client.batch_execute(&format!("DROP TABLE IF EXISTS {}_nothing", scene.prefix)).await.unwrap();
    let Some(AsyncMessage::Notice(notice)) = receiver.recv().await else { panic!("no notice") };
    assert_eq!((notice.severity(), notice.code().code()), ("NOTICE", "00000"));
}

async fn refusal(scene: Arc<Scene>) {
    let client = open(&scene).await;
    let with_parameter = format!("{} WHERE person_id = $1", scene.text("foreign_write"));
    for error in [
        client.batch_execute(scene.text("foreign_write")).await.unwrap_err(),
        client.execute(&with_parameter, &[&"x"]).await.unwrap_err(),
    ] {
        let told = error.as_db_error().expect("the server's");
        assert_eq!((told.code().code(), told.message()), ("42501", scene.text("foreign_write_message")));
        assert!(
            told.detail().unwrap().contains("Rule target.") && told.hint().unwrap().contains("storage"),
            "{told:?}"
        );
    }
    assert_eq!(one(&client, "SELECT 1").await, "1");
}

async fn server_error(scene: Arc<Scene>) {
    let client = open(&scene).await;
    let table = format!("{}_unique", scene.prefix);
    client.batch_execute(&format!("CREATE TABLE {table} (id int CONSTRAINT one_of_a_kind UNIQUE)")).await.unwrap();
    let insert = format!("INSERT INTO {table} VALUES ($1)");
    client.execute(&insert, &[&1]).await.unwrap();
    let error = client.execute(&insert, &[&1]).await.unwrap_err();
    assert_eq!((sqlstate(&error), error.as_db_error().unwrap().constraint()), ("23505", Some("one_of_a_kind")));
    assert_eq!(one(&client, "SELECT 1").await, "1");
}

async fn listen(scene: Arc<Scene>) {
    let error = open(&scene).await.batch_execute("LISTEN a").await.unwrap_err();
    assert!(sqlstate(&error) == "42501" && explain(&error).contains("Poll a table"), "{}", explain(&error));
}

async fn numbers(client: &Client, table: &str) -> Vec<i32> {
    let rows = client.query(&format!("SELECT id FROM {table} ORDER BY id"), &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

async fn transaction(scene: Arc<Scene>) {
    let mut client = open(&scene).await;
    let table = format!("{}_transaction", scene.prefix);
    client.batch_execute(&format!("CREATE TABLE {table} (id int)")).await.unwrap();
    let insert = format!("INSERT INTO {table} VALUES ($1)");
    let transaction = client.transaction().await.unwrap();
    transaction.execute(&insert, &[&1]).await.unwrap();
    transaction.commit().await.unwrap();
    let transaction = client.transaction().await.unwrap();
    transaction.execute(&insert, &[&2]).await.unwrap();
    transaction.rollback().await.unwrap();
    // Dropped: the driver rolls it back behind the caller's back.
    client.transaction().await.unwrap().execute(&insert, &[&3]).await.unwrap();
    assert_eq!(numbers(&client, &table).await, [1]);
    let reading = client.build_transaction().isolation_level(IsolationLevel::Serializable).read_only(true);
    let reading = reading.deferrable(true).start().await.unwrap();
    assert_eq!(sqlstate(&reading.execute(&insert, &[&4]).await.unwrap_err()), "25006");
}

async fn refused_in_transaction(scene: Arc<Scene>) {
    let mut client = open(&scene).await;
    let table = format!("{}_refused", scene.prefix);
    client.batch_execute(&format!("CREATE TABLE {table} (id int)")).await.unwrap();
    let transaction = client.transaction().await.unwrap();
    transaction.execute(&format!("INSERT INTO {table} VALUES (1)"), &[]).await.unwrap();
    assert_eq!(sqlstate(&transaction.execute(scene.text("foreign_write"), &[]).await.unwrap_err()), "42501");
    assert_eq!(sqlstate(&transaction.query("SELECT 1", &[]).await.unwrap_err()), "25P02");
    transaction.rollback().await.unwrap();
    assert!(numbers(&client, &table).await.is_empty());
}

async fn refused_in_savepoint(scene: Arc<Scene>) {
    let mut client = open(&scene).await;
    let table = format!("{}_savepoint", scene.prefix);
    client.batch_execute(&format!("CREATE TABLE {table} (id int)")).await.unwrap();
    let insert = format!("INSERT INTO {table} VALUES ($1)");
    let mut transaction = client.transaction().await.unwrap();
    transaction.execute(&insert, &[&1]).await.unwrap();
    let savepoint = transaction.savepoint("here").await.unwrap();
    savepoint.execute(&insert, &[&2]).await.unwrap();
    assert_eq!(sqlstate(&savepoint.batch_execute("CREATE TABLE unqualified (id int)").await.unwrap_err()), "42501");
    savepoint.rollback().await.unwrap();
    transaction.execute(&insert, &[&3]).await.unwrap();
    transaction.commit().await.unwrap();
    assert_eq!(numbers(&client, &table).await, [1, 3]);
}

async fn refused_in_batch(scene: Arc<Scene>) {
    let client = open(&scene).await;
    let texts = ["SELECT 1", scene.text("foreign_write"), "SELECT 1/0", "SELECT 2"];
    let answers = join_all(texts.iter().map(|text| client.query(*text, &[]))).await;
    let states: Vec<_> = answers.iter().map(|answer| answer.as_ref().err().map_or("", sqlstate)).collect();
    assert_eq!(states, ["", "42501", "22012", ""]);
    let batch = format!("BEGIN; {}; COMMIT", scene.text("foreign_write"));
    assert_eq!(sqlstate(&client.batch_execute(&batch).await.unwrap_err()), "42501");
    let _ = client.batch_execute("ROLLBACK").await;
    assert_eq!(one(&client, "SELECT 1").await, "1");
}

async fn copy_in(scene: Arc<Scene>) {
    let client = open(&scene).await;
    let table = format!("{}_copy", scene.prefix);
    client.batch_execute(&format!("CREATE TABLE {table} (id int, body text)")).await.unwrap();
    let sink = client.copy_in(&format!("COPY {table} FROM STDIN (FORMAT binary)")).await.unwrap();
    let writer = BinaryCopyInWriter::new(sink, &[Type::INT4, Type::TEXT]);
    pin_mut!(writer);
    for i in 0..10_000_i32 {
        writer.as_mut().write(&[&i, &"東京"]).await.unwrap();
    }
    assert_eq!(writer.finish().await.unwrap(), 10_000);
    let sink = client.copy_in(&format!("COPY {table} FROM STDIN")).await.unwrap();
    pin_mut!(sink);
    for i in 10_000..20_000 {
        sink.send(bytes::Bytes::from(format!("{i}\trow\n"))).await.unwrap();
    }
    assert_eq!(sink.finish().await.unwrap(), 10_000);
}

async fn copy_out(scene: Arc<Scene>) {
    let client = open(&scene).await;
    let out = client.copy_out(&format!("COPY {}_copy TO STDOUT", scene.prefix)).await.unwrap();
    let text = out.try_fold(Vec::new(), async |mut all, part| {
        all.extend_from_slice(&part);
        Ok(all)
    });
    assert_eq!(text.await.unwrap().iter().filter(|byte| **byte == b'\n').count(), 20_000);
}

async fn copy_broken(scene: Arc<Scene>) {
    let client = open(&scene).await;
    let copy = format!("COPY {}_copy FROM STDIN", scene.prefix);
    {
        let sink = client.copy_in(&copy).await.unwrap();
        pin_mut!(sink);
        sink.send(bytes::Bytes::from_static(b"no number\tx\n")).await.unwrap();
        assert_eq!(sqlstate(&sink.finish().await.unwrap_err()), "22P02");
    }
    {
        // Dropped: the driver sends CopyFail.
        let sink = client.copy_in(&copy).await.unwrap();
        pin_mut!(sink);
        sink.send(bytes::Bytes::from_static(b"1\tx\n")).await.unwrap();
    }
    let count = client.query_one(&format!("SELECT count(*) FROM {}_copy", scene.prefix), &[]).await.unwrap();
    assert_eq!(count.get::<_, i64>(0), 20_000);
}

async fn cancel(scene: Arc<Scene>) {
    let client = open(&scene).await;
    let token = client.cancel_token();
    let canceller = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        token.cancel_query(connector(&scene.credentials.ca_pem)).await.unwrap();
    };
    let (outcome, ()) = tokio::join!(client.batch_execute(scene.text("long")), canceller);
    assert_eq!(sqlstate(&outcome.unwrap_err()), "57014");
    assert_eq!(one(&client, "SELECT 1").await, "1");
}

async fn timeout(scene: Arc<Scene>) {
    let client = open(&scene).await;
    client.batch_execute("SET statement_timeout = 300").await.unwrap();
    assert_eq!(sqlstate(&client.query(scene.text("long"), &[]).await.unwrap_err()), "57014");
}

async fn settings(scene: Arc<Scene>) {
    let clients = join_all((0..3).map(|_| open(&scene))).await;
    let zones = ["Asia/Tokyo", "Europe/Paris", "UTC"];
    for (client, zone) in clients.iter().zip(zones) {
        client.batch_execute(&format!("SET timezone = '{zone}'")).await.unwrap();
    }
    for round in 0..9 {
        let holder = &clients[round % 3];
        holder.batch_execute("BEGIN; SET LOCAL timezone = 'America/Lima'").await.unwrap();
        for (i, client) in clients.iter().enumerate() {
            let want = if i == round % 3 { "America/Lima" } else { zones[i] };
            assert_eq!(one(client, "SHOW timezone").await, want);
        }
        holder.batch_execute("COMMIT").await.unwrap();
    }
}

async fn introspection(scene: Arc<Scene>) {
    let client = open(&scene).await;
    // Types of the workspace's own make the driver read the catalog.
    let table = format!("{}_types", scene.prefix);
    let statement = client.prepare(&format!("SELECT t, ARRAY[t] FROM {table} AS t")).await.unwrap();
    assert_eq!(statement.columns()[0].type_().schema(), "storage");
    let statement = client.prepare("SELECT salary, active FROM dl_resolved.people").await.unwrap();
    assert_eq!((statement.columns()[0].type_().name(), statement.columns()[1].name()), ("int4range", "active"));
}

async fn rotation(scene: Arc<Scene>) {
    let running = open(&scene).await;
    let (fresh, _) = scene.workspace.rotate("customer_db", 0, false).await;
    assert_eq!(one(&fresh.connect().await, "SELECT 1").await, "1");
    let error = scene.credentials.try_connect().await.expect_err("the old password");
    assert_eq!(sqlstate(&error), "28P01");
    let people = running.query_one("SELECT count(*) FROM dl_resolved.people", &[]).await.unwrap();
    assert_eq!(people.get::<_, i64>(0), PEOPLE);
}
