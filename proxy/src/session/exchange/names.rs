//! A client's names for statements or portals. Nearly all traffic uses the unnamed one, which needs no hashing.

use std::collections::HashMap;

/// What each name stands for; the empty name is the unnamed one.
#[derive(Debug)]
pub(super) struct Names<T> {
    unnamed: Option<T>,
    named: HashMap<String, T>,
}

impl<T> Default for Names<T> {
    fn default() -> Self {
        Self { unnamed: None, named: HashMap::new() }
    }
}

impl<T> Names<T> {
    pub(super) fn get(&self, name: &str) -> Option<&T> {
        if name.is_empty() { self.unnamed.as_ref() } else { self.named.get(name) }
    }

    pub(super) fn contains_key(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// Gives what the name stood for before.
    pub(super) fn insert(&mut self, name: String, value: T) -> Option<T> {
        if name.is_empty() { self.unnamed.replace(value) } else { self.named.insert(name, value) }
    }

    pub(super) fn insert_if_absent(&mut self, name: &str, value: T) {
        if !self.contains_key(name) {
            self.insert(name.to_owned(), value);
        }
    }

    pub(super) fn remove(&mut self, name: &str) -> Option<T> {
        if name.is_empty() { self.unnamed.take() } else { self.named.remove(name) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.unnamed.is_none() && self.named.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.unnamed = None;
        self.named.clear();
    }

    pub(super) fn retain(&mut self, keep: impl Fn(&T) -> bool) {
        self.unnamed = self.unnamed.take().filter(&keep);
        self.named.retain(|_, value| keep(value));
    }

    /// All but the unnamed one.
    pub(super) fn named(&self) -> impl Iterator<Item = &T> {
        self.named.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unnamed_one_is_one_of_them() {
        let mut names = Names::default();
        assert_eq!((names.insert(String::new(), 1), names.insert("a".into(), 2)), (None, None));
        assert_eq!((names.get(""), names.get("a"), names.get("b")), (Some(&1), Some(&2), None));
        names.insert_if_absent("", 9);
        names.insert_if_absent("b", 3);
        assert_eq!(names.insert(String::new(), 4), Some(1));
        assert_eq!(names.named().sum::<i32>(), 5);
        names.retain(|value| *value != 4 && *value != 2);
        assert_eq!((names.contains_key(""), names.contains_key("a"), names.remove("b")), (false, false, Some(3)));
        assert!(names.is_empty());
        names.insert(String::new(), 5);
        names.clear();
        assert!(names.is_empty());
    }
}
