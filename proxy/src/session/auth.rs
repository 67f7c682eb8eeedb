//! Who is calling: SCRAM-SHA-256, with channel binding where the client can, and certificates where a login is bound to one.
//!
//! The proxy has verifiers only (RFC 5802, section 3). All live versions of a login share salt and iteration count, so
//! during a rotation's grace either password ends one and the same exchange. A user that does not exist goes through
//! the same steps in the same time with a stable salt; its end is the same sentence. A login that is newer than the
//! snapshot is looked for once before the salt is sent, and a failed proof looks once more: the first login with a new
//! password succeeds everywhere.

use std::sync::Arc;

use bytes::BytesMut;
use jiff::Timestamp;
use portcullis_catalog::Login;
use portcullis_wire::backend::encode as reply;
use portcullis_wire::frontend::SaslInitialResponse;
use portcullis_wire::scram::{ChannelBinding, ScramError, ServerExchange, Verifier, mechanisms, random_nonce};
use portcullis_wire::{Frontend, cut_frontend_frame};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::end::SessionEnd;
use crate::gate::Gate;
use crate::throttle::{Network, Standing};
use crate::tls::clients::{ClientCertificate, Demand};

/// The iteration count shown for users that do not exist: the one that logins are made with.
const MOCK_ITERATIONS: u32 = 4096;
/// A SASL message fits.
const FRAME_BYTES_MAX: usize = 8 * 1024;

/// A login that has proved itself. Only this module makes one.
pub struct Identity {
    login: Arc<Login>,
    version: i32,
}

impl Identity {
    /// The login as it was when it proved itself.
    pub fn login(&self) -> &Arc<Login> {
        &self.login
    }

    /// Which of its versions matched.
    pub fn version(&self) -> i32 {
        self.version
    }
}

/// What an attempt comes with.
pub struct Attempt<'a> {
    /// The user name of the startup packet.
    pub user: &'a str,
    /// What SCRAM can bind to.
    pub binding: &'a ChannelBinding,
    /// The client's certificate, verified.
    pub certificate: Option<&'a ClientCertificate>,
    /// Where it comes from.
    pub network: Network,
}

/// The login that the client proves to be. The server's final message of SASL, if there is one, is left in `out`, to leave
/// together with the caller's AuthenticationOk; what is in `out` already leaves with the first.
///
/// # Errors
/// [`SessionEnd::LoginFailed`] whether it was the user, the password or the certificate; [`SessionEnd::Throttled`] after
/// too many of them, whatever it was.
pub async fn authenticate<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    received: &mut BytesMut,
    out: &mut BytesMut,
    attempt: &Attempt<'_>,
    gate: &Gate,
) -> Result<Identity, SessionEnd> {
    let standing = gate.throttle.standing(attempt.network, attempt.user, gate.uptime());
    let outcome = match exchange(stream, received, out, attempt, standing, gate).await {
        // The password was right, and yet: this network does not look like its owner's.
        Ok(_) if standing.refuses_a_right_password().is_some() => {
            Err(SessionEnd::LoginFailed { user: attempt.user.to_owned() })
        }
        other => other,
    };
    match outcome {
        Ok(identity) => {
            gate.throttle.succeeded(attempt.network, attempt.user, gate.uptime());
            Ok(identity)
        }
        Err(end @ (SessionEnd::LoginFailed { .. } | SessionEnd::Scram(_))) => {
            if let Some(account) = gate.throttle.failed(attempt.network, attempt.user, gate.uptime()) {
                let (network, user) = (attempt.network, excerpt(attempt.user));
                tracing::warn!(%network, user, reason = account.label(), "too many failed logins");
            }
            Err(standing.throttled().map_or(end, SessionEnd::Throttled))
        }
        Err(end) => Err(end),
    }
}

async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    received: &mut BytesMut,
    out: &mut BytesMut,
    attempt: &Attempt<'_>,
    standing: Standing,
    gate: &Gate,
) -> Result<Identity, SessionEnd> {
    let Attempt { user, binding, certificate, .. } = *attempt;
    // Who has failed too often does not cause looks into the catalog.
    let may_look = standing.throttled().is_none();
    let mut login = gate.reader.snapshot().login(user).cloned();
    if login.is_none() && may_look {
        gate.look_again().await;
        login = gate.reader.snapshot().login(user).cloned();
    }
    let demand = gate.tls.current().bindings.demand(user, certificate);
    if demand == Demand::Nothing
        && let Some(identity) = login.as_ref().and_then(by_certificate)
    {
        return Ok(identity);
    }
    reply::authentication_sasl(out, mechanisms(binding));
    stream.write_all_buf(out).await.map_err(SessionEnd::ClientIo)?;
    stream.flush().await.map_err(SessionEnd::ClientIo)?;

    let first = password_message(stream, received).await?;
    let initial = SaslInitialResponse::decode(first.body())?;
    let data = initial.data.ok_or_else(|| SessionEnd::Scram("no initial response".into()))?;
    let (salt, iterations) = match &login {
        Some(login) => (login.salt.clone(), login.iterations),
        None => (gate.mock_salt(user), MOCK_ITERATIONS),
    };
    let nonce = random_nonce().map_err(|_| SessionEnd::NoRandom)?;
    let (exchange, challenge) =
        ServerExchange::start(initial.mechanism, data, binding, &salt, iterations, &nonce).map_err(broken)?;
    reply::authentication_sasl_continue(out, &challenge);
    stream.write_all_buf(out).await.map_err(SessionEnd::ClientIo)?;
    stream.flush().await.map_err(SessionEnd::ClientIo)?;

    let last = password_message(stream, received).await?;
    let proved = match prove(&exchange, last.body(), login.as_ref()) {
        Err(ScramError::Proof) if may_look => {
            gate.look_again().await;
            let newer = gate.reader.snapshot().login(user).cloned();
            prove(&exchange, last.body(), newer.as_ref())
        }
        other => other,
    };
    match proved {
        // Bound to a certificate that this connection has not shown: the same steps, and the same end as a wrong password.
        Ok(_) if demand != Demand::Password => {
            tracing::info!(user = excerpt(user), "a login was refused for want of the certificate that it is bound to");
            Err(SessionEnd::LoginFailed { user: user.to_owned() })
        }
        Ok((identity, signature)) => {
            // Not before it is known that the password may open: the signature is the server's proof.
            if standing.refuses_a_right_password().is_none() {
                reply::authentication_sasl_final(out, &signature);
            }
            Ok(identity)
        }
        Err(ScramError::Proof) => Err(SessionEnd::LoginFailed { user: user.to_owned() }),
        Err(error) => Err(broken(error)),
    }
}

/// A certificate stands for the password of a login that is alive.
fn by_certificate(login: &Arc<Login>) -> Option<Identity> {
    let version = login.accepted(Timestamp::now()).next()?.version;
    Some(Identity { login: login.clone(), version })
}

/// A name that a client chose, short enough for the log.
fn excerpt(name: &str) -> String {
    name.chars().take(63).collect()
}

fn prove(
    exchange: &ServerExchange,
    client_final: &[u8],
    login: Option<&Arc<Login>>,
) -> Result<(Identity, Vec<u8>), ScramError> {
    let accepted: Vec<_> = login.map(|login| login.accepted(Timestamp::now()).collect()).unwrap_or_default();
    let verifiers: Vec<Verifier> = accepted
        .iter()
        .map(|version| Verifier { stored_key: version.stored_key, server_key: version.server_key })
        .collect();
    let (matched, signature) = exchange.finish(client_final, &verifiers)?;
    let (Some(login), Some(version)) = (login, accepted.get(matched)) else { return Err(ScramError::Proof) };
    Ok((Identity { login: login.clone(), version: version.version }, signature))
}

fn broken(error: ScramError) -> SessionEnd {
    SessionEnd::Scram(error.to_string())
}

async fn password_message<S: AsyncRead + Unpin>(
    stream: &mut S,
    received: &mut BytesMut,
) -> Result<portcullis_wire::Frame, SessionEnd> {
    loop {
        if let Some(frame) = cut_frontend_frame(received, FRAME_BYTES_MAX)? {
            return match Frontend::decode(frame.tag(), frame.body())? {
                Frontend::Password { .. } => Ok(frame),
                Frontend::Terminate => Err(SessionEnd::ClientTerminated),
                _ => Err(SessionEnd::ClientMessage(frame.tag())),
            };
        }
        if stream.read_buf(received).await.map_err(SessionEnd::ClientIo)? == 0 {
            return Err(SessionEnd::ClientGone);
        }
    }
}
