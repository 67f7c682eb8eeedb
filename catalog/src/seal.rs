//! Sealing what the catalog holds at rest: AES-256-GCM (NIST SP 800-38D), each value bound to its place.
//!
//! Two families that never meet. [`ProxyKey`] seals the backend roles' SCRAM keys; proxies have it. [`KeyOfKeys`] wraps a
//! [`DataKey`] per workspace, which seals the passwords of its logins; only the provisioner has it. The associated data
//! names workspace, login and version, so a value that is moved elsewhere does not open.
//!
//! A sealed value is one byte of format (1), the nonce (12 bytes), the ciphertext and its tag (16 bytes).

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use portcullis_config::Secret;
use zeroize::{Zeroize, Zeroizing};

use crate::{
    error::{CatalogError, Result},
    id::{Generation, LoginId, WorkspaceId},
    login::BackendRole,
};

/// The only format so far.
const FORMAT: u8 = 1;

/// A sealed value. Its `Debug` shows nothing: what is sealed may still be guessed at by its length alone.
#[derive(Clone, PartialEq, Eq)]
pub struct Sealed(Vec<u8>);

impl Sealed {
    /// A value as it was stored.
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The value to store.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealed(***)")
    }
}

/// Fills `bytes` from the system's random generator.
pub(crate) fn random_bytes(bytes: &mut [u8]) -> Result<()> {
    aws_lc_rs::rand::fill(bytes).map_err(|_| CatalogError::Random)
}

/// One AES-256-GCM key. Nonces are random: fine below 2^32 values per key, which no catalog reaches.
struct SealingKey(RandomizedNonceKey);

impl SealingKey {
    fn new(key: &[u8; 32]) -> Result<Self> {
        RandomizedNonceKey::new(&AES_256_GCM, key).map(Self).map_err(|_| CatalogError::Seal)
    }

    fn seal(&self, place: &str, plain: &[u8]) -> Result<Sealed> {
        let mut text = Zeroizing::new(Vec::with_capacity(plain.len() + AES_256_GCM.tag_len()));
        text.extend_from_slice(plain);
        let nonce = self.0.seal_in_place_append_tag(Aad::from(place), &mut *text).map_err(|_| CatalogError::Seal)?;
        let mut sealed = Vec::with_capacity(1 + NONCE_LEN + text.len());
        sealed.push(FORMAT);
        sealed.extend_from_slice(nonce.as_ref());
        sealed.extend_from_slice(&text);
        Ok(Sealed(sealed))
    }

    fn open(&self, place: &str, sealed: &Sealed) -> Result<Zeroizing<Vec<u8>>> {
        let Some((&FORMAT, rest)) = sealed.0.split_first() else { return Err(CatalogError::Seal) };
        let (nonce, text) = rest.split_at_checked(NONCE_LEN).ok_or(CatalogError::Seal)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| CatalogError::Seal)?;
        let mut text = Zeroizing::new(text.to_vec());
        let length = self.0.open_in_place(nonce, Aad::from(place), &mut text).map_err(|_| CatalogError::Seal)?.len();
        text.truncate(length);
        Ok(text)
    }
}

/// What the proxy needs to log in with SCRAM without a password: RFC 5802 §3.
pub struct BackendKeys {
    /// SCRAM's ClientKey.
    pub client_key: Zeroizing<[u8; 32]>,
    /// SCRAM's ServerKey, by which the server proves itself.
    pub server_key: Zeroizing<[u8; 32]>,
}

impl fmt::Debug for BackendKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BackendKeys(***)")
    }
}

/// Seals and opens the backend roles' keys.
pub struct ProxyKey(SealingKey);

impl ProxyKey {
    /// From the key's 32 bytes.
    ///
    /// # Errors
    /// Never for 32 bytes, as far as the library tells.
    pub fn new(key: &Secret<[u8; 32]>) -> Result<Self> {
        SealingKey::new(key.expose()).map(Self)
    }

    /// Seals the keys of one generation of a backend login.
    ///
    /// # Errors
    /// Only if the random generator fails.
    pub fn seal_backend(&self, login: &str, generation: Generation, keys: &BackendKeys) -> Result<Sealed> {
        let mut plain = Zeroizing::new([0u8; 64]);
        plain[..32].copy_from_slice(keys.client_key.as_slice());
        plain[32..].copy_from_slice(keys.server_key.as_slice());
        self.0.seal(&backend_place(login, generation), plain.as_slice())
    }

    /// Opens the keys of a backend role.
    ///
    /// # Errors
    /// [`CatalogError::Seal`] with another key, or when the value belongs to another login or generation.
    pub fn open_backend(&self, role: &BackendRole) -> Result<BackendKeys> {
        let plain = self.0.open(&backend_place(&role.login, role.generation), &role.sealed_keys)?;
        let (client, server) = plain.split_at_checked(32).ok_or(CatalogError::Seal)?;
        Ok(BackendKeys { client_key: key_of(client)?, server_key: key_of(server)? })
    }
}

impl fmt::Debug for ProxyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProxyKey(***)")
    }
}

fn backend_place(login: &str, generation: Generation) -> String {
    format!("backend:{login}:{generation}")
}

fn key_of(bytes: &[u8]) -> Result<Zeroizing<[u8; 32]>> {
    bytes.try_into().map(Zeroizing::new).map_err(|_| CatalogError::Seal)
}

/// Wraps the data key of each workspace. Only the provisioner has it.
pub struct KeyOfKeys(SealingKey);

impl KeyOfKeys {
    /// From the key's 32 bytes.
    ///
    /// # Errors
    /// Never for 32 bytes, as far as the library tells.
    pub fn new(key: &Secret<[u8; 32]>) -> Result<Self> {
        SealingKey::new(key.expose()).map(Self)
    }

    /// A new random data key for a workspace, and its wrapped form to store.
    ///
    /// # Errors
    /// Only if the random generator fails.
    pub fn new_data_key(&self, workspace: &WorkspaceId) -> Result<(DataKey, Sealed)> {
        let mut key = Zeroizing::new([0u8; 32]);
        random_bytes(key.as_mut_slice())?;
        let wrapped = self.0.seal(&data_key_place(workspace), key.as_slice())?;
        Ok((DataKey(SealingKey::new(&key)?), wrapped))
    }

    /// The data key of a workspace from its wrapped form.
    ///
    /// # Errors
    /// [`CatalogError::Seal`] with another key of keys, or when it belongs to another workspace.
    pub fn unwrap_data_key(&self, workspace: &WorkspaceId, wrapped: &Sealed) -> Result<DataKey> {
        let key = key_of(&self.0.open(&data_key_place(workspace), wrapped)?)?;
        Ok(DataKey(SealingKey::new(&key)?))
    }

    /// Wraps a workspace's data key again, under `new`: the passwords themselves need not be touched.
    ///
    /// # Errors
    /// As [`Self::unwrap_data_key`].
    pub fn rewrap(&self, new: &Self, workspace: &WorkspaceId, wrapped: &Sealed) -> Result<Sealed> {
        let place = data_key_place(workspace);
        new.0.seal(&place, &self.0.open(&place, wrapped)?)
    }
}

impl fmt::Debug for KeyOfKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyOfKeys(***)")
    }
}

fn data_key_place(workspace: &WorkspaceId) -> String {
    format!("data_key:{workspace}")
}

/// Seals the passwords of one workspace's logins.
pub struct DataKey(SealingKey);

impl DataKey {
    /// Seals the password of one version of a login.
    ///
    /// # Errors
    /// Only if the random generator fails.
    pub fn seal_password(
        &self,
        workspace: &WorkspaceId,
        login: &LoginId,
        version: i32,
        password: &Secret<String>,
    ) -> Result<Sealed> {
        self.0.seal(&password_place(workspace, login, version), password.expose().as_bytes())
    }

    /// Opens the password of one version of a login.
    ///
    /// # Errors
    /// [`CatalogError::Seal`] with another key, or when the value belongs to another login or version.
    pub fn open_password(
        &self,
        workspace: &WorkspaceId,
        login: &LoginId,
        version: i32,
        sealed: &Sealed,
    ) -> Result<Secret<String>> {
        let mut plain = self.0.open(&password_place(workspace, login, version), sealed)?;
        String::from_utf8(std::mem::take(&mut *plain)).map(Secret::new).map_err(|error| {
            error.into_bytes().zeroize();
            CatalogError::Seal
        })
    }
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataKey(***)")
    }
}

fn password_place(workspace: &WorkspaceId, login: &LoginId, version: i32) -> String {
    format!("password:{workspace}:{login}:{version}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn role(login: &str, generation: i32, sealed_keys: Sealed) -> BackendRole {
        BackendRole {
            workspace: WorkspaceId::parse("ws_0123456789abcdef").unwrap(),
            kind: "customer_db".to_owned(),
            role: "r".to_owned(),
            login: login.to_owned(),
            generation: Generation(generation),
            salt: vec![0; 16],
            iterations: 4096,
            sealed_keys,
        }
    }

    #[test]
    fn backend_keys_open_only_in_their_place() {
        let key = ProxyKey::new(&Secret::new([7; 32])).unwrap();
        let keys = BackendKeys { client_key: Zeroizing::new([1; 32]), server_key: Zeroizing::new([2; 32]) };
        let sealed = key.seal_backend("ws_a", Generation(3), &keys).unwrap();
        let opened = key.open_backend(&role("ws_a", 3, sealed.clone())).unwrap();
        assert_eq!((*opened.client_key, *opened.server_key), ([1; 32], [2; 32]));
        assert!(key.open_backend(&role("ws_b", 3, sealed.clone())).is_err(), "another login");
        assert!(key.open_backend(&role("ws_a", 4, sealed.clone())).is_err(), "another generation");
        let other = ProxyKey::new(&Secret::new([8; 32])).unwrap();
        assert!(other.open_backend(&role("ws_a", 3, sealed.clone())).is_err(), "another key");
        for byte in 0..sealed.as_bytes().len() {
            let mut damaged = sealed.as_bytes().to_vec();
            damaged[byte] ^= 1;
            assert!(key.open_backend(&role("ws_a", 3, Sealed::from_bytes(damaged))).is_err(), "byte {byte} changed");
            let cut = Sealed::from_bytes(sealed.as_bytes()[..byte].to_vec());
            assert!(key.open_backend(&role("ws_a", 3, cut)).is_err(), "cut at {byte}");
        }
        let again = key.seal_backend("ws_a", Generation(3), &keys).unwrap();
        assert_ne!(again, sealed, "every sealing has its own nonce");
    }

    #[test]
    fn passwords_open_only_for_their_workspace_login_and_version() {
        let keys = KeyOfKeys::new(&Secret::new([1; 32])).unwrap();
        let [ws, other_ws] = ["ws_0123456789abcdef", "ws_ffffffffffffffff"].map(|id| WorkspaceId::parse(id).unwrap());
        let [login, other] = ["lg_0123456789abcdef", "lg_ffffffffffffffff"].map(|id| LoginId::parse(id).unwrap());
        let (data_key, wrapped) = keys.new_data_key(&ws).unwrap();
        let sealed = data_key.seal_password(&ws, &login, 1, &Secret::new("pässword".to_owned())).unwrap();
        let unwrapped = keys.unwrap_data_key(&ws, &wrapped).unwrap();
        assert_eq!(unwrapped.open_password(&ws, &login, 1, &sealed).unwrap().expose(), "pässword");
        assert!(unwrapped.open_password(&ws, &login, 2, &sealed).is_err());
        assert!(unwrapped.open_password(&ws, &other, 1, &sealed).is_err());
        assert!(unwrapped.open_password(&other_ws, &login, 1, &sealed).is_err());
        assert!(keys.unwrap_data_key(&other_ws, &wrapped).is_err());

        let new = KeyOfKeys::new(&Secret::new([2; 32])).unwrap();
        assert!(new.unwrap_data_key(&ws, &wrapped).is_err());
        let rewrapped = keys.rewrap(&new, &ws, &wrapped).unwrap();
        let unwrapped = new.unwrap_data_key(&ws, &rewrapped).unwrap();
        assert_eq!(unwrapped.open_password(&ws, &login, 1, &sealed).unwrap().expose(), "pässword");
    }

    #[test]
    fn nothing_shows_in_debug() {
        let key = ProxyKey::new(&Secret::new([7; 32])).unwrap();
        let keys = BackendKeys { client_key: Zeroizing::new([1; 32]), server_key: Zeroizing::new([2; 32]) };
        let sealed = key.seal_backend("ws_a", Generation(3), &keys).unwrap();
        assert_eq!(format!("{key:?} {keys:?} {sealed:?}"), "ProxyKey(***) BackendKeys(***) Sealed(***)");
    }
}
