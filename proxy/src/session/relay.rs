//! A session at work: moves bytes between its client and whatever connection it holds.
//!
//! One task, one `poll`: every turn reads what there is on both sides, deals with whole frames, and writes what either
//! side takes; nothing is written while the other side goes unread, and neither side is read while what it said before
//! still waits (`BACKLOG_BYTES`). Frames that need no look pass in pieces. What a message means is [`Exchange`]'s, whether
//! SQL may pass is the [guard](super::guard)'s; here are the sockets, the buffers, the lease and the limits of time.

mod client;
mod clock;
mod server;

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use portcullis_wire::{ErrorMessage, SqlState, TransactionStatus};
use tokio::io::AsyncWriteExt as _;
use tokio::time::Sleep;

use super::Greeted;
use super::auth::Identity;
use super::end::{SessionEnd, causes, lease_message};
use super::exchange::{Exchange, ExchangeLimits, Message};
use super::route::Route;
use super::stream::ClientStream;
use crate::budget::{Held, Permit};
use crate::cancel::Registered;
use crate::gate::Gate;
use crate::metrics::Direction;
use crate::pool::{Lease, LeaseError};
use crate::sessions::{Registration, Signal};
use crate::upstream::Destination;

/// What may wait to be written to one side before the other is read no more, bytes.
const BACKLOG_BYTES: usize = 64 * 1024;
/// Buffers of a session that are smaller together are not worth counting, bytes.
const BUFFERS_COUNT: usize = 16 * 1024;
/// A buffer that has grown beyond this is given back once it is empty, bytes.
const KEEP_BYTES: usize = 256 * 1024;

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
    /// The client has been told that it waits for a connection.
    wait_told: bool,
    judging: Option<Waiting<Message>>,
    message: Option<Message>,
    /// What is still to come of a client's frame that passes in pieces.
    client_piece: usize,
    /// What is still to come of a client's frame that is read away.
    client_skip: usize,
    /// What is still to come of a server's frame that passes in pieces.
    server_piece: usize,
    /// What is still to come of a server's frame that is dropped.
    server_drop: usize,
    /// Until our own cancel has arrived.
    settling: Option<Waiting<bool>>,
    /// The client's next frame has to wait for the server.
    client_waits: bool,
    /// The session's cancel key names the connection that it holds.
    cancellable: bool,
    /// The route is to be looked up again at the next idle point.
    refresh: bool,
    /// Nothing more has come from the client since the task was woken, and its waker waits there.
    client_blocked: bool,
    /// The same of the server.
    server_blocked: bool,
    /// The server has said that it is about to close.
    server_is_leaving: bool,
    /// When the task was woken for what happens now.
    now: Instant,
    last_activity: Instant,
    work_since: Option<Instant>,
    transaction_since: Option<Instant>,
    cancelled_at: Option<Instant>,
    timer: Pin<Box<Sleep>>,
    timer_at: Instant,
    /// The timer will wake the task.
    timer_armed: bool,
    pinned: Option<&'static str>,
    memory: Memory,
}

/// What the session holds of the process's memory, besides itself.
struct Memory {
    buffers: Permit,
    statements: Permit,
}

struct Client {
    stream: ClientStream,
    incoming: BytesMut,
    outgoing: BytesMut,
}

impl Relay {
    pub(super) fn new(gate: Arc<Gate>, stream: ClientStream, received: BytesMut, greeted: Greeted) -> Self {
        let Greeted { identity, route, startup, reported, cancel, registration } = greeted;
        let limits = ExchangeLimits {
            prepared_statements_max: gate.config.limits.prepared_statements_max,
            session_pooling: route.role().session_pooling(),
            keeps_unnamed: gate.config.pool.keep_unnamed_statements,
        };
        let now = Instant::now();
        let timer_at = now + Duration::from_secs(3600);
        Self {
            exchange: Exchange::new(limits, registration.handle().id, startup, reported),
            client: Client { stream, incoming: received, outgoing: BytesMut::new() },
            route: Arc::new(route),
            lease: None,
            leasing: None,
            wait_told: false,
            judging: None,
            message: None,
            client_piece: 0,
            client_skip: 0,
            server_piece: 0,
            server_drop: 0,
            settling: None,
            client_waits: false,
            cancellable: false,
            refresh: false,
            client_blocked: false,
            server_blocked: false,
            server_is_leaving: false,
            now,
            last_activity: now,
            work_since: None,
            transaction_since: None,
            cancelled_at: None,
            timer: Box::pin(tokio::time::sleep_until(timer_at.into())),
            timer_at,
            timer_armed: false,
            pinned: None,
            memory: Memory {
                buffers: gate.budget.hold(Held::Buffers, 0),
                statements: gate.budget.hold(Held::Statements, 0),
            },
            gate,
            identity,
            cancel,
            registration,
        }
    }

    /// Serves the session to its end, tells the client why it ended, and puts the connection where it belongs.
    pub(super) async fn run(mut self: Box<Self>) -> SessionEnd {
        let end = std::future::poll_fn(|cx| self.poll(cx)).await;
        if self.pinned.is_some() {
            self.gate.metrics.unpinned();
        }
        self.let_go();
        let mut out = std::mem::take(&mut self.client.outgoing);
        // Within a row that has not come to its end, the last message would be read as a part of the row.
        if self.server_piece == 0
            && let Some(message) = end.farewell()
        {
            message.encode_error(&mut out);
        }
        if !matches!(end, SessionEnd::ClientGone | SessionEnd::ClientIo(_)) {
            // Apart from the task, which has its size as long as the session lives.
            Box::pin(last_words(&mut self.client.stream, out)).await;
        }
        end
    }

    /// The session is over: its connection goes back if nothing runs on it, and is cancelled and closed otherwise.
    fn let_go(&mut self) {
        let Some(mut lease) = self.lease.take() else { return };
        lease.tainted |= self.exchange.take_taint() | self.exchange.is_pinned();
        let whole =
            self.client_piece == 0 && self.server_piece == 0 && self.server_drop == 0 && lease.outgoing.is_empty();
        if self.exchange.is_quiet() && whole && !self.server_is_leaving {
            lease.release(self.cancel.slot());
        } else {
            lease.abandon(self.cancel.slot());
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<SessionEnd> {
        self.registration.handle().listen(cx);
        self.cancel.slot().listen(cx);
        self.now = Instant::now();
        self.exchange.tick(self.now);
        (self.client_blocked, self.server_blocked) = (false, false);
        loop {
            let moved = match self.turn(cx) {
                Ok(false) => self.watch_the_clock(cx),
                moved => moved,
            };
            match moved {
                Ok(true) => {}
                Ok(false) => {
                    self.count_memory();
                    return Poll::Pending;
                }
                Err(end) => return Poll::Ready(end),
            }
        }
    }

    /// Declares what waits in the buffers, where that is more than the least that is counted.
    fn count_memory(&mut self) {
        let upstream = self.lease.as_ref().map_or(0, |lease| lease.incoming.capacity() + lease.outgoing.len());
        let bytes = self.client.incoming.capacity() + self.client.outgoing.capacity() + upstream;
        self.memory.buffers.resize(if bytes < BUFFERS_COUNT { 0 } else { bytes });
        if self.memory.statements.bytes() > 0 && self.exchange.statement_bytes() == 0 {
            self.memory.statements.resize(0);
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
        if !self.refresh && !handle.has_any() {
            return Ok(false);
        }
        if handle.has(Signal::End) {
            return Err(SessionEnd::LoginEnded);
        }
        if handle.has(Signal::Kill) {
            return Err(SessionEnd::Killed);
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
        self.route = Arc::new(Route::find(known, &snapshot, &self.gate.policies, &self.gate.verdicts)?);
        Ok(())
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
        self.gate.metrics.wait_seconds(self.now.saturating_duration_since(*since));
        self.leasing = None;
        match outcome {
            Ok(lease) => self.hold(lease),
            Err(error) => {
                tracing::warn!(workspace = %self.route.workspace, %error, cause = causes(&error), "no upstream connection");
                if matches!(error, LeaseError::WaitedTooLong | LeaseError::Paused | LeaseError::QueueFull) {
                    self.gate.metrics.limit_hit("pool");
                }
                self.cancel.slot().detach();
                self.refuse_waiting(lease_message(&error, false));
            }
        }
        Ok(true)
    }

    pub(super) fn hold(&mut self, lease: Lease) {
        self.exchange.meet(&lease, &mut self.client.outgoing);
        self.lease = Some(lease);
        self.server_blocked = false;
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

    /// Has the server told to stop what it runs for this session, and sends it nothing before that has arrived, so that
    /// it stops nothing that comes later.
    fn stop_the_statement(&mut self) {
        self.cancelled_at = Some(self.now);
        self.send_cancel();
        let slot = self.cancel.slot().clone();
        self.settling = Some(Box::pin(async move { slot.settled().await }));
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

    fn write_client(&mut self, cx: &mut Context<'_>) -> Turn {
        let before = self.client.outgoing.len();
        let Client { stream, outgoing, .. } = &mut self.client;
        match stream.poll_send(cx, outgoing) {
            Poll::Pending => Ok(false),
            Poll::Ready(Ok(moved)) => {
                if outgoing.is_empty() && outgoing.capacity() > KEEP_BYTES {
                    *outgoing = BytesMut::new();
                }
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
                && self.server_drop == 0
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
        } else if self.client.incoming.is_empty() && self.is_idle() && self.client.incoming.try_reclaim(1) {
            self.client.incoming = BytesMut::new();
        }
        false
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
                Some(backend) => {
                    let (server, search_path) = (to.server.clone(), to.search_path.clone());
                    gate.pools.lease(&Destination::new(server, to.database.clone(), backend, search_path)).await
                }
                None => Err(LeaseError::Upstream(error)),
            }
        }
        other => other,
    }
}

/// A client that does not take its last bytes has no use for them.
async fn last_words(stream: &mut ClientStream, mut out: BytesMut) {
    let last = async {
        stream.write_all_buf(&mut out).await?;
        stream.shutdown().await
    };
    let _ = tokio::time::timeout(super::FAREWELL_MAX, last).await;
}

/// The ways in which a socket says that its client has left without a word.
fn is_hang_up(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
}
