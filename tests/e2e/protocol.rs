//! The protocol through the gate: tokio-postgres's tour, pipelines, refusals in the extended protocol, cancel, direct TLS.

use std::time::Duration;

use futures_util::{SinkExt, TryStreamExt, pin_mut};
use portcullis_tests::{
    Stack,
    customer::{connect, connector, explain, sqlstate, tls},
    raw::{Pipeline, Wire, tags},
    wait::within,
};
use tokio_postgres::config::ChannelBinding;

use crate::{D34, LONG, PEOPLE};

#[tokio::test]
async fn tokio_postgres_takes_the_tour() {
    let workspace = Stack::shared().await.filled().await;
    let credentials = workspace.reveal("customer_db").await;
    let mut config = credentials.config();
    config.channel_binding(ChannelBinding::Require);
    let mut client = connect(&config, &credentials.ca_pem).await.unwrap_or_else(|error| panic!("{}", explain(&error)));
    let row = client.query_one("SELECT person_id FROM dl_resolved.people WHERE id = $1", &[&7_i64]).await.unwrap();
    assert_eq!(row.get::<_, &str>(0), "pe_000007");
    let tables = "SELECT table_name FROM information_schema.tables WHERE table_schema = $1 ORDER BY 1";
    let names: Vec<String> =
        client.query(tables, &[&"dl_resolved"]).await.unwrap().iter().map(|row| row.get(0)).collect();
    assert_eq!(names, ["companies", "people"]);

    client.batch_execute("CREATE TABLE storage.t (id int PRIMARY KEY, body text)").await.unwrap();
    let transaction = client.transaction().await.unwrap();
    transaction.execute("INSERT INTO storage.t VALUES (1, 'lost')", &[]).await.unwrap();
    let error = transaction.execute("DELETE FROM dl_cache.person_enrichments", &[]).await.unwrap_err();
    let refusal = error.as_db_error().unwrap();
    assert_eq!((refusal.code().code(), refusal.message()), ("42501", D34));
    assert!(refusal.hint().is_some_and(|hint| hint.contains("storage.")), "{refusal:?}");
    assert!(refusal.detail().is_some() && refusal.position().is_some(), "{refusal:?}");
    let error = transaction.query("SELECT 1", &[]).await.unwrap_err();
    assert_eq!(sqlstate(&error), "25P02", "{}", explain(&error));
    transaction.rollback().await.unwrap();

    let sink = client.copy_in("COPY storage.t FROM STDIN").await.unwrap();
    pin_mut!(sink);
    for i in 0..2000 {
        sink.send(bytes::Bytes::from(format!("{i}\trow {i}\n"))).await.unwrap();
    }
    assert_eq!(sink.finish().await.unwrap(), 2000);
    let copied = client.copy_out("COPY storage.t TO STDOUT").await.unwrap();
    let size = copied.try_fold(0, async |size, chunk| Ok(size + chunk.len())).await.unwrap();
    assert!(size > 2000 * 8, "{size}");

    let large = "SELECT repeat('x', 1000) FROM generate_series(1, 50000)";
    let rows = client.query_raw::<_, i32, _>(large, []).await.unwrap();
    let size = rows.try_fold(0, async |size, row| Ok(size + row.get::<_, &str>(0).len())).await.unwrap();
    assert_eq!(size, 50_000_000);

    let token = client.cancel_token();
    // A cancel that comes before its statement stops nothing: another one follows, until one has met it.
    let again_and_again = async {
        loop {
            token.cancel_query(connector(&credentials.ca_pem)).await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let running = tokio::select! {
        running = client.batch_execute(LONG) => running,
        () = again_and_again => unreachable!(),
    };
    assert_eq!(sqlstate(&running.unwrap_err()), "57014");
    let people: i64 = client.query_one("SELECT count(*) FROM dl_resolved.people", &[]).await.unwrap().get(0);
    assert_eq!(people, PEOPLE);
}

#[tokio::test]
async fn cancel_reaches_only_the_session_that_holds_the_key() {
    let workspace = Stack::shared().await.workspace("storage").await;
    let credentials = workspace.reveal("customer_db").await;
    let mut victim = Wire::login(&credentials).await;
    let mut other = Wire::login(&credentials).await;
    let keys = [victim.cancel_key.clone().unwrap(), other.cancel_key.clone().unwrap()];
    assert_ne!(keys[0], keys[1]);
    victim.send(&Pipeline::new().query(LONG).bytes).await.unwrap();
    // The other session's key, and a key with one bit changed, must not stop it.
    let mut forged = keys[0].clone();
    *forged.last_mut().unwrap() ^= 1;
    for key in [&keys[1], &forged] {
        cancel(credentials.port, key).await;
    }
    other.query("SELECT 1").await;
    let early = tokio::time::timeout(Duration::from_millis(300), victim.until_ready()).await;
    assert!(early.is_err(), "cancelled by a stranger: {early:?}");
    cancel(credentials.port, &keys[0]).await;
    let messages = within(Duration::from_secs(10), "the cancel", victim.until_ready()).await;
    assert!(messages.iter().any(|message| message.field(b'C').as_deref() == Some("57014")), "{messages:?}");
    // A cancel that comes late hits nothing.
    cancel(credentials.port, &keys[0]).await;
    assert_eq!(tags(&victim.query("SELECT 1").await), "TDCZ");
}

/// A CancelRequest in clear, as libpq before 17 and the JDBC driver send it; waits until the proxy closes.
pub async fn cancel(port: u16, key: &[u8]) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let length = u32::try_from(8 + key.len()).unwrap().to_be_bytes();
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.write_all(&[&length[..], &80_877_102_u32.to_be_bytes(), key].concat()).await.unwrap();
    let mut rest = Vec::new();
    let _ = within(Duration::from_secs(10), "closing a cancel", stream.read_to_end(&mut rest)).await;
    assert_eq!(rest, b"", "a cancel is never answered");
}

#[tokio::test]
async fn direct_tls_needs_the_protocols_name() {
    let stack = Stack::shared().await;
    let credentials = stack.workspace("storage").await.reveal("customer_db").await;
    let mut wire = Wire::direct(credentials.port, &credentials.ca_pem, &[b"postgresql"]).await.unwrap();
    wire.authenticate(&credentials, &[]).await.unwrap();
    assert_eq!(tags(&wire.query("SELECT 1").await), "TDCZ");
    for alpn in [&[][..], &[&b"http/1.1"[..]]] {
        let Ok(mut wire) = Wire::direct(credentials.port, &credentials.ca_pem, alpn).await else { continue };
        assert!(wire.authenticate(&credentials, &[]).await.is_err(), "{alpn:?}");
    }
}

/// P7: old drivers send no SNI.
#[tokio::test]
async fn a_client_without_sni_logs_in() {
    let credentials = Stack::shared().await.workspace("storage").await.reveal("customer_db").await;
    let mut config = tls(&credentials.ca_pem, &[]);
    config.enable_sni = false;
    let connector = tokio_postgres_rustls::MakeRustlsConnect::new(config);
    let (client, connection) = credentials.config().connect(connector).await.expect("it logs in");
    let connection = tokio::spawn(connection);
    assert_eq!(client.query_one("SELECT 1", &[]).await.unwrap().get::<_, i32>(0), 1);
    connection.abort();
}

#[tokio::test]
async fn startup_parameters_are_the_sessions_defaults() {
    let credentials = Stack::shared().await.workspace("storage").await.reveal("customer_db").await;
    let mut wire = Wire::negotiate(credentials.port, &credentials.ca_pem).await.unwrap();
    let parameters = [
        ("application_name", "psi"),
        ("client_encoding", "UTF8"),
        ("DateStyle", "ISO"),
        ("extra_float_digits", "2"),
        ("options", "-c statement_timeout=61s --timezone=Asia/Tokyo -c search_path=storage,\\ public"),
    ];
    wire.authenticate(&credentials, &parameters).await.unwrap();
    let shown = |messages: Vec<portcullis_tests::raw::Message>| messages[1].columns()[0].clone().unwrap();
    for (setting, wanted) in [("timezone", "Asia/Tokyo"), ("statement_timeout", "61s"), ("application_name", "psi")] {
        assert_eq!(shown(wire.query(&format!("SHOW {setting}")).await), wanted);
        wire.query(&format!("RESET {setting}")).await;
        assert_eq!(shown(wire.query(&format!("SHOW {setting}")).await), wanted, "after RESET {setting}");
    }
    let mut bare = Wire::login(&credentials).await;
    let reported = bare.parameters.clone();
    let value = |name: &str| reported.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone()).unwrap();
    for name in ["application_name", "client_encoding", "DateStyle", "IntervalStyle", "TimeZone", "server_version"] {
        assert_eq!(shown(bare.query(&format!("SHOW {name}")).await), value(name), "as reported at the start");
    }
    assert_eq!(bare.parameters, reported, "no report without a change");
    for name in ["server_version", "client_encoding", "standard_conforming_strings", "integer_datetimes"] {
        assert!(wire.parameters.iter().any(|(key, _)| key == name), "no ParameterStatus for {name}");
    }
    for (key, value) in [
        ("role", "postgres"),
        ("session_authorization", "postgres"),
        ("options", "-c role=postgres"),
        ("options", "-c session_replication_role=replica"),
        ("client_encoding", "SJIS"),
        ("replication", "database"),
    ] {
        let mut wire = Wire::negotiate(credentials.port, &credentials.ca_pem).await.unwrap();
        let answer = wire.authenticate(&credentials, &[(key, value)]).await;
        assert!(answer.is_err(), "{key}={value} passed");
    }
}

/// P5: exactly one answer, with the newest version that is spoken and every option that is not, and the session goes on in
/// that version.
#[tokio::test]
async fn a_newer_minor_version_and_unknown_options_are_negotiated() {
    let credentials = Stack::shared().await.workspace("storage").await.reveal("customer_db").await;
    let grease = ("_pq_.test_protocol_negotiation", "");
    let many: &[(&str, &str)] = &[("_pq_.one", "1"), ("application_name", "x"), ("_pq_.two", "2"), grease];
    for (asked, parameters, answer, key_bytes) in [
        (0, &[][..], None, 8),
        (1, &[], None, 8),
        (2, &[], None, 36),
        (0, &[grease], Some((0, vec![grease.0])), 8),
        (2, &[grease], Some((2, vec![grease.0])), 36),
        (3, &[], Some((2, vec![])), 36),
        (9999, &[grease], Some((2, vec![grease.0])), 36),
        (9999, many, Some((2, vec!["_pq_.one", "_pq_.two", grease.0])), 36),
    ] {
        let mut wire = Wire::negotiate(credentials.port, &credentials.ca_pem).await.unwrap();
        wire.minor = asked;
        wire.authenticate(&credentials, parameters).await.unwrap_or_else(|error| panic!("3.{asked}: {error}"));
        let answers: Vec<_> = answer
            .into_iter()
            .map(|(minor, options): (u8, Vec<&str>)| {
                let names = options.iter().map(|name| format!("{name}\0")).collect::<String>();
                let count = u32::try_from(options.len()).unwrap().to_be_bytes();
                [&[0, 3, 0, minor][..], &count, names.as_bytes()].concat()
            })
            .collect();
        assert_eq!(wire.negotiated.iter().map(|one| one.body.clone()).collect::<Vec<_>>(), answers, "3.{asked}");
        assert_eq!(wire.cancel_key.as_ref().map(Vec::len), Some(key_bytes), "3.{asked}");
        assert_eq!(tags(&wire.query("SELECT 1").await), "TDCZ");
    }
}

/// What is no version of protocol 3 hears so in a form that it understands.
#[tokio::test]
async fn other_major_versions_are_refused_in_their_own_form() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let port = Stack::shared().await.access.wire_port;
    for (code, answer) in [
        (131_072_u32, "EFATAL:  unsupported frontend protocol 2.0: server supports 3.0 to 3.2\n\0"),
        (65_536, "EFATAL:  unsupported frontend protocol 1.0: server supports 3.0 to 3.2\n\0"),
    ] {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.write_all(&[&296_u32.to_be_bytes()[..], &code.to_be_bytes()].concat()).await.unwrap();
        let mut heard = Vec::new();
        let _ = within(Duration::from_secs(10), "the refusal", stream.read_to_end(&mut heard)).await;
        assert_eq!(String::from_utf8_lossy(&heard), answer);
    }
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.write_all(&[0, 0, 0, 9, 0, 4, 0, 0, 0]).await.unwrap();
    let mut heard = Vec::new();
    let _ = within(Duration::from_secs(10), "the refusal", stream.read_to_end(&mut heard)).await;
    assert!(heard.starts_with(b"E\0\0\0") && heard.windows(5).any(|code| code == b"0A000"), "{heard:?}");
}

#[tokio::test]
async fn pipelines_keep_the_servers_order() {
    let credentials = Stack::shared().await.workspace("storage").await.reveal("customer_db").await;
    let mut wire = Wire::login(&credentials).await;
    wire.query("CREATE TABLE storage.t (id int)").await;
    let foreign = "DELETE FROM dl_cache.person_enrichments";
    for (what, pipeline, wanted) in [
        ("two statements", Pipeline::new().statement("SELECT 1", &[]).statement("SELECT 2", &[]).sync(), "12TDC12TDCZ"),
        ("an error", Pipeline::new().statement("SELECT 1/0", &[]).statement("SELECT 2", &[]).sync(), "1EZ"),
        ("a refusal", Pipeline::new().statement(foreign, &[]).statement("SELECT 2", &[]).sync(), "EZ"),
        ("work, then a refusal", Pipeline::new().statement("SELECT 1", &[]).statement(foreign, &[]).sync(), "12TDCEZ"),
        (
            "a refusal, Sync, and more work",
            Pipeline::new().statement(foreign, &[]).sync().statement("SELECT 2", &[]).sync(),
            "EZ12TDCZ",
        ),
        ("two simple queries at once", Pipeline::new().query("SELECT 1").query("SELECT 2"), "TDCZTDCZ"),
        ("a refused query before another", Pipeline::new().query(foreign).query("SELECT 2"), "EZTDCZ"),
        (
            "a query, then a refused one",
            Pipeline::new().query("SELECT 1").query(foreign).query("SELECT 3"),
            "TDCZEZTDCZ",
        ),
        ("an empty query", Pipeline::new().query("").query(" ; "), "IZIZ"),
        ("an empty statement", Pipeline::new().statement("", &[]).sync(), "12nIZ"),
        ("parameters", Pipeline::new().statement("SELECT $1::int, $2::text", &[Some("1"), None]).sync(), "12TDCZ"),
        ("a bind of nothing", Pipeline::new().bind("", "nothing", &[]).execute("", 0).sync(), "EZ"),
    ] {
        let messages = wire.run(pipeline).await;
        assert_eq!(tags(&messages), wanted, "{what}: {messages:?}");
    }
    // In a transaction a refusal fails it, wherever it stands in the pipeline.
    let messages = wire.run(Pipeline::new().query("BEGIN").query(foreign).query("SELECT 1").query("ROLLBACK")).await;
    assert_eq!(tags(&messages), "CZEZEZCZ", "{messages:?}");
    let states: Vec<u8> =
        messages.iter().filter(|message| message.tag == b'Z').map(|message| message.body[0]).collect();
    assert_eq!(states, b"TEEI");
    let mut pipeline = Pipeline::new();
    pipeline.statement("BEGIN", &[]).statement("INSERT INTO storage.t VALUES (1)", &[]).statement(foreign, &[]);
    pipeline.statement("COMMIT", &[]).sync();
    let messages = wire.run(&pipeline).await;
    assert_eq!((messages.last().unwrap().body[0], messages.iter().filter(|m| m.tag == b'E').count()), (b'E', 1));
    wire.query("ROLLBACK").await;
    assert_eq!(wire.query("SELECT count(*) FROM storage.t").await[1].columns(), [Some("0".to_owned())]);
    // A portal in pieces.
    let mut pipeline = Pipeline::new();
    pipeline.query("BEGIN").parse("", "SELECT * FROM generate_series(1, 5)").bind("p", "", &[]);
    pipeline.execute("p", 2).execute("p", 2).execute("p", 2).sync().query("COMMIT");
    assert_eq!(tags(&wire.run(&pipeline).await), "CZ12DDsDDsDCZCZ");
}

#[tokio::test]
async fn a_refused_statement_name_is_dead() {
    let credentials = Stack::shared().await.workspace("storage").await.reveal("customer_db").await;
    let mut wire = Wire::login(&credentials).await;
    assert_eq!(tags(&wire.run(Pipeline::new().parse("s", "DROP VIEW dl_resolved.people").sync()).await), "EZ");
    let messages = wire.run(Pipeline::new().bind("", "s", &[]).execute("", 0).sync()).await;
    assert_eq!(messages[0].field(b'C').as_deref(), Some("26000"), "{messages:?}");
    // A refused unnamed Parse also forgets the one before.
    wire.run(Pipeline::new().parse("", "SELECT 1").sync()).await;
    wire.run(Pipeline::new().parse("", "DROP VIEW dl_resolved.people").sync()).await;
    let messages = wire.run(Pipeline::new().bind("", "", &[]).execute("", 0).sync()).await;
    assert_eq!(messages[0].field(b'C').as_deref(), Some("26000"), "{messages:?}");
    let messages = wire.run(Pipeline::new().parse("", "SELECT 1; SELECT 2").sync()).await;
    assert_eq!(tags(&messages), "EZ", "{messages:?}");
}

#[tokio::test]
async fn a_client_may_write_much_before_it_reads() {
    const QUERIES: usize = 2000;
    let credentials = Stack::shared().await.workspace("storage").await.reveal("customer_db").await;
    let wire = Wire::login(&credentials).await;
    let mut pipeline = Pipeline::new();
    let text = "y".repeat(20_000);
    for _ in 0..QUERIES {
        pipeline.statement("SELECT $1::text", &[Some(&text)]);
    }
    pipeline.sync();
    // 40 MB each way: both sides' buffers are full long before the end.
    let mut size = 0;
    let (mut reader, mut writer) = wire.split();
    let sent = tokio::spawn(async move {
        writer.send(&pipeline.bytes).await.expect("all of it is sent");
        writer
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    within(Duration::from_secs(60), "reading it all", async {
        loop {
            let message = reader.next().await.expect("the server goes on");
            size += if message.tag == b'D' { message.body.len() } else { 0 };
            if message.tag == b'Z' {
                break;
            }
        }
    })
    .await;
    sent.await.unwrap();
    assert!(size > QUERIES * 20_000, "{size}");
}
