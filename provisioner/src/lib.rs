//! Everything that changes things: HTTP API, operations, reconcile. Library and the sidecar's binary.

pub mod names;
pub mod reconcile;
pub mod server;
