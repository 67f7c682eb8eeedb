//! The settings of one session, as its client believes them to be.
//!
//! Under transaction pooling a session meets a new upstream connection at every transaction, so what it has SET must
//! follow it. This module keeps the books: the client's startup values, what it has changed since, and what is still
//! pending inside a transaction (PostgreSQL undoes SET on ROLLBACK and ROLLBACK TO SAVEPOINT,
//! <https://www.postgresql.org/docs/current/sql-set.html>). It decides nothing about permission: the judge has done so.
//! It knows only session-level changes; SET LOCAL ends with its transaction and never leaves the connection it ran on.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Setting names in lower case and their values in the form that `set_config(name, value, false)` takes.
pub type Values = BTreeMap<String, String>;

/// The setting whose values say a part of it and leave the rest as it was: ISO, or DMY.
const IN_PARTS: &str = "datestyle";

/// One session-level change. `None` is RESET, or SET … TO DEFAULT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// `SET name = value`, or RESET when there is no value.
    One(String, Option<String>),
    /// RESET ALL or DISCARD ALL.
    All,
}

#[derive(Debug, Default)]
struct Level {
    savepoint: Option<String>,
    changes: Vec<Change>,
}

/// The session's settings and the changes of its open transaction.
#[derive(Debug)]
pub struct Settings {
    startup: Arc<Values>,
    /// The same map as `startup` until something changes.
    desired: Arc<Values>,
    levels: Vec<Level>,
}

impl Settings {
    /// Begins with what the client asked for in its startup packet: a later RESET returns to these.
    pub fn new(startup: Values) -> Self {
        let startup = Arc::new(startup);
        Self { desired: startup.clone(), startup, levels: vec![Level::default()] }
    }

    /// What a connection must have before this session's next statement runs on it.
    pub fn desired(&self) -> &Values {
        &self.desired
    }

    /// Whether a transaction has changed settings that are not yet decided.
    pub fn is_pending(&self) -> bool {
        self.levels.iter().any(|level| !level.changes.is_empty())
    }

    /// Notes a change that the server has acknowledged.
    pub fn change(&mut self, change: Change) {
        if let Some(top) = self.levels.last_mut() {
            top.changes.push(change);
        }
    }

    /// SAVEPOINT `name`.
    pub fn savepoint(&mut self, name: &str) {
        self.levels.push(Level { savepoint: Some(name.to_owned()), changes: Vec::new() });
    }

    /// ROLLBACK TO SAVEPOINT `name`: what came after it is undone; the savepoint itself stays.
    pub fn rollback_to(&mut self, name: &str) {
        if let Some(at) = self.find(name) {
            self.levels.truncate(at + 1);
            self.levels[at].changes.clear();
        }
    }

    /// RELEASE SAVEPOINT `name`: its changes now belong to the level below.
    pub fn release(&mut self, name: &str) {
        if let Some(at) = self.find(name) {
            let changes: Vec<Change> = self.levels.drain(at..).flat_map(|level| level.changes).collect();
            if let Some(top) = self.levels.last_mut() {
                top.changes.extend(changes);
            }
        }
    }

    /// The transaction has ended well: its changes become the session's. `connection` is brought to what the server
    /// now has at session level on the connection that ran it.
    pub fn commit(&mut self, connection: &mut Values) {
        for change in self.levels.drain(..).flat_map(|level| level.changes) {
            match change {
                Change::One(name, Some(value)) => {
                    connection.insert(name.clone(), value.clone());
                    Arc::make_mut(&mut self.desired).insert(name, value);
                }
                Change::One(name, None) => {
                    connection.remove(&name);
                    let desired = Arc::make_mut(&mut self.desired);
                    match self.startup.get(&name) {
                        Some(value) => desired.insert(name, value.clone()),
                        None => desired.remove(&name),
                    };
                }
                Change::All => {
                    connection.clear();
                    self.desired = self.startup.clone();
                }
            }
        }
        self.levels.push(Level::default());
    }

    /// Takes the whole value of a setting of which a SET may have named a part, as the server reported it at the end of
    /// a transaction: `DMY` after `SQL` is `SQL, DMY`.
    pub fn settle(&mut self, reported: &Values, connection: &mut Values) {
        let Some(desired) = self.desired.get(IN_PARTS) else { return };
        let (Some(now), Some(whole)) = (connection.get_mut(IN_PARTS), reported.get("DateStyle")) else { return };
        now.clone_from(whole);
        if desired != whole {
            Arc::make_mut(&mut self.desired).insert(IN_PARTS.to_owned(), whole.clone());
        }
    }

    /// The transaction was rolled back.
    pub fn rollback(&mut self) {
        self.levels.clear();
        self.levels.push(Level::default());
    }

    /// RESET ALL as the proxy answers it itself, outside any transaction.
    pub fn reset_all(&mut self) {
        self.rollback();
        self.desired = self.startup.clone();
    }

    fn find(&self, name: &str) -> Option<usize> {
        self.levels.iter().rposition(|level| level.savepoint.as_deref() == Some(name))
    }
}

/// The proxy's own statement that takes a connection from `have` to `want`; `None` when they agree.
///
/// Every name comes from the judge's allow-list; values are quoted as string constants under
/// `standard_conforming_strings = on`, which the allow-list pins.
pub fn difference(have: &Values, want: &Values) -> Option<String> {
    let mut sql = String::new();
    let too_much = |name: &str, value: &String| match want.get(name) {
        None => true,
        Some(wanted) => name == IN_PARTS && wanted != value,
    };
    for (name, _) in have.iter().filter(|(name, value)| too_much(name, value)) {
        sql.push_str("RESET ");
        push_quoted(&mut sql, name, '"');
        sql.push_str("; ");
    }
    let mut set = want.iter().filter(|(name, value)| have.get(*name) != Some(value)).peekable();
    if set.peek().is_some() {
        sql.push_str("SELECT ");
        for (at, (name, value)) in set.enumerate() {
            sql.push_str(if at == 0 { "pg_catalog.set_config(" } else { ", pg_catalog.set_config(" });
            push_quoted(&mut sql, name, '\'');
            sql.push_str(", ");
            push_quoted(&mut sql, value, '\'');
            sql.push_str(", false)");
        }
    }
    (!sql.is_empty()).then_some(sql)
}

/// Whether a connection with these settings could stop or end before they are changed: a timeout that is shorter than
/// what the proxy itself has to say on it, or one that runs while nobody holds it.
pub fn are_dangerous(values: &Values) -> bool {
    let short = |name: &str| {
        values.get(name).is_some_and(|value| {
            let number = value.trim().trim_end_matches("ms").trim_end();
            value.trim().ends_with("us") || number.parse().is_ok_and(|ms: f64| ms != 0.0 && ms < 1000.0)
        })
    };
    short("statement_timeout") || short("transaction_timeout") || values.contains_key("idle_session_timeout")
}

fn push_quoted(sql: &mut String, text: &str, quote: char) {
    sql.push(quote);
    for c in text.chars().filter(|c| *c != '\0') {
        if c == quote {
            sql.push(quote);
        }
        sql.push(c);
    }
    sql.push(quote);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn values(pairs: &[(&str, &str)]) -> Values {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn set(settings: &mut Settings, name: &str, value: &str) {
        settings.change(Change::One(name.into(), Some(value.into())));
    }

    #[test]
    fn a_change_counts_from_commit_on_and_not_after_rollback() {
        let mut connection = Values::new();
        let mut s = Settings::new(values(&[("timezone", "UTC")]));
        set(&mut s, "datestyle", "German");
        assert!(s.is_pending());
        s.rollback();
        assert_eq!(s.desired(), &values(&[("timezone", "UTC")]));
        set(&mut s, "datestyle", "German");
        s.commit(&mut connection);
        assert_eq!(s.desired(), &values(&[("datestyle", "German"), ("timezone", "UTC")]));
        assert_eq!(connection, values(&[("datestyle", "German")]));
    }

    #[test]
    fn savepoints_stack() {
        let mut connection = Values::new();
        let mut s = Settings::new(Values::new());
        set(&mut s, "work_mem", "1MB");
        s.savepoint("a");
        set(&mut s, "work_mem", "2MB");
        s.savepoint("b");
        set(&mut s, "work_mem", "3MB");
        s.rollback_to("b");
        s.release("a");
        set(&mut s, "jit", "off");
        s.commit(&mut connection);
        assert_eq!(s.desired(), &values(&[("jit", "off"), ("work_mem", "2MB")]));

        s.savepoint("a");
        set(&mut s, "work_mem", "9MB");
        s.savepoint("a");
        s.rollback_to("a");
        s.rollback_to("a");
        s.commit(&mut connection);
        assert_eq!(s.desired()["work_mem"], "9MB", "the inner savepoint of the same name is the one that counts");
    }

    #[test]
    fn reset_returns_to_the_startup_value_of_the_client() {
        let mut connection = values(&[("timezone", "Asia/Tokyo")]);
        let mut s = Settings::new(values(&[("timezone", "Asia/Tokyo")]));
        s.change(Change::One("timezone".into(), None));
        s.commit(&mut connection);
        assert_eq!(s.desired()["timezone"], "Asia/Tokyo");
        assert!(connection.is_empty(), "the server itself went to its own default");
        s.change(Change::All);
        s.commit(&mut connection);
        assert_eq!(
            difference(&connection, s.desired()).unwrap(),
            "SELECT pg_catalog.set_config('timezone', 'Asia/Tokyo', false)"
        );
    }

    #[test]
    fn short_timeouts_are_dangerous() {
        for (name, value, expected) in [
            ("statement_timeout", "1", true),
            ("statement_timeout", "999ms", true),
            ("statement_timeout", "500us", true),
            ("statement_timeout", "0", false),
            ("statement_timeout", "1000", false),
            ("statement_timeout", "1s", false),
            ("statement_timeout", "5min", false),
            ("transaction_timeout", "10 ms", true),
            ("idle_session_timeout", "1h", true),
            ("lock_timeout", "1", false),
        ] {
            assert_eq!(are_dangerous(&values(&[(name, value)])), expected, "{name} = {value}");
        }
    }

    #[test]
    fn the_difference_resets_what_is_too_much_and_quotes_what_it_sets() {
        let rows = [
            (vec![], vec![], None),
            (vec![("a", "1")], vec![("a", "1")], None),
            (vec![("a", "1")], vec![], Some(r#"RESET "a"; "#)),
            (
                vec![("datestyle", "SQL, DMY")],
                vec![("datestyle", "ISO")],
                Some(r#"RESET "datestyle"; SELECT pg_catalog.set_config('datestyle', 'ISO', false)"#),
            ),
            (
                vec![("a", "1")],
                vec![("b", "it's"), ("c", r"\")],
                Some(
                    r#"RESET "a"; SELECT pg_catalog.set_config('b', 'it''s', false), pg_catalog.set_config('c', '\', false)"#,
                ),
            ),
        ];
        for (have, want, expected) in rows {
            assert_eq!(difference(&values(&have), &values(&want)).as_deref(), expected);
        }
    }
}
