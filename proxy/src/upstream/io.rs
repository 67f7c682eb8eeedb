//! The socket to a server: TCP, TCP with TLS, or a Unix socket.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::BytesMut;
use portcullis_catalog::{Server, UpstreamTls};
use portcullis_wire::frontend::encode;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::UpstreamError;

/// Where a server listens and what its socket is wrapped in.
pub struct Address {
    place: Place,
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
    pub fn of(server: &Server) -> Result<Self, UpstreamError> {
        if server.host.starts_with('/') {
            let path = PathBuf::from(&server.host).join(format!(".s.PGSQL.{}", server.port));
            return Ok(Self { place: Place::Unix(path), tls: None });
        }
        let config = match &server.tls {
            UpstreamTls::Disable => None,
            UpstreamTls::Require => Some(unverified()?),
            UpstreamTls::VerifyFull { ca_pem } => Some(verified(ca_pem)?),
        };
        let tls = match config {
            None => None,
            Some(config) => {
                let name = ServerName::try_from(server.host.clone()).map_err(|_| {
                    UpstreamError::Tls("the server's host is no name that a certificate can have".into())
                })?;
                Some((Arc::new(config), name))
            }
        };
        Ok(Self { place: Place::Tcp(server.host.clone(), server.port), tls })
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn tls_error(error: impl std::fmt::Display) -> UpstreamError {
    UpstreamError::Tls(error.to_string())
}

fn verified(ca_pem: &str) -> Result<ClientConfig, UpstreamError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        roots.add(certificate.map_err(tls_error)?).map_err(tls_error)?;
    }
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    Ok(builder.map_err(tls_error)?.with_root_certificates(roots).with_no_client_auth())
}

/// `sslmode=require`: encrypted, with no statement about who is at the other end.
fn unverified() -> Result<ClientConfig, UpstreamError> {
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let verifier = Arc::new(AnyCertificate(provider()));
    Ok(builder.map_err(tls_error)?.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// A connected socket.
pub enum UpstreamIo {
    /// TCP in the clear (loopback, or a network that is trusted).
    Tcp(TcpStream),
    /// TCP with TLS.
    Tls(Box<TlsStream<TcpStream>>),
    /// A Unix socket.
    Unix(UnixStream),
}

impl UpstreamIo {
    /// Connects and, where the address says so, negotiates TLS by SSLRequest.
    ///
    /// # Errors
    /// Those of the network and of TLS; a server that answers anything but `S` is refused.
    pub async fn connect(address: &Address) -> Result<Self, UpstreamError> {
        let (host, port) = match &address.place {
            Place::Unix(path) => return Ok(Self::Unix(UnixStream::connect(path).await?)),
            Place::Tcp(host, port) => (host.as_str(), *port),
        };
        let mut socket = TcpStream::connect((host, port)).await?;
        socket.set_nodelay(true)?;
        let Some((config, name)) = &address.tls else { return Ok(Self::Tcp(socket)) };
        let mut request = BytesMut::new();
        encode::ssl_request(&mut request);
        socket.write_all(&request).await?;
        if socket.read_u8().await? != b'S' {
            return Err(UpstreamError::Tls("the server does not offer TLS".into()));
        }
        let stream = TlsConnector::from(config.clone()).connect(name.clone(), socket).await.map_err(tls_error)?;
        Ok(Self::Tls(Box::new(stream)))
    }
}

impl AsyncRead for UpstreamIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(io) => Pin::new(io).poll_read(cx, buf),
            Self::Tls(io) => Pin::new(io.as_mut()).poll_read(cx, buf),
            Self::Unix(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for UpstreamIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(io) => Pin::new(io).poll_write(cx, buf),
            Self::Tls(io) => Pin::new(io.as_mut()).poll_write(cx, buf),
            Self::Unix(io) => Pin::new(io).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(io) => Pin::new(io).poll_flush(cx),
            Self::Tls(io) => Pin::new(io.as_mut()).poll_flush(cx),
            Self::Unix(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(io) => Pin::new(io).poll_shutdown(cx),
            Self::Tls(io) => Pin::new(io.as_mut()).poll_shutdown(cx),
            Self::Unix(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}
