//! The sidecar's binary: reads the configuration, starts the library, stops on SIGTERM or SIGINT.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use portcullis_config::{Environment, LogConfig, LogFormat, ProvisionerConfig};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Provisions customers' databases, issues and rotates their credentials, and answers the HTTP API of Portcullis.
///
/// Every key of the configuration file can be overridden by an environment variable: `api.listen` by
/// `PORTCULLIS__API__LISTEN`, and secrets also by a file, `PORTCULLIS__KEYS__KEY_OF_KEYS_FILE`.
#[derive(Parser)]
#[command(name = "portcullis-provisioner", version)]
struct Arguments {
    /// The configuration file (TOML). Without it everything comes from the environment.
    #[arg(long, value_name = "FILE", env = "PORTCULLIS_PROVISIONER_CONFIG")]
    config: Option<PathBuf>,
    /// Read the configuration, say whether it is right, and stop.
    #[arg(long)]
    check_config: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let config = match ProvisionerConfig::load(arguments.config.as_deref(), &Environment::of_process()) {
        Ok(config) => config,
        Err(error) => return fail(&error),
    };
    if arguments.check_config {
        return say("The configuration is right.");
    }
    log(&config.log);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    match runtime.block_on(run(&config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&*error),
    }
}

async fn run(config: &ProvisionerConfig) -> Result<(), Box<dyn std::error::Error>> {
    let stop = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stopping = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        stopping.cancel();
    });
    let started = tokio::select! {
        started = portcullis_provisioner::start(config) => started?,
        () = stop.cancelled() => return Ok(()),
    };
    portcullis_provisioner::serve(started, Duration::from_millis(config.reconcile.tick_ms), stop).await?;
    Ok(())
}

fn log(config: &LogConfig) {
    let filter = tracing_subscriber::EnvFilter::new(&config.filter);
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match config.format {
        LogFormat::Json => subscriber.json().init(),
        LogFormat::Text => subscriber.with_ansi(false).init(),
    }
}

#[allow(clippy::print_stdout, reason = "the answer of --check-config")]
fn say(text: &str) -> ExitCode {
    println!("{text}");
    ExitCode::SUCCESS
}

/// Before the log exists, and for the one line that an operator must see whatever the filter says.
#[allow(clippy::print_stderr, reason = "why the process ends")]
fn fail(error: &dyn std::error::Error) -> ExitCode {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text.push_str(": ");
        text.push_str(&next.to_string());
        cause = next.source();
    }
    eprintln!("portcullis-provisioner: {text}");
    ExitCode::FAILURE
}
