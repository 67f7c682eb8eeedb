//! The catalog against a real PostgreSQL, which these tests start themselves and remove when they end.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod fixture;
mod follow;
mod migrations;
mod outage;
mod rotation;
mod store;
mod tls;
mod walls;
