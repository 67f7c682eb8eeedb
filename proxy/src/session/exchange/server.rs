//! The server's side: what each of its messages answers, and what of it the client sees.

use bytes::{BufMut, BytesMut};
use portcullis_policy::{Effect, Kind, Permit};
use portcullis_wire::backend::{Backend, ErrorFields, encode as reply};
use portcullis_wire::{ErrorMessage, SqlState, TransactionStatus};

use super::{Exchange, Expect, Portal, Refusal, Undo};
use crate::session::end::SessionEnd;
use crate::session::settings::Change;
use crate::upstream::UpstreamState;

/// What became of a server's message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handled {
    /// Forward it as it is.
    Forward,
    /// Nothing of it goes to the client, or something else went instead.
    Swallowed,
    /// Forward it; the server is about to close.
    Fatal,
}

impl Exchange {
    /// Whether a message of this type can be forwarded piece by piece, without being looked at.
    pub fn passes_in_pieces(&self, tag: u8) -> bool {
        matches!(tag, b'D' | b'd')
            && matches!(self.pending.front(), Some(Expect::Query { .. } | Expect::Execute { .. }))
    }

    /// Deals with one whole message of the server.
    ///
    /// # Errors
    /// When the message answers nothing that was asked: the server or these books are wrong, and the connection is of
    /// no use any more.
    pub fn server_message(
        &mut self,
        tag: u8,
        body: &[u8],
        upstream: &mut UpstreamState,
        out: &mut BytesMut,
    ) -> Result<Handled, SessionEnd> {
        if self.local_answers_wait() {
            self.give_local_answers(out);
        }
        match tag {
            b'S' => self.parameter_status(body, upstream),
            b'N' => Ok(self.unless_own(Handled::Forward)),
            b'A' => Ok(Handled::Forward),
            b'E' => self.error(body, upstream, out),
            b'Z' => self.ready_for_query(body, upstream, out),
            _ => self.answer_of_head(tag, body, upstream, out),
        }
    }

    fn unless_own(&self, handled: Handled) -> Handled {
        if matches!(self.pending.front(), Some(Expect::Settings)) { Handled::Swallowed } else { handled }
    }

    fn answer_of_head(
        &mut self,
        tag: u8,
        body: &[u8],
        upstream: &mut UpstreamState,
        out: &mut BytesMut,
    ) -> Result<Handled, SessionEnd> {
        match tag {
            // COPY TO STDOUT has not ended well either.
            b'c' if self.cut.is_some() => return Ok(Handled::Swallowed),
            b'C' | b'I' | b's' if self.cut.is_some() => return self.end_cut(tag, body, upstream, out),
            _ => {}
        }
        let Some(head) = self.pending.front_mut() else { return Err(SessionEnd::UpstreamMessage(tag)) };
        if !matches!(head, Expect::Parse { .. } | Expect::Settings | Expect::Close { visible: false, .. }) {
            // The client hears of something that must not happen twice.
            self.repeat.spoil();
        }
        let handled = match (head, tag) {
            (Expect::Settings, _) => return Ok(Handled::Swallowed),
            (Expect::Query { permit, completed, .. }, b'C' | b'I') => {
                let permit = permit.clone();
                let at = *completed;
                *completed += 1;
                // In `BEGIN; COPY …` the first CommandComplete is not the copy's.
                self.copy_in = self.copy_in.filter(|copy| !copy.begun);
                if let Some(permit) = permit {
                    self.completed(&permit, Some(at), body, upstream);
                }
                self.begin_result();
                return Ok(Handled::Forward);
            }
            (Expect::Query { .. } | Expect::Execute { .. }, b'G') => {
                self.copy_has_begun();
                return Ok(Handled::Forward);
            }
            (Expect::Query { .. }, b'T' | b'D' | b'H' | b'd' | b'c') => return Ok(Handled::Forward),
            (Expect::Parse { visible, .. }, b'1') => {
                if *visible {
                    Handled::Forward
                } else {
                    Handled::Swallowed
                }
            }
            (Expect::StandIn, b'1') => Handled::Swallowed,
            (Expect::Bind { .. }, b'2') => Handled::Forward,
            (Expect::Describe { .. }, b't') => return Ok(Handled::Forward),
            (Expect::Describe { .. }, b'T' | b'n') => Handled::Forward,
            (Expect::Execute { .. }, b'D' | b'H' | b'd' | b'c') => return Ok(Handled::Forward),
            (Expect::Execute { portal, .. }, b's') => {
                let portal = std::mem::take(portal);
                self.suspend_result(portal);
                Handled::Forward
            }
            (Expect::Execute { .. }, b'I') => Handled::Forward,
            (Expect::Execute { statement, .. }, b'C') => {
                let statement = statement.clone();
                self.copy_in = None;
                if let Some(statement) = statement {
                    self.completed(&statement.permit, None, body, upstream);
                }
                Handled::Forward
            }
            (Expect::Close { visible, .. }, b'3') => {
                if *visible {
                    Handled::Forward
                } else {
                    Handled::Swallowed
                }
            }
            _ => return Err(SessionEnd::UpstreamMessage(tag)),
        };
        // The forwarded message stands before local answers that wait behind it: the caller appends in this order.
        self.pending.pop_front();
        self.head_changed();
        if self.local_answers_wait() {
            if handled == Handled::Forward {
                put_frame(out, tag, body);
            }
            self.give_local_answers(out);
            return Ok(Handled::Swallowed);
        }
        Ok(handled)
    }

    fn local_answers_wait(&self) -> bool {
        matches!(self.pending.front(), Some(Expect::Local { .. }))
    }

    pub(super) fn give_local_answers(&mut self, out: &mut BytesMut) {
        while let Some(Expect::Local { reply, .. }) = self.pending.front() {
            out.extend_from_slice(reply);
            self.pending.pop_front();
        }
        self.head_changed();
    }

    fn copy_has_begun(&mut self) {
        if let Some(copy) = &mut self.copy_in {
            copy.begun = true;
        }
        // The server ignores a Sync that it meets inside the copy.
        self.pending.retain(|expect| !matches!(expect, Expect::Sync { in_copy: true }));
    }

    fn parameter_status(&mut self, body: &[u8], upstream: &mut UpstreamState) -> Result<Handled, SessionEnd> {
        let Ok(Backend::ParameterStatus { name, value }) = Backend::decode(b'S', body) else {
            return Err(SessionEnd::UpstreamMessage(b'S'));
        };
        upstream.parameters.insert(name, value);
        if hidden_parameter(name) || matches!(self.pending.front(), Some(Expect::Settings)) {
            return Ok(Handled::Swallowed);
        }
        self.reported.insert(name, value);
        Ok(Handled::Forward)
    }

    /// The session has got this connection. What its settings report is told now, or once they have been moved.
    pub fn meet(&mut self, upstream: &UpstreamState, out: &mut BytesMut) {
        if upstream.settings == *self.settings.desired() {
            self.report_parameters(upstream, out);
        }
    }

    /// Tells the client where this connection's reported settings differ from what it was told last.
    fn report_parameters(&mut self, upstream: &UpstreamState, out: &mut BytesMut) {
        if self.reported.is_shared_with(&upstream.parameters) {
            return;
        }
        let mut differs = false;
        for (name, value) in upstream.parameters.iter() {
            if !hidden_parameter(name) && self.reported.get(name) != Some(value) {
                reply::parameter_status(out, name, value);
                differs = true;
            }
        }
        // From here on the next look at this connection, and at others that report the same, ends above.
        if differs || !upstream.parameters.has_changed() {
            self.reported = upstream.parameters.clone();
        }
    }

    fn error(&mut self, body: &[u8], upstream: &mut UpstreamState, out: &mut BytesMut) -> Result<Handled, SessionEnd> {
        let Ok(Backend::ErrorResponse(fields)) = Backend::decode(b'E', body) else {
            return Err(SessionEnd::UpstreamMessage(b'E'));
        };
        let fatal = fields.is_fatal();
        if matches!(self.pending.front(), Some(Expect::FailTransaction)) && !fatal {
            self.failed = true;
            return Ok(Handled::Swallowed);
        }
        let of_pipeline = !matches!(self.pending.front(), Some(Expect::Query { .. } | Expect::Sync { .. }) | None);
        self.failed = true;
        self.copy_in = None;
        let ours = self.ours_instead(&fields);
        if matches!(self.pending.front(), Some(Expect::Settings)) {
            // A value that the server no longer takes; the session cannot be what its client believes it to be.
            let code = fields.code().and_then(SqlState::parse).unwrap_or(SqlState::INVALID_PARAMETER_VALUE);
            let text = fields.message().unwrap_or("a setting of this session is no longer accepted").to_owned();
            return Err(SessionEnd::Setting(Box::new(ErrorMessage::fatal(code, text))));
        }
        if of_pipeline {
            let stale_plan = is_stale_plan(&fields);
            self.unwind(&fields, upstream);
            if stale_plan && ours.is_none() && self.heal(upstream) {
                return Ok(Handled::Swallowed);
            }
        } else if let Some(Expect::Query { permit: Some(permit), completed, .. }) = self.pending.front() {
            let (permit, completed) = (permit.clone(), *completed);
            self.has_not_run(&permit, completed);
        }
        Ok(match ours {
            Some(error) if !fatal => {
                error.encode_error(out);
                Handled::Swallowed
            }
            _ if fatal => Handled::Fatal,
            _ => Handled::Forward,
        })
    }

    /// Our own words, when the error is the server's answer to a refused statement, a broken copy or our own cancel.
    fn ours_instead(&mut self, fields: &ErrorFields<'_>) -> Option<Box<ErrorMessage>> {
        let refusal = match self.pending.front_mut() {
            Some(Expect::Query { refusal, .. }) => refusal.take(),
            Some(Expect::RefusedParse(_)) => match self.pending.pop_front() {
                Some(Expect::RefusedParse(refusal)) => Some(refusal),
                _ => None,
            },
            _ => None,
        };
        let refused = refusal.filter(|Refusal { token, .. }| token.is_named_by(fields)).map(|refusal| refusal.error);
        let cut = self.cut.take();
        if refused.is_some() {
            return refused;
        }
        if fields.code() == Some("57014") {
            return self.copy_failure.take().or(cut).or_else(|| self.cancel_failure.take());
        }
        None
    }

    /// The server skips up to Sync: what was sent in between has not happened.
    fn unwind(&mut self, fields: &ErrorFields<'_>, upstream: &mut UpstreamState) {
        let stale_plan = is_stale_plan(fields);
        // Whoever changed the schema did it around the gate, or in a hurry: the other connections' plans are as old.
        self.schema_changed |= stale_plan;
        let mut skipped = Vec::new();
        while !matches!(self.pending.front(), Some(Expect::Sync { .. }) | None) {
            skipped.extend(self.pending.pop_front());
        }
        if self.pending.is_empty() {
            self.skip_until_sync = true;
            // Also when a Query, skipped like the rest, had seemed to close it: the server waits for Sync.
            self.open_pipeline = true;
        }
        for expect in skipped.into_iter().rev() {
            match expect {
                Expect::Parse { statement, undo, named, .. } => {
                    if named {
                        upstream.prepared.forget(&statement)
                    } else {
                        upstream.prepared.set_unnamed(None)
                    }
                    self.take_back(undo);
                }
                Expect::Describe { statement: Some(statement) } if stale_plan => upstream.prepared.outdate(&statement),
                Expect::Execute { statement: Some(statement), .. } => {
                    if stale_plan {
                        upstream.prepared.outdate(&statement);
                    }
                    self.has_not_run(&statement.permit, 0);
                }
                Expect::Query { permit: Some(permit), .. } => self.has_not_run(&permit, 0),
                // What had to make room has not gone: the next session's reset drops it.
                Expect::Close { visible: false, .. } => self.tainted = true,
                Expect::Bind { undo } | Expect::Close { undo, .. } | Expect::Local { undo, .. } => {
                    if stale_plan
                        && let Undo::Portal(name, _) = &undo
                        && let Some(Portal::Bound(statement)) = self.portals.get(name)
                    {
                        upstream.prepared.outdate(statement);
                    }
                    self.take_back(undo);
                }
                _ => {}
            }
        }
        self.head_changed();
    }

    /// What `prepare_for` assumed of these statements was too early.
    fn has_not_run(&mut self, permit: &Permit, from: usize) {
        for effect in (from..permit.statements()).flat_map(|at| permit.effects_of(at)) {
            if let Effect::SqlPrepare { name } = effect
                && self.sql_prepared.get(name) == Some(&false)
            {
                self.sql_prepared.remove(name);
            }
        }
    }

    fn ready_for_query(
        &mut self,
        body: &[u8],
        upstream: &mut UpstreamState,
        out: &mut BytesMut,
    ) -> Result<Handled, SessionEnd> {
        let Ok(Backend::ReadyForQuery(status)) = Backend::decode(b'Z', body) else {
            return Err(SessionEnd::UpstreamMessage(b'Z'));
        };
        let head = self.pending.pop_front();
        upstream.status = status;
        self.head_changed();
        match head {
            Some(Expect::Settings) => {
                upstream.settings = self.settings.desired().clone();
                self.report_parameters(upstream, out);
                self.give_local_answers(out);
                return Ok(Handled::Swallowed);
            }
            Some(Expect::Sync { in_copy }) => {
                if in_copy {
                    // The copy never began, so this Sync counted after all.
                    self.open_pipeline = false;
                    self.skip_until_sync = false;
                }
            }
            Some(Expect::Query { .. } | Expect::FailTransaction) => {}
            _ => return Err(SessionEnd::UpstreamMessage(b'Z')),
        }
        if self.ready_to_repeat() {
            return Ok(Handled::Swallowed);
        }
        self.cut = None;
        if self.fail_transaction(status, upstream)? {
            return Ok(Handled::Swallowed);
        }
        self.copy_in = None;
        self.copy_failure = None;
        if self.pending.is_empty() {
            self.cancel_failure = None;
        }
        if status == TransactionStatus::Idle {
            self.transaction_ended(upstream);
            self.in_doubt &= !self.pending.is_empty();
        }
        self.failed = false;
        if self.local_answers_wait() {
            reply::ready_for_query(out, status);
            self.give_local_answers(out);
            return Ok(Handled::Swallowed);
        }
        Ok(Handled::Forward)
    }

    fn transaction_ended(&mut self, upstream: &mut UpstreamState) {
        if self.failed {
            self.settings.rollback();
        } else {
            self.settings.commit(&mut upstream.settings);
        }
        self.settings.settle(&upstream.parameters, &mut upstream.settings);
        // Portals end with their transaction, but for cursors WITH HOLD.
        if !self.portals.is_empty() {
            let later = self.pending.iter().any(|expect| matches!(expect, Expect::Bind { .. }));
            if !later {
                self.portals.retain(|portal| matches!(portal, Portal::Cursor { hold: true }));
                self.fetched.clear();
            }
        }
    }

    /// A statement has ended well: `at` is its number in a Query, `None` where there is only one.
    pub(super) fn completed(&mut self, permit: &Permit, at: Option<usize>, body: &[u8], upstream: &mut UpstreamState) {
        self.schema_changed |= changes_schema(permit.command());
        for effect in permit.effects_of(at.unwrap_or(0)) {
            self.take_effect(effect, body, upstream);
        }
    }

    fn take_effect(&mut self, effect: &Effect, tag: &[u8], upstream: &mut UpstreamState) {
        match effect {
            Effect::Set { name, value, local: false } => {
                self.settings.change(Change::One(name.clone(), value.clone()));
            }
            Effect::Reset { name } => self.settings.change(Change::One(name.clone(), None)),
            Effect::ResetAll => self.settings.change(Change::All),
            Effect::Savepoint(name) => self.settings.savepoint(name),
            Effect::RollbackTo(name) => self.settings.rollback_to(name),
            Effect::Release(name) => self.settings.release(name),
            // COMMIT of a failed transaction answers ROLLBACK.
            Effect::Commit { .. } if tag.starts_with(b"COMMIT") => self.settings.commit(&mut upstream.settings),
            Effect::Commit { .. } | Effect::Rollback { .. } => {
                self.settings.rollback();
                self.failed = false;
            }
            Effect::SqlPrepare { name } => {
                self.sql_prepared.insert(name.clone(), true);
            }
            Effect::SqlDeallocate { name } => {
                self.sql_prepared.remove(name);
                self.statements.remove(name);
            }
            Effect::DeallocateAll => {
                self.sql_prepared.clear();
                self.statements.clear();
                upstream.prepared.clear();
            }
            Effect::DiscardAll => {
                self.discard_all();
                upstream.prepared.clear();
                upstream.settings.clear();
            }
            Effect::Declare { name, hold } => {
                self.portals.insert(name.clone(), Portal::Cursor { hold: *hold });
            }
            Effect::CloseCursor { name } => {
                self.portals.remove(name);
            }
            Effect::CloseAll => self.portals.clear(),
            Effect::Begin
            | Effect::Set { local: true, .. }
            | Effect::SetBound { .. }
            | Effect::ResetSessionAuthorization
            | Effect::SqlExecute { .. }
            | Effect::DiscardOther
            | Effect::Fetch { .. }
            | Effect::Listen(_)
            | Effect::Unlisten(_)
            | Effect::CopyIn
            | Effect::CopyOut
            | Effect::Pin(_)
            | Effect::Taint(_) => {}
        }
    }
}

fn put_frame(out: &mut BytesMut, tag: u8, body: &[u8]) {
    out.put_u8(tag);
    // The frame came with this length, so it fits.
    out.put_u32(u32::try_from(body.len() + 4).unwrap_or(u32::MAX));
    out.put_slice(body);
}

fn is_stale_plan(fields: &ErrorFields<'_>) -> bool {
    fields.code() == Some("0A000") && fields.message() == Some(STALE_PLAN)
}

/// PostgreSQL's words when a prepared statement's result type has changed under it.
const STALE_PLAN: &str = "cached plan must not change result type";

/// Reported settings that tell of the proxy's own login, not of the client's session.
pub(in crate::session) fn hidden_parameter(name: &str) -> bool {
    matches!(name, "session_authorization" | "is_superuser")
}

/// Whether a command of this kind can change what a prepared statement returns.
pub(super) fn changes_schema(kind: Kind) -> bool {
    let name = kind.name();
    name.starts_with("ALTER ") || name.starts_with("DROP ") || name.starts_with("CREATE ")
}
