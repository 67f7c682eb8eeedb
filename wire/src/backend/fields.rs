//! The fields of an ErrorResponse or NoticeResponse, read in place.
//!
//! Any field may be missing, also those that PostgreSQL always sends: poolers and other servers leave some out, and
//! others crashed over that. See <https://www.postgresql.org/docs/current/protocol-error-fields.html>.

use std::fmt;

use crate::WireError;
use crate::read::Body;

/// The fields as sent: their structure is checked, their presence is not.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ErrorFields<'a> {
    /// Pairs of a type byte and a string, without the NUL that ends the list.
    pairs: &'a [u8],
}

/// Makes a whole body of the first bytes of one that is too long to be held, `body_len` bytes as a whole: the field in which
/// they end says that it was cut, those behind it are left out. `head` begins at the body's first byte.
pub fn shortened_fields(head: &[u8], body_len: usize) -> Vec<u8> {
    let begins = head.iter().rposition(|byte| *byte == 0).map_or(0, |nul| nul + 1);
    let mut body = head.to_vec();
    // A type byte alone says nothing.
    if body.len() - begins < 2 {
        body.truncate(begins);
    } else {
        let text = &body[begins + 1..];
        let whole = match std::str::from_utf8(text) {
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            _ => text.len(),
        };
        body.truncate(begins + 1 + whole);
        body.extend_from_slice(format!(" [cut by the gate: the whole message has {body_len} bytes]\0").as_bytes());
    }
    body.push(0);
    body
}

impl<'a> ErrorFields<'a> {
    pub(crate) fn decode(mut body: Body<'a>) -> Result<ErrorFields<'a>, WireError> {
        let whole = body.rest();
        while body.u8()? != 0 {
            body.string()?;
        }
        body.end()?;
        Ok(ErrorFields { pairs: &whole[..whole.len() - 1] })
    }

    /// Type byte and value of each field, in the order sent.
    pub fn iter(&self) -> impl Iterator<Item = (u8, &'a [u8])> + use<'a> {
        let mut body = Body::new("ErrorResponse", self.pairs);
        std::iter::from_fn(move || Some((body.u8().ok()?, body.string().ok()?)))
    }

    /// The bytes of a field, for a text that may not be UTF-8 (a localised server before the login).
    pub fn bytes(&self, field: u8) -> Option<&'a [u8]> {
        self.iter().find(|(kind, _)| *kind == field).map(|(_, value)| value)
    }

    /// A field by its type byte; `None` when it is missing or not UTF-8.
    pub fn get(&self, field: u8) -> Option<&'a str> {
        std::str::from_utf8(self.bytes(field)?).ok()
    }

    /// `C`: the SQLSTATE.
    pub fn code(&self) -> Option<&'a str> {
        self.get(b'C')
    }

    /// `V`, or else `S`: the severity, the former not translated.
    pub fn severity(&self) -> Option<&'a str> {
        self.get(b'V').or_else(|| self.get(b'S'))
    }

    /// `M`: the message.
    pub fn message(&self) -> Option<&'a str> {
        self.get(b'M')
    }

    /// Whether the server ends the connection after this message.
    pub fn is_fatal(&self) -> bool {
        matches!(self.severity(), Some("FATAL" | "PANIC"))
    }
}

impl fmt::Debug for ErrorFields<'_> {
    /// Severity and code only: a message can quote a customer's data.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ErrorFields({:?}, {:?})", self.severity(), self.code())
    }
}
