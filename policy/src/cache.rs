//! Verdicts remembered: by the exact text, and by the shape of texts whose verdict no literal has a say in.
//!
//! An answer from here is the answer that [`crate::judge`] gave: keys hold the text itself (or all of its shape), not a
//! digest, together with a number that stands for everything else a verdict depends on ([`Scope`]). Nothing is shared
//! between scopes, so neither a verdict nor the time it takes tells one workspace what another one asked.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use quick_cache::sync::Cache;
use quick_cache::{Equivalent, Weighter};

use crate::document::RolePolicy;
use crate::judge::judge;
use crate::plain::outline;
use crate::shape::shape;
use crate::verdict::{Denial, Permit, Surface, Target, Verdict};

/// The longest text that is remembered, in bytes: a longer one would push out many others.
const TEXT_BYTES_MAX: usize = 64 * 1024;
/// Scopes that are known at a time. Beyond it all are forgotten and numbered anew, which costs misses and nothing else.
const SCOPES_MAX: usize = 100_000;
/// What an entry takes besides its key and value, in bytes.
const ENTRY_BYTES: usize = 96;

/// Everything that a verdict depends on besides the text: a role's policy and the names of its database.
#[derive(Clone)]
pub struct Scope(Arc<Scoped>);

struct Scoped {
    /// Never given twice in a process.
    number: u64,
    role: Arc<RolePolicy>,
    database_names: Box<[String]>,
}

impl Scope {
    /// The role's policy.
    pub fn role(&self) -> &Arc<RolePolicy> {
        &self.0.role
    }

    /// The names under which the session's own database may stand in front of `schema.table`.
    pub fn database_names(&self) -> &[String] {
        &self.0.database_names
    }

    fn judge(&self, surface: Surface, text: &[u8]) -> Verdict {
        let names: Vec<&str> = self.0.database_names.iter().map(String::as_str).collect();
        judge(&self.0.role, surface, text, &Target { database_names: &names })
    }
}

impl std::fmt::Debug for Scope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scope").field("number", &self.0.number).field("kind", &self.0.role.kind()).finish()
    }
}

/// Where a verdict came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// A text of this shape had passed.
    Shape,
    /// Nowhere: it was judged.
    Judged,
}

/// The remembered verdicts of all scopes, within a bound on their memory. What is used stays, what is not goes.
pub struct VerdictCache {
    /// `None` remembers nothing.
    kept: Option<Kept>,
    scopes: Mutex<HashMap<ScopeKey, Scope>>,
}

struct Kept {
    texts: Cache<TextKey, Verdict, Bytes, ahash::RandomState>,
    shapes: Cache<ShapeKey, Permit, Bytes, ahash::RandomState>,
    /// By the [outline] of a text, which is quicker to tell than its shape and says as much.
    outlines: Cache<ShapeKey, Permit, Bytes, ahash::RandomState>,
}

/// A role is known by its address: the [`Scope`] in the map keeps it from being used again.
type ScopeKey = (usize, Box<[String]>);

impl VerdictCache {
    /// Remembers within about `bytes_max` bytes; 0 remembers nothing.
    pub fn new(bytes_max: usize) -> Self {
        let kept = (bytes_max > 0).then(|| {
            // Shapes answer for many texts each and are few.
            let shapes = bytes_max / 8;
            Kept { texts: cache(bytes_max - 2 * shapes), shapes: cache(shapes), outlines: cache(shapes) }
        });
        Self { kept, scopes: Mutex::default() }
    }

    /// The scope of this role in a database of these names: always the same one, as long as it is in use.
    pub fn scope(&self, role: &Arc<RolePolicy>, database_names: &[String]) -> Scope {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let mut scopes = self.scopes.lock().unwrap_or_else(PoisonError::into_inner);
        if scopes.len() >= SCOPES_MAX {
            scopes.clear();
        }
        let key = (Arc::as_ptr(role).addr(), database_names.into());
        let new = || {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            Scope(Arc::new(Scoped { number, role: role.clone(), database_names: database_names.into() }))
        };
        scopes.entry(key).or_insert_with(new).clone()
    }

    /// The verdict over exactly this text, if it is remembered. Allocates nothing.
    pub fn recall(&self, scope: &Scope, surface: Surface, text: &[u8]) -> Option<Verdict> {
        let kept = self.kept.as_ref().filter(|_| text.len() <= TEXT_BYTES_MAX)?;
        kept.texts.get(&Asked { scope: scope.0.number, surface, what: text })
    }

    /// The verdict over a text that is not remembered: from another one of its shape, or judged and then remembered.
    ///
    /// Needs the stack of [`judge`].
    pub fn judge(&self, scope: &Scope, surface: Surface, text: &[u8]) -> (Verdict, Found) {
        let Some(kept) = self.kept.as_ref().filter(|_| text.len() <= TEXT_BYTES_MAX) else {
            return (scope.judge(surface, text), Found::Judged);
        };
        let number = scope.0.number;
        let readable = std::str::from_utf8(text).ok();
        let outline = readable.and_then(outline);
        if let (Some(text), Some(outline)) = (readable, &outline)
            && let Some(permit) = kept.outlines.get(&Asked { scope: number, surface, what: outline })
        {
            return (Verdict::Allow(permit.of_same_shape(text)), Found::Shape);
        }
        let outlined = |permit: &Permit| {
            if let Some(outline) = &outline {
                kept.outlines.insert(Key { scope: number, surface, what: outline.as_slice().into() }, permit.clone());
            }
        };
        let shape = readable.and_then(shape);
        if let (Some(text), Some(shape)) = (readable, &shape)
            && let Some(permit) = kept.shapes.get(&Asked { scope: number, surface, what: shape })
        {
            outlined(&permit);
            return (Verdict::Allow(permit.of_same_shape(text)), Found::Shape);
        }
        let verdict = scope.judge(surface, text);
        let what = match &verdict {
            Verdict::Allow(permit) => Text::Passed(permit.shared_text().clone()),
            Verdict::Deny(_) => Text::Refused(text.into()),
        };
        if let (Verdict::Allow(permit), Some(shape)) = (&verdict, shape)
            && !permit.literals_matter()
        {
            outlined(permit);
            kept.shapes.insert(Key { scope: number, surface, what: shape }, permit.clone());
        }
        kept.texts.insert(Key { scope: number, surface, what }, verdict.clone());
        (verdict, Found::Judged)
    }

    /// What is remembered now.
    pub fn size(&self) -> CacheSize {
        self.kept.as_ref().map_or_else(CacheSize::default, |kept| CacheSize {
            texts: kept.texts.len(),
            shapes: kept.shapes.len(),
            bytes: kept.texts.weight() + kept.shapes.weight() + kept.outlines.weight(),
        })
    }
}

impl std::fmt::Debug for VerdictCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VerdictCache").field("size", &self.size()).finish()
    }
}

/// What a cache holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheSize {
    /// Verdicts by text.
    pub texts: usize,
    /// Permits by shape.
    pub shapes: usize,
    /// Their memory, roughly.
    pub bytes: u64,
}

fn cache<K: Eq + Hash, V: Clone>(bytes_max: usize) -> Cache<K, V, Bytes, ahash::RandomState>
where
    Bytes: Weighter<K, V>,
{
    /// What a text with its permit takes, as a rule.
    const TYPICAL: usize = 1024;
    let entries = (bytes_max / TYPICAL).max(16);
    Cache::with(entries, bytes_max as u64, Bytes, ahash::RandomState::new(), Default::default())
}

#[derive(Clone)]
struct Key<T> {
    scope: u64,
    surface: Surface,
    what: T,
}

type TextKey = Key<Text>;
type ShapeKey = Key<Box<[u8]>>;

/// A text as a key: shared with its permit, or our own copy.
#[derive(Clone)]
enum Text {
    Passed(Arc<str>),
    Refused(Box<[u8]>),
}

impl AsRef<[u8]> for Text {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Passed(text) => text.as_bytes(),
            Self::Refused(text) => text,
        }
    }
}

impl<T: AsRef<[u8]>> Key<T> {
    fn asked(&self) -> Asked<'_> {
        Asked { scope: self.scope, surface: self.surface, what: self.what.as_ref() }
    }
}

impl<T: AsRef<[u8]>> Hash for Key<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.asked().hash(state);
    }
}

impl<T: AsRef<[u8]>> PartialEq for Key<T> {
    fn eq(&self, other: &Self) -> bool {
        self.asked() == other.asked()
    }
}

impl<T: AsRef<[u8]>> Eq for Key<T> {}

/// A key that borrows.
#[derive(PartialEq, Eq, Hash)]
struct Asked<'a> {
    scope: u64,
    surface: Surface,
    what: &'a [u8],
}

impl<T: AsRef<[u8]>> Equivalent<Key<T>> for Asked<'_> {
    fn equivalent(&self, key: &Key<T>) -> bool {
        *self == key.asked()
    }
}

/// Weighs entries by their memory.
#[derive(Clone)]
struct Bytes;

impl Weighter<TextKey, Verdict> for Bytes {
    fn weight(&self, key: &TextKey, verdict: &Verdict) -> u64 {
        let value = match verdict {
            Verdict::Allow(permit) => permit.bytes(),
            Verdict::Deny(denial) => key.what.as_ref().len() + denial_bytes(denial),
        };
        (ENTRY_BYTES + value) as u64
    }
}

impl Weighter<ShapeKey, Permit> for Bytes {
    fn weight(&self, key: &ShapeKey, permit: &Permit) -> u64 {
        (ENTRY_BYTES + key.what.len() + permit.bytes()) as u64
    }
}

fn denial_bytes(denial: &Denial) -> usize {
    let object = denial.object.as_ref().map_or(0, String::len);
    size_of::<Denial>() + denial.message.len() + denial.detail.len() + denial.hint.len() + object
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
