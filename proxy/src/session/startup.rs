//! The first bytes of a connection: TLS, a cancel request, or the startup packet.
//!
//! At most one SSLRequest and one GSSENCRequest, in either order, as
//! <https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-SSL> allows; bytes that arrive between a
//! TLS request and the handshake could have been injected and end the connection. On the wire port a session exists only
//! inside TLS; a CancelRequest may come in the clear, as libpq before 17 sends it. On a port in the clear a request for
//! encryption is declined.

use bytes::BytesMut;
use portcullis_wire::scram::ChannelBinding;
use portcullis_wire::{CancelKey, StartupMessage, StartupPacket, cut_startup};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::end::SessionEnd;
use super::stream::ClientStream;
use crate::door::{Arrival, Socket};
use crate::tls::clients::ClientCertificate;
use crate::tls::{ALPN_POSTGRESQL, Opening, Tls, TlsStream};

/// The first byte of a TLS handshake record (RFC 8446, section 5.1).
const TLS_HANDSHAKE: u8 = 0x16;

/// What a connection turned out to want.
pub enum Negotiated {
    /// A session.
    Session(Box<Opened>),
    /// A query stopped. Nothing is answered, but the stream is closed only afterwards: its end tells the client that the
    /// cancel has been delivered.
    Cancel(CancelKey, ClientStream),
}

/// A connection whose startup packet has been read.
pub struct Opened {
    /// The stream.
    pub stream: ClientStream,
    /// Received after the startup packet: nothing, unless the client is in a hurry.
    pub received: BytesMut,
    /// The startup packet.
    pub message: StartupMessage,
    /// What SCRAM-SHA-256-PLUS binds to.
    pub binding: ChannelBinding,
    /// The client's certificate, verified.
    pub certificate: Option<ClientCertificate>,
}

/// A connection that has no session must still be told why: the stream comes back with the reason.
pub struct Refused {
    /// The reason.
    pub end: SessionEnd,
    /// Where to say so.
    pub stream: Option<ClientStream>,
}

impl From<SessionEnd> for Refused {
    fn from(end: SessionEnd) -> Self {
        Self { end, stream: None }
    }
}

/// Reads up to the startup packet. Its deadline is the caller's.
///
/// # Errors
/// Whatever ends the connection before it is a session.
pub async fn negotiate(arrival: Arrival, tls: &Tls) -> Result<Negotiated, Refused> {
    let tls = arrival.tls.then_some(tls);
    match arrival.socket {
        Socket::Unix(socket) => in_the_clear(ClientStream::Unix(socket)).await,
        Socket::Tcp(socket) => match tls {
            Some(tls) => with_tls(socket, tls).await,
            None => in_the_clear(ClientStream::Tcp(socket)).await,
        },
    }
}

/// A port without TLS: whoever asks for encryption is told that there is none, and may go on.
async fn in_the_clear(mut stream: ClientStream) -> Result<Negotiated, Refused> {
    let mut received = BytesMut::new();
    let (mut asked_tls, mut asked_gss) = (false, false);
    loop {
        let asked = match next_packet(&mut stream, &mut received).await {
            Ok(StartupPacket::CancelRequest(key)) => return Ok(Negotiated::Cancel(key, stream)),
            Ok(StartupPacket::StartupMessage(message)) => {
                let (binding, certificate) = (ChannelBinding::None, None);
                return Ok(Negotiated::Session(Box::new(Opened { stream, received, message, binding, certificate })));
            }
            Ok(StartupPacket::SslRequest) => &mut asked_tls,
            Ok(StartupPacket::GssEncRequest) => &mut asked_gss,
            Err(end) => return Err(Refused { end, stream: Some(stream) }),
        };
        if std::mem::replace(asked, true) {
            return Err(Refused { end: SessionEnd::ClientMessage(0), stream: Some(stream) });
        }
        // Whatever came with the request was meant for the other side of a handshake that will not be.
        if !received.is_empty() {
            return Err(SessionEnd::PlaintextInjected.into());
        }
        stream.write_all(b"N").await.map_err(SessionEnd::ClientIo)?;
    }
}

/// The wire port: a session needs TLS, direct or after an SSLRequest.
async fn with_tls(mut socket: TcpStream, tls: &Tls) -> Result<Negotiated, Refused> {
    let mut first = [0_u8; 1];
    let seen = socket.peek(&mut first).await.map_err(SessionEnd::ClientIo)?;
    if seen == 0 {
        return Err(SessionEnd::ClientGone.into());
    }
    if first[0] == TLS_HANDSHAKE {
        return shake_hands(socket, tls, Opening::Direct).await;
    }
    let mut received = BytesMut::new();
    let mut gss_refused = false;
    loop {
        let end = match next_packet(&mut socket, &mut received).await {
            Ok(StartupPacket::SslRequest) => break,
            Ok(StartupPacket::GssEncRequest) if !gss_refused => {
                gss_refused = true;
                if !received.is_empty() {
                    return Err(SessionEnd::PlaintextInjected.into());
                }
                socket.write_all(b"N").await.map_err(SessionEnd::ClientIo)?;
                continue;
            }
            Ok(StartupPacket::GssEncRequest) => SessionEnd::ClientMessage(0),
            Ok(StartupPacket::CancelRequest(key)) => return Ok(Negotiated::Cancel(key, ClientStream::Tcp(socket))),
            Ok(StartupPacket::StartupMessage(_)) => SessionEnd::TlsRequired,
            Err(end) => end,
        };
        return Err(Refused { end, stream: Some(ClientStream::Tcp(socket)) });
    }
    if !received.is_empty() {
        return Err(SessionEnd::PlaintextInjected.into());
    }
    socket.write_all(b"S").await.map_err(SessionEnd::ClientIo)?;
    shake_hands(socket, tls, Opening::Negotiated).await
}

async fn shake_hands(socket: TcpStream, tls: &Tls, opening: Opening) -> Result<Negotiated, Refused> {
    let handshake = tls.current().handshake(opening);
    let stream = TlsStream::accept(socket, handshake.config.clone()).await.map_err(SessionEnd::TlsHandshake)?;
    if opening == Opening::Direct && stream.alpn_protocol() != Some(ALPN_POSTGRESQL) {
        return Err(SessionEnd::NoAlpn.into());
    }
    let certificate = stream.peer_certificates().and_then(<[_]>::first).map(|leaf| ClientCertificate::read(leaf));
    let binding = match handshake.server_end_point() {
        Some(hash) => ChannelBinding::TlsServerEndPoint(hash.to_owned()),
        None => ChannelBinding::None,
    };
    inside_tls(ClientStream::Tls(Box::new(stream)), binding, certificate).await
}

async fn inside_tls(
    mut stream: ClientStream,
    binding: ChannelBinding,
    certificate: Option<ClientCertificate>,
) -> Result<Negotiated, Refused> {
    let mut received = BytesMut::new();
    let end = match next_packet(&mut stream, &mut received).await {
        Ok(StartupPacket::CancelRequest(key)) => return Ok(Negotiated::Cancel(key, stream)),
        Ok(StartupPacket::StartupMessage(message)) => {
            return Ok(Negotiated::Session(Box::new(Opened { stream, received, message, binding, certificate })));
        }
        // TLS inside TLS, or GSS inside it, is nothing that a client has a reason to ask for.
        Ok(StartupPacket::SslRequest | StartupPacket::GssEncRequest) => SessionEnd::ClientMessage(0),
        Err(end) => end,
    };
    Err(Refused { end, stream: Some(stream) })
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
