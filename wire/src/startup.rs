//! The packets before the first typed frame: an Int32 length, an Int32 code, and for some a body.
//!
//! They come from anyone who can reach the port, so this is the strictest reader of all: 8 to 10,000 bytes, checked as
//! soon as the length is there; exact consumption; no parameter twice; no replication. It must not decide what a
//! parameter may be set to: that is the policy's.
//! See <https://www.postgresql.org/docs/current/protocol-message-formats.html> and `protocol-flow.html#PROTOCOL-FLOW-START-UP`.

mod options;

use std::fmt;

use bytes::BytesMut;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

pub use options::parse_options;

use crate::WireError;
use crate::error::excerpt;
use crate::read::Body;

/// The shortest packet: length and code.
pub const STARTUP_BYTES_MIN: usize = 8;
/// The longest packet (PostgreSQL's MAX_STARTUP_PACKET_LENGTH).
pub const STARTUP_BYTES_MAX: usize = 10_000;
/// The most parameters in a StartupMessage, `_pq_.` ones included, and in `options`. Drivers send fewer than 20.
pub const PARAMETERS_MAX: usize = 128;
/// The major version that is spoken.
pub const PROTOCOL_MAJOR: u16 = 3;
/// The newest minor version that is spoken.
pub const PROTOCOL_MINOR_MAX: u16 = 2;
/// Parameters with this prefix are options of the protocol, not settings.
pub const PROTOCOL_OPTION_PREFIX: &str = "_pq_.";

/// A major version that no protocol has; the minor one says which request it is.
const REQUEST_MAJOR: u16 = 1234;
const CANCEL_REQUEST: u16 = 5678;
const SSL_REQUEST: u16 = 5679;
const GSSENC_REQUEST: u16 = 5680;

/// The code of a request (`CancelRequest`, `SSLRequest`, `GSSENCRequest`).
pub(crate) const fn request_code(minor: u16) -> i32 {
    version(REQUEST_MAJOR, minor)
}
/// SSLRequest.
pub(crate) const SSL_REQUEST_CODE: i32 = request_code(SSL_REQUEST);
/// GSSENCRequest.
pub(crate) const GSSENC_REQUEST_CODE: i32 = request_code(GSSENC_REQUEST);
/// CancelRequest.
pub(crate) const CANCEL_REQUEST_CODE: i32 = request_code(CANCEL_REQUEST);

/// Both halves of a version as one Int32.
pub(crate) const fn version(major: u16, minor: u16) -> i32 {
    ((major as i32) << 16) | minor as i32
}

/// What a connection can begin with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartupPacket {
    /// The client wants TLS; the answer is one byte, `S` or `N`.
    SslRequest,
    /// The client wants GSSAPI encryption; the answer is the byte `N`.
    GssEncRequest,
    /// Cancel what the session with this key is doing. It is never answered.
    CancelRequest(CancelKey),
    /// The login begins.
    StartupMessage(StartupMessage),
}

/// Takes the packet at the front of `buf`; `None` (and `buf` untouched) while it is not whole.
///
/// Length and code are checked as soon as their bytes are there.
///
/// # Errors
/// Every [`WireError`] with "startup" in its description, an unsupported major version (0A000), replication (0A000),
/// a missing user (28000), a cancel key outside 4..=256 bytes. The connection must then end.
pub fn cut_startup(buf: &mut BytesMut) -> Result<Option<StartupPacket>, WireError> {
    let Some(announced) = buf.first_chunk::<4>() else { return Ok(None) };
    let length = i32::from_be_bytes(*announced);
    let packet_len = usize::try_from(length).unwrap_or(0);
    if !(STARTUP_BYTES_MIN..=STARTUP_BYTES_MAX).contains(&packet_len) {
        return Err(WireError::StartupLength { length });
    }
    let Some(&[_, _, _, _, a, b, c, d]) = buf.first_chunk::<STARTUP_BYTES_MIN>() else { return Ok(None) };
    let (major, minor) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    check_code(length, major, minor)?;
    if buf.len() < packet_len {
        return Ok(None);
    }
    let packet = decode(major, minor, &buf[STARTUP_BYTES_MIN..packet_len])?;
    let _ = buf.split_to(packet_len);
    Ok(Some(packet))
}

/// Refuses, before the body has arrived, a version that is not spoken and a length that its code cannot have.
fn check_code(length: i32, major: u16, minor: u16) -> Result<(), WireError> {
    let body_len = usize::try_from(length).unwrap_or(0).saturating_sub(STARTUP_BYTES_MIN);
    let fits = match (major, minor) {
        (REQUEST_MAJOR, SSL_REQUEST | GSSENC_REQUEST) => body_len == 0,
        (REQUEST_MAJOR, CANCEL_REQUEST) => {
            (4 + CancelKey::SECRET_BYTES_MIN..=4 + CancelKey::SECRET_BYTES_MAX).contains(&body_len)
        }
        (PROTOCOL_MAJOR, _) => true,
        _ => return Err(WireError::UnsupportedProtocol { major, minor }),
    };
    if fits { Ok(()) } else { Err(WireError::StartupLength { length }) }
}

fn decode(major: u16, minor: u16, body: &[u8]) -> Result<StartupPacket, WireError> {
    match (major, minor) {
        (REQUEST_MAJOR, SSL_REQUEST) => Ok(StartupPacket::SslRequest),
        (REQUEST_MAJOR, GSSENC_REQUEST) => Ok(StartupPacket::GssEncRequest),
        (REQUEST_MAJOR, CANCEL_REQUEST) => {
            CancelKey::decode(Body::new("CancelRequest", body)).map(StartupPacket::CancelRequest)
        }
        _ => StartupMessage::decode(minor, body).map(StartupPacket::StartupMessage),
    }
}

/// By which a session can be cancelled: a process id and a secret of 4 bytes (protocol 3.0) to 256 bytes (3.2).
///
/// Compared in constant time; the secret is wiped when dropped and never printed.
#[derive(Clone)]
pub struct CancelKey {
    /// PostgreSQL's process id; from the gate, any number that finds the session.
    pub process_id: i32,
    secret: Zeroizing<Box<[u8]>>,
}

impl CancelKey {
    /// The shortest secret, and the only length in protocol 3.0.
    pub const SECRET_BYTES_MIN: usize = 4;
    /// The longest secret.
    pub const SECRET_BYTES_MAX: usize = 256;

    /// A key of a process id and a secret.
    ///
    /// # Errors
    /// [`WireError::CancelKeyLength`] when the secret has not 4 to 256 bytes.
    pub fn new(process_id: i32, secret: &[u8]) -> Result<CancelKey, WireError> {
        if !(Self::SECRET_BYTES_MIN..=Self::SECRET_BYTES_MAX).contains(&secret.len()) {
            return Err(WireError::CancelKeyLength { length: secret.len() });
        }
        Ok(CancelKey { process_id, secret: Zeroizing::new(secret.into()) })
    }

    /// The secret's bytes.
    pub fn secret(&self) -> &[u8] {
        &self.secret
    }

    /// A process id and a secret that fills the rest of the message.
    pub(crate) fn decode(mut body: Body<'_>) -> Result<CancelKey, WireError> {
        let process_id = body.i32()?;
        CancelKey::new(process_id, body.rest())
    }
}

impl PartialEq for CancelKey {
    fn eq(&self, other: &CancelKey) -> bool {
        let secret = self.secret[..].ct_eq(&other.secret[..]);
        let process_id = self.process_id.to_be_bytes().ct_eq(&other.process_id.to_be_bytes());
        (secret & process_id).into()
    }
}

impl Eq for CancelKey {}

impl fmt::Debug for CancelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CancelKey({}, ***)", self.process_id)
    }
}

/// The first message of a login: which protocol, who, which database, which settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartupMessage {
    /// The minor version asked for; the major one is 3. It may be newer than [`PROTOCOL_MINOR_MAX`].
    pub minor: u16,
    /// Every parameter but `_pq_.` ones and `replication`, in the order sent, no name twice (in any case).
    pub parameters: Vec<(String, String)>,
    /// The names of all `_pq_.` parameters: none is supported, NegotiateProtocolVersion must list each.
    pub protocol_options: Vec<String>,
}

impl StartupMessage {
    /// Who wants to log in. Never empty in a decoded message.
    pub fn user(&self) -> &str {
        self.get("user").unwrap_or_default()
    }

    /// The database asked for; the user's name when there is none.
    pub fn database(&self) -> &str {
        match self.get("database") {
            None | Some("") => self.user(),
            Some(name) => name,
        }
    }

    /// A parameter's value by its exact name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Whether NegotiateProtocolVersion must be sent: a newer minor version or an option of the protocol was asked for.
    pub fn needs_negotiation(&self) -> bool {
        self.minor > PROTOCOL_MINOR_MAX || !self.protocol_options.is_empty()
    }

    fn decode(minor: u16, body: &[u8]) -> Result<StartupMessage, WireError> {
        let mut body = Body::new("StartupMessage", body);
        let mut message = StartupMessage { minor, parameters: Vec::new(), protocol_options: Vec::new() };
        let mut replication = None;
        loop {
            let name = body.text()?;
            if name.is_empty() {
                break;
            }
            let value = body.text()?;
            if replication.is_some() && name.eq_ignore_ascii_case("replication") || message.has(name) {
                return Err(WireError::DuplicateParameter { name: excerpt(name) });
            }
            if message.parameters.len() + message.protocol_options.len() >= PARAMETERS_MAX {
                return Err(body.malformed("too many parameters"));
            }
            if name.starts_with(PROTOCOL_OPTION_PREFIX) {
                message.protocol_options.push(name.to_owned());
            } else if name.eq_ignore_ascii_case("replication") {
                replication = Some(value);
            } else {
                message.parameters.push((name.to_owned(), value.to_owned()));
            }
        }
        body.end()?;
        if replication.is_some_and(|value| !is_off(value)) {
            return Err(WireError::ReplicationNotSupported);
        }
        if message.user().is_empty() {
            return Err(WireError::MissingUser);
        }
        Ok(message)
    }

    /// Settings have no case in PostgreSQL, so names that differ in case alone are the same one.
    fn has(&self, name: &str) -> bool {
        self.parameters
            .iter()
            .map(|(key, _)| key)
            .chain(&self.protocol_options)
            .any(|key| key.eq_ignore_ascii_case(name))
    }
}

/// Whether PostgreSQL reads this boolean as false: `0`, or the beginning of `off`, `false` or `no` that is unique.
fn is_off(value: &str) -> bool {
    let value = value.to_ascii_lowercase();
    value == "0"
        || [("false", 1), ("no", 1), ("off", 2)]
            .iter()
            .any(|(word, min)| value.len() >= *min && word.starts_with(&value))
}
