//! End to end: real PostgreSQL, real binaries, real drivers. Each module is one promise of the README.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod benign;
mod cancel;
mod certificates;
mod chaos;
mod clients;
mod copy;
mod crashes;
mod doors;
mod drain;
mod drivers;
mod harness;
mod hostile;
mod leaks;
mod limits;
mod memory;
mod metrics;
mod operate;
mod pipelines;
mod pitfalls;
mod pooling;
mod prepared;
mod protocol;
mod psql;
mod queue;
mod regression_compare;
mod reload;
mod requirements;
mod rotation;
mod server_tls;
mod throttle;
mod verdicts;
mod walls;

/// D33, to the letter.
const D33: &str = "Only read statements or schema-qualified storage tables are supported.";
/// D34, to the letter.
const D34: &str = "Customer DB writes are only allowed for schema-qualified storage tables.";
/// How many people of the demo's data have not opted out.
const PEOPLE: i64 = 4980;
/// Works for minutes unless it is stopped, in little memory. `pg_sleep` is not for customers.
const LONG: &str = "SELECT count(*) FROM (SELECT generate_series(1, 100000000000)) AS s";
