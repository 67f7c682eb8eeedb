//! Child processes that never outlive the tests: each is the leader of its own group, is killed when it is dropped, and
//! gets a signal from the kernel when the test process itself is killed.

use std::{
    fs::File,
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{OnceLock, mpsc},
    thread,
    time::{Duration, Instant},
};

/// A running child.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `program` with both output streams appended to `log`.
    #[must_use]
    pub fn start(name: &str, program: &Path, arguments: &[&str], log: &Path) -> Process {
        let output = File::options().create(true).append(true).open(log).expect("the log opens");
        // setpriv sets what std cannot: the signal at the parent's death.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program).args(arguments);
        // In the log's directory: what it drops goes with it.
        command.current_dir(log.parent().expect("a directory"));
        command.process_group(0).stdin(Stdio::null());
        command.stdout(output.try_clone().expect("a second handle of the log")).stderr(output);
        let child = spawn(command).unwrap_or_else(|error| panic!("{name} ({}) starts: {error}", program.display()));
        Process { name: name.to_owned(), child, log: log.to_owned() }
    }

    /// The process id, which is also the id of its group.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal such as `TERM` to the process alone.
    pub fn signal(&self, signal: &str) {
        send(signal, &self.child.id().to_string());
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits for the process to end by itself.
    ///
    /// # Panics
    /// When it has not ended after `limit`.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("the child can be waited for") {
                return status;
            }
            assert!(started.elapsed() < limit, "{} did not end within {limit:?}", self.name);
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Whether it has not ended yet.
    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|status| status.is_none())
    }

    /// Panics with the end of the log if the process has ended already: waiting for it to be ready would be in vain.
    pub fn expect_alive(&mut self) {
        if let Some(status) = self.child.try_wait().expect("the child can be waited for") {
            let how = status.signal().map_or_else(|| status.to_string(), |signal| format!("signal {signal}"));
            panic!("{} ended ({how}):\n{}", self.name, tail(&self.log));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.is_alive() {
            // The group: whatever else it started.
            send("KILL", &format!("-{}", self.child.id()));
            let _ = self.child.wait();
        }
    }
}

/// Sends `signal` to a process, or to a group when `target` begins with `-`. One that is gone already is fine.
pub fn send(signal: &str, target: &str) {
    // The shell's own: the program `kill` is in a package that a small machine may lack.
    let order = ["-c", "kill -s \"$0\" -- \"$1\"", signal, target];
    let _ = Command::new("sh").args(order).stderr(Stdio::null()).status();
}

/// The last lines of a log, for a panic's message.
#[must_use]
pub fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(25)..].join("\n")
}

/// Whether the tests run as root, which PostgreSQL refuses to run as.
#[must_use]
pub fn as_root() -> bool {
    static ROOT: OnceLock<bool> = OnceLock::new();
    *ROOT.get_or_init(|| {
        let output = Command::new("id").arg("-u").output().expect("id runs");
        output.stdout.starts_with(b"0\n")
    })
}

type Order = (Command, mpsc::Sender<std::io::Result<Child>>);

/// Spawns from a thread that lives as long as the process: the kernel's signal comes when the *thread* that spawned the
/// child ends, and a test's own thread ends with the test, tokio's whenever it likes.
fn spawn(command: Command) -> std::io::Result<Child> {
    static SPAWNER: OnceLock<mpsc::Sender<Order>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, received) = mpsc::channel::<Order>();
        thread::spawn(move || {
            for (mut command, answer) in received {
                let _ = answer.send(command.spawn());
            }
        });
        orders
    });
    let (answer, child) = mpsc::channel();
    spawner.send((command, answer)).expect("the spawner lives");
    child.recv().expect("the spawner answers")
}
