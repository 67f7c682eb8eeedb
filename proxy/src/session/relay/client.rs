//! The client's side of the relay: its bytes become frames, its frames messages, and its messages are dealt with.

use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Buf;
use portcullis_policy::{Effort, Surface, effort};
use portcullis_wire::{ErrorMessage, Frame, Frontend, Header, SqlState};

use super::{BACKLOG_BYTES, Client, Relay, Turn, is_hang_up, lease};
use crate::budget::Held;
use crate::long_texts::judging_bytes;
use crate::metrics::Direction;
use crate::pool::Lease;
use crate::prepared::Statement;
use crate::session::end::SessionEnd;
use crate::session::exchange::{Message, Performed, Surroundings};
use crate::session::guard::{function_call, no_memory, rejudge, remembered, too_long, verdict};
use crate::sessions::Doing;

impl Relay {
    pub(super) fn read_client(&mut self, cx: &mut Context<'_>) -> Turn {
        if self.client_blocked {
            return Ok(false);
        }
        let behind = self.lease.as_ref().is_some_and(|lease| lease.outgoing.len() >= BACKLOG_BYTES);
        if behind || self.client.outgoing.len() >= BACKLOG_BYTES {
            return Ok(false);
        }
        if self.client_waits && self.client.incoming.len() >= BACKLOG_BYTES {
            return Ok(false);
        }
        let Client { stream, incoming, .. } = &mut self.client;
        match stream.poll_receive(cx, incoming) {
            Poll::Pending => {
                self.client_blocked = true;
                Ok(false)
            }
            Poll::Ready(Ok(0)) => Err(SessionEnd::ClientGone),
            Poll::Ready(Ok(count)) => {
                self.gate.metrics.bytes(Direction::FromClient, count as u64);
                self.last_activity = self.now;
                Ok(true)
            }
            Poll::Ready(Err(error)) if is_hang_up(&error) => Err(SessionEnd::ClientGone),
            Poll::Ready(Err(error)) => Err(SessionEnd::ClientIo(error)),
        }
    }

    /// Deals with the frames that the client has sent, as far as they are whole and may be dealt with now.
    pub(super) fn serve_client(&mut self, cx: &mut Context<'_>) -> Turn {
        let mut moved = false;
        self.client_waits = true;
        if let Some(settling) = &mut self.settling {
            match settling.as_mut().poll(cx) {
                Poll::Pending => return Ok(false),
                Poll::Ready(true) => self.settling = None,
                // It may still arrive, at any time: nothing more can be run there.
                Poll::Ready(false) => return Err(SessionEnd::StatementStuck),
            }
        }
        loop {
            if let Some(judging) = &mut self.judging {
                let Poll::Ready(message) = judging.as_mut().poll(cx) else { return Ok(moved) };
                self.judging = None;
                self.message = Some(message);
            }
            if self.exchange.awaits_repeat() {
                return Ok(moved);
            }
            if self.exchange.must_repeat() {
                let next = self.message.replace(Message::Repeat);
                self.perform()?;
                self.message = next;
                moved = true;
                continue;
            }
            if self.message.is_some() {
                if !self.perform()? {
                    return Ok(moved);
                }
                moved = true;
                continue;
            }
            let backlog = self.lease.as_ref().map_or(0, |lease| lease.outgoing.len()) + self.client.outgoing.len();
            let upstream = self.lease.as_mut().map(|lease| lease.state_mut());
            if backlog >= 2 * BACKLOG_BYTES || (self.client_piece == 0 && self.exchange.is_crowded(upstream)) {
                return Ok(moved);
            }
            if !self.next_frame()? {
                self.client_waits = self.exchange.copy_is_undecided();
                return Ok(moved);
            }
            moved = true;
        }
    }

    /// Takes the next frame, or a piece of one, from what the client has sent; `false` when there is none yet.
    fn next_frame(&mut self) -> Turn {
        if self.client_piece > 0 {
            let count = self.client_piece.min(self.client.incoming.len());
            if count == 0 {
                return Ok(false);
            }
            self.pass_to_server(count);
            self.client_piece -= count;
            return Ok(true);
        }
        if self.client_skip > 0 {
            let count = self.client_skip.min(self.client.incoming.len());
            self.client.incoming.advance(count);
            self.client_skip -= count;
            return Ok(count > 0);
        }
        let limits = &self.gate.config.limits;
        let Some(header) = Header::peek_frontend(&self.client.incoming, limits.frame_bytes_max)? else {
            return Ok(false);
        };
        if header.tag == b'd' {
            let piece = if self.exchange.is_skipping() { &mut self.client_skip } else { &mut self.client_piece };
            *piece = header.frame_len();
            return Ok(true);
        }
        let may_be_now = matches!(header.tag, b'c' | b'f' | b'H' | b'S' | b'X');
        if self.exchange.copy_is_undecided() && !may_be_now {
            return Ok(false);
        }
        if matches!(header.tag, b'Q' | b'P') && header.body_len > self.sql_frame_bytes_max() {
            return Ok(self.skip_long_text(header));
        }
        if self.client.incoming.len() < header.frame_len() {
            return Ok(false);
        }
        let Some(frame) = portcullis_wire::cut_frontend_frame(&mut self.client.incoming, limits.frame_bytes_max)?
        else {
            return Ok(false);
        };
        self.admit(frame)?;
        Ok(true)
    }

    /// Text, name, NULs and at most 65,535 parameter types.
    fn sql_frame_bytes_max(&self) -> usize {
        self.gate.config.limits.sql_bytes_max + 64 + 3 + 4 * 65_535
    }

    /// A text that is too long is read away without being held, and refused.
    fn skip_long_text(&mut self, header: Header) -> bool {
        self.client_skip = header.frame_len();
        if self.exchange.is_skipping() {
            return true;
        }
        if self.exchange.in_copy() {
            if let Some(lease) = &mut self.lease {
                self.exchange.break_copy(header.tag, &mut lease.outgoing);
            }
            return true;
        }
        let error = Box::new(too_long(self.gate.config.limits.sql_bytes_max));
        self.message = Some(match header.tag {
            b'Q' => Message::RefusedQuery(error),
            // Its name has not been read; PostgreSQL would have forgotten the unnamed statement by now.
            _ => Message::RefusedParse { name: String::new(), error },
        });
        true
    }

    fn pass_to_server(&mut self, count: usize) {
        if let Some(lease) = &mut self.lease {
            lease.outgoing.copy_bytes(&self.client.incoming[..count]);
        }
        // Without a connection there is no COPY either: the server would ignore it.
        self.client.incoming.advance(count);
    }

    /// Looks at one whole frame: COPY's own pass, SQL is judged, the rest waits its turn.
    fn admit(&mut self, frame: Frame) -> Result<(), SessionEnd> {
        let tag = frame.tag();
        if tag == b'X' {
            return Err(SessionEnd::ClientTerminated);
        }
        if self.exchange.is_skipping() && tag != b'S' {
            // Skipped as the server skips, yet what is no message at all still ends the session.
            return match Frontend::decode(tag, frame.body()) {
                Err(error) if error.is_fatal() => Err(error.into()),
                _ => Ok(()),
            };
        }
        if matches!(tag, b'c' | b'f') {
            Frontend::decode(tag, frame.body())?;
            if let Some(lease) = &mut self.lease {
                lease.outgoing.copy_bytes(frame.raw());
            }
            self.exchange.copy_ended();
            return Ok(());
        }
        if self.exchange.in_copy() && !matches!(tag, b'H' | b'S') {
            if let Some(lease) = &mut self.lease {
                self.exchange.break_copy(tag, &mut lease.outgoing);
            }
            return Ok(());
        }
        match Frontend::decode(tag, frame.body()) {
            Err(error) if error.is_fatal() => return Err(error.into()),
            Err(error) => {
                let error = ErrorMessage::error(error.sqlstate(), error.to_string());
                self.refuse_frame(&frame, error);
            }
            Ok(Frontend::Query { sql }) => self.judge(Surface::SimpleQuery, sql, None),
            Ok(Frontend::Parse { name, sql, param_types }) => {
                self.judge(Surface::Parse, sql, Some((name.to_owned(), param_types.to_vec())));
            }
            Ok(Frontend::FunctionCall) => self.message = Some(Message::RefusedQuery(Box::new(function_call()))),
            Ok(Frontend::Password { .. }) => return Err(SessionEnd::ClientMessage(tag)),
            Ok(_) => self.message = Some(Message::Other(frame)),
        }
        Ok(())
    }

    fn refuse_frame(&mut self, frame: &Frame, error: ErrorMessage) {
        let error = Box::new(error);
        self.message = Some(match frame.tag() {
            b'Q' => Message::RefusedQuery(error),
            _ => Message::Refused(error),
        });
    }

    /// Asks the judge, here for a short text, on a thread with a stack of its own for a long one.
    fn judge(&mut self, surface: Surface, sql: &[u8], mut parse: Option<(String, Vec<u8>)>) {
        self.message = remembered(&self.gate, &self.route, surface, sql, &mut parse);
        if self.message.is_some() {
            return;
        }
        let effort = effort(sql);
        if effort == Effort::Small {
            self.message = Some(verdict(&self.gate, &self.route, surface, sql, parse));
            return;
        }
        let (gate, route, sql) = (self.gate.clone(), self.route.clone(), sql.to_vec());
        // The text itself while it waits; what judging it takes only once its turn has come, so that no workspace can use
        // up the budget by queueing.
        let mut memory = gate.budget.hold(Held::Judging, sql.len());
        self.judging = Some(Box::pin(async move {
            let turn = gate.long_texts.turn(&route.workspace, effort).await;
            if let Err(over) = memory.grow(sql.len() + judging_bytes(sql.len(), effort)) {
                tracing::warn!(workspace = %route.workspace, %over, "a long text was not judged");
                gate.metrics.limit_hit("memory");
                return refused(parse.map(|(name, _)| name), no_memory());
            }
            let name = parse.as_ref().map(|(name, _)| name.clone());
            let judged = tokio::task::spawn_blocking(move || {
                let (_turn, _memory) = (turn, memory);
                verdict(&gate, &route, surface, &sql, parse)
            });
            judged.await.unwrap_or_else(|_| {
                refused(name, ErrorMessage::error(SqlState::INTERNAL_ERROR, "the statement could not be judged"))
            })
        }));
    }

    /// A statement that is to be kept needs memory for its text.
    fn if_it_fits(&self, message: Message) -> Message {
        match message {
            Message::Parse { name, .. } if !name.is_empty() && self.gate.budget.has_room().is_err() => {
                self.gate.metrics.limit_hit("memory");
                Message::RefusedParse { name, error: Box::new(no_memory()) }
            }
            message => message,
        }
    }

    /// Hands the waiting message to the exchange; `false` when it has to go on waiting.
    fn perform(&mut self) -> Turn {
        if self.leasing.is_some() {
            return Ok(false);
        }
        let Some(message) = self.message.take().map(|message| self.if_it_fits(message)) else { return Ok(false) };
        let changes_statements = message.changes_statements();
        let (gate, route) = (&self.gate, &self.route);
        let rejudge = |statement: &Statement| rejudge(gate, route, statement);
        let around = Surroundings {
            rejudge: &rejudge,
            policy: &route.policy,
            schema_epoch: self.lease.as_ref().map_or(0, Lease::schema_epoch),
        };
        let upstream = self.lease.as_mut().map(|lease| lease.state_mut());
        match self.exchange.perform(message, upstream, &mut self.client.outgoing, &around) {
            Performed::Done => {
                if changes_statements {
                    self.memory.statements.resize(self.exchange.statement_bytes());
                }
                if let Some(error) = self.lease.as_mut().and_then(|lease| lease.outgoing.take_error()) {
                    return Err(error.into());
                }
                if self.work_since.is_none() && self.exchange.working_since().is_some() {
                    self.work_since = Some(self.now);
                    self.registration.handle().set_doing(Doing::Active, self.now);
                    self.registration.handle().count_statement();
                }
                self.note_pin();
                Ok(true)
            }
            Performed::NeedsLease(message) => {
                self.message = Some(message);
                if let Some(lease) = self.gate.pools.lease_at_once(&self.route.destination) {
                    self.gate.metrics.wait_seconds(Duration::ZERO);
                    // A cancel that comes before its settings are in place is for what it waits with.
                    self.cancel.slot().prepare();
                    self.hold(lease);
                    return Ok(true);
                }
                let (gate, route) = (self.gate.clone(), self.route.clone());
                self.registration.handle().set_doing(Doing::Waiting, self.now);
                self.cancel.slot().prepare();
                let leasing = async move { lease(&gate, &route.destination).await };
                self.leasing = Some((Box::pin(leasing), self.now));
                self.wait_told = false;
                Ok(true)
            }
            Performed::Later(message) => {
                self.message = Some(message);
                Ok(false)
            }
            Performed::Broken(end) => Err(end),
        }
    }
}

/// A Query, or the Parse of this name, that gets an error instead of a verdict.
fn refused(parse: Option<String>, error: ErrorMessage) -> Message {
    let error = Box::new(error);
    match parse {
        Some(name) => Message::RefusedParse { name, error },
        None => Message::RefusedQuery(error),
    }
}
