//! Whether new clients should be sent here, and what the kernel says of the process.

use hyper::Response;

use super::Admin;
use super::answer::{self, Body};

impl Admin {
    /// Why new clients should go elsewhere; empty when they need not. Sessions that run are not affected by any of it.
    pub(super) fn not_ready_because(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if self.draining.is_cancelled() {
            reasons.push("draining: no new connections are accepted".to_owned());
        }
        match self.plane.catalog_age() {
            None => reasons.push("no snapshot of the catalog yet".to_owned()),
            Some(age) if age > self.snapshot_age_max => reasons.push(format!(
                "the catalog was last heard {} s ago (at most {} s): new logins are refused",
                age.as_secs(),
                self.snapshot_age_max.as_secs()
            )),
            Some(_) => {}
        }
        reasons
    }

    pub(super) fn readyz(&self) -> Response<Body> {
        let reasons = self.not_ready_because();
        answer::readiness(reasons.is_empty(), &serde_json::json!({ "ready": reasons.is_empty(), "reasons": reasons }))
    }
}

/// `VmRSS` of proc_pid_status(5), in bytes. One small file, not a walk through `/proc`.
pub(super) fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}
