//! What the API does, without HTTP: each function is one thing that an operator or customer can ask for.

pub mod credentials;
pub mod keys;
pub mod workspaces;
