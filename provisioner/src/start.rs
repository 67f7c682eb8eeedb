//! From a configuration to a running sidecar: catalog migrated, servers and policies recorded, the first admin key minted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use portcullis_catalog::seal::{KeyOfKeys, ProxyKey};
use portcullis_catalog::{Actor, CatalogError, Server, ServerId, Source, Store, UpstreamTls};
use portcullis_config::{ProvisionerConfig, ServerConfig, UpstreamTlsMode};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::Provisioner;
use crate::ops::keys;
use crate::profile::Profiles;
use crate::server::ServerAccess;

/// Why the sidecar did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The catalog is away or unusable.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// A built-in policy document has mistakes.
    #[error("a built-in profile: {0}")]
    Profile(#[from] portcullis_policy::DocumentErrors),
    /// A file of the configuration cannot be read or written, or the address cannot be listened on.
    #[error("{what}: {source}")]
    Io {
        /// Which file or address.
        what: String,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A server's name in the configuration is not one that the catalog takes.
    #[error("servers.{0}: not a server's name")]
    ServerName(String),
}

/// Opens the catalog, brings its schema and its contents up to this configuration, and mints the first admin key.
///
/// # Errors
/// See [`StartError`]; nothing half-done stays that a second start would not finish.
pub async fn start(config: &ProvisionerConfig) -> Result<Arc<Provisioner>, StartError> {
    let profiles = Profiles::built_in()?;
    let store = Store::connect(&Source::from(&config.catalog), config.catalog.connections_max).await?;
    store.migrate(&config.catalog.proxy_role).await?;
    let actor = Actor::program("start");
    let mut servers = BTreeMap::new();
    for (name, server) in &config.servers {
        let (access, recorded) = server_of(name, server)?;
        store.upsert_server(&actor, &recorded).await?;
        servers.insert(name.clone(), access);
    }
    for profile in profiles.iter() {
        store.upsert_policy(&actor, profile.policy.name(), profile.policy_text).await?;
    }
    let key_file = config.bootstrap.admin_key_file.as_deref();
    keys::mint_first(&store, key_file, Timestamp::now()).await?;
    Ok(Arc::new(Provisioner {
        store,
        profiles,
        servers,
        key_of_keys: KeyOfKeys::new(&config.keys.key_of_keys)?,
        proxy_key: ProxyKey::new(&config.keys.proxy_key)?,
        public: config.public.clone(),
        project: config.project.clone(),
        api: config.api.clone(),
        wake: Notify::new(),
    }))
}

/// Serves the API and reconciles until `stop`.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn serve(provisioner: Arc<Provisioner>, tick: Duration, stop: CancellationToken) -> Result<(), StartError> {
    let listener = crate::api::listen(&provisioner.api.listen).await?;
    let follow = tokio::spawn(crate::reconcile::follow(provisioner.clone(), tick, stop.clone()));
    crate::api::serve(listener, provisioner, stop).await;
    // It ends between two statements; what it did not finish is the next start's first work.
    if follow.await.is_err() {
        tracing::error!("the reconciler ended with a panic");
    }
    Ok(())
}

fn server_of(name: &str, config: &ServerConfig) -> Result<(ServerAccess, Server), StartError> {
    let ca_pem = match &config.ca_file {
        Some(path) => std::fs::read_to_string(path)
            .map_err(|source| StartError::Io { what: format!("servers.{name}.ca_file {}", path.display()), source })?,
        None => String::new(),
    };
    let tls = match config.tls {
        UpstreamTlsMode::Disable => UpstreamTls::Disable,
        UpstreamTlsMode::Require => UpstreamTls::Require,
        UpstreamTlsMode::VerifyFull => UpstreamTls::VerifyFull { ca_pem },
    };
    let id = ServerId::parse(name).ok_or_else(|| StartError::ServerName(name.to_owned()))?;
    let recorded = Server {
        id,
        host: config.proxy_host.clone().unwrap_or_else(|| config.host.clone()),
        port: config.proxy_port.unwrap_or(config.port),
        tls: tls.clone(),
    };
    let access = ServerAccess {
        id: name.to_owned(),
        host: config.host.clone(),
        port: config.port,
        database: config.database.clone(),
        user: config.user.clone(),
        password: config.password.as_ref().map(|password| zeroize::Zeroizing::new(password.expose().clone())),
        tls,
    };
    Ok((access, recorded))
}
