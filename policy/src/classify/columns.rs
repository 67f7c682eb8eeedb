//! References that may reach a column of a watched table: of which a login reads some columns only.
//!
//! Nobody here knows the server's catalog, so the scopes are taken too wide, never too narrow: whatever PostgreSQL could
//! resolve to a watched table counts, though it may be a column of another. The first reference to a column that is not open
//! is kept, and no other. What `*` and a whole row stand for is not known, so both count as closed.

use pg_query::NodeEnum;
use pg_query::protobuf as pb;

use super::{Location, Name, Walked, Walker, clause_refused, strings};
use crate::document::{Selection, TableRule};

/// Watched tables that may be visible at one place; each reference looks at all of them.
const VISIBLE_MAX: usize = 200;

/// Functions and aggregates that take a whole row, so that `x.name` may be a call: of PostgreSQL and of its own extensions,
/// 14 to 18. `count` tells of no column, and those that need OVER or WITHIN GROUP fail without it.
/// Sorted; a test asks a server whether one is missing.
pub(crate) const ROW_FUNCTIONS: &[&str] = &[
    "any_out",
    "any_value",
    "anycompatible_out",
    "anycompatiblenonarray_out",
    "anyelement_out",
    "anynonarray_out",
    "array_agg",
    "concat",
    "first_value",
    "hash_record",
    "hstore",
    "json_agg",
    "json_agg_strict",
    "json_build_array",
    "json_build_object",
    "jsonb_agg",
    "jsonb_agg_strict",
    "jsonb_build_array",
    "jsonb_build_object",
    "lag",
    "last_value",
    "lead",
    "max",
    "min",
    "num_nonnulls",
    "num_nulls",
    "pg_collation_for",
    "pg_column_compression",
    "pg_column_size",
    "pg_column_toast_chunk_id",
    "pg_typeof",
    "quote_literal",
    "quote_nullable",
    "record_out",
    "record_send",
    "row_to_json",
    "to_json",
    "to_jsonb",
];

/// Which rows and columns a use of a relation touches.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Touched<'t> {
    /// Those that [`Exposure`]s tell of, or none.
    Referenced,
    /// Whole rows.
    Row,
    /// These: `ResTarget` or `String` nodes.
    Columns(&'t [pb::Node]),
}

impl<'t> Touched<'t> {
    /// A column list as INSERT and COPY have it: without one, all columns are meant.
    pub(super) fn list(columns: &'t [pb::Node]) -> Self {
        if columns.is_empty() { Self::Row } else { Self::Columns(columns) }
    }
}

/// A column's name in a list of targets.
pub(crate) fn column_name(node: &pb::Node) -> Option<&str> {
    match &node.node {
        Some(NodeEnum::ResTarget(target)) => Some(&target.name),
        Some(NodeEnum::String(string)) => Some(&string.sval),
        _ => None,
    }
}

/// A reference that may reach what is not open of a watched table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Exposure<'t> {
    /// Which of the watched tables.
    pub(crate) table: usize,
    pub(crate) what: Exposed<'t>,
    pub(crate) location: Location,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exposed<'t> {
    Column(&'t str),
    /// `*`, the row as a value, NATURAL.
    Row,
    /// Other names for its columns: `AS t (a, b)`.
    Renamed,
}

/// A watched table under one of its names.
#[derive(Clone, Copy)]
pub(super) struct Visible<'t> {
    alias: &'t str,
    table: usize,
}

impl<'t> Walker<'t> {
    /// Opens a scope with the watched tables among the items of a FROM list.
    pub(super) fn open_scope(&mut self, items: &'t [pb::Node]) -> Result<usize, Box<super::Refusal>> {
        let outer = self.level;
        if !self.watched.is_empty() {
            self.level = self.visible.len();
            items.iter().try_for_each(|item| self.see(item))?;
        }
        Ok(outer)
    }

    pub(super) fn close_scope(&mut self, outer: usize) {
        if !self.watched.is_empty() {
            self.visible.truncate(self.level);
            self.level = outer;
        }
    }

    /// Walks what does not see the items beside it: a subquery in FROM without LATERAL.
    pub(super) fn beside(&mut self, walk: impl FnOnce(&mut Self) -> Walked) -> Walked {
        let hidden = self.visible.split_off(self.level);
        let result = walk(self);
        self.visible.extend(hidden);
        result
    }

    /// Puts the target of a statement that changes it into the scope.
    pub(super) fn see_target(&mut self, relation: Option<&'t pb::RangeVar>) -> Walked {
        match relation {
            Some(relation) if !self.watched.is_empty() => self.see_relation(relation, false),
            _ => Ok(()),
        }
    }

    /// The names under which RETURNING knows the target's old and new rows.
    pub(super) fn see_returning(&mut self, relation: Option<&'t pb::RangeVar>, options: &'t [pb::Node]) -> Walked {
        let options = options.iter().filter_map(|option| match &option.node {
            Some(NodeEnum::ReturningOption(option)) => Some(option.value.as_str()),
            _ => None,
        });
        ["old", "new"].into_iter().chain(options).try_for_each(|alias| self.see_target_as(relation, alias))
    }

    /// Another name of the target's rows.
    pub(super) fn see_target_as(&mut self, relation: Option<&'t pb::RangeVar>, alias: &'t str) -> Walked {
        let Some(relation) = relation.filter(|_| !self.watched.is_empty()) else { return Ok(()) };
        let tables = self.watched_as(&Name::of_relation(relation));
        tables.into_iter().try_for_each(|table| self.show(Visible { alias, table }, relation.location))
    }

    fn see(&mut self, item: &'t pb::Node) -> Walked {
        match &item.node {
            Some(NodeEnum::RangeVar(relation)) => self.see_relation(relation, true),
            Some(NodeEnum::RangeTableSample(sample)) => match &sample.relation {
                Some(relation) => self.see(relation),
                None => Ok(()),
            },
            Some(NodeEnum::JoinExpr(join)) => self.see_join(join),
            _ => Ok(()),
        }
    }

    fn see_relation(&mut self, relation: &'t pb::RangeVar, hidden_by_ctes: bool) -> Walked {
        let name = Name::of_relation(relation);
        if hidden_by_ctes && !name.is_qualified() && self.ctes.contains(&name.name) {
            return Ok(());
        }
        let alias = relation.alias.as_ref();
        for table in self.watched_as(&name) {
            if alias.is_some_and(|alias| !alias.colnames.is_empty()) {
                self.expose(table, Exposed::Renamed, relation.location);
            }
            let alias = alias.map_or(name.name, |alias| &alias.aliasname);
            self.show(Visible { alias, table }, relation.location)?;
        }
        Ok(())
    }

    /// A join is seen as its two sides, whose columns it may merge, and perhaps under a name of its own.
    fn see_join(&mut self, join: &'t pb::JoinExpr) -> Walked {
        let from = self.visible.len();
        for side in [&join.larg, &join.rarg].into_iter().flatten() {
            self.see(side)?;
        }
        let within = distinct(&self.visible[from..]);
        for table in within {
            if join.is_natural {
                self.expose(table, Exposed::Row, -1);
            }
            for column in strings(&join.using_clause).unwrap_or_default() {
                self.refer(table, column, -1);
            }
            for alias in [&join.alias, &join.join_using_alias].into_iter().flatten() {
                if !alias.colnames.is_empty() {
                    self.expose(table, Exposed::Renamed, -1);
                }
                self.show(Visible { alias: &alias.aliasname, table }, -1)?;
            }
        }
        Ok(())
    }

    fn show(&mut self, visible: Visible<'t>, location: Location) -> Walked {
        if self.visible.len() >= VISIBLE_MAX {
            let hint = "Use fewer tables of which this login reads some columns only in one statement.";
            return Err(clause_refused("so many tables with closed columns", hint, location));
        }
        self.visible.push(visible);
        Ok(())
    }

    fn watched_as(&self, name: &Name<'t>) -> Vec<usize> {
        let from = self.watched.partition_point(|rule| rule.table.as_str() < name.name);
        let named = self.watched[from..].iter().take_while(|rule| rule.table == name.name);
        let same = named.enumerate().filter(|(_, rule)| name.schema.is_empty() || rule.schema == name.schema);
        same.filter(|(_, rule)| !rule.read.is_all()).map(|(at, _)| from + at).collect()
    }

    /// A column reference, by its parts: `x`, `a.x`, `schema.a.x`, `*`, `a.*`.
    pub(super) fn references(&mut self, fields: &'t [pb::Node], location: Location) {
        if self.visible.is_empty() {
            return;
        }
        let star = matches!(fields.last().and_then(|last| last.node.as_ref()), Some(NodeEnum::AStar(_)));
        let names = strings(if star { &fields[..fields.len() - 1] } else { fields }).unwrap_or_default();
        match names.as_slice() {
            [] => {
                for table in distinct(&self.visible[self.level..]) {
                    self.expose(table, Exposed::Row, location);
                }
            }
            [.., of] if star => {
                for table in self.known_as(of) {
                    self.expose(table, Exposed::Row, location);
                }
            }
            [column] => {
                // A name that is no column's is the row of the table of that name.
                for table in self.known_as(column) {
                    self.expose(table, Exposed::Row, location);
                }
                self.may_be_any(column, location);
            }
            [.., of, column] => {
                for table in self.known_as(of) {
                    self.refer(table, column, location);
                }
            }
        }
    }

    /// A column without a table in front, such as ON CONFLICT has it.
    pub(super) fn may_be_any(&mut self, column: &'t str, location: Location) {
        for table in distinct(&self.visible) {
            self.refer(table, column, location);
        }
    }

    /// A whole row of anything in the innermost scope.
    pub(super) fn row(&mut self, location: Location) {
        for table in distinct(&self.visible[self.level..]) {
            self.expose(table, Exposed::Row, location);
        }
    }

    fn known_as(&self, name: &str) -> Vec<usize> {
        let named: Vec<Visible<'t>> = self.visible.iter().filter(|visible| visible.alias == name).copied().collect();
        distinct(&named)
    }

    fn refer(&mut self, table: usize, column: &'t str, location: Location) {
        let rule: &TableRule = &self.watched[table];
        let call = matches!(rule.read, Selection::Except(_)) && ROW_FUNCTIONS.binary_search(&column).is_ok();
        if call {
            self.expose(table, Exposed::Row, location);
        } else if !rule.read.has(column) {
            self.expose(table, Exposed::Column(column), location);
        }
    }

    fn expose(&mut self, table: usize, what: Exposed<'t>, location: Location) {
        self.facts.exposure.get_or_insert(Exposure { table, what, location });
    }
}

/// The tables among these, each once.
fn distinct(visible: &[Visible<'_>]) -> Vec<usize> {
    let mut tables: Vec<usize> = visible.iter().map(|visible| visible.table).collect();
    tables.sort_unstable();
    tables.dedup();
    tables
}
