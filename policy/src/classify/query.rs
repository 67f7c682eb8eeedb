//! SELECT, INSERT, UPDATE, DELETE and MERGE: relations, CTE scopes and row locks, as PostgreSQL scopes them.

use pg_query::NodeEnum;
use pg_query::protobuf as pb;

use super::{Access, Location, Name, Use, Walked, Walker, node_refused, strings};

/// Which relations of a FROM list are locked.
#[derive(Clone, Copy)]
enum Locks<'a> {
    None,
    All,
    /// FOR UPDATE OF these.
    Of(&'a [&'a str]),
}

impl Locks<'_> {
    fn lock(self, alias: &str) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Of(names) => names.contains(&alias),
        }
    }
}

impl<'t> Walker<'t> {
    pub(super) fn record(&mut self, name: Name<'t>, access: Access, location: Location) {
        self.facts.uses.push(Use { name, access, location });
    }

    /// The target of a statement that changes it: a CTE never hides it.
    pub(super) fn target(&mut self, relation: Option<&'t pb::RangeVar>, access: Access) -> Walked {
        let relation = relation.ok_or_else(|| node_refused("missing target"))?;
        self.record(Name::of_relation(relation), access, relation.location);
        Ok(())
    }

    fn read(&mut self, relation: &'t pb::RangeVar, locked: bool) {
        let name = Name::of_relation(relation);
        if !name.is_qualified() && self.ctes.contains(&name.name) {
            return;
        }
        self.record(name, Access::Read, relation.location);
        if locked {
            self.record(name, Access::LockRows, relation.location);
        }
    }

    /// Walks the CTEs and puts their names into scope; the caller takes them out again with [`Walker::leave`].
    pub(super) fn enter(&mut self, with: Option<&'t pb::WithClause>) -> Result<usize, Box<super::Refusal>> {
        let before = self.ctes.len();
        let Some(pb::WithClause { ctes, recursive, location: _ }) = with else { return Ok(before) };
        let mut items = Vec::with_capacity(ctes.len());
        for cte in ctes {
            match &cte.node {
                Some(NodeEnum::CommonTableExpr(cte)) => items.push(&**cte),
                _ => return Err(node_refused("WITH item")),
            }
        }
        if *recursive {
            self.ctes.extend(items.iter().map(|cte| cte.ctename.as_str()));
        }
        for cte in items {
            if let Some(query) = &cte.ctequery {
                self.query(query, false)?;
            }
            if let Some(cycle) = &cte.cycle_clause {
                self.boxed(&cycle.cycle_mark_value)?;
                self.boxed(&cycle.cycle_mark_default)?;
            }
            if !recursive {
                self.ctes.push(&cte.ctename);
            }
        }
        Ok(before)
    }

    pub(super) fn leave(&mut self, before: usize) {
        self.ctes.truncate(before);
    }

    /// A query inside another statement: in WITH, FROM, a sublink, EXPLAIN, a cursor.
    pub(super) fn query(&mut self, node: &'t pb::Node, locked: bool) -> Walked {
        match &node.node {
            Some(NodeEnum::SelectStmt(select)) => self.select(select, locked),
            Some(NodeEnum::InsertStmt(insert)) => self.insert(insert),
            Some(NodeEnum::UpdateStmt(update)) => self.update(update),
            Some(NodeEnum::DeleteStmt(delete)) => self.delete(delete),
            Some(NodeEnum::MergeStmt(merge)) => self.merge(merge),
            _ => Err(node_refused("query")),
        }
    }

    /// `locked`: a locking clause around this subquery reaches into it.
    pub(super) fn select(&mut self, select: &'t pb::SelectStmt, locked: bool) -> Walked {
        let pb::SelectStmt {
            distinct_clause,
            into_clause,
            target_list,
            from_clause,
            where_clause,
            group_clause,
            group_distinct: _,
            having_clause,
            window_clause,
            values_lists,
            sort_clause,
            limit_offset,
            limit_count,
            limit_option: _,
            locking_clause,
            with_clause,
            op: _,
            all: _,
            larg,
            rarg,
        } = select;
        let scope = self.enter(with_clause.as_ref())?;
        if let Some(into) = into_clause {
            self.into(into)?;
        }
        let mut names = Vec::new();
        let mut locks = if locked { Locks::All } else { Locks::None };
        for clause in locking_clause {
            let Some(NodeEnum::LockingClause(clause)) = &clause.node else {
                return Err(node_refused("locking clause"));
            };
            if clause.locked_rels.is_empty() {
                locks = Locks::All;
            }
            for relation in &clause.locked_rels {
                match &relation.node {
                    Some(NodeEnum::RangeVar(relation)) => names.push(relation.relname.as_str()),
                    _ => return Err(node_refused("locking clause")),
                }
            }
        }
        if !names.is_empty() && !matches!(locks, Locks::All) {
            locks = Locks::Of(&names);
        }
        for item in from_clause {
            self.read_item(item, locks)?;
        }
        let locks_arms = matches!(locks, Locks::All);
        for arm in [larg, rarg].into_iter().flatten() {
            self.select(arm, locks_arms)?;
        }
        self.nodes(distinct_clause)?;
        self.nodes(target_list)?;
        self.boxed(where_clause)?;
        self.nodes(group_clause)?;
        self.boxed(having_clause)?;
        self.nodes(window_clause)?;
        self.nodes(values_lists)?;
        self.nodes(sort_clause)?;
        self.boxed(limit_offset)?;
        self.boxed(limit_count)?;
        self.leave(scope);
        Ok(())
    }

    /// FROM of UPDATE, USING of DELETE and MERGE.
    fn read_items(&mut self, items: &'t [pb::Node]) -> Walked {
        items.iter().try_for_each(|item| self.read_item(item, Locks::None))
    }

    fn read_item(&mut self, node: &'t pb::Node, locks: Locks<'_>) -> Walked {
        match &node.node {
            Some(NodeEnum::RangeVar(relation)) => {
                let alias = relation.alias.as_ref().map_or(&relation.relname, |alias| &alias.aliasname);
                self.read(relation, locks.lock(alias));
                Ok(())
            }
            Some(NodeEnum::RangeSubselect(subselect)) => {
                let alias = subselect.alias.as_ref().map_or("", |alias| &alias.aliasname);
                let query = subselect.subquery.as_ref().ok_or_else(|| node_refused("subquery"))?;
                self.query(query, locks.lock(alias))
            }
            Some(NodeEnum::JoinExpr(join)) => {
                for side in [&join.larg, &join.rarg].into_iter().flatten() {
                    self.read_item(side, locks)?;
                }
                self.boxed(&join.quals)
            }
            Some(NodeEnum::RangeTableSample(sample)) => {
                let pb::RangeTableSample { relation, method, args, repeatable, location } = &**sample;
                if let Some(relation) = relation {
                    self.read_item(relation, locks)?;
                }
                self.sampling_method(method, *location)?;
                self.nodes(args)?;
                self.boxed(repeatable)
            }
            Some(NodeEnum::RangeFunction(function)) => {
                self.facts.functions_in_from.push(name_in_from(function));
                self.nodes(&function.functions)?;
                self.nodes(&function.coldeflist)
            }
            Some(NodeEnum::RangeTableFunc(table)) => {
                let pb::RangeTableFunc { lateral: _, docexpr, rowexpr, namespaces, columns, alias: _, location: _ } =
                    &**table;
                self.boxed(docexpr)?;
                self.boxed(rowexpr)?;
                self.nodes(namespaces)?;
                self.nodes(columns)
            }
            Some(NodeEnum::JsonTable(_)) => self.node(node),
            _ => Err(node_refused("FROM item")),
        }
    }

    pub(super) fn insert(&mut self, insert: &'t pb::InsertStmt) -> Walked {
        let pb::InsertStmt {
            relation,
            cols,
            select_stmt,
            on_conflict_clause,
            returning_clause,
            with_clause,
            r#override: _,
        } = insert;
        self.target(relation.as_ref(), Access::Write)?;
        let scope = self.enter(with_clause.as_ref())?;
        self.nodes(cols)?;
        if let Some(select) = select_stmt {
            self.query(select, false)?;
        }
        if let Some(conflict) = on_conflict_clause {
            if let Some(infer) = &conflict.infer {
                self.nodes(&infer.index_elems)?;
                self.boxed(&infer.where_clause)?;
            }
            self.nodes(&conflict.target_list)?;
            self.boxed(&conflict.where_clause)?;
        }
        self.returning(returning_clause.as_ref())?;
        self.leave(scope);
        Ok(())
    }

    pub(super) fn update(&mut self, update: &'t pb::UpdateStmt) -> Walked {
        let pb::UpdateStmt { relation, target_list, where_clause, from_clause, returning_clause, with_clause } = update;
        self.target(relation.as_ref(), Access::Write)?;
        let scope = self.enter(with_clause.as_ref())?;
        self.read_items(from_clause)?;
        self.nodes(target_list)?;
        self.boxed(where_clause)?;
        self.returning(returning_clause.as_ref())?;
        self.leave(scope);
        Ok(())
    }

    pub(super) fn delete(&mut self, delete: &'t pb::DeleteStmt) -> Walked {
        let pb::DeleteStmt { relation, using_clause, where_clause, returning_clause, with_clause } = delete;
        self.target(relation.as_ref(), Access::Write)?;
        let scope = self.enter(with_clause.as_ref())?;
        self.read_items(using_clause)?;
        self.boxed(where_clause)?;
        self.returning(returning_clause.as_ref())?;
        self.leave(scope);
        Ok(())
    }

    pub(super) fn merge(&mut self, merge: &'t pb::MergeStmt) -> Walked {
        let pb::MergeStmt {
            relation,
            source_relation,
            join_condition,
            merge_when_clauses,
            returning_clause,
            with_clause,
        } = merge;
        self.target(relation.as_ref(), Access::Write)?;
        let scope = self.enter(with_clause.as_ref())?;
        if let Some(source) = source_relation {
            self.read_item(source, Locks::None)?;
        }
        self.boxed(join_condition)?;
        for clause in merge_when_clauses {
            let Some(NodeEnum::MergeWhenClause(clause)) = &clause.node else { return Err(node_refused("WHEN")) };
            self.boxed(&clause.condition)?;
            self.nodes(&clause.target_list)?;
            self.nodes(&clause.values)?;
        }
        self.returning(returning_clause.as_ref())?;
        self.leave(scope);
        Ok(())
    }

    fn returning(&mut self, clause: Option<&'t pb::ReturningClause>) -> Walked {
        match clause {
            // Its options only name OLD and NEW.
            Some(pb::ReturningClause { options: _, exprs }) => self.nodes(exprs),
            None => Ok(()),
        }
    }
}

/// The name under which a function in FROM is referred to: its alias, else its own; `None` for syntax (`COALESCE(…)`,
/// `CAST(…)`) that PostgreSQL names after itself.
fn name_in_from(function: &pb::RangeFunction) -> Option<&str> {
    if let Some(alias) = &function.alias {
        return Some(&alias.aliasname);
    }
    let Some(NodeEnum::List(pair)) = &function.functions.first()?.node else { return None };
    match &pair.items.first()?.node {
        Some(NodeEnum::FuncCall(call)) => strings(&call.funcname)?.last().copied(),
        _ => None,
    }
}
