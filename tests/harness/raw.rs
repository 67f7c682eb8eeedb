//! The protocol by hand, for what no driver would do: pipelines, half messages, garbage.
//!
//! The bytes and SCRAM are postgres-protocol's, not ours, so that both sides cannot share a mistake.

use std::{io, path::Path, sync::Arc};

use bytes::{Buf, BufMut, BytesMut};
use postgres_protocol::{
    IsNull,
    authentication::sasl::{ChannelBinding, ScramSha256},
    message::frontend,
};
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::TlsConnector;

use crate::customer::{Credentials, tls};

/// A message of the server: its tag and body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The type byte.
    pub tag: u8,
    /// What follows the length.
    pub body: Vec<u8>,
}

impl Message {
    /// A field of an ErrorResponse or NoticeResponse, such as `C` for the SQLSTATE.
    #[must_use]
    pub fn field(&self, code: u8) -> Option<String> {
        let fields = self.body.split(|byte| *byte == 0).filter(|field| field.first() == Some(&code));
        fields.map(|field| String::from_utf8_lossy(&field[1..]).into_owned()).next()
    }

    /// The columns of a DataRow as text; NULL as `None`.
    #[must_use]
    pub fn columns(&self) -> Vec<Option<String>> {
        let mut body = &self.body[..];
        let count = body.get_i16();
        let mut column = || {
            let length = usize::try_from(body.get_i32()).ok()?;
            let text = String::from_utf8_lossy(&body[..length]).into_owned();
            body.advance(length);
            Some(text)
        };
        (0..count).map(|_| column()).collect()
    }
}

/// The tags of some messages as a string, such as `1DCZ`.
#[must_use]
pub fn tags(messages: &[Message]) -> String {
    messages.iter().map(|message| char::from(message.tag)).collect()
}

/// TLS to the proxy, or a Unix socket to PostgreSQL itself.
trait Socket: AsyncRead + AsyncWrite + Send + Unpin + std::fmt::Debug {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin + std::fmt::Debug> Socket for S {}
type Stream = Box<dyn Socket>;

/// A connection.
#[derive(Debug)]
pub struct Wire {
    reader: Reader,
    writer: Writer,
    /// The minor version of the protocol to ask for.
    pub minor: u16,
    /// The NegotiateProtocolVersion messages.
    pub negotiated: Vec<Message>,
    /// The process id and secret of BackendKeyData.
    pub cancel_key: Option<Vec<u8>>,
    /// The parameters reported since the start, in order.
    pub parameters: Vec<(String, String)>,
    /// The certificate that the proxy presented, DER.
    pub certificate: Vec<u8>,
    /// Everything is sent in pieces of one byte, each a TLS record of its own.
    pub byte_by_byte: bool,
}

/// The half of a connection that reads.
#[derive(Debug)]
pub struct Reader {
    stream: ReadHalf<Stream>,
    received: BytesMut,
}

/// The half of a connection that writes.
#[derive(Debug)]
pub struct Writer {
    stream: WriteHalf<Stream>,
}

impl Reader {
    /// The next message of the server. An end of the stream is [`io::ErrorKind::UnexpectedEof`].
    pub async fn next(&mut self) -> io::Result<Message> {
        loop {
            if let Some(length) = self.received.get(1..5).map(|mut length| length.get_u32() as usize)
                && self.received.len() > length
            {
                let mut frame = self.received.split_to(length + 1);
                let tag = frame.get_u8();
                frame.advance(4);
                return Ok(Message { tag, body: frame.to_vec() });
            }
            if self.stream.read_buf(&mut self.received).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

impl Writer {
    /// Sends bytes as they are.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }
}

impl Wire {
    /// Asks for TLS with an SSLRequest and does the handshake.
    pub async fn negotiate(port: u16, ca_pem: &str) -> io::Result<Wire> {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(&[0, 0, 0, 8, 4, 210, 22, 47]).await?;
        let mut answer = [0];
        stream.read_exact(&mut answer).await?;
        assert_eq!(answer[0], b'S', "the proxy speaks TLS");
        Wire::handshake(stream, ca_pem, &[]).await
    }

    /// Direct TLS: the handshake comes first, with `alpn`.
    pub async fn direct(port: u16, ca_pem: &str, alpn: &[&[u8]]) -> io::Result<Wire> {
        Wire::handshake(TcpStream::connect(("127.0.0.1", port)).await?, ca_pem, alpn).await
    }

    /// The wire without TLS.
    pub async fn in_the_clear(port: u16) -> io::Result<Wire> {
        Ok(Wire::over(Box::new(TcpStream::connect(("127.0.0.1", port)).await?)))
    }

    /// The wire through a Unix socket.
    pub async fn unix(path: &Path) -> io::Result<Wire> {
        Ok(Wire::over(Box::new(UnixStream::connect(path).await?)))
    }

    async fn handshake(stream: TcpStream, ca_pem: &str, alpn: &[&[u8]]) -> io::Result<Wire> {
        Wire::handshake_with(stream, tls(ca_pem, alpn), "localhost").await
    }

    /// Direct TLS with a configuration of the test's own, to a server that the client calls `name`.
    pub async fn direct_with(port: u16, config: rustls::ClientConfig, name: &str) -> io::Result<Wire> {
        Wire::handshake_with(TcpStream::connect(("127.0.0.1", port)).await?, config, name).await
    }

    async fn handshake_with(stream: TcpStream, config: rustls::ClientConfig, name: &str) -> io::Result<Wire> {
        stream.set_nodelay(true)?;
        let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let certificate = chain.first().map(|leaf| leaf.to_vec()).unwrap_or_default();
        Ok(Wire { certificate, ..Wire::over(Box::new(stream)) })
    }

    fn over(stream: Stream) -> Wire {
        let (reader, writer) = tokio::io::split(stream);
        let (reader, writer) = (Reader { stream: reader, received: BytesMut::new() }, Writer { stream: writer });
        Wire {
            reader,
            writer,
            minor: 0,
            negotiated: Vec::new(),
            cancel_key: None,
            parameters: Vec::new(),
            certificate: Vec::new(),
            byte_by_byte: false,
        }
    }

    /// A session with PostgreSQL itself, through the socket in `home`, which asks for no password.
    ///
    /// # Panics
    /// When the login fails.
    pub async fn around_the_gate(home: &Path, port: u16, parameters: &[(&str, &str)]) -> Wire {
        let socket = UnixStream::connect(home.join(format!(".s.PGSQL.{port}"))).await.expect("PostgreSQL's socket");
        let mut wire = Wire::over(Box::new(socket));
        wire.start(parameters, "").await.unwrap_or_else(|error| panic!("logs in around the gate: {error}"));
        wire
    }

    /// A session, logged in and ready.
    ///
    /// # Panics
    /// When the login fails.
    pub async fn login(credentials: &Credentials) -> Wire {
        let mut wire = Wire::negotiate(credentials.port, &credentials.ca_pem).await.expect("TLS");
        wire.authenticate(credentials, &[]).await.unwrap_or_else(|error| panic!("logs in: {error}"));
        wire
    }

    /// Logs in on a fresh connection, with further startup parameters. An error is the server's message.
    pub async fn authenticate(&mut self, credentials: &Credentials, parameters: &[(&str, &str)]) -> Result<(), String> {
        let named = [("user", credentials.username.as_str()), ("database", credentials.database.as_str())];
        self.start(&[&named, parameters].concat(), &credentials.password).await
    }

    async fn start(&mut self, parameters: &[(&str, &str)], password: &str) -> Result<(), String> {
        let mut out = BytesMut::new();
        frontend::startup_message(parameters.iter().copied(), &mut out).map_err(|error| error.to_string())?;
        out[6..8].copy_from_slice(&self.minor.to_be_bytes());
        self.send(&out).await.map_err(|error| error.to_string())?;
        let mut scram = ScramSha256::new(password.as_bytes(), ChannelBinding::unsupported());
        loop {
            let message = self.next().await.map_err(|error| error.to_string())?;
            match (message.tag, message.body.get(..4)) {
                (b'R', Some([0, 0, 0, 0])) => {}
                (b'R', Some([0, 0, 0, 10])) => {
                    self.reply(|out| frontend::sasl_initial_response("SCRAM-SHA-256", scram.message(), out)).await?;
                }
                (b'R', Some([0, 0, 0, 11])) => {
                    scram.update(&message.body[4..]).map_err(|error| error.to_string())?;
                    self.reply(|out| frontend::sasl_response(scram.message(), out)).await?;
                }
                (b'R', Some([0, 0, 0, 12])) => scram.finish(&message.body[4..]).map_err(|error| error.to_string())?,
                (b'K', _) => self.cancel_key = Some(message.body),
                (b'v', _) => self.negotiated.push(message),
                (b'S' | b'N', _) => {}
                (b'Z', _) => return Ok(()),
                (b'E', _) => {
                    let field = |code| message.field(code).unwrap_or_default();
                    return Err(format!("{}: {}", field(b'C'), field(b'M')));
                }
                _ => return Err(format!("unexpected {message:?}")),
            }
        }
    }

    async fn reply(&mut self, write: impl FnOnce(&mut BytesMut) -> io::Result<()>) -> Result<(), String> {
        let mut out = BytesMut::new();
        write(&mut out).map_err(|error| error.to_string())?;
        self.send(&out).await.map_err(|error| error.to_string())
    }

    /// Sends bytes as they are.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let pieces = bytes.chunks(if self.byte_by_byte { 1 } else { bytes.len().max(1) });
        for piece in pieces {
            self.writer.send(piece).await?;
        }
        Ok(())
    }

    /// The next message of the server. An end of the stream is [`io::ErrorKind::UnexpectedEof`].
    pub async fn next(&mut self) -> io::Result<Message> {
        let message = self.reader.next().await?;
        self.note(&message);
        Ok(message)
    }

    /// Both halves, to write and read at the same time.
    #[must_use]
    pub fn split(self) -> (Reader, Writer) {
        (self.reader, self.writer)
    }

    fn note(&mut self, message: &Message) {
        if message.tag == b'S' {
            let mut parts =
                message.body.split(|byte| *byte == 0).map(|part| String::from_utf8_lossy(part).into_owned());
            self.parameters.extend(parts.next().zip(parts.next()));
        }
    }

    /// All messages up to and with the next ReadyForQuery, without ParameterStatus.
    pub async fn until_ready(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        loop {
            let message = self.next().await.unwrap_or_else(|error| panic!("after {}: {error}", tags(&messages)));
            let done = message.tag == b'Z';
            if message.tag != b'S' {
                messages.push(message);
            }
            if done {
                return messages;
            }
        }
    }

    /// One simple Query and everything that it is answered with.
    pub async fn query(&mut self, sql: &str) -> Vec<Message> {
        let mut out = Pipeline::new();
        out.query(sql);
        self.send(&out.bytes).await.expect("the query is sent");
        self.until_ready().await
    }

    /// Sends a pipeline and reads as many ReadyForQuery as it owes.
    pub async fn run(&mut self, pipeline: &Pipeline) -> Vec<Message> {
        self.send(&pipeline.bytes).await.expect("the pipeline is sent");
        let mut messages = Vec::new();
        for _ in 0..pipeline.ready_owed {
            messages.extend(self.until_ready().await);
        }
        messages
    }

    /// Reads until the server closes; gives what it said before.
    pub async fn until_closed(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        while let Ok(message) = self.next().await {
            messages.push(message);
        }
        messages
    }
}

/// Messages that are sent together.
#[derive(Debug, Default)]
pub struct Pipeline {
    /// The bytes so far.
    pub bytes: BytesMut,
    /// How many ReadyForQuery the server will owe for them.
    pub ready_owed: usize,
}

impl Pipeline {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Pipeline {
        Pipeline::default()
    }

    /// A simple Query.
    pub fn query(&mut self, sql: &str) -> &mut Self {
        frontend::query(sql, &mut self.bytes).expect("a query");
        self.ready_owed += 1;
        self
    }

    /// Parse, with the types left to the server.
    pub fn parse(&mut self, name: &str, sql: &str) -> &mut Self {
        frontend::parse(name, sql, [], &mut self.bytes).expect("a parse");
        self
    }

    /// Bind with parameters as text, NULL as `None`, and results as text.
    pub fn bind(&mut self, portal: &str, statement: &str, values: &[Option<&str>]) -> &mut Self {
        let write = |value: &Option<&str>, out: &mut BytesMut| {
            Ok(match value {
                Some(value) => {
                    out.put_slice(value.as_bytes());
                    IsNull::No
                }
                None => IsNull::Yes,
            })
        };
        let done = frontend::bind(portal, statement, [], values, write, [0], &mut self.bytes);
        assert!(done.is_ok(), "a bind");
        self
    }

    /// Describe a statement (`S`) or portal (`P`).
    pub fn describe(&mut self, what: u8, name: &str) -> &mut Self {
        frontend::describe(what, name, &mut self.bytes).expect("a describe");
        self
    }

    /// Execute a portal; 0 rows means all.
    pub fn execute(&mut self, portal: &str, rows_max: i32) -> &mut Self {
        frontend::execute(portal, rows_max, &mut self.bytes).expect("an execute");
        self
    }

    /// Close a statement (`S`) or portal (`P`).
    pub fn close(&mut self, what: u8, name: &str) -> &mut Self {
        frontend::close(what, name, &mut self.bytes).expect("a close");
        self
    }

    /// Parse, Bind, Describe and Execute of the unnamed statement.
    pub fn statement(&mut self, sql: &str, values: &[Option<&str>]) -> &mut Self {
        self.parse("", sql).bind("", "", values).describe(b'P', "").execute("", 0)
    }

    /// CopyFail, with the reason that the server will repeat.
    pub fn copy_fail(&mut self, reason: &str) -> &mut Self {
        frontend::copy_fail(reason, &mut self.bytes).expect("a failure");
        self
    }

    /// Sync.
    pub fn sync(&mut self) -> &mut Self {
        frontend::sync(&mut self.bytes);
        self.ready_owed += 1;
        self
    }
}
