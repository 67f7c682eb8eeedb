//! Expressions, wherever they stand. Every node kind of PostgreSQL is named here, in one match without a wildcard.

use pg_query::NodeEnum as N;
use pg_query::protobuf as pb;

use super::{
    Attribute, AttributeOf, Call, Location, Name, Other, Walked, Walker, clause_refused, node_refused, strings,
};
use crate::functions;

impl<'t> Walker<'t> {
    pub(super) fn nodes(&mut self, nodes: &'t [pb::Node]) -> Walked {
        nodes.iter().try_for_each(|node| self.node(node))
    }

    pub(super) fn boxed(&mut self, node: &'t Option<Box<pb::Node>>) -> Walked {
        match node {
            Some(node) => self.node(node),
            None => Ok(()),
        }
    }

    /// Inside a definition, whose expressions run later.
    pub(super) fn deferred(&mut self, walk: impl FnOnce(&mut Self) -> Walked) -> Walked {
        let before = std::mem::replace(&mut self.deferred, true);
        let result = walk(self);
        self.deferred = before;
        result
    }

    pub(super) fn node(&mut self, node: &'t pb::Node) -> Walked {
        let Some(node) = &node.node else { return Ok(()) };
        match node {
            N::Alias(_)
            | N::ParamRef(_)
            | N::AConst(_)
            | N::Integer(_)
            | N::Float(_)
            | N::Boolean(_)
            | N::String(_)
            | N::BitString(_)
            | N::AStar(_)
            | N::SetToDefault(_)
            | N::SqlvalueFunction(_)
            | N::MergeSupportFunc(_)
            | N::CurrentOfExpr(_) => Ok(()),
            N::List(list) => self.nodes(&list.items),
            N::ColumnRef(column) => self.column(column),
            N::AExpr(expression) => {
                self.operator(&expression.name, expression.location)?;
                self.boxed(&expression.lexpr)?;
                self.boxed(&expression.rexpr)
            }
            N::BoolExpr(expression) => self.nodes(&expression.args),
            N::TypeCast(cast) => {
                self.boxed(&cast.arg)?;
                self.type_name(cast.type_name.as_ref())
            }
            N::TypeName(name) => self.type_name(Some(name)),
            N::FuncCall(call) => self.call(call),
            N::CollateClause(clause) => self.collate(clause),
            N::SubLink(sublink) => {
                self.boxed(&sublink.testexpr)?;
                self.operator(&sublink.oper_name, sublink.location)?;
                match &sublink.subselect {
                    Some(query) => self.query(query, false),
                    None => Ok(()),
                }
            }
            N::AIndirection(indirection) => {
                self.boxed(&indirection.arg)?;
                let location = indirection.arg.as_deref().map_or(-1, location_of);
                self.indirection(&indirection.indirection, location)
            }
            N::AIndices(indices) => {
                self.boxed(&indices.lidx)?;
                self.boxed(&indices.uidx)
            }
            N::AArrayExpr(array) => self.nodes(&array.elements),
            N::ResTarget(target) => {
                self.subscripts(&target.indirection)?;
                self.boxed(&target.val)
            }
            N::MultiAssignRef(reference) => self.boxed(&reference.source),
            N::SortBy(sort) => {
                self.boxed(&sort.node)?;
                self.operator(&sort.use_op, sort.location)
            }
            N::WindowDef(window) => self.window(window),
            N::GroupingSet(set) => self.nodes(&set.content),
            N::GroupingFunc(function) => self.nodes(&function.args),
            N::NamedArgExpr(argument) => self.boxed(&argument.arg),
            N::CaseExpr(case) => {
                self.boxed(&case.arg)?;
                self.nodes(&case.args)?;
                self.boxed(&case.defresult)
            }
            N::CaseWhen(when) => {
                self.boxed(&when.expr)?;
                self.boxed(&when.result)
            }
            N::CoalesceExpr(expression) => self.nodes(&expression.args),
            N::MinMaxExpr(expression) => self.nodes(&expression.args),
            N::NullTest(test) => self.boxed(&test.arg),
            N::BooleanTest(test) => self.boxed(&test.arg),
            N::RowExpr(row) => self.nodes(&row.args),
            N::IndexElem(element) => self.index_element(element),
            N::ColumnDef(column) => self.column_definition(column),
            N::RangeTableFuncCol(column) => {
                self.type_name(column.type_name.as_ref())?;
                self.boxed(&column.colexpr)?;
                self.boxed(&column.coldefexpr)
            }
            N::XmlExpr(xml) => {
                self.nodes(&xml.named_args)?;
                self.nodes(&xml.args)
            }
            N::XmlSerialize(xml) => {
                self.boxed(&xml.expr)?;
                self.type_name(xml.type_name.as_ref())
            }
            N::JsonValueExpr(_)
            | N::JsonIsPredicate(_)
            | N::JsonBehavior(_)
            | N::JsonArgument(_)
            | N::JsonFuncExpr(_)
            | N::JsonTablePathSpec(_)
            | N::JsonTable(_)
            | N::JsonTableColumn(_)
            | N::JsonKeyValue(_)
            | N::JsonParseExpr(_)
            | N::JsonScalarExpr(_)
            | N::JsonSerializeExpr(_)
            | N::JsonObjectConstructor(_)
            | N::JsonArrayConstructor(_)
            | N::JsonArrayQueryConstructor(_)
            | N::JsonObjectAgg(_)
            | N::JsonArrayAgg(_) => self.json(node),
            // Statements and their parts, and what only a planner makes: never an expression.
            N::RangeVar(_)
            | N::TableFunc(_)
            | N::IntoClause(_)
            | N::Var(_)
            | N::Param(_)
            | N::Aggref(_)
            | N::WindowFunc(_)
            | N::WindowFuncRunCondition(_)
            | N::SubscriptingRef(_)
            | N::FuncExpr(_)
            | N::OpExpr(_)
            | N::DistinctExpr(_)
            | N::NullIfExpr(_)
            | N::ScalarArrayOpExpr(_)
            | N::SubPlan(_)
            | N::AlternativeSubPlan(_)
            | N::FieldSelect(_)
            | N::FieldStore(_)
            | N::RelabelType(_)
            | N::CoerceViaIo(_)
            | N::ArrayCoerceExpr(_)
            | N::ConvertRowtypeExpr(_)
            | N::CollateExpr(_)
            | N::CaseTestExpr(_)
            | N::ArrayExpr(_)
            | N::RowCompareExpr(_)
            | N::JsonFormat(_)
            | N::JsonReturning(_)
            | N::JsonConstructorExpr(_)
            | N::JsonExpr(_)
            | N::JsonTablePath(_)
            | N::JsonTablePathScan(_)
            | N::JsonTableSiblingJoin(_)
            | N::MergeAction(_)
            | N::CoerceToDomain(_)
            | N::CoerceToDomainValue(_)
            | N::NextValueExpr(_)
            | N::InferenceElem(_)
            | N::ReturningExpr(_)
            | N::TargetEntry(_)
            | N::RangeTblRef(_)
            | N::JoinExpr(_)
            | N::FromExpr(_)
            | N::OnConflictExpr(_)
            | N::Query(_)
            | N::RoleSpec(_)
            | N::RangeSubselect(_)
            | N::RangeFunction(_)
            | N::RangeTableFunc(_)
            | N::RangeTableSample(_)
            | N::TableLikeClause(_)
            | N::DefElem(_)
            | N::LockingClause(_)
            | N::PartitionElem(_)
            | N::PartitionSpec(_)
            | N::PartitionBoundSpec(_)
            | N::PartitionRangeDatum(_)
            | N::PartitionCmd(_)
            | N::RangeTblEntry(_)
            | N::RtepermissionInfo(_)
            | N::RangeTblFunction(_)
            | N::TableSampleClause(_)
            | N::WithCheckOption(_)
            | N::SortGroupClause(_)
            | N::WindowClause(_)
            | N::RowMarkClause(_)
            | N::WithClause(_)
            | N::InferClause(_)
            | N::OnConflictClause(_)
            | N::CtesearchClause(_)
            | N::CtecycleClause(_)
            | N::CommonTableExpr(_)
            | N::MergeWhenClause(_)
            | N::ReturningOption(_)
            | N::ReturningClause(_)
            | N::TriggerTransition(_)
            | N::JsonOutput(_)
            | N::JsonAggConstructor(_)
            | N::RawStmt(_)
            | N::InsertStmt(_)
            | N::DeleteStmt(_)
            | N::UpdateStmt(_)
            | N::MergeStmt(_)
            | N::SelectStmt(_)
            | N::SetOperationStmt(_)
            | N::ReturnStmt(_)
            | N::PlassignStmt(_)
            | N::CreateSchemaStmt(_)
            | N::AlterTableStmt(_)
            | N::AlterTableCmd(_)
            | N::AtalterConstraint(_)
            | N::ReplicaIdentityStmt(_)
            | N::AlterCollationStmt(_)
            | N::AlterDomainStmt(_)
            | N::GrantStmt(_)
            | N::ObjectWithArgs(_)
            | N::AccessPriv(_)
            | N::GrantRoleStmt(_)
            | N::AlterDefaultPrivilegesStmt(_)
            | N::CopyStmt(_)
            | N::VariableSetStmt(_)
            | N::VariableShowStmt(_)
            | N::CreateStmt(_)
            | N::Constraint(_)
            | N::CreateTableSpaceStmt(_)
            | N::DropTableSpaceStmt(_)
            | N::AlterTableSpaceOptionsStmt(_)
            | N::AlterTableMoveAllStmt(_)
            | N::CreateExtensionStmt(_)
            | N::AlterExtensionStmt(_)
            | N::AlterExtensionContentsStmt(_)
            | N::CreateFdwStmt(_)
            | N::AlterFdwStmt(_)
            | N::CreateForeignServerStmt(_)
            | N::AlterForeignServerStmt(_)
            | N::CreateForeignTableStmt(_)
            | N::CreateUserMappingStmt(_)
            | N::AlterUserMappingStmt(_)
            | N::DropUserMappingStmt(_)
            | N::ImportForeignSchemaStmt(_)
            | N::CreatePolicyStmt(_)
            | N::AlterPolicyStmt(_)
            | N::CreateAmStmt(_)
            | N::CreateTrigStmt(_)
            | N::CreateEventTrigStmt(_)
            | N::AlterEventTrigStmt(_)
            | N::CreatePlangStmt(_)
            | N::CreateRoleStmt(_)
            | N::AlterRoleStmt(_)
            | N::AlterRoleSetStmt(_)
            | N::DropRoleStmt(_)
            | N::CreateSeqStmt(_)
            | N::AlterSeqStmt(_)
            | N::DefineStmt(_)
            | N::CreateDomainStmt(_)
            | N::CreateOpClassStmt(_)
            | N::CreateOpClassItem(_)
            | N::CreateOpFamilyStmt(_)
            | N::AlterOpFamilyStmt(_)
            | N::DropStmt(_)
            | N::TruncateStmt(_)
            | N::CommentStmt(_)
            | N::SecLabelStmt(_)
            | N::DeclareCursorStmt(_)
            | N::ClosePortalStmt(_)
            | N::FetchStmt(_)
            | N::IndexStmt(_)
            | N::CreateStatsStmt(_)
            | N::StatsElem(_)
            | N::AlterStatsStmt(_)
            | N::CreateFunctionStmt(_)
            | N::FunctionParameter(_)
            | N::AlterFunctionStmt(_)
            | N::DoStmt(_)
            | N::InlineCodeBlock(_)
            | N::CallStmt(_)
            | N::CallContext(_)
            | N::RenameStmt(_)
            | N::AlterObjectDependsStmt(_)
            | N::AlterObjectSchemaStmt(_)
            | N::AlterOwnerStmt(_)
            | N::AlterOperatorStmt(_)
            | N::AlterTypeStmt(_)
            | N::RuleStmt(_)
            | N::NotifyStmt(_)
            | N::ListenStmt(_)
            | N::UnlistenStmt(_)
            | N::TransactionStmt(_)
            | N::CompositeTypeStmt(_)
            | N::CreateEnumStmt(_)
            | N::CreateRangeStmt(_)
            | N::AlterEnumStmt(_)
            | N::ViewStmt(_)
            | N::LoadStmt(_)
            | N::CreatedbStmt(_)
            | N::AlterDatabaseStmt(_)
            | N::AlterDatabaseRefreshCollStmt(_)
            | N::AlterDatabaseSetStmt(_)
            | N::DropdbStmt(_)
            | N::AlterSystemStmt(_)
            | N::ClusterStmt(_)
            | N::VacuumStmt(_)
            | N::VacuumRelation(_)
            | N::ExplainStmt(_)
            | N::CreateTableAsStmt(_)
            | N::RefreshMatViewStmt(_)
            | N::CheckPointStmt(_)
            | N::DiscardStmt(_)
            | N::LockStmt(_)
            | N::ConstraintsSetStmt(_)
            | N::ReindexStmt(_)
            | N::CreateConversionStmt(_)
            | N::CreateCastStmt(_)
            | N::CreateTransformStmt(_)
            | N::PrepareStmt(_)
            | N::ExecuteStmt(_)
            | N::DeallocateStmt(_)
            | N::DropOwnedStmt(_)
            | N::ReassignOwnedStmt(_)
            | N::AlterTsdictionaryStmt(_)
            | N::AlterTsconfigurationStmt(_)
            | N::PublicationTable(_)
            | N::PublicationObjSpec(_)
            | N::CreatePublicationStmt(_)
            | N::AlterPublicationStmt(_)
            | N::CreateSubscriptionStmt(_)
            | N::AlterSubscriptionStmt(_)
            | N::DropSubscriptionStmt(_)
            | N::IntList(_)
            | N::OidList(_) => Err(unknown(node)),
        }
    }

    /// `x.name` is a call of `name` where `x` has no column of that name.
    fn column(&mut self, column: &'t pb::ColumnRef) -> Walked {
        if let [first, between @ .., last] = column.fields.as_slice() {
            let of = match &first.node {
                Some(N::String(alias)) if between.is_empty() => AttributeOf::Alias(&alias.sval),
                _ => AttributeOf::Table,
            };
            match &last.node {
                Some(N::String(name)) => self.attribute(&name.sval, of, column.location),
                Some(N::AStar(_)) => {}
                _ => return Err(node_refused("column reference")),
            }
        }
        self.references(&column.fields, column.location);
        Ok(())
    }

    fn attribute(&mut self, name: &'t str, of: AttributeOf<'t>, location: Location) {
        if functions::is_attribute_call(name) {
            self.facts.attributes.push(Attribute { name, of, location });
        }
    }

    fn indirection(&mut self, items: &'t [pb::Node], location: Location) -> Walked {
        for item in items {
            match &item.node {
                Some(N::String(name)) => self.attribute(&name.sval, AttributeOf::Value, location),
                Some(N::AStar(_)) => {}
                Some(N::AIndices(_)) => self.node(item)?,
                _ => return Err(node_refused("indirection")),
            }
        }
        Ok(())
    }

    /// The target column of an assignment: names are fields, not calls.
    fn subscripts(&mut self, items: &'t [pb::Node]) -> Walked {
        for item in items {
            match &item.node {
                Some(N::String(_) | N::AStar(_)) => {}
                Some(N::AIndices(_)) => self.node(item)?,
                _ => return Err(node_refused("assignment target")),
            }
        }
        Ok(())
    }

    /// A function that a definition names without its arguments, which PostgreSQL will call.
    pub(super) fn call_by_name(&mut self, name: &'t [pb::Node], location: Location) -> Walked {
        let name = strings(name)
            .and_then(|parts| Name::of_parts(&parts))
            .ok_or_else(|| clause_refused("function name", "Name the function without a database.", location))?;
        self.facts.calls.push(Call { name, arguments: &[], location, deferred: true });
        Ok(())
    }

    fn call(&mut self, call: &'t pb::FuncCall) -> Walked {
        let pb::FuncCall {
            funcname,
            args,
            agg_order,
            agg_filter,
            over,
            agg_within_group: _,
            agg_star: _,
            agg_distinct: _,
            func_variadic: _,
            funcformat: _,
            location,
        } = call;
        let name = strings(funcname)
            .and_then(|parts| Name::of_parts(&parts))
            .ok_or_else(|| clause_refused("function name", "Name the function without a database.", *location))?;
        self.facts.calls.push(Call { name, arguments: args, location: *location, deferred: self.deferred });
        self.nodes(args)?;
        self.nodes(agg_order)?;
        self.boxed(agg_filter)?;
        match over {
            Some(window) => self.window(window),
            None => Ok(()),
        }
    }

    fn window(&mut self, window: &'t pb::WindowDef) -> Walked {
        self.nodes(&window.partition_clause)?;
        self.nodes(&window.order_clause)?;
        self.boxed(&window.start_offset)?;
        self.boxed(&window.end_offset)
    }

    /// An operator's name; only OPERATOR(schema.name) can carry a schema.
    pub(super) fn operator(&mut self, name: &'t [pb::Node], location: Location) -> Walked {
        if name.len() > 1 {
            self.other("operator", name, location)?;
        }
        Ok(())
    }

    pub(super) fn collate(&mut self, clause: &'t pb::CollateClause) -> Walked {
        self.boxed(&clause.arg)?;
        self.other("collation", &clause.collname, clause.location)
    }

    pub(super) fn sampling_method(&mut self, method: &'t [pb::Node], location: Location) -> Walked {
        match strings(method).as_deref() {
            Some(["bernoulli" | "system"] | ["pg_catalog", "bernoulli" | "system"]) => Ok(()),
            _ => Err(clause_refused("TABLESAMPLE method", "Use BERNOULLI or SYSTEM.", location)),
        }
    }

    /// Something else that may be qualified.
    pub(super) fn other(&mut self, what: &'static str, name: &'t [pb::Node], location: Location) -> Walked {
        let parts = strings(name).ok_or_else(|| node_refused(what))?;
        if parts.len() > 1 {
            let name = Name::of_parts(&parts).ok_or_else(|| clause_refused(what, "Use a shorter name.", location))?;
            self.facts.others.push(Other { what, name, location });
        }
        Ok(())
    }

    pub(super) fn type_name(&mut self, name: Option<&'t pb::TypeName>) -> Walked {
        let Some(pb::TypeName {
            names,
            type_oid: _,
            setof: _,
            pct_type,
            typmods,
            typemod: _,
            array_bounds: _,
            location,
        }) = name
        else {
            return Ok(());
        };
        if *pct_type {
            return Err(clause_refused("%TYPE", "Write the type's name.", *location));
        }
        self.other("type", names, *location)?;
        self.nodes(typmods)
    }

    fn json(&mut self, node: &'t N) -> Walked {
        match node {
            N::JsonValueExpr(value) => self.json_value(value),
            N::JsonIsPredicate(predicate) => self.boxed(&predicate.expr),
            N::JsonBehavior(behavior) => self.boxed(&behavior.expr),
            N::JsonArgument(argument) => match &argument.val {
                Some(value) => self.json_value(value),
                None => Ok(()),
            },
            N::JsonFuncExpr(function) => {
                let pb::JsonFuncExpr {
                    op: _,
                    column_name: _,
                    context_item,
                    pathspec,
                    passing,
                    output,
                    on_empty,
                    on_error,
                    wrapper: _,
                    quotes: _,
                    location: _,
                } = &**function;
                if let Some(item) = context_item {
                    self.json_value(item)?;
                }
                self.boxed(pathspec)?;
                self.nodes(passing)?;
                self.json_output(output.as_ref())?;
                self.json_behaviors([on_empty, on_error])
            }
            N::JsonTablePathSpec(path) => self.boxed(&path.string),
            N::JsonTable(table) => {
                let pb::JsonTable {
                    context_item,
                    pathspec,
                    passing,
                    columns,
                    on_error,
                    alias: _,
                    lateral: _,
                    location: _,
                } = &**table;
                if let Some(item) = context_item {
                    self.json_value(item)?;
                }
                if let Some(path) = pathspec {
                    self.boxed(&path.string)?;
                }
                self.nodes(passing)?;
                self.nodes(columns)?;
                self.json_behaviors([on_error, &None])
            }
            N::JsonTableColumn(column) => {
                self.type_name(column.type_name.as_ref())?;
                if let Some(path) = &column.pathspec {
                    self.boxed(&path.string)?;
                }
                self.nodes(&column.columns)?;
                self.json_behaviors([&column.on_empty, &column.on_error])
            }
            N::JsonKeyValue(pair) => self.json_pair(pair),
            N::JsonParseExpr(expression) => {
                if let Some(value) = &expression.expr {
                    self.json_value(value)?;
                }
                self.json_output(expression.output.as_ref())
            }
            N::JsonScalarExpr(expression) => {
                self.boxed(&expression.expr)?;
                self.json_output(expression.output.as_ref())
            }
            N::JsonSerializeExpr(expression) => {
                if let Some(value) = &expression.expr {
                    self.json_value(value)?;
                }
                self.json_output(expression.output.as_ref())
            }
            N::JsonObjectConstructor(constructor) => {
                self.nodes(&constructor.exprs)?;
                self.json_output(constructor.output.as_ref())
            }
            N::JsonArrayConstructor(constructor) => {
                self.nodes(&constructor.exprs)?;
                self.json_output(constructor.output.as_ref())
            }
            N::JsonArrayQueryConstructor(constructor) => {
                if let Some(query) = &constructor.query {
                    self.query(query, false)?;
                }
                self.json_output(constructor.output.as_ref())
            }
            N::JsonObjectAgg(aggregate) => {
                if let Some(pair) = &aggregate.arg {
                    self.json_pair(pair)?;
                }
                self.json_aggregate(aggregate.constructor.as_deref())
            }
            N::JsonArrayAgg(aggregate) => {
                if let Some(value) = &aggregate.arg {
                    self.json_value(value)?;
                }
                self.json_aggregate(aggregate.constructor.as_deref())
            }
            _ => Err(unknown(node)),
        }
    }

    fn json_value(&mut self, value: &'t pb::JsonValueExpr) -> Walked {
        self.boxed(&value.raw_expr)?;
        self.boxed(&value.formatted_expr)
    }

    fn json_pair(&mut self, pair: &'t pb::JsonKeyValue) -> Walked {
        self.boxed(&pair.key)?;
        match &pair.value {
            Some(value) => self.json_value(value),
            None => Ok(()),
        }
    }

    fn json_output(&mut self, output: Option<&'t pb::JsonOutput>) -> Walked {
        self.type_name(output.and_then(|output| output.type_name.as_ref()))
    }

    fn json_behaviors(&mut self, behaviors: [&'t Option<Box<pb::JsonBehavior>>; 2]) -> Walked {
        behaviors.into_iter().flatten().try_for_each(|behavior| self.boxed(&behavior.expr))
    }

    fn json_aggregate(&mut self, constructor: Option<&'t pb::JsonAggConstructor>) -> Walked {
        let Some(pb::JsonAggConstructor { output, agg_filter, agg_order, over, location: _ }) = constructor else {
            return Ok(());
        };
        self.json_output(output.as_ref())?;
        self.boxed(agg_filter)?;
        self.nodes(agg_order)?;
        match over {
            Some(window) => self.window(window),
            None => Ok(()),
        }
    }
}

/// Where an expression that a field is taken of stands, for the kinds that usually stand there; negative for others.
fn location_of(node: &pb::Node) -> Location {
    match &node.node {
        Some(N::ColumnRef(column)) => column.location,
        Some(N::FuncCall(call)) => call.location,
        Some(N::TypeCast(cast)) => cast.arg.as_deref().map_or(cast.location, location_of),
        Some(N::AConst(constant)) => constant.location,
        Some(N::ParamRef(parameter)) => parameter.location,
        Some(N::SubLink(sublink)) => sublink.location,
        Some(N::RowExpr(row)) => row.location,
        Some(N::AIndirection(indirection)) => indirection.arg.as_deref().map_or(-1, location_of),
        _ => -1,
    }
}

/// The refusal of a node where no expression of its kind is expected, with its name and nothing of its content.
pub(super) fn unknown(node: &N) -> Box<super::Refusal> {
    node_refused(&variant_name(node))
}

fn variant_name(node: &N) -> String {
    struct Head(String);
    impl std::fmt::Write for Head {
        fn write_str(&mut self, text: &str) -> std::fmt::Result {
            let word: String = text.chars().take_while(char::is_ascii_alphanumeric).collect();
            self.0.push_str(&word);
            // The rest of the debug output is not wanted; an error ends it.
            Err(std::fmt::Error)
        }
    }
    let mut head = Head(String::new());
    let _ = std::fmt::write(&mut head, format_args!("{node:?}"));
    head.0
}
