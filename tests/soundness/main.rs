//! Soundness against a live server: what the grants stop when the judge is gone ([`walls`]), and what the texts that the
//! judge allows do when the grants are gone ([`effects`]) and are to the server ([`differential`]).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod corpus;
mod differential;
mod effects;
mod fingerprint;
mod mutate;
mod names;
mod scratch;
mod session;
mod trees;
mod walls;
