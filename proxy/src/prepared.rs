//! Which statements one upstream connection has prepared.
//!
//! A statement's identity is its exact text and parameter types, so sessions of one pool share what they all prepare.
//! The number is bounded; the one that was used longest ago goes first.

use std::collections::HashMap;
use std::sync::Arc;

use portcullis_policy::{Permit, RESERVED_PREFIX};

/// How many statements a connection keeps prepared.
const STATEMENTS_MAX: usize = 256;
/// How long their texts may be, all together, bytes.
const TEXT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A statement that a client prepared: what was judged, and the types it gave.
#[derive(Debug)]
pub struct Statement {
    /// The proof, with the text.
    pub permit: Permit,
    /// The parameter types section of Parse, as the client sent it.
    pub types: Vec<u8>,
    /// The digest of the policy that allowed it; another policy has to judge it again.
    pub judged_by: Arc<str>,
}

impl Statement {
    fn key(&self) -> Key {
        (self.permit.text().into(), self.types.as_slice().into())
    }
}

type Key = (Box<str>, Box<[u8]>);

#[derive(Debug)]
struct Entry {
    name: Arc<str>,
    used: u64,
    schema_epoch: u64,
}

/// The statements of one connection.
#[derive(Debug, Default)]
pub struct Prepared {
    entries: HashMap<Key, Entry>,
    text_bytes: usize,
    unnamed: Option<Arc<Statement>>,
    clock: u64,
}

impl Prepared {
    /// The name under which `statement` is prepared here, unless its schema may have changed since.
    pub fn name_of(&mut self, statement: &Statement, schema_epoch: u64) -> Option<Arc<str>> {
        let entry = self.entries.get(&statement.key())?;
        if entry.schema_epoch == schema_epoch { self.any_name_of(statement) } else { None }
    }

    /// The name under which `statement` is prepared here, however old.
    pub fn any_name_of(&mut self, statement: &Statement) -> Option<Arc<str>> {
        self.clock += 1;
        let entry = self.entries.get_mut(&statement.key())?;
        entry.used = self.clock;
        Some(entry.name.clone())
    }

    /// Notes that `statement` is being prepared, under the name that is returned. The second value is the names of
    /// statements that have to be closed for it: the one it replaces, or those that were used longest ago.
    pub fn insert(&mut self, statement: &Statement, schema_epoch: u64) -> (Arc<str>, Vec<Arc<str>>) {
        self.clock += 1;
        let name: Arc<str> = format!("{RESERVED_PREFIX}{:x}", self.clock).into();
        let entry = Entry { name: name.clone(), used: self.clock, schema_epoch };
        let key = statement.key();
        let mut evicted: Vec<Arc<str>> = self.remove(&key).into_iter().collect();
        self.text_bytes += key.0.len();
        self.entries.insert(key, entry);
        while self.entries.len() > STATEMENTS_MAX || (self.text_bytes > TEXT_BYTES_MAX && self.entries.len() > 1) {
            let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.used).map(|(key, _)| key.clone());
            evicted.extend(oldest.and_then(|key| self.remove(&key)));
        }
        (name, evicted)
    }

    fn remove(&mut self, key: &Key) -> Option<Arc<str>> {
        let entry = self.entries.remove(key)?;
        self.text_bytes -= key.0.len();
        Some(entry.name)
    }

    /// The server does not have `statement` (any more, or after all).
    pub fn forget(&mut self, statement: &Statement) {
        self.remove(&statement.key());
    }

    /// The server's unnamed statement.
    pub fn unnamed(&self) -> Option<&Arc<Statement>> {
        self.unnamed.as_ref()
    }

    /// The server's unnamed statement is now this one, or none.
    pub fn set_unnamed(&mut self, statement: Option<Arc<Statement>>) {
        self.unnamed = statement;
    }

    /// All are gone (DEALLOCATE ALL, DISCARD ALL).
    pub fn clear(&mut self) {
        self.entries.clear();
        self.text_bytes = 0;
        self.unnamed = None;
    }
}
