//! The harness: starts what the end-to-end tests run against, and speaks to it as customers do.
//!
//! A [`Stack`] is a real PostgreSQL, the sidecar and the proxy, as processes of their own, with certificates and keys
//! made on the spot. Nothing is mocked, and nothing here reaches into the product's crates: what a test sees is what a
//! customer sees. A failing harness panics, which is what makes a test fail.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

pub mod api;
pub mod between;
pub mod certificates;
pub mod cluster;
pub mod customer;
mod keeper;
pub mod network;
pub mod process;
pub mod programs;
pub mod raw;
pub mod script;
pub mod stack;
pub mod wait;

pub use stack::{Access, Options, Stack, Workspace};
