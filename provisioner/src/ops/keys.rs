//! Keys of the HTTP API: `pk_<id>_<secret>`, of which the catalog knows only a hash.
//!
//! The secret carries 238 bits of randomness, so a plain SHA-256 is enough: there is nothing to guess. Its last six
//! characters are a checksum, by which a mistyped or cut key is told from a wrong one without asking the catalog.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use aws_lc_rs::digest::{SHA256, digest};
use jiff::Timestamp;
use portcullis_catalog::{Actor, ApiKey, ApiKeyId, CatalogError, Secret, Store};
use subtle::ConstantTimeEq as _;

use crate::StartError;

/// Characters of the secret before its checksum.
const SECRET_CHARS: usize = 40;
/// Characters of the checksum.
const CHECKSUM_CHARS: usize = 6;
/// The scope that includes every other.
pub const ADMIN: &str = "admin";

/// A key as its holder has it, well formed.
pub struct PresentedKey {
    /// The public part.
    pub id: ApiKeyId,
    hash: [u8; 32],
}

impl PresentedKey {
    /// Takes a key apart. `None` if it is none: wrong form, or a checksum that does not fit.
    #[must_use]
    pub fn parse(text: &str) -> Option<PresentedKey> {
        let rest = text.strip_prefix("pk_")?;
        let (id, secret) = rest.split_once('_')?;
        let id = ApiKeyId::parse(&format!("pk_{id}"))?;
        let alphanumeric = secret.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if secret.len() != SECRET_CHARS + CHECKSUM_CHARS || !alphanumeric {
            return None;
        }
        let (random, given) = secret.split_at(SECRET_CHARS);
        (checksum(&id, random) == given).then(|| PresentedKey { hash: hash(secret), id })
    }

    /// Whether it is the key of this hash. Takes the same time either way.
    #[must_use]
    pub fn is(&self, stored: &[u8; 32]) -> bool {
        self.hash.ct_eq(stored).into()
    }
}

/// Makes a key: what is stored, and the text that is shown once.
///
/// # Errors
/// Only if the system's random generator fails.
pub fn make(name: &str, scopes: &[&str], now: Timestamp) -> Result<(ApiKey, Secret<String>), CatalogError> {
    let id = ApiKeyId::random()?;
    let random = super::credentials::random_text(SECRET_CHARS)?;
    let secret = zeroize::Zeroizing::new(format!("{}{}", random.expose(), checksum(&id, random.expose())));
    let key = ApiKey {
        name: name.to_owned(),
        secret_hash: hash(&secret),
        scopes: scopes.iter().map(|scope| (*scope).to_owned()).collect(),
        workspace: None,
        created_at: now,
        expires_at: None,
        revoked_at: None,
        last_used_at: None,
        id,
    };
    let text = Secret::new(format!("{}_{}", key.id, secret.as_str()));
    Ok((key, text))
}

/// Mints the admin key of an empty catalog and hands it over: into a file that only we can read, or once to standard error.
///
/// # Errors
/// When the file cannot be written (then no key is stored either), or the catalog fails.
pub async fn mint_first(store: &Store, file: Option<&Path>, now: Timestamp) -> Result<(), StartError> {
    if store.has_api_keys().await? {
        return Ok(());
    }
    let (key, text) = make("first admin key", &[ADMIN], now)?;
    // Written before it is stored: a crash in between leaves a file that the next start replaces, never a lost key.
    if let Some(path) = file {
        write_secret(path, &text).map_err(|source| StartError::Io {
            what: format!("bootstrap.admin_key_file {}", path.display()),
            source,
        })?;
    }
    match (store.insert_first_api_key(&Actor::program("start"), &key).await?, file) {
        (Some(_), Some(path)) => tracing::info!(key = %key.id, file = %path.display(), "minted the first admin key"),
        (Some(_), None) => show(&text),
        // Another sidecar was faster; the file, if any, is its own.
        (None, _) => tracing::warn!("another sidecar has minted the first admin key"),
    }
    Ok(())
}

fn write_secret(path: &Path, text: &Secret<String>) -> std::io::Result<()> {
    let temporary = path.with_extension(format!("{}.new", std::process::id()));
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(text.expose().as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)
}

/// Not through the log: logs are kept and shipped, and this is for whoever watches the first start.
#[allow(clippy::print_stdout, reason = "the one time that a secret is shown on purpose")]
fn show(text: &Secret<String>) {
    println!("The first admin key, shown this once: {}", text.expose());
}

fn hash(secret: &str) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, secret.as_bytes()).as_ref());
    hash
}

fn checksum(id: &ApiKeyId, random: &str) -> String {
    let digest = digest(&SHA256, format!("{id}_{random}").as_bytes());
    digest.as_ref().iter().take(CHECKSUM_CHARS / 2).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_accepted_whole_and_only_whole() {
        let (key, text) = make("test", &[ADMIN], Timestamp::UNIX_EPOCH).unwrap();
        let text = text.expose();
        let presented = PresentedKey::parse(text).unwrap();
        assert_eq!(presented.id, key.id);
        assert!(presented.is(&key.secret_hash));
        assert!(!presented.is(&[0; 32]));
        for cut in 0..text.len() {
            assert!(PresentedKey::parse(&text[..cut]).is_none(), "cut at {cut}");
        }
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = if bytes[at] == b'a' { b'b' } else { b'a' };
            let changed = String::from_utf8(bytes).unwrap();
            assert!(PresentedKey::parse(&changed).is_none(), "byte {at} changed");
        }
        assert!(!format!("{key:?}").contains(&text[20..]));
    }
}
