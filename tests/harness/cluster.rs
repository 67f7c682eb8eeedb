//! A private PostgreSQL cluster.
//!
//! It lives in a directory of its own under the system's temporary directory, since the user `postgres` may not be able
//! to enter the clone. TCP asks for a password; the Unix socket trusts whoever may enter the directory (its owner and
//! root), so that a test can log in as any role, around the gate.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use tokio_postgres::{Client, NoTls};

use crate::{
    process::{Kind, Process, as_root, supervised, tail},
    programs,
    wait::until,
};

const PREFIX: &str = "portcullis-test";

/// A cluster and the directory that it shares with the rest of its stack.
#[derive(Debug)]
pub struct Cluster {
    /// The directory with the data, the socket and the log.
    pub home: PathBuf,
    /// The TCP port on 127.0.0.1.
    pub port: u16,
    /// The superuser's (`postgres`) password.
    pub password: String,
    server: Option<Process>,
}

impl Cluster {
    /// Makes a cluster and starts it.
    pub async fn start() -> Cluster {
        sweep();
        let home = new_home();
        let password = random_hex();
        let secret = home.join("password");
        fs::write(&secret, &password).expect("the password is written");
        give_to_postgres(&secret);
        let data = home.join("data");
        let output = supervised(Kind::Postgres, &programs::postgres("initdb"))
            .args(["--username=postgres", "--auth-local=trust", "--auth-host=scram-sha-256", "--encoding=UTF8"])
            .args(["--locale=C.UTF-8", "--no-instructions", "--no-sync"])
            .arg(format!("--pwfile={}", secret.display()))
            .arg(format!("--pgdata={}", data.display()))
            .current_dir(&home)
            .output()
            .expect("initdb runs");
        assert!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
        let mut cluster = Cluster { port: free_port(), home, password, server: None };
        let settings = format!(
            "listen_addresses = '127.0.0.1'\nport = {}\nunix_socket_directories = '{}'\nmax_connections = 200\n\
             fsync = off\nlog_line_prefix = '%m [%p] %u@%d '\n",
            cluster.port,
            cluster.home.display()
        );
        let config = data.join("postgresql.conf");
        let defaults = fs::read_to_string(&config).expect("the configuration reads");
        fs::write(&config, defaults + &settings).expect("the configuration is written");
        cluster.restart().await;
        cluster
    }

    /// Starts the server again after [`Cluster::kill`], on the same port and data.
    pub async fn restart(&mut self) {
        let data = self.home.join("data");
        let data = data.to_str().expect("a path in UTF-8");
        let log = self.home.join("postgres.log");
        let program = programs::postgres("postgres");
        let start = || Process::start("postgres", Kind::Postgres, &program, &["-D", data], &log);
        let mut server = start();
        let config = self.config("postgres", "postgres");
        until("PostgreSQL", async || {
            if !server.is_alive() && tail(&log).contains("is still in use") {
                // Backends of a killed server were still attached to its shared memory.
                server = start();
            }
            server.expect_alive();
            config.connect(NoTls).await.ok().map(drop)
        })
        .await;
        self.server = Some(server);
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
            let superuser = connect(&self.config("postgres", "postgres")).await.expect("the superuser connects");
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

    /// `kill -9` of the postmaster; its backends notice and end.
    pub fn kill(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill();
        }
    }

    /// How to connect as `user` around the gate, through the socket, without a password.
    #[must_use]
    pub fn config(&self, user: &str, database: &str) -> tokio_postgres::Config {
        socket_config(&self.home, self.port, user, database)
    }

    /// The end of the server's log.
    #[must_use]
    pub fn log(&self) -> String {
        tail(&self.home.join("postgres.log"))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.signal("QUIT");
            server.wait(crate::wait::PATIENCE);
        }
        if std::env::var_os("PORTCULLIS_TEST_KEEP").is_some() {
            eprintln!("kept: {}", self.home.display());
        } else {
            let _ = fs::remove_dir_all(&self.home);
        }
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
    let home = std::env::temp_dir().join(format!("{PREFIX}.{}.{number}", std::process::id()));
    fs::create_dir(&home).expect("the directory is new");
    fs::set_permissions(&home, fs::Permissions::from_mode(0o700)).expect("its mode is set");
    give_to_postgres(&home);
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

/// Removes the directories of test processes that were killed before they could.
fn sweep() {
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.strip_prefix('.')?.split('.').next());
        if owner.is_some_and(|owner| !Path::new("/proc").join(owner).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
