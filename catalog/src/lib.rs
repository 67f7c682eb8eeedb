//! The catalog: the one definition of what exists (workspaces, logins, backend roles, policies, keys, audit).
//!
//! It is a PostgreSQL database. Its schema `catalog` is intent and written by the provisioner alone, through [`Store`];
//! its schema `observed` takes what proxies saw. A proxy reads through [`Reader`]: an immutable [`Snapshot`] that follows
//! the catalog revision by revision and goes on serving while the catalog is away.
//!
//! This crate decides nothing about SQL and knows no HTTP. What it decides about credentials is pure
//! ([`credentials`]) and takes `now` as an argument. It must never hand a sealed password to a proxy.

mod acknowledge;
pub mod audit;
mod connect;
pub mod credentials;
mod error;
mod id;
mod login;
mod migrate;
mod reader;
mod rows;
pub mod seal;
mod server_tls;
mod snapshot;
mod store;
mod workspace;

pub use acknowledge::Acknowledged;
pub use audit::{Actor, AuditEvent};
pub use connect::Source;
pub use error::{CatalogError, Result};
pub use id::{ApiKeyId, Generation, LoginId, Revision, ServerId, WorkspaceId};
pub use login::{BackendRole, Login, LoginVersion, VersionState};
pub use migrate::SCHEMA_VERSION;
pub use portcullis_config::Secret;
pub use reader::{Reader, ReaderOptions, Refreshed, Termination};
pub use seal::Sealed;
pub use server_tls::ServerTlsError;
pub use snapshot::{PolicyDocument, Snapshot, WorkspaceEntry};
pub use store::{
    ApiKey, Claim, Claimed, KeyedRequest, LoginRecord, NewLogin, NewVersion, NewWorkspace, Rotated, Rotation, Store,
    VersionRecord,
};
pub use workspace::{Mode, Plane, PlaneStatus, Server, Settings, UpstreamTls, Workspace};
