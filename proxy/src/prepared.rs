//! Which statements one upstream connection has prepared.
//!
//! A statement's identity is its exact text, its parameter types and the search path that its names are found by, so
//! sessions of one pool share what they all prepare. The number is bounded; the one that was used longest ago goes first.
//!
//! An unnamed Parse whose text comes a second time to a connection is prepared there under a name as well, which spares
//! PostgreSQL to parse, analyse and plan it each time. Not the first time: texts with literals in them never come again,
//! and would fill the server's memory for nothing.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use portcullis_policy::{Effect, Permit, RESERVED_PREFIX};

/// How many statements a connection keeps prepared.
const STATEMENTS_MAX: usize = 256;
/// How long their texts may be, all together, bytes.
const TEXT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The longest text of an unnamed statement that is kept prepared, bytes.
const UNNAMED_BYTES_MAX: usize = 64 * 1024;
/// How many texts a connection remembers to have seen once. A power of two.
const SEEN: usize = 512;

/// A statement that a client prepared: what was judged, and the types it gave.
#[derive(Debug)]
pub struct Statement {
    /// The proof, with the text.
    pub permit: Permit,
    /// The parameter types section of Parse, as the client sent it.
    pub types: Vec<u8>,
    /// The digest of the policy that allowed it; another policy has to judge it again.
    pub judged_by: Arc<str>,
    /// What decides where its names are found; statements that differ in it are not the same.
    pub path: Option<Arc<str>>,
    digest: u64,
}

impl Statement {
    /// A statement that has passed under this policy.
    pub fn new(permit: Permit, types: Vec<u8>, judged_by: Arc<str>, path: Option<Arc<str>>) -> Self {
        let mut hasher = DefaultHasher::new();
        (permit.text(), &types, &path).hash(&mut hasher);
        let digest = hasher.finish();
        Self { permit, types, judged_by, path, digest }
    }

    /// Whether an unnamed one may be prepared under a name: it runs the same way each time, and touches none of the
    /// proxy's books but those of the transaction.
    pub fn may_be_named(&self) -> bool {
        let plain = |effect: &Effect| matches!(effect, Effect::Begin | Effect::Commit { .. } | Effect::Rollback { .. });
        self.permit.statements() == 1
            && self.permit.effects().iter().all(plain)
            && self.permit.text().len() <= UNNAMED_BYTES_MAX
    }

    fn is(&self, other: &Self) -> bool {
        self.digest == other.digest
            && self.permit.text() == other.permit.text()
            && self.types == other.types
            && self.path == other.path
    }
}

/// A statement as the key of a map.
#[derive(Debug, Clone)]
struct Key(Arc<Statement>);

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0.is(&other.0)
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0.digest);
    }
}

/// Takes a digest for a hash.
#[derive(Default)]
struct Digest(u64);

impl Hasher for Digest {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u64(&mut self, digest: u64) {
        self.0 = digest;
    }
}

/// A place in the list from the newest to the oldest use.
#[derive(Debug)]
struct Entry {
    key: Key,
    name: Arc<str>,
    schema_epoch: u64,
    /// The server has said that it is of no use any more.
    stale: bool,
    newer: Option<usize>,
    older: Option<usize>,
}

/// The statements of one connection.
#[derive(Debug, Default)]
pub struct Prepared {
    places: HashMap<Key, usize, BuildHasherDefault<Digest>>,
    entries: Vec<Option<Entry>>,
    free: Vec<usize>,
    newest: Option<usize>,
    oldest: Option<usize>,
    text_bytes: usize,
    unnamed: Option<Arc<Statement>>,
    names: u64,
    /// Digests of texts that came once, each in the place that its digest gives it.
    seen: Vec<u64>,
}

impl Prepared {
    /// The name under which `statement` is prepared here, unless its schema may have changed since.
    pub fn name_of(&mut self, statement: &Arc<Statement>, schema_epoch: u64) -> Option<Arc<str>> {
        let place = *self.places.get(&Key(statement.clone()))?;
        let entry = self.entries[place].as_ref()?;
        if entry.schema_epoch == schema_epoch { self.used(place) } else { None }
    }

    /// The name under which `statement` is prepared here, however old, as long as the server takes it.
    pub fn any_name_of(&mut self, statement: &Arc<Statement>) -> Option<Arc<str>> {
        let place = *self.places.get(&Key(statement.clone()))?;
        self.used(place)
    }

    fn used(&mut self, place: usize) -> Option<Arc<str>> {
        if self.newest != Some(place) {
            self.unlink(place);
            self.link(place);
        }
        let entry = self.entries[place].as_ref()?;
        (!entry.stale).then(|| entry.name.clone())
    }

    /// Notes that `statement` is being prepared, under the name that is returned. The second value is the names of
    /// statements that have to be closed for it: the one it replaces, or those that were used longest ago.
    pub fn insert(&mut self, statement: &Arc<Statement>, schema_epoch: u64) -> (Arc<str>, Vec<Arc<str>>) {
        self.names += 1;
        let name: Arc<str> = format!("{RESERVED_PREFIX}{:x}", self.names).into();
        let key = Key(statement.clone());
        let mut evicted: Vec<Arc<str>> = self.remove(&key).into_iter().collect();
        self.text_bytes += statement.permit.text().len();
        let (newer, older) = (None, None);
        let entry = Entry { key: key.clone(), name: name.clone(), schema_epoch, stale: false, newer, older };
        let place = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            self.entries.len() - 1
        });
        self.entries[place] = Some(entry);
        self.places.insert(key, place);
        self.link(place);
        while self.places.len() > STATEMENTS_MAX || (self.text_bytes > TEXT_BYTES_MAX && self.places.len() > 1) {
            let oldest = self.oldest.and_then(|place| self.entries[place].as_ref()).map(|entry| entry.key.clone());
            let Some(oldest) = oldest else { break };
            evicted.extend(self.remove(&oldest));
        }
        (name, evicted)
    }

    fn remove(&mut self, key: &Key) -> Option<Arc<str>> {
        let place = self.places.remove(key)?;
        self.unlink(place);
        let entry = self.entries[place].take()?;
        self.free.push(place);
        self.text_bytes -= entry.key.0.permit.text().len();
        Some(entry.name)
    }

    fn link(&mut self, place: usize) {
        let before = self.newest.replace(place);
        if let Some(entry) = &mut self.entries[place] {
            (entry.newer, entry.older) = (None, before);
        }
        match before.and_then(|before| self.entries[before].as_mut()) {
            Some(before) => before.newer = Some(place),
            None => self.oldest = Some(place),
        }
    }

    fn unlink(&mut self, place: usize) {
        let Some((newer, older)) = self.entries[place].as_ref().map(|entry| (entry.newer, entry.older)) else { return };
        match newer.and_then(|newer| self.entries[newer].as_mut()) {
            Some(newer) => newer.older = older,
            None => self.newest = older,
        }
        match older.and_then(|older| self.entries[older].as_mut()) {
            Some(older) => older.newer = newer,
            None => self.oldest = newer,
        }
    }

    /// The server does not have `statement` after all.
    pub fn forget(&mut self, statement: &Arc<Statement>) {
        self.remove(&Key(statement.clone()));
    }

    /// The server has `statement`, and does not take it any more: the next one that is prepared replaces it.
    pub fn outdate(&mut self, statement: &Arc<Statement>) {
        let place = self.places.get(&Key(statement.clone()));
        if let Some(entry) = place.and_then(|place| self.entries[*place].as_mut()) {
            entry.stale = true;
        }
    }

    /// Whether this text has come to this connection before, not too many others ago.
    pub fn comes_again(&mut self, statement: &Statement) -> bool {
        if self.seen.is_empty() {
            self.seen.resize(SEEN, 0);
        }
        let place = usize::try_from(statement.digest % SEEN as u64).unwrap_or(0);
        std::mem::replace(&mut self.seen[place], statement.digest) == statement.digest
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
        let names = self.names;
        *self = Self { names, ..Self::default() };
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use portcullis_policy::{Policy, Surface, Target, Verdict, judge};

    use super::*;

    fn statement(text: &str, types: &[u8], path: Option<&str>) -> Arc<Statement> {
        let policy = include_str!("../../provisioner/profiles/storage/policy.toml");
        let role = Policy::parse(policy).unwrap().kind("customer_db").unwrap().clone();
        match judge(&role, Surface::Parse, text.as_bytes(), &Target { database_names: &[] }) {
            Verdict::Allow(permit) => {
                Arc::new(Statement::new(permit, types.to_vec(), "policy".into(), path.map(Into::into)))
            }
            Verdict::Deny(denial) => panic!("{denial}"),
        }
    }

    fn numbered(number: usize) -> Arc<Statement> {
        statement(&format!("SELECT {number}"), &[0, 0], None)
    }

    #[test]
    fn a_statement_is_its_text_its_types_and_its_path() {
        let mut prepared = Prepared::default();
        let one = statement("SELECT 1", &[0, 0], None);
        let (name, evicted) = prepared.insert(&one, 0);
        assert!(name.starts_with(RESERVED_PREFIX) && evicted.is_empty());
        for (other, same) in [
            (statement("SELECT 1", &[0, 0], None), true),
            (statement("SELECT 2", &[0, 0], None), false),
            (statement("SELECT 1", &[0, 1, 0, 0, 0, 23], None), false),
            (statement("SELECT 1", &[0, 0], Some("storage")), false),
        ] {
            assert_eq!(prepared.any_name_of(&other) == Some(name.clone()), same, "{other:?}");
        }
    }

    #[test]
    fn the_one_used_longest_ago_makes_room() {
        let mut prepared = Prepared::default();
        let all: Vec<_> = (0..STATEMENTS_MAX).map(numbered).collect();
        let names: Vec<_> = all.iter().map(|statement| prepared.insert(statement, 0).0).collect();
        // The first is used again, so the second is the oldest; then the third.
        assert_eq!(prepared.any_name_of(&all[0]).as_ref(), Some(&names[0]));
        for (new, gone) in [(1000, 1), (1001, 2), (1002, 3)] {
            assert_eq!(prepared.insert(&numbered(new), 0).1, [names[gone].clone()], "{new}");
            assert_eq!(prepared.any_name_of(&all[gone]), None, "{gone}");
        }
        // One that is forgotten leaves its place to the next.
        prepared.forget(&all[7]);
        assert_eq!(prepared.insert(&numbered(1003), 0).1, []);
        assert_eq!(prepared.insert(&numbered(1004), 0).1, [names[4].clone()]);
        assert!(prepared.entries.len() <= STATEMENTS_MAX + 1, "{}", prepared.entries.len());
        prepared.clear();
        let (name, evicted) = prepared.insert(&all[0], 0);
        assert!(evicted.is_empty() && !names.contains(&name), "a name is never used twice on a connection");
    }

    #[test]
    fn long_texts_make_room_as_well() {
        let mut prepared = Prepared::default();
        let long = |mark: char| statement(&format!("SELECT '{}'", mark.to_string().repeat(900_000)), &[0, 0], None);
        let names: Vec<_> = "abcd".chars().map(|mark| prepared.insert(&long(mark), 0).0).collect();
        assert_eq!(prepared.insert(&long('e'), 0).1, [names[0].clone()]);
    }

    #[test]
    fn an_old_or_stale_statement_is_replaced_and_closed() {
        let mut prepared = Prepared::default();
        let one = numbered(1);
        let (old, _) = prepared.insert(&one, 0);
        assert_eq!(prepared.name_of(&one, 1), None, "the schema may have changed");
        assert_eq!(prepared.any_name_of(&one), Some(old.clone()));
        prepared.outdate(&one);
        assert_eq!((prepared.name_of(&one, 0), prepared.any_name_of(&one)), (None, None));
        let (new, evicted) = prepared.insert(&one, 1);
        assert_eq!(evicted, [old]);
        assert_eq!(prepared.name_of(&one, 1), Some(new));
    }

    #[test]
    fn only_what_comes_again_is_worth_a_name() {
        let mut prepared = Prepared::default();
        assert!(!prepared.comes_again(&numbered(1)));
        assert!(prepared.comes_again(&numbered(1)));
        for (text, may) in [
            ("SELECT 1", true),
            ("BEGIN", true),
            ("COMMIT", true),
            ("SET timezone = 'UTC'", false),
            ("PREPARE x AS SELECT 1", false),
            ("DISCARD ALL", false),
            ("COPY storage.t FROM STDIN", false),
            ("", false),
        ] {
            assert_eq!(statement(text, &[0, 0], None).may_be_named(), may, "{text}");
        }
        assert!(!statement(&format!("SELECT '{}'", "x".repeat(70_000)), &[0, 0], None).may_be_named());
    }
}
