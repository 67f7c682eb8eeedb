//! Results that are longer than they may be: the client gets what the limit allows, then an error, as if the server had
//! raised it there.
//!
//! Only what reads is cut: of a statement that writes nobody could tell the client that it did not happen. Whether the
//! server is stopped in the middle or was done already, the transaction it ran in has failed afterwards.

use std::sync::Arc;

use bytes::BytesMut;
use portcullis_policy::{Effect, Permit};
use portcullis_wire::{ErrorMessage, SqlState, TransactionStatus};

use super::server::Handled;
use super::{Exchange, Expect};
use crate::prepared::Statement;
use crate::session::end::SessionEnd;
use crate::upstream::{RefusalToken, UpstreamState};

/// The most that one statement may give to its client; `None` is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ResultLimits {
    /// Rows: DataRow messages, or lines of COPY TO STDOUT.
    pub rows: Option<u64>,
    /// Bytes of these messages.
    pub bytes: Option<u64>,
}

impl ResultLimits {
    /// What both allow.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let least = |a: Option<u64>, b: Option<u64>| a.into_iter().chain(b).min();
        Self { rows: least(self.rows, other.rows), bytes: least(self.bytes, other.bytes) }
    }
}

/// What becomes of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Row {
    /// The client gets it.
    Passes,
    /// It is one too many.
    Dropped,
    /// It is the first that is too many, by the limit of this name.
    TooMany(&'static str),
}

/// What the client has got of a statement's result.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sent {
    rows: u64,
    bytes: u64,
}

impl Exchange {
    /// Counts one row of `bytes` bytes that the server has begun to send.
    pub fn row(&mut self, bytes: usize, limits: &ResultLimits) -> Row {
        if self.cut.is_some() {
            return Row::Dropped;
        }
        self.sent.rows += 1;
        self.sent.bytes += bytes as u64;
        let over = |sent: u64, limit: Option<u64>| limit.filter(|most| sent > *most);
        let (label, error) = match (over(self.sent.rows, limits.rows), over(self.sent.bytes, limits.bytes)) {
            (Some(most), _) => ("rows", too_many_rows(most)),
            (None, Some(most)) => ("result_bytes", too_many_bytes(most)),
            (None, None) => return Row::Passes,
        };
        if !self.head_only_reads() {
            return Row::Passes;
        }
        self.cut = Some(Box::new(error));
        Row::TooMany(label)
    }

    /// Whether the server still works on a statement whose result has been cut.
    pub fn is_cutting(&self) -> bool {
        self.cut.is_some()
    }

    fn head_only_reads(&self) -> bool {
        let reads = |permit: &Permit| {
            let prepared_write =
                |effect: &Effect| matches!(effect, Effect::SqlExecute { name } if self.sql_writers.contains(name));
            permit.writes().is_empty() && !permit.effects().iter().any(prepared_write)
        };
        match self.pending.front() {
            Some(Expect::Query { permit: Some(permit), .. }) => reads(permit),
            Some(Expect::Execute { statement: Some(statement), .. }) => reads(&statement.permit),
            // A cursor, which can only read.
            Some(Expect::Execute { statement: None, .. }) => true,
            _ => false,
        }
    }

    /// A portal is to be executed: what the client has got of it counts, unless it begins anew.
    pub(super) fn begin_result(&mut self) {
        self.sent = match self.pending.front() {
            Some(Expect::Execute { portal, .. }) => self.fetched.remove(portal).unwrap_or_default(),
            _ => Sent::default(),
        };
    }

    /// A portal has more rows to give.
    pub(super) fn suspend_result(&mut self, portal: String) {
        self.fetched.insert(portal, self.sent);
    }

    /// The server has ended the statement before it could be stopped: the client gets our error in place of its end.
    ///
    /// # Errors
    /// When something stands behind it in the same pipeline that the client would believe to be skipped.
    pub(super) fn end_cut(
        &mut self,
        tag: u8,
        body: &[u8],
        upstream: &mut UpstreamState,
        out: &mut BytesMut,
    ) -> Result<Handled, SessionEnd> {
        let Some(error) = self.cut.take() else { return Err(SessionEnd::UpstreamMessage(tag)) };
        match self.pending.front_mut() {
            Some(Expect::Query { permit, completed, .. }) => {
                let (permit, at) = (permit.clone(), *completed);
                *completed += 1;
                if let Some(permit) = permit {
                    if at + 1 < permit.statements() {
                        return Err(SessionEnd::ResultCut(error));
                    }
                    self.completed(&permit, Some(at), body, upstream);
                }
            }
            _ => {
                let head: Option<Option<Arc<Statement>>> = match self.pending.pop_front() {
                    Some(Expect::Execute { statement, .. }) => Some(statement),
                    _ => None,
                };
                if let (Some(Some(statement)), b'C') = (head, tag) {
                    self.completed(&statement.permit, None, body, upstream);
                }
                if !self.skip_to_sync() {
                    return Err(SessionEnd::ResultCut(error));
                }
                self.head_changed();
            }
        }
        error.encode_error(out);
        self.fails_transaction = true;
        Ok(Handled::Swallowed)
    }

    /// Nothing is to be heard any more before the next Sync; `false` where more than that has been sent.
    fn skip_to_sync(&mut self) -> bool {
        for expect in &mut self.pending {
            match expect {
                Expect::Sync { .. } => return true,
                Expect::Close { visible, .. } => *visible = false,
                _ => return false,
            }
        }
        self.skip_until_sync = true;
        self.open_pipeline = true;
        true
    }

    /// After the end of a result that was cut: its transaction fails, as after any error. `true`: ReadyForQuery has to
    /// wait for that.
    pub(super) fn fail_transaction(
        &mut self,
        status: TransactionStatus,
        upstream: &mut UpstreamState,
    ) -> Result<bool, SessionEnd> {
        if !std::mem::take(&mut self.fails_transaction) || status != TransactionStatus::InTransaction {
            return Ok(false);
        }
        let Some(token) = RefusalToken::new() else { return Err(SessionEnd::NoRandom) };
        if !self.pending.is_empty() {
            // What the client has sent since then runs in a transaction that it must believe to have failed.
            return Err(SessionEnd::ResultCut(Box::new(behind_a_cut())));
        }
        upstream.outgoing.refused_query(&token);
        upstream.prepared.set_unnamed(None);
        self.expect(Expect::FailTransaction);
        Ok(true)
    }
}

fn too_many_rows(most: u64) -> ErrorMessage {
    let text = format!("the result has more than {most} rows, the limit for one statement");
    ErrorMessage::error(SqlState::PROGRAM_LIMIT_EXCEEDED, text)
        .detail(format!("The first {most} rows were sent."))
        .hint("Use LIMIT or a narrower condition, or have max_rows_per_query raised for the workspace.")
}

fn too_many_bytes(most: u64) -> ErrorMessage {
    let text = format!("the result has more than {most} bytes, the limit for one statement");
    ErrorMessage::error(SqlState::PROGRAM_LIMIT_EXCEEDED, text)
        .detail("The rows before were sent.")
        .hint("Select fewer columns or rows, or have the limit of the policy raised.")
}

fn behind_a_cut() -> ErrorMessage {
    ErrorMessage::error(SqlState::PROGRAM_LIMIT_EXCEEDED, "a result before this statement was longer than it may be")
}
