//! Where the programs are that the tests run: our own binaries, and PostgreSQL's.

use std::{env, path::PathBuf};

/// One of the workspace's binaries, built beside the tests (`cargo build --workspace --bins` or tests/run does that).
///
/// # Panics
/// When it has not been built.
#[must_use]
pub fn own(name: &str) -> PathBuf {
    let test = env::current_exe().expect("the test knows its own path");
    // …/target/<profile>/deps/e2e-<hash> for tests, …/target/<profile>/<name> for binaries.
    let found = test.ancestors().skip(1).take(2).map(|dir| dir.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("{name} is not built; run tests/run, or `cargo build --workspace --bins` first"))
}

/// The directory with the server's programs: of the newest major version on this machine, or the one that
/// `PORTCULLIS_POSTGRES_BIN` names.
///
/// # Panics
/// When there is no server on this machine.
#[must_use]
pub fn postgres_directory() -> PathBuf {
    if let Some(given) = env::var_os("PORTCULLIS_POSTGRES_BIN") {
        return given.into();
    }
    let versions = std::fs::read_dir("/usr/lib/postgresql").map(|entries| {
        entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok()).collect::<Vec<_>>()
    });
    let newest = versions.unwrap_or_default().into_iter().max().expect("the Debian package `postgresql` is installed");
    PathBuf::from(format!("/usr/lib/postgresql/{newest}/bin"))
}

/// One of PostgreSQL's client programs; the one on the path where the server's directory has none.
#[must_use]
pub fn postgres_client(name: &str) -> PathBuf {
    let beside = postgres_directory().join(name);
    if beside.exists() { beside } else { name.into() }
}

/// The directory with the drivers' environments that tests/run makes.
#[must_use]
pub fn drivers() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/test-env")
}

/// The repository's root.
#[must_use]
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}
