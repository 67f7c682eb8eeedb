//! `[[kind.table]]`: what a kind may do with one table, beside what it may do in the table's schema. It must not know how
//! a statement names a table, nor how a database is told.

use std::borrow::Borrow;
use std::collections::BTreeSet;

use super::read::{Picked, Table};

/// Rules for single tables that one kind may have.
const RULES_MAX: usize = 1_000;

/// Some of many names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Selection<T> {
    All,
    /// These; none at all when it is empty.
    Only(BTreeSet<T>),
    /// All but these.
    Except(BTreeSet<T>),
}

impl<T: Ord> Selection<T> {
    pub(crate) const NONE: Self = Self::Only(BTreeSet::new());

    pub(crate) fn has<Q: Ord + ?Sized>(&self, name: &Q) -> bool
    where
        T: Borrow<Q>,
    {
        match self {
            Self::All => true,
            Self::Only(names) => names.contains(name),
            Self::Except(names) => !names.contains(name),
        }
    }

    pub(crate) fn is_all(&self) -> bool {
        matches!(self, Self::All)
    }

    pub(crate) fn is_none(&self) -> bool {
        matches!(self, Self::Only(names) if names.is_empty())
    }
}

/// What one table gives, where that is not what its schema gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TableRule {
    pub(crate) schema: String,
    pub(crate) table: String,
    /// Columns that may be read.
    pub(crate) read: Selection<String>,
    /// Columns that INSERT and UPDATE may set. DELETE and TRUNCATE need all of them.
    pub(crate) write: Selection<String>,
}

/// Reads the kind's `[[kind.table]]`s, sorted by table and schema. `read` and `write` are the schemas' own rights.
pub(super) fn tables(
    kind: &mut Table<'_, '_>,
    managed: &[String],
    read: &BTreeSet<String>,
    write: &BTreeSet<String>,
) -> Vec<TableRule> {
    let mut rules: Vec<TableRule> = Vec::new();
    kind.tables("table", |table| {
        let Some((schema, name)) = name(table, managed) else {
            // Its other keys are read all the same, for their mistakes.
            columns(table, "read", true);
            columns(table, "write", true);
            return;
        };
        let rule = TableRule {
            read: columns(table, "read", read.contains(&schema)),
            write: columns(table, "write", write.contains(&schema)),
            schema,
            table: name,
        };
        if !table.has("read") && !table.has("write") {
            table.mistake("a table needs `read`, `write` or both: true, false, { only = […] } or { except = […] }");
        }
        if rules.iter().any(|other| other.table == rule.table && other.schema == rule.schema) {
            table.mistake_at("name", format!("table `{}.{}` stands here twice", rule.schema, rule.table));
        }
        rules.push(rule);
    });
    if rules.len() > RULES_MAX {
        kind.mistake_at("table", format!("{} tables are too many; {RULES_MAX} are allowed", rules.len()));
    }
    rules.sort_by(|a, b| (&a.table, &a.schema).cmp(&(&b.table, &b.schema)));
    rules
}

fn name(table: &mut Table<'_, '_>, managed: &[String]) -> Option<(String, String)> {
    if !table.has("name") {
        table.mistake("`name` is missing; it is schema.table");
    }
    let full = table.string("name")?;
    let Some((schema, name)) = full.split_once('.').filter(|(_, name)| is_identifier(name)) else {
        table.mistake_at("name", format!("`{full}` must be schema.table, the table's name at most 63 bytes"));
        return None;
    };
    if !managed.iter().any(|known| known == schema) {
        let why = format!(
            "`{schema}` is not among managed_schemas ({}); what is in other schemas belongs to those who define there, \
             from whom nothing can be kept",
            managed.join(", ")
        );
        table.mistake_at("name", why);
        return None;
    }
    Some((schema.to_owned(), name.to_owned()))
}

fn columns(table: &mut Table<'_, '_>, key: &str, whole: bool) -> Selection<String> {
    let set = |table: &mut Table<'_, '_>, names: Vec<(usize, String)>| {
        for (at, name) in &names {
            if !is_identifier(name) {
                table.mistake_in(*at, format!("`{key}`: `{name}` must be a column's name, 1 to 63 bytes"));
            }
        }
        names.into_iter().map(|(_, name)| name).collect::<BTreeSet<_>>()
    };
    match table.picked(key, true) {
        None if whole => Selection::All,
        None => Selection::NONE,
        Some(Picked::All) => Selection::All,
        Some(Picked::None) => Selection::NONE,
        Some(Picked::Only(names)) => Selection::Only(set(table, names)),
        Some(Picked::Except(names)) => Selection::Except(set(table, names)),
    }
}

fn is_identifier(name: &str) -> bool {
    (1..=63).contains(&name.len()) && !name.chars().any(char::is_control)
}
