//! Clients that send garbage, half a packet, a huge length, or nothing: a clear error or a closed connection within the
//! deadline, and no one else notices.

use std::{io, time::Duration};

use portcullis_tests::{
    Options, Stack,
    customer::Credentials,
    raw::{Pipeline, Wire, tags},
    wait::within,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
const GSS_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 48];

/// Sends `bytes` on a fresh connection and reads until it is closed.
async fn answer_to(port: u16, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("the proxy accepts");
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    match within(Duration::from_secs(10), "closing after garbage", read).await {
        Ok(_) => {}
        // Unread bytes of ours make the kernel answer with a reset: closed is closed.
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}"),
    }
    answer
}

fn startup(code: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(8 + body.len()).unwrap();
    [&length.to_be_bytes()[..], &code.to_be_bytes(), body].concat()
}

#[tokio::test]
async fn garbage_before_the_login_closes_the_connection() {
    let stack = Stack::shared().await;
    let workspace = stack.workspace("storage").await;
    let witness = workspace.reveal("customer_db").await.connect().await;
    let port = stack.access.wire_port;
    let v3 = 196_608;
    for (what, bytes) in [
        ("HTTP", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()),
        ("zeros", vec![0; 64]),
        ("a huge length", vec![0x7f, 0xff, 0xff, 0xff, 0, 3, 0, 0]),
        ("a negative length", vec![0xff, 0xff, 0xff, 0xff, 0, 3, 0, 0]),
        ("a length below the minimum", vec![0, 0, 0, 4, 0, 3, 0, 0]),
        ("a length above 10,000", startup(v3, &[b'a'; 10_001])),
        ("a startup message in clear", startup(v3, b"user\0someone\0database\0x\0\0")),
        ("protocol 2.0", startup(131_072, b"user\0x\0\0")),
        ("protocol 4.0", startup(262_144, b"user\0x\0\0")),
        ("two SSL requests", [SSL_REQUEST, SSL_REQUEST].concat()),
        ("plaintext behind the SSL request", [&SSL_REQUEST[..], &startup(v3, b"user\0x\0\0")].concat()),
        ("a query first", b"Q\0\0\0\x0dSELECT 1\0".to_vec()),
    ] {
        let answer = answer_to(port, &bytes).await;
        let understandable = answer.is_empty() || matches!(answer[0], b'E' | b'S' | 0x15);
        assert!(understandable, "{what}: {:?}", String::from_utf8_lossy(&answer));
        witness.batch_execute("SELECT 1").await.unwrap_or_else(|error| panic!("after {what}: {error}"));
    }
}

#[tokio::test]
async fn a_gss_request_is_declined_and_tls_follows() {
    let stack = Stack::shared().await;
    let mut stream = TcpStream::connect(("127.0.0.1", stack.access.wire_port)).await.unwrap();
    stream.write_all(&GSS_REQUEST).await.unwrap();
    let mut answer = [0];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"N");
    stream.write_all(&SSL_REQUEST).await.unwrap();
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"S");
}

#[tokio::test]
async fn malformed_startup_packets_over_tls_get_an_error() {
    let stack = Stack::shared().await;
    let access = &stack.access;
    for (what, body) in [
        ("no user", b"database\0x\0\0".to_vec()),
        ("a key without a value", b"user\0\0".to_vec()),
        ("no end", b"user\0x\0".to_vec()),
        ("bytes after the end", b"user\0x\0\0\0\0\0".to_vec()),
        ("a key twice", b"user\0x\0user\0y\0\0".to_vec()),
        ("replication", b"user\0x\0replication\0true\0\0".to_vec()),
        ("not UTF-8", b"user\0\xff\xfe\0\0".to_vec()),
    ] {
        let mut wire = Wire::negotiate(access.wire_port, &access.ca_pem).await.unwrap();
        wire.send(&startup(196_608, &body)).await.unwrap();
        let messages = within(Duration::from_secs(10), what, wire.until_closed()).await;
        assert_eq!(tags(&messages), "E", "{what}: {messages:?}");
    }
}

#[tokio::test]
async fn garbage_after_the_login_ends_that_session_alone() {
    let stack = Stack::shared().await;
    let workspace = stack.workspace("storage").await;
    let credentials = workspace.reveal("customer_db").await;
    let witness = credentials.connect().await;
    for (what, bytes) in [
        ("an unknown type", b"\x01\0\0\0\x04".to_vec()),
        ("a length below 4", b"Q\0\0\0\x03".to_vec()),
        ("a negative length", b"Q\xff\xff\xff\xffSELECT 1\0".to_vec()),
        ("a length of 2 GB", b"Q\x7f\xff\xff\xffSELECT 1\0".to_vec()),
        ("a query without its end", b"Q\0\0\0\x0cSELECT 1".to_vec()),
        ("a second query hidden behind the first", b"Q\0\0\0\x16SELECT 1\0SELECT 2\0".to_vec()),
        ("a Bind cut short", b"B\0\0\0\x06\0\0".to_vec()),
        ("a second startup packet", startup(196_608, b"user\0x\0\0")),
        ("a password message", b"p\0\0\0\x08abc\0".to_vec()),
    ] {
        let mut wire = Wire::login(&credentials).await;
        wire.send(&bytes).await.unwrap();
        let messages = within(Duration::from_secs(10), what, wire.until_closed()).await;
        assert!(messages.iter().any(|message| message.tag == b'E'), "{what}: {messages:?}");
        assert!(!messages.iter().any(|message| message.tag == b'D'), "{what} ran something: {messages:?}");
        witness.batch_execute("SELECT 1").await.unwrap_or_else(|error| panic!("after {what}: {error}"));
    }
}

#[tokio::test]
async fn a_function_call_is_refused_and_the_session_goes_on() {
    let workspace = Stack::shared().await.workspace("storage").await;
    let mut wire = Wire::login(&workspace.reveal("customer_db").await).await;
    // FunctionCall of pg_backend_pid (2026), no arguments, text result.
    wire.send(b"F\0\0\0\x0e\0\0\x07\xea\0\0\0\0\0\0").await.unwrap();
    let messages = wire.until_ready().await;
    assert_eq!(tags(&messages), "EZ", "{messages:?}");
    assert_eq!(tags(&wire.query("SELECT 1").await), "TDCZ");
}

#[tokio::test]
async fn silence_ends_at_the_deadline() {
    let stack = Stack::private(Options::default().proxy("limits.connect_timeout_ms", 1000)).await;
    let workspace = stack.workspace("storage").await;
    let witness = workspace.reveal("customer_db").await.connect().await;
    let (port, ca) = (stack.access.wire_port, stack.access.ca_pem.clone());
    let deadline = Duration::from_secs(6);
    for (what, bytes) in [
        ("nothing", &b""[..]),
        ("half an SSL request", &SSL_REQUEST[..5]),
        ("half a TLS hello", b"\x16\x03\x01\x02\0\x01"),
    ] {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut rest = Vec::new();
        let _ = within(deadline, what, stream.read_to_end(&mut rest)).await;
    }
    let mut wire = Wire::negotiate(port, &ca).await.unwrap();
    within(deadline, "TLS and nothing", wire.until_closed()).await;
    let mut wire = Wire::negotiate(port, &ca).await.unwrap();
    wire.send(&startup(196_608, b"user\0x\0database\0x\0\0")).await.unwrap();
    within(deadline, "a startup packet and no answer to SASL", wire.until_closed()).await;
    witness.batch_execute("SELECT 1").await.unwrap();
}

/// P45, P46: whoever breaks the exchange is told at once, not at a deadline; and a second startup packet within it, TLS
/// within TLS, or channel binding to another certificate open nothing.
#[tokio::test]
async fn a_broken_scram_exchange_ends_at_once() {
    let stack = Stack::shared().await;
    let credentials = stack.workspace("storage").await.reveal("customer_db").await;
    let user = format!("user\0{}\0database\0{}\0\0", credentials.username, credentials.database);
    let start = startup(196_608, user.as_bytes());
    let message = |body: &[u8]| [&b"p"[..], &u32::try_from(body.len() + 4).unwrap().to_be_bytes(), body].concat();
    let first = |mechanism: &str, text: &str| {
        let length = u32::try_from(text.len()).unwrap().to_be_bytes();
        message(&[mechanism.as_bytes(), b"\0", &length, text.as_bytes()].concat())
    };
    let good = first("SCRAM-SHA-256", "n,,n=,r=fyko+d2lbbFgONRv9qkxdawL");
    for (what, sent) in [
        ("an unknown mechanism", vec![first("SCRAM-SHA-1", "n,,n=,r=abc")]),
        ("a length beyond the message", vec![message(b"SCRAM-SHA-256\0\x7f\xff\xff\xffn,,n=,r=abc")]),
        ("a negative length", vec![message(b"SCRAM-SHA-256\0\x80\0\0\0n,,n=,r=abc")]),
        ("no NUL", vec![message(b"SCRAM-SHA-256")]),
        ("nothing", vec![message(b"")]),
        ("a message of 64 kB", vec![message(&[b'n'; 65_536])]),
        ("an authorization identity", vec![first("SCRAM-SHA-256", "n,a=postgres,n=,r=abc")]),
        ("a downgrade: y where PLUS was offered", vec![first("SCRAM-SHA-256", "y,,n=,r=fyko+d2lbbFgONRv9qkxdawL")]),
        ("PLUS without binding", vec![first("SCRAM-SHA-256-PLUS", "n,,n=,r=fyko+d2lbbFgONRv9qkxdawL")]),
        ("binding without PLUS", vec![first("SCRAM-SHA-256", "p=tls-server-end-point,,n=,r=fyko+d2lbbFgONRv9")]),
        ("another binding", vec![first("SCRAM-SHA-256-PLUS", "p=tls-unique,,n=,r=fyko+d2lbbFgONRv9qkxdawL")]),
        ("a query instead", vec![b"Q\0\0\0\x0dSELECT 1\0".to_vec()]),
        ("a second startup packet", vec![start.clone()]),
        ("a second startup packet within the exchange", vec![good.clone(), start.clone()]),
        ("TLS within TLS", vec![SSL_REQUEST.to_vec()]),
        ("a last message that is none", vec![good.clone(), message(b"c=biws,r=wrong,p=AAAA")]),
        ("a first message twice", vec![good.clone(), good.clone()]),
    ] {
        let mut wire = Wire::negotiate(credentials.port, &credentials.ca_pem).await.unwrap();
        wire.send(&start).await.unwrap();
        assert_eq!(wire.next().await.unwrap().tag, b'R', "{what}");
        for bytes in &sent {
            let _ = wire.send(bytes).await;
        }
        let heard = within(Duration::from_secs(8), what, wire.until_closed()).await;
        let heard: Vec<_> = heard.iter().filter(|message| message.tag != b'R').collect();
        assert!(heard.len() == 1 && heard[0].tag == b'E', "{what}: {heard:?}");
        assert_eq!(heard[0].field(b'S').as_deref(), Some("FATAL"), "{what}");
        let code = heard[0].field(b'C').unwrap();
        assert!(matches!(code.as_str(), "08P01" | "28P01" | "28000" | "0A000" | "54000"), "{what}: {code}");
    }
    // TLS requests behind the handshake, in place of the startup packet.
    for (what, request) in [("SSL", SSL_REQUEST), ("GSS", GSS_REQUEST)] {
        let mut wire = Wire::negotiate(credentials.port, &credentials.ca_pem).await.unwrap();
        wire.send(&request).await.unwrap();
        let heard = within(Duration::from_secs(8), what, wire.until_closed()).await;
        assert!(matches!(tags(&heard).as_str(), "E" | ""), "{what}: {heard:?}");
    }
    bound_elsewhere(&credentials, &start).await;
}

/// The right password, bound to a certificate that was not shown: somebody stands in between.
async fn bound_elsewhere(credentials: &Credentials, start: &[u8]) {
    use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256_PLUS, ScramSha256};
    use postgres_protocol::message::frontend;
    let mut wire = Wire::negotiate(credentials.port, &credentials.ca_pem).await.unwrap();
    wire.send(start).await.unwrap();
    assert_eq!(wire.next().await.unwrap().tag, b'R');
    let binding = ChannelBinding::tls_server_end_point(vec![7; 32]);
    let mut scram = ScramSha256::new(credentials.password.as_bytes(), binding);
    let mut out = bytes::BytesMut::new();
    frontend::sasl_initial_response(SCRAM_SHA_256_PLUS, scram.message(), &mut out).unwrap();
    wire.send(&out).await.unwrap();
    scram.update(&wire.next().await.unwrap().body[4..]).unwrap();
    out.clear();
    frontend::sasl_response(scram.message(), &mut out).unwrap();
    wire.send(&out).await.unwrap();
    let heard = within(Duration::from_secs(8), "bound elsewhere", wire.until_closed()).await;
    assert_eq!(tags(&heard), "E", "{heard:?}");
}

/// P10: every message in pieces of one byte.
#[tokio::test]
async fn a_session_in_single_bytes() {
    let workspace = Stack::shared().await.workspace("storage").await;
    let credentials = workspace.reveal("customer_db").await;
    let mut wire = Wire::negotiate(credentials.port, &credentials.ca_pem).await.unwrap();
    wire.byte_by_byte = true;
    wire.authenticate(&credentials, &[("application_name", "slow")]).await.unwrap();
    let mut pipeline = Pipeline::new();
    pipeline.query("CREATE TABLE storage.t (id int, v text)");
    pipeline.parse("s", "SELECT $1::text").bind("", "s", &[Some("x")]).describe(b'P', "").execute("", 0).sync();
    pipeline.query("DROP VIEW dl_resolved.people").query("SHOW application_name");
    assert_eq!(tags(&wire.run(&pipeline).await), "CZ12TDCZEZTDCZ");
    let copy = "Q COPY storage.t FROM STDIN\nd 1\\tone\\n\nd 2\\ttwo\\n\nc\nQ SELECT count(*) FROM storage.t";
    let heard = portcullis_tests::script::hold(&mut wire, copy).await;
    assert_eq!(heard.as_deref(), Ok("G C(COPY 2) ZI T D(2) C(SELECT 1) ZI ZI"));
}

/// P39: a load balancer that looks whether the port is open leaves no line in the log.
#[tokio::test]
async fn a_health_check_is_not_worth_a_line() {
    let stack = Stack::private(Options::default()).await;
    let before = stack.proxy_log();
    for _ in 0..50 {
        drop(TcpStream::connect(("127.0.0.1", stack.access.wire_port)).await.unwrap());
    }
    let access = stack.access.clone();
    portcullis_tests::wait::until("them to be gone", async || {
        let page = access.get("/metrics").without_key().try_send().await.ok()?.text;
        let counted = page.lines().find_map(|line| line.strip_prefix("portcullis_client_connections_total "))?;
        let gone = page.contains("\nportcullis_client_connections 0\n");
        (gone && counted.parse::<u64>().ok()? >= 50).then_some(())
    })
    .await;
    assert_eq!(stack.proxy_log(), before);
}

#[tokio::test]
async fn a_client_that_vanishes_ends_its_transaction_at_once() {
    let workspace = Stack::shared().await.workspace("storage").await;
    let credentials = workspace.reveal("customer_db").await;
    let witness = credentials.connect().await;
    witness.batch_execute("CREATE TABLE storage.t (id int)").await.unwrap();
    for begin in ["BEGIN", "COPY storage.t FROM STDIN", crate::LONG] {
        let mut wire = Wire::login(&credentials).await;
        let mut pipeline = Pipeline::new();
        if begin == "BEGIN" {
            wire.query("BEGIN").await;
            wire.query("INSERT INTO storage.t VALUES (1)").await;
        } else {
            pipeline.query(begin);
            wire.send(&pipeline.bytes).await.unwrap();
            if begin.starts_with("COPY") {
                while wire.next().await.unwrap().tag != b'G' {}
            }
        }
        drop(wire);
        let truncate = witness.batch_execute("TRUNCATE storage.t");
        within(Duration::from_secs(10), begin, truncate).await.unwrap();
    }
}

#[tokio::test]
async fn unknown_users_and_wrong_passwords_look_the_same() {
    let workspace = Stack::shared().await.workspace("storage").await;
    let right = workspace.reveal("customer_db").await;
    let wrong = Credentials { password: "wrong".to_owned(), ..right.clone() };
    let unknown = Credentials { username: "tdb_0123456789abcdef".to_owned(), ..right.clone() };
    let mut answers = Vec::new();
    for credentials in [wrong, unknown] {
        let mut wire = Wire::negotiate(credentials.port, &credentials.ca_pem).await.unwrap();
        let error = wire.authenticate(&credentials, &[]).await.expect_err("refused");
        answers.push(error.replace(&credentials.username, "USER"));
    }
    assert_eq!(answers[0], answers[1]);
    assert!(answers[0].starts_with("28P01: password authentication failed"), "{}", answers[0]);
}

/// Texts that take seconds to judge, from two workspaces: whoever sends ordinary ones meanwhile, longer ones among them, is
/// answered before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_for_texts_that_are_made_to_take_long() {
    const HEAVY: usize = 100_000;
    let stack = Stack::shared().await;
    let mut witness = Wire::login(&stack.workspace("storage").await.reveal("customer_db").await).await;
    let mut attackers = Vec::new();
    for _ in 0..2 {
        attackers.push(Wire::login(&stack.workspace("storage").await.reveal("customer_db").await).await);
    }
    let mut bombs = tokio::task::JoinSet::new();
    for mut attacker in attackers {
        let mut twice = Pipeline::new();
        twice.query(&format!("SELECT a{}", ",a".repeat(HEAVY))).query("SELECT 1");
        attacker.send(&twice.bytes).await.expect("it is sent");
        bombs.spawn(async move { attacker.until_ready().await });
    }
    let list: Vec<String> = (0..3_000).map(|n| n.to_string()).collect();
    let longer = format!("SELECT 1 WHERE 1 IN ({})", list.join(","));
    for round in 0..10 {
        for text in ["SELECT 1", &longer] {
            let heard = witness.query(&format!("{text} -- {round}")).await;
            assert_eq!(tags(&heard), "TDCZ");
        }
    }
    assert!(bombs.try_join_next().is_none(), "the witness waited for somebody else's text");
    while let Some(heard) = bombs.join_next().await {
        // Judged at last, and wrong: there is no such column.
        assert_eq!(heard.unwrap()[0].field(b'C').as_deref(), Some("42703"));
    }
}
