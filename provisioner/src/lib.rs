//! Everything that changes things: the HTTP API, what it does, and the reconciler that makes databases what the catalog
//! says they should be. Library and the sidecar's binary `portcullis-provisioner`.
//!
//! ```text
//! api ─▶ ops ─▶ catalog (intent) ─▶ reconcile: observe → plan → apply ─▶ PostgreSQL servers
//! ```
//!
//! Only this crate writes intent, holds the key of keys, and logs in to servers with the right to make databases. It
//! never runs a customer's SQL: that goes through the gate's wire port, whoever asks.

pub mod api;
pub mod names;
pub mod ops;
pub mod profile;
pub mod reconcile;
pub mod server;
mod start;
pub mod walls;

use std::collections::BTreeMap;

use portcullis_catalog::seal::{KeyOfKeys, ProxyKey};
use portcullis_catalog::{Store, Workspace};
use portcullis_config::{ApiConfig, ProjectConfig, PublicConfig};
use tokio::sync::Notify;

use profile::{Profile, Profiles};
use reconcile::ReconcileError;
use server::ServerAccess;
pub use start::{StartError, serve, start};

/// What every part of the sidecar works with. One per process, shared.
#[derive(Debug)]
pub struct Provisioner {
    /// The catalog.
    pub store: Store,
    /// The profiles of this release.
    pub profiles: Profiles,
    /// The servers of the configuration, by id.
    pub servers: BTreeMap<String, ServerAccess>,
    /// Seals the keys of workspaces, which seal passwords.
    pub key_of_keys: KeyOfKeys,
    /// Seals what proxies log in with.
    pub proxy_key: ProxyKey,
    /// How customers reach the gate.
    pub public: PublicConfig,
    /// What `metadata` tells of the project.
    pub project: ProjectConfig,
    /// Bounds of the HTTP API.
    pub api: ApiConfig,
    /// Wakes the reconciler before its tick.
    pub wake: Notify,
}

impl Provisioner {
    /// The server that holds a workspace's database.
    ///
    /// # Errors
    /// When the configuration has lost it.
    pub fn server(&self, workspace: &Workspace) -> Result<&ServerAccess, ReconcileError> {
        let name = workspace.server.as_str();
        self.servers.get(name).ok_or_else(|| ReconcileError::Unknown { what: "server", name: name.to_owned() })
    }

    /// The profile of a workspace.
    ///
    /// # Errors
    /// When this release does not have it.
    pub fn profile(&self, workspace: &Workspace) -> Result<&Profile, ReconcileError> {
        let name = workspace.profile.as_str();
        self.profiles.get(name).ok_or_else(|| ReconcileError::Unknown { what: "profile", name: name.to_owned() })
    }
}
