//! Connections to the PostgreSQL servers that hold customers' databases, with the rights that provisioning takes.
//!
//! Every connection pins what could change the meaning of our own SQL (an empty `search_path`) and bounds how long any
//! statement or lock may take. Errors are sorted by whose turn it is: a server that is away is picked up again later, a
//! statement that PostgreSQL refused is a fault to look at. No error carries SQL text, because SQL text carries verifiers.

use std::fmt;
use std::time::Duration;

use portcullis_catalog::UpstreamTls;
use rustls::ClientConfig;
use tokio_postgres::error::SqlState;
use tokio_postgres_rustls::MakeRustlsConnect;

/// How long a TCP, TLS and authentication handshake with a server may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What a session of ours fixes: no customer's schema can shadow a name in our SQL, and nothing waits for ever.
const OPTIONS: &str = "-c search_path= -c statement_timeout=60s -c lock_timeout=20s -c idle_in_transaction_session_timeout=120s \
                       -c client_min_messages=warning -c timezone=UTC -c standard_conforming_strings=on";

/// One server, as the provisioner logs in to it.
#[derive(Clone)]
pub struct ServerAccess {
    /// The id under which the catalog knows this server.
    pub id: String,
    /// Host name, address, or directory of a Unix socket.
    pub host: String,
    /// TCP port, or the number in the socket's name.
    pub port: u16,
    /// A database that always exists; roles and databases are made from there.
    pub database: String,
    /// The role that provisions; a superuser where both walls are to be full.
    pub user: String,
    /// Its password, if the server asks for one.
    pub password: Option<zeroize::Zeroizing<String>>,
    /// TLS towards this server.
    pub tls: UpstreamTls,
}

impl fmt::Debug for ServerAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServerAccess({} at {}:{})", self.id, self.host, self.port)
    }
}

/// Why something on a server could not be done.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// No connection, or it broke: the same work is tried again later.
    #[error("server {server} cannot be reached: {reason}")]
    Unreachable {
        /// Which server.
        server: String,
        /// The operating system's or the server's own words.
        reason: String,
    },
    /// PostgreSQL refused a statement.
    #[error("{doing}: {message} (SQLSTATE {sqlstate})")]
    Refused {
        /// What was being done.
        doing: String,
        /// PostgreSQL's message.
        message: String,
        /// Its five characters.
        sqlstate: String,
    },
    /// The server's certificate authorities could not be read.
    #[error("server {server}: {reason}")]
    Tls {
        /// Which server.
        server: String,
        /// What is wrong with them.
        reason: String,
    },
    /// What was done did not last: another look still finds something to do.
    #[error("the database does not settle; still to do after {rounds} rounds: {left}")]
    Unsettled {
        /// How often it was tried.
        rounds: usize,
        /// The steps that remain.
        left: String,
    },
}

impl ServerError {
    /// Whether waiting may help: the server, not the work, is at fault.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        matches!(self, ServerError::Unreachable { .. })
    }

    /// Whether the same batch may simply be run again: PostgreSQL does not queue concurrent changes of one row of a shared
    /// catalog but fails with "tuple concurrently updated"; likewise two sidecars may create one role at the same time.
    #[must_use]
    pub fn is_race(&self) -> bool {
        match self {
            ServerError::Refused { message, sqlstate, .. } => {
                matches!(sqlstate.as_str(), "40001" | "40P01" | "42710" | "42P04" | "23505" | "55006")
                    || (sqlstate == "XX000" && message.contains("concurrently"))
            }
            _ => false,
        }
    }
}

/// One connection. Dropped, it says goodbye to the server as soon as a statement that still runs has ended.
pub struct Session {
    server: String,
    client: tokio_postgres::Client,
}

impl Session {
    /// Connects to `database` on the server.
    ///
    /// # Errors
    /// [`ServerError::Unreachable`] when it does not answer in time or refuses the login, [`ServerError::Refused`] when the database
    /// does not exist.
    pub async fn open(server: &ServerAccess, database: &str) -> Result<Session, ServerError> {
        let mut config = tokio_postgres::Config::new();
        config.host(&server.host).port(server.port).user(&server.user).dbname(database);
        config.application_name("portcullis-provisioner").options(OPTIONS).connect_timeout(CONNECT_TIMEOUT);
        if let Some(password) = &server.password {
            config.password(password.as_str());
        }
        config.ssl_mode(match server.tls {
            UpstreamTls::Disable => tokio_postgres::config::SslMode::Disable,
            UpstreamTls::Require | UpstreamTls::VerifyFull { .. } => tokio_postgres::config::SslMode::Require,
        });
        let tls = MakeRustlsConnect::new(tls_config(server)?);
        let connecting = tokio::time::timeout(CONNECT_TIMEOUT, config.connect(tls)).await;
        let (client, connection) = match connecting {
            Ok(Ok(pair)) => pair,
            Ok(Err(error)) => return Err(connect_error(&server.id, database, &error)),
            Err(_) => {
                let reason = format!("no answer within {} s", CONNECT_TIMEOUT.as_secs());
                return Err(ServerError::Unreachable { server: server.id.clone(), reason });
            }
        };
        // Its error reaches whoever waits for an answer on the client.
        tokio::spawn(connection);
        Ok(Session { server: server.id.clone(), client })
    }

    /// Runs several statements in one round trip. Without BEGIN among them they are one transaction.
    ///
    /// # Errors
    /// As PostgreSQL refuses; `doing` says what it was about.
    pub async fn run(&self, doing: &str, sql: &str) -> Result<(), ServerError> {
        self.client.batch_execute(sql).await.map_err(|error| self.error(doing, &error))
    }

    /// Rows of one query.
    ///
    /// # Errors
    /// As PostgreSQL refuses; `doing` says what it was about.
    pub async fn rows(
        &self,
        doing: &str,
        sql: &str,
        parameters: &[&(dyn tokio_postgres::types::ToSql + Sync)],
    ) -> Result<Vec<tokio_postgres::Row>, ServerError> {
        self.client.query(sql, parameters).await.map_err(|error| self.error(doing, &error))
    }

    /// The value at `column`, or why the row is not as expected.
    ///
    /// # Errors
    /// When the column has another type than the caller expects (a defect, not an operator's fault).
    pub fn value<'r, T: tokio_postgres::types::FromSql<'r>>(
        &self,
        row: &'r tokio_postgres::Row,
        column: usize,
    ) -> Result<T, ServerError> {
        row.try_get(column).map_err(|error| self.error("reading a row", &error))
    }

    fn error(&self, doing: &str, error: &tokio_postgres::Error) -> ServerError {
        sort_error(&self.server, doing, error)
    }
}

fn connect_error(server: &str, database: &str, error: &tokio_postgres::Error) -> ServerError {
    match error.as_db_error() {
        // A missing database is an answer about that database; every other refusal at login is about the server.
        Some(db) if *db.code() == SqlState::INVALID_CATALOG_NAME => {
            sort_error(server, &format!("connecting to {database}"), error)
        }
        Some(db) => ServerError::Unreachable { server: server.to_owned(), reason: db.message().to_owned() },
        None => ServerError::Unreachable { server: server.to_owned(), reason: innermost(error) },
    }
}

fn sort_error(server: &str, doing: &str, error: &tokio_postgres::Error) -> ServerError {
    let Some(db) = error.as_db_error() else {
        return ServerError::Unreachable { server: server.to_owned(), reason: innermost(error) };
    };
    let code = db.code().code();
    // Class 57P: an operator stopped the server or the connection. 53: it is out of something. The other two: somebody
    // holds a lock, or the server is too slow for our time limits.
    if code.starts_with("57P") || code.starts_with("53") || matches!(code, "55P03" | "57014") {
        return ServerError::Unreachable { server: server.to_owned(), reason: db.message().to_owned() };
    }
    ServerError::Refused { doing: doing.to_owned(), message: db.message().to_owned(), sqlstate: code.to_owned() }
}

/// The last cause in the chain, which is the one in the operating system's words.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

/// The driver wants one also where `sslmode` says that it is not used.
fn tls_config(server: &ServerAccess) -> Result<ClientConfig, ServerError> {
    let config = match &server.tls {
        UpstreamTls::Disable => UpstreamTls::Require.client_config(),
        tls => tls.client_config(),
    };
    let unusable = |reason: String| ServerError::Tls { server: server.id.clone(), reason };
    let config = config.map_err(|error| unusable(innermost(&error)))?;
    config.map(|config| (*config).clone()).ok_or_else(|| unusable("no parameters".to_owned()))
}
