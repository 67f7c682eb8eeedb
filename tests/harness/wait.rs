//! Waiting for conditions instead of for clocks.

use std::time::{Duration, Instant};

/// How long a condition may take before the test gives up. Generous: slow machines are not a fault.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Tries `condition` until it gives something, or panics with `what` after [`PATIENCE`].
pub async fn until<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(started.elapsed() < PATIENCE, "gave up after {:?} waiting for {what}", started.elapsed());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Runs `future` and panics when it takes longer than `limit`: a hang is a failure that should say what hung.
pub async fn within<T>(limit: Duration, what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(limit, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} took longer than {limit:?}"),
    }
}
