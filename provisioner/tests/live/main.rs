//! The provisioner against a real PostgreSQL: one private cluster per process, one catalog and one sidecar per test.
//!
//! Tests are named after the requirements that they show.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod columns;
mod credentials;
mod fixture;
mod http;
mod idempotency;
mod outage;
mod provisioning;
mod repair;
mod start;
mod walls;
mod workspaces;
