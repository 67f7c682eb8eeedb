//! Conversations as rows: what the client says, what the server says, what each of them hears.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;

use bytes::{BufMut, BytesMut};
use portcullis_policy::{Policy, RolePolicy, Surface, Target, Verdict, judge};
use portcullis_wire::backend::{Backend, encode as reply};
use portcullis_wire::frontend::encode;
use portcullis_wire::{ErrorMessage, Frontend, SqlState, TransactionStatus, cut_frame, cut_frontend_frame};

use super::*;
use crate::session::end::SessionEnd;
use crate::upstream::UpstreamState;

const STORAGE: &str = include_str!("../../../../provisioner/profiles/storage/policy.toml");

/// A session, the connection it may hold, and both ends of the conversation.
struct Talk {
    exchange: Exchange,
    upstream: Option<UpstreamState>,
    role: Arc<RolePolicy>,
    limits: ResultLimits,
    to_client: BytesMut,
}

impl Talk {
    fn new() -> Self {
        Self::with(UpstreamState::default())
    }

    fn with(upstream: UpstreamState) -> Self {
        let role = Policy::parse(STORAGE).unwrap().kind("customer_db").unwrap().clone();
        let limits = ExchangeLimits { prepared_statements_max: 3, session_pooling: false, keeps_unnamed: true };
        let exchange = Exchange::new(limits, 1, Values::new(), Reported::default());
        Self { exchange, upstream: Some(upstream), role, limits: ResultLimits::default(), to_client: BytesMut::new() }
    }

    fn judged(&self, surface: Surface, sql: &str) -> Result<Permit, Box<ErrorMessage>> {
        match judge(&self.role, surface, sql.as_bytes(), &Target { database_names: &["ws_1"] }) {
            Verdict::Allow(permit) => Ok(permit),
            Verdict::Deny(denial) => {
                Err(Box::new(ErrorMessage::error(SqlState::INSUFFICIENT_PRIVILEGE, denial.rule.to_string())))
            }
        }
    }

    fn perform(&mut self, message: Message) -> Performed {
        let policy: Arc<str> = "p1".into();
        let rejudge = |_: &Statement| Err(Box::new(ErrorMessage::error(SqlState::INSUFFICIENT_PRIVILEGE, "changed")));
        let around = Surroundings { rejudge: &rejudge, policy: &policy, schema_epoch: 0 };
        self.exchange.perform(message, self.upstream.as_mut(), &mut self.to_client, &around)
    }

    /// The client sends these bytes; skipped as the relay skips.
    fn client(&mut self, write: impl FnOnce(&mut BytesMut)) -> &mut Self {
        let mut bytes = BytesMut::new();
        write(&mut bytes);
        while let Some(frame) = cut_frontend_frame(&mut bytes, 1 << 20).unwrap() {
            if self.exchange.is_skipping() && frame.tag() != b'S' {
                continue;
            }
            let message = match Frontend::decode(frame.tag(), frame.body()).unwrap() {
                Frontend::Query { sql } => match self.judged(Surface::SimpleQuery, std::str::from_utf8(sql).unwrap()) {
                    Ok(permit) => Message::Query(permit),
                    Err(error) => Message::RefusedQuery(error),
                },
                Frontend::Parse { name, sql, param_types } => {
                    match self.judged(Surface::Parse, std::str::from_utf8(sql).unwrap()) {
                        Ok(permit) => Message::Parse { name: name.into(), permit, types: param_types.into() },
                        Err(error) => Message::RefusedParse { name: name.into(), error },
                    }
                }
                _ => Message::Other(frame),
            };
            assert!(matches!(self.perform(message), Performed::Done));
        }
        self
    }

    fn query(&mut self, sql: &str) -> &mut Self {
        self.client(|out| encode::query(out, sql).unwrap())
    }

    fn parse(&mut self, name: &str, sql: &str) -> &mut Self {
        self.client(|out| encode::parse(out, name, sql, &[0, 0]).unwrap())
    }

    fn bind(&mut self, statement: &str) -> &mut Self {
        self.client(|out| encode::bind(out, "", statement, &[0, 0, 0, 0, 0, 0]).unwrap())
    }

    fn execute(&mut self) -> &mut Self {
        self.client(|out| encode::execute(out, "", 0).unwrap())
    }

    fn sync(&mut self) -> &mut Self {
        self.client(encode::sync)
    }

    fn run(&mut self, statement: &str) -> &mut Self {
        self.bind(statement).execute().sync()
    }

    /// The server sends these bytes.
    fn server(&mut self, write: impl FnOnce(&mut BytesMut)) -> &mut Self {
        let mut bytes = BytesMut::new();
        write(&mut bytes);
        while let Some(frame) = cut_frame(&mut bytes, 1 << 20).unwrap() {
            let passes = self.exchange.passes_in_pieces(frame.tag());
            if passes && self.exchange.row(frame.raw().len(), &self.limits) != Row::Passes {
                continue;
            }
            let upstream = self.upstream.as_mut().unwrap();
            let out = &mut self.to_client;
            if self.exchange.server_message(frame.tag(), frame.body(), upstream, out).unwrap() == Handled::Forward {
                out.extend_from_slice(frame.raw());
            }
        }
        self
    }

    fn done(&mut self, tag: &str) -> &mut Self {
        self.server(|out| reply::command_complete(out, tag))
    }

    /// So many rows of eight bytes in all, the frame's head included.
    fn rows(&mut self, count: usize) -> &mut Self {
        self.server(|out| (0..count).for_each(|_| out.put_slice(b"D\0\0\0\x06\0\0")))
    }

    fn ready(&mut self, status: TransactionStatus) -> &mut Self {
        self.server(|out| reply::ready_for_query(out, status))
    }

    fn fails(&mut self, code: SqlState, text: &str) -> &mut Self {
        self.server(|out| ErrorMessage::error(code, text).encode_error(out))
    }

    /// The server refuses the marker that it was sent last.
    fn refuses_marker(&mut self, seen: &str) -> &mut Self {
        let token = seen
            .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .find(|word| word.starts_with("portcullis_refused_"));
        let text = format!("syntax error at or near \"{}\"", token.expect("a marker"));
        self.fails(SqlState::SYNTAX_ERROR, &text)
    }

    /// What the client has heard since the last call: tags, with the message of errors and the status of Z.
    fn heard(&mut self) -> String {
        let mut words = Vec::new();
        while let Some(frame) = cut_frame(&mut self.to_client, 1 << 20).unwrap() {
            words.push(match Backend::decode(frame.tag(), frame.body()).unwrap() {
                Backend::ErrorResponse(fields) => format!("E({})", fields.message().unwrap()),
                Backend::ReadyForQuery(status) => format!("Z{}", char::from(status.tag())),
                Backend::CommandComplete { tag } => format!("C({tag})"),
                Backend::ParameterStatus { name, value } => format!("S({name}={value})"),
                _ => char::from(frame.tag()).to_string(),
            });
        }
        words.join(" ")
    }

    /// What was written to the server since the last call.
    fn sent(&mut self) -> String {
        let mut bytes = self.upstream.as_mut().unwrap().outgoing.take_for_test();
        let mut words = Vec::new();
        while let Some(frame) = cut_frontend_frame(&mut bytes, 1 << 20).unwrap() {
            words.push(match Frontend::decode(frame.tag(), frame.body()).unwrap() {
                Frontend::Query { sql } => format!("Q({})", String::from_utf8_lossy(sql)),
                Frontend::Parse { name, sql, .. } => format!("P({name},{})", String::from_utf8_lossy(sql)),
                Frontend::Bind { statement, .. } => format!("B({statement})"),
                Frontend::Close { name, .. } => format!("C({name})"),
                _ => char::from(frame.tag()).to_string(),
            });
        }
        words.join(" ")
    }
}

use TransactionStatus::{Failed, Idle, InTransaction};

#[test]
fn a_refusal_with_nothing_outstanding_is_answered_at_once() {
    let mut talk = Talk::new();
    assert_eq!(talk.query("SET ROLE postgres").heard().split('(').next().unwrap(), "E");
    assert_eq!(talk.sent(), "");
    talk.parse("", "SET ROLE postgres");
    assert!(talk.heard().starts_with("E("));
    assert_eq!(talk.bind("").execute().query("SELECT 1").heard(), "", "skipped until Sync");
    assert_eq!(talk.sent(), "");
    talk.upstream = None;
    assert_eq!(talk.sync().heard(), "ZI");
}

#[test]
fn a_refusal_in_a_transaction_fails_it_in_the_server() {
    let mut talk = Talk::new();
    talk.query("BEGIN").done("BEGIN").ready(InTransaction).heard();
    talk.sent();
    let seen = talk.query("SET ROLE postgres").sent();
    assert!(seen.starts_with("Q(portcullis_refused_"), "{seen}");
    assert_eq!(talk.heard(), "");
    let heard = talk.refuses_marker(&seen).ready(Failed).heard();
    assert!(heard.starts_with("E(") && heard.ends_with("ZE") && !heard.contains("syntax"), "{heard}");
}

#[test]
fn only_the_marker_s_own_error_is_rewritten() {
    let mut talk = Talk::new();
    talk.query("BEGIN").done("BEGIN").ready(InTransaction).heard();
    talk.query("SET ROLE postgres");
    let heard =
        talk.fails(SqlState::SYNTAX_ERROR, "syntax error at or near \"portcullis_refused_0\"").ready(Failed).heard();
    assert_eq!(heard, "E(syntax error at or near \"portcullis_refused_0\") ZE");
}

#[test]
fn an_earlier_error_of_the_pipeline_leaves_no_second_one() {
    let mut talk = Talk::new();
    talk.parse("", "SELECT 1/0").bind("").execute().parse("", "SET ROLE postgres").bind("").execute().sync();
    talk.server(reply::parse_complete).server(reply::bind_complete).fails(SqlState::SYNTAX_ERROR, "division by zero");
    assert_eq!(talk.ready(Idle).heard(), "1 2 E(division by zero) ZI");
    assert!(talk.exchange.is_quiet());
}

#[test]
fn a_named_statement_is_prepared_once_per_connection() {
    let mut talk = Talk::new();
    talk.parse("s1", "SELECT 1").run("s1");
    let sent = talk.sent();
    let name = sent.split(['(', ',']).nth(1).unwrap().to_owned();
    assert!(name.starts_with("_portcullis_"), "{sent}");
    assert!(sent.ends_with(&format!("B({name}) E S")), "{sent}");
    talk.server(reply::parse_complete).server(reply::bind_complete).done("SELECT 1").ready(Idle);
    assert_eq!(talk.heard(), "1 2 C(SELECT 1) ZI");

    // Another session on the same connection, another name, the same text.
    let mut other = Talk::with(talk.upstream.take().unwrap());
    other.parse("x", "SELECT 1").run("x");
    assert_eq!(other.sent(), format!("B({name}) E S"));
    other.server(reply::bind_complete).done("SELECT 1").ready(Idle);
    assert_eq!(other.heard(), "1 2 C(SELECT 1) ZI");

    // The first session on a connection that has never seen the text.
    talk.upstream = Some(UpstreamState::default());
    talk.run("s1");
    assert!(talk.sent().starts_with("P(_portcullis_"));
    talk.server(reply::parse_complete).server(reply::bind_complete).done("SELECT 1").ready(Idle);
    assert_eq!(talk.heard(), "2 C(SELECT 1) ZI", "the second ParseComplete is not the client's");
}

#[test]
fn the_unnamed_statement_follows_its_session() {
    let mut talk = Talk::new();
    talk.parse("", "SELECT 1").sync().server(reply::parse_complete).ready(Idle).heard();
    talk.sent();
    talk.run("");
    assert_eq!(talk.sent(), "B() E S");
    talk.server(reply::bind_complete).done("SELECT 1").ready(Idle).heard();
    talk.upstream = Some(UpstreamState::default());
    talk.run("");
    assert_eq!(talk.sent(), "P(,SELECT 1) B() E S");
}

#[test]
fn a_failed_parse_leaves_no_name_behind() {
    let mut talk = Talk::new();
    talk.parse("s1", "SELECT nope").run("s1");
    talk.fails(SqlState::SYNTAX_ERROR, "no column").ready(Idle);
    assert_eq!(talk.heard(), "E(no column) ZI");
    talk.sent();
    talk.run("s1");
    assert_eq!(talk.heard(), "E(prepared statement \"s1\" does not exist)");
    talk.sync();
    talk.ready(Idle).heard();
    talk.sent();
    talk.parse("s1", "SELECT nope");
    assert!(talk.sent().starts_with("P("), "it is sent again, not believed to be there");
}

#[test]
fn what_an_error_skips_has_not_happened() {
    let mut talk = Talk::new();
    talk.parse("s1", "SELECT 1").sync().server(reply::parse_complete).ready(Idle).heard();
    // An error, then Close of s1, which the server would skip.
    talk.parse("", "SELECT 1/0").client(|out| encode::close(out, Close, "s1").unwrap()).sync();
    talk.fails(SqlState::SYNTAX_ERROR, "division by zero").ready(Idle);
    assert_eq!(talk.heard(), "E(division by zero) ZI");
    talk.sent();
    talk.run("s1");
    assert!(talk.sent().starts_with("B(_portcullis_"));
}

use portcullis_wire::Target::Statement as Close;

#[test]
fn names_follow_postgresql_s_rules() {
    let mut talk = Talk::new();
    talk.parse("s1", "SELECT 1").sync().server(reply::parse_complete).ready(Idle).heard();
    assert_eq!(talk.parse("s1", "SELECT 2").heard(), "E(prepared statement \"s1\" already exists)");
    talk.sync().ready(Idle).heard();
    assert_eq!(talk.query("EXECUTE s1").heard(), "E(prepared statement \"s1\" does not exist) ZI");
    assert_eq!(talk.query("DEALLOCATE s1").heard(), "C(DEALLOCATE) ZI");
    assert_eq!(talk.bind("s1").heard(), "E(prepared statement \"s1\" does not exist)");
    talk.sync().ready(Idle).heard();
    for name in ["a", "b", "c"] {
        talk.parse(name, "SELECT 1");
        talk.sync();
        talk.ready(Idle).heard();
    }
    assert_eq!(talk.parse("d", "SELECT 1").heard(), "E(this session already holds 3 prepared statements)");
}

#[test]
fn a_sync_inside_copy_from_stdin_is_not_answered() {
    let mut talk = Talk::new();
    talk.parse("", "COPY storage.t FROM STDIN").run("");
    assert!(talk.exchange.copy_is_undecided());
    talk.server(reply::parse_complete).server(reply::bind_complete).server(copy_in);
    assert!(talk.exchange.in_copy());
    talk.exchange.copy_ended();
    talk.sync();
    talk.done("COPY 1").ready(Idle);
    assert_eq!(talk.heard(), "1 2 G C(COPY 1) ZI");
    assert!(talk.exchange.is_quiet());
}

#[test]
fn a_sync_counts_when_the_copy_never_began() {
    let mut talk = Talk::new();
    talk.parse("", "COPY storage.t FROM STDIN").run("");
    talk.server(reply::parse_complete).server(reply::bind_complete);
    talk.fails(SqlState::INSUFFICIENT_PRIVILEGE, "permission denied").ready(Idle);
    assert_eq!(talk.heard(), "1 2 E(permission denied) ZI");
    assert!(talk.exchange.is_quiet() && !talk.exchange.is_skipping());
}

fn copy_in(out: &mut BytesMut) {
    out.put_slice(&[b'G', 0, 0, 0, 7, 0, 0, 0]);
}

#[test]
fn settings_follow_the_session_and_not_the_connection() {
    let mut talk = Talk::new();
    talk.query("SET timezone = 'Asia/Tokyo'").done("SET").ready(Idle).heard();
    assert_eq!(talk.upstream.as_ref().unwrap().settings["timezone"], "Asia/Tokyo");
    talk.upstream = Some(UpstreamState::default());
    talk.sent();
    talk.query("SELECT 1");
    assert_eq!(talk.sent(), "Q(SELECT pg_catalog.set_config('timezone', 'Asia/Tokyo', false)) Q(SELECT 1)");
    talk.done("SELECT 1").server(|out| reply::parameter_status(out, "TimeZone", "Asia/Tokyo")).ready(Idle);
    assert_eq!(talk.heard(), "S(TimeZone=Asia/Tokyo)", "nothing else of the proxy's own statement");
    talk.done("SELECT 1").ready(Idle);
    assert_eq!(talk.heard(), "C(SELECT 1) ZI");

    let mut other = Talk::with(talk.upstream.take().unwrap());
    other.query("SELECT 1");
    assert_eq!(other.sent(), "Q(RESET \"timezone\"; ) Q(SELECT 1)");
}

#[test]
fn a_rolled_back_setting_is_none() {
    let mut talk = Talk::new();
    talk.query("BEGIN").done("BEGIN").ready(InTransaction);
    talk.query("SET timezone = 'Asia/Tokyo'").done("SET").ready(InTransaction);
    talk.query("ROLLBACK").done("ROLLBACK").ready(Idle);
    assert!(talk.upstream.as_ref().unwrap().settings.is_empty());
    talk.query("BEGIN").done("BEGIN").ready(InTransaction);
    talk.query("SET timezone = 'Asia/Tokyo'").done("SET").ready(InTransaction);
    talk.query("SELECT 1/0").fails(SqlState::SYNTAX_ERROR, "division by zero").ready(Failed);
    talk.query("COMMIT").done("ROLLBACK").ready(Idle);
    assert!(talk.upstream.as_ref().unwrap().settings.is_empty());
}

#[test]
fn resets_are_answered_from_the_session_s_own_books() {
    let mut talk = Talk::new();
    talk.parse("s1", "SELECT 1").sync().server(reply::parse_complete).ready(Idle).heard();
    talk.sent();
    talk.upstream = None;
    assert_eq!(talk.query("DEALLOCATE ALL").heard(), "C(DEALLOCATE ALL) ZI");
    assert_eq!(talk.bind("s1").heard(), "E(prepared statement \"s1\" does not exist)");
    assert_eq!(talk.sync().heard(), "ZI");
    assert_eq!(talk.query("DISCARD ALL").heard(), "C(DISCARD ALL) ZI");
    assert_eq!(talk.query("").heard(), "I ZI");
}

/// What psqlodbc sends when a statement's handle is freed within a transaction (P42).
#[test]
fn a_deallocate_among_other_statements_finds_the_name_that_the_client_knows() {
    let mut talk = Talk::new();
    talk.query("BEGIN").done("BEGIN").ready(InTransaction).heard();
    talk.parse("s1", "SELECT 1").sync().server(reply::parse_complete).ready(InTransaction).heard();
    talk.sent();
    talk.query("SAVEPOINT a;DEALLOCATE s1;RELEASE a");
    assert_eq!(talk.sent(), "C(s1) P(s1,) Q(SAVEPOINT a;DEALLOCATE s1;RELEASE a)");
    talk.server(reply::close_complete).server(reply::parse_complete);
    talk.done("SAVEPOINT").done("DEALLOCATE").done("RELEASE").ready(InTransaction);
    assert_eq!(talk.heard(), "C(SAVEPOINT) C(DEALLOCATE) C(RELEASE) ZT");
    assert!(talk.parse("s1", "SELECT 2").sent().contains("SELECT 2"), "the name is free again");
    assert!(talk.exchange.take_taint(), "had the Query failed before, the stand-in would still be there");
}

#[test]
fn what_cannot_be_carried_over_pins_and_taints() {
    let mut talk = Talk::new();
    talk.query("PREPARE p AS SELECT 1").done("PREPARE").ready(Idle).heard();
    assert_eq!(talk.exchange.pin(), Some("prepared_statement"));
    assert!(!talk.exchange.may_release(Idle));
    assert_eq!(talk.query("EXECUTE p").done("SELECT 1").ready(Idle).heard(), "C(SELECT 1) ZI");
    assert_eq!(talk.query("DISCARD ALL").heard(), "C(DISCARD ALL) ZI");
    assert!(talk.exchange.may_release(Idle));
    assert!(talk.exchange.take_taint(), "the connection is cleaned before anyone else has it");
}

#[test]
fn a_portal_that_was_never_bound_is_refused() {
    let mut talk = Talk::new();
    talk.execute();
    assert_eq!(talk.heard(), "E(portal \"\" does not exist)");
}

#[test]
fn a_cancel_of_ours_says_why() {
    let mut talk = Talk::new();
    talk.query("SELECT 1");
    talk.exchange.cancelled_because(ErrorMessage::error(SqlState::QUERY_CANCELED, "time limit"));
    talk.fails(SqlState::QUERY_CANCELED, "canceling statement due to user request").ready(Idle);
    assert_eq!(talk.heard(), "E(time limit) ZI");
    talk.query("SELECT 1").fails(SqlState::QUERY_CANCELED, "canceling statement due to user request").ready(Idle);
    assert_eq!(talk.heard(), "E(canceling statement due to user request) ZI");
}

#[test]
fn each_statement_of_a_batch_counts_from_its_own_end() {
    let mut talk = Talk::new();
    talk.query("BEGIN; SET timezone = 'Asia/Tokyo'; COMMIT; SELECT 1/0").done("BEGIN").done("SET").done("COMMIT");
    talk.fails(SqlState::SYNTAX_ERROR, "division by zero").ready(Idle);
    assert_eq!(talk.upstream.as_ref().unwrap().settings["timezone"], "Asia/Tokyo");
    talk.query("SET timezone = 'UTC'; SELECT 1/0").done("SET");
    talk.fails(SqlState::SYNTAX_ERROR, "division by zero").ready(Idle);
    assert_eq!(talk.upstream.as_ref().unwrap().settings["timezone"], "Asia/Tokyo");
}

#[test]
fn a_connection_s_other_settings_are_not_told_before_they_are_moved() {
    let mut talk = Talk::new();
    talk.query("SET timezone = 'Asia/Tokyo'").done("SET").ready(Idle).heard();
    let mut upstream = UpstreamState::default();
    upstream.parameters.insert("TimeZone", "UTC");
    upstream.parameters.insert("session_authorization", "ws_1_a");
    talk.exchange.meet(&upstream, &mut talk.to_client);
    assert_eq!(talk.heard(), "");
    upstream.settings.insert("timezone".into(), "Asia/Tokyo".into());
    upstream.parameters.insert("TimeZone", "Asia/Tokyo");
    talk.exchange.meet(&upstream, &mut talk.to_client);
    assert_eq!(talk.heard(), "S(TimeZone=Asia/Tokyo)", "and never the proxy's own login");
}

/// At most two rows of each result.
fn two_rows() -> Talk {
    let mut talk = Talk::new();
    talk.limits.rows = Some(2);
    talk
}

const TOO_MANY: &str = "E(the result has more than 2 rows, the limit for one statement)";

#[test]
fn a_result_within_its_limit_is_whole() {
    let mut talk = two_rows();
    assert_eq!(talk.query("SELECT 1").rows(2).done("SELECT 2").ready(Idle).heard(), "D D C(SELECT 2) ZI");
    talk.query("BEGIN; SELECT 1").done("BEGIN").rows(2).done("SELECT 2").ready(InTransaction);
    assert_eq!(talk.heard(), "C(BEGIN) D D C(SELECT 2) ZT");
    talk.limits = ResultLimits { rows: None, bytes: Some(21) };
    assert_eq!(talk.query("SELECT 1").rows(3).done("SELECT 3").ready(InTransaction).heard(), "D D D C(SELECT 3) ZT");
    talk.query("SELECT 1").rows(4).done("SELECT 4");
    assert_eq!(talk.heard(), "D D D E(the result has more than 21 bytes, the limit for one statement)");
}

#[test]
fn a_result_is_cut_where_the_server_is_stopped() {
    let mut talk = two_rows();
    talk.query("SELECT 1").rows(2);
    assert!(!talk.exchange.is_cutting());
    talk.rows(5);
    assert!(talk.exchange.is_cutting());
    talk.fails(SqlState::QUERY_CANCELED, "canceling statement due to user request").ready(Idle);
    assert_eq!(talk.heard(), format!("D D {TOO_MANY} ZI"));
    assert_eq!(talk.sent(), "Q(SELECT 1)");
    talk.query("COPY storage.t TO STDOUT").server(|out| out.put_slice(b"H\0\0\0\x07\0\0\0"));
    talk.server(|out| (0..3).for_each(|_| out.put_slice(b"d\0\0\0\x05\n"))).server(|out| out.put_slice(b"c\0\0\0\x04"));
    assert_eq!(talk.done("COPY 3").ready(Idle).heard(), format!("H d d {TOO_MANY} ZI"));
    // Another error of the server is its own; the next result counts anew.
    talk.query("SELECT 1").rows(3).fails(SqlState::PROGRAM_LIMIT_EXCEEDED, "out of luck").ready(Idle);
    assert_eq!(talk.heard(), "D D E(out of luck) ZI");
    assert_eq!(talk.query("SELECT 1").rows(1).done("SELECT 1").ready(Idle).heard(), "D C(SELECT 1) ZI");
}

#[test]
fn a_result_that_was_complete_ends_in_the_same_error() {
    let mut talk = two_rows();
    talk.query("SELECT 1").rows(3).done("SELECT 3").ready(Idle);
    assert_eq!(talk.heard(), format!("D D {TOO_MANY} ZI"));
    talk.sent();
    talk.parse("", "SELECT 1").run("").server(|out| out.put_slice(b"1\0\0\0\x042\0\0\0\x04"));
    talk.rows(3).done("SELECT 3").ready(Idle);
    assert_eq!(talk.heard(), format!("1 2 D D {TOO_MANY} ZI"));
    assert!(talk.exchange.is_quiet());
}

#[test]
fn its_transaction_has_failed() {
    for parse in [false, true] {
        let mut talk = two_rows();
        talk.query("BEGIN").done("BEGIN").ready(InTransaction).heard();
        if parse {
            talk.parse("", "SELECT 1").run("").server(|out| out.put_slice(b"1\0\0\0\x042\0\0\0\x04"));
        } else {
            talk.query("SELECT 1");
        }
        talk.rows(3).done("SELECT 3");
        talk.sent();
        talk.ready(InTransaction);
        assert!(!talk.heard().contains('Z'), "the client waits");
        let seen = talk.sent();
        assert!(seen.starts_with("Q(portcullis_refused_"), "{seen}");
        assert_eq!(talk.refuses_marker(&seen).ready(Failed).heard(), "ZE");
        assert_eq!(talk.query("ROLLBACK").done("ROLLBACK").ready(Idle).heard(), "C(ROLLBACK) ZI");
    }
}

#[test]
fn a_client_that_flushes_is_skipped_to_its_sync() {
    let mut talk = two_rows();
    talk.parse("", "SELECT 1").bind("").execute().server(|out| out.put_slice(b"1\0\0\0\x042\0\0\0\x04"));
    talk.rows(3).done("SELECT 3").heard();
    talk.sent();
    assert_eq!(talk.execute().query("SELECT 2").sent(), "", "skipped until Sync");
    assert_eq!(talk.sync().ready(Idle).heard(), "ZI");
}

#[test]
fn portals_are_counted_over_all_their_parts() {
    let mut talk = two_rows();
    let suspended = |out: &mut BytesMut| out.put_slice(b"s\0\0\0\x04");
    talk.query("BEGIN").done("BEGIN").ready(InTransaction).heard();
    talk.parse("", "SELECT 1").run("").server(|out| out.put_slice(b"1\0\0\0\x042\0\0\0\x04"));
    talk.rows(1).server(suspended).ready(InTransaction);
    assert_eq!(talk.heard(), "1 2 D s ZT");
    talk.execute().sync().rows(1).server(suspended).ready(InTransaction);
    assert_eq!(talk.heard(), "D s ZT");
    talk.execute().sync().rows(1).server(suspended);
    assert_eq!(talk.heard(), TOO_MANY);
}

#[test]
fn what_writes_is_not_cut() {
    let mut talk = two_rows();
    talk.query("DELETE FROM storage.t RETURNING a").rows(3).done("DELETE 3").ready(Idle);
    assert_eq!(talk.heard(), "D D D C(DELETE 3) ZI");
    talk.query("PREPARE w AS DELETE FROM storage.t RETURNING a").done("PREPARE").ready(Idle);
    talk.query("EXECUTE w").rows(3).done("DELETE 3").ready(Idle);
    assert_eq!(talk.heard(), "C(PREPARE) ZI D D D C(DELETE 3) ZI");
    talk.query("PREPARE r AS SELECT 1").done("PREPARE").ready(Idle);
    talk.query("EXECUTE r").rows(3).done("SELECT 3").ready(Idle);
    assert_eq!(talk.heard(), format!("C(PREPARE) ZI D D {TOO_MANY} ZI"));
}

#[test]
fn what_stands_behind_a_cut_and_cannot_be_taken_back_ends_the_session() {
    let ends = |talk: &mut Talk| {
        let mut bytes = BytesMut::new();
        reply::command_complete(&mut bytes, "SELECT 3");
        let frame = cut_frame(&mut bytes, 1 << 20).unwrap().unwrap();
        let upstream = talk.upstream.as_mut().unwrap();
        talk.exchange.server_message(frame.tag(), frame.body(), upstream, &mut talk.to_client)
    };
    let mut talk = two_rows();
    talk.query("SELECT 1; COMMIT").rows(3);
    assert!(matches!(ends(&mut talk), Err(SessionEnd::ResultCut(_))));
    let mut talk = two_rows();
    talk.parse("", "SELECT 1").bind("").execute().execute().sync();
    talk.server(|out| out.put_slice(b"1\0\0\0\x042\0\0\0\x04")).rows(3);
    assert!(matches!(ends(&mut talk), Err(SessionEnd::ResultCut(_))));
}

const STALE: &str = "cached plan must not change result type";

impl Talk {
    /// A statement that the connection has prepared under a name, as the client's unnamed one.
    fn kept(sql: &str) -> (Self, String) {
        let mut talk = Self::new();
        for _ in 0..2 {
            talk.parse("", sql).run("");
            talk.server(|out| {
                reply::parse_complete(out);
                reply::bind_complete(out);
                reply::command_complete(out, "SELECT 0");
                reply::ready_for_query(out, Idle);
            });
            assert_eq!(talk.heard(), "1 2 C(SELECT 0) ZI");
        }
        let sent = talk.sent();
        let name = sent.rsplit("B(").next().unwrap().split(')').next().unwrap().to_owned();
        assert!(sent.starts_with(&format!("P(,{sql}) B() E S P({name},{sql})")) && !name.is_empty(), "{sent}");
        (talk, name)
    }

    fn answers(&mut self, write: impl FnOnce(&mut BytesMut)) -> String {
        self.server(write).heard()
    }
}

#[test]
fn an_unnamed_statement_that_comes_again_is_kept() {
    let (mut talk, name) = Talk::kept("SELECT 1");
    // From now on nothing is parsed. The answer to Parse comes with the server's next, not before.
    talk.parse("", "SELECT 1");
    assert_eq!((talk.heard().as_str(), talk.sent().as_str()), ("", ""));
    assert!(talk.exchange.working_since().is_none() && !talk.exchange.is_quiet());
    assert_eq!(talk.bind("").execute().sync().sent(), format!("B({name}) E S"));
    assert_eq!(talk.answers(reply::bind_complete), "1 2");
    talk.done("SELECT 0").ready(Idle).heard();
    // A Flush asks for it.
    talk.parse("", "SELECT 1").client(encode::flush);
    assert_eq!(talk.heard(), "1");
    talk.sync().sent();
    assert_eq!(talk.answers(|out| reply::ready_for_query(out, Idle)), "ZI");
    // A Sync behind it, and many of them in a row.
    talk.parse("", "SELECT 1").parse("", "SELECT 1").parse("", "SELECT 1").sync();
    assert_eq!(talk.heard(), "1 1");
    assert_eq!(talk.answers(|out| reply::ready_for_query(out, Idle)), "1 ZI");
    assert!(talk.exchange.is_quiet());
    // What comes once is not kept, nor what is in a transaction that changes where names lead.
    talk.sent();
    talk.query("BEGIN").done("BEGIN").ready(InTransaction);
    talk.query("SET LOCAL search_path = storage").done("SET").ready(InTransaction);
    talk.sent();
    for _ in 0..3 {
        assert_eq!(talk.parse("", "SELECT 1").sent(), "P(,SELECT 1)");
        talk.sync();
        talk.server(|out| {
            reply::parse_complete(out);
            reply::ready_for_query(out, InTransaction);
        });
        talk.sent();
    }
}

#[test]
fn a_plan_that_a_changed_table_has_made_stale_is_healed() {
    for sync_first in [true, false] {
        let (mut talk, name) = Talk::kept("SELECT * FROM storage.t");
        talk.parse("", "SELECT * FROM storage.t").bind("").execute();
        if sync_first {
            talk.sync();
        }
        talk.sent();
        assert_eq!(talk.fails(SqlState::FEATURE_NOT_SUPPORTED, STALE).heard(), "1");
        assert!(talk.exchange.awaits_repeat() && talk.exchange.take_schema_change());
        talk.ready(Idle);
        assert!(talk.exchange.must_repeat() && !talk.exchange.is_quiet());
        assert!(matches!(talk.perform(Message::Repeat), Performed::Done));
        if !sync_first {
            assert_eq!(talk.sent(), "S P(,SELECT * FROM storage.t) B() E");
            talk.sync();
            assert_eq!(talk.sent(), "S");
        } else {
            assert_eq!(talk.sent(), "P(,SELECT * FROM storage.t) B() E S");
        }
        let heard = talk.answers(|out| {
            reply::parse_complete(out);
            reply::bind_complete(out);
            reply::command_complete(out, "SELECT 1");
            reply::ready_for_query(out, Idle);
        });
        assert_eq!(heard, "2 C(SELECT 1) ZI");
        assert!(talk.exchange.is_quiet());
        // The stale one makes room when the next is prepared.
        talk.parse("", "SELECT * FROM storage.t");
        assert!(talk.sent().starts_with(&format!("C({name}) P(")), "{name}");
    }
}

#[test]
fn a_stale_plan_behind_something_that_has_happened_is_an_error() {
    // In a transaction.
    let (mut talk, _) = Talk::kept("SELECT * FROM storage.t");
    talk.query("BEGIN").done("BEGIN").ready(InTransaction).heard();
    talk.parse("", "SELECT * FROM storage.t").run("");
    let heard = talk.fails(SqlState::FEATURE_NOT_SUPPORTED, STALE).ready(Failed).heard();
    assert_eq!(heard, format!("1 E({STALE}) ZE"));
    // Behind a statement of the same pipeline, whose rows the client has.
    let (mut talk, _) = Talk::kept("SELECT * FROM storage.t");
    talk.parse("a", "SELECT 1").bind("a").execute();
    talk.parse("", "SELECT * FROM storage.t").run("");
    let heard = talk.answers(|out| {
        reply::parse_complete(out);
        reply::bind_complete(out);
        reply::command_complete(out, "SELECT 1");
        ErrorMessage::error(SqlState::FEATURE_NOT_SUPPORTED, STALE).encode_error(out);
        reply::ready_for_query(out, Idle);
    });
    assert_eq!(heard, format!("1 2 C(SELECT 1) 1 E({STALE}) ZI"));
    // With another pipeline on its way behind it.
    let (mut talk, _) = Talk::kept("SELECT * FROM storage.t");
    talk.parse("", "SELECT * FROM storage.t").run("").run("");
    let heard = talk.fails(SqlState::FEATURE_NOT_SUPPORTED, STALE).ready(Idle).heard();
    assert_eq!(heard, format!("1 E({STALE}) ZI"));
    assert!(!talk.exchange.must_repeat());
}

#[test]
fn a_name_whose_first_use_may_have_failed_is_not_in_use_yet() {
    let mut talk = Talk::new();
    talk.parse("s", "SELECT 1").sync();
    let statement = talk.judged(Surface::Parse, "SELECT 2").unwrap();
    let again = Message::Parse { name: "s".into(), permit: statement, types: vec![0, 0] };
    let Performed::Later(again) = talk.perform(again) else { panic!("it has to wait") };
    talk.fails(SqlState::SYNTAX_ERROR, "no").ready(Idle).heard();
    assert!(matches!(talk.perform(again), Performed::Done));
    assert!(talk.sent().ends_with("SELECT 2)"));
}

/// A session's settings reach its next connection in front of its statement, without a round trip of their own, and are
/// not sent where the connection has them already.
#[test]
fn settings_travel_with_the_statement() {
    let have =
        UpstreamState { settings: [("timezone".to_owned(), "UTC".to_owned())].into(), ..UpstreamState::default() };
    let mut talk = Talk::with(have);
    talk.exchange.settings = Settings::new([("timezone".to_owned(), "Asia/Tokyo".to_owned())].into());
    let moved = "Q(SELECT pg_catalog.set_config('timezone', 'Asia/Tokyo', false))";
    // Everything is on its way before the server has said a word.
    talk.parse("", "SELECT 1").run("");
    assert_eq!(talk.sent(), format!("{moved} P(,SELECT 1) B() E S"));
    let heard = talk.answers(|out| {
        reply::command_complete(out, "SELECT 1");
        reply::ready_for_query(out, Idle);
        reply::parse_complete(out);
        reply::bind_complete(out);
        reply::command_complete(out, "SELECT 1");
        reply::ready_for_query(out, Idle);
    });
    assert_eq!(heard, "1 2 C(SELECT 1) ZI");
    assert_eq!(talk.query("SELECT 2").sent(), "Q(SELECT 2)");
}
