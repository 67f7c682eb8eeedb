//! The limits of time of a session, by the proxy's own clock: a statement, an idle transaction, an idle session.

use std::task::Context;
use std::time::{Duration, Instant};

use portcullis_wire::{ErrorMessage, SqlState, TransactionStatus};

use super::Relay;
use crate::session::end::SessionEnd;

/// How long a statement may take to end after it was cancelled for its time limit.
const CANCEL_GRACE: Duration = Duration::from_secs(10);

impl Relay {
    /// Arms the timer for the nearest limit, and acts on one that is over.
    pub(super) fn watch_the_clock(&mut self, cx: &mut Context<'_>) -> Result<(), SessionEnd> {
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
        let role = self.route.role().query_timeout_ms().map(Duration::from_millis);
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

fn statement_timeout(limit: Duration) -> ErrorMessage {
    ErrorMessage::error(SqlState::QUERY_CANCELED, "canceling statement due to statement timeout")
        .detail(format!("The gate's limit for one statement is {} ms.", limit.as_millis()))
        .hint("Make the statement smaller, or have query_timeout_ms raised for the workspace.")
}
