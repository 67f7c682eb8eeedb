//! The TLS of a client's connection, without buffers of its own.
//!
//! rustls is used without its buffers: records are opened and sealed in the [scratch buffers](crate::scratch) of the
//! thread, and what is left over (half a record that came, sealed bytes that the socket did not take) is all that a stream
//! holds. One read of the socket may bring many records, and as many as fit go out with one write: system calls are what
//! a proxy's time is spent on.
//!
//! Sealed bytes that wait are at most what one write takes ([`WRITE_BYTES`](scratch::WRITE_BYTES)), since nothing new is sealed before they are
//! gone; received bytes that wait are at most one record, or one handshake message ([`RECEIVED_BYTES_MAX`]).

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

use super::RECORD_BYTES_MAX;
use crate::scratch;

/// Plaintext that is sealed for one write, bytes: with what TLS adds to each record it fits [`WRITE_BYTES`](scratch::WRITE_BYTES).
const SEAL_BYTES: usize = 8 * RECORD_BYTES_MAX;
/// The longest handshake message that TLS knows has 64 KiB, and comes in records with headers of their own.
const RECEIVED_BYTES_MAX: usize = 128 * 1024;
/// What the handshake may have to say in one piece, bytes: a long certificate chain fits.
const FLIGHT_BYTES_MAX: usize = 256 * 1024;

/// A client's connection inside TLS.
pub struct TlsStream {
    socket: TcpStream,
    tls: UnbufferedServerConnection,
    /// Ciphertext: the beginning of a record whose rest has not come yet.
    received: Vec<u8>,
    /// Plaintext that came before anyone asked for it, as it may behind the handshake's last message.
    opened: BytesMut,
    /// Ciphertext that the socket has not taken yet.
    sealed: BytesMut,
    /// The client has said that it sends no more.
    closed: bool,
    /// So have we.
    has_ended: bool,
}

impl TlsStream {
    /// The server's side of a handshake. Its deadline is the caller's.
    ///
    /// # Errors
    /// Those of the network and of TLS; the alert that TLS asks for has been sent as far as the socket took it.
    pub async fn accept(socket: TcpStream, config: Arc<ServerConfig>) -> io::Result<Self> {
        let tls = UnbufferedServerConnection::new(config).map_err(io::Error::other)?;
        let mut stream = Self {
            socket,
            tls,
            received: Vec::new(),
            opened: BytesMut::new(),
            sealed: BytesMut::new(),
            closed: false,
            has_ended: false,
        };
        while stream.tls.is_handshaking() {
            let mut opened = std::mem::take(&mut stream.opened);
            let read = std::future::poll_fn(|cx| stream.poll_read_socket(cx, &mut opened)).await;
            stream.opened = opened;
            if let Err(error) = read {
                let _ = stream.flush().await; // the alert
                return Err(error);
            }
            let flushed = stream.flush().await;
            // Who sends a cancel request says it, says goodbye and is gone while the handshake's last message is still on
            // its way to us: what came before the end counts.
            if stream.opened.is_empty() {
                flushed?;
            }
            if stream.closed && stream.tls.is_handshaking() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(stream)
    }

    /// The protocol that the handshake agreed on (RFC 7301).
    pub fn alpn_protocol(&self) -> Option<&[u8]> {
        self.tls.alpn_protocol()
    }

    /// The client's certificate and its chain, where it was asked for one and has proved that it is its own.
    pub fn peer_certificates(&self) -> Option<&[CertificateDer<'static>]> {
        self.tls.peer_certificates()
    }

    /// Appends what the client has sent to `sink`, as much as one read of the socket brings; `Ready(0)` is the orderly end.
    ///
    /// # Errors
    /// Those of the network and of TLS; the end of the stream without TLS's own end is `UnexpectedEof`.
    pub fn poll_receive(&mut self, cx: &mut Context<'_>, sink: &mut BytesMut) -> Poll<io::Result<usize>> {
        let before = sink.len();
        if !self.opened.is_empty() {
            sink.extend_from_slice(&std::mem::take(&mut self.opened));
        }
        while sink.len() == before && !self.closed {
            ready!(self.poll_read_socket(cx, sink))?;
        }
        Poll::Ready(Ok(sink.len() - before))
    }

    /// Seals and writes as much of `plain` as the socket takes. `Ready(true)`: something moved; `Ready(false)`: there was
    /// nothing to do.
    ///
    /// # Errors
    /// Those of the network and of TLS.
    pub fn poll_send(&mut self, cx: &mut Context<'_>, plain: &mut BytesMut) -> Poll<io::Result<bool>> {
        let mut moved = false;
        loop {
            match self.poll_sealed(cx) {
                Poll::Ready(wrote) => moved |= wrote?,
                Poll::Pending if moved => return Poll::Ready(Ok(true)),
                Poll::Pending => return Poll::Pending,
            }
            if plain.is_empty() {
                return Poll::Ready(Ok(moved));
            }
            let count = plain.len().min(SEAL_BYTES);
            self.seal_and_write(cx, &plain[..count])?;
            plain.advance(count);
            moved = true;
        }
    }

    /// Reads once, opens the records that are whole, and keeps the rest.
    fn poll_read_socket(&mut self, cx: &mut Context<'_>, sink: &mut BytesMut) -> Poll<io::Result<()>> {
        let kept = self.received.len();
        scratch::read(kept, |buffer| {
            buffer[..kept].copy_from_slice(&self.received);
            let mut read = ReadBuf::new(&mut buffer[kept..]);
            ready!(Pin::new(&mut self.socket).poll_read(cx, &mut read))?;
            let count = read.filled().len();
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            let bytes = &mut buffer[..kept + count];
            let (used, outcome) = self.open(bytes, sink);
            let rest = &bytes[used..];
            if rest.len() > RECEIVED_BYTES_MAX {
                return Poll::Ready(Err(io::Error::from(io::ErrorKind::InvalidData)));
            }
            // An empty vector holds no memory.
            self.received = rest.to_vec();
            Poll::Ready(outcome)
        })
    }

    /// Opens the whole records of `bytes`; tells how many bytes these were.
    fn open(&mut self, bytes: &mut [u8], sink: &mut BytesMut) -> (usize, io::Result<()>) {
        let mut used = 0;
        let outcome = loop {
            let UnbufferedStatus { mut discard, state } = self.tls.process_tls_records(&mut bytes[used..]);
            let step = match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => loop {
                    match traffic.next_record() {
                        Some(Ok(record)) => {
                            sink.extend_from_slice(record.payload);
                            discard += record.discard;
                        }
                        Some(Err(error)) => break Err(invalid(error)),
                        None => break Ok(true),
                    }
                },
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    encode(&mut self.sealed, |out| data.encode(out)).map(|()| true)
                }
                Ok(ConnectionState::TransmitTlsData(data)) => {
                    data.done(); // it is in `sealed`, which goes out before anything else
                    Ok(true)
                }
                Ok(ConnectionState::WriteTraffic(_) | ConnectionState::BlockedHandshake) => Ok(false),
                Ok(ConnectionState::PeerClosed) => {
                    self.closed = true;
                    Ok(true)
                }
                Ok(ConnectionState::Closed) => Ok(false),
                // Early data is never accepted, and a state that is not known is not understood.
                Ok(_) => Err(io::ErrorKind::InvalidData.into()),
                Err(error) => Err(invalid(error)),
            };
            used += discard;
            match step {
                Ok(true) => {}
                Ok(false) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        if outcome.is_err() {
            self.queue_alert();
        }
        (used, outcome)
    }

    /// After an error rustls has an alert to send.
    fn queue_alert(&mut self) {
        while let UnbufferedStatus { state: Ok(state), .. } = self.tls.process_tls_records(&mut []) {
            match state {
                ConnectionState::EncodeTlsData(mut data) => {
                    if encode(&mut self.sealed, |out| data.encode(out)).is_err() {
                        return;
                    }
                }
                ConnectionState::TransmitTlsData(data) => data.done(),
                _ => return,
            }
        }
    }

    /// Writes what is sealed already; `true` when there was any.
    fn poll_sealed(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if self.sealed.is_empty() {
            return Poll::Ready(Ok(false));
        }
        while !self.sealed.is_empty() {
            match ready!(Pin::new(&mut self.socket).poll_write(cx, &self.sealed))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.sealed.advance(count),
            }
        }
        self.sealed = BytesMut::new();
        Poll::Ready(Ok(true))
    }

    /// Seals `plain` and writes it; what the socket does not take waits in `sealed`, which is empty before.
    fn seal_and_write(&mut self, cx: &mut Context<'_>, plain: &[u8]) -> io::Result<()> {
        scratch::write(|buffer| {
            let length = self.seal(plain, buffer)?;
            let mut written = 0;
            while written < length {
                match Pin::new(&mut self.socket).poll_write(cx, &buffer[written..length])? {
                    Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Poll::Ready(count) => written += count,
                    Poll::Pending => {
                        self.sealed.extend_from_slice(&buffer[written..length]);
                        break;
                    }
                }
            }
            Ok(())
        })
    }

    fn seal(&mut self, plain: &[u8], out: &mut [u8]) -> io::Result<usize> {
        let mut first = 0;
        loop {
            match self.tls.process_tls_records(&mut []).state.map_err(invalid)? {
                ConnectionState::WriteTraffic(mut traffic) => {
                    let sealed = traffic.encrypt(plain, &mut out[first..]).map_err(io::Error::other)?;
                    return Ok(first + sealed);
                }
                // Of TLS's own: what has been queued goes first.
                ConnectionState::EncodeTlsData(mut data) => {
                    first += data.encode(&mut out[first..]).map_err(io::Error::other)?;
                }
                ConnectionState::TransmitTlsData(data) => data.done(),
                ConnectionState::PeerClosed => self.closed = true,
                _ => return Err(io::ErrorKind::NotConnected.into()),
            }
        }
    }

    /// TLS's own end of the stream, behind everything that is sealed.
    fn queue_close(&mut self) {
        while let UnbufferedStatus { state: Ok(state), .. } = self.tls.process_tls_records(&mut []) {
            match state {
                ConnectionState::WriteTraffic(mut traffic) => {
                    // Without it the client sees the end of the TCP stream all the same.
                    let _ = encode(&mut self.sealed, |out| {
                        traffic.queue_close_notify(out).map_err(|error| match error {
                            EncryptError::InsufficientSize(size) => EncodeError::InsufficientSize(size),
                            EncryptError::EncryptExhausted => EncodeError::AlreadyEncoded,
                        })
                    });
                    return;
                }
                ConnectionState::EncodeTlsData(mut data) => {
                    if encode(&mut self.sealed, |out| data.encode(out)).is_err() {
                        return;
                    }
                }
                ConnectionState::TransmitTlsData(data) => data.done(),
                ConnectionState::PeerClosed => self.closed = true,
                _ => return,
            }
        }
    }
}

/// Appends what `encode` writes, with as much room as it asks for within [`FLIGHT_BYTES_MAX`].
fn encode(sealed: &mut BytesMut, mut encode: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>) -> io::Result<()> {
    let at = sealed.len();
    let mut room = 512;
    loop {
        sealed.resize(at + room, 0);
        match encode(&mut sealed[at..]) {
            Ok(count) => {
                sealed.truncate(at + count);
                return Ok(());
            }
            Err(EncodeError::InsufficientSize(size))
                if size.required_size <= FLIGHT_BYTES_MAX && size.required_size > room =>
            {
                room = size.required_size;
            }
            Err(error) => {
                sealed.truncate(at);
                return Err(io::Error::other(error));
            }
        }
    }
}

fn invalid(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl AsyncRead for TlsStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.opened.is_empty() {
            let mut opened = BytesMut::new();
            let read = this.poll_receive(cx, &mut opened);
            this.opened = opened;
            ready!(read)?;
        }
        let count = this.opened.len().min(buf.remaining());
        buf.put_slice(&this.opened[..count]);
        this.opened.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_sealed(cx))?;
        let count = buf.len().min(SEAL_BYTES);
        this.seal_and_write(cx, &buf[..count])?;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_sealed(cx).map_ok(|_| ())
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.has_ended {
            this.has_ended = true;
            this.queue_close();
        }
        ready!(this.poll_sealed(cx))?;
        Pin::new(&mut this.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
