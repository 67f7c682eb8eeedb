//! The limits of time of a session, by the proxy's own clock, and the word to a client that waits for a connection.

use std::task::Context;
use std::time::{Duration, Instant};

use portcullis_wire::{ErrorMessage, SqlState, TransactionStatus};

use super::{Relay, Turn};
use crate::session::end::{SessionEnd, wait_notice};

/// How long a statement may take to end after it was cancelled for its time limit.
const CANCEL_GRACE: Duration = Duration::from_secs(10);

/// What a session's time can run into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Limit {
    /// A statement that was stopped has not ended.
    Stuck,
    /// The client has waited long enough for a connection to be told so.
    WaitNotice,
    Statement,
    Transaction,
    IdleInTransaction,
    Idle,
}

impl Relay {
    /// Arms the timer for the nearest limit, and acts on one that is over; `true` when there is something to do for it.
    pub(super) fn watch_the_clock(&mut self, cx: &mut Context<'_>) -> Turn {
        loop {
            let now = self.now;
            let Some((deadline, limit)) = self.nearest_limit() else { return Ok(false) };
            if deadline <= now {
                self.passed(limit)?;
                return Ok(true); // each limit either ends the session or moves its own deadline on
            }
            // A timer that fires too early costs less than one that is set anew for every statement.
            if deadline < self.timer_at || self.timer_at <= now {
                self.timer_at = deadline;
                self.timer.as_mut().reset(deadline.into());
                self.timer_armed = false;
            }
            if self.timer_armed && !self.timer.is_elapsed() {
                return Ok(false);
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                self.timer_armed = true;
                return Ok(false);
            }
            self.timer_armed = false;
            self.timer_at = now;
            self.now = Instant::now();
            self.exchange.tick(self.now);
        }
    }

    fn nearest_limit(&self) -> Option<(Instant, Limit)> {
        if let Some(cancelled) = self.cancelled_at {
            return Some((cancelled + CANCEL_GRACE, Limit::Stuck));
        }
        if let Some((_, since)) = &self.leasing {
            // The wait has a limit of its own.
            let after = self.gate.config.pool.wait_notice_ms;
            let tell = after > 0 && !self.wait_told && self.exchange.takes_notices();
            return tell.then(|| (*since + Duration::from_millis(after), Limit::WaitNotice));
        }
        if self.judging.is_some() {
            return None; // it has a limit of its own
        }
        let (limits, role) = (&self.gate.config.limits, self.route.role());
        let transaction = self.transaction_since.map(|since| {
            let most = shorter(limits.transaction_timeout_ms, role.transaction_timeout_ms());
            (since + most, Limit::Transaction)
        });
        let present = match self.exchange.working_since() {
            Some(since) => (since + self.statement_timeout(), Limit::Statement),
            None if self.is_in_transaction() => {
                let most = shorter(limits.idle_in_transaction_timeout_ms, role.idle_in_transaction_timeout_ms());
                (self.last_activity + most, Limit::IdleInTransaction)
            }
            None => (self.last_activity + shorter(limits.idle_timeout_ms, role.idle_timeout_ms()), Limit::Idle),
        };
        transaction.into_iter().chain([present]).min_by_key(|(deadline, _)| *deadline)
    }

    fn is_in_transaction(&self) -> bool {
        self.lease.as_ref().is_some_and(|lease| {
            lease.status != TransactionStatus::Idle || !self.exchange.is_quiet() || self.exchange.in_copy()
        })
    }

    fn statement_timeout(&self) -> Duration {
        let general = shorter(self.gate.config.limits.statement_timeout_ms, self.route.role().query_timeout_ms());
        self.route.query_timeout.map_or(general, |own| own.min(general))
    }

    fn passed(&mut self, limit: Limit) -> Result<(), SessionEnd> {
        let (name, end) = match limit {
            Limit::Stuck => return Err(SessionEnd::StatementStuck),
            Limit::WaitNotice => {
                self.wait_told = true;
                let most = Duration::from_millis(self.gate.config.pool.query_wait_timeout_ms);
                let paused = self.gate.pools.is_paused(&self.route.workspace);
                wait_notice(most, paused).encode_notice(&mut self.client.outgoing);
                self.gate.metrics.wait_told();
                return Ok(());
            }
            Limit::Statement => {
                self.gate.metrics.limit_hit("statement_timeout");
                self.exchange.cancelled_because(statement_timeout(self.statement_timeout()));
                self.stop_the_statement();
                return Ok(());
            }
            Limit::Transaction => ("transaction_timeout", SessionEnd::TransactionTimeout),
            Limit::IdleInTransaction => ("idle_in_transaction_timeout", SessionEnd::IdleInTransactionTimeout),
            Limit::Idle => ("idle_timeout", SessionEnd::IdleTimeout),
        };
        self.gate.metrics.limit_hit(name);
        Err(end)
    }
}

/// The general limit, or the policy's where that is shorter.
fn shorter(general_ms: u64, policy_ms: Option<u64>) -> Duration {
    Duration::from_millis(policy_ms.map_or(general_ms, |own| own.min(general_ms)))
}

fn statement_timeout(limit: Duration) -> ErrorMessage {
    ErrorMessage::error(SqlState::QUERY_CANCELED, "canceling statement due to statement timeout")
        .detail(format!("The gate's limit for one statement is {} ms.", limit.as_millis()))
        .hint("Make the statement smaller, or have query_timeout_ms raised for the workspace.")
}
