//! What servers report of their settings (ParameterStatus), kept once however many have it.
//!
//! The connections of a pool nearly always report the same values, and its sessions have been told the same: they share
//! one map, and that nothing differs is then seen from its address. It decides nothing about what a client is told.

use std::collections::{BTreeMap, HashSet};
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

/// How many different maps are remembered for sharing; one more makes a new beginning.
const KNOWN_MAX: usize = 1024;

type Values = BTreeMap<String, String>;

/// The latest ParameterStatus of each name.
#[derive(Debug, Clone, Default)]
pub struct Reported {
    values: Arc<Values>,
    changed: bool,
}

impl Deref for Reported {
    type Target = Values;
    fn deref(&self) -> &Values {
        &self.values
    }
}

impl Reported {
    /// Notes one more report.
    pub fn insert(&mut self, name: &str, value: &str) {
        if self.values.get(name).is_none_or(|known| known != value) {
            Arc::make_mut(&mut self.values).insert(name.to_owned(), value.to_owned());
            self.changed = true;
        }
    }

    /// Whether it is the same map as `other`: if not, it may still be equal.
    pub fn is_shared_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.values, &other.values)
    }

    /// Whether it changed since it was last shared.
    pub fn has_changed(&self) -> bool {
        self.changed
    }
}

/// The maps that are in use.
#[derive(Default)]
pub struct Known(Mutex<HashSet<Arc<Values>>>);

impl Known {
    /// Replaces a map that has changed by the one of the same values that others have, if there is one.
    pub fn share(&self, reported: &mut Reported) {
        if !reported.changed {
            return;
        }
        reported.changed = false;
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match known.get(&*reported.values) {
            Some(shared) => reported.values = shared.clone(),
            None => {
                if known.len() >= KNOWN_MAX {
                    known.clear();
                }
                known.insert(reported.values.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reported(pairs: &[(&str, &str)]) -> Reported {
        let mut reported = Reported::default();
        pairs.iter().for_each(|(name, value)| reported.insert(name, value));
        reported
    }

    #[test]
    fn equal_maps_become_one_and_a_change_is_ones_own() {
        let known = Known::default();
        let mut one = reported(&[("TimeZone", "UTC"), ("DateStyle", "ISO")]);
        let mut two = reported(&[("DateStyle", "ISO"), ("TimeZone", "UTC")]);
        assert!(!one.is_shared_with(&two));
        known.share(&mut one);
        known.share(&mut two);
        assert!(one.is_shared_with(&two) && !two.has_changed());

        two.insert("TimeZone", "UTC");
        assert!(one.is_shared_with(&two), "the same value again is no change");
        two.insert("TimeZone", "Asia/Tokyo");
        assert!(two.has_changed() && !one.is_shared_with(&two));
        assert_eq!((one["TimeZone"].as_str(), two["TimeZone"].as_str()), ("UTC", "Asia/Tokyo"));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let known = Known::default();
        for number in 0..=KNOWN_MAX {
            known.share(&mut reported(&[("application_name", &number.to_string())]));
        }
        assert_eq!(known.0.lock().map(|known| known.len()).ok(), Some(1));
    }
}
