//! From a password to keys, and the texts in which PostgreSQL stores them.
//!
//! `SaltedPassword = PBKDF2(SASLprep(password))`; the ClientKey proves knowledge of the password, the StoredKey (its
//! hash) and the ServerKey suffice to check that proof. See RFC 5802, section 3, and `pg_authid.rolpassword`.

use std::num::NonZeroU32;

use aws_lc_rs::{digest, hmac, pbkdf2};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// Bytes of every key (SHA-256).
pub(super) const KEY_BYTES: usize = 32;

/// What is needed to check a login: it does not reveal the password and cannot be used to log in elsewhere.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Verifier {
    /// SHA-256 of the ClientKey.
    pub stored_key: [u8; KEY_BYTES],
    /// By which the server proves itself.
    pub server_key: [u8; KEY_BYTES],
}

/// All keys of one password under one salt and iteration count. The ClientKey is as good as the password.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Keys {
    /// By which the client proves itself.
    pub client_key: [u8; KEY_BYTES],
    /// SHA-256 of the ClientKey.
    pub stored_key: [u8; KEY_BYTES],
    /// By which the server proves itself.
    pub server_key: [u8; KEY_BYTES],
}

impl Keys {
    /// The part of it that a server needs.
    pub fn verifier(&self) -> Verifier {
        Verifier { stored_key: self.stored_key, server_key: self.server_key }
    }
}

/// The keys of a password. Takes some 150 ns per iteration; 0 iterations count as 1.
pub fn derive(password: &str, salt: &[u8], iterations: u32) -> Keys {
    let prepared = prepare(password);
    let mut salted = Zeroizing::new([0; KEY_BYTES]);
    let iterations = NonZeroU32::new(iterations).unwrap_or(NonZeroU32::MIN);
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, salt, prepared.as_bytes(), &mut salted[..]);
    let client_key = hmac_sha256(&salted[..], b"Client Key");
    let server_key = hmac_sha256(&salted[..], b"Server Key");
    Keys { client_key, stored_key: sha256(&client_key), server_key }
}

/// The text that `ALTER ROLE … PASSWORD` takes as it is: `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`.
pub fn postgres_verifier(keys: &Keys, salt: &[u8], iterations: u32) -> String {
    let [salt, stored, server] = [salt, &keys.stored_key, &keys.server_key].map(|bytes| STANDARD.encode(bytes));
    format!("SCRAM-SHA-256${iterations}:{salt}${stored}:{server}")
}

/// SASLprep as PostgreSQL does it: where the profile forbids a password, its bytes are taken as they are.
fn prepare(password: &str) -> Zeroizing<String> {
    let prepared = match stringprep::saslprep(password) {
        Ok(prepared) if !prepared.is_empty() => prepared.into_owned(),
        _ => password.to_owned(),
    };
    Zeroizing::new(prepared)
}

pub(super) fn hmac_sha256(key: &[u8], message: &[u8]) -> [u8; KEY_BYTES] {
    sized(hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message).as_ref())
}

pub(super) fn sha256(message: &[u8]) -> [u8; KEY_BYTES] {
    sized(digest::digest(&digest::SHA256, message).as_ref())
}

pub(super) fn xor(left: &[u8; KEY_BYTES], right: &[u8; KEY_BYTES]) -> [u8; KEY_BYTES] {
    std::array::from_fn(|at| left[at] ^ right[at])
}

/// SHA-256 gives 32 bytes, always.
fn sized(bytes: &[u8]) -> [u8; KEY_BYTES] {
    std::array::from_fn(|at| bytes[at])
}
