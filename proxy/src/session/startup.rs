//! The first bytes of a connection: TLS, a cancel request, or the startup packet.
//!
//! At most one SSLRequest and one GSSENCRequest, in either order, as
//! <https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-SSL> allows; bytes that arrive between a
//! TLS request and the handshake could have been injected and end the connection. A session exists only inside TLS; a
//! CancelRequest may come in the clear, as libpq before 17 sends it.

use bytes::BytesMut;
use portcullis_wire::scram::ChannelBinding;
use portcullis_wire::{CancelKey, StartupMessage, StartupPacket, cut_startup};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::end::SessionEnd;
use crate::tls::{ALPN_POSTGRESQL, Tls, TlsIdentity};

/// The first byte of a TLS handshake record (RFC 8446, section 5.1).
const TLS_HANDSHAKE: u8 = 0x16;

/// The encrypted stream of a client.
pub type ClientStream = TlsStream<TcpStream>;

/// What a connection turned out to want.
pub enum Negotiated {
    /// A session.
    Session(Box<Opened>),
    /// A query stopped; nothing is answered.
    Cancel(CancelKey),
}

/// A connection with TLS whose startup packet has been read.
pub struct Opened {
    /// The stream.
    pub stream: ClientStream,
    /// Received after the startup packet: nothing, unless the client is in a hurry.
    pub received: BytesMut,
    /// The startup packet.
    pub message: StartupMessage,
    /// What SCRAM-SHA-256-PLUS binds to.
    pub binding: ChannelBinding,
}

/// A connection that has no session must still be told why, in the clear: the socket comes back with the reason.
pub struct Refused {
    /// The reason.
    pub end: SessionEnd,
    /// Where to say so.
    pub socket: Option<RefusedSocket>,
}

/// The socket of a refused connection.
pub enum RefusedSocket {
    /// Without TLS.
    Plain(TcpStream),
    /// With TLS.
    Tls(Box<ClientStream>),
}

impl From<SessionEnd> for Refused {
    fn from(end: SessionEnd) -> Self {
        Self { end, socket: None }
    }
}

/// Reads up to the startup packet. Its deadline is the caller's.
///
/// # Errors
/// Whatever ends the connection before it is a session.
pub async fn negotiate(mut socket: TcpStream, tls: &Tls) -> Result<Negotiated, Refused> {
    let mut first = [0_u8; 1];
    let seen = socket.peek(&mut first).await.map_err(SessionEnd::ClientIo)?;
    if seen == 0 {
        return Err(SessionEnd::ClientGone.into());
    }
    let identity = tls.current();
    if first[0] == TLS_HANDSHAKE {
        let acceptor = TlsAcceptor::from(identity.direct.clone());
        let stream = acceptor.accept(socket).await.map_err(SessionEnd::TlsHandshake)?;
        if stream.get_ref().1.alpn_protocol() != Some(ALPN_POSTGRESQL) {
            return Err(SessionEnd::NoAlpn.into());
        }
        return inside_tls(stream, &identity).await;
    }
    let mut received = BytesMut::new();
    let mut gss_refused = false;
    loop {
        let packet = match next_packet(&mut socket, &mut received).await {
            Ok(packet) => packet,
            Err(end) => return Err(Refused { end, socket: Some(RefusedSocket::Plain(socket)) }),
        };
        match packet {
            StartupPacket::SslRequest => break,
            StartupPacket::GssEncRequest if !gss_refused => {
                gss_refused = true;
                if !received.is_empty() {
                    return Err(SessionEnd::PlaintextInjected.into());
                }
                socket.write_all(b"N").await.map_err(SessionEnd::ClientIo)?;
            }
            StartupPacket::GssEncRequest => {
                let end = SessionEnd::ClientMessage(0);
                return Err(Refused { end, socket: Some(RefusedSocket::Plain(socket)) });
            }
            StartupPacket::CancelRequest(key) => return Ok(Negotiated::Cancel(key)),
            StartupPacket::StartupMessage(_) => {
                return Err(Refused { end: SessionEnd::TlsRequired, socket: Some(RefusedSocket::Plain(socket)) });
            }
        }
    }
    if !received.is_empty() {
        return Err(SessionEnd::PlaintextInjected.into());
    }
    socket.write_all(b"S").await.map_err(SessionEnd::ClientIo)?;
    let acceptor = TlsAcceptor::from(identity.negotiated.clone());
    let stream = acceptor.accept(socket).await.map_err(SessionEnd::TlsHandshake)?;
    inside_tls(stream, &identity).await
}

async fn inside_tls(mut stream: ClientStream, identity: &TlsIdentity) -> Result<Negotiated, Refused> {
    let mut received = BytesMut::new();
    let end = match next_packet(&mut stream, &mut received).await {
        Ok(StartupPacket::CancelRequest(key)) => return Ok(Negotiated::Cancel(key)),
        Ok(StartupPacket::StartupMessage(message)) => {
            let binding = match &identity.server_end_point {
                Some(hash) => ChannelBinding::TlsServerEndPoint(hash.clone()),
                None => ChannelBinding::None,
            };
            return Ok(Negotiated::Session(Box::new(Opened { stream, received, message, binding })));
        }
        // TLS inside TLS, or GSS inside it, is nothing that a client has a reason to ask for.
        Ok(StartupPacket::SslRequest | StartupPacket::GssEncRequest) => SessionEnd::ClientMessage(0),
        Err(end) => end,
    };
    Err(Refused { end, socket: Some(RefusedSocket::Tls(Box::new(stream))) })
}

async fn next_packet<S: AsyncRead + Unpin>(
    stream: &mut S,
    received: &mut BytesMut,
) -> Result<StartupPacket, SessionEnd> {
    loop {
        if let Some(packet) = cut_startup(received)? {
            return Ok(packet);
        }
        if stream.read_buf(received).await.map_err(SessionEnd::ClientIo)? == 0 {
            return Err(SessionEnd::ClientGone);
        }
    }
}
