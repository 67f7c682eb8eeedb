//! What an operator does to one workspace: PAUSE, RESUME, RECONNECT and KILL, with the meaning that PgBouncer gave these
//! words. Forks and maintenance need a database that nobody is connected to.
//!
//! Each may be repeated, says how things stand when it answers, and never waits longer than it was told to.

use std::time::{Duration, Instant};

use portcullis_catalog::WorkspaceId;
use serde::Serialize;

use super::Pools;
use crate::sessions::Sessions;

/// What the operator wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Transactions may end, new ones wait; connections are closed as they become free.
    Pause,
    /// Waiting sessions go on.
    Resume,
    /// Every connection is replaced by a new one as soon as no transaction needs it.
    Reconnect,
    /// Sessions end now, and their connections with them.
    Kill,
}

impl Order {
    /// The order with this name in a path.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "pause" => Some(Self::Pause),
            "resume" => Some(Self::Resume),
            "reconnect" => Some(Self::Reconnect),
            "kill" => Some(Self::Kill),
            _ => None,
        }
    }
}

/// How things stand after an order.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub struct Standing {
    /// The workspace's id.
    pub workspace: String,
    /// Whether it is paused in this process.
    pub paused: bool,
    /// Whether everything that was ordered has happened; otherwise it goes on happening.
    pub settled: bool,
    /// Its connections to the server that are open now.
    pub connections: usize,
    /// Its sessions.
    pub sessions: usize,
    /// The sessions that were told to end by this order.
    pub sessions_ended: usize,
}

impl Pools {
    /// Carries an order out, and waits for it to be done for at most `patience`. `exists` tells which workspaces there
    /// still are.
    pub async fn operate(
        &self,
        order: Order,
        workspace: &WorkspaceId,
        sessions: &Sessions,
        exists: impl Fn(&WorkspaceId) -> bool,
        patience: Duration,
    ) -> Standing {
        let deadline = Instant::now() + patience;
        let mut ended = 0;
        let settled = match order {
            Order::Pause => {
                self.held.pause(workspace);
                self.close_idle(workspace, false, "paused");
                self.held.wait_until(|| self.connections_of(workspace).0 == 0, deadline).await
            }
            Order::Resume => {
                self.held.resume(workspace, exists);
                self.all().iter().for_each(|server| server.resume());
                true
            }
            Order::Reconnect => {
                self.close_idle(workspace, true, "reconnect");
                self.held.wait_until(|| self.connections_of(workspace).1 == 0, deadline).await
            }
            Order::Kill => {
                self.close_idle(workspace, true, "killed");
                let told = sessions.end_those_of(workspace);
                ended = told.len();
                let gone = sessions.wait_for_the_end_of(&told, deadline).await;
                self.held.wait_until(|| self.connections_of(workspace).1 == 0, deadline).await && gone
            }
        };
        Standing {
            workspace: workspace.to_string(),
            paused: self.held.has(workspace),
            settled,
            connections: self.connections_of(workspace).0,
            sessions: sessions.count_of(workspace),
            sessions_ended: ended,
        }
    }

    /// Whether the workspace is paused.
    pub fn is_paused(&self, workspace: &WorkspaceId) -> bool {
        self.held.has(workspace)
    }

    fn close_idle(&self, workspace: &WorkspaceId, renew: bool, reason: &'static str) {
        for server in self.all() {
            for (upstream, place) in server.take_idle_of(workspace, renew) {
                server.close(upstream, place, reason);
            }
        }
    }

    /// All connections of a workspace, and those that are older than the last RECONNECT.
    fn connections_of(&self, workspace: &WorkspaceId) -> (usize, usize) {
        let each = self.all().into_iter().map(|server| server.connections_of(workspace));
        each.fold((0, 0), |(all, outdated), (more, older)| (all + more, outdated + older))
    }
}
