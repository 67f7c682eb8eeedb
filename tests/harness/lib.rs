//! The harness: starts what the end-to-end tests run against.
