//! The client's side: what each of its messages becomes.

use std::sync::Arc;

use bytes::BytesMut;
use portcullis_policy::{Effect, Permit};
use portcullis_wire::backend::encode as reply;
use portcullis_wire::frontend::{Frontend, Target};
use portcullis_wire::{ErrorMessage, Frame, SqlState, TransactionStatus};

use super::server::changes_schema;
use super::{CopyIn, Exchange, Expect, LocalCommand, Portal, Refusal, Slot, Surroundings, Undo};
use crate::prepared::Statement;
use crate::session::end::SessionEnd;
use crate::upstream::{Control, Outgoing, RefusalToken, UpstreamState};

/// The texts of the prepared statements that a session may hold, all together, bytes.
const STATEMENT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// One message of the client, cut and, where it carries SQL, judged.
pub enum Message {
    /// A Query whose text may pass.
    Query(Permit),
    /// A Query or FunctionCall that may not.
    RefusedQuery(Box<ErrorMessage>),
    /// A Parse whose text may pass.
    Parse {
        /// The client's name for it.
        name: String,
        /// The proof.
        permit: Permit,
        /// The parameter types section.
        types: Vec<u8>,
    },
    /// A message of the extended protocol that is answered with an error.
    Refused(Box<ErrorMessage>),
    /// A Parse that may not.
    RefusedParse {
        /// The client's name for it.
        name: String,
        /// What the client is told.
        error: Box<ErrorMessage>,
    },
    /// Bind, Describe, Execute, Close, Sync or Flush: no SQL in it.
    Other(Frame),
    /// What was sent last, once more: see [`Exchange::must_repeat`].
    Repeat,
}

impl Message {
    /// Whether the session may have other prepared statements afterwards.
    pub fn changes_statements(&self) -> bool {
        match self {
            Self::Parse { name, .. } => !name.is_empty(),
            Self::Other(frame) => frame.tag() == b'C',
            _ => false,
        }
    }
}

/// What became of a message.
pub enum Performed {
    /// It is dealt with.
    Done,
    /// It needs an upstream connection first.
    NeedsLease(Message),
    /// It has to wait until the server has answered what was sent before.
    Later(Message),
    /// The session cannot go on.
    Broken(SessionEnd),
}

impl Exchange {
    /// Whether messages other than COPY's own have to wait for the server's word on COPY FROM STDIN.
    pub fn copy_is_undecided(&self) -> bool {
        self.copy_in.is_some_and(|copy| !copy.begun)
    }

    /// Whether the server takes nothing but COPY's own messages now.
    pub fn in_copy(&self) -> bool {
        self.copy_in.is_some_and(|copy| copy.begun && !copy.done)
    }

    /// Whether everything up to Sync is to be dropped.
    pub fn is_skipping(&self) -> bool {
        self.skip_until_sync
    }

    /// Notes CopyDone or CopyFail on its way to the server. Outside a COPY the server ignores both, and CopyData.
    pub fn copy_ended(&mut self) {
        if let Some(copy) = &mut self.copy_in {
            copy.done = true;
        }
    }

    /// A message that COPY FROM STDIN does not allow: the copy fails, as it does in the server.
    pub fn break_copy(&mut self, tag: u8, upstream: &mut Outgoing) {
        let text = format!("unexpected message type 0x{tag:02X} during COPY from stdin");
        upstream.copy_fail(&text);
        self.copy_failure = Some(Box::new(ErrorMessage::error(SqlState::PROTOCOL_VIOLATION, text)));
        self.copy_ended();
    }

    /// Deals with one message. `out` is what goes to the client, `upstream` the leased connection if there is one.
    pub fn perform(
        &mut self,
        message: Message,
        upstream: Option<&mut UpstreamState>,
        out: &mut BytesMut,
        around: &Surroundings<'_>,
    ) -> Performed {
        match message {
            Message::Query(permit) => self.query(permit, upstream, out),
            Message::RefusedQuery(error) => self.refuse(error, Protocol::Simple, upstream, out),
            Message::Refused(error) => self.refuse(error, Protocol::Extended, upstream, out),
            Message::RefusedParse { name, error } => {
                if name.is_empty() {
                    // PostgreSQL forgets the unnamed statement as soon as it sees a new one.
                    self.statements.remove("");
                }
                self.refuse(error, Protocol::Extended, upstream, out)
            }
            Message::Parse { name, permit, types } => self.parse(name, permit, types, upstream, out, around),
            Message::Repeat => self.repeat(upstream, out, around),
            Message::Other(frame) => {
                let status = upstream.as_ref().map(|upstream| upstream.status);
                let sent = frame.clone();
                let performed = self.other(frame, upstream, out, around);
                if let (Performed::Done, Some(status)) = (&performed, status) {
                    self.note_sent(sent, status);
                }
                performed
            }
        }
    }

    fn query(&mut self, permit: Permit, upstream: Option<&mut UpstreamState>, out: &mut BytesMut) -> Performed {
        let status = upstream.as_ref().map_or(TransactionStatus::Idle, |upstream| upstream.status);
        if let Some(answer) = self.own_answer(&permit, status) {
            if !self.pending.is_empty() && !self.open_pipeline {
                return Performed::Later(Message::Query(permit));
            }
            if self.is_quiet() && status != TransactionStatus::Failed {
                self.answer(answer, status, out);
                return Performed::Done;
            }
        }
        if let Some(error) = self.name_error(&permit) {
            return self.refuse(error, Protocol::Simple, upstream, out);
        }
        let Some(upstream) = upstream else { return Performed::NeedsLease(Message::Query(permit)) };
        self.bring_settings(upstream);
        self.stand_in(&permit, upstream);
        self.prepare_for(&permit, upstream);
        self.spoil_repeat();
        upstream.outgoing.query(&permit);
        // https://www.postgresql.org/docs/current/protocol-flow.html: a simple Query destroys the unnamed statement.
        upstream.prepared.set_unnamed(None);
        self.open_pipeline = false;
        if permit.effects().contains(&Effect::CopyIn) {
            self.copy_in = Some(CopyIn { begun: false, done: false });
        }
        self.expect(Expect::Query { permit: Some(permit), completed: 0, refusal: None });
        Performed::Done
    }

    /// The texts that the proxy answers itself, from its own books.
    fn own_answer(&self, permit: &Permit, status: TransactionStatus) -> Option<OwnAnswer> {
        match (permit.statements(), permit.effects()) {
            (0, _) => Some(OwnAnswer::EmptyQuery),
            // In a transaction it is an error, and the server says so.
            (1, [Effect::DiscardAll, ..]) if status == TransactionStatus::Idle => Some(OwnAnswer::DiscardAll),
            (1, effects) => Some(OwnAnswer::Deallocate(self.local_command(effects)?)),
            _ => None,
        }
    }

    fn local_command(&self, effects: &[Effect]) -> Option<LocalCommand> {
        match effects {
            [Effect::DeallocateAll, ..] if self.sql_prepared.is_empty() => Some(LocalCommand::DeallocateAll),
            [Effect::SqlDeallocate { name }, ..] if self.statements.contains_key(name) => {
                Some(LocalCommand::Deallocate(name.clone()))
            }
            _ => None,
        }
    }

    fn answer(&mut self, answer: OwnAnswer, status: TransactionStatus, out: &mut BytesMut) {
        match answer {
            OwnAnswer::EmptyQuery => reply::empty_query_response(out),
            OwnAnswer::DiscardAll => {
                self.discard_all();
                // A pinned connection still has what pinned it: it is cleaned, and the session let go of it.
                self.tainted |= self.pin.take().is_some();
                reply::command_complete(out, "DISCARD ALL");
            }
            OwnAnswer::Deallocate(command) => {
                self.run_local(&command);
                reply::command_complete(out, command.tag());
            }
        }
        reply::ready_for_query(out, status);
    }

    /// SQL-level names share the namespace of the protocol's statements, and resolve in this session's map only.
    fn name_error(&self, permit: &Permit) -> Option<Box<ErrorMessage>> {
        let mut made_here = Vec::new();
        for effect in permit.effects() {
            match effect {
                Effect::SqlPrepare { name } if self.statements.contains_key(name) => return Some(duplicate(name)),
                Effect::SqlPrepare { name } => made_here.push(name),
                Effect::SqlExecute { name } if !self.sql_prepared.contains_key(name) && !made_here.contains(&name) => {
                    return Some(no_statement(name));
                }
                _ => {}
            }
        }
        None
    }

    /// DEALLOCATE of a protocol-level statement among other statements of a Query (psqlodbc puts a savepoint around it):
    /// the server knows that statement by another name or not at all, so it gets one of this name that holds no text.
    /// Neither message can fail. Whether the Query comes as far as its DEALLOCATE is not known: the reset cleans up.
    fn stand_in(&mut self, permit: &Permit, upstream: &mut UpstreamState) {
        for effect in permit.effects() {
            if let Effect::SqlDeallocate { name } = effect
                && self.statements.contains_key(name)
            {
                upstream.outgoing.close(Target::Statement, name);
                upstream.outgoing.parse_nothing(name);
                self.expect(Expect::Close { visible: false, undo: Undo::Nothing });
                self.expect(Expect::StandIn);
                self.tainted = true;
            }
        }
    }

    /// What holds from the moment the text is sent, whether or not it succeeds.
    fn prepare_for(&mut self, permit: &Permit, upstream: &mut UpstreamState) {
        if !permit.writes().is_empty() {
            // A column's default may have used a sequence.
            upstream.sequences_of = Some(self.session);
        }
        self.in_doubt |= changes_schema(permit.command()) || permit.effects().iter().any(changes_path);
        for effect in permit.effects() {
            match effect {
                Effect::Pin(reason) => self.pin = Some(reason.as_str()),
                Effect::SetBound { local: false, .. } => {
                    self.pin = Some("setting");
                    self.tainted = true;
                }
                Effect::Taint(_) => self.tainted = true,
                // Known from here on, so that a pipeline may use what it makes: the server is asked in any case.
                Effect::SqlPrepare { name } => {
                    self.sql_prepared.entry(name.clone()).or_insert(false);
                    if permit.writes().is_empty() {
                        self.sql_writers.remove(name);
                    } else {
                        self.sql_writers.insert(name.clone());
                    }
                }
                Effect::Declare { name, .. } => {
                    self.portals.insert_if_absent(name, Portal::Cursor { hold: false });
                }
                _ => {}
            }
        }
        self.tainted |= self.pin.is_some();
    }

    /// Moves the connection's settings to this session's, at a point where no transaction can undo it.
    fn bring_settings(&mut self, upstream: &mut UpstreamState) {
        if !self.is_quiet() || upstream.status != TransactionStatus::Idle {
            return;
        }
        let strange = upstream.sequences_of.is_some_and(|session| session != self.session);
        if let Some(control) = Control::settings(&upstream.settings, self.settings.desired(), strange) {
            upstream.sequences_of = upstream.sequences_of.filter(|_| !strange);
            upstream.outgoing.control(&control);
            upstream.prepared.set_unnamed(None);
            self.expect(Expect::Settings);
        }
    }

    fn parse(
        &mut self,
        name: String,
        permit: Permit,
        types: Vec<u8>,
        upstream: Option<&mut UpstreamState>,
        out: &mut BytesMut,
        around: &Surroundings<'_>,
    ) -> Performed {
        if !name.is_empty() && (self.statements.contains_key(&name) || self.sql_prepared.contains_key(&name)) {
            // Whoever made the name may fail yet, and what comes behind the Sync must not believe him.
            if self.something_may_fail_before() {
                return Performed::Later(Message::Parse { name, permit, types });
            }
            return self.refuse(duplicate(&name), Protocol::Extended, upstream, out);
        }
        if let Some(error) = self.no_room_for(&name, &permit) {
            return self.refuse(error, Protocol::Extended, upstream, out);
        }
        if let Some(error) = self.name_error(&permit) {
            return self.refuse(error, Protocol::Extended, upstream, out);
        }
        let failed = upstream.as_ref().is_some_and(|upstream| upstream.status == TransactionStatus::Failed);
        if let Some(command) = self.local_command(permit.effects()).filter(|_| permit.statements() == 1 && !failed) {
            let undo = Undo::Statement(name.clone(), self.statements.insert(name, Slot::Local(command)));
            self.answer_in_place(reply::parse_complete, undo, out);
            return Performed::Done;
        }
        let Some(upstream) = upstream else { return Performed::NeedsLease(Message::Parse { name, permit, types }) };
        self.spoil_repeat_unless_first();
        self.bring_settings(upstream);
        let statement = Arc::new(Statement::new(permit, types, around.policy.clone(), self.path()));
        let undo = Undo::Statement(name.clone(), self.statements.get(&name).cloned());
        // In a failed transaction the server has something to say to a Parse, and whether it has failed may not be known yet.
        let undecided = failed || (name.is_empty() && self.something_may_fail_before());
        let known = upstream.prepared.name_of(&statement, around.schema_epoch).is_some();
        if known && !undecided {
            self.answer_with_the_next(reply::parse_complete, undo, out);
        } else if !name.is_empty() {
            self.prepare_named(&statement, true, undo, upstream, around);
        } else {
            // The server drops its unnamed statement before it looks at the new one.
            let undo = Undo::Statement(name.clone(), None);
            let keep = self.limits.keeps_unnamed && !failed && !self.in_doubt && statement.may_be_named();
            if keep && !known && upstream.prepared.comes_again(&statement) {
                self.prepare_named(&statement, true, undo, upstream, around);
            } else {
                self.send_parse("", &statement, true, undo, upstream);
                upstream.prepared.set_unnamed(Some(statement.clone()));
            }
        }
        self.statements.insert(name, Slot::Statement(statement));
        Performed::Done
    }

    /// Whether a pipeline or Query is on its way whose end is not known; what follows it is not skipped with it.
    fn something_may_fail_before(&self) -> bool {
        self.pending.iter().any(|expect| matches!(expect, Expect::Sync { .. } | Expect::Query { .. }))
    }

    /// What a statement's names are found by. While the search path, or what it leads to, is changing, nobody else's
    /// statement can be the same.
    fn path(&mut self) -> Option<Arc<str>> {
        if self.in_doubt {
            self.doubts += 1;
            return Some(format!("{}, {}", self.session, self.doubts).into());
        }
        self.settings.desired().get("search_path").map(|path| path.as_str().into())
    }

    /// The unnamed statement needs no room: each takes the place of the one before.
    fn no_room_for(&self, name: &str, permit: &Permit) -> Option<Box<ErrorMessage>> {
        if name.is_empty() {
            return None;
        }
        let (count, bytes) = self.named_statements();
        let most = self.limits.prepared_statements_max;
        if count >= most {
            return Some(too_many_statements(format!("this session already holds {most} prepared statements")));
        }
        (bytes + permit.text().len() > STATEMENT_BYTES_MAX).then(|| {
            too_many_statements(format!(
                "the prepared statements of this session would be longer than {STATEMENT_BYTES_MAX} bytes"
            ))
        })
    }

    /// The texts of the prepared statements that the session holds, bytes.
    pub fn statement_bytes(&self) -> usize {
        self.named_statements().1
    }

    /// How many they are, and how long their texts are, all together.
    fn named_statements(&self) -> (usize, usize) {
        self.statements.named().fold((0, 0), |(count, bytes), slot| match slot {
            Slot::Statement(statement) => (count + 1, bytes + statement.permit.text().len()),
            Slot::Local(_) => (count + 1, bytes),
        })
    }

    fn prepare_named(
        &mut self,
        statement: &Arc<Statement>,
        visible: bool,
        undo: Undo,
        upstream: &mut UpstreamState,
        around: &Surroundings<'_>,
    ) -> Arc<str> {
        let (upstream_name, evicted) = upstream.prepared.insert(statement, around.schema_epoch);
        for evicted in evicted {
            upstream.outgoing.close(Target::Statement, &evicted);
            self.expect(Expect::Close { visible: false, undo: Undo::Nothing });
        }
        self.send_parse(&upstream_name, statement, visible, undo, upstream);
        upstream_name
    }

    fn send_parse(
        &mut self,
        name: &str,
        statement: &Arc<Statement>,
        visible: bool,
        undo: Undo,
        upstream: &mut UpstreamState,
    ) {
        upstream.outgoing.parse(name, &statement.permit, &statement.types);
        self.open_pipeline = true;
        self.expect(Expect::Parse { visible, named: !name.is_empty(), statement: statement.clone(), undo });
    }

    pub(super) fn other(
        &mut self,
        frame: Frame,
        upstream: Option<&mut UpstreamState>,
        out: &mut BytesMut,
        around: &Surroundings<'_>,
    ) -> Performed {
        let message = match Frontend::decode(frame.tag(), frame.body()) {
            Ok(message) => message,
            Err(error) => return Performed::Broken(error.into()),
        };
        match message {
            Frontend::Sync => {
                self.sync(upstream, out);
                Performed::Done
            }
            Frontend::Flush => {
                if self.holds_one_answer() {
                    self.give_local_answers(out);
                }
                if let Some(upstream) = upstream.filter(|_| self.open_pipeline) {
                    upstream.outgoing.flush();
                }
                Performed::Done
            }
            Frontend::Bind { portal, statement, rest } => {
                let (portal, statement) = (portal.to_owned(), statement.to_owned());
                self.bind(&frame, portal, &statement, rest, upstream, out, around)
            }
            Frontend::Describe { target: Target::Statement, name } => {
                self.describe_statement(&frame, name, upstream, out, around)
            }
            Frontend::Describe { target: Target::Portal, name } => self.describe_portal(&frame, name, upstream, out),
            Frontend::Execute { portal, max_rows } => self.execute(&frame, portal, max_rows, upstream, out, around),
            Frontend::Close { target: Target::Statement, name } => {
                let undo = Undo::Statement(name.to_owned(), self.statements.remove(name));
                if self.sql_prepared.contains_key(name) {
                    return self.forward_close(&frame, Target::Statement, name, undo, upstream);
                }
                self.answer_in_place(reply::close_complete, undo, out);
                Performed::Done
            }
            Frontend::Close { target: Target::Portal, name } => match self.portals.get(name) {
                Some(Portal::Local(_)) | None => {
                    let undo = Undo::Portal(name.to_owned(), self.portals.remove(name));
                    self.answer_in_place(reply::close_complete, undo, out);
                    Performed::Done
                }
                Some(_) if upstream.is_none() => Performed::NeedsLease(Message::Other(frame)),
                Some(_) => {
                    let undo = Undo::Portal(name.to_owned(), self.portals.remove(name));
                    self.forward_close(&frame, Target::Portal, name, undo, upstream)
                }
            },
            _ => Performed::Broken(SessionEnd::ClientMessage(frame.tag())),
        }
    }

    fn forward_close(
        &mut self,
        frame: &Frame,
        target: Target,
        name: &str,
        undo: Undo,
        upstream: Option<&mut UpstreamState>,
    ) -> Performed {
        let Some(upstream) = upstream else {
            self.take_back(undo);
            return Performed::NeedsLease(Message::Other(frame.clone()));
        };
        if target == Target::Statement {
            self.sql_prepared.remove(name);
        }
        upstream.outgoing.close(target, name);
        self.open_pipeline = true;
        self.expect(Expect::Close { visible: true, undo });
        Performed::Done
    }

    fn sync(&mut self, upstream: Option<&mut UpstreamState>, out: &mut BytesMut) {
        let Some(upstream) = upstream else {
            self.skip_until_sync = false;
            reply::ready_for_query(out, TransactionStatus::Idle);
            return;
        };
        let during_copy = self.copy_in.is_some_and(|copy| !copy.done);
        if during_copy && self.in_copy() {
            return; // the server would ignore it
        }
        upstream.outgoing.sync();
        self.expect(Expect::Sync { in_copy: during_copy });
        if !during_copy {
            self.skip_until_sync = false;
            self.open_pipeline = false;
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one message's parts and the three places they can go")]
    fn bind(
        &mut self,
        frame: &Frame,
        portal: String,
        name: &str,
        rest: &[u8],
        upstream: Option<&mut UpstreamState>,
        out: &mut BytesMut,
        around: &Surroundings<'_>,
    ) -> Performed {
        let bound = match self.statement_named(name, around) {
            Ok(Named::Local(command)) => {
                let undo = Undo::Portal(portal.clone(), self.portals.insert(portal, Portal::Local(command)));
                self.answer_in_place(reply::bind_complete, undo, out);
                return Performed::Done;
            }
            Ok(Named::OfServer(statement)) => statement,
            Err(error) => return self.refuse(error, Protocol::Extended, upstream, out),
        };
        let Some(upstream) = upstream else { return Performed::NeedsLease(Message::Other(frame.clone())) };
        let upstream_name = self.make_sure(name, bound.as_ref(), upstream, around);
        upstream.outgoing.bind(&portal, &upstream_name, rest);
        self.open_pipeline = true;
        let entry = bound.map_or(Portal::Cursor { hold: false }, Portal::Bound);
        let undo = Undo::Portal(portal.clone(), self.portals.insert(portal, entry));
        self.expect(Expect::Bind { undo });
        Performed::Done
    }

    /// What a Bind or Describe means by `name`, as far as it may run now.
    fn statement_named(&mut self, name: &str, around: &Surroundings<'_>) -> Result<Named, Box<ErrorMessage>> {
        match self.statements.get(name).cloned() {
            Some(Slot::Local(command)) => Ok(Named::Local(command)),
            Some(Slot::Statement(statement)) => {
                self.still_allowed(statement, name, around).map(|statement| Named::OfServer(Some(statement)))
            }
            None if self.sql_prepared.contains_key(name) => Ok(Named::OfServer(None)),
            None => Err(no_statement(name)),
        }
    }

    /// A statement that another policy allowed is judged again before it runs.
    fn still_allowed(
        &mut self,
        statement: Arc<Statement>,
        name: &str,
        around: &Surroundings<'_>,
    ) -> Result<Arc<Statement>, Box<ErrorMessage>> {
        if statement.judged_by == *around.policy {
            return Ok(statement);
        }
        let permit = (around.rejudge)(&statement)?;
        let (types, path) = (statement.types.clone(), statement.path.clone());
        let fresh = Arc::new(Statement::new(permit, types, around.policy.clone(), path));
        self.statements.insert(name.to_owned(), Slot::Statement(fresh.clone()));
        Ok(fresh)
    }

    /// The server's name for `statement` on this connection, with its settings in place, prepared there now if it is not
    /// yet. What SQL's PREPARE made has the name that the client gave it.
    fn make_sure(
        &mut self,
        name: &str,
        statement: Option<&Arc<Statement>>,
        upstream: &mut UpstreamState,
        around: &Surroundings<'_>,
    ) -> Arc<str> {
        self.bring_settings(upstream);
        let Some(statement) = statement else { return name.into() };
        if name.is_empty() {
            if !upstream.prepared.unnamed().is_some_and(|unnamed| Arc::ptr_eq(unnamed, statement)) {
                if let Some(upstream_name) = upstream.prepared.any_name_of(statement) {
                    return upstream_name;
                }
                self.send_parse("", statement, false, Undo::Nothing, upstream);
                upstream.prepared.set_unnamed(Some(statement.clone()));
            }
            return "".into();
        }
        match upstream.prepared.any_name_of(statement) {
            Some(upstream_name) => upstream_name,
            None => self.prepare_named(statement, false, Undo::Nothing, upstream, around),
        }
    }

    fn describe_statement(
        &mut self,
        frame: &Frame,
        name: &str,
        upstream: Option<&mut UpstreamState>,
        out: &mut BytesMut,
        around: &Surroundings<'_>,
    ) -> Performed {
        let statement = match self.statement_named(name, around) {
            Ok(Named::Local(_)) => {
                self.answer_in_place(
                    |out| {
                        reply::parameter_description_none(out);
                        reply::no_data(out);
                    },
                    Undo::Nothing,
                    out,
                );
                return Performed::Done;
            }
            Ok(Named::OfServer(statement)) => statement,
            Err(error) => return self.refuse(error, Protocol::Extended, upstream, out),
        };
        let Some(upstream) = upstream else { return Performed::NeedsLease(Message::Other(frame.clone())) };
        let upstream_name = self.make_sure(name, statement.as_ref(), upstream, around);
        upstream.outgoing.describe(Target::Statement, &upstream_name);
        self.open_pipeline = true;
        self.expect(Expect::Describe { statement });
        Performed::Done
    }

    fn describe_portal(
        &mut self,
        frame: &Frame,
        name: &str,
        upstream: Option<&mut UpstreamState>,
        out: &mut BytesMut,
    ) -> Performed {
        match self.portals.get(name) {
            Some(Portal::Local(_)) => {
                self.answer_in_place(reply::no_data, Undo::Nothing, out);
                Performed::Done
            }
            None => self.refuse(no_portal(name), Protocol::Extended, upstream, out),
            Some(_) => {
                let Some(upstream) = upstream else { return Performed::NeedsLease(Message::Other(frame.clone())) };
                upstream.outgoing.describe(Target::Portal, name);
                self.open_pipeline = true;
                self.expect(Expect::Describe { statement: None });
                Performed::Done
            }
        }
    }

    fn execute(
        &mut self,
        frame: &Frame,
        name: &str,
        rows_max: i32,
        upstream: Option<&mut UpstreamState>,
        out: &mut BytesMut,
        around: &Surroundings<'_>,
    ) -> Performed {
        let statement = match self.portals.get(name).cloned() {
            Some(Portal::Local(command)) => {
                let saved = match &command {
                    LocalCommand::Deallocate(name) => Undo::Statement(name.clone(), self.statements.get(name).cloned()),
                    LocalCommand::DeallocateAll => Undo::Nothing,
                };
                self.run_local(&command);
                self.answer_in_place(|out| reply::command_complete(out, command.tag()), saved, out);
                return Performed::Done;
            }
            None => return self.refuse(no_portal(name), Protocol::Extended, upstream, out),
            Some(Portal::Cursor { .. }) => None,
            // The policy changed between Bind and Execute: the same question, asked once more.
            Some(Portal::Bound(statement)) if statement.judged_by != *around.policy => {
                match (around.rejudge)(&statement) {
                    Ok(_) => Some(statement),
                    Err(error) => return self.refuse(error, Protocol::Extended, upstream, out),
                }
            }
            Some(Portal::Bound(statement)) => Some(statement),
        };
        let Some(upstream) = upstream else { return Performed::NeedsLease(Message::Other(frame.clone())) };
        if let Some(statement) = &statement {
            self.prepare_for(&statement.permit, upstream);
            if statement.permit.effects().contains(&Effect::CopyIn) {
                self.copy_in = Some(CopyIn { begun: false, done: false });
            }
        }
        upstream.outgoing.execute(name, rows_max);
        self.open_pipeline = true;
        self.expect(Expect::Execute { statement, portal: name.to_owned() });
        Performed::Done
    }

    /// The proxy's own answer to a message of a pipeline, which the client hears when it hears the server's next: no
    /// earlier than PostgreSQL would say it, and without a write of its own.
    fn answer_with_the_next(&mut self, encode: impl FnOnce(&mut BytesMut), undo: Undo, out: &mut BytesMut) {
        if self.holds_one_answer() {
            self.give_local_answers(out);
        }
        let mut bytes = BytesMut::new();
        encode(&mut bytes);
        self.open_pipeline = true;
        self.expect(Expect::Local { reply: bytes.freeze(), undo });
    }

    /// The proxy's own answer, at its place in the order.
    fn answer_in_place(&mut self, encode: impl FnOnce(&mut BytesMut), undo: Undo, out: &mut BytesMut) {
        if self.holds_one_answer() {
            self.give_local_answers(out);
        }
        if self.pending.is_empty() {
            encode(out);
            return;
        }
        let mut bytes = BytesMut::new();
        encode(&mut bytes);
        self.expect(Expect::Local { reply: bytes.freeze(), undo });
    }

    /// Refuses one message: at once where nothing is outstanding and no transaction is open, otherwise through the server.
    fn refuse(
        &mut self,
        error: Box<ErrorMessage>,
        protocol: Protocol,
        upstream: Option<&mut UpstreamState>,
        out: &mut BytesMut,
    ) -> Performed {
        let idle = upstream.as_ref().is_none_or(|upstream| upstream.status == TransactionStatus::Idle);
        match upstream {
            Some(upstream) if !(self.is_quiet() && idle) => {
                self.spoil_repeat();
                let Some(token) = RefusalToken::new() else { return Performed::Broken(SessionEnd::NoRandom) };
                let refusal = Refusal { token, error };
                if protocol == Protocol::Simple {
                    upstream.outgoing.refused_query(&refusal.token);
                    upstream.prepared.set_unnamed(None);
                    self.open_pipeline = false;
                    self.expect(Expect::Query { permit: None, completed: 0, refusal: Some(refusal) });
                } else {
                    upstream.outgoing.refused_parse(&refusal.token);
                    upstream.prepared.set_unnamed(None);
                    self.open_pipeline = true;
                    self.expect(Expect::RefusedParse(refusal));
                }
            }
            _ => {
                error.encode_error(out);
                if protocol == Protocol::Simple {
                    reply::ready_for_query(out, TransactionStatus::Idle);
                } else {
                    self.skip_until_sync = true;
                }
            }
        }
        Performed::Done
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Simple,
    Extended,
}

/// What a name of a prepared statement stands for.
enum Named {
    /// A command that the proxy carries out by itself.
    Local(LocalCommand),
    /// A statement of the server's; `None` is one that SQL's PREPARE made.
    OfServer(Option<Arc<Statement>>),
}

enum OwnAnswer {
    EmptyQuery,
    DiscardAll,
    Deallocate(LocalCommand),
}

/// Whether the search path may be another one from here on.
fn changes_path(effect: &Effect) -> bool {
    match effect {
        Effect::Set { name, .. } | Effect::SetBound { name, .. } | Effect::Reset { name } => name == "search_path",
        Effect::ResetAll | Effect::DiscardAll => true,
        _ => false,
    }
}

fn duplicate(name: &str) -> Box<ErrorMessage> {
    let text = format!("prepared statement \"{name}\" already exists");
    Box::new(ErrorMessage::error(SqlState::DUPLICATE_PREPARED_STATEMENT, text))
}

fn no_statement(name: &str) -> Box<ErrorMessage> {
    let text = match name {
        "" => "unnamed prepared statement does not exist".to_owned(),
        name => format!("prepared statement \"{name}\" does not exist"),
    };
    Box::new(ErrorMessage::error(SqlState::INVALID_SQL_STATEMENT_NAME, text))
}

fn no_portal(name: &str) -> Box<ErrorMessage> {
    Box::new(ErrorMessage::error(SqlState::INVALID_CURSOR_NAME, format!("portal \"{name}\" does not exist")))
}

fn too_many_statements(text: String) -> Box<ErrorMessage> {
    let error = ErrorMessage::error(SqlState::CONFIGURATION_LIMIT_EXCEEDED, text);
    Box::new(error.hint("Close the prepared statements that are no longer used, or let the driver cache fewer."))
}
