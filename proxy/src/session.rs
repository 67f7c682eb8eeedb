//! One client connection from its first byte to its end: the lines of [`serve`], in the order in which things happen.

mod auth;
pub mod buffer;
mod end;
mod exchange;
mod guard;
mod relay;
pub mod route;
pub mod settings;
mod startup;
mod stream;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use jiff::Timestamp;
use portcullis_policy::judge_setting;
use portcullis_wire::backend::encode as reply;
use portcullis_wire::{CancelKey, ErrorMessage, SqlState, StartupMessage, TransactionStatus, parse_options};
use tokio::io::{AsyncWrite, AsyncWriteExt};

use crate::budget::{CONNECTION_BYTES, Held};
use crate::cancel::Cancelled;
use crate::door::{Arrival, Peer};
use crate::gate::Gate;
use crate::pool::LeaseError;
use crate::reported::Reported;
use crate::sessions::Signal;
use crate::throttle::Network;
use auth::{Attempt, Identity};
use end::SessionEnd;
pub(crate) use end::causes;
use relay::Relay;
use route::Route;
use settings::Values;
use startup::{Negotiated, Opened, Refused};
use stream::ClientStream;

/// How long a client has to take its last message.
const FAREWELL_MAX: Duration = Duration::from_secs(2);
/// The newest minor version of protocol 3 that is spoken.
const MINOR_MAX: u16 = 2;

/// Serves one connection.
pub async fn run(arrival: Arrival, gate: Arc<Gate>) {
    let peer = arrival.peer;
    let began = Instant::now();
    let end = serve(arrival, &gate, began).await;
    if end.is_remarkable() {
        tracing::info!(%peer, reason = end.label(), cause = causes(&end), "{end}");
    } else {
        tracing::debug!(%peer, reason = end.label(), "{end}");
    }
}

async fn serve(arrival: Arrival, gate: &Arc<Gate>, began: Instant) -> SessionEnd {
    let _memory = gate.budget.hold(Held::Connections, CONNECTION_BYTES);
    // What a login needs lives apart from the task and ends with it: a session's task keeps the size of its largest
    // step for as long as it lives.
    let relay = match Box::pin(begin(arrival, gate, began)).await {
        Ok(relay) => relay,
        Err(end) => return end,
    };
    gate.metrics.handshake_seconds(began.elapsed());
    gate.metrics.login_succeeded();
    gate.metrics.session_opened();
    let end = relay.run().await;
    gate.metrics.session_ended(end.label());
    end
}

/// Everything before the session, under one deadline.
async fn begin(arrival: Arrival, gate: &Arc<Gate>, began: Instant) -> Result<Box<Relay>, SessionEnd> {
    let peer = arrival.peer;
    let deadline = began + Duration::from_millis(gate.config.limits.connect_timeout_ms);
    let login = async {
        // Who says nothing takes nobody's place.
        arrival.socket.heard().await.map_err(SessionEnd::ClientIo)?;
        let _place = gate.handshakes.place(Network::of(peer)).await;
        let opened = match startup::negotiate(arrival, &gate.tls).await {
            Ok(Negotiated::Session(opened)) => *opened,
            Ok(Negotiated::Cancel(key, stream)) => {
                cancel(&key, peer, gate).await;
                return Err(say_why(Refused { end: SessionEnd::CancelRequest, stream: Some(stream) }).await);
            }
            Err(refused) => return Err(say_why(refused).await),
        };
        log_in(opened, peer, gate).await
    };
    let login = async {
        tokio::select! {
            () = gate.draining.cancelled() => Err(SessionEnd::Draining),
            outcome = login => outcome,
        }
    };
    match tokio::time::timeout_at(deadline.into(), login).await {
        Ok(outcome) => outcome.inspect_err(|end| count_failure(gate, end)),
        Err(_) => {
            gate.metrics.handshake_failed("deadline");
            Err(SessionEnd::LoginTimeout)
        }
    }
}

/// Does what a CancelRequest asks for, if its key is somebody's and its network has not guessed too often. Nothing is
/// answered whatever becomes of it.
async fn cancel(key: &CancelKey, peer: Peer, gate: &Gate) {
    let network = Network::of(peer);
    let outcome = if gate.throttle.cancels_are_used_up(network, gate.uptime()) {
        Cancelled::Throttled
    } else {
        gate.cancels.cancel(key).await
    };
    if outcome == Cancelled::UnknownKey && gate.throttle.cancel_failed(network, gate.uptime()) {
        tracing::warn!(%network, "too many cancel requests with unknown keys");
    }
    gate.metrics.cancel(outcome.label());
}

fn count_failure(gate: &Gate, end: &SessionEnd) {
    match end {
        SessionEnd::CancelRequest => {}
        SessionEnd::LoginFailed { .. } => gate.metrics.login_failed("password"),
        SessionEnd::Scram(_)
        | SessionEnd::NoDatabase { .. }
        | SessionEnd::Setting(_)
        | SessionEnd::WorkspaceClosed(_)
        | SessionEnd::CatalogAway
        | SessionEnd::TooManySessions { .. }
        | SessionEnd::Throttled(_)
        | SessionEnd::NoMemory(_)
        | SessionEnd::Lease(_) => gate.metrics.login_failed(end.label()),
        _ => gate.metrics.handshake_failed(end.label()),
    }
}

/// Tells a connection that never became a session why, where there is something to say, and ends its stream in order:
/// libpq reports a TLS stream that ends without close_notify as a cancel that failed.
async fn say_why(refused: Refused) -> SessionEnd {
    if let Some(mut stream) = refused.stream {
        farewell(&mut stream, BytesMut::new(), &refused.end).await;
    }
    refused.end
}

/// What is left to write, the last message, and an orderly end of the stream.
async fn farewell<S: AsyncWrite + Unpin>(stream: &mut S, mut out: BytesMut, end: &SessionEnd) {
    end.write_farewell(&mut out);
    let last = async {
        stream.write_all_buf(&mut out).await?;
        stream.shutdown().await
    };
    // A client that does not take it has no use for it.
    let _ = tokio::time::timeout(FAREWELL_MAX, last).await;
}

/// Authentication, route, startup settings, a place among the workspace's sessions, the greeting.
async fn log_in(opened: Opened, peer: Peer, gate: &Arc<Gate>) -> Result<Box<Relay>, SessionEnd> {
    let Opened { mut stream, mut received, message, binding, certificate } = opened;
    let attempt = Attempt {
        user: message.user(),
        binding: &binding,
        certificate: certificate.as_ref(),
        network: Network::of(peer),
    };
    let mut out = BytesMut::new();
    match greet(&mut stream, &mut received, &mut out, &message, &attempt, peer, gate).await {
        Ok(greeted) => Ok(Box::new(Relay::new(gate.clone(), stream, received, greeted))),
        Err(end) => {
            farewell(&mut stream, out, &end).await;
            Err(end)
        }
    }
}

/// What a session begins with.
struct Greeted {
    identity: Identity,
    route: Route,
    startup: Values,
    reported: Reported,
    cancel: crate::cancel::Registered,
    registration: crate::sessions::Registration,
}

async fn greet(
    stream: &mut ClientStream,
    received: &mut BytesMut,
    out: &mut BytesMut,
    message: &StartupMessage,
    attempt: &Attempt<'_>,
    peer: Peer,
    gate: &Arc<Gate>,
) -> Result<Greeted, SessionEnd> {
    let minor = message.minor.min(MINOR_MAX);
    if message.needs_negotiation() {
        reply::negotiate_protocol_version(out, minor, &message.protocol_options);
    }
    gate.budget.has_room()?;
    if !gate.reader.ready() || gate.reader.age() > Duration::from_millis(gate.config.catalog.snapshot_age_max_ms) {
        return Err(SessionEnd::CatalogAway);
    }
    let identity = auth::authenticate(stream, received, out, attempt, gate).await?;
    let snapshot = gate.reader.snapshot();
    let route = Route::find(identity.login(), &snapshot, &gate.policies, &gate.verdicts)?;
    if !route.opens(message.database()) {
        return Err(SessionEnd::NoDatabase { database: message.database().to_owned() });
    }
    let startup = startup_settings(message, &route)?;
    let most = route.sessions_max.unwrap_or(gate.config.limits.max_connections_default);
    let registration = gate
        .sessions
        .register(identity.login(), &route.workspace, peer, most)
        .ok_or(SessionEnd::TooManySessions { most })?;
    // A drain that began before this line has told only the sessions that were there.
    if gate.draining.is_cancelled() {
        return Err(SessionEnd::Draining);
    }
    // The login may have been ended while it was proving itself.
    let latest = gate.reader.snapshot();
    if latest.login(message.user()).is_none_or(|login| login.session_epoch > identity.login().session_epoch) {
        return Err(SessionEnd::LoginEnded);
    }
    // What changed between the look at the snapshot and the registration was told to the others only.
    if latest.revision() > snapshot.revision() {
        registration.handle().signal(Signal::Refresh);
    }
    let reported = report(&route, &startup, gate).await?;
    let cancel = gate.cancels.register(minor).map_err(|_| SessionEnd::NoRandom)?;
    gate.reader.last_used(&identity.login().id, identity.version(), Timestamp::now());

    reply::authentication_ok(out);
    for (name, value) in reported.iter().filter(|(name, _)| !exchange::hidden_parameter(name)) {
        reply::parameter_status(out, name, value);
    }
    reply::parameter_status(out, "session_authorization", message.user());
    reply::parameter_status(out, "is_superuser", "off");
    reply::backend_key_data(out, cancel.key());
    reply::ready_for_query(out, TransactionStatus::Idle);
    stream.write_all_buf(out).await.map_err(SessionEnd::ClientIo)?;
    stream.flush().await.map_err(SessionEnd::ClientIo)?;
    Ok(Greeted { identity, route, startup, reported, cancel, registration })
}

/// The settings of the startup packet and of its `options`, each through the allow-list of SET.
fn startup_settings(message: &StartupMessage, route: &Route) -> Result<Values, SessionEnd> {
    let mut startup = Values::new();
    let mut take = |name: &str, value: &str| -> Result<(), SessionEnd> {
        let name = name.to_ascii_lowercase();
        judge_setting(route.role(), &name, value).map_err(|denial| {
            let error = guard::error_of(&denial, ErrorMessage::fatal);
            SessionEnd::Setting(Box::new(error))
        })?;
        // What the upstream connections have anyway needs no following.
        if name != "client_encoding" && name != "standard_conforming_strings" {
            startup.insert(name, value.to_owned());
        }
        Ok(())
    };
    for (name, value) in &message.parameters {
        match name.as_str() {
            "user" | "database" | "replication" => {}
            "options" => {
                for (name, value) in parse_options(value)? {
                    take(&name, &value)?;
                }
            }
            name => take(name, value)?,
        }
    }
    Ok(startup)
}

/// What the server reports at start under these settings: known already, or asked of a connection now, which also
/// shows whether the server takes the values at all.
async fn report(route: &Route, startup: &Values, gate: &Gate) -> Result<Reported, SessionEnd> {
    let mut wanted = startup.clone();
    let application = wanted.remove("application_name");
    let known = match gate.pools.greeting(&route.destination, &wanted) {
        Some(known) => known,
        None => {
            let mut lease = relay::lease(gate, &route.destination).await?;
            let asked = lease.adopt(&wanted).await;
            let mut known = lease.parameters.clone();
            lease.release_unattached();
            asked.map_err(refused_setting)?;
            gate.pools.share(&mut known);
            gate.pools.remember_greeting(&route.destination, &wanted, known.clone());
            known
        }
    };
    let mut reported = known;
    reported.insert("application_name", application.as_deref().unwrap_or_default());
    gate.pools.share(&mut reported);
    Ok(reported)
}

/// The server does not take a value of the startup packet.
fn refused_setting(error: crate::upstream::UpstreamError) -> SessionEnd {
    use crate::upstream::UpstreamError::Refused;
    match error {
        Refused { code, message } => {
            let code = SqlState::parse(&code).unwrap_or(SqlState::INVALID_PARAMETER_VALUE);
            SessionEnd::Setting(Box::new(ErrorMessage::fatal(code, message)))
        }
        other => SessionEnd::Lease(LeaseError::Upstream(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What one step of a login needs must not stay with an idle session: its task and its state are what is left.
    #[test]
    fn an_idle_session_is_small() {
        fn bytes<A, B, F>(_: impl Fn(A, B) -> F) -> usize {
            size_of::<F>()
        }
        let (task, state) = (bytes(run), size_of::<Relay>());
        assert!(task <= 512, "the task of a session takes {task} bytes");
        assert!(state <= 3072, "the state of a session takes {state} bytes");
    }
}
