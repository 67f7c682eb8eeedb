//! The process that runs a cluster's server and tidies up behind it.
//!
//! A shell of its own process group, told what to do through a pipe. When the process that holds the pipe ends, in
//! whatever way, the pipe closes: the keeper stops the server and removes the directory. Should the keeper itself be
//! killed, the kernel tells the server to stop.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use crate::{
    process::{as_root, tail},
    programs,
};

/// The server's log, in the cluster's directory.
pub const LOG: &str = "postgres.log";

/// `$1` is the cluster's directory, `$2` that of the server's programs; the rest is what runs them.
const SCRIPT: &str = r#"
home=$1 bin=$2; shift 2
data=$home/data server=
while read -r order port; do
    case $order in
    init)
        "$@" "$bin/initdb" --pgdata="$data" --username=postgres --pwfile="$home/password" --auth-local=trust \
            --auth-host=scram-sha-256 --encoding=UTF8 --locale=C.UTF-8 --no-instructions --no-sync </dev/null >&2
        answer=$? ;;
    start)
        "$@" "$bin/postgres" -D "$data" -p "$port" -k "$home" >&2 &
        server=$! answer=$server ;;
    kill)
        # Stopped first, so that it starts nothing between the look at its children and their end.
        kill -STOP "$server"
        all="$server $(cat "/proc/$server/task/$server/children")"
        kill -KILL $all
        wait "$server"
        server=
        # A killed process holds on to the shared memory until it is a zombie, or gone.
        for pid in $all; do
            while grep -qs '^State:.[^XZ]' "/proc/$pid/status"; do sleep 0.01; done
        done
        answer=0 ;;
    esac
    echo "$answer"
done
if [ -n "$server" ]; then
    kill -QUIT "$server"
    wait "$server"
fi
[ -n "${PORTCULLIS_TEST_KEEP+set}" ] || rm -rf "$home"
"#;

/// A running keeper.
#[derive(Debug)]
pub struct Keeper {
    child: Child,
    /// Taken when the keeper is dropped.
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Keeper {
    /// Takes over the directory `home`.
    pub fn new(home: &Path) -> Keeper {
        let log = File::options().create(true).append(true).open(home.join(LOG)).expect("the log opens");
        let mut command = Command::new("sh");
        command.args(["-c", SCRIPT, "keeper"]).arg(home).arg(programs::postgres_directory());
        command.args(["setpriv", "--pdeathsig", "QUIT"]);
        if as_root() {
            // PostgreSQL refuses to run as root.
            command.args(["--reuid=postgres", "--regid=postgres", "--init-groups"]);
        }
        // A group of its own: what is sent to the tests' group, by Ctrl-C or by a runner, must not reach it.
        command.arg("--").current_dir(home).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        let mut child = command.spawn().expect("the keeper starts");
        let orders = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().expect("its output is a pipe"));
        Keeper { child, orders, answers }
    }

    /// Makes the cluster's data directory. The superuser's password is in the file `password`.
    ///
    /// # Panics
    /// With the end of the log, when that fails.
    pub fn init(&mut self, home: &Path) {
        let status = self.obey("init");
        assert!(status == 0, "initdb: {}", tail(&home.join(LOG)));
    }

    /// Starts the server and does not wait until it is ready; its process id.
    pub fn start(&mut self, port: u16) -> u32 {
        self.obey(&format!("start {port}"))
    }

    /// `kill -9` of the server and all its backends. They are gone when this returns.
    pub fn kill(&mut self) {
        self.obey("kill");
    }

    fn obey(&mut self, order: &str) -> u32 {
        let orders = self.orders.as_mut().expect("the keeper has not been dropped");
        writeln!(orders, "{order}").expect("the keeper listens");
        let mut answer = String::new();
        self.answers.read_line(&mut answer).expect("the keeper answers");
        answer.trim().parse().unwrap_or_else(|_| panic!("the keeper answers {order} with {answer:?}"))
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // The pipe must close before the keeper can end.
        drop(self.orders.take());
        let _ = self.child.wait();
    }
}

/// Whether `server` answers, by its own word.
///
/// # Panics
/// With the end of the log, when it has ended.
#[must_use]
pub fn is_ready(home: &Path, server: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{server}/status")).unwrap_or_default();
    let ended = status.lines().find_map(|line| line.strip_prefix("State:")).is_none_or(|s| s.trim().starts_with('Z'));
    assert!(!ended, "PostgreSQL ended:\n{}", tail(&home.join(LOG)));
    // After a kill the file is still the one before's.
    let file = fs::read_to_string(home.join("data/postmaster.pid")).unwrap_or_default();
    file.lines().next() == Some(&server.to_string()) && file.lines().last().is_some_and(|last| last.trim() == "ready")
}
