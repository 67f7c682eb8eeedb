//! End to end: real PostgreSQL, real binaries, real drivers. Each module is one promise of the README.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod smoke;
