//! SCRAM-SHA-256 and SCRAM-SHA-256-PLUS (RFC 5802, RFC 7677, `tls-server-end-point` of RFC 5929), both sides.
//!
//! Pure: nonces and salts come from the caller, so that an exchange can be repeated in a test. A side is consumed step
//! by step; what has not happened yet cannot be asked for. Secrets are compared in constant time, wiped when dropped,
//! and never printed: none of the types that hold one implements `Debug`.
//! Where the RFCs leave a choice, PostgreSQL's is taken (`auth-scram.c`); where PostgreSQL is lenient, this is not.

mod attributes;
mod client;
mod keys;
mod server;

pub use client::{AwaitingServerFinal, ClientExchange, Credential};
pub use keys::{Keys, Verifier, derive, postgres_verifier};
pub use server::ServerExchange;

use aws_lc_rs::rand;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::SqlState;

/// The mechanism without channel binding.
pub const SCRAM_SHA_256: &str = "SCRAM-SHA-256";
/// The mechanism with channel binding.
pub const SCRAM_SHA_256_PLUS: &str = "SCRAM-SHA-256-PLUS";
/// The longest message of an exchange, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 2048;
/// The most iterations that a server may ask of us; each costs it nothing and us some 150 ns.
pub const ITERATIONS_MAX: u32 = 1_000_000;
/// Bytes of randomness in a nonce, as in PostgreSQL.
const NONCE_RANDOM_BYTES: usize = 18;

/// What the TLS connection offers to bind an exchange to.
#[derive(Clone, PartialEq, Eq)]
pub enum ChannelBinding {
    /// No TLS, or a certificate whose signature has no defined hash (Ed25519): PLUS is not offered.
    None,
    /// The hash of the server's certificate.
    TlsServerEndPoint(Vec<u8>),
}

/// The mechanisms to offer over such a connection, the preferred one first.
pub fn mechanisms(binding: &ChannelBinding) -> &'static [&'static str] {
    match binding {
        ChannelBinding::None => &[SCRAM_SHA_256],
        ChannelBinding::TlsServerEndPoint(_) => &[SCRAM_SHA_256_PLUS, SCRAM_SHA_256],
    }
}

/// A fresh nonce: 18 random bytes in base64.
///
/// # Errors
/// [`ScramError::Random`] when the system has no randomness.
pub fn random_nonce() -> Result<String, ScramError> {
    let mut bytes = [0; NONCE_RANDOM_BYTES];
    rand::fill(&mut bytes).map_err(|_| ScramError::Random)?;
    Ok(STANDARD.encode(bytes))
}

/// Why an exchange failed. No variant carries what was exchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ScramError {
    /// The peer chose, or offers only, mechanisms that are not ours.
    #[error("client selected an invalid SASL authentication mechanism")]
    Mechanism,
    /// A message has more than [`MESSAGE_BYTES_MAX`] bytes.
    #[error("SCRAM message is too long")]
    TooLong,
    /// A message is not what the RFC has there.
    #[error("malformed SCRAM message: {0}")]
    Malformed(&'static str),
    /// The client wants to act as someone else (`a=`).
    #[error("client uses authorization identity, but it is not supported")]
    AuthorizationIdentity,
    /// The peer requires an extension (`m=`).
    #[error("client requires an unsupported SCRAM extension")]
    MandatoryExtension,
    /// The client says that we offer no channel binding, but we did: somebody in between took it out.
    #[error("SCRAM channel binding negotiation error")]
    Downgrade,
    /// Another kind of channel binding than `tls-server-end-point`.
    #[error("unsupported SCRAM channel-binding type")]
    ChannelBindingType,
    /// The client is bound to another TLS connection than ours.
    #[error("SCRAM channel binding check failed")]
    ChannelBinding,
    /// The peer's nonce does not continue ours.
    #[error("invalid SCRAM response: nonce does not match")]
    Nonce,
    /// The client does not know the password.
    #[error("password authentication failed")]
    Proof,
    /// The server asks for no iteration or for more than [`ITERATIONS_MAX`].
    #[error("iteration count of the server is out of bounds")]
    Iterations,
    /// The server rejected the exchange in SCRAM's own words.
    #[error("server rejected the SCRAM exchange")]
    Rejected,
    /// The server does not know the password either: it is not the server.
    #[error("server signature is wrong")]
    ServerSignature,
    /// The system has no randomness.
    #[error("could not generate random nonce")]
    Random,
}

impl ScramError {
    /// The SQLSTATE that PostgreSQL gives to this failure.
    pub fn sqlstate(&self) -> SqlState {
        match self {
            Self::Mechanism | Self::TooLong | Self::Malformed(_) | Self::ChannelBindingType | Self::Nonce => {
                SqlState::PROTOCOL_VIOLATION
            }
            Self::AuthorizationIdentity | Self::MandatoryExtension => SqlState::FEATURE_NOT_SUPPORTED,
            Self::Downgrade | Self::ChannelBinding => SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
            Self::Proof => SqlState::INVALID_PASSWORD,
            Self::Iterations | Self::Rejected | Self::ServerSignature => SqlState::CONNECTION_FAILURE,
            Self::Random => SqlState::INTERNAL_ERROR,
        }
    }
}

/// The text of a message, if it is not too long.
fn message_text(message: &[u8]) -> Result<&str, ScramError> {
    if message.len() > MESSAGE_BYTES_MAX {
        return Err(ScramError::TooLong);
    }
    let text = std::str::from_utf8(message).map_err(|_| ScramError::Malformed("not UTF-8"))?;
    if text.contains('\0') { Err(ScramError::Malformed("NUL byte")) } else { Ok(text) }
}

/// What `c=` must repeat: the header of the first message, and the binding's data where it has announced one.
fn channel_binding_input(gs2_header: &str, binding: &ChannelBinding) -> String {
    let mut input = gs2_header.as_bytes().to_vec();
    if let (true, ChannelBinding::TlsServerEndPoint(hash)) = (gs2_header.starts_with('p'), binding) {
        input.extend_from_slice(hash);
    }
    STANDARD.encode(input)
}
