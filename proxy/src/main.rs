//! `portcullis-proxy`: reads its configuration, binds its two ports, serves, drains, ends.

use std::io::{self, BufReader, BufWriter, IsTerminal as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, Subcommand};
use portcullis_catalog::{CatalogError, Reader, ReaderOptions};
use portcullis_config::{ConfigError, Environment, ListenConfig, LogConfig, LogFormat, ProxyConfig};
use portcullis_proxy::admin::{self, Admin};
use portcullis_proxy::check::{self, Outcome};
use portcullis_proxy::door::{self, Door, UnixDoor};
use portcullis_proxy::gate::Gate;
use portcullis_proxy::metrics::Metrics;
use portcullis_proxy::stop::{Ending, Signals};
use portcullis_proxy::tls::{Tls, TlsError};
use portcullis_proxy::workers::Workers;
use portcullis_proxy::{harden, listen, stop};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// What is left of the process may take this long after the drain.
const SHUTDOWN_MAX: Duration = Duration::from_secs(2);

/// The gate in front of customers' PostgreSQL databases.
///
/// Terminates TLS, proves who is calling, judges every statement against the role's policy and forwards what may pass.
/// SIGHUP reads the certificate again; SIGTERM finishes transactions and ends; a second SIGTERM ends at once.
#[derive(Parser)]
#[command(name = "portcullis-proxy", version)]
struct Args {
    /// The configuration file. Every key can be overridden by the environment: PORTCULLIS__LISTEN__ADDRESS and so on.
    #[arg(long, value_name = "FILE", env = "PORTCULLIS_CONFIG")]
    config: Option<PathBuf>,

    /// Check the configuration and the certificate, say what is wrong, and exit.
    #[arg(long)]
    check_config: bool,

    /// Once both ports are open, write their addresses to this file: {"wire":"host:port","admin":"host:port"}.
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,

    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Judge SQL from standard input with a policy, without a server.
    ///
    /// Prints verdict, kind, reads, writes and functions of each text, and of a refused one what a client would be told.
    /// Needs no configuration.
    Check(Box<check::Arguments>),
}

/// Why the process did not start.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("the configuration cannot be used")]
    Config(#[from] ConfigError),
    #[error("the certificate cannot be used")]
    Tls(#[from] TlsError),
    #[error("log.filter {filter:?} is not a filter such as \"info\" or \"info,portcullis_proxy=debug\"")]
    Filter { filter: String, source: tracing_subscriber::filter::ParseError },
    #[error("cannot listen on {address} ({key})")]
    Bind { key: &'static str, address: SocketAddr, source: io::Error },
    #[error("cannot listen on {} (listen.unix_socket)", .path.display())]
    UnixSocket { path: PathBuf, source: io::Error },
    #[error("cannot write {}", .file.display())]
    ReadyFile { file: PathBuf, source: io::Error },
    #[error("the catalog cannot be used")]
    Catalog(#[from] CatalogError),
    #[error("cannot set up the process")]
    Process(#[source] io::Error),
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(Command::Check(arguments)) = &args.command {
        return check(arguments);
    }
    match start(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            ExitCode::FAILURE
        }
    }
}

/// 0: all may pass; 1: something is refused; 2: the arguments, the policy, input or output.
#[allow(clippy::print_stderr, reason = "the person who started it looks here")]
fn check(arguments: &check::Arguments) -> ExitCode {
    let input = BufReader::new(io::stdin());
    match check::run(arguments, input, BufWriter::new(io::stdout())) {
        Ok(Outcome::Passed) => ExitCode::SUCCESS,
        Ok(Outcome::Refused) => ExitCode::from(1),
        Err(error) => {
            eprintln!("{error}");
            if let Some(cause) = std::error::Error::source(&error) {
                eprintln!("  {cause}");
            }
            ExitCode::from(2)
        }
    }
}

fn start(args: &Args) -> Result<(), StartError> {
    let config = ProxyConfig::load(args.config.as_deref(), &Environment::of_process())?;
    let filter = filter(&config.log)?;
    if args.check_config {
        let tls = Tls::load(&config.tls)?;
        print_checked(&tls);
        return Ok(());
    }
    log_to_stderr(&config.log, filter);
    harden::forbid_core_dumps();
    harden::raise_descriptor_limit(config.listen.clients_max);
    let tls = Arc::new(Tls::load(&config.tls)?);
    let threads = session_threads(config.listen.threads);
    let workers = Workers::start(threads, portcullis_policy::STACK_BYTES).map_err(StartError::Process)?;
    let workers = Arc::new(workers);
    // For what is not a session: the catalog, the admin port, the accepting itself.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .thread_name("proxy")
        .worker_threads(2)
        .thread_stack_size(portcullis_policy::STACK_BYTES)
        .enable_all()
        .build()
        .map_err(StartError::Process)?;
    // On the runtime, not on the main thread, whose stack is the system's choice.
    let ready_file = args.ready_file.clone();
    let served = runtime.block_on(async {
        tokio::spawn(serve(config, tls, workers.clone(), ready_file))
            .await
            .map_err(|error| StartError::Process(error.into()))?
    });
    runtime.shutdown_timeout(SHUTDOWN_MAX);
    drop(workers);
    served
}

/// How many threads sessions run on: as many as configured, or one for every two processors.
fn session_threads(configured: u16) -> u16 {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    match configured {
        0 => u16::try_from(processors / 2).unwrap_or(u16::MAX).max(1),
        threads => threads,
    }
}

/// From the first bind to the end of the last session.
async fn serve(
    config: ProxyConfig,
    tls: Arc<Tls>,
    workers: Arc<Workers>,
    ready_file: Option<PathBuf>,
) -> Result<(), StartError> {
    let mut signals = Signals::install().map_err(StartError::Process)?;
    let (wire_port, wire) = bind("listen.address", config.listen.address)?;
    let (admin_port, admin) = bind("admin.address", config.admin.address)?;
    let plain_doors = plain_doors(&config.listen)?;
    let metrics = Arc::new(Metrics::new());
    stop::reload_on_hangup(tls.clone(), metrics.clone()).map_err(StartError::Process)?;

    let drain_timeout = Duration::from_millis(config.limits.drain_timeout_ms);
    let reader = Reader::start(ReaderOptions::new(&config.catalog, wire.to_string())).await?;
    let gate = Gate::new(config, tls.clone(), metrics.clone(), reader)?;
    let current = tokio::spawn(gate.clone().keep_current());
    let draining = gate.draining.clone();
    let view = Admin::new(&gate.config, tls.clone(), metrics, draining.clone(), gate.clone());
    let ended = CancellationToken::new();
    let admin_task = tokio::spawn(admin::serve(admin_port, Arc::new(view), ended.clone()));
    let doors = std::iter::once(Door::Tls(wire_port)).chain(plain_doors).collect();
    let mut sessions = tokio::spawn(listen::serve(doors, gate.clone(), workers, draining.clone()));

    let identity = tls.current();
    tracing::info!(%wire, %admin, version = env!("CARGO_PKG_VERSION"), "listening");
    tracing::info!(subject = %identity.subject, not_after = %identity.not_after, chain = identity.chain_len, "certificate");
    if let Some(file) = ready_file {
        announce(&file, wire, admin).map_err(|source| StartError::ReadyFile { file, source })?;
    }

    signals.until_asked(&draining).await;
    let ending = signals.drain(async { drop((&mut sessions).await) }, drain_timeout).await;
    if ending != Ending::Drained {
        gate.end_all();
        drop(tokio::time::timeout(SHUTDOWN_MAX, sessions).await);
    }
    current.abort();
    gate.reader.stop().await;
    ended.cancel();
    drop(admin_task.await);
    tracing::info!(?ending, "ended");
    Ok(())
}

fn bind(key: &'static str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let bound = door::bind(address).and_then(|listener| listener.local_addr().map(|local| (listener, local)));
    bound.map_err(|source| StartError::Bind { key, address, source })
}

/// The ways in without TLS that the configuration opens.
fn plain_doors(listen: &ListenConfig) -> Result<Vec<Door>, StartError> {
    let mut doors = Vec::new();
    if let Some(address) = listen.plaintext_address {
        let (port, local) = bind("listen.plaintext_address", address)?;
        tracing::info!(address = %local, "listening without TLS");
        doors.push(Door::Plain(port));
    }
    if let Some(path) = &listen.unix_socket {
        let door = UnixDoor::bind(path, listen.unix_socket_mode)
            .map_err(|source| StartError::UnixSocket { path: path.clone(), source })?;
        tracing::info!(path = %path.display(), "listening without TLS");
        doors.push(Door::Unix(door));
    }
    Ok(doors)
}

/// Appears whole or not at all, so that whoever waits for the file can read it at once.
fn announce(file: &Path, wire: SocketAddr, admin: SocketAddr) -> io::Result<()> {
    let content = serde_json::json!({ "wire": wire.to_string(), "admin": admin.to_string() }).to_string();
    let half = file.with_extension("tmp");
    std::fs::write(&half, content + "\n")?;
    std::fs::rename(&half, file)
}

fn filter(log: &LogConfig) -> Result<EnvFilter, StartError> {
    EnvFilter::try_new(&log.filter).map_err(|source| StartError::Filter { filter: log.filter.clone(), source })
}

fn log_to_stderr(log: &LogConfig, filter: EnvFilter) {
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match log.format {
        LogFormat::Text => builder.with_ansi(io::stderr().is_terminal()).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
}

#[allow(clippy::print_stdout, reason = "the result of --check-config")]
fn print_checked(tls: &Tls) {
    let identity = tls.current();
    println!("configuration ok; certificate {} valid until {}", identity.subject, identity.not_after);
}

#[allow(clippy::print_stderr, reason = "there may be no log yet, and the person who started it looks here")]
fn report(error: &StartError) {
    eprintln!("portcullis-proxy: {error}");
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        eprintln!("  {error}");
        cause = error.source();
    }
}
