//! What can be wrong with bytes, one variant per reason.
//!
//! Each reason has its SQLSTATE and a sentence in PostgreSQL's manner that may be shown to whoever sent the bytes. No
//! variant carries a secret or unbounded text: names that a client chose are clipped and escaped.

use crate::SqlState;

/// The most characters of a client's own text that an error repeats.
const EXCERPT_CHARS_MAX: usize = 63;

/// Why bytes are not the message they claim to be, or cannot become one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The length field of a startup packet is outside 8..=10,000 bytes, or not the one its code demands.
    #[error("invalid length of startup packet")]
    StartupLength {
        /// The length field as it was sent.
        length: i32,
    },
    /// The length field of a frame is below 4, or above what this type of message can need.
    #[error("invalid message length {length} in message of type {}", printable(*tag))]
    InvalidLength {
        /// The type byte.
        tag: u8,
        /// The length field as it was sent.
        length: i32,
    },
    /// The frame is longer than the receiver is willing to take.
    #[error("message of type {} has {body_len} bytes, at most {body_len_max} are accepted", printable(*tag))]
    FrameTooLong {
        /// The type byte.
        tag: u8,
        /// Bytes after the length field.
        body_len: usize,
        /// The most that is accepted.
        body_len_max: usize,
    },
    /// No client sends this type.
    #[error("invalid frontend message type {tag}")]
    UnknownMessage {
        /// The type byte.
        tag: u8,
    },
    /// The body does not have the structure of its message.
    #[error("invalid {message} message: {reason}")]
    Malformed {
        /// The message's name in PostgreSQL's docs.
        message: &'static str,
        /// What was found.
        reason: &'static str,
    },
    /// A name or value is not valid UTF-8.
    #[error("invalid byte sequence for encoding \"UTF8\" in {message} message")]
    NotUtf8 {
        /// The message's name in PostgreSQL's docs.
        message: &'static str,
    },
    /// The name of a prepared statement or portal has more than 63 bytes.
    #[error("name in {message} message is too long ({length} bytes, at most 63)")]
    NameTooLong {
        /// The message's name in PostgreSQL's docs.
        message: &'static str,
        /// Bytes of the name.
        length: usize,
    },
    /// A protocol whose major version is not 3.
    #[error("unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.2")]
    UnsupportedProtocol {
        /// The upper half of the version.
        major: u16,
        /// The lower half of the version.
        minor: u16,
    },
    /// A StartupMessage without a user.
    #[error("no PostgreSQL user name specified in startup packet")]
    MissingUser,
    /// A startup parameter that occurs twice: which of the two counts must not depend on who reads it.
    #[error("startup parameter {name:?} is given more than once")]
    DuplicateParameter {
        /// The parameter, clipped.
        name: String,
    },
    /// The client asks for the replication protocol.
    #[error("replication connections are not supported")]
    ReplicationNotSupported,
    /// An argument in the startup parameter `options` that is not `-c name=value` or `--name=value`.
    #[error("invalid command-line argument in startup parameter \"options\": {argument:?}")]
    InvalidOption {
        /// The argument, clipped.
        argument: String,
    },
    /// The secret of a cancel key has not 4 to 256 bytes.
    #[error("invalid length of cancel key: {length} bytes")]
    CancelKeyLength {
        /// Bytes of the secret.
        length: usize,
    },
    /// A text that was to be written contains a NUL, behind which the receiver would see another field.
    #[error("a text for a {message} message contains a NUL byte")]
    EmbeddedNul {
        /// The message's name in PostgreSQL's docs.
        message: &'static str,
    },
    /// What was to be written does not fit the length or count fields of the message.
    #[error("a {message} message would be too long")]
    MessageTooLong {
        /// The message's name in PostgreSQL's docs.
        message: &'static str,
    },
}

impl WireError {
    /// The SQLSTATE that PostgreSQL gives to this mistake.
    pub fn sqlstate(&self) -> SqlState {
        match self {
            Self::StartupLength { .. }
            | Self::InvalidLength { .. }
            | Self::UnknownMessage { .. }
            | Self::Malformed { .. }
            | Self::DuplicateParameter { .. }
            | Self::CancelKeyLength { .. } => SqlState::PROTOCOL_VIOLATION,
            Self::FrameTooLong { .. } | Self::MessageTooLong { .. } => SqlState::PROGRAM_LIMIT_EXCEEDED,
            Self::NotUtf8 { .. } | Self::EmbeddedNul { .. } => SqlState::CHARACTER_NOT_IN_REPERTOIRE,
            Self::NameTooLong { .. } => SqlState::NAME_TOO_LONG,
            Self::UnsupportedProtocol { .. } | Self::ReplicationNotSupported => SqlState::FEATURE_NOT_SUPPORTED,
            Self::MissingUser => SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
            Self::InvalidOption { .. } => SqlState::SYNTAX_ERROR,
        }
    }

    /// Whether the sender can no longer be understood and the connection must end. Otherwise the frame was whole and
    /// only its content is refused, so that the session may go on after an ErrorResponse.
    pub fn is_fatal(&self) -> bool {
        !matches!(self, Self::NameTooLong { .. } | Self::NotUtf8 { .. } | Self::EmbeddedNul { .. })
    }
}

/// The beginning of a text that a client chose, short enough for an error.
pub(crate) fn excerpt(text: &str) -> String {
    text.chars().take(EXCERPT_CHARS_MAX).collect()
}

/// The type byte as documentation prints it, or its number when it has no such form.
fn printable(tag: u8) -> String {
    if tag.is_ascii_graphic() { format!("\"{}\"", char::from(tag)) } else { tag.to_string() }
}
