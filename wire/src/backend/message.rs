//! An error or notice that the gate itself sends.
//!
//! It always has the fields S, V, C and M, since drivers rely on them, and no NUL in any. It must not be built from a
//! secret: whoever reads it is outside.

use bytes::{BufMut, BytesMut};

use crate::scram::ScramError;
use crate::write::{bounded, stripped};
use crate::{SqlState, WireError};

/// The longest text of one field, in bytes; what is longer is cut at a character.
const FIELD_BYTES_MAX: usize = 16 * 1024;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Severity {
    /// The statement failed.
    Error,
    /// The session ends.
    Fatal,
    /// Something to know.
    Notice,
    /// Something to worry about.
    Warning,
}

impl Severity {
    /// PostgreSQL's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Error => "ERROR",
            Severity::Fatal => "FATAL",
            Severity::Notice => "NOTICE",
            Severity::Warning => "WARNING",
        }
    }
}

/// What an ErrorResponse or NoticeResponse says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorMessage {
    /// S and V.
    pub severity: Severity,
    /// C.
    pub code: SqlState,
    /// M: one sentence, lower case, no full stop.
    pub message: String,
    /// D: what exactly.
    pub detail: Option<String>,
    /// H: what to do instead.
    pub hint: Option<String>,
    /// P: where in the text, in characters from 1.
    pub position: Option<u32>,
}

impl ErrorMessage {
    /// A message of any severity.
    pub fn new(severity: Severity, code: SqlState, message: impl Into<String>) -> Self {
        ErrorMessage { severity, code, message: message.into(), detail: None, hint: None, position: None }
    }

    /// The statement failed.
    pub fn error(code: SqlState, message: impl Into<String>) -> Self {
        Self::new(Severity::Error, code, message)
    }

    /// The session ends.
    pub fn fatal(code: SqlState, message: impl Into<String>) -> Self {
        Self::new(Severity::Fatal, code, message)
    }

    /// With DETAIL.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// With HINT.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// With a position, in characters from 1.
    #[must_use]
    pub fn position(mut self, position: u32) -> Self {
        self.position = Some(position);
        self
    }

    /// Appends it as ErrorResponse.
    pub fn encode_error(&self, buf: &mut BytesMut) {
        self.encode(buf, b'E');
    }

    /// Appends it as clients of protocol 2.0 and older understand it: no length, one line of text.
    pub fn encode_error_before_3(&self, buf: &mut BytesMut) {
        buf.put_u8(b'E');
        stripped(buf, &format!("{}:  {}\n", self.severity.as_str(), clip(&self.message)));
    }

    /// Appends it as NoticeResponse.
    pub fn encode_notice(&self, buf: &mut BytesMut) {
        self.encode(buf, b'N');
    }

    fn encode(&self, buf: &mut BytesMut, tag: u8) {
        bounded(buf, tag, |buf| {
            field(buf, b'S', self.severity.as_str());
            field(buf, b'V', self.severity.as_str());
            field(buf, b'C', self.code.as_str());
            field(buf, b'M', &self.message);
            if let Some(detail) = &self.detail {
                field(buf, b'D', detail);
            }
            if let Some(hint) = &self.hint {
                field(buf, b'H', hint);
            }
            if let Some(position) = self.position {
                field(buf, b'P', &position.to_string());
            }
            buf.put_u8(0);
        });
    }
}

fn field(buf: &mut BytesMut, kind: u8, text: &str) {
    buf.put_u8(kind);
    stripped(buf, clip(text));
}

/// The text, or as many whole characters of it as a field may have.
fn clip(text: &str) -> &str {
    if text.len() <= FIELD_BYTES_MAX {
        return text;
    }
    let end = (0..=FIELD_BYTES_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    &text[..end]
}

impl From<&WireError> for ErrorMessage {
    /// FATAL when the stream can no longer be understood, else ERROR.
    fn from(error: &WireError) -> Self {
        let severity = if error.is_fatal() { Severity::Fatal } else { Severity::Error };
        Self::new(severity, error.sqlstate(), error.to_string())
    }
}

impl From<&ScramError> for ErrorMessage {
    /// Always FATAL: a login has one try.
    fn from(error: &ScramError) -> Self {
        Self::fatal(error.sqlstate(), error.to_string())
    }
}
