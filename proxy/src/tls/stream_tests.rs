//! The stream against rustls's own client, over real sockets.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use rcgen::PKCS_ECDSA_P256_SHA256;
use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream as ClientTls;

use super::*;
use crate::testing::{Chain, Dir};
use crate::tls::Tls;

/// A test that waits for what never comes fails instead of hanging.
const PATIENCE: Duration = Duration::from_secs(60);

struct Rig {
    chain: Chain,
    tls: Tls,
    _dir: Dir,
}

impl Rig {
    fn new() -> Self {
        let chain = Chain::new(&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P256_SHA256);
        let dir = Dir::new();
        let tls = Tls::load(&chain.write(&dir)).unwrap();
        Self { chain, tls, _dir: dir }
    }

    fn server(&self) -> Arc<ServerConfig> {
        self.tls.current().negotiated.clone()
    }

    /// Both ends of a connection over these sockets.
    async fn connect(
        &self,
        version: &'static rustls::SupportedProtocolVersion,
        client: TcpStream,
        server: TcpStream,
    ) -> (ClientTls<TcpStream>, TlsStream) {
        let connector = TlsConnector::from(self.chain.client_of(&[version], &[]));
        let name = ServerName::try_from("localhost").unwrap();
        let (client, server) = tokio::join!(connector.connect(name, client), TlsStream::accept(server, self.server()));
        (client.unwrap(), server.unwrap())
    }
}

async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (client, server) = tokio::join!(TcpStream::connect(address), listener.accept());
    (client.unwrap(), server.unwrap().0)
}

/// Passes what comes from one to the other in pieces of `size` bytes; gives what passed.
async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    size: usize,
) -> Vec<u8> {
    let (mut seen, mut buffer) = (Vec::new(), vec![0; size]);
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        seen.extend_from_slice(&buffer[..count]);
        if to.write_all(&buffer[..count]).await.is_err() {
            break;
        }
        tokio::task::yield_now().await;
    }
    seen
}

/// Ciphertext bytes of each record.
fn records(mut bytes: &[u8]) -> Vec<usize> {
    let mut records = Vec::new();
    while let [_, _, _, high, low, rest @ ..] = bytes {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        records.push(length);
        bytes = rest.get(length..).unwrap_or_default();
    }
    records
}

async fn receive(stream: &mut TlsStream, sink: &mut BytesMut) -> io::Result<usize> {
    std::future::poll_fn(|cx| stream.poll_receive(cx, sink)).await
}

async fn send_all(stream: &mut TlsStream, mut plain: BytesMut) -> io::Result<()> {
    while std::future::poll_fn(|cx| stream.poll_send(cx, &mut plain)).await? {}
    Ok(())
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 31 % 251) as u8).collect()
}

#[tokio::test]
async fn what_is_sent_arrives_however_it_is_cut() {
    let rig = Rig::new();
    for version in [&TLS12, &TLS13] {
        for size in [1, 7, 5_000, 100_000] {
            tokio::time::timeout(PATIENCE, cut(&rig, version, size)).await.unwrap();
        }
    }
}

async fn cut(rig: &Rig, version: &'static rustls::SupportedProtocolVersion, size: usize) {
    let ((client, outside), (inside, server)) = (sockets().await, sockets().await);
    let ((from_client, to_client), (from_server, to_server)) = (outside.into_split(), inside.into_split());
    let up = tokio::spawn(pass(from_client, to_server, size));
    let down = tokio::spawn(pass(from_server, to_client, size));
    let (mut client, mut server) = rig.connect(version, client, server).await;

    let question = pattern(if size == 1 { 20_000 } else { 300_000 });
    let (asked, heard) = tokio::join!(
        async {
            client.write_all(&question).await.unwrap();
            client.flush().await.unwrap();
        },
        async {
            let mut heard = BytesMut::new();
            while heard.len() < question.len() {
                assert!(receive(&mut server, &mut heard).await.unwrap() > 0);
            }
            heard
        }
    );
    let () = asked;
    assert!(heard == question);
    assert!(server.received.capacity() == 0 && server.opened.is_empty(), "nothing is held at rest");

    let mut answer = vec![0; question.len()];
    let (sent, read) = tokio::join!(send_all(&mut server, heard), client.read_exact(&mut answer));
    sent.unwrap();
    read.unwrap();
    assert!(answer == question);
    assert_eq!(server.sealed.capacity(), 0, "nothing is held at rest");

    // Each says that it ends, and the other hears it as an end, not as a broken line.
    client.shutdown().await.unwrap();
    assert_eq!(receive(&mut server, &mut BytesMut::new()).await.unwrap(), 0);
    server.shutdown().await.unwrap();
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    drop((client, server));
    up.await.unwrap();
    let records = records(&down.await.unwrap());
    assert!(records.iter().all(|record| *record <= RECORD_BYTES_MAX + 64), "{records:?}");
}

#[tokio::test]
async fn a_reader_who_does_not_read_holds_one_write_and_no_more() {
    let rig = Rig::new();
    let (client, server) = sockets().await;
    let (mut client, mut server) = rig.connect(&TLS13, client, server).await;
    let whole = pattern(64 << 20);
    let mut plain = BytesMut::from(&whole[..]);
    let mut cx = Context::from_waker(std::task::Waker::noop());
    while let Poll::Ready(moved) = server.poll_send(&mut cx, &mut plain) {
        assert!(moved.unwrap(), "all 64 MiB went into the socket");
    }
    assert!(!server.sealed.is_empty() && server.sealed.len() <= scratch::WRITE_BYTES, "{}", server.sealed.len());
    // Once he reads, all of it comes, in order.
    let mut heard = vec![0; whole.len()];
    let (sent, read) = tokio::join!(send_all(&mut server, plain), client.read_exact(&mut heard));
    sent.unwrap();
    read.unwrap();
    assert!(heard == whole);
}

#[tokio::test]
async fn keys_are_updated_when_the_client_asks() {
    let rig = Rig::new();
    let (client, server) = sockets().await;
    let (mut client, mut server) = rig.connect(&TLS13, client, server).await;
    for round in 0..5_u8 {
        client.get_mut().1.refresh_traffic_keys().unwrap();
        client.write_all(&[round; 10]).await.unwrap();
        client.flush().await.unwrap();
        let mut heard = BytesMut::new();
        while heard.len() < 10 {
            receive(&mut server, &mut heard).await.unwrap();
        }
        send_all(&mut server, heard).await.unwrap();
        let mut echo = [0; 10];
        client.read_exact(&mut echo).await.unwrap();
        assert_eq!(echo, [round; 10]);
    }
}

#[tokio::test]
async fn a_broken_line_is_no_end_and_garbage_is_answered_by_an_alert() {
    let rig = Rig::new();
    let (client, server) = sockets().await;
    let (client, mut server) = rig.connect(&TLS13, client, server).await;
    drop(client.into_inner().0);
    let error = receive(&mut server, &mut BytesMut::new()).await.unwrap_err();
    assert!(matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset), "{error}");

    // In the handshake: no TLS at all, and a record longer than any.
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0x16, 3, 1, 0xff, 0xff, 1, 2, 3], &[0x17, 3, 3, 0, 1, 0]] {
        let (mut client, server) = sockets().await;
        client.write_all(garbage).await.unwrap();
        let accepted = TlsStream::accept(server, rig.server()).await;
        assert_eq!(accepted.err().map(|error| error.kind()), Some(io::ErrorKind::InvalidData), "{garbage:?}");
        let mut heard = Vec::new();
        let _ = client.read_to_end(&mut heard).await;
        assert_eq!(heard.first(), Some(&0x15), "an alert for {garbage:?}: {heard:?}");
    }

    // Afterwards: a record that nobody sealed.
    let (client, server) = sockets().await;
    let (client, mut server) = rig.connect(&TLS13, client, server).await;
    let mut socket = client.into_inner().0;
    socket.write_all(&[0x17, 3, 3, 0, 32]).await.unwrap();
    socket.write_all(&[7; 32]).await.unwrap();
    let error = receive(&mut server, &mut BytesMut::new()).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
}

/// As the sender of a cancel request does it, seen by a server that has no time for it until all of it is there.
#[tokio::test]
async fn who_says_it_and_goodbye_at_once_is_heard() {
    let rig = Rig::new();
    let ((client, outside), (mut inside, server)) = (sockets().await, sockets().await);
    let connector = TlsConnector::from(rig.chain.client_of(&[&TLS13], &[]));
    let asks = tokio::spawn(async move {
        let mut client = connector.connect(ServerName::try_from("localhost").unwrap(), client).await.unwrap();
        client.write_all(b"cancel").await.unwrap();
        client.shutdown().await.unwrap();
    });
    let late = tokio::spawn(async move {
        let (mut outside, mut buffer) = (outside, [0; 16_384]);
        let hello = outside.read(&mut buffer).await.unwrap();
        inside.write_all(&buffer[..hello]).await.unwrap();
        let answer = inside.read(&mut buffer).await.unwrap();
        outside.write_all(&buffer[..answer]).await.unwrap();
        let mut rest = Vec::new();
        outside.read_to_end(&mut rest).await.unwrap();
        inside.write_all(&rest).await.unwrap();
        inside
    });
    let mut server = tokio::time::timeout(PATIENCE, TlsStream::accept(server, rig.server())).await.unwrap().unwrap();
    let mut heard = [0; 6];
    server.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"cancel");
    assert_eq!(server.read(&mut [0]).await.unwrap(), 0);
    asks.await.unwrap();
    late.await.unwrap();
}
