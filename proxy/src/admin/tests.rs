#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Mutex;

use http_body_util::{BodyExt as _, Full};
use portcullis_config::{Environment, SidecarAddress};
use rcgen::PKCS_ECDSA_P256_SHA256;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;
use tokio_rustls::TlsConnector;

use super::*;
use crate::door::bind;
use crate::testing::{Chain, Dir};
use portcullis_policy::CacheSize;

/// A data plane of given facts.
#[derive(Default)]
struct Facts {
    age: Mutex<Option<Duration>>,
}

impl DataPlane for Facts {
    fn catalog_age(&self) -> Option<Duration> {
        *self.age.lock().unwrap()
    }
    fn catalog_revision(&self) -> i64 {
        7
    }
    fn pool_totals(&self) -> PoolTotals {
        PoolTotals { pools: 1, active: 2, idle: 3, connecting: 4, waiters: 5, paused: 1 }
    }
    fn verdicts(&self) -> CacheSize {
        CacheSize { texts: 6, shapes: 7, bytes: 8 }
    }
    fn memory(&self) -> Memory {
        Memory::default()
    }
    fn pools(&self) -> Vec<PoolRow> {
        vec![PoolRow {
            server: "main".into(),
            workspace: "ws_1".into(),
            database: "ws_1".into(),
            paused: false,
            role: "ws_1_customer_db".into(),
            generation: 1,
            active: 2,
            idle: 3,
            connecting: 4,
            waiters: 5,
            oldest_wait_ms: 6,
        }]
    }
    fn sessions(&self) -> Vec<SessionRow> {
        Vec::new()
    }
    fn operate<'a>(&'a self, workspace: &'a str, order: Order, patience: Duration) -> BoxFuture<'a, Option<Standing>> {
        let standing = Standing {
            workspace: workspace.to_owned(),
            paused: order == Order::Pause,
            settled: patience > Duration::ZERO,
            connections: 1,
            sessions: 2,
            sessions_ended: 3,
        };
        Box::pin(async move { (workspace == "acme").then_some(standing) })
    }
}

/// An admin port that runs, and what can be done to it.
struct Running {
    address: SocketAddr,
    facts: Arc<Facts>,
    draining: CancellationToken,
    metrics: Arc<Metrics>,
    chain: Chain,
    _dir: Dir,
}

fn running(sidecar: SidecarAddress, change: impl FnOnce(&mut AdminConfig)) -> Running {
    let (dir, chain) = (Dir::new(), Chain::new(&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P256_SHA256));
    let files = chain.write(&dir);
    let file = dir.write(
        "proxy.toml",
        format!(
            "[tls]\ncertificate_file = {:?}\nkey_file = {:?}\n[catalog]\nurl = \"host=none\"\n[keys]\nproxy_key = \"{}\"\n",
            files.certificate_file,
            files.key_file,
            "00".repeat(32)
        ),
    );
    let mut config = ProxyConfig::load(Some(&file), &Environment::default()).unwrap();
    config.admin.tls = false;
    config.admin.sidecar = sidecar;
    config.admin.body_bytes_max = 1000;
    change(&mut config.admin);
    let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let address = listener.local_addr().unwrap();
    let (facts, draining) = (Arc::new(Facts::default()), CancellationToken::new());
    *facts.age.lock().unwrap() = Some(Duration::ZERO);
    let (tls, metrics) = (Arc::new(Tls::load(&files).unwrap()), Arc::new(Metrics::new()));
    let admin = Admin::new(&config, tls, metrics.clone(), draining.clone(), facts.clone());
    tokio::spawn(serve(listener, Arc::new(admin), CancellationToken::new()));
    Running { address, facts, draining, metrics, chain, _dir: dir }
}

/// Nobody listens there.
fn nobody() -> SidecarAddress {
    SidecarAddress::Unix(PathBuf::from("/nonexistent/sidecar.sock"))
}

impl Running {
    /// Sends text as it is and reads until the port closes.
    async fn raw(&self, request: &str) -> String {
        let mut socket = TcpStream::connect(self.address).await.unwrap();
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer).await;
        String::from_utf8(answer).unwrap()
    }

    async fn ask(&self, method: &str, path: &str, lines: &str) -> String {
        self.raw(&format!("{method} {path} HTTP/1.1\r\nHost: gate\r\nConnection: close\r\n{lines}\r\n")).await
    }
}

fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("no status in {answer:?}"))
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").unwrap().1
}

fn problem(answer: &str) -> serde_json::Value {
    assert!(answer.to_lowercase().contains("content-type: application/problem+json\r\n"), "{answer}");
    serde_json::from_str(body(answer)).unwrap()
}

/// What the sidecar saw: head and body of each request, in order.
type Seen = Arc<Mutex<Vec<(hyper::http::request::Parts, Vec<u8>)>>>;

/// A sidecar that notes what it sees and answers 201 with a hop-by-hop line of its own.
fn sidecar() -> (SidecarAddress, Seen, Dir) {
    let dir = Dir::new();
    let path = dir.path().join("sidecar.sock");
    let (listener, seen) = (UnixListener::bind(&path).unwrap(), Seen::default());
    let noted = seen.clone();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let noted = noted.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let noted = noted.clone();
                async move {
                    let (parts, body) = request.into_parts();
                    let body = body.collect().await?.to_bytes().to_vec();
                    noted.lock().unwrap().push((parts, body));
                    let answer = Response::builder()
                        .status(201)
                        .header("x-answer", "yes")
                        .header("connection", "x-hop")
                        .header("x-hop", "1")
                        .body(Full::new(bytes::Bytes::from_static(b"made")));
                    Ok::<_, hyper::Error>(answer.unwrap())
                }
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(socket), service));
        }
    });
    (SidecarAddress::Unix(path), seen, dir)
}

#[tokio::test]
async fn health_says_what_is_the_matter() {
    let port = running(nobody(), |_| {});
    assert_eq!(status(&port.ask("GET", "/livez", "").await), 200);
    let rows: [(Option<u64>, u16, &str); 4] = [
        (Some(0), 200, "[]"),
        (None, 503, "no snapshot"),
        (Some(901), 503, "901 s ago (at most 900 s)"),
        (Some(900), 200, "[]"),
    ];
    for (age, expect, says) in rows {
        *port.facts.age.lock().unwrap() = age.map(Duration::from_secs);
        let answer = port.ask("GET", "/readyz", "").await;
        assert_eq!((status(&answer), body(&answer).contains(says)), (expect, true), "{age:?}: {answer}");
    }
    port.draining.cancel();
    let answer = port.ask("GET", "/readyz", "").await;
    assert!(status(&answer) == 503 && body(&answer).contains("draining"), "{answer}");
    assert_eq!(status(&port.ask("GET", "/livez", "").await), 200);
}

#[tokio::test]
async fn who_may_see_what() {
    let open = running(nobody(), |_| {});
    let keyed = running(nobody(), |admin| {
        admin.metrics_token = Some("scrape".to_owned().into());
        admin.operator_key = Some("operate".to_owned().into());
    });
    let operator = "Authorization: Bearer operate\r\n";
    let rows: [(&Running, &str, &str, &str, u16); 26] = [
        (&open, "POST", "/workspaces/acme/pause", "", 404),
        (&keyed, "POST", "/workspaces/acme/pause", "", 401),
        (&keyed, "POST", "/workspaces/acme/pause", "Authorization: Bearer scrape\r\n", 401),
        (&keyed, "GET", "/workspaces/acme/pause", operator, 405),
        (&keyed, "POST", "/workspaces/acme/pause", operator, 200),
        (&keyed, "POST", "/workspaces/acme/kill?timeout_ms=0", operator, 202),
        (&keyed, "POST", "/workspaces/acme/resume?timeout=1", operator, 400),
        (&keyed, "POST", "/workspaces/nobody/reconnect", operator, 404),
        (&open, "GET", "/metrics", "", 200),
        (&open, "HEAD", "/metrics", "", 200),
        (&open, "POST", "/metrics", "", 405),
        (&open, "GET", "/pools", "", 404),
        (&open, "GET", "/sessions", "", 404),
        (&open, "POST", "/drain", "", 404),
        (&keyed, "GET", "/metrics", "", 401),
        (&keyed, "GET", "/metrics", "Authorization: Bearer operate\r\n", 401),
        (&keyed, "GET", "/metrics", "Authorization: Bearer scrape\r\n", 200),
        (&keyed, "GET", "/livez", "", 200),
        (&keyed, "GET", "/pools", "", 401),
        (&keyed, "GET", "/pools", "Authorization: Bearer scrape\r\n", 401),
        (&keyed, "GET", "/pools", "Authorization: Bearer operate\r\n", 200),
        (&keyed, "GET", "/sessions", "Authorization: Bearer operate\r\n", 200),
        (&keyed, "DELETE", "/pools", "Authorization: Bearer operate\r\n", 405),
        (&keyed, "GET", "/drain", "Authorization: Bearer operate\r\n", 405),
        (&keyed, "POST", "/drain", "", 401),
        (&keyed, "POST", "/drain", "Authorization: Bearer operate\r\n", 202),
    ];
    for (port, method, path, lines, expect) in rows {
        assert!(!port.draining.is_cancelled(), "before {method} {path}");
        let answer = port.ask(method, path, lines).await;
        assert_eq!(status(&answer), expect, "{method} {path} {lines:?}: {answer}");
    }
    assert!(keyed.draining.is_cancelled());
    let pools = keyed.ask("GET", "/pools", "Authorization: Bearer operate\r\n").await;
    assert_eq!(serde_json::from_str::<serde_json::Value>(body(&pools)).unwrap()[0]["oldest_wait_ms"], 6);
    let page = open.ask("GET", "/metrics", "").await;
    for line in [
        "portcullis_upstream_connections{state=\"connecting\"} 4\n",
        "portcullis_catalog_revision 7\n",
        "portcullis_ready 1\n",
    ] {
        assert!(page.contains(line), "{line} in {page}");
    }
}

#[tokio::test]
async fn everything_else_goes_to_the_sidecar_without_claims() {
    let (address, seen, _dir) = sidecar();
    let port = running(address, |_| {});
    let lines = "Authorization: Bearer k\r\nX-Workspace: w\r\nX-Forwarded-For: 1.2.3.4\r\nForwarded: for=1.2.3.4\r\n\
                 X-Real-IP: 1.2.3.4\r\nX-Request-Id: mine\r\nUpgrade: websocket\r\nContent-Length: 2\r\n";
    let answer = port
        .raw(&format!(
            "PATCH /workspaces/w?x=1 HTTP/1.1\r\nHost: gate\r\nConnection: close, x-hop\r\nX-Hop: 1\r\n{lines}\r\n{{}}"
        ))
        .await;
    assert_eq!((status(&answer), body(&answer)), (201, "made"), "{answer}");
    assert!(answer.contains("x-answer: yes\r\n") && !answer.contains("x-hop"), "{answer}");

    let seen = seen.lock().unwrap();
    let (head, content) = seen.first().unwrap();
    assert_eq!(
        (head.method.as_str(), head.uri.to_string(), &content[..]),
        ("PATCH", "/workspaces/w?x=1".into(), &b"{}"[..])
    );
    let mut names: Vec<&str> = head.headers.keys().map(|name| name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["authorization", "content-length", "host", "x-request-id", "x-workspace"]);
    assert_ne!(head.headers["x-request-id"], "mine");
}

/// Bytes that two parsers could read as different numbers of requests.
#[tokio::test]
async fn a_request_cannot_be_smuggled() {
    let rows: [(&str, &str, &[&str]); 7] = [
        (
            "both lengths",
            "POST /a HTTP/1.1\r\nHost: g\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: g\r\n\r\n",
            &["/a"],
        ),
        (
            "both, other order",
            "POST /a HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: chunked\r\nContent-Length: 40\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: g\r\n\r\n",
            &["/a"],
        ),
        ("two lengths", "POST /a HTTP/1.1\r\nHost: g\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde", &[]),
        (
            "not chunked at last",
            "POST /a HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
            &[],
        ),
        ("chunked in HTTP/1.0", "POST /a HTTP/1.0\r\nHost: g\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", &[]),
        ("two hosts", "GET /a HTTP/1.1\r\nHost: g\r\nHost: h\r\nConnection: close\r\n\r\n", &[]),
        ("no host", "GET /a HTTP/1.1\r\nConnection: close\r\n\r\n", &[]),
    ];
    for (name, bytes, expect) in rows {
        let (address, seen, _dir) = sidecar();
        let port = running(address, |_| {});
        let answer = port.raw(bytes).await;
        let seen: Vec<String> = seen.lock().unwrap().iter().map(|(head, _)| head.uri.to_string()).collect();
        assert_eq!(seen, expect, "{name}");
        assert_eq!(status(&answer), if expect.is_empty() { 400 } else { 201 }, "{name}: {answer}");
    }
}

#[tokio::test]
async fn a_body_has_a_bound() {
    let chunked =
        |bytes: usize| format!("Transfer-Encoding: chunked\r\n\r\n{bytes:x}\r\n{}\r\n0\r\n\r\n", "x".repeat(bytes));
    let sized = |bytes: usize| format!("Content-Length: {bytes}\r\n\r\n{}", "x".repeat(bytes));
    for (lines, expect, arrives) in
        [(sized(1000), 201, 1), (sized(1001), 413, 0), (chunked(1000), 201, 1), (chunked(1001), 413, 0)]
    {
        let (address, seen, _dir) = sidecar();
        let port = running(address, |_| {});
        let answer = port.raw(&format!("POST /a HTTP/1.1\r\nHost: g\r\nConnection: close\r\n{lines}")).await;
        assert_eq!((status(&answer), seen.lock().unwrap().len()), (expect, arrives), "{answer}");
        if expect == 413 {
            assert_eq!(problem(&answer)["code"], "too_long");
        }
    }
}

#[tokio::test]
async fn methods_that_are_not_passed_on() {
    let (address, seen, _dir) = sidecar();
    let port = running(address, |_| {});
    for request in ["TRACE /a", "CONNECT gate:443", "BREW /a"] {
        let answer = port.raw(&format!("{request} HTTP/1.1\r\nHost: gate\r\nConnection: close\r\n\r\n")).await;
        assert_eq!(status(&answer), 405, "{request}: {answer}");
    }
    assert!(seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn without_a_sidecar_a_sentence_says_what_to_do() {
    let free = bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap().local_addr().unwrap();
    for address in [nobody(), SidecarAddress::Tcp { host: free.ip().to_string(), port: free.port() }] {
        let port = running(address, |_| {});
        let answer = port.ask("GET", "/workspaces", "").await;
        assert_eq!(status(&answer), 503);
        let problem = problem(&answer);
        assert_eq!((&problem["code"], &problem["http_status"]), (&"unavailable".into(), &503.into()));
        assert!(problem["error"].as_str().unwrap().contains("start portcullis-provisioner"), "{problem}");
        assert_eq!(problem["request_id"].as_str().map(str::len), Some(16));
        assert!(port.metrics.render(&Observed::default()).contains("sidecar_failures_total{reason=\"connect\"} 1\n"));
        assert_eq!(status(&port.ask("GET", "/livez", "").await), 200);
    }
}

/// A sidecar that says `first` after it has read something, and then nothing more.
fn stuck(first: &'static str) -> (SidecarAddress, Arc<tokio::sync::Notify>) {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let (listener, reached) = (TcpListener::from_std(listener).unwrap(), Arc::new(tokio::sync::Notify::new()));
    let (address, tell) = (listener.local_addr().unwrap(), reached.clone());
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        socket.read_u8().await.unwrap();
        socket.write_all(first.as_bytes()).await.unwrap();
        tell.notify_one();
        std::future::pending::<()>().await;
    });
    (SidecarAddress::Tcp { host: address.ip().to_string(), port: address.port() }, reached)
}

#[tokio::test]
async fn a_sidecar_that_is_stuck_is_given_up() {
    let rows = [("", "HTTP/1.1 504 "), ("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf", "HTTP/1.1 200 ")];
    for (first, expect) in rows {
        let (address, reached) = stuck(first);
        let port = running(address, |_| {});
        let mut socket = TcpStream::connect(port.address).await.unwrap();
        socket.write_all(b"GET /a HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n").await.unwrap();
        reached.notified().await;
        tokio::time::pause();
        let began = tokio::time::Instant::now();
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer).await;
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.starts_with(expect), "{answer:?}");
        assert!(began.elapsed() <= EXCHANGE_MAX + Duration::from_secs(1), "{:?}", began.elapsed());
        tokio::time::resume();
    }
}

#[tokio::test]
async fn a_slow_head_is_cut_off() {
    let port = running(nobody(), |_| {});
    for half in ["", "GET /livez HTTP/1.1\r\nHost: g\r\n", "GET /livez HTTP/1.1\r\nHost: g\r\n\r\n"] {
        let mut socket = TcpStream::connect(port.address).await.unwrap();
        socket.write_all(half.as_bytes()).await.unwrap();
        // The port has taken the connection when it has answered a later one.
        port.ask("GET", "/livez", "").await;
        tokio::time::pause();
        let began = tokio::time::Instant::now();
        let _ = socket.read_to_end(&mut Vec::new()).await;
        assert!(began.elapsed() <= HEAD_MAX + Duration::from_secs(1), "{half:?}: {:?}", began.elapsed());
        tokio::time::resume();
    }
}

#[tokio::test]
async fn connections_are_bounded() {
    let port = running(nobody(), |_| {});
    let mut held = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        held.push(TcpStream::connect(port.address).await.unwrap());
    }
    // Accepted in order, so all permits are taken when this one is looked at.
    let mut beyond = TcpStream::connect(port.address).await.unwrap();
    assert!(matches!(beyond.read(&mut [0; 1]).await, Ok(0) | Err(_)));
    drop(held);
    while !port.ask("GET", "/livez", "").await.starts_with("HTTP/1.1 200") {}
}

#[tokio::test]
async fn over_tls_with_http_alpn_only() {
    let port = running(nobody(), |admin| admin.tls = true);
    let connect = async |alpn: &'static [u8]| {
        let socket = TcpStream::connect(port.address).await.unwrap();
        TlsConnector::from(port.chain.client(&[alpn])).connect("localhost".try_into().unwrap(), socket).await
    };
    let mut stream = connect(b"http/1.1").await.unwrap();
    stream.write_all(b"GET /livez HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert_eq!((status(&answer), body(&answer)), (200, "ok\n"));
    assert!(connect(b"postgresql").await.is_err());
    assert!(!port.ask("GET", "/livez", "").await.starts_with("HTTP/1.1 200"), "plain text is not answered");
}
