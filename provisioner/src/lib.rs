//! Everything that changes things: HTTP API, operations, reconcile. Library and the sidecar's binary.
