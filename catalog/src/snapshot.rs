//! What a proxy knows of the catalog: one immutable value per revision.
//!
//! A new revision shares with the previous one everything that did not change: the maps are split into shards, and only
//! shards with a change in them are copied. Nothing here reads a clock or a socket.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher},
    sync::Arc,
};

use crate::{
    error::{CatalogError, Result},
    id::{Revision, ServerId, WorkspaceId},
    login::{BackendRole, Login},
    workspace::{Server, Workspace},
};

/// A policy document as the provisioner stored it.
#[derive(Clone, PartialEq, Eq)]
pub struct PolicyDocument {
    /// The profile's name.
    pub name: String,
    /// TOML.
    pub text: String,
    /// SHA-256 of the text.
    pub digest: [u8; 32],
}

impl std::fmt::Debug for PolicyDocument {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PolicyDocument").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A workspace with what a session needs of it.
#[derive(Clone, Debug)]
pub struct WorkspaceEntry {
    /// The workspace.
    pub workspace: Workspace,
    /// The server that holds its database.
    pub server: Arc<Server>,
    /// What to log in with there, by kind of login.
    pub backend: HashMap<String, Arc<BackendRole>>,
}

/// The catalog at one revision.
#[derive(Clone, Default)]
pub struct Snapshot {
    revision: Revision,
    servers: HashMap<ServerId, Arc<Server>>,
    policies: HashMap<String, Arc<PolicyDocument>>,
    workspaces: Shards<WorkspaceEntry>,
    logins: Shards<Login>,
}

impl Snapshot {
    /// The revision that this is; 0 before anything was loaded.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The login with this user name.
    pub fn login(&self, username: &str) -> Option<&Arc<Login>> {
        self.logins.get(username)
    }

    /// The workspace with this id.
    pub fn workspace(&self, id: &WorkspaceId) -> Option<&Arc<WorkspaceEntry>> {
        self.workspaces.get(id.as_str())
    }

    /// All workspaces, in no order.
    pub fn workspaces(&self) -> impl Iterator<Item = &Arc<WorkspaceEntry>> {
        self.workspaces.values()
    }

    /// The policy document of this profile.
    pub fn policy(&self, profile: &str) -> Option<&Arc<PolicyDocument>> {
        self.policies.get(profile)
    }

    /// All policy documents.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<PolicyDocument>> {
        self.policies.values()
    }

    /// How many workspaces there are.
    pub fn workspaces_count(&self) -> usize {
        self.workspaces.len()
    }

    /// How many logins there are.
    pub fn logins_count(&self) -> usize {
        self.logins.len()
    }

    /// The next snapshot: this one with what changed since. A [`Delta`] that is `whole` starts from nothing.
    pub(crate) fn apply(&self, delta: Delta) -> Result<Self> {
        let mut next = if delta.whole { Self::default() } else { self.clone() };
        next.revision = delta.revision;
        for removal in &delta.removals {
            next.remove(removal);
        }
        next.servers_changed(delta.servers);
        for document in delta.policies {
            next.policies.insert(document.name.clone(), Arc::new(document));
        }
        for workspace in delta.workspaces {
            next.workspace_changed(workspace)?;
        }
        for role in delta.backend_roles {
            next.backend_changed(role)?;
        }
        for login in delta.logins {
            next.logins.insert(login.username.clone(), login);
        }
        Ok(next)
    }

    fn remove(&mut self, removal: &Removal) {
        match removal {
            Removal::Login { username } => self.logins.remove(username),
            Removal::Workspace { id } => self.workspaces.remove(id),
        }
    }

    fn servers_changed(&mut self, servers: Vec<Server>) {
        for server in servers {
            let server = Arc::new(server);
            let replaced = self.servers.insert(server.id.clone(), Arc::clone(&server)).is_some();
            if replaced {
                self.workspaces.update_where(|e| e.server.id == server.id, |e| e.server = Arc::clone(&server));
            }
        }
    }

    fn workspace_changed(&mut self, workspace: Workspace) -> Result<()> {
        let server = self.servers.get(&workspace.server).cloned().ok_or(DANGLING)?;
        let id = workspace.id.as_str().to_owned();
        let backend = self.workspaces.get(&id).map(|entry| entry.backend.clone()).unwrap_or_default();
        self.workspaces.insert(id, WorkspaceEntry { workspace, server, backend });
        Ok(())
    }

    fn backend_changed(&mut self, role: BackendRole) -> Result<()> {
        let entry = self.workspaces.get(role.workspace.as_str()).ok_or(DANGLING)?;
        let mut entry = WorkspaceEntry::clone(entry);
        entry.backend.insert(role.kind.clone(), Arc::new(role));
        self.workspaces.insert(entry.workspace.id.as_str().to_owned(), entry);
        Ok(())
    }
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshot")
            .field("revision", &self.revision)
            .field("workspaces", &self.workspaces.len())
            .field("logins", &self.logins.len())
            .finish_non_exhaustive()
    }
}

/// Foreign keys and one consistent read make this impossible, unless the snapshot to which the change is added is not
/// what its revision says; loading everything helps.
const DANGLING: CatalogError = CatalogError::Corrupt { what: "reference" };

/// What changed between two revisions.
#[derive(Default)]
pub(crate) struct Delta {
    pub revision: Revision,
    /// Whether this is everything there is, instead of changes.
    pub whole: bool,
    pub removals: Vec<Removal>,
    pub servers: Vec<Server>,
    pub policies: Vec<PolicyDocument>,
    pub workspaces: Vec<Workspace>,
    pub backend_roles: Vec<BackendRole>,
    pub logins: Vec<Login>,
}

/// What is gone.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Removal {
    Login { username: String },
    Workspace { id: String },
}

/// Few enough that an empty map is small, enough that a shard of 100,000 entries has a few hundred.
const SHARDS: usize = 256;

type Shard<V> = HashMap<Box<str>, Arc<V>>;

/// A map whose copies share the shards in which nothing was changed.
#[derive(Clone)]
struct Shards<V> {
    shards: Box<[Arc<Shard<V>>]>,
    len: usize,
}

impl<V> Default for Shards<V> {
    fn default() -> Self {
        let empty = Arc::new(HashMap::new());
        Self { shards: vec![empty; SHARDS].into(), len: 0 }
    }
}

impl<V: Clone> Shards<V> {
    fn index(key: &str) -> usize {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(key);
        usize::try_from(hash % (SHARDS as u64)).unwrap_or(0)
    }

    fn len(&self) -> usize {
        self.len
    }

    fn get(&self, key: &str) -> Option<&Arc<V>> {
        self.shards[Self::index(key)].get(key)
    }

    fn values(&self) -> impl Iterator<Item = &Arc<V>> {
        self.shards.iter().flat_map(|shard| shard.values())
    }

    fn insert(&mut self, key: String, value: V) {
        let shard = Arc::make_mut(&mut self.shards[Self::index(&key)]);
        let added = shard.insert(key.into(), Arc::new(value)).is_none();
        self.len += usize::from(added);
    }

    fn remove(&mut self, key: &str) {
        let index = Self::index(key);
        if self.shards[index].contains_key(key) {
            Arc::make_mut(&mut self.shards[index]).remove(key);
            self.len -= 1;
        }
    }

    fn update_where(&mut self, chosen: impl Fn(&V) -> bool, update: impl Fn(&mut V)) {
        for shard in &mut self.shards {
            if shard.values().any(|value| chosen(value)) {
                let shard = Arc::make_mut(shard);
                shard.values_mut().filter(|value| chosen(value)).for_each(|value| update(Arc::make_mut(value)));
            }
        }
    }
}
