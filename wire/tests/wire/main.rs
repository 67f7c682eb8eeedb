//! Tests of the crate through its public interface: tables of bytes and what they must mean.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod backend;
mod corpus;
mod frontend;
mod lengths;
mod options;
mod properties;
mod samples;
mod scram;
mod startup;
