//! Workspaces and the PostgreSQL servers that hold their databases.

use jiff::Timestamp;

use crate::id::{ServerId, WorkspaceId};

/// Declares an enum whose values have a fixed spelling in the catalog and in the API.
macro_rules! spelt {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum $name { $($(#[$variant_doc])* $variant,)+ }

        impl $name {
            /// The spelling in the catalog and in the API.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }

            /// The value that is spelt so.
            pub fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$variant),)+ _ => None }
            }

            #[allow(dead_code, reason = "not every one is read from a column")]
            pub(crate) fn from_column(text: &str) -> $crate::error::Result<Self> {
                Self::parse(text).ok_or($crate::error::CatalogError::Corrupt { what: stringify!($name) })
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}
pub(crate) use spelt;

/// A PostgreSQL server as proxies reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Its name in the provisioner's configuration.
    pub id: ServerId,
    /// A host name, an address, or the directory of a Unix socket.
    pub host: String,
    /// The port.
    pub port: u16,
    /// How connections to it are protected.
    pub tls: UpstreamTls,
}

/// How a connection to a PostgreSQL server is protected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpstreamTls {
    /// No TLS.
    Disable,
    /// TLS, whoever answers.
    Require,
    /// TLS, and the certificate must be valid for the host.
    VerifyFull {
        /// PEM: who may have signed it.
        ca_pem: String,
    },
}

spelt!(
    /// What a workspace is for (T1–T3).
    Mode {
        /// Schema changes become versions that are deployed to tenants.
        Tenant = "tenant",
        /// A managed database, nothing more.
        Control = "control",
    }
);

spelt!(
    /// Whether the workspace's database is as it should be.
    PlaneStatus {
        /// Being made.
        Provisioning = "provisioning",
        /// As it should be (D6).
        Active = "active",
        /// Something was missing and is being restored.
        Repairing = "repairing",
        /// Closed on purpose.
        Suspended = "suspended",
        /// It could not be made; `last_error` says why.
        Failed = "failed",
        /// The database is gone.
        Missing = "missing",
    }
);

/// The state of a workspace's database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plane {
    /// The state.
    pub status: PlaneStatus,
    /// Since when.
    pub since: Timestamp,
    /// The newest migration of the managed schemas that was applied.
    pub schema_version: Option<String>,
    /// Why it is not active, in words for the operator.
    pub last_error: Option<String>,
}

/// Limits that were set for a workspace; `None` means the default (T17, C9).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// One statement, in milliseconds.
    pub query_timeout_ms: Option<u64>,
    /// Rows of one result.
    pub max_rows_per_query: Option<u64>,
    /// Client sessions at once.
    pub max_connections: Option<u32>,
}

/// A workspace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workspace {
    /// Its id.
    pub id: WorkspaceId,
    /// Its name: 1 to 53 bytes, without `__` (T7, C13).
    pub name: String,
    /// What it is for.
    pub mode: Mode,
    /// The name of its policy document.
    pub profile: String,
    /// When it was created.
    pub created_at: Timestamp,
    /// Its limits.
    pub settings: Settings,
    /// The state of its database.
    pub plane: Plane,
    /// The server that holds its database.
    pub server: ServerId,
    /// The database's real name on that server.
    pub database: String,
    /// The name under which the wire opens it as well: `<name>_workspace` (T12).
    pub alias: String,
}

impl Workspace {
    /// The name under which the wire opens a workspace's database as well (T12).
    pub fn alias_of(name: &str) -> String {
        format!("{name}_workspace")
    }
}
