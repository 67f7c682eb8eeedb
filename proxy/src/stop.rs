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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Chain, Dir};
    use rcgen::PKCS_ECDSA_P256_SHA256;
    use rustix::process::{Signal as Number, getpid, kill_process};
    use std::future::{pending, ready};

    const NEVER: Duration = Duration::from_secs(3600);

    /// One test, because signals are the whole process's.
    #[tokio::test]
    async fn every_way_to_ask_and_every_ending() {
        let mut signals = Signals::install().unwrap();
        for number in [Some(Number::TERM), Some(Number::INT), None] {
            let draining = CancellationToken::new();
            match number {
                Some(number) => kill_process(getpid(), number).unwrap(),
                None => draining.cancel(),
            }
            tokio::time::timeout(Duration::from_secs(30), signals.until_asked(&draining)).await.unwrap();
            assert!(draining.is_cancelled(), "{number:?}");
        }
        assert_eq!(signals.drain(ready(()), Duration::ZERO).await, Ending::Drained);
        assert_eq!(signals.drain(pending(), Duration::ZERO).await, Ending::TimedOut);
        kill_process(getpid(), Number::TERM).unwrap();
        assert_eq!(signals.drain(pending(), NEVER).await, Ending::Hurried);
    }

    #[tokio::test]
    async fn a_reload_is_counted_by_its_outcome() {
        let (dir, chain) = (Dir::new(), Chain::new(&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P256_SHA256));
        let tls = Arc::new(Tls::load(&chain.write(&dir)).unwrap());
        let metrics = Metrics::new();
        reload(&tls, &metrics).await;
        dir.write("server.key", "");
        reload(&tls, &metrics).await;
        let page = metrics.render(&crate::metrics::Observed::default());
        for outcome in ["ok", "failed"] {
            assert!(page.contains(&format!("portcullis_tls_reloads_total{{outcome=\"{outcome}\"}} 1\n")), "{outcome}");
        }
    }
}
