//! What every session and the admin port share.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::tls::Tls;

/// The shared state of one proxy process.
#[derive(Debug)]
pub struct Gate {
    /// The certificate that is shown.
    pub tls: Tls,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Client permits: `clients_max` of them.
    pub clients: Arc<tokio::sync::Semaphore>,
    /// Cancelled when the process begins to drain; sessions end at their next idle point.
    pub draining: CancellationToken,
}
