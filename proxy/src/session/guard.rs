//! Asks for a verdict, remembered or the judge's, and puts it into the protocol's words.
//!
//! A `Permit` goes on as the message that carries it; a `Denial` becomes an ErrorResponse with its code, message, DETAIL,
//! HINT and position, is counted by its rule, and is logged without any SQL.

use std::time::Instant;

use portcullis_policy::{Denial, Found, Permit, Surface, Verdict};
use portcullis_wire::{ErrorMessage, SqlState};

use super::exchange::Message;
use super::route::Route;
use crate::gate::Gate;
use crate::metrics::VerdictFrom;
use crate::prepared::Statement;

pub(super) fn verdict(
    gate: &Gate,
    route: &Route,
    surface: Surface,
    sql: &[u8],
    parse: Option<(String, Vec<u8>)>,
) -> Message {
    let began = Instant::now();
    let verdict = ask(gate, route, surface, sql);
    gate.metrics.verdict_seconds(began.elapsed());
    message(gate, route, verdict, parse)
}

/// The same for a text whose verdict is remembered. It is not timed: to look twice at the clock costs more than to find it.
pub(super) fn remembered(
    gate: &Gate,
    route: &Route,
    surface: Surface,
    sql: &[u8],
    parse: &mut Option<(String, Vec<u8>)>,
) -> Option<Message> {
    let verdict = gate.verdicts.recall(&route.scope, surface, sql)?;
    gate.metrics.verdict_found(VerdictFrom::Text);
    Some(message(gate, route, verdict, parse.take()))
}

fn message(gate: &Gate, route: &Route, verdict: Verdict, parse: Option<(String, Vec<u8>)>) -> Message {
    match (verdict, parse) {
        (Verdict::Allow(permit), None) => {
            gate.metrics.statement_allowed();
            Message::Query(permit)
        }
        (Verdict::Allow(permit), Some((name, types))) => {
            gate.metrics.statement_allowed();
            Message::Parse { name, permit, types }
        }
        (Verdict::Deny(denial), parse) => {
            let error = denied(gate, route, &denial);
            match parse {
                None => Message::RefusedQuery(error),
                Some((name, _)) => Message::RefusedParse { name, error },
            }
        }
    }
}

fn ask(gate: &Gate, route: &Route, surface: Surface, sql: &[u8]) -> Verdict {
    let (verdict, found) = gate.verdicts.judge(&route.scope, surface, sql);
    gate.metrics.verdict_found(match found {
        Found::Shape => VerdictFrom::Shape,
        Found::Judged => VerdictFrom::Judge,
    });
    verdict
}

fn denied(gate: &Gate, route: &Route, denial: &Denial) -> Box<ErrorMessage> {
    gate.metrics.statement_refused(denial.rule.id());
    tracing::info!(workspace = %route.workspace, kind = route.role().kind(), rule = denial.rule.id(), "statement refused");
    Box::new(error_of(denial, ErrorMessage::error))
}

pub(super) fn rejudge(gate: &Gate, route: &Route, statement: &Statement) -> Result<Permit, Box<ErrorMessage>> {
    let (surface, text) = (Surface::Parse, statement.permit.text().as_bytes());
    let known = gate.verdicts.recall(&route.scope, surface, text);
    match known.unwrap_or_else(|| ask(gate, route, surface, text)) {
        Verdict::Allow(permit) => Ok(permit),
        Verdict::Deny(denial) => Err(denied(gate, route, &denial)),
    }
}

/// A refusal in the form of an ErrorResponse.
pub(super) fn error_of(denial: &Denial, make: fn(SqlState, String) -> ErrorMessage) -> ErrorMessage {
    let code = SqlState::parse(denial.sqlstate).unwrap_or(SqlState::INSUFFICIENT_PRIVILEGE);
    let mut error = make(code, denial.message.clone());
    if !denial.detail.is_empty() {
        error = error.detail(denial.detail.clone());
    }
    if !denial.hint.is_empty() {
        error = error.hint(denial.hint.clone());
    }
    match denial.position {
        Some(position) => error.position(position),
        None => error,
    }
}

pub(super) fn too_long(most: usize) -> ErrorMessage {
    ErrorMessage::error(SqlState::PROGRAM_LIMIT_EXCEEDED, format!("the text is longer than {most} bytes"))
        .hint("Send data as parameters or by COPY … FROM STDIN.")
}

/// There is no memory to judge a long text with.
pub(super) fn no_memory() -> ErrorMessage {
    ErrorMessage::error(SqlState::OUT_OF_MEMORY, "the gate has no memory left to judge a text of this length")
        .hint("Try again in a moment, or send data as parameters or by COPY … FROM STDIN.")
}

pub(super) fn function_call() -> ErrorMessage {
    ErrorMessage::error(SqlState::FEATURE_NOT_SUPPORTED, "function calls by OID are not supported")
        .detail("The message FunctionCall bypasses SQL; drivers use it for large objects (lo_open and the like).")
        .hint("Store large values in bytea columns.")
}
