//! Two kinds of credentials: the logins that customers hold, and the backend roles that the proxies hold.
//!
//! A login's password is random, checked by the proxies against SCRAM keys, and kept sealed so that it can be revealed
//! again. A backend role's password is random too and kept nowhere: PostgreSQL gets its verifier, the proxies get the
//! SCRAM keys that are as good as the password, sealed under a key of their own.

use std::time::Duration;

use jiff::Timestamp;
use portcullis_catalog::seal::{BackendKeys, DataKey, ProxyKey};
use portcullis_catalog::{
    Acknowledged, Actor, AuditEvent, BackendRole, CatalogError, Generation, LoginId, LoginRecord, NewLogin, NewVersion,
    Rotation, Secret, Workspace,
};
use portcullis_policy::RolePolicy;
use portcullis_wire::scram;
use zeroize::Zeroizing;

use crate::Provisioner;
use crate::names::Names;
use crate::reconcile::ReconcileError;

/// Characters of a password: 238 bits.
const PASSWORD_CHARS: usize = 40;
/// PostgreSQL's own default. Passwords are random: more iterations would protect nothing and cost every login.
const ITERATIONS: u32 = 4096;
/// Bytes of salt, as PostgreSQL makes them.
const SALT_BYTES: usize = 16;
/// How often a rotation is decided anew when somebody else rotates the same login at the same time.
const ROTATE_ATTEMPTS: usize = 4;
/// How long an answer waits for the proxies.
pub const ACKNOWLEDGE: Duration = Duration::from_secs(1);

/// Why a credential cannot be given or changed.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The catalog failed.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The workspace's profile is unknown here.
    #[error(transparent)]
    Profile(#[from] ReconcileError),
    /// The profile has no such kind.
    #[error("unknown kind")]
    UnknownKind {
        /// The kinds that there are.
        allowed: Vec<String>,
    },
    /// The kind is the platform's own.
    #[error("internal kind")]
    Internal,
    /// The login is not there yet.
    #[error("not provisioned")]
    NotProvisioned,
    /// No copy of the password is kept.
    #[error("no copy of the password is kept")]
    NotKept,
}

/// A login with its password, for whoever may see it.
#[derive(Debug)]
pub struct Credential {
    /// The kind of login.
    pub kind: String,
    /// The user name on the wire.
    pub username: String,
    /// The password.
    pub password: Secret<String>,
    /// Which version of the login it is.
    pub version: i32,
}

/// What a rotation brought.
#[derive(Debug)]
pub struct Rotated {
    /// The new credential.
    pub credential: Credential,
    /// Until when the previous password is accepted.
    pub previous_valid_until: Option<Timestamp>,
    /// How many sessions proxies have ended because of it so far.
    pub sessions_terminated: i64,
    /// Which proxies know.
    pub acknowledged: Acknowledged,
}

/// `count` random characters of `[A-Za-z0-9]`.
///
/// # Errors
/// Only if the system's random generator fails.
pub fn random_text(count: usize) -> Result<Secret<String>, CatalogError> {
    const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let mut text = Zeroizing::new(String::with_capacity(count));
    let mut bytes = Zeroizing::new([0u8; 64]);
    while text.len() < count {
        aws_lc_rs::rand::fill(bytes.as_mut_slice()).map_err(|_| CatalogError::Random)?;
        // Bytes from 248 up are thrown away, so that every character is equally likely.
        let fair = bytes.iter().filter(|byte| **byte < 248).take(count - text.len());
        for byte in fair {
            text.push(char::from(ALPHABET[usize::from(byte % 62)]));
        }
    }
    Ok(Secret::new(std::mem::take(&mut *text)))
}

fn random_salt() -> Result<Vec<u8>, CatalogError> {
    let mut salt = vec![0; SALT_BYTES];
    aws_lc_rs::rand::fill(&mut salt).map_err(|_| CatalogError::Random)?;
    Ok(salt)
}

/// Makes what a workspace lacks: one login and one backend role per kind that customers may hold. Does nothing to those
/// that exist.
///
/// # Errors
/// When the catalog fails or the profile is unknown.
pub async fn ensure(provisioner: &Provisioner, workspace: &Workspace) -> Result<(), ReconcileError> {
    let logins = provisioner.store.logins(&workspace.id).await?;
    let backends = provisioner.store.backend_roles(&workspace.id).await?;
    let kinds = provisioner.profile(workspace)?.policy.kinds();
    for kind in kinds.iter().filter(|kind| kind.revealable()) {
        if !backends.iter().any(|role| role.kind == kind.kind()) {
            make_backend(provisioner, workspace, kind.kind()).await?;
        }
        if !logins.iter().any(|record| record.login.kind == kind.kind()) {
            make_login(provisioner, workspace, kind).await?;
        }
    }
    Ok(())
}

async fn make_backend(provisioner: &Provisioner, workspace: &Workspace, kind: &str) -> Result<(), CatalogError> {
    let names = Names::of(workspace.id.as_str());
    let [login, _] = names.logins(kind);
    let (password, salt, generation) = (random_text(PASSWORD_CHARS)?, random_salt()?, Generation(1));
    let keys = scram::derive(password.expose(), &salt, ITERATIONS);
    let keys = BackendKeys { client_key: Zeroizing::new(keys.client_key), server_key: Zeroizing::new(keys.server_key) };
    let sealed_keys = provisioner.proxy_key.seal_backend(&login, generation, &keys)?;
    let role = BackendRole {
        workspace: workspace.id.clone(),
        kind: kind.to_owned(),
        role: names.group(kind),
        login,
        generation,
        salt,
        iterations: ITERATIONS,
        sealed_keys,
    };
    match provisioner.store.put_backend_role(&Actor::program("reconcile"), &role).await {
        // Another sidecar was faster.
        Ok(_) | Err(CatalogError::Stale { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// What PostgreSQL stores as the password of a backend role, made again from the sealed keys: a repair sets the same one,
/// and no pool notices.
///
/// # Errors
/// When the sealed keys do not open.
pub fn backend_verifier(proxy_key: &ProxyKey, role: &BackendRole) -> Result<String, CatalogError> {
    let opened = proxy_key.open_backend(role)?;
    let mut stored_key = [0; 32];
    stored_key
        .copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, opened.client_key.as_slice()).as_ref());
    let keys = scram::Keys { client_key: *opened.client_key, stored_key, server_key: *opened.server_key };
    Ok(scram::postgres_verifier(&keys, &role.salt, role.iterations))
}

async fn make_login(provisioner: &Provisioner, workspace: &Workspace, kind: &RolePolicy) -> Result<(), ReconcileError> {
    let (id, salt) = (LoginId::random()?, random_salt()?);
    let data_key = data_key(provisioner, workspace).await?;
    let version = new_version(workspace, &id, 1, &salt, ITERATIONS, data_key.as_ref())?;
    let new = NewLogin {
        id,
        workspace: workspace.id.clone(),
        kind: kind.kind().to_owned(),
        username: username(workspace, kind),
        salt,
        iterations: ITERATIONS,
        version: version.0,
        now: Timestamp::now(),
    };
    match provisioner.store.create_login(&Actor::program("reconcile"), &new).await {
        Ok(_) | Err(CatalogError::Exists { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// `tdb_<16 hex>`, with a suffix for every kind but the primary one (C13).
fn username(workspace: &Workspace, kind: &RolePolicy) -> String {
    let digits = workspace.id.digits();
    match kind.username_suffix() {
        Some(suffix) => format!("tdb_{digits}_{suffix}"),
        None => format!("tdb_{digits}"),
    }
}

async fn data_key(provisioner: &Provisioner, workspace: &Workspace) -> Result<Option<DataKey>, CatalogError> {
    let wrapped = provisioner.store.wrapped_key(&workspace.id).await?;
    wrapped.map(|wrapped| provisioner.key_of_keys.unwrap_data_key(&workspace.id, &wrapped)).transpose()
}

fn new_version(
    workspace: &Workspace,
    login: &LoginId,
    version: i32,
    salt: &[u8],
    iterations: u32,
    data_key: Option<&DataKey>,
) -> Result<(NewVersion, Secret<String>), CatalogError> {
    let password = random_text(PASSWORD_CHARS)?;
    let keys = scram::derive(password.expose(), salt, iterations);
    let seal = |key: &DataKey| key.seal_password(&workspace.id, login, version, &password);
    let new = NewVersion {
        version,
        stored_key: keys.stored_key,
        server_key: keys.server_key,
        sealed_password: data_key.map(seal).transpose()?,
        valid_until: None,
    };
    Ok((new, password))
}

/// The kind that a request names, if customers may hold it. The contract's name of a role is understood too (C2).
fn kind_of<'p>(
    provisioner: &'p Provisioner,
    workspace: &Workspace,
    kind: &str,
) -> Result<&'p RolePolicy, CredentialError> {
    let kinds = provisioner.profile(workspace)?.policy.kinds();
    let named = kinds.iter().find(|known| known.kind() == kind);
    let internal = |known: &RolePolicy| !known.revealable();
    // dl_platform_runtime is the platform's in every profile, also where no document mentions it (D22, D40).
    let platform = kind == "dl_platform_runtime"
        || kinds.iter().any(|known| internal(known) && (known.kind() == kind || known.contract_role() == kind));
    match named {
        Some(known) if !internal(known) => Ok(known),
        _ if platform => Err(CredentialError::Internal),
        _ => {
            let allowed = kinds.iter().filter(|known| known.revealable()).map(|known| known.kind().to_owned());
            Err(CredentialError::UnknownKind { allowed: allowed.collect() })
        }
    }
}

async fn login_of(
    provisioner: &Provisioner,
    workspace: &Workspace,
    kind: &str,
) -> Result<LoginRecord, CredentialError> {
    let kind = kind_of(provisioner, workspace, kind)?;
    provisioner.store.login(&workspace.id, kind.kind()).await?.ok_or(CredentialError::NotProvisioned)
}

/// The current password of a kind. The audit knows before the caller does.
///
/// # Errors
/// See [`CredentialError`].
pub async fn reveal(
    provisioner: &Provisioner,
    actor: &Actor,
    workspace: &Workspace,
    kind: &str,
) -> Result<Credential, CredentialError> {
    let record = login_of(provisioner, workspace, kind).await?;
    let active = record.active().ok_or(CredentialError::NotProvisioned)?;
    let sealed = active.sealed_password.as_ref().ok_or(CredentialError::NotKept)?;
    let data_key = data_key(provisioner, workspace).await?.ok_or(CredentialError::NotKept)?;
    let password = data_key.open_password(&workspace.id, &record.login.id, active.version, sealed)?;
    let event = AuditEvent::new("login.reveal").workspace(&workspace.id).subject(record.login.id.as_str());
    let detail = serde_json::json!({"kind": record.login.kind, "version": active.version});
    provisioner.store.audit(actor, &event.detail(detail)).await?;
    let version = active.version;
    let (kind, username) = (record.login.kind, record.login.username);
    Ok(Credential { kind, username, password, version })
}

/// A new password for a kind, and one second for the proxies to hear of it.
///
/// # Errors
/// See [`CredentialError`].
pub async fn rotate(
    provisioner: &Provisioner,
    actor: &Actor,
    workspace: &Workspace,
    kind: &str,
    grace: Duration,
    terminate_sessions: bool,
) -> Result<Rotated, CredentialError> {
    let data_key = data_key(provisioner, workspace).await?;
    let mut attempt = 1;
    loop {
        let record = login_of(provisioner, workspace, kind).await?;
        let login = &record.login;
        let (version, password) =
            new_version(workspace, &login.id, record.next_version(), &login.salt, login.iterations, data_key.as_ref())?;
        let number = version.version;
        // As precise as PostgreSQL keeps it, so that every answer names the same moment.
        let now = Timestamp::from_microsecond(Timestamp::now().as_microsecond()).unwrap_or_default();
        let rotation = Rotation { login: login.id.clone(), version, grace, terminate_sessions, now };
        let rotated = match provisioner.store.rotate_login(actor, &rotation).await {
            Err(CatalogError::Stale { .. }) if attempt < ROTATE_ATTEMPTS => {
                attempt += 1;
                continue;
            }
            other => other?,
        };
        let acknowledged = provisioner.store.wait_acknowledged(rotated.revision, ACKNOWLEDGE).await?;
        let sessions_terminated = if terminate_sessions {
            provisioner.store.sessions_terminated(&login.id, rotated.session_epoch).await?
        } else {
            0
        };
        let (kind, username) = (login.kind.clone(), login.username.clone());
        let credential = Credential { kind, username, password, version: number };
        let previous_valid_until = rotated.previous_valid_until;
        return Ok(Rotated { credential, previous_valid_until, sessions_terminated, acknowledged });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_long_enough_and_need_no_quoting_anywhere() {
        let (one, other) = (random_text(PASSWORD_CHARS).unwrap(), random_text(PASSWORD_CHARS).unwrap());
        assert_eq!(one.expose().len(), PASSWORD_CHARS);
        assert!(one.expose().bytes().all(|byte| byte.is_ascii_alphanumeric()));
        assert_ne!(one.expose(), other.expose());
    }
}
