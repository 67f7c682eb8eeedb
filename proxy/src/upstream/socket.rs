//! A socket to a server that can move to another thread of the [workers](crate::workers).
//!
//! A socket tells the event loop that it was opened on when there is something to read. A session of another thread that
//! takes the connection would be woken across threads for every answer; two system calls move the socket instead, and
//! the pool prefers connections that need none.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use portcullis_config::TcpConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use crate::door::tune;
use crate::workers::here;

/// TCP or a Unix socket.
pub struct Socket {
    kind: Kind,
    home: Option<u16>,
}

enum Kind {
    Tcp(TcpStream),
    Unix(UnixStream),
    /// It could not be moved.
    Lost,
}

impl Socket {
    /// Connects, tuned as the configuration says.
    ///
    /// # Errors
    /// Those of the network.
    pub async fn tcp(host: &str, port: u16, tcp: &TcpConfig) -> io::Result<Self> {
        let socket = TcpStream::connect((host, port)).await?;
        tune(&socket, tcp)?;
        Ok(Self { kind: Kind::Tcp(socket), home: here() })
    }

    /// Connects to a server on this machine.
    ///
    /// # Errors
    /// Those of the file system and the server.
    pub async fn unix(path: &Path) -> io::Result<Self> {
        Ok(Self { kind: Kind::Unix(UnixStream::connect(path).await?), home: here() })
    }

    /// The thread whose event loop watches it.
    pub fn home(&self) -> Option<u16> {
        self.home
    }

    /// Has it watched by the calling thread's event loop.
    ///
    /// # Errors
    /// Those of the event queue; the socket is of no use then.
    pub fn move_here(&mut self) -> io::Result<()> {
        if self.home == here() {
            return Ok(());
        }
        self.kind = match std::mem::replace(&mut self.kind, Kind::Lost) {
            Kind::Tcp(socket) => Kind::Tcp(TcpStream::from_std(socket.into_std()?)?),
            Kind::Unix(socket) => Kind::Unix(UnixStream::from_std(socket.into_std()?)?),
            Kind::Lost => Kind::Lost,
        };
        self.home = here();
        Ok(())
    }
}

fn lost<T>() -> Poll<io::Result<T>> {
    Poll::Ready(Err(io::ErrorKind::NotConnected.into()))
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().kind {
            Kind::Tcp(io) => Pin::new(io).poll_read(cx, buf),
            Kind::Unix(io) => Pin::new(io).poll_read(cx, buf),
            Kind::Lost => lost(),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().kind {
            Kind::Tcp(io) => Pin::new(io).poll_write(cx, buf),
            Kind::Unix(io) => Pin::new(io).poll_write(cx, buf),
            Kind::Lost => lost(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().kind {
            Kind::Tcp(io) => Pin::new(io).poll_flush(cx),
            Kind::Unix(io) => Pin::new(io).poll_flush(cx),
            Kind::Lost => lost(),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().kind {
            Kind::Tcp(io) => Pin::new(io).poll_shutdown(cx),
            Kind::Unix(io) => Pin::new(io).poll_shutdown(cx),
            Kind::Lost => lost(),
        }
    }
}
