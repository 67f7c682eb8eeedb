//! The ways in that a configuration may open beside the wire port: a loopback port and a Unix socket without TLS.

use std::{os::unix::fs::PermissionsExt as _, path::PathBuf, process::Stdio, time::Duration};

use portcullis_tests::{
    Options, Stack,
    cluster::{free_port, random},
    customer::{explain, sqlstate},
    raw::{Wire, tags},
    script::bytes,
    wait::{until, within},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
    process::Command,
};
use tokio_postgres::{Config, NoTls, config::SslMode};

use crate::{LONG, protocol::cancel};

const PATIENCE: Duration = Duration::from_secs(20);
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
const GSS_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 48];

/// A directory of a test's own, short enough for a socket in it.
pub struct Place(pub PathBuf);

impl Place {
    pub fn new() -> Self {
        let path = std::env::temp_dir().join(format!("portcullis-{:08x}", random() >> 32));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn socket(&self) -> PathBuf {
        self.0.join(".s.PGSQL.6432")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

async fn stack(place: &Place) -> (Stack, u16) {
    let port = free_port();
    let options = Options::default()
        .proxy("listen.plaintext_address", format!("\"127.0.0.1:{port}\""))
        .proxy("listen.unix_socket", format!("{:?}", place.socket().display().to_string()))
        .proxy("listen.unix_socket_mode", "\"0600\"")
        .proxy("admin.operator_key", "\"operate\"");
    (Stack::private(options).await, port)
}

#[tokio::test]
async fn without_tls_where_the_configuration_says_so() {
    let place = Place::new();
    // As a killed process leaves it.
    drop(std::os::unix::net::UnixListener::bind(place.socket()).unwrap());
    let (mut stack, port) = stack(&place).await;
    let credentials = stack.workspace("storage").await.reveal("customer_db").await;
    assert_eq!(std::fs::metadata(place.socket()).unwrap().permissions().mode() & 0o777, 0o600);

    let mut by_socket = Config::new();
    by_socket.host_path(&place.0).port(6432);
    let mut by_port = Config::new();
    by_port.host("127.0.0.1").port(port);
    for config in [&mut by_socket, &mut by_port] {
        config.user(&credentials.username).password(&credentials.password).dbname(&credentials.database);
        for mode in [SslMode::Disable, SslMode::Prefer] {
            let (client, connection) = config.ssl_mode(mode).connect(NoTls).await.expect("it logs in");
            let connection = tokio::spawn(connection);
            client.batch_execute("SELECT 1").await.unwrap();
            let token = client.cancel_token();
            let (running, ()) = tokio::join!(client.batch_execute(LONG), async {
                tokio::time::sleep(Duration::from_millis(300)).await;
                token.cancel_query(NoTls).await.unwrap();
            });
            assert_eq!(sqlstate(&running.unwrap_err()), "57014");
            drop(client);
            connection.await.unwrap().unwrap();
        }
        let error = config.password("wrong").connect(NoTls).await.err().expect("the password counts here too");
        assert_eq!(sqlstate(&error), "28P01", "{}", explain(&error));
    }

    // There is nothing to bind to, so -PLUS is not offered; who is behind the socket is not asked.
    let mut wire = Wire::unix(&place.socket()).await.unwrap();
    let body = format!("user\0{}\0\0", credentials.username);
    wire.send(&startup(&body)).await.unwrap();
    let offered = wire.next().await.unwrap();
    assert_eq!((offered.tag, &offered.body[..]), (b'R', &b"\0\0\0\x0aSCRAM-SHA-256\0\0"[..]));

    // The wire port takes no session in the clear as before.
    let mut wire = Wire::in_the_clear(credentials.port).await.unwrap();
    let error = wire.authenticate(&credentials, &[]).await.unwrap_err();
    assert!(error.starts_with("28000: this server accepts encrypted connections only"), "{error}");

    stack.proxy().signal("TERM");
    assert!(stack.proxy().wait(PATIENCE).success());
    assert!(!place.socket().exists(), "the socket goes with the process");
}

fn startup(body: &str) -> Vec<u8> {
    let length = u32::try_from(8 + body.len()).unwrap();
    [&length.to_be_bytes()[..], &196_608_u32.to_be_bytes(), body.as_bytes()].concat()
}

/// libpq asks for GSSAPI and TLS first where it may (P4).
#[tokio::test]
async fn requests_for_encryption_are_declined_once_each() {
    let place = Place::new();
    let (stack, port) = stack(&place).await;
    let credentials = stack.workspace("storage").await.reveal("customer_db").await;
    for order in [[GSS_REQUEST, SSL_REQUEST], [SSL_REQUEST, GSS_REQUEST]] {
        let mut socket = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        for request in order {
            socket.write_all(&request).await.unwrap();
            assert_eq!(socket.read_u8().await.unwrap(), b'N');
        }
        socket.write_all(&startup(&format!("user\0{}\0\0", credentials.username))).await.unwrap();
        assert_eq!(socket.read_u8().await.unwrap(), b'R');
    }
    let closed: [(&str, Vec<u8>, &[u8]); 4] = [
        ("the same twice", [SSL_REQUEST, SSL_REQUEST].concat(), b""),
        ("a packet behind a request", [&SSL_REQUEST[..], &startup("user\0x\0\0")].concat(), b""),
        ("direct TLS", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03".to_vec(), b"E"),
        ("nothing", Vec::new(), b""),
    ];
    for (what, sent, begins) in closed {
        let mut socket = UnixStream::connect(place.socket()).await.unwrap();
        socket.write_all(&sent).await.unwrap();
        socket.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let _ = within(PATIENCE, what, socket.read_to_end(&mut answer)).await;
        assert_eq!(&answer[..answer.len().min(1)], begins, "{what}: {answer:?}");
    }
    // One after the other: the first is declined, the second is too much.
    let mut socket = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    socket.write_all(&SSL_REQUEST).await.unwrap();
    assert_eq!(socket.read_u8().await.unwrap(), b'N');
    socket.write_all(&SSL_REQUEST).await.unwrap();
    assert_eq!(socket.read_u8().await.unwrap(), b'E');
}

/// libpq itself, and a cancel that goes in by another door than the session.
#[tokio::test]
async fn psql_and_a_cancel_by_another_door() {
    let place = Place::new();
    let (stack, port) = stack(&place).await;
    let credentials = stack.workspace("storage").await.reveal("customer_db").await;
    let socket = place.0.display().to_string();
    for (host, port, mode) in [
        (socket.as_str(), "6432", "prefer"),
        ("127.0.0.1", &port.to_string(), "disable"),
        ("127.0.0.1", &port.to_string(), "prefer"),
    ] {
        let output = Command::new("psql")
            .args(["-X", "-At", "-c", "SELECT 'here'"])
            .env("PGPASSWORD", &credentials.password)
            .env("PGUSER", &credentials.username)
            .env("PGDATABASE", &credentials.database)
            .envs([("PGHOST", host), ("PGPORT", port), ("PGSSLMODE", mode)])
            .stdin(Stdio::null())
            .output()
            .await
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "here", "{host} {mode}: {output:?}");
    }

    let mut wire = Wire::unix(&place.socket()).await.unwrap();
    wire.authenticate(&credentials, &[]).await.unwrap();
    let sessions =
        stack.access.get("/sessions").without_key().header("authorization", "Bearer operate").send().await.expect(200);
    assert_eq!(sessions[0]["client"], "unix", "{sessions}");
    wire.send(&bytes(&format!("Q {LONG}"))).await.unwrap();
    let superuser = stack.access.superuser("postgres").await;
    let running = "SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%100000000000%' AND pid <> pg_backend_pid()";
    until("the query to run", async || superuser.query_opt(running, &[]).await.unwrap()).await;
    cancel(port, &wire.cancel_key.clone().unwrap()).await;
    let heard = within(PATIENCE, "the cancel", wire.until_ready()).await;
    assert_eq!(tags(&heard), "TEZ", "{heard:?}");
}
