//! What a server sends, as far as the gate reads it: the login, the status of a transaction, errors, COPY states.
//!
//! Rows, descriptions and copied data are recognised by their type and never read. A server is trusted more than a
//! client, yet a broken one must not bring the gate down: structures are checked as exactly as in [`crate::frontend`].
//! See <https://www.postgresql.org/docs/current/protocol-message-formats.html>.

pub mod encode;
mod fields;
mod message;

pub use fields::{ErrorFields, shortened_fields};
pub use message::{ErrorMessage, Severity};

use crate::WireError;
use crate::read::Body;
use crate::startup::{CancelKey, PARAMETERS_MAX, PROTOCOL_MAJOR};

/// The state of the session's transaction in ReadyForQuery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TransactionStatus {
    /// `I`: none.
    Idle,
    /// `T`: in a transaction block.
    InTransaction,
    /// `E`: in a failed transaction block; all is refused until its end.
    Failed,
}

impl TransactionStatus {
    /// The byte on the wire.
    pub fn tag(self) -> u8 {
        match self {
            TransactionStatus::Idle => b'I',
            TransactionStatus::InTransaction => b'T',
            TransactionStatus::Failed => b'E',
        }
    }
}

/// The kinds of the message `R`. `Debug` hides what is exchanged.
#[derive(Clone, PartialEq, Eq)]
pub enum Authentication<'a> {
    /// The login succeeded.
    Ok,
    /// The password itself is asked for.
    CleartextPassword,
    /// The password's MD5 is asked for.
    Md5 {
        /// Four random bytes.
        salt: [u8; 4],
    },
    /// SASL is asked for.
    Sasl {
        /// The mechanisms offered, the preferred one first.
        mechanisms: Vec<&'a str>,
    },
    /// A SASL challenge.
    SaslContinue(&'a [u8]),
    /// The last SASL message.
    SaslFinal(&'a [u8]),
    /// GSSAPI, SSPI or one that is not known: never supported.
    Other(i32),
}

/// A decoded message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend<'a> {
    /// `R`
    Authentication(Authentication<'a>),
    /// `S`: a setting that is reported; can come at any time.
    ParameterStatus {
        /// The setting's name.
        name: &'a str,
        /// Its value.
        value: &'a str,
    },
    /// `K`
    BackendKeyData(CancelKey),
    /// `Z`
    ReadyForQuery(TransactionStatus),
    /// `E`
    ErrorResponse(ErrorFields<'a>),
    /// `N`: can come at any time.
    NoticeResponse(ErrorFields<'a>),
    /// `v`
    NegotiateProtocolVersion {
        /// The newest minor version of protocol 3 that the server speaks.
        minor: u16,
        /// The `_pq_.` options that it does not know.
        options: Vec<&'a str>,
    },
    /// `C`
    CommandComplete {
        /// The command's tag, such as `INSERT 0 1`.
        tag: &'a str,
    },
    /// `1`
    ParseComplete,
    /// `2`
    BindComplete,
    /// `3`
    CloseComplete,
    /// `t`; not read.
    ParameterDescription,
    /// `T`; not read.
    RowDescription,
    /// `D`; not read.
    DataRow,
    /// `n`
    NoData,
    /// `s`
    PortalSuspended,
    /// `I`
    EmptyQueryResponse,
    /// `G`: the server waits for CopyData; not read.
    CopyInResponse,
    /// `H`: CopyData follows; not read.
    CopyOutResponse,
    /// `W`: replication only; not read.
    CopyBothResponse,
    /// `d`; not read.
    CopyData,
    /// `c`
    CopyDone,
    /// `A`: can come at any time; not read.
    NotificationResponse,
    /// `V`; not read.
    FunctionCallResponse,
    /// A type that is not known, to be passed on or refused by whoever asked.
    Other(u8),
}

impl Backend<'_> {
    /// The message in a frame of type `tag`.
    ///
    /// # Errors
    /// A structure that is not the message's: 08P01; a text that is not UTF-8: 22021. Unknown types are no error.
    pub fn decode(tag: u8, body: &[u8]) -> Result<Backend<'_>, WireError> {
        match tag {
            b'R' => decode_authentication(Body::new("Authentication", body)).map(Backend::Authentication),
            b'S' => decode_parameter_status(Body::new("ParameterStatus", body)),
            b'K' => CancelKey::decode(Body::new("BackendKeyData", body)).map(Backend::BackendKeyData),
            b'Z' => decode_ready(Body::new("ReadyForQuery", body)),
            b'E' => ErrorFields::decode(Body::new("ErrorResponse", body)).map(Backend::ErrorResponse),
            b'N' => ErrorFields::decode(Body::new("NoticeResponse", body)).map(Backend::NoticeResponse),
            b'v' => decode_negotiate(Body::new("NegotiateProtocolVersion", body)),
            b'C' => decode_complete(Body::new("CommandComplete", body)),
            b'1' => empty("ParseComplete", body, Backend::ParseComplete),
            b'2' => empty("BindComplete", body, Backend::BindComplete),
            b'3' => empty("CloseComplete", body, Backend::CloseComplete),
            b'n' => empty("NoData", body, Backend::NoData),
            b's' => empty("PortalSuspended", body, Backend::PortalSuspended),
            b'I' => empty("EmptyQueryResponse", body, Backend::EmptyQueryResponse),
            b'c' => empty("CopyDone", body, Backend::CopyDone),
            b't' => Ok(Backend::ParameterDescription),
            b'T' => Ok(Backend::RowDescription),
            b'D' => Ok(Backend::DataRow),
            b'G' => Ok(Backend::CopyInResponse),
            b'H' => Ok(Backend::CopyOutResponse),
            b'W' => Ok(Backend::CopyBothResponse),
            b'd' => Ok(Backend::CopyData),
            b'A' => Ok(Backend::NotificationResponse),
            b'V' => Ok(Backend::FunctionCallResponse),
            other => Ok(Backend::Other(other)),
        }
    }
}

fn empty<'a>(message: &'static str, body: &[u8], decoded: Backend<'a>) -> Result<Backend<'a>, WireError> {
    Body::new(message, body).end().map(|()| decoded)
}

fn decode_authentication(mut body: Body<'_>) -> Result<Authentication<'_>, WireError> {
    let decoded = match body.i32()? {
        0 => Authentication::Ok,
        3 => Authentication::CleartextPassword,
        5 => Authentication::Md5 { salt: body.array()? },
        10 => Authentication::Sasl { mechanisms: decode_mechanisms(&mut body)? },
        11 => return Ok(Authentication::SaslContinue(body.rest())),
        12 => return Ok(Authentication::SaslFinal(body.rest())),
        other => return Ok(Authentication::Other(other)),
    };
    body.end()?;
    Ok(decoded)
}

fn decode_mechanisms<'a>(body: &mut Body<'a>) -> Result<Vec<&'a str>, WireError> {
    /// More than all registered mechanisms that a server could offer.
    const MECHANISMS_MAX: usize = 32;
    let mut mechanisms = Vec::new();
    loop {
        let mechanism = body.text()?;
        if mechanism.is_empty() {
            return Ok(mechanisms);
        }
        if mechanisms.len() == MECHANISMS_MAX {
            return Err(body.malformed("too many mechanisms"));
        }
        mechanisms.push(mechanism);
    }
}

fn decode_parameter_status(mut body: Body<'_>) -> Result<Backend<'_>, WireError> {
    let name = body.text()?;
    let value = body.text()?;
    body.end()?;
    Ok(Backend::ParameterStatus { name, value })
}

fn decode_ready(mut body: Body<'_>) -> Result<Backend<'_>, WireError> {
    let status = match body.u8()? {
        b'I' => TransactionStatus::Idle,
        b'T' => TransactionStatus::InTransaction,
        b'E' => TransactionStatus::Failed,
        _ => return Err(body.malformed("unknown transaction status")),
    };
    body.end()?;
    Ok(Backend::ReadyForQuery(status))
}

fn decode_negotiate(mut body: Body<'_>) -> Result<Backend<'_>, WireError> {
    // The docs speak of the minor version, but servers send, and libpq expects, the whole one (3 << 16 | minor).
    let [a, b, c, d] = body.array()?;
    if !matches!(u16::from_be_bytes([a, b]), 0 | PROTOCOL_MAJOR) {
        return Err(body.malformed("another major version"));
    }
    let minor = u16::from_be_bytes([c, d]);
    let count = usize::try_from(body.i32()?).map_err(|_| body.malformed("negative count"))?;
    if count > PARAMETERS_MAX {
        return Err(body.malformed("too many options"));
    }
    let mut options = Vec::with_capacity(count);
    for _ in 0..count {
        options.push(body.text()?);
    }
    body.end()?;
    Ok(Backend::NegotiateProtocolVersion { minor, options })
}

fn decode_complete(mut body: Body<'_>) -> Result<Backend<'_>, WireError> {
    let tag = body.text()?;
    body.end()?;
    Ok(Backend::CommandComplete { tag })
}

impl std::fmt::Debug for Authentication<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ok => f.write_str("Ok"),
            Self::CleartextPassword => f.write_str("CleartextPassword"),
            Self::Md5 { .. } => f.write_str("Md5"),
            Self::Sasl { mechanisms } => write!(f, "Sasl({mechanisms:?})"),
            Self::SaslContinue(_) => f.write_str("SaslContinue(***)"),
            Self::SaslFinal(_) => f.write_str("SaslFinal(***)"),
            Self::Other(kind) => write!(f, "Other({kind})"),
        }
    }
}
