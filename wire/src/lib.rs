//! The PostgreSQL protocol 3.0/3.2 as values: bytes in, messages out.
//!
//! Every byte that a client or a server sends is read here and nowhere else, so this crate is where a length is checked
//! before it is used, where a frame must end exactly where its content ends, and where the text that is judged is
//! provably the text that is forwarded. It must not do I/O, keep time, know a policy, or log: it has no async runtime,
//! and what goes wrong comes back as a [`WireError`] or a [`scram::ScramError`] with its SQLSTATE.
//!
//! * [`frame`]: typed frames (tag, length, body), cut from a buffer without allocating by the announced length.
//! * [`startup`]: the untyped packets that come first: `SSLRequest`, `GSSENCRequest`, `CancelRequest`, `StartupMessage`.
//! * [`frontend`], [`backend`]: the messages of either side, decoded, and encoders for those that the gate writes.
//! * [`scram`]: SCRAM-SHA-256 and SCRAM-SHA-256-PLUS, both sides.
//! * [`sqlstate`], [`error`]: what can be wrong and how PostgreSQL calls it.
//! * [`fuzz`]: the decoders under one roof, for the fuzzer and for the ordinary test over its corpus.
//!
//! Names are those of <https://www.postgresql.org/docs/current/protocol-message-formats.html>.

pub mod backend;
pub mod error;
pub mod frame;
pub mod frontend;
pub mod fuzz;
pub mod scram;
pub mod sqlstate;
pub mod startup;

mod read;
mod write;

pub use backend::{Authentication, Backend, ErrorFields, ErrorMessage, Severity, TransactionStatus};
pub use error::WireError;
pub use frame::{Frame, Header, cut_frame, cut_frontend_frame};
pub use frontend::{Frontend, SaslInitialResponse, Target};
pub use sqlstate::SqlState;
pub use startup::{CancelKey, StartupMessage, StartupPacket, cut_startup, parse_options};
