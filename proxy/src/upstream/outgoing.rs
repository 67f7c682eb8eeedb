//! What may be written to a server.
//!
//! SQL text enters [`Outgoing`] in three ways only: with a [`Permit`] (the client's own text, judged), as a
//! [`Control`] statement (the proxy's own, fixed or built from allow-listed settings), or as the refusal marker, a
//! text that cannot parse. There is no fourth.

use bytes::BytesMut;
use portcullis_policy::Permit;
use portcullis_wire::backend::ErrorFields;
use portcullis_wire::frontend::{Target, encode};
use portcullis_wire::{SqlState, WireError};

use crate::session::settings::Values;

/// Bytes for a server. Its methods are the only way in.
#[derive(Default)]
pub struct Outgoing {
    pub(super) buffer: BytesMut,
    pub(super) unflushed: bool,
    error: Option<WireError>,
}

impl Outgoing {
    /// What waits to be written.
    #[cfg(test)]
    pub fn take_for_test(&mut self) -> BytesMut {
        std::mem::take(&mut self.buffer)
    }

    /// Bytes that wait to be written.
    pub fn len(&self) -> usize {
        self.buffer.len()
    }

    /// Whether all is written and flushed.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty() && !self.unflushed
    }

    /// What could not be encoded, if anything: the stream then lacks a message and must end.
    pub fn take_error(&mut self) -> Option<WireError> {
        self.error.take()
    }

    fn note(&mut self, encoded: Result<(), WireError>) {
        if let Err(error) = encoded {
            self.error.get_or_insert(error);
        }
    }

    /// Query with the text that passed.
    pub fn query(&mut self, permit: &Permit) {
        let encoded = encode::query(&mut self.buffer, permit.text());
        self.note(encoded);
    }

    /// Parse with the text that passed, under a name of the proxy's; `types` is the section as the client sent it.
    pub fn parse(&mut self, name: &str, permit: &Permit, types: &[u8]) {
        let encoded = encode::parse(&mut self.buffer, name, permit.text(), types);
        self.note(encoded);
    }

    /// Parse of nothing at all under a name of the client's: something for the client's own DEALLOCATE to find.
    pub fn parse_nothing(&mut self, name: &str) {
        let encoded = encode::parse(&mut self.buffer, name, "", &[0, 0]);
        self.note(encoded);
    }

    /// One of the proxy's own statements.
    pub fn control(&mut self, control: &Control) {
        let encoded = encode::query(&mut self.buffer, &control.0);
        self.note(encoded);
    }

    /// A Query that the server must refuse, naming the token, in place of one that was not allowed.
    pub fn refused_query(&mut self, token: &RefusalToken) {
        let encoded = encode::query(&mut self.buffer, &token.0);
        self.note(encoded);
    }

    /// A Parse that the server must refuse, naming the token.
    pub fn refused_parse(&mut self, token: &RefusalToken) {
        let encoded = encode::parse(&mut self.buffer, "", &token.0, &[0, 0]);
        self.note(encoded);
    }

    /// Bind; `rest` is what follows the names, as the client sent it.
    pub fn bind(&mut self, portal: &str, statement: &str, rest: &[u8]) {
        let encoded = encode::bind(&mut self.buffer, portal, statement, rest);
        self.note(encoded);
    }

    /// Describe.
    pub fn describe(&mut self, target: Target, name: &str) {
        let encoded = encode::describe(&mut self.buffer, target, name);
        self.note(encoded);
    }

    /// Execute.
    pub fn execute(&mut self, portal: &str, rows_max: i32) {
        let encoded = encode::execute(&mut self.buffer, portal, rows_max);
        self.note(encoded);
    }

    /// Close.
    pub fn close(&mut self, target: Target, name: &str) {
        let encoded = encode::close(&mut self.buffer, target, name);
        self.note(encoded);
    }

    /// Sync.
    pub fn sync(&mut self) {
        encode::sync(&mut self.buffer);
    }

    /// Flush.
    pub fn flush(&mut self) {
        encode::flush(&mut self.buffer);
    }

    /// CopyFail, with the reason that the server will repeat.
    pub fn copy_fail(&mut self, reason: &str) {
        let encoded = encode::copy_fail(&mut self.buffer, reason);
        self.note(encoded);
    }

    /// A piece of a CopyData, CopyDone or CopyFail frame: never a statement.
    pub fn copy_bytes(&mut self, piece: &[u8]) {
        self.buffer.extend_from_slice(piece);
    }
}

/// A statement of the proxy's own.
#[derive(Debug, Clone)]
pub struct Control(String);

impl Control {
    /// Ends a transaction without its work.
    pub(super) fn rollback() -> Self {
        Self("ROLLBACK".into())
    }

    /// Drops all that a session can leave on a connection; settings return to those of the startup packet.
    pub(super) fn discard_all() -> Self {
        Self("DISCARD ALL".into())
    }

    /// What takes a connection's settings from one state to another and, where another session has used them, drops the
    /// values of sequences; `None` when there is nothing to do.
    pub fn settings(have: &Values, want: &Values, drop_sequences: bool) -> Option<Self> {
        let sequences = if drop_sequences { "DISCARD SEQUENCES; " } else { "" };
        let settings = crate::session::settings::difference(have, want).unwrap_or_default();
        let sql = format!("{sequences}{settings}");
        (!sql.is_empty()).then_some(Self(sql))
    }
}

/// A word that no grammar accepts as a statement, different every time, by which the server's complaint is known again.
#[derive(Debug, Clone)]
pub struct RefusalToken(String);

impl RefusalToken {
    /// A new one, or `None` when no random bytes are to be had.
    pub fn new() -> Option<Self> {
        use aws_lc_rs::rand::SecureRandom;
        let mut random = [0_u8; 16];
        aws_lc_rs::rand::SystemRandom::new().fill(&mut random).ok()?;
        Some(Self(format!("portcullis_refused_{:032x}", u128::from_be_bytes(random))))
    }

    /// Whether this error is the server's answer to this token.
    pub fn is_named_by(&self, fields: &ErrorFields<'_>) -> bool {
        fields.code() == Some(SqlState::SYNTAX_ERROR.as_str())
            && fields.message().is_some_and(|message| message.contains(&self.0))
    }
}
