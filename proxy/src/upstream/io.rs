//! The socket to a server: TCP, TCP with TLS, or a Unix socket.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::BytesMut;
use portcullis_catalog::Server;
use portcullis_config::TcpConfig;
use portcullis_wire::frontend::encode;
use portcullis_wire::scram::ChannelBinding;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::UpstreamError;
use super::socket::Socket;
use crate::tls::binding::server_end_point_of;

/// Where a server listens and what its socket is wrapped in.
pub struct Address {
    place: Place,
    tcp: TcpConfig,
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
}

enum Place {
    Tcp(String, u16),
    Unix(PathBuf),
}

impl Address {
    /// The address of a server of the catalog. A host that begins with `/` is a directory with the server's Unix socket.
    ///
    /// # Errors
    /// When the server's certificate authority or host name cannot be used.
    pub fn of(server: &Server, tcp: TcpConfig) -> Result<Self, UpstreamError> {
        if server.host.starts_with('/') {
            let path = PathBuf::from(&server.host).join(format!(".s.PGSQL.{}", server.port));
            return Ok(Self { place: Place::Unix(path), tcp, tls: None });
        }
        let config = server.tls.client_config().map_err(tls_error)?;
        let tls = match config {
            None => None,
            Some(config) => {
                let name = ServerName::try_from(server.host.clone()).map_err(|_| {
                    UpstreamError::Tls("the server's host is no name that a certificate can have".into())
                })?;
                Some((config, name))
            }
        };
        Ok(Self { place: Place::Tcp(server.host.clone(), server.port), tcp, tls })
    }
}

fn tls_error(error: impl std::error::Error) -> UpstreamError {
    // The cause is what tells; the error's own text says only where.
    let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
    UpstreamError::Tls(format!("{error}{cause}"))
}

/// A connected socket.
pub enum UpstreamIo {
    /// In the clear: a Unix socket, loopback, or a network that is trusted.
    Plain(Socket),
    /// TCP with TLS.
    Tls(Box<TlsStream<Socket>>),
}

impl UpstreamIo {
    /// Connects and, where the address says so, negotiates TLS by SSLRequest.
    ///
    /// # Errors
    /// Those of the network and of TLS; a server that answers anything but `S` is refused.
    pub async fn connect(address: &Address) -> Result<Self, UpstreamError> {
        let (host, port) = match &address.place {
            Place::Unix(path) => return Ok(Self::Plain(Socket::unix(path).await?)),
            Place::Tcp(host, port) => (host.as_str(), *port),
        };
        let mut socket = Socket::tcp(host, port, &address.tcp).await?;
        let Some((config, name)) = &address.tls else { return Ok(Self::Plain(socket)) };
        let mut request = BytesMut::new();
        encode::ssl_request(&mut request);
        socket.write_all(&request).await?;
        if socket.read_u8().await? != b'S' {
            return Err(UpstreamError::Tls("the server does not offer TLS".into()));
        }
        let stream = TlsConnector::from(config.clone()).connect(name.clone(), socket).await.map_err(tls_error)?;
        Ok(Self::Tls(Box::new(stream)))
    }

    fn socket(&self) -> &Socket {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(stream) => stream.get_ref().0,
        }
    }

    /// The thread whose event loop watches it.
    pub fn home(&self) -> Option<u16> {
        self.socket().home()
    }

    /// Has it watched by the calling thread's event loop.
    ///
    /// # Errors
    /// Those of the event queue; the connection is of no use then.
    pub fn move_here(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.move_here(),
            Self::Tls(stream) => stream.get_mut().0.move_here(),
        }
    }

    /// What SCRAM binds to here, so that nobody between us and the server can pass its messages on, not even where the
    /// certificate is not verified.
    pub fn channel_binding(&self) -> ChannelBinding {
        let Self::Tls(stream) = self else { return ChannelBinding::None };
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let hash = chain.first().and_then(|leaf| server_end_point_of(leaf));
        hash.map_or(ChannelBinding::None, ChannelBinding::TlsServerEndPoint)
    }
}

impl AsyncRead for UpstreamIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_read(cx, buf),
            Self::Tls(io) => Pin::new(io.as_mut()).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for UpstreamIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_write(cx, buf),
            Self::Tls(io) => Pin::new(io.as_mut()).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_flush(cx),
            Self::Tls(io) => Pin::new(io.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_shutdown(cx),
            Self::Tls(io) => Pin::new(io.as_mut()).poll_shutdown(cx),
        }
    }
}
