//! A private PostgreSQL cluster in a temporary directory.
//!
//! A shell keeps it: it starts, kills and at last removes the cluster as this process tells it through a pipe. When this
//! process ends, in whatever way, the pipe closes and the keeper tidies up.

use std::{
    fs,
    io::Write as _,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Mutex, OnceLock},
    time::{Duration, Instant},
};

use tokio_postgres::{Client, NoTls};

/// $1 binaries, $2 directory, $3 port.
const KEEPER: &str = r#"
while read -r command; do
  case $command in
    start) "$1/postgres" -D "$2/data" -p "$3" -k "$2" >>"$2/log" 2>&1 & pid=$! ;;
    kill) kill -9 $pid $(cat /proc/$pid/task/$pid/children); wait $pid ;;
  esac
done
kill -QUIT $pid; wait $pid; rm -rf "$2"
"#;

const SETTINGS: &str = "fsync = off\nfull_page_writes = off\nmax_connections = 200\n\
    listen_addresses = '127.0.0.1'\nshared_buffers = 16MB\nautovacuum = off\n";

pub struct Cluster {
    keeper: Child,
    /// Taken when the cluster is dropped.
    orders: Mutex<Option<ChildStdin>>,
    pub directory: PathBuf,
    pub port: u16,
}

impl Cluster {
    /// The cluster that the tests of this process share.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Cluster> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    /// One of its own, for a test that ill-treats it.
    pub fn start() -> Self {
        let bin = binaries();
        let directory =
            PathBuf::from(output(as_postgres("mktemp").args(["-d", "-t", "portcullis-provisioner.XXXXXX"])));
        output(as_postgres("chmod").arg("755").arg(&directory));
        let data = directory.join("data");
        let initdb = bin.join("initdb").display().to_string();
        let arguments = ["-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync", "-D"];
        output(as_postgres(&initdb).args(arguments).arg(&data));
        output(
            as_postgres("sh")
                .args(["-c", "printf %s \"$1\" >>\"$2\"", "sh", SETTINGS])
                .arg(data.join("postgresql.conf")),
        );
        let port = free_port();
        let mut keeper = as_postgres("sh")
            .args(["-c", KEEPER, "sh"])
            .arg(&bin)
            .arg(&directory)
            .arg(port.to_string())
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let orders = Mutex::new(keeper.stdin.take());
        let cluster = Self { keeper, orders, directory, port };
        cluster.order("start");
        cluster.wait_until_it_answers();
        cluster
    }

    pub fn order(&self, command: &str) {
        writeln!(self.orders.lock().unwrap().as_ref().unwrap(), "{command}").unwrap();
    }

    pub fn wait_until_it_answers(&self) {
        let give_up = Instant::now() + Duration::from_secs(60);
        let mut ready = Command::new(client("pg_isready"));
        ready.arg("-q").arg("-h").arg(&self.directory).arg("-p").arg(self.port.to_string());
        while !ready.status().unwrap().success() {
            let log = || fs::read_to_string(self.directory.join("log")).unwrap_or_default();
            assert!(Instant::now() < give_up, "PostgreSQL does not start: {}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn wait_until_it_is_gone(&self) {
        let give_up = Instant::now() + Duration::from_secs(60);
        let socket = self.directory.join(format!(".s.PGSQL.{}", self.port));
        while std::os::unix::net::UnixStream::connect(&socket).is_ok() {
            assert!(Instant::now() < give_up, "PostgreSQL does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Where this role finds this database, through the Unix socket, without a password.
    pub fn url(&self, role: &str, database: &str) -> String {
        format!("host={} port={} user={role} dbname={database}", self.directory.display(), self.port)
    }

    pub async fn client(&self, role: &str, database: &str) -> Client {
        let (client, connection) = tokio_postgres::connect(&self.url(role, database), NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    /// Runs deploy/bootstrap.sql; roles are the cluster's, so one at a time.
    pub fn bootstrap(&self, database: &str) {
        static TURN: Mutex<()> = Mutex::new(());
        let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/bootstrap.sql");
        let mut psql = Command::new(client("psql"));
        psql.args([
            "-X",
            "-q",
            "-U",
            "postgres",
            "-d",
            "postgres",
            "-v",
            "provisioner_password=it's",
            "-v",
            "proxy_password=p",
        ]);
        psql.arg("-h").arg(&self.directory).arg("-p").arg(self.port.to_string());
        output(psql.arg("-v").arg(format!("database={database}")).arg("-f").arg(script));
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // The pipe must close before the keeper can end.
        drop(self.orders.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner).take());
        let _ = self.keeper.wait();
    }
}

/// PostgreSQL refuses to run as root.
fn as_postgres(program: &str) -> Command {
    if output(Command::new("id").arg("-u")) == "0" {
        let mut command = Command::new("runuser");
        command.args(["-u", "postgres", "--", program]).current_dir("/");
        command
    } else {
        Command::new(program)
    }
}

/// Of the newest major version that is installed, or where `PGBIN` points.
pub fn binaries() -> PathBuf {
    if let Some(given) = std::env::var_os("PGBIN") {
        return given.into();
    }
    let installed = fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL's server must be installed");
    let majors = installed.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse::<u32>().ok());
    let newest = majors.max().expect("PostgreSQL's server must be installed");
    PathBuf::from(format!("/usr/lib/postgresql/{newest}/bin"))
}

/// A client program; where `PGBIN` has the server's programs only, the one on the path.
fn client(program: &str) -> PathBuf {
    let beside = binaries().join(program);
    if beside.exists() { beside } else { program.into() }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub fn output(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
