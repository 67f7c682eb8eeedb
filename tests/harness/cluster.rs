//! A private PostgreSQL cluster.
//!
//! It lives in a directory of its own under the system's temporary directory, since the user `postgres` may not be able
//! to enter the clone. TCP asks for a password; the Unix socket trusts whoever may enter the directory (its owner and
//! root), so that a test can log in as any role, around the gate. Whatever else a test puts into the directory goes
//! with the cluster.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tokio_postgres::{Client, NoTls};

use crate::{
    keeper::{Keeper, is_ready},
    process::as_root,
    programs,
    wait::{PATIENCE, until},
};

const SETTINGS: &str = "listen_addresses = '127.0.0.1'\nmax_connections = 200\nfsync = off\n\
                        log_line_prefix = '%m [%p] %u@%d '\n";

/// For a cluster that starts with each test process: little memory, and nothing that happens by itself.
pub const SMALL: &str = "shared_buffers = 16MB\nfull_page_writes = off\nautovacuum = off\n";

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    /// The directory with the data, the socket and the log.
    pub home: PathBuf,
    /// The TCP port on 127.0.0.1.
    pub port: u16,
    /// The superuser's (`postgres`) password.
    pub password: String,
    /// The password of the catalog's role `portcullis_provisioner`, when [`Cluster::bootstrap`] has run.
    pub provisioner_password: String,
    /// The same of `portcullis_proxy`.
    pub proxy_password: String,
    keeper: Mutex<Keeper>,
}

impl Cluster {
    /// The small cluster that the tests of this process share. It goes when the process ends.
    pub fn shared() -> &'static Cluster {
        static SHARED: OnceLock<Cluster> = OnceLock::new();
        SHARED.get_or_init(|| Cluster::start(SMALL))
    }

    /// Makes a cluster, with these lines added to `postgresql.conf`, and starts it. Blocks for about a second.
    ///
    /// # Panics
    /// With the end of the server's log, when it does not start.
    #[must_use]
    pub fn start(settings: &str) -> Cluster {
        let home = new_home();
        let mut keeper = Keeper::new(&home);
        let password = random_hex();
        let secret = home.join("password");
        fs::write(&secret, &password).expect("the password is written");
        give_to_postgres(&secret);
        keeper.init(&home);
        let config = fs::File::options().append(true).open(home.join("data/postgresql.conf"));
        write!(config.expect("the configuration opens"), "{SETTINGS}{settings}").expect("the settings are written");
        let port = free_port();
        let server = keeper.start(port);
        let started = Instant::now();
        while !is_ready(&home, server) {
            assert!(started.elapsed() < PATIENCE, "gave up waiting for PostgreSQL");
            thread::sleep(Duration::from_millis(5));
        }
        Cluster {
            home,
            port,
            password,
            // With what a script might forget to quote.
            provisioner_password: format!("it's {}", random_hex()),
            proxy_password: random_hex(),
            keeper: Mutex::new(keeper),
        }
    }

    /// `kill -9` of the postmaster and its backends. They are gone when this returns.
    pub fn kill(&self) {
        self.keeper().kill();
    }

    /// Starts the server again after [`Cluster::kill`], on the same port and data.
    pub async fn restart(&self) {
        let server = self.keeper().start(self.port);
        until("PostgreSQL", async || is_ready(&self.home, server).then_some(())).await;
    }

    /// Puts a file beside the data that the server alone may read; gives its path.
    pub fn put(&self, name: &str, text: &str) -> PathBuf {
        let path = self.home.join(name);
        fs::write(&path, text).expect("the file is written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("its mode is set");
        give_to_postgres(&path);
        path
    }

    /// Changes settings and who may connect over TCP (lines of `pg_hba.conf`) while the server runs, and waits until
    /// new connections are under them.
    pub async fn reload(&self, settings: &[(&str, &str)], tcp: &str) {
        let load_time = async || {
            let superuser = self.client("postgres", "postgres").await;
            let row = superuser.query_one("SELECT pg_conf_load_time()::text", &[]).await.expect("the time");
            (superuser, row.get::<_, String>(0))
        };
        let (superuser, before) = load_time().await;
        for (name, value) in settings {
            superuser.batch_execute(&format!("ALTER SYSTEM SET {name} = '{value}'")).await.expect("a setting");
        }
        let access = format!("local all all trust\n{tcp}\n");
        fs::write(self.home.join("data/pg_hba.conf"), access).expect("pg_hba.conf is written");
        superuser.batch_execute("SELECT pg_reload_conf()").await.expect("the server is told");
        // The postmaster, from which a new connection has the time, reads pg_hba.conf and certificates in the same step.
        until("the new settings", async || (load_time().await.1 != before).then_some(())).await;
    }

    /// Where `user` finds `database`: through the socket, around the gate, without a password.
    #[must_use]
    pub fn url(&self, user: &str, database: &str) -> String {
        format!("host={} port={} user={user} dbname={database}", self.home.display(), self.port)
    }

    /// A session of `user` in `database`, through the socket.
    pub async fn client(&self, user: &str, database: &str) -> Client {
        connect(&socket_config(&self.home, self.port, user, database)).await.expect("the socket trusts everybody")
    }

    /// Makes the catalog's database and roles, with the script that deployments use.
    ///
    /// # Panics
    /// With psql's words, when the script fails.
    pub fn bootstrap(&self, database: &str) {
        // Roles are the cluster's: the script would trip over itself.
        static TURN: Mutex<()> = Mutex::new(());
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let output = Command::new(programs::postgres_client("psql"))
            .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", "postgres", "-h"])
            .arg(&self.home)
            .args(["-p", &self.port.to_string()])
            .args(["-v", &format!("database={database}")])
            .args(["-v", &format!("provisioner_password={}", self.provisioner_password)])
            .args(["-v", &format!("proxy_password={}", self.proxy_password)])
            .arg("-f")
            .arg(programs::root().join("deploy/bootstrap.sql"))
            .output()
            .expect("psql runs");
        assert!(output.status.success(), "deploy/bootstrap.sql: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn keeper(&self) -> MutexGuard<'_, Keeper> {
        self.keeper.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How to connect through the socket in `home`.
#[must_use]
pub fn socket_config(home: &Path, port: u16, user: &str, database: &str) -> tokio_postgres::Config {
    let mut config = tokio_postgres::Config::new();
    config.host_path(home).port(port).user(user).dbname(database);
    config
}

/// Connects, and leaves the connection to a task of its own.
pub async fn connect(config: &tokio_postgres::Config) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok(client)
}

/// A port on which nobody listens, below the range from which the kernel hands out ports by itself: another test's
/// outgoing connection cannot take it before the server does.
#[must_use]
pub fn free_port() -> u16 {
    loop {
        let port = 15_000 + u16::try_from(random() % 17_000).unwrap_or_default();
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// 24 random bytes in hexadecimal.
#[must_use]
pub fn random_hex() -> String {
    (0..3).map(|_| format!("{:016x}", random())).collect()
}

/// A random number from the kernel.
#[must_use]
pub fn random() -> u64 {
    use std::io::Read as _;
    let mut bytes = [0_u8; 8];
    fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes)).expect("/dev/urandom reads");
    u64::from_ne_bytes(bytes)
}

fn new_home() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let home = std::env::temp_dir().join(format!("portcullis-test.{}.{number}", std::process::id()));
    fs::create_dir(&home).expect("the directory is new");
    fs::set_permissions(&home, fs::Permissions::from_mode(0o700)).expect("its mode is set");
    give_to_postgres(&home);
    if std::env::var_os("PORTCULLIS_TEST_KEEP").is_some() {
        eprintln!("keeping {}", home.display());
    }
    home
}

fn give_to_postgres(path: &Path) {
    if as_root() {
        let id = |flag: &str| {
            let output = Command::new("id").args([flag, "postgres"]).output().expect("id runs");
            String::from_utf8_lossy(&output.stdout).trim().parse().expect("there is a user postgres")
        };
        chown(path, Some(id("-u")), Some(id("-g"))).expect("the owner is set");
    }
}
