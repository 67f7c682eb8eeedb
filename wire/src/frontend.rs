//! What a client sends after the startup packet.
//!
//! [`Frontend::decode`] borrows from the frame and never allocates. It consumes a body exactly: no byte of a frame is
//! left unread, so that nothing can hide behind what was judged. It must not look into SQL; texts stay bytes here.
//! See <https://www.postgresql.org/docs/current/protocol-message-formats.html>.

pub mod encode;

use std::fmt;

use crate::WireError;
use crate::read::Body;

/// The longest name of a prepared statement or portal (NAMEDATALEN - 1).
pub const NAME_BYTES_MAX: usize = 63;
/// The longest password or SASL message. SCRAM needs less than 1 KiB.
pub const PASSWORD_BYTES_MAX: usize = 8 * 1024;
/// The longest message of a kind that needs no more than a few names (PostgreSQL's PQ_SMALL_MESSAGE_LIMIT).
pub const SMALL_MESSAGE_BYTES_MAX: usize = 10_000;

/// What Describe and Close point at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Target {
    /// `S`: a prepared statement.
    Statement,
    /// `P`: a portal.
    Portal,
}

impl Target {
    /// The byte on the wire.
    pub fn tag(self) -> u8 {
        match self {
            Target::Statement => b'S',
            Target::Portal => b'P',
        }
    }
}

/// A decoded message. `Debug` shows names and lengths, never texts or values.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Frontend<'a> {
    /// `Q`: run a text.
    Query {
        /// Everything before the NUL that ends the frame; no NUL, not necessarily UTF-8.
        sql: &'a [u8],
    },
    /// `P`: prepare a text.
    Parse {
        /// The statement's name, empty for the unnamed one.
        name: &'a str,
        /// The text; no NUL, not necessarily UTF-8.
        sql: &'a [u8],
        /// The count and the type OIDs as sent; the count fits.
        param_types: &'a [u8],
    },
    /// `B`: make a portal of a prepared statement.
    Bind {
        /// The portal's name, empty for the unnamed one.
        portal: &'a str,
        /// The statement's name, empty for the unnamed one.
        statement: &'a str,
        /// Everything from the parameter format codes on, as sent; its structure was checked to the last byte.
        rest: &'a [u8],
    },
    /// `D`
    Describe {
        /// Statement or portal.
        target: Target,
        /// Its name.
        name: &'a str,
    },
    /// `E`
    Execute {
        /// The portal's name.
        portal: &'a str,
        /// Rows to return; zero or less means all.
        max_rows: i32,
    },
    /// `C`
    Close {
        /// Statement or portal.
        target: Target,
        /// Its name.
        name: &'a str,
    },
    /// `S`
    Sync,
    /// `H`
    Flush,
    /// `X`
    Terminate,
    /// `d`
    CopyData,
    /// `c`
    CopyDone,
    /// `f`
    CopyFail,
    /// `F`: a function by its OID, past the parser. Not decoded further, since it is never let through.
    FunctionCall,
    /// `p`: PasswordMessage, SASLInitialResponse, SASLResponse or GSSResponse, as the state of the login has it.
    Password {
        /// The whole body.
        body: &'a [u8],
    },
}

/// Refuses a type byte that no client sends.
pub(crate) fn known(tag: u8) -> Result<(), WireError> {
    if b"QPBDECSHXdcfFp".contains(&tag) { Ok(()) } else { Err(WireError::UnknownMessage { tag }) }
}

/// Refuses a body that its type cannot have, whatever it contains.
pub(crate) fn check_len(tag: u8, body_len: usize) -> Result<(), WireError> {
    let body_len_max = match tag {
        b'S' | b'H' | b'X' | b'c' => 0,
        b'D' | b'C' | b'E' | b'f' => SMALL_MESSAGE_BYTES_MAX,
        b'p' => PASSWORD_BYTES_MAX,
        _ => return Ok(()),
    };
    if body_len > body_len_max {
        let length = i32::try_from(body_len.saturating_add(4)).unwrap_or(i32::MAX);
        return Err(WireError::InvalidLength { tag, length });
    }
    Ok(())
}

impl Frontend<'_> {
    /// The message in a frame of type `tag`.
    ///
    /// # Errors
    /// An unknown type, a length its type cannot have, a missing NUL, bytes left over or missing, an impossible count:
    /// 08P01. A name over 63 bytes: 42622. A name that is not UTF-8: 22021.
    pub fn decode(tag: u8, body: &[u8]) -> Result<Frontend<'_>, WireError> {
        known(tag)?;
        check_len(tag, body.len())?;
        match tag {
            b'Q' => Ok(Frontend::Query { sql: Body::new("Query", body).last_string()? }),
            b'P' => decode_parse(Body::new("Parse", body)),
            b'B' => decode_bind(Body::new("Bind", body)),
            b'D' => {
                decode_target(Body::new("Describe", body)).map(|(target, name)| Frontend::Describe { target, name })
            }
            b'E' => decode_execute(Body::new("Execute", body)),
            b'C' => decode_target(Body::new("Close", body)).map(|(target, name)| Frontend::Close { target, name }),
            b'S' => Ok(Frontend::Sync),
            b'H' => Ok(Frontend::Flush),
            b'X' => Ok(Frontend::Terminate),
            b'd' => Ok(Frontend::CopyData),
            b'c' => Ok(Frontend::CopyDone),
            b'f' => Body::new("CopyFail", body).last_string().map(|_| Frontend::CopyFail),
            b'F' => Ok(Frontend::FunctionCall),
            b'p' => Ok(Frontend::Password { body }),
            _ => Err(WireError::UnknownMessage { tag }),
        }
    }
}

fn decode_parse(mut body: Body<'_>) -> Result<Frontend<'_>, WireError> {
    let name = body.name()?;
    let sql = body.string()?;
    let param_types = body.rest();
    let count = body.u16()?;
    body.bytes(usize::from(count) * 4)?;
    body.end()?;
    Ok(Frontend::Parse { name, sql, param_types })
}

fn decode_bind(mut body: Body<'_>) -> Result<Frontend<'_>, WireError> {
    let portal = body.name()?;
    let statement = body.name()?;
    let rest = body.rest();
    skip_formats(&mut body)?;
    for _ in 0..body.u16()? {
        match body.i32()? {
            -1 => {}
            length => {
                let length = usize::try_from(length).map_err(|_| body.malformed("negative length of a parameter"))?;
                body.bytes(length)?;
            }
        }
    }
    skip_formats(&mut body)?;
    body.end()?;
    Ok(Frontend::Bind { portal, statement, rest })
}

fn skip_formats(body: &mut Body<'_>) -> Result<(), WireError> {
    let count = body.u16()?;
    body.bytes(usize::from(count) * 2).map(|_| ())
}

fn decode_execute(mut body: Body<'_>) -> Result<Frontend<'_>, WireError> {
    let portal = body.name()?;
    let max_rows = body.i32()?;
    body.end()?;
    Ok(Frontend::Execute { portal, max_rows })
}

fn decode_target(mut body: Body<'_>) -> Result<(Target, &str), WireError> {
    let target = match body.u8()? {
        b'S' => Target::Statement,
        b'P' => Target::Portal,
        _ => return Err(body.malformed("invalid subtype")),
    };
    let name = body.name()?;
    body.end()?;
    Ok((target, name))
}

impl fmt::Debug for Frontend<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Query { sql } => write!(f, "Query({} bytes)", sql.len()),
            Self::Parse { name, sql, .. } => write!(f, "Parse({name:?}, {} bytes)", sql.len()),
            Self::Bind { portal, statement, .. } => write!(f, "Bind({portal:?}, {statement:?})"),
            Self::Describe { target, name } => write!(f, "Describe({target:?}, {name:?})"),
            Self::Execute { portal, max_rows } => write!(f, "Execute({portal:?}, {max_rows})"),
            Self::Close { target, name } => write!(f, "Close({target:?}, {name:?})"),
            Self::Sync => f.write_str("Sync"),
            Self::Flush => f.write_str("Flush"),
            Self::Terminate => f.write_str("Terminate"),
            Self::CopyData => f.write_str("CopyData"),
            Self::CopyDone => f.write_str("CopyDone"),
            Self::CopyFail => f.write_str("CopyFail"),
            Self::FunctionCall => f.write_str("FunctionCall"),
            Self::Password { .. } => f.write_str("Password(***)"),
        }
    }
}

/// The first `p` of a SASL login: which mechanism, and the client's first message.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SaslInitialResponse<'a> {
    /// The mechanism chosen; not yet known to be one that was offered.
    pub mechanism: &'a str,
    /// The client's first message; `None` when it sent none (length -1), which SCRAM does not allow.
    pub data: Option<&'a [u8]>,
}

impl SaslInitialResponse<'_> {
    /// Reads the body of a [`Frontend::Password`] where the state of the login expects this message.
    ///
    /// # Errors
    /// 08P01 when the structure or a length is wrong, 22021 when the mechanism is not UTF-8.
    pub fn decode(body: &[u8]) -> Result<SaslInitialResponse<'_>, WireError> {
        check_len(b'p', body.len())?;
        let mut body = Body::new("SASLInitialResponse", body);
        let mechanism = body.text()?;
        let data = match body.i32()? {
            -1 => None,
            length => {
                let length = usize::try_from(length).map_err(|_| body.malformed("negative length"))?;
                Some(body.bytes(length)?)
            }
        };
        body.end()?;
        Ok(SaslInitialResponse { mechanism, data })
    }
}
