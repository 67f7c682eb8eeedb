//! A session at work: moves bytes between its client and whatever connection it holds.
//!
//! One task, one `poll`: every turn reads what there is on both sides, deals with whole frames, and writes what either
//! side takes; nothing is written while the other side goes unread, and neither side is read while what it said before
//! still waits (`BACKLOG_BYTES`). Frames that need no look pass in pieces. What a message means is [`Exchange`]'s.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use portcullis_policy::{Denial, Permit, Surface, Target, Verdict, judge, needs_big_stack};
use portcullis_wire::{ErrorMessage, Frame, Frontend, Header, SqlState, TransactionStatus};
use tokio::time::Sleep;

use super::Greeted;
use super::auth::Identity;
use super::buffer::poll_drain;
use super::end::{SessionEnd, lease_message};
use super::exchange::{Exchange, ExchangeLimits, Handled, Message, Performed, Surroundings};
use super::route::Route;
use super::startup::ClientStream;
use crate::cancel::Registered;
use crate::gate::Gate;
use crate::metrics::Direction;
use crate::pool::{Lease, LeaseError};
use crate::prepared::Statement;
use crate::sessions::{Doing, Registration, Signal};
use crate::upstream::{Destination, READ_BYTES};

/// What may wait to be written to one side before the other is read no more, bytes.
const BACKLOG_BYTES: usize = 64 * 1024;
/// The largest message of a server that is held as a whole; longer ones of these kinds do not occur.
const HELD_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Any message of a server, as far as the protocol's length field goes.
const SERVER_FRAME_BYTES_MAX: usize = i32::MAX as usize;
/// How long a statement may take to end after it was cancelled for its time limit.
const CANCEL_GRACE: Duration = Duration::from_secs(10);

type Waiting<T> = Pin<Box<dyn Future<Output = T> + Send>>;
type Turn = Result<bool, SessionEnd>;

/// A session past its login.
pub(super) struct Relay {
    gate: Arc<Gate>,
    identity: Identity,
    route: Arc<Route>,
    cancel: Registered,
    registration: Registration,
    exchange: Exchange,
    client: Client,
    lease: Option<Lease>,
    leasing: Option<(Waiting<Result<Lease, LeaseError>>, Instant)>,
    judging: Option<Waiting<Message>>,
    message: Option<Message>,
    /// What is still to come of a client's frame that passes in pieces.
    client_piece: usize,
    /// What is still to come of a client's frame that is read away.
    client_skip: usize,
    /// What is still to come of a server's frame that passes in pieces.
    server_piece: usize,
    /// The client's next frame has to wait for the server.
    client_waits: bool,
    /// The session's cancel key names the connection that it holds.
    cancellable: bool,
    /// The route is to be looked up again at the next idle point.
    refresh: bool,
    /// The server has said that it is about to close.
    server_is_leaving: bool,
    last_activity: Instant,
    work_since: Option<Instant>,
    cancelled_at: Option<Instant>,
    timer: Pin<Box<Sleep>>,
    timer_at: Instant,
    pinned: Option<&'static str>,
}

struct Client {
    stream: ClientStream,
    incoming: BytesMut,
    outgoing: BytesMut,
    unflushed: bool,
}

impl Relay {
    pub(super) fn new(gate: Arc<Gate>, stream: ClientStream, received: BytesMut, greeted: Greeted) -> Self {
        let Greeted { identity, route, startup, reported, cancel, registration } = greeted;
        let limits = ExchangeLimits {
            prepared_statements_max: gate.config.limits.prepared_statements_max,
            session_pooling: route.role.session_pooling(),
        };
        let now = Instant::now();
        let timer_at = now + Duration::from_secs(3600);
        Self {
            exchange: Exchange::new(limits, startup, reported),
            client: Client { stream, incoming: received, outgoing: BytesMut::new(), unflushed: false },
            route: Arc::new(route),
            lease: None,
            leasing: None,
            judging: None,
            message: None,
            client_piece: 0,
            client_skip: 0,
            server_piece: 0,
            client_waits: false,
            cancellable: false,
            refresh: false,
            server_is_leaving: false,
            last_activity: now,
            work_since: None,
            cancelled_at: None,
            timer: Box::pin(tokio::time::sleep_until(timer_at.into())),
            timer_at,
            pinned: None,
            gate,
            identity,
            cancel,
            registration,
        }
    }

    /// Serves the session to its end, tells the client why it ended, and puts the connection where it belongs.
    pub(super) async fn run(mut self) -> SessionEnd {
        let end = std::future::poll_fn(|cx| self.poll(cx)).await;
        if self.pinned.is_some() {
            self.gate.metrics.unpinned();
        }
        self.let_go();
        let mut out = std::mem::take(&mut self.client.outgoing);
        if let Some(message) = end.farewell() {
            message.encode_error(&mut out);
        }
        let last = async {
            use tokio::io::AsyncWriteExt;
            self.client.stream.write_all_buf(&mut out).await?;
            self.client.stream.shutdown().await
        };
        if !matches!(end, SessionEnd::ClientGone | SessionEnd::ClientIo(_)) {
            // A client that does not take its last bytes has no use for them.
            let _ = tokio::time::timeout(super::FAREWELL_MAX, last).await;
        }
        end
    }

    /// The session is over: its connection goes back if nothing runs on it, and is cancelled and closed otherwise.
    fn let_go(&mut self) {
        let Some(mut lease) = self.lease.take() else { return };
        lease.tainted |= self.exchange.take_taint() | self.exchange.is_pinned();
        let whole = self.client_piece == 0 && self.server_piece == 0 && lease.outgoing.is_empty();
        if self.exchange.is_quiet() && whole && !self.server_is_leaving {
            lease.release(self.cancel.slot());
        } else {
            lease.abandon(self.cancel.slot());
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<SessionEnd> {
        self.registration.handle().listen(cx);
        self.cancel.slot().listen(cx);
        loop {
            match self.turn(cx) {
                Ok(true) => {}
                Ok(false) => break,
                Err(end) => return Poll::Ready(end),
            }
        }
        match self.watch_the_clock(cx) {
            Ok(()) => Poll::Pending,
            Err(end) => Poll::Ready(end),
        }
    }

    /// One round over both sides; `true` when anything moved.
    fn turn(&mut self, cx: &mut Context<'_>) -> Turn {
        let mut moved = self.heed_signals()?;
        moved |= self.take_lease(cx)?;
        moved |= self.heed_cancel();
        moved |= self.read_client(cx)?;
        moved |= self.serve_client(cx)?;
        moved |= self.read_server(cx)?;
        self.become_cancellable();
        moved |= self.write_server(cx)?;
        moved |= self.write_client(cx)?;
        moved |= self.rest();
        Ok(moved)
    }

    fn heed_signals(&mut self) -> Turn {
        let handle = self.registration.handle();
        if handle.has(Signal::End) {
            return Err(SessionEnd::LoginEnded);
        }
        if handle.has(Signal::Hurry) {
            return Err(SessionEnd::Draining);
        }
        self.refresh |= handle.has(Signal::Refresh);
        let idle = self.is_idle();
        if idle && handle.has(Signal::Drain) && self.client.outgoing.is_empty() {
            return Err(SessionEnd::Draining);
        }
        if idle && self.refresh {
            self.refresh = false;
            self.look_up_route()?;
        }
        Ok(false)
    }

    /// Between transactions, with nothing on its way.
    fn is_idle(&self) -> bool {
        let status = self.lease.as_ref().map_or(TransactionStatus::Idle, |lease| lease.status);
        self.exchange.is_quiet()
            && status == TransactionStatus::Idle
            && self.message.is_none()
            && self.judging.is_none()
            && self.leasing.is_none()
            && self.client_piece == 0
    }

    fn look_up_route(&mut self) -> Result<(), SessionEnd> {
        let snapshot = self.gate.reader.snapshot();
        let login = self.identity.login();
        let known = snapshot.login(&login.username).filter(|now| now.id == login.id).ok_or(SessionEnd::LoginEnded)?;
        self.route = Arc::new(Route::find(known, &snapshot, &self.gate.policies)?);
        Ok(())
    }

    fn read_client(&mut self, cx: &mut Context<'_>) -> Turn {
        let behind = self.lease.as_ref().is_some_and(|lease| lease.outgoing.len() >= BACKLOG_BYTES);
        if behind || self.client.outgoing.len() >= BACKLOG_BYTES {
            return Ok(false);
        }
        if self.client_waits && self.client.incoming.len() >= BACKLOG_BYTES {
            return Ok(false);
        }
        self.client.incoming.reserve(READ_BYTES);
        let stream = Pin::new(&mut self.client.stream);
        match tokio_util::io::poll_read_buf(stream, cx, &mut self.client.incoming) {
            Poll::Pending => Ok(false),
            Poll::Ready(Ok(0)) => Err(SessionEnd::ClientGone),
            Poll::Ready(Ok(count)) => {
                self.gate.metrics.bytes(Direction::FromClient, count as u64);
                self.last_activity = Instant::now();
                Ok(true)
            }
            Poll::Ready(Err(error)) if is_hang_up(&error) => Err(SessionEnd::ClientGone),
            Poll::Ready(Err(error)) => Err(SessionEnd::ClientIo(error)),
        }
    }

    /// Deals with the frames that the client has sent, as far as they are whole and may be dealt with now.
    fn serve_client(&mut self, cx: &mut Context<'_>) -> Turn {
        let mut moved = false;
        self.client_waits = true;
        loop {
            if let Some(judging) = &mut self.judging {
                let Poll::Ready(message) = judging.as_mut().poll(cx) else { return Ok(moved) };
                self.judging = None;
                self.message = Some(message);
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
    fn judge(&mut self, surface: Surface, sql: &[u8], parse: Option<(String, Vec<u8>)>) {
        if !needs_big_stack(sql) {
            self.message = Some(verdict(&self.gate, &self.route, surface, sql, parse));
            return;
        }
        let (gate, route, sql) = (self.gate.clone(), self.route.clone(), sql.to_vec());
        self.judging = Some(Box::pin(async move {
            let turn = gate.long_texts.turn(&route.workspace).await;
            let (name, simple) = (parse.as_ref().map(|(name, _)| name.clone()), parse.is_none());
            let judged = tokio::task::spawn_blocking(move || {
                let _turn = turn;
                verdict(&gate, &route, surface, &sql, parse)
            });
            judged.await.unwrap_or_else(|_| {
                let error =
                    Box::new(ErrorMessage::error(SqlState::INTERNAL_ERROR, "the statement could not be judged"));
                match name {
                    Some(name) if !simple => Message::RefusedParse { name, error },
                    _ => Message::RefusedQuery(error),
                }
            })
        }));
    }

    /// Hands the waiting message to the exchange; `false` when it has to go on waiting.
    fn perform(&mut self) -> Turn {
        if self.leasing.is_some() {
            return Ok(false);
        }
        let Some(message) = self.message.take() else { return Ok(false) };
        let (gate, route) = (self.gate.clone(), self.route.clone());
        let rejudge = |statement: &Statement| rejudge(&gate, &route, statement);
        let around = Surroundings {
            rejudge: &rejudge,
            policy: &route.policy,
            schema_epoch: gate.pools.schema_epoch(&route.destination),
        };
        let upstream = self.lease.as_mut().map(|lease| lease.state_mut());
        match self.exchange.perform(message, upstream, &mut self.client.outgoing, &around) {
            Performed::Done => {
                if let Some(error) = self.lease.as_mut().and_then(|lease| lease.outgoing.take_error()) {
                    return Err(error.into());
                }
                if self.work_since.is_none() && self.exchange.working_since().is_some() {
                    self.work_since = Some(Instant::now());
                    self.registration.handle().set_doing(Doing::Active);
                    self.registration.handle().count_statement();
                }
                self.note_pin();
                Ok(true)
            }
            Performed::NeedsLease(message) => {
                self.message = Some(message);
                let (gate, route) = (self.gate.clone(), self.route.clone());
                self.registration.handle().set_doing(Doing::Waiting);
                self.cancel.slot().prepare();
                let leasing = async move { lease(&gate, &route.destination).await };
                self.leasing = Some((Box::pin(leasing), Instant::now()));
                Ok(true)
            }
            Performed::Later(message) => {
                self.message = Some(message);
                Ok(false)
            }
            Performed::Broken(end) => Err(end),
        }
    }

    fn note_pin(&mut self) {
        let pin = self.exchange.pin();
        if pin == self.pinned {
            return;
        }
        match (self.pinned, pin) {
            (None, Some(reason)) => self.gate.metrics.pinned(reason),
            (Some(_), None) => self.gate.metrics.unpinned(),
            _ => {}
        }
        self.pinned = pin;
        self.registration.handle().set_pin(pin);
    }

    fn take_lease(&mut self, cx: &mut Context<'_>) -> Turn {
        let Some((leasing, since)) = &mut self.leasing else { return Ok(false) };
        let Poll::Ready(outcome) = leasing.as_mut().poll(cx) else { return Ok(false) };
        self.gate.metrics.wait_seconds(since.elapsed());
        self.leasing = None;
        match outcome {
            Ok(lease) => {
                self.exchange.meet(&lease, &mut self.client.outgoing);
                self.lease = Some(lease);
            }
            Err(error) => {
                tracing::warn!(workspace = %self.route.workspace, %error, cause = cause(&error), "no upstream connection");
                if matches!(error, LeaseError::WaitedTooLong | LeaseError::QueueFull) {
                    self.gate.metrics.limit_hit("pool");
                }
                self.cancel.slot().detach();
                self.refuse_waiting(lease_message(&error, false));
            }
        }
        Ok(true)
    }

    /// A cancel that comes while the session waits for a connection ends the wait.
    fn heed_cancel(&mut self) -> bool {
        let cancelled = self.leasing.is_some() && self.cancel.slot().was_cancelled();
        if cancelled {
            self.leasing = None;
            self.cancel.slot().detach();
            let text = "canceling statement due to user request";
            self.refuse_waiting(ErrorMessage::error(SqlState::QUERY_CANCELED, text));
        }
        cancelled
    }

    /// The connection runs this session's own statements now, not the proxy's that bring its settings: from here on
    /// a cancel may reach it.
    fn become_cancellable(&mut self) {
        if self.cancellable || self.exchange.is_moving_settings() {
            return;
        }
        let Some(target) = self.lease.as_ref().and_then(|lease| lease.cancel_target()) else { return };
        self.cancellable = true;
        if self.cancel.slot().attach(target) {
            self.send_cancel();
        }
    }

    /// Has the server told to stop what it runs for this session at this moment.
    fn send_cancel(&self) {
        let Ok(aimed) = self.cancel.slot().aim() else { return };
        let gate = self.gate.clone();
        tokio::spawn(async move {
            let outcome = aimed.send().await;
            gate.metrics.cancel(outcome.label());
        });
    }

    /// The message that waited for a connection gets an error instead.
    fn refuse_waiting(&mut self, error: ErrorMessage) {
        let error = Box::new(error);
        self.message = match self.message.take() {
            Some(Message::Query(_) | Message::RefusedQuery(_)) => Some(Message::RefusedQuery(error)),
            Some(_) => Some(Message::Refused(error)),
            None => None,
        };
    }

    fn read_server(&mut self, cx: &mut Context<'_>) -> Turn {
        if self.client.outgoing.len() >= BACKLOG_BYTES {
            return Ok(false);
        }
        let Some(lease) = &mut self.lease else { return Ok(false) };
        let moved = match lease.poll_read(cx) {
            Poll::Pending => false,
            Poll::Ready(Ok(0)) => {
                return Err(if self.server_is_leaving { SessionEnd::UpstreamFatal } else { SessionEnd::UpstreamGone });
            }
            Poll::Ready(Ok(_)) => true,
            Poll::Ready(Err(_)) if self.server_is_leaving => return Err(SessionEnd::UpstreamFatal),
            Poll::Ready(Err(error)) => return Err(SessionEnd::Upstream(error.into())),
        };
        if moved {
            self.serve_server()?;
        }
        Ok(moved)
    }

    /// Deals with the frames that the server has sent.
    fn serve_server(&mut self) -> Result<(), SessionEnd> {
        let Some(mut lease) = self.lease.take() else { return Ok(()) };
        let mut incoming = std::mem::take(&mut lease.incoming);
        let result = self.server_frames(&mut lease, &mut incoming);
        lease.incoming = incoming;
        lease.tainted |= self.exchange.take_taint();
        if self.exchange.take_schema_change() {
            self.gate.pools.schema_changed(&self.route.destination);
        }
        self.lease = Some(lease);
        result
    }

    fn server_frames(&mut self, lease: &mut Lease, incoming: &mut BytesMut) -> Result<(), SessionEnd> {
        loop {
            if self.server_piece > 0 {
                let count = self.server_piece.min(incoming.len());
                if count == 0 {
                    return Ok(());
                }
                self.client.outgoing.extend_from_slice(&incoming[..count]);
                incoming.advance(count);
                self.server_piece -= count;
                continue;
            }
            let Some(header) = Header::peek(incoming, SERVER_FRAME_BYTES_MAX)
                .map_err(|_| SessionEnd::UpstreamMessage(incoming.first().copied().unwrap_or(0)))?
            else {
                return Ok(());
            };
            if self.exchange.passes_in_pieces(header.tag) {
                self.server_piece = header.frame_len();
                continue;
            }
            if header.body_len > HELD_BYTES_MAX {
                return Err(SessionEnd::UpstreamMessage(header.tag));
            }
            if incoming.len() < header.frame_len() {
                return Ok(());
            }
            let frame = incoming.split_to(header.frame_len());
            let out = &mut self.client.outgoing;
            match self.exchange.server_message(header.tag, &frame[Header::LEN..], lease.state_mut(), out)? {
                Handled::Forward => out.extend_from_slice(&frame),
                Handled::Swallowed => {}
                Handled::Fatal => {
                    out.extend_from_slice(&frame);
                    self.server_is_leaving = true;
                }
            }
            if header.tag == b'Z' {
                self.statement_ended(lease.status);
            }
        }
    }

    fn statement_ended(&mut self, status: TransactionStatus) {
        self.last_activity = Instant::now();
        self.cancelled_at = None;
        if self.exchange.working_since().is_some() {
            return;
        }
        if let Some(since) = self.work_since.take() {
            self.gate.metrics.query_seconds(since.elapsed());
        }
        let doing = if status == TransactionStatus::Idle { Doing::Idle } else { Doing::IdleInTransaction };
        self.registration.handle().set_doing(doing);
        self.note_pin();
    }

    fn write_server(&mut self, cx: &mut Context<'_>) -> Turn {
        let Some(lease) = &mut self.lease else { return Ok(false) };
        match lease.poll_flush(cx) {
            Poll::Pending => Ok(false),
            Poll::Ready(Ok(moved)) => Ok(moved),
            // What the server said last is still to be read, and tells more than a broken pipe.
            Poll::Ready(Err(_)) if self.server_is_leaving => Err(SessionEnd::UpstreamFatal),
            Poll::Ready(Err(error)) => Err(SessionEnd::Upstream(error.into())),
        }
    }

    fn write_client(&mut self, cx: &mut Context<'_>) -> Turn {
        let before = self.client.outgoing.len();
        let Client { stream, outgoing, unflushed, .. } = &mut self.client;
        match poll_drain(stream, outgoing, unflushed, cx) {
            Poll::Pending => Ok(false),
            Poll::Ready(Ok(moved)) => {
                self.gate.metrics.bytes(Direction::ToClient, (before - self.client.outgoing.len()) as u64);
                Ok(moved)
            }
            Poll::Ready(Err(error)) if is_hang_up(&error) => Err(SessionEnd::ClientGone),
            Poll::Ready(Err(error)) => Err(SessionEnd::ClientIo(error)),
        }
    }

    /// Between transactions the connection goes back, and an idle session keeps no buffers.
    fn rest(&mut self) -> bool {
        if let Some(lease) = &self.lease {
            let whole = self.client_piece == 0
                && self.server_piece == 0
                && lease.outgoing.is_empty()
                && lease.incoming.is_empty()
                && !self.server_is_leaving;
            let next_waits = self.message.is_some() || self.judging.is_some();
            if whole && !next_waits && self.exchange.may_release(lease.status) {
                if let Some(mut lease) = self.lease.take() {
                    lease.tainted |= self.exchange.take_taint();
                    self.cancellable = false;
                    lease.release(self.cancel.slot());
                }
                return true;
            }
        } else if self.client.incoming.is_empty() && self.client.incoming.capacity() > 0 && self.is_idle() {
            self.client.incoming = BytesMut::new();
        }
        false
    }

    /// Arms the timer for the nearest limit, and acts on one that is over.
    fn watch_the_clock(&mut self, cx: &mut Context<'_>) -> Result<(), SessionEnd> {
        loop {
            let now = Instant::now();
            let Some(deadline) = self.deadline() else { return Ok(()) };
            if deadline <= now {
                self.deadline_passed(now)?;
                continue; // ends: each limit either ends the session or moves its own deadline on
            }
            // A timer that fires too early costs less than one that is set anew for every statement.
            if deadline < self.timer_at || self.timer_at <= now {
                self.timer_at = deadline;
                self.timer.as_mut().reset(deadline.into());
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                return Ok(());
            }
            self.timer_at = now;
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let limits = &self.gate.config.limits;
        if let Some(cancelled) = self.cancelled_at {
            return Some(cancelled + CANCEL_GRACE);
        }
        if self.leasing.is_some() || self.judging.is_some() {
            return None; // both have limits of their own
        }
        if let Some(since) = self.exchange.working_since() {
            return Some(since + self.statement_timeout());
        }
        let in_transaction = self.lease.as_ref().is_some_and(|lease| {
            lease.status != TransactionStatus::Idle || !self.exchange.is_quiet() || self.exchange.in_copy()
        });
        let (limit, from) = match in_transaction {
            true => (limits.idle_in_transaction_timeout_ms, self.last_activity),
            false => (limits.idle_timeout_ms, self.last_activity),
        };
        Some(from + Duration::from_millis(limit))
    }

    fn statement_timeout(&self) -> Duration {
        let general = Duration::from_millis(self.gate.config.limits.statement_timeout_ms);
        let role = self.route.role.query_timeout_ms().map(Duration::from_millis);
        [self.route.query_timeout, role].into_iter().flatten().fold(general, Duration::min)
    }

    fn deadline_passed(&mut self, now: Instant) -> Result<(), SessionEnd> {
        if self.cancelled_at.is_some() {
            return Err(SessionEnd::StatementStuck);
        }
        if self.exchange.working_since().is_some() {
            self.gate.metrics.limit_hit("statement_timeout");
            let limit = self.statement_timeout();
            self.exchange.cancelled_because(statement_timeout(limit));
            self.cancelled_at = Some(now);
            self.send_cancel();
            return Ok(());
        }
        if self.lease.as_ref().is_some_and(|lease| lease.status != TransactionStatus::Idle || !self.exchange.is_quiet())
        {
            self.gate.metrics.limit_hit("idle_in_transaction_timeout");
            return Err(SessionEnd::IdleInTransactionTimeout);
        }
        self.gate.metrics.limit_hit("idle_timeout");
        Err(SessionEnd::IdleTimeout)
    }
}

/// A connection for `to`. When the server does not take the credentials, they may just have been rotated: the catalog
/// is asked once, and the session's next look-up of its route finds the newer ones.
pub(super) async fn lease(gate: &Gate, to: &Destination) -> Result<Lease, LeaseError> {
    match gate.pools.lease(to).await {
        Err(LeaseError::Upstream(error)) if error.is_authentication() => {
            gate.look_again().await;
            let newer = gate
                .reader
                .snapshot()
                .workspace(&to.backend.workspace)
                .and_then(|entry| entry.backend.get(&to.backend.kind).cloned())
                .filter(|newer| newer.generation != to.backend.generation);
            match newer {
                Some(backend) => gate.pools.lease(&Destination { backend, ..to.clone() }).await,
                None => Err(LeaseError::Upstream(error)),
            }
        }
        other => other,
    }
}

fn verdict(gate: &Gate, route: &Route, surface: Surface, sql: &[u8], parse: Option<(String, Vec<u8>)>) -> Message {
    let began = Instant::now();
    let verdict = ask(route, surface, sql);
    gate.metrics.verdict_seconds(began.elapsed());
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

fn ask(route: &Route, surface: Surface, sql: &[u8]) -> Verdict {
    let [real, alias] = &route.database_names;
    judge(&route.role, surface, sql, &Target { database_names: &[real, alias] })
}

fn denied(gate: &Gate, route: &Route, denial: &Denial) -> Box<ErrorMessage> {
    gate.metrics.statement_refused(denial.rule);
    tracing::info!(workspace = %route.workspace, kind = route.role.kind(), rule = denial.rule, "statement refused");
    Box::new(error_of(denial, ErrorMessage::error))
}

fn rejudge(gate: &Gate, route: &Route, statement: &Statement) -> Result<Permit, Box<ErrorMessage>> {
    match ask(route, Surface::Parse, statement.permit.text().as_bytes()) {
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

fn statement_timeout(limit: Duration) -> ErrorMessage {
    ErrorMessage::error(SqlState::QUERY_CANCELED, "canceling statement due to statement timeout")
        .detail(format!("The gate's limit for one statement is {} ms.", limit.as_millis()))
        .hint("Make the statement smaller, or have query_timeout_ms raised for the workspace.")
}

fn too_long(most: usize) -> ErrorMessage {
    ErrorMessage::error(SqlState::PROGRAM_LIMIT_EXCEEDED, format!("the text is longer than {most} bytes"))
        .hint("Send data as parameters or by COPY … FROM STDIN.")
}

fn function_call() -> ErrorMessage {
    ErrorMessage::error(SqlState::FEATURE_NOT_SUPPORTED, "function calls by OID are not supported")
        .detail("The message FunctionCall bypasses SQL; drivers use it for large objects (lo_open and the like).")
        .hint("Store large values in bytea columns.")
}

fn cause(error: &LeaseError) -> Option<String> {
    std::error::Error::source(error).map(ToString::to_string)
}

/// The ways in which a socket says that its client has left without a word.
fn is_hang_up(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
}
