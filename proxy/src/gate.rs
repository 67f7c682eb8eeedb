//! What every session and the admin port share.

use std::sync::Arc;
use std::time::Duration;

use portcullis_config::ProxyConfig;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::admin::{DataPlane, PoolRow, PoolTotals, SessionRow};
use crate::metrics::Metrics;
use crate::tls::Tls;

/// The shared state of one proxy process.
#[derive(Debug)]
pub struct Gate {
    /// What needs a restart to change.
    pub config: ProxyConfig,
    /// The certificate that is shown.
    pub tls: Arc<Tls>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Client permits: `clients_max` of them.
    pub clients: Arc<Semaphore>,
    /// Cancelled when the process begins to drain; sessions end at their next idle point.
    pub draining: CancellationToken,
}

impl Gate {
    /// The state of a process that has not accepted anything yet.
    pub fn new(config: ProxyConfig, tls: Arc<Tls>, metrics: Arc<Metrics>) -> Arc<Self> {
        let clients = Arc::new(Semaphore::new(config.listen.clients_max));
        Arc::new(Self { config, tls, metrics, clients, draining: CancellationToken::new() })
    }
}

impl DataPlane for Gate {
    fn catalog_age(&self) -> Option<Duration> {
        None
    }

    fn catalog_revision(&self) -> i64 {
        0
    }

    fn pool_totals(&self) -> PoolTotals {
        PoolTotals::default()
    }

    fn pools(&self) -> Vec<PoolRow> {
        Vec::new()
    }

    fn sessions(&self) -> Vec<SessionRow> {
        Vec::new()
    }
}
