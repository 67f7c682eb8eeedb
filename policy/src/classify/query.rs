//! SELECT, INSERT, UPDATE, DELETE and MERGE: relations, CTE scopes and row locks, as PostgreSQL scopes them.

use pg_query::NodeEnum;
use pg_query::protobuf as pb;

use super::{Access, Location, Name, Touched, Use, Walked, Walker, node_refused, strings};
use crate::verdict::Kind;

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
        self.facts.uses.push(Use { name, access, touched: Touched::Row, location });
    }

    /// The target of a statement that changes it: a CTE never hides it.
    pub(super) fn target(&mut self, relation: Option<&'t pb::RangeVar>, access: Access) -> Walked {
        self.target_columns(relation, access, Touched::Row)
    }

    /// As [`Walker::target`], of some of its columns.
    pub(super) fn target_columns(
        &mut self,
        relation: Option<&'t pb::RangeVar>,
        access: Access,
        touched: Touched<'t>,
    ) -> Walked {
        let relation = relation.ok_or_else(|| node_refused("missing target"))?;
        self.facts.uses.push(Use { name: Name::of_relation(relation), access, touched, location: relation.location });
        Ok(())
    }

    /// A statement inside the statement that counts for itself.
    pub(super) fn inner(&mut self, kind: Kind) {
        if !self.facts.inner.contains(&kind) {
            self.facts.inner.push(kind);
        }
    }

    fn read(&mut self, relation: &'t pb::RangeVar, locked: bool) {
        let name = Name::of_relation(relation);
        if !name.is_qualified() && self.ctes.contains(&name.name) {
            return;
        }
        let (touched, location) = (Touched::Referenced, relation.location);
        self.facts.uses.push(Use { name, access: Access::Read, touched, location });
        if locked {
            self.facts.uses.push(Use { name, access: Access::LockRows, touched, location });
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
        let (kind, walked) = match &node.node {
            Some(NodeEnum::SelectStmt(select)) => return self.select(select, locked),
            Some(NodeEnum::InsertStmt(insert)) => (Kind::Insert, self.insert(insert)),
            Some(NodeEnum::UpdateStmt(update)) => (Kind::Update, self.update(update)),
            Some(NodeEnum::DeleteStmt(delete)) => (Kind::Delete, self.delete(delete)),
            Some(NodeEnum::MergeStmt(merge)) => (Kind::Merge, self.merge(merge)),
            _ => return Err(node_refused("query")),
        };
        self.inner(kind);
        walked
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
        let outer = self.open_scope(from_clause)?;
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
        for sort in sort_clause {
            // A name that is an output column's is that one first.
            if !self.sorts_by_output(sort, target_list) {
                self.node(sort)?;
            }
        }
        self.boxed(limit_offset)?;
        self.boxed(limit_count)?;
        self.close_scope(outer);
        self.leave(scope);
        Ok(())
    }

    /// `ORDER BY name` of a name that the target list gives by AS, without an operator of its own.
    fn sorts_by_output(&self, sort: &pb::Node, targets: &[pb::Node]) -> bool {
        if self.visible.is_empty() {
            return false;
        }
        let Some(NodeEnum::SortBy(sort)) = &sort.node else { return false };
        let key = sort.node.as_ref().and_then(|key| key.node.as_ref());
        let Some(NodeEnum::ColumnRef(column)) = key else { return false };
        let named = |name: &str| {
            targets
                .iter()
                .any(|target| matches!(&target.node, Some(NodeEnum::ResTarget(target)) if target.name == name))
        };
        sort.use_op.is_empty() && matches!(super::strings(&column.fields).as_deref(), Some([name]) if named(name))
    }

    /// FROM of UPDATE, USING of DELETE and MERGE.
    pub(super) fn read_items(&mut self, items: &'t [pb::Node]) -> Walked {
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
                if subselect.lateral {
                    return self.query(query, locks.lock(alias));
                }
                self.beside(|walker| walker.query(query, locks.lock(alias)))
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
        self.target_columns(relation.as_ref(), Access::Write, Touched::list(cols))?;
        let scope = self.enter(with_clause.as_ref())?;
        self.nodes(cols)?;
        if let Some(select) = select_stmt {
            self.query(select, false)?;
        }
        let outer = self.open_scope(&[])?;
        self.see_target(relation.as_ref())?;
        if let Some(conflict) = on_conflict_clause {
            self.on_conflict(relation.as_ref(), conflict)?;
        }
        self.returning(relation.as_ref(), returning_clause.as_ref())?;
        self.close_scope(outer);
        self.leave(scope);
        Ok(())
    }

    fn on_conflict(&mut self, relation: Option<&'t pb::RangeVar>, conflict: &'t pb::OnConflictClause) -> Walked {
        if let Some(infer) = &conflict.infer {
            for element in &infer.index_elems {
                if let Some(NodeEnum::IndexElem(element)) = &element.node
                    && !element.name.is_empty()
                {
                    self.may_be_any(&element.name, infer.location);
                }
            }
            if !infer.conname.is_empty() {
                // Nobody here knows the constraint's columns.
                self.row(infer.location);
            }
            self.nodes(&infer.index_elems)?;
            self.boxed(&infer.where_clause)?;
        }
        // PostgreSQL wants SELECT on the columns of excluded too.
        self.see_target_as(relation, "excluded")?;
        if !conflict.target_list.is_empty() {
            self.inner(Kind::Update);
            self.target_columns(relation, Access::Write, Touched::Columns(&conflict.target_list))?;
        }
        self.nodes(&conflict.target_list)?;
        self.boxed(&conflict.where_clause)
    }

    pub(super) fn update(&mut self, update: &'t pb::UpdateStmt) -> Walked {
        let pb::UpdateStmt { relation, target_list, where_clause, from_clause, returning_clause, with_clause } = update;
        self.target_columns(relation.as_ref(), Access::Write, Touched::Columns(target_list))?;
        let scope = self.enter(with_clause.as_ref())?;
        let outer = self.open_scope(from_clause)?;
        self.see_target(relation.as_ref())?;
        self.read_items(from_clause)?;
        self.nodes(target_list)?;
        self.boxed(where_clause)?;
        self.returning(relation.as_ref(), returning_clause.as_ref())?;
        self.close_scope(outer);
        self.leave(scope);
        Ok(())
    }

    pub(super) fn delete(&mut self, delete: &'t pb::DeleteStmt) -> Walked {
        let pb::DeleteStmt { relation, using_clause, where_clause, returning_clause, with_clause } = delete;
        self.target(relation.as_ref(), Access::Write)?;
        let scope = self.enter(with_clause.as_ref())?;
        let outer = self.open_scope(using_clause)?;
        self.see_target(relation.as_ref())?;
        self.read_items(using_clause)?;
        self.boxed(where_clause)?;
        self.returning(relation.as_ref(), returning_clause.as_ref())?;
        self.close_scope(outer);
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
        self.target_columns(relation.as_ref(), Access::Write, Touched::Referenced)?;
        let scope = self.enter(with_clause.as_ref())?;
        let source = source_relation.as_deref().map_or(&[][..], std::slice::from_ref);
        let outer = self.open_scope(source)?;
        self.see_target(relation.as_ref())?;
        self.read_items(source)?;
        self.boxed(join_condition)?;
        for clause in merge_when_clauses {
            let Some(NodeEnum::MergeWhenClause(clause)) = &clause.node else { return Err(node_refused("WHEN")) };
            self.merge_action(relation.as_ref(), clause)?;
        }
        self.returning(relation.as_ref(), returning_clause.as_ref())?;
        self.close_scope(outer);
        self.leave(scope);
        Ok(())
    }

    /// One WHEN of a MERGE: what it does counts as the statement of that name.
    fn merge_action(&mut self, relation: Option<&'t pb::RangeVar>, clause: &'t pb::MergeWhenClause) -> Walked {
        let (kind, touched) = match pb::CmdType::try_from(clause.command_type) {
            Ok(pb::CmdType::CmdNothing) => (None, Touched::Referenced),
            Ok(pb::CmdType::CmdInsert) => (Some(Kind::Insert), Touched::list(&clause.target_list)),
            Ok(pb::CmdType::CmdUpdate) => (Some(Kind::Update), Touched::Columns(&clause.target_list)),
            Ok(pb::CmdType::CmdDelete) => (Some(Kind::Delete), Touched::Row),
            _ => return Err(node_refused("WHEN")),
        };
        if let Some(kind) = kind {
            self.inner(kind);
            self.target_columns(relation, Access::Write, touched)?;
        }
        self.boxed(&clause.condition)?;
        self.nodes(&clause.target_list)?;
        self.nodes(&clause.values)
    }

    fn returning(&mut self, relation: Option<&'t pb::RangeVar>, clause: Option<&'t pb::ReturningClause>) -> Walked {
        match clause {
            // Its options only name OLD and NEW.
            Some(pb::ReturningClause { options, exprs }) => {
                self.see_returning(relation, options)?;
                self.nodes(exprs)
            }
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
