//! Signals, and how the process ends.
//!
//! One way out: the accept loop stops, the token `draining` tells the sessions, they end at their next idle point, and
//! when the last one is gone or `drain_timeout_ms` is over the process ends. SIGTERM, SIGINT and `POST /drain` all begin
//! it; a second signal ends it at once. SIGHUP reads the certificate again and can never end anything.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::tls::Tls;

/// How a process came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Every session ended by itself.
    Drained,
    /// `drain_timeout_ms` was over before.
    TimedOut,
    /// A second signal asked not to wait.
    Hurried,
}

/// The signals of this process.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Takes over SIGTERM and SIGINT. Call it before anything is announced as ready, so that no signal falls through.
    pub fn install() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// The next of them, by name.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }

    /// Waits until something asks the process to end, and sees to it that `draining` is cancelled when it returns.
    pub async fn until_asked(&mut self, draining: &CancellationToken) {
        tokio::select! {
            name = self.next() => tracing::info!("{name}: draining"),
            () = draining.cancelled() => tracing::info!("draining"),
        }
        draining.cancel();
    }

    /// Waits for `sessions` (which ends with the last of them), at most `drain_timeout`, unless a signal hurries.
    pub async fn drain(&mut self, sessions: impl Future<Output = ()>, drain_timeout: Duration) -> Ending {
        tokio::select! {
            biased;
            () = sessions => Ending::Drained,
            name = self.next() => {
                tracing::warn!("{name} again: ending at once");
                Ending::Hurried
            }
            () = tokio::time::sleep(drain_timeout) => {
                tracing::warn!("sessions are left after {} ms: ending them", drain_timeout.as_millis());
                Ending::TimedOut
            }
        }
    }
}

/// Reads the certificate again at every SIGHUP, for as long as the process runs.
pub fn reload_on_hangup(tls: Arc<Tls>, metrics: Arc<Metrics>) -> io::Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            reload(&tls, &metrics).await;
        }
    });
    Ok(())
}

/// Reads files, so it may block: away from the workers. What it found is logged either way.
async fn reload(tls: &Arc<Tls>, metrics: &Metrics) {
    let reading = tls.clone();
    match tokio::task::spawn_blocking(move || reading.reload()).await {
        Ok(Ok(())) => {
            let identity = tls.current();
            metrics.tls_reloaded("ok");
            tracing::info!(
                subject = %identity.subject,
                not_after = %identity.not_after,
                chain = identity.chain_len,
                "SIGHUP: new handshakes use the certificate that was read"
            );
        }
        Ok(Err(error)) => {
            metrics.tls_reloaded("failed");
            let source = std::error::Error::source(&error).map(ToString::to_string);
            tracing::error!(%error, source, "SIGHUP: the certificate was not replaced");
        }
        Err(error) => {
            metrics.tls_reloaded("failed");
            tracing::error!(%error, "SIGHUP: the certificate was not replaced");
        }
    }
}
