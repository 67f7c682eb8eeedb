//! TLS from both processes to a workspace's server: encrypted where it is asked for, verified where it is asked for, and
//! never in clear instead.

use std::sync::Arc;

use portcullis_tests::{
    Options, Stack, Workspace,
    certificates::Authority,
    cluster::Cluster,
    customer::{Credentials, connect, explain, sqlstate, tls},
    raw::{Wire, tags},
    script::bytes,
    wait::{PATIENCE, until, within},
};
use rustls::ServerConfig;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_postgres::Client;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::{LONG, protocol::cancel, queue::waiting};

/// The catalog's connections are no concern of these tests.
const CATALOG: &str = "host portcullis all 127.0.0.1/32 scram-sha-256";

/// What the server does.
#[derive(Clone, Copy, Debug)]
enum Server {
    /// Answers `N` to an SSLRequest, and lets in who goes on in clear.
    WithoutTls,
    /// Refuses whoever comes without TLS. Its certificate is for `localhost`.
    WithTlsOnly,
}

/// How a server is configured, and what comes of it.
struct Row {
    server: Server,
    tls: &'static str,
    host: &'static str,
    /// Whether the configured authority is the one that signed the server's certificate, or another of the same name.
    right_authority: bool,
    /// In the sidecar's words, and in the proxy's, why there is no connection; `None` when there is one.
    refusal: Option<[&'static str; 2]>,
}

const ROWS: [Row; 8] = [
    Row {
        server: Server::WithoutTls,
        tls: "require",
        host: "localhost",
        right_authority: true,
        refusal: Some(["server does not support TLS", "the server does not offer TLS"]),
    },
    Row {
        server: Server::WithoutTls,
        tls: "verify-full",
        host: "localhost",
        right_authority: true,
        refusal: Some(["server does not support TLS", "the server does not offer TLS"]),
    },
    Row {
        server: Server::WithTlsOnly,
        tls: "disable",
        host: "localhost",
        right_authority: true,
        refusal: Some(["no pg_hba.conf entry", "no pg_hba.conf entry"]),
    },
    Row { server: Server::WithTlsOnly, tls: "require", host: "127.0.0.1", right_authority: false, refusal: None },
    Row {
        server: Server::WithTlsOnly,
        tls: "verify-full",
        host: "localhost",
        right_authority: false,
        refusal: Some(["invalid peer certificate: BadSignature", "invalid peer certificate: BadSignature"]),
    },
    Row {
        server: Server::WithTlsOnly,
        tls: "verify-full",
        host: "127.0.0.1",
        right_authority: true,
        refusal: Some(["certificate not valid for name", "certificate not valid for name"]),
    },
    Row { server: Server::WithTlsOnly, tls: "verify-full", host: "localhost", right_authority: true, refusal: None },
    // The way back: connections that were made over TLS serve no session either, once the server is another.
    Row {
        server: Server::WithTlsOnly,
        tls: "verify-full",
        host: "localhost",
        right_authority: false,
        refusal: Some(["invalid peer certificate: BadSignature", "invalid peer certificate: BadSignature"]),
    },
];

#[tokio::test]
async fn every_mode_against_servers_with_and_without_tls() {
    let mut stack = Stack::private(Options::default()).await;
    let (ours, other) = (Authority::new(), Authority::new());
    let home = stack.access.home.clone();
    std::fs::write(home.join("right-ca.crt"), &ours.certificate).unwrap();
    std::fs::write(home.join("wrong-ca.crt"), &other.certificate).unwrap();
    prepare(stack.cluster(), &ours).await;
    // All begins in clear, with a session and a pooled connection.
    let workspace = stack.workspace("storage").await;
    let credentials = workspace.reveal("customer_db").await;
    let session = credentials.connect().await;
    session.batch_execute("SELECT 1").await.unwrap();
    for row in ROWS {
        let what = format!("{} with {:?} as {}", row.tls, row.server, row.host);
        stack.kill_sidecar();
        serve_as(stack.cluster(), row.server).await;
        let before = ["portcullis-provisioner", "portcullis-proxy", "postgres"].map(|process| stack.log(process).len());
        let ca = home.join(if row.right_authority { "right-ca.crt" } else { "wrong-ca.crt" });
        stack
            .start_sidecar_with(&[
                ("servers.main.tls", format!("{:?}", row.tls)),
                ("servers.main.host", format!("{:?}", row.host)),
                ("servers.main.ca_file", format!("{:?}", ca.display().to_string())),
            ])
            .await;
        match row.refusal {
            None => works(&stack, &workspace, &credentials, &session, &what).await,
            Some([of_sidecar, of_proxy]) => {
                refuses(&stack, &credentials, &session, &what, of_sidecar).await;
                // The proxy says why twice: for the statement and for the login.
                for (process, words, from, times) in
                    [("portcullis-provisioner", of_sidecar, before[0], 1), ("portcullis-proxy", of_proxy, before[1], 2)]
                {
                    until(&format!("{what}: {words:?} {times} times in the log of {process}"), async || {
                        (stack.log(process)[from..].matches(words).count() >= times).then_some(())
                    })
                    .await;
                }
            }
        }
        let log = stack.log("postgres");
        judge_logins(&log[before[2]..], row.refusal.is_none(), row.tls, &what);
    }
}

#[tokio::test]
async fn nobody_in_between_even_where_the_certificate_is_not_verified() {
    let mut stack = Stack::private(Options::default()).await;
    let ours = Authority::new();
    prepare(stack.cluster(), &ours).await;
    let workspace = stack.workspace("storage").await;
    let credentials = workspace.reveal("customer_db").await;
    let session = credentials.connect().await;
    for (what, downgrade) in [("relays everything", false), ("takes channel binding out of the offer", true)] {
        stack.kill_sidecar();
        serve_as(stack.cluster(), Server::WithTlsOnly).await;
        let before = ["portcullis-proxy", "postgres"].map(|process| stack.log(process).len());
        let port = stand_in_between(stack.access.postgres_port, &ours, downgrade).await;
        let keys = [("servers.main.tls", "\"require\"".to_owned()), ("servers.main.port", port.to_string())];
        stack.start_sidecar_with(&keys).await;
        refuses(&stack, &credentials, &session, what, "SCRAM channel binding").await;
        assert!(stack.log("portcullis-proxy")[before[0]..].contains("SCRAM channel binding"), "{what}");
        judge_logins(&stack.log("postgres")[before[1]..], false, "require", what);
    }
    stack.kill_sidecar();
    let port = stack.access.postgres_port.to_string();
    stack.start_sidecar_with(&[("servers.main.port", port)]).await;
    works(&stack, &workspace, &credentials, &session, "with nobody in between").await;
}

#[tokio::test]
async fn whoever_waits_gets_no_connection_from_before() {
    let mut stack = Stack::private(Options::default().proxy("pool.size_max", 1)).await;
    prepare(stack.cluster(), &Authority::new()).await;
    stack.cluster().reload(&[("ssl", "on")], "host all all 127.0.0.1/32 scram-sha-256").await;
    let credentials = stack.workspace("storage").await.reveal("customer_db").await;
    let (holds, waits) = (credentials.connect().await, credentials.connect().await);
    holds.batch_execute("BEGIN; SELECT 'in clear'").await.unwrap();
    stack.kill_sidecar();
    stack.start_sidecar_with(&[("servers.main.tls", "\"require\"".to_owned())]).await;
    let waiter = tokio::spawn(async move { waits.batch_execute("BEGIN; SELECT 'over TLS'").await.map(|()| waits) });
    until("the second session to wait", async || (waiting(&stack).await? == 1).then_some(())).await;
    // A transaction that has begun is finished where it began.
    holds.batch_execute("COMMIT").await.unwrap();
    let waits = within(PATIENCE, "the waiting session", waiter).await.unwrap().unwrap();
    let superuser = stack.access.superuser("postgres").await;
    let ours = "SELECT query, ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE datname = $1";
    let row = until("one connection", async || superuser.query_one(ours, &[&credentials.database]).await.ok()).await;
    assert_eq!(row.get::<_, &str>("query"), "BEGIN; SELECT 'over TLS'");
    assert!(row.get::<_, bool>("ssl"), "the new connection");
    waits.batch_execute("COMMIT").await.unwrap();
}

/// Listens as somebody in between would: ends TLS with a certificate of his own, goes on to the server over TLS, and
/// passes on what either says. Gives the port.
async fn stand_in_between(server: u16, authority: &Authority, downgrade: bool) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let pem = Authority::new().issue();
    let chain = CertificateDer::pem_slice_iter(pem.certificate.as_bytes()).collect::<Result<_, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_slice(pem.key.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config.with_no_client_auth().with_single_cert(chain, key).unwrap()));
    let connector = TlsConnector::from(Arc::new(tls(&authority.certificate, &[])));
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            // Whoever hangs up ends his own connection only.
            tokio::spawn(pass_on(client, server, acceptor.clone(), connector.clone(), downgrade));
        }
    });
    port
}

async fn pass_on(
    mut client: TcpStream,
    server: u16,
    acceptor: TlsAcceptor,
    connector: TlsConnector,
    downgrade: bool,
) -> std::io::Result<()> {
    let mut request = [0; 8];
    client.read_exact(&mut request).await?;
    client.write_all(b"S").await?;
    let mut client = acceptor.accept(client).await?;
    let mut server = TcpStream::connect(("127.0.0.1", server)).await?;
    server.write_all(&request).await?;
    assert_eq!(server.read_u8().await?, b'S');
    let name = "localhost".try_into().map_err(std::io::Error::other)?;
    let mut server = connector.connect(name, server).await?;
    if downgrade {
        let mut startup = [0; 4096];
        let count = client.read(&mut startup).await?;
        server.write_all(&startup[..count]).await?;
        let mut offer = [0; 43];
        server.read_exact(&mut offer).await?;
        assert_eq!(&offer[..], b"R\0\0\0\x2a\0\0\0\x0aSCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0");
        client.write_all(b"R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0").await?;
        client.flush().await?;
    }
    tokio::io::copy_bidirectional(&mut client, &mut server).await.map(drop)
}

/// A certificate for the server, and a log that tells who came how.
async fn prepare(cluster: &Cluster, authority: &Authority) {
    let pem = authority.issue_for(&["localhost"]);
    let certificate = cluster.put("postgres.crt", &pem.certificate);
    let key = cluster.put("postgres.key", &pem.key);
    let settings = [
        ("ssl_cert_file", certificate.to_str().unwrap()),
        ("ssl_key_file", key.to_str().unwrap()),
        ("log_connections", "on"),
        ("log_line_prefix", "%m [%p] %h "),
    ];
    cluster.reload(&settings, "host all all 127.0.0.1/32 scram-sha-256").await;
}

async fn serve_as(cluster: &Cluster, server: Server) {
    let (ssl, kind) = match server {
        Server::WithoutTls => ("off", "host"),
        Server::WithTlsOnly => ("on", "hostssl"),
    };
    cluster.reload(&[("ssl", ssl)], &format!("{CATALOG}\n{kind} all all 127.0.0.1/32 scram-sha-256")).await;
}

/// Nobody reaches the server, the customer hears no more than that, and the operator hears why.
async fn refuses(stack: &Stack, credentials: &Credentials, session: &Client, what: &str, words: &str) {
    let of_session = session.batch_execute("SELECT 1").await.expect_err(what);
    // Nobody has logged in with this setting before, so the proxy has to ask the server what it reports for it.
    let mut config = credentials.config();
    config.options("-c extra_float_digits=2");
    let of_login = connect(&config, &credentials.ca_pem).await.expect_err(what);
    for error in [of_session, of_login] {
        assert_eq!(sqlstate(&error), "57P03", "{what}: {}", explain(&error));
        let told = "the workspace's database cannot be reached at the moment";
        assert_eq!(error.as_db_error().unwrap().message(), told, "{what}");
    }
    let wanted = json!({"name": "not_to_be", "database": "PostgreSQL", "mode": "control", "profile": "storage"});
    let body = stack.access.post("/workspaces", &wanted).send().await.expect(503);
    assert_eq!(body["reason"], "server_unreachable", "{what}: {body}");
    assert!(body["error"].as_str().unwrap().contains(words), "{what}: {body}");
}

/// Both processes reach the server over TLS, and all of a session works.
async fn works(stack: &Stack, workspace: &Workspace, credentials: &Credentials, session: &Client, what: &str) {
    session.batch_execute("SELECT 1").await.unwrap_or_else(|error| panic!("{what}: {}", explain(&error)));
    let mut wire = Wire::login(credentials).await;
    wire.send(&bytes(&format!("Q {LONG}"))).await.unwrap();
    let superuser = stack.access.superuser("postgres").await;
    let ours = "SELECT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE datname = $1";
    let running = format!("{ours} AND state = 'active' AND query LIKE '%100000000000%'");
    until("the query to run", async || superuser.query_opt(&running, &[&credentials.database]).await.unwrap()).await;
    let backends = superuser.query(ours, &[&credentials.database]).await.unwrap();
    assert!(backends.iter().all(|row| row.get("ssl")), "{what}: {backends:?}");
    cancel(credentials.port, wire.cancel_key.as_ref().unwrap()).await;
    let heard = within(PATIENCE, "the cancelled query", wire.until_ready()).await;
    assert_eq!(tags(&heard), "TEZ", "{what}: {heard:?}");

    // The sidecar, held where it waits for its lock.
    let name = format!("portcullis:{}", credentials.database);
    superuser.execute("SELECT pg_advisory_lock(hashtextextended($1, 0))", &[&name]).await.unwrap();
    let provision = async {
        let call = workspace.access.post("/api/v2/ingestion/provision", &json!({}));
        let _ = call.workspace(&workspace.name).send().await.expect(200);
    };
    let look = async {
        let sessions = "SELECT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                        WHERE application_name = 'portcullis-provisioner' AND datname = 'postgres' \
                        AND wait_event = 'advisory'";
        let rows = until("the sidecar's session", async || {
            let rows = superuser.query(sessions, &[]).await.unwrap();
            (!rows.is_empty()).then_some(rows)
        })
        .await;
        assert!(rows.iter().all(|row| row.get("ssl")), "{what}: the sidecar's session");
        superuser.execute("SELECT pg_advisory_unlock(hashtextextended($1, 0))", &[&name]).await.unwrap();
    };
    tokio::join!(provision, look);
    let made = stack.workspace("storage").await.reveal("customer_db").await;
    made.connect().await.batch_execute("CREATE TABLE storage.t (id int)").await.unwrap();
}

/// What the server saw over TCP, the catalog's connections aside: nobody in clear, and nobody at all where all refuse.
fn judge_logins(log: &str, works: bool, tls: &str, what: &str) {
    let logins: Vec<&str> = log
        .lines()
        .filter(|line| line.contains(" 127.0.0.1 ") || line.contains(" localhost "))
        .filter(|line| line.contains("connection authorized:") && !line.contains("database=portcullis "))
        .collect();
    assert_eq!(!logins.is_empty(), works, "{what}: {logins:#?}");
    assert!(logins.iter().all(|line| line.contains(" SSL enabled ")), "{what}: {logins:#?}");
    let in_clear = log.contains("no encryption");
    assert_eq!(in_clear, tls == "disable", "{what}: {log}");
}
