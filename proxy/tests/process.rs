//! The binary as an operator meets it: start, signals, end, and what it says when it cannot start.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "../src/testing.rs"]
#[allow(dead_code)]
mod testing;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use portcullis_config::TlsConfig;
use rcgen::PKCS_ECDSA_P256_SHA256;
use rustix::process::{Pid, Signal, kill_process};
use rustls::{ClientConnection, StreamOwned};
use testing::{Chain, Dir};

/// Long enough for any machine; nothing waits for it when all is well.
const PATIENCE: Duration = Duration::from_secs(60);

fn binary() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis-proxy"));
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn config(dir: &Dir, tls: &TlsConfig, more: &str) -> std::path::PathBuf {
    let content = format!(
        "[listen]\naddress = \"127.0.0.1:0\"\n\
         [tls]\ncertificate_file = {:?}\nkey_file = {:?}\n\
         [admin]\naddress = \"127.0.0.1:0\"\noperator_key = \"operate\"\nsidecar = \"unix:/nonexistent.sock\"\n\
         [catalog]\nurl = \"host=/nonexistent user=nobody dbname=none\"\n\
         [keys]\nproxy_key = \"{}\"\n{more}",
        tls.certificate_file,
        tls.key_file,
        "5a".repeat(32)
    );
    dir.write("proxy.toml", content)
}

/// A proxy that runs, without a catalog: what is tested here must not need one.
struct Proxy {
    child: Child,
    lines: Receiver<String>,
    chain: Chain,
    wire: SocketAddr,
    admin: SocketAddr,
    dir: Dir,
}

impl Proxy {
    fn start() -> Self {
        let (dir, chain) = (Dir::new(), chain());
        let file = config(&dir, &chain.write(&dir), "");
        let ready = dir.path().join("ready.json");
        let mut child = binary().arg("--config").arg(file).arg("--ready-file").arg(&ready).spawn().unwrap();
        let (sender, lines) = channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).for_each(|line| drop(sender.send(line))));
        let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut proxy = Self { child, lines, chain, wire: unknown, admin: unknown, dir };
        proxy.until_logged("listening");
        let addresses: serde_json::Value = proxy.until(|_| serde_json::from_slice(&std::fs::read(&ready).ok()?).ok());
        proxy.wire = addresses["wire"].as_str().unwrap().parse().unwrap();
        proxy.admin = addresses["admin"].as_str().unwrap().parse().unwrap();
        proxy
    }

    /// The next log line that contains `text`.
    fn until_logged(&self, text: &str) -> String {
        let mut seen = Vec::new();
        while let Ok(line) = self.lines.recv_timeout(PATIENCE) {
            if line.contains(text) {
                return line;
            }
            seen.push(line);
        }
        panic!("never logged {text:?}: {seen:#?}")
    }

    fn until<T>(&mut self, condition: impl Fn(&mut Self) -> Option<T>) -> T {
        let began = Instant::now();
        loop {
            if let Some(result) = condition(self) {
                return result;
            }
            assert!(began.elapsed() < PATIENCE, "a condition never came true");
            std::thread::yield_now();
        }
    }

    fn ended(&mut self) -> ExitStatus {
        self.until(|proxy| proxy.child.try_wait().unwrap())
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Over TLS as `chain` expects it; none if the certificate is another.
    fn ask(&self, chain: &Chain, request: &str) -> Option<String> {
        let socket = TcpStream::connect(self.admin).unwrap();
        let tls = ClientConnection::new(chain.client(&[b"http/1.1"]), "localhost".try_into().unwrap()).unwrap();
        let mut stream = StreamOwned::new(tls, socket);
        stream.write_all(format!("{request}\r\nHost: g\r\nConnection: close\r\n\r\n").as_bytes()).ok()?;
        let mut answer = Vec::new();
        // The port may close without close_notify at its end.
        let _ = stream.read_to_end(&mut answer);
        Some(String::from_utf8(answer).unwrap())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn chain() -> Chain {
    Chain::new(&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P256_SHA256)
}

#[test]
fn it_starts_without_catalog_and_sidecar_and_says_so() {
    let proxy = Proxy::start();
    assert_ne!((proxy.wire.port(), proxy.admin.port()), (0, 0), "the real ports");
    TcpStream::connect(proxy.wire).unwrap();
    let status = |path: &str| proxy.ask(&proxy.chain, &format!("GET {path} HTTP/1.1")).unwrap();
    assert!(status("/livez").starts_with("HTTP/1.1 200 "));
    let ready = status("/readyz");
    assert!(ready.starts_with("HTTP/1.1 503 ") && ready.contains("no snapshot of the catalog yet"), "{ready}");
    assert!(status("/workspaces").starts_with("HTTP/1.1 503 "));
    assert!(status("/metrics").contains("portcullis_ready 0\n"));
}

#[test]
fn no_core_dumps() {
    let proxy = Proxy::start();
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", proxy.child.id())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().collect::<Vec<_>>()[4..6], ["0", "0"], "{core}");
}

#[test]
fn hangup_reads_the_certificate_and_survives_a_bad_one() {
    let mut proxy = Proxy::start();
    let request = "GET /livez HTTP/1.1";
    let (old, new) = (std::mem::replace(&mut proxy.chain, chain()), chain());

    proxy.dir.write("server.crt", "");
    proxy.signal(Signal::HUP);
    let line = proxy.until_logged("the certificate was not replaced");
    assert!(line.contains("server.crt holds no certificate"), "{line}");
    assert!(proxy.ask(&old, request).is_some_and(|answer| answer.starts_with("HTTP/1.1 200 ")));

    new.write(&proxy.dir);
    proxy.signal(Signal::HUP);
    let line = proxy.until_logged("new handshakes use the certificate");
    assert!(line.contains("CN=localhost") && line.contains("2090-01-01"), "{line}");
    assert!(proxy.ask(&new, request).is_some_and(|answer| answer.starts_with("HTTP/1.1 200 ")));
    assert!(proxy.ask(&old, request).is_none());
}

fn ends_orderly(how: impl Fn(&Proxy)) {
    let mut proxy = Proxy::start();
    how(&proxy);
    assert!(proxy.ended().success());
    assert!(proxy.until_logged("ended").contains("Drained"));
    assert!(TcpStream::connect(proxy.wire).is_err());
}

#[test]
fn it_ends_orderly_on_sigterm() {
    ends_orderly(|proxy| proxy.signal(Signal::TERM));
}

#[test]
fn it_ends_orderly_on_sigint() {
    ends_orderly(|proxy| proxy.signal(Signal::INT));
}

#[test]
fn it_ends_orderly_when_the_operator_says_so() {
    ends_orderly(|proxy| {
        let answer = proxy.ask(&proxy.chain, "POST /drain HTTP/1.1\r\nAuthorization: Bearer operate").unwrap();
        assert!(answer.starts_with("HTTP/1.1 202 "), "{answer}");
    });
}

#[test]
fn what_keeps_it_from_starting_is_said_in_words() {
    let (dir, chain) = (Dir::new(), chain());
    let good = chain.write(&dir);
    let mismatched =
        TlsConfig::new(good.certificate_file.clone(), dir.write("other.key", self::chain().leaf_key.serialize_pem()));
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let taken_text = format!("{}", taken.local_addr().unwrap());
    // (certificate, more configuration, arguments, environment, what is said)
    type Row<'a> = (&'a TlsConfig, &'a str, &'a [&'a str], &'a [(&'a str, &'a str)], &'a str);
    let rows: &[Row<'_>] = &[
        (&good, "", &["--check-config"], &[("PORTCULLIS__LISTEN__ADDRES", "x")], "unknown key `listen.addres`"),
        (&good, "[log]\nfilter = \"a=b=c\"\n", &[], &[], "log.filter \"a=b=c\" is not a filter"),
        (&mismatched, "", &["--check-config"], &[], "other.key does not belong to the first certificate in "),
        (&mismatched, "", &[], &[], "other.key does not belong to the first certificate in "),
        (&good, "", &[], &[("PORTCULLIS__ADMIN__ADDRESS", &taken_text)], "(admin.address)\n  Address already in use"),
        (&good, "", &["--ready-file", "/nonexistent/ready"], &[], "cannot write /nonexistent/ready"),
    ];
    for (tls, more, arguments, environment, says) in rows {
        let file = config(&dir, tls, more);
        let output =
            binary().arg("--config").arg(file).args(*arguments).envs(environment.iter().copied()).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "{says}");
        assert!(said.contains(says) && !said.contains("5a5a"), "{said:?} should say {says:?}");
    }
}

#[test]
fn check_config_says_what_it_found() {
    let (dir, chain) = (Dir::new(), chain());
    let file = config(&dir, &chain.write(&dir), "");
    let output = binary().arg("--check-config").arg("--config").arg(file).output().unwrap();
    assert!(output.status.success());
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(said, "configuration ok; certificate CN=localhost valid until 2090-01-01T00:00:00Z\n");
}
