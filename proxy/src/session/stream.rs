//! A client's stream: TLS, or in the clear where the configuration has opened such a port.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use super::buffer::poll_drain;
use crate::scratch;
use crate::tls::TlsStream;

/// The stream of a client.
pub enum ClientStream {
    /// TLS over TCP.
    Tls(Box<TlsStream>),
    /// TCP in the clear.
    Tcp(TcpStream),
    /// A Unix socket, in the clear.
    Unix(UnixStream),
}

impl ClientStream {
    /// Appends what the client has sent to `sink`, as much as one read of the socket brings; `Ready(0)` is the orderly end.
    ///
    /// # Errors
    /// Those of the network and of TLS.
    pub fn poll_receive(&mut self, cx: &mut Context<'_>, sink: &mut BytesMut) -> Poll<io::Result<usize>> {
        match self {
            Self::Tls(io) => io.poll_receive(cx, sink),
            Self::Tcp(io) => poll_append(io, cx, sink),
            Self::Unix(io) => poll_append(io, cx, sink),
        }
    }

    /// Writes as much of `plain` as the socket takes. `Ready(true)`: something moved; `Ready(false)`: there was nothing to do.
    ///
    /// # Errors
    /// Those of the network and of TLS.
    pub fn poll_send(&mut self, cx: &mut Context<'_>, plain: &mut BytesMut) -> Poll<io::Result<bool>> {
        match self {
            Self::Tls(io) => io.poll_send(cx, plain),
            Self::Tcp(io) => poll_drain(io, plain, &mut false, cx),
            Self::Unix(io) => poll_drain(io, plain, &mut false, cx),
        }
    }
}

fn poll_append<R: AsyncRead + Unpin>(io: &mut R, cx: &mut Context<'_>, sink: &mut BytesMut) -> Poll<io::Result<usize>> {
    scratch::read(0, |buffer| {
        let mut read = ReadBuf::new(buffer);
        ready!(Pin::new(io).poll_read(cx, &mut read))?;
        sink.extend_from_slice(read.filled());
        Poll::Ready(Ok(read.filled().len()))
    })
}

impl AsyncRead for ClientStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tls(io) => Pin::new(io.as_mut()).poll_read(cx, buf),
            Self::Tcp(io) => Pin::new(io).poll_read(cx, buf),
            Self::Unix(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tls(io) => Pin::new(io.as_mut()).poll_write(cx, buf),
            Self::Tcp(io) => Pin::new(io).poll_write(cx, buf),
            Self::Unix(io) => Pin::new(io).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tls(io) => Pin::new(io.as_mut()).poll_flush(cx),
            Self::Tcp(io) => Pin::new(io).poll_flush(cx),
            Self::Unix(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tls(io) => Pin::new(io.as_mut()).poll_shutdown(cx),
            Self::Tcp(io) => Pin::new(io).poll_shutdown(cx),
            Self::Unix(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}
