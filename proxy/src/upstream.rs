//! One connection to a PostgreSQL server: how it is opened, what is known of it, and what may be written to it.

mod io;
mod outgoing;
mod socket;

use std::io::{Error, ErrorKind, Result as IoResult};
use std::ops::{Deref, DerefMut};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use portcullis_catalog::seal::ProxyKey;
use portcullis_catalog::{BackendRole, Server};
use portcullis_config::{PoolConfig, TcpConfig};
use portcullis_wire::backend::{Authentication, Backend, ErrorFields};
use portcullis_wire::frontend::encode;
use portcullis_wire::scram::{AwaitingServerFinal, ClientExchange, Credential, random_nonce};
use portcullis_wire::{CancelKey, TransactionStatus, WireError, cut_frame};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};

use crate::pool::{Home, PoolKey};
use crate::prepared::Prepared;
use crate::reported::Reported;
use crate::session::settings::Values;
use io::{Address, UpstreamIo};
pub use outgoing::{Control, Outgoing, RefusalToken};

/// The largest message a server may send before ReadyForQuery at start, bytes.
const STARTUP_FRAME_BYTES_MAX: usize = 64 * 1024;
/// How long a server may take to close its side.
const CLOSE_MAX: Duration = Duration::from_secs(5);
/// The lifetime of a connection that nobody has given one.
const RETIRES_AFTER: Duration = Duration::from_secs(3600);
/// The largest answer to a control statement that is held, bytes.
const CONTROL_FRAME_BYTES_MAX: usize = 1024 * 1024;

/// Why a connection could not be opened, or is of no use any more.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// The network, or the server's process, failed.
    #[error("the connection to the server failed")]
    Io(#[from] Error),
    /// The server did not answer in time.
    #[error("the server did not answer in time")]
    TimedOut,
    /// What the server sent is not the protocol.
    #[error("the server broke the protocol")]
    Wire(#[from] WireError),
    /// The server asked for something unexpected.
    #[error("the server sent an unexpected message ({0})")]
    Unexpected(&'static str),
    /// The SCRAM exchange failed: the server does not know the stored key, or is not the one it should be.
    #[error("SCRAM with the server failed: {0}")]
    Scram(String),
    /// TLS to the server could not be set up.
    #[error("TLS to the server failed: {0}")]
    Tls(String),
    /// The stored key of the backend role could not be opened.
    #[error("the backend role's sealed key cannot be opened with this proxy key")]
    Sealed,
    /// The server refused, in its own words.
    #[error("the server refused: {message} ({code})")]
    Refused {
        /// SQLSTATE.
        code: String,
        /// The server's message.
        message: String,
    },
}

impl UpstreamError {
    fn refused(fields: &ErrorFields<'_>) -> Self {
        Self::Refused {
            code: fields.code().unwrap_or("XX000").to_owned(),
            message: fields.message().unwrap_or("no message").to_owned(),
        }
    }

    /// The metric label.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Io(_) => "io",
            Self::TimedOut => "timeout",
            Self::Wire(_) | Self::Unexpected(_) => "protocol",
            Self::Scram(_) => "scram",
            Self::Tls(_) => "tls",
            Self::Sealed => "sealed",
            Self::Refused { .. } if self.is_authentication() => "authentication",
            Self::Refused { .. } => "refused",
        }
    }

    /// Whether the server did not accept the backend role's credentials (they may have been rotated meanwhile).
    pub fn is_authentication(&self) -> bool {
        matches!(self, Self::Refused { code, .. } if code == "28P01" || code == "28000")
    }
}

/// Where to connect, and as whom.
#[derive(Clone)]
pub struct Destination {
    /// The pool of such connections.
    pub key: Arc<PoolKey>,
    /// The server.
    pub server: Arc<Server>,
    /// The real name of the database.
    pub database: String,
    /// The login and the role behind it.
    pub backend: Arc<BackendRole>,
    /// The search path that the policy fixes, as the parameter's value.
    pub search_path: Option<String>,
    /// The connections to the server, once they have been looked up.
    pub(crate) home: OnceLock<Home>,
}

impl Destination {
    /// The database `database` of `server`, with these credentials.
    pub fn new(server: Arc<Server>, database: String, backend: Arc<BackendRole>, search_path: Option<String>) -> Self {
        let (workspace, role) = (backend.workspace.clone(), backend.role.clone());
        let key = PoolKey::new(server.id.clone(), workspace, database.clone(), role, backend.generation);
        Self { key: Arc::new(key), server, database, backend, search_path, home: OnceLock::new() }
    }
}

/// The server's side of a cancel: its address and its key for the connection.
pub struct CancelTarget {
    address: Arc<Address>,
    key: CancelKey,
}

impl CancelTarget {
    /// Sends the CancelRequest and waits until the server has closed: by then the signal is delivered.
    ///
    /// # Errors
    /// Those of the network.
    pub async fn send(&self) -> Result<(), UpstreamError> {
        let mut io = UpstreamIo::connect(&self.address).await?;
        let mut out = BytesMut::new();
        encode::cancel_request(&mut out, &self.key);
        io.write_all(&out).await?;
        io.flush().await?;
        let mut rest = [0_u8; 64];
        while io.read(&mut rest).await.unwrap_or(0) > 0 {}
        Ok(())
    }
}

/// What is known of a connection and waits to be written to it: all of it but the socket.
pub struct UpstreamState {
    /// To be written.
    pub outgoing: Outgoing,
    /// The server's latest word on its transaction.
    pub status: TransactionStatus,
    /// The latest ParameterStatus of each name.
    pub parameters: Reported,
    /// Session-level settings that differ from those the connection began with.
    pub settings: Values,
    /// Statements prepared here.
    pub prepared: Prepared,
    /// The session that has written here and so may have left `lastval` and `currval`: to be dropped for any other.
    pub sequences_of: Option<u64>,
    /// Something was left behind that the next session must not meet; the reset comes before reuse.
    pub tainted: bool,
}

impl Default for UpstreamState {
    /// A connection that has just been opened.
    fn default() -> Self {
        Self {
            outgoing: Outgoing::default(),
            status: TransactionStatus::Idle,
            parameters: Reported::default(),
            settings: Values::new(),
            prepared: Prepared::default(),
            sequences_of: None,
            tainted: false,
        }
    }
}

/// An open connection to a workspace's database, authenticated, between messages.
pub struct Upstream {
    io: UpstreamIo,
    state: UpstreamState,
    /// Received and not yet looked at.
    pub incoming: BytesMut,
    /// The server as it was when this was opened.
    server: Arc<Server>,
    /// When it was opened.
    pub born: Instant,
    /// When it is to be closed at its next idle moment.
    pub retires_at: Instant,
    /// Since when it has been idle.
    pub idle_since: Instant,
    cancel: Option<Arc<CancelTarget>>,
}

impl Deref for Upstream {
    type Target = UpstreamState;
    fn deref(&self) -> &UpstreamState {
        &self.state
    }
}

impl DerefMut for Upstream {
    fn deref_mut(&mut self) -> &mut UpstreamState {
        &mut self.state
    }
}

impl Upstream {
    /// Connects, authenticates with the backend role's stored key, and reads up to the first ReadyForQuery.
    ///
    /// The startup packet carries `role`, which survives RESET ROLE and DISCARD ALL.
    ///
    /// # Errors
    /// See [`UpstreamError`]; nothing of the sealed key is ever in one.
    pub async fn open(to: &Destination, key: &ProxyKey, limits: &PoolConfig) -> Result<Self, UpstreamError> {
        let within = Duration::from_millis(limits.connect_timeout_ms);
        tokio::time::timeout(within, Self::open_unbounded(to, key, limits.tcp))
            .await
            .map_err(|_| UpstreamError::TimedOut)?
    }

    async fn open_unbounded(to: &Destination, key: &ProxyKey, tcp: TcpConfig) -> Result<Self, UpstreamError> {
        let address = Arc::new(Address::of(&to.server, tcp)?);
        let io = UpstreamIo::connect(&address).await?;
        let now = Instant::now();
        let mut this = Self {
            io,
            state: UpstreamState::default(),
            incoming: BytesMut::new(),
            server: to.server.clone(),
            born: now,
            retires_at: now + RETIRES_AFTER,
            idle_since: now,
            cancel: None,
        };
        let mut parameters = vec![
            ("user", to.backend.login.as_str()),
            ("database", to.database.as_str()),
            ("role", to.backend.role.as_str()),
            ("client_encoding", "UTF8"),
        ];
        parameters.extend(to.search_path.as_deref().map(|path| ("search_path", path)));
        encode::startup(&mut this.outgoing.buffer, 0, &parameters)?;
        this.flush().await?;
        this.authenticate(&to.backend, key).await?;
        this.await_ready(&address).await?;
        Ok(this)
    }

    async fn authenticate(&mut self, backend: &BackendRole, key: &ProxyKey) -> Result<(), UpstreamError> {
        let mut login = Login::Nothing;
        loop {
            let frame = self.next_frame(STARTUP_FRAME_BYTES_MAX).await?;
            match (Backend::decode(frame.tag(), frame.body())?, login) {
                (Backend::ErrorResponse(fields), _) => return Err(UpstreamError::refused(&fields)),
                // A server that asks for no proof (trust) is a misconfiguration, but not one that harms here.
                (Backend::Authentication(Authentication::Ok), Login::Nothing | Login::Proved) => return Ok(()),
                (Backend::Authentication(Authentication::Sasl { mechanisms }), Login::Nothing) => {
                    let keys = key.open_backend(backend).map_err(|_| UpstreamError::Sealed)?;
                    let credential = Credential::Keys { client_key: *keys.client_key, server_key: *keys.server_key };
                    let nonce = random_nonce().map_err(scram)?;
                    let binding = self.io.channel_binding();
                    let (exchange, mechanism, first) =
                        ClientExchange::start(credential, &mechanisms, &binding, &nonce).map_err(scram)?;
                    encode::sasl_initial_response(&mut self.outgoing.buffer, mechanism, &first)?;
                    login = Login::Challenged(exchange);
                }
                (Backend::Authentication(Authentication::SaslContinue(data)), Login::Challenged(exchange)) => {
                    let (exchange, last) = exchange.on_server_first(data).map_err(scram)?;
                    encode::sasl_response(&mut self.outgoing.buffer, &last);
                    login = Login::Proving(exchange);
                }
                (Backend::Authentication(Authentication::SaslFinal(data)), Login::Proving(exchange)) => {
                    exchange.on_server_final(data).map_err(scram)?;
                    login = Login::Proved;
                }
                (Backend::NoticeResponse(_) | Backend::NegotiateProtocolVersion { .. }, before) => login = before,
                (Backend::Authentication(_), _) => {
                    return Err(UpstreamError::Unexpected("an authentication step that is not SCRAM-SHA-256's next"));
                }
                _ => return Err(UpstreamError::Unexpected("before authentication")),
            }
            self.flush().await?;
        }
    }

    async fn await_ready(&mut self, address: &Arc<Address>) -> Result<(), UpstreamError> {
        loop {
            let frame = self.next_frame(STARTUP_FRAME_BYTES_MAX).await?;
            match Backend::decode(frame.tag(), frame.body())? {
                Backend::ErrorResponse(fields) => return Err(UpstreamError::refused(&fields)),
                Backend::ParameterStatus { name, value } => {
                    self.parameters.insert(name, value);
                }
                Backend::BackendKeyData(key) => {
                    self.cancel = Some(Arc::new(CancelTarget { address: address.clone(), key }))
                }
                Backend::ReadyForQuery(TransactionStatus::Idle) => return Ok(()),
                Backend::ReadyForQuery(_) => return Err(UpstreamError::Unexpected("a transaction at start")),
                _ => {}
            }
        }
    }

    /// What a cancel of this connection's query needs.
    pub fn cancel_target(&self) -> Option<Arc<CancelTarget>> {
        self.cancel.clone()
    }

    /// Takes on the settings of a session that is about to begin.
    ///
    /// # Errors
    /// The server's refusal of a value, or the connection's failure.
    pub async fn adopt(&mut self, settings: &Values) -> Result<(), UpstreamError> {
        if let Some(control) = Control::settings(&self.settings, settings, false) {
            self.run(&control).await?;
            self.settings = settings.clone();
        }
        Ok(())
    }

    /// Runs one of the proxy's own statements to its end, outside any session.
    ///
    /// # Errors
    /// The server's refusal, or the connection's failure.
    pub async fn run(&mut self, control: &Control) -> Result<(), UpstreamError> {
        self.outgoing.control(control);
        self.prepared.set_unnamed(None);
        self.flush().await?;
        let mut refusal = None;
        loop {
            let frame = self.next_frame(CONTROL_FRAME_BYTES_MAX).await?;
            match Backend::decode(frame.tag(), frame.body())? {
                Backend::ErrorResponse(fields) => refusal = Some(UpstreamError::refused(&fields)),
                Backend::ParameterStatus { name, value } => {
                    self.parameters.insert(name, value);
                }
                Backend::ReadyForQuery(status) => {
                    self.status = status;
                    return refusal.map_or(Ok(()), Err);
                }
                _ => {}
            }
        }
    }

    /// Makes the connection fit for another session: ends its transaction and, when it is tainted, drops all that a
    /// session can leave behind. The `role` of the startup packet stays (it is what DISCARD ALL returns to).
    ///
    /// # Errors
    /// When that fails the connection must be closed.
    pub async fn reset(&mut self) -> Result<(), UpstreamError> {
        if self.status != TransactionStatus::Idle {
            self.run(&Control::rollback()).await?;
        }
        if self.tainted {
            self.run(&Control::discard_all()).await?;
            self.prepared.clear();
            self.settings.clear();
            self.sequences_of = None;
            self.tainted = false;
        }
        match self.status {
            TransactionStatus::Idle => Ok(()),
            _ => Err(UpstreamError::Unexpected("a transaction after ROLLBACK")),
        }
    }

    async fn next_frame(&mut self, body_bytes_max: usize) -> Result<portcullis_wire::Frame, UpstreamError> {
        loop {
            if let Some(frame) = cut_frame(&mut self.incoming, body_bytes_max)? {
                return Ok(frame);
            }
            if self.io.read_buf(&mut self.incoming).await? == 0 {
                return Err(Error::from(ErrorKind::UnexpectedEof).into());
            }
        }
    }

    async fn flush(&mut self) -> Result<(), UpstreamError> {
        self.io.write_all_buf(&mut self.state.outgoing.buffer).await?;
        self.io.flush().await?;
        Ok(())
    }

    /// Reads what is there; nothing filled is the end of the stream.
    pub fn poll_read(&mut self, cx: &mut Context<'_>, read: &mut ReadBuf<'_>) -> Poll<IoResult<()>> {
        Pin::new(&mut self.io).poll_read(cx, read)
    }

    /// Writes as much of `outgoing` as the socket takes; `true` when something went out.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<IoResult<bool>> {
        let Outgoing { buffer, unflushed, .. } = &mut self.state.outgoing;
        crate::session::buffer::poll_drain(&mut self.io, buffer, unflushed, cx)
    }

    /// The thread of the [workers](crate::workers) whose event loop watches it.
    pub fn home(&self) -> Option<u16> {
        self.io.home()
    }

    /// Has it watched by the calling thread's event loop.
    ///
    /// # Errors
    /// When that fails the connection is of no use.
    pub fn move_here(&mut self) -> IoResult<()> {
        self.io.move_here()
    }

    /// Closes it and waits, for at most five seconds, until the server has closed its side: by then its process is gone.
    pub async fn close(mut self) {
        let end = async {
            if self.status == TransactionStatus::Idle && self.outgoing.is_empty() {
                encode::terminate(&mut self.outgoing.buffer);
                self.flush().await?;
            }
            self.io.shutdown().await?;
            while self.io.read_buf(&mut self.incoming).await? > 0 {
                self.incoming.clear();
            }
            Ok::<_, UpstreamError>(())
        };
        // What fails here was closed already, or will be when it is dropped.
        let _ = tokio::time::timeout(CLOSE_MAX, end).await;
    }

    /// Whether it leads where a new one would, and as safely: the server's address and the TLS that it asks for may change.
    pub fn leads_to(&self, server: &Arc<Server>) -> bool {
        Arc::ptr_eq(&self.server, server) || self.server == *server
    }

    /// Whether an idle connection is still silent and open. Anything to read on it (an error that ends it, or the end
    /// itself) makes it useless; asynchronous messages to nobody are dropped with it.
    pub fn is_quiet(&mut self) -> bool {
        if !self.incoming.is_empty() || !self.outgoing.buffer.is_empty() || self.status != TransactionStatus::Idle {
            return false;
        }
        let waker = std::task::Waker::noop();
        let mut cx = Context::from_waker(waker);
        self.poll_read(&mut cx, &mut ReadBuf::new(&mut [0])).is_pending()
    }
}

/// How far a login at the server has come.
enum Login {
    Nothing,
    Challenged(ClientExchange),
    Proving(AwaitingServerFinal),
    Proved,
}

fn scram(error: portcullis_wire::scram::ScramError) -> UpstreamError {
    UpstreamError::Scram(error.to_string())
}
