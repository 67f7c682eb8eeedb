//! One statement of a text: which kind it is, and who walks it. Every node kind is named, so that a new one fails to compile
//! rather than to be refused.

use pg_query::NodeEnum as N;
use pg_query::protobuf as pb;

use super::walk::unknown;
use super::{Access, Facts, Location, Refusal, Walked, Walker, clause_refused, kind_refused, node_refused};
use crate::document::TableRule;
use crate::verdict::Kind;

/// `AccessShareLock` of lockdefs.h.
const ACCESS_SHARE: i32 = 1;

/// Options of EXPLAIN that pass.
const EXPLAIN_OPTIONS: &[&str] = &[
    "analyze",
    "verbose",
    "costs",
    "settings",
    "generic_plan",
    "buffers",
    "serialize",
    "wal",
    "timing",
    "summary",
    "memory",
    "format",
];

/// Collects the facts of the statement that starts at `location`; of `watched` tables, references to closed columns too.
pub(crate) fn classify<'t>(
    statement: &'t pb::Node,
    location: Location,
    watched: &'t [TableRule],
) -> Result<Facts<'t>, Box<Refusal>> {
    let facts = Facts::new(location);
    let mut walker = Walker { facts, ctes: Vec::new(), watched, visible: Vec::new(), level: 0, deferred: false };
    let node = statement.node.as_ref().ok_or_else(|| node_refused("empty statement"))?;
    match walker.statement(statement, node) {
        Ok(()) => Ok(walker.facts),
        Err(mut refusal) => {
            if refusal.location < 0 {
                refusal.location = location;
            }
            Err(refusal)
        }
    }
}

impl<'t> Walker<'t> {
    fn statement(&mut self, statement: &'t pb::Node, node: &'t N) -> Walked {
        match node {
            N::SelectStmt(select) => {
                self.facts.kind = Kind::Select;
                if self.select_of_settings(select)? { Ok(()) } else { self.select(select, false) }
            }
            N::InsertStmt(_) => self.changing(Kind::Insert, statement),
            N::UpdateStmt(_) => self.changing(Kind::Update, statement),
            N::DeleteStmt(_) => self.changing(Kind::Delete, statement),
            N::MergeStmt(_) => self.changing(Kind::Merge, statement),
            N::ExplainStmt(explain) => self.explain(explain),
            N::CopyStmt(copy) => self.copy(copy),
            N::TransactionStmt(transaction) => self.transaction(transaction),
            N::VariableSetStmt(set) => self.set(set),
            N::VariableShowStmt(_) => self.only(Kind::Show),
            N::DeclareCursorStmt(declare) => self.declare(declare),
            N::FetchStmt(fetch) => {
                self.fetch(fetch);
                Ok(())
            }
            N::ClosePortalStmt(close) => {
                self.close(close);
                Ok(())
            }
            N::PrepareStmt(prepare) => self.prepare(prepare),
            N::ExecuteStmt(execute) => {
                self.facts.kind = Kind::Execute;
                self.execute(execute)
            }
            N::DeallocateStmt(deallocate) => {
                self.deallocate(deallocate);
                Ok(())
            }
            N::DiscardStmt(discard) => self.discard(discard),
            N::ListenStmt(listen) => {
                self.listen(&listen.conditionname);
                Ok(())
            }
            N::UnlistenStmt(unlisten) => {
                self.unlisten(&unlisten.conditionname);
                Ok(())
            }
            N::NotifyStmt(_) => {
                self.facts.notifies = true;
                self.only(Kind::Notify)
            }
            N::LockStmt(lock) => self.lock(lock),
            N::ConstraintsSetStmt(_) => self.only(Kind::SetConstraints),
            N::TruncateStmt(truncate) => {
                self.facts.kind = Kind::Truncate;
                self.relations(&truncate.relations, Access::Truncate)
            }
            N::CreateStmt(create) => self.create_table(create),
            N::CreateTableAsStmt(create) => self.create_table_as(create),
            N::AlterTableStmt(alter) => self.alter_table(alter),
            N::RenameStmt(rename) => self.rename(rename),
            N::AlterObjectSchemaStmt(alter) => self.set_schema(alter),
            N::DropStmt(drop) => self.drop_objects(drop),
            N::IndexStmt(index) => self.create_index(index),
            N::CreateSeqStmt(create) => {
                self.facts.kind = Kind::CreateSequence;
                self.sequence(create.sequence.as_ref(), &create.options)
            }
            N::AlterSeqStmt(alter) => {
                self.facts.kind = Kind::AlterSequence;
                self.sequence(alter.sequence.as_ref(), &alter.options)
            }
            N::ViewStmt(view) => self.create_view(view),
            N::RefreshMatViewStmt(refresh) => {
                self.facts.kind = Kind::RefreshMaterializedView;
                self.define(refresh.relation.as_ref(), crate::document::DefineObject::MaterializedView)?;
                // It compares the old rows with the new ones through a temporary table.
                if refresh.concurrent {
                    self.target(refresh.relation.as_ref(), Access::DefineTemporary)
                } else {
                    Ok(())
                }
            }
            N::CreateEnumStmt(create) => self.create_enum(create),
            N::AlterEnumStmt(alter) => self.alter_enum(alter),
            N::CompositeTypeStmt(create) => self.create_composite(create),
            N::CreateRangeStmt(create) => self.create_range(create),
            N::CreateDomainStmt(create) => self.create_domain(create),
            N::AlterDomainStmt(alter) => self.alter_domain(alter),
            N::CreateStatsStmt(create) => self.create_statistics(create),
            N::AlterStatsStmt(alter) => self.alter_statistics(alter),
            N::CommentStmt(comment) => self.comment(comment),
            N::AlterOwnerStmt(_) => Err(clause_refused(
                "OWNER TO",
                "Objects belong to the role that makes them; leave OWNER TO out.",
                self.facts.location,
            )),
            N::CreateSchemaStmt(_) => self.refuse("CREATE SCHEMA"),
            N::GrantStmt(grant) => self.refuse(if grant.is_grant { "GRANT" } else { "REVOKE" }),
            N::GrantRoleStmt(grant) => self.refuse(if grant.is_grant { "GRANT" } else { "REVOKE" }),
            N::AlterDefaultPrivilegesStmt(_) => self.refuse("ALTER DEFAULT PRIVILEGES"),
            N::CreateFunctionStmt(create) => {
                self.refuse(if create.is_procedure { "CREATE PROCEDURE" } else { "CREATE FUNCTION" })
            }
            N::AlterFunctionStmt(_) => self.refuse("ALTER FUNCTION"),
            N::DoStmt(_) => self.refuse("DO"),
            N::CallStmt(_) => self.refuse("CALL"),
            N::CreateTrigStmt(_) => self.refuse("CREATE TRIGGER"),
            N::CreateEventTrigStmt(_) => self.refuse("CREATE EVENT TRIGGER"),
            N::AlterEventTrigStmt(_) => self.refuse("ALTER EVENT TRIGGER"),
            N::RuleStmt(_) => self.refuse("CREATE RULE"),
            N::CreatePolicyStmt(_) => self.refuse("CREATE POLICY"),
            N::AlterPolicyStmt(_) => self.refuse("ALTER POLICY"),
            N::CreateExtensionStmt(_) => self.refuse("CREATE EXTENSION"),
            N::AlterExtensionStmt(_) | N::AlterExtensionContentsStmt(_) => self.refuse("ALTER EXTENSION"),
            N::CreateRoleStmt(_) => self.refuse("CREATE ROLE"),
            N::AlterRoleStmt(_) | N::AlterRoleSetStmt(_) => self.refuse("ALTER ROLE"),
            N::DropRoleStmt(_) => self.refuse("DROP ROLE"),
            N::DropOwnedStmt(_) => self.refuse("DROP OWNED"),
            N::ReassignOwnedStmt(_) => self.refuse("REASSIGN OWNED"),
            N::CreatedbStmt(_) => self.refuse("CREATE DATABASE"),
            N::AlterDatabaseStmt(_) | N::AlterDatabaseRefreshCollStmt(_) | N::AlterDatabaseSetStmt(_) => {
                self.refuse("ALTER DATABASE")
            }
            N::DropdbStmt(_) => self.refuse("DROP DATABASE"),
            N::CreateTableSpaceStmt(_)
            | N::DropTableSpaceStmt(_)
            | N::AlterTableSpaceOptionsStmt(_)
            | N::AlterTableMoveAllStmt(_) => self.refuse("TABLESPACE"),
            N::AlterSystemStmt(_) => self.refuse("ALTER SYSTEM"),
            N::LoadStmt(_) => self.refuse("LOAD"),
            N::CheckPointStmt(_) => self.refuse("CHECKPOINT"),
            N::VacuumStmt(vacuum) if vacuum.is_vacuumcmd => self.refuse("VACUUM"),
            N::VacuumStmt(analyze) => self.analyze(analyze),
            N::ClusterStmt(_) => self.refuse("CLUSTER"),
            N::ReindexStmt(_) => self.refuse("REINDEX"),
            N::SecLabelStmt(_) => self.refuse("SECURITY LABEL"),
            N::DefineStmt(_) => self.refuse("CREATE AGGREGATE, OPERATOR, TYPE, COLLATION or TEXT SEARCH"),
            N::CreateOpClassStmt(_) | N::CreateOpFamilyStmt(_) | N::AlterOpFamilyStmt(_) => {
                self.refuse("CREATE OPERATOR CLASS")
            }
            N::AlterOperatorStmt(_) => self.refuse("ALTER OPERATOR"),
            N::AlterTypeStmt(_) => self.refuse("ALTER TYPE … SET"),
            N::AlterCollationStmt(_) => self.refuse("ALTER COLLATION"),
            N::CreateAmStmt(_) => self.refuse("CREATE ACCESS METHOD"),
            N::CreatePlangStmt(_) => self.refuse("CREATE LANGUAGE"),
            N::CreateConversionStmt(_) => self.refuse("CREATE CONVERSION"),
            N::CreateCastStmt(_) => self.refuse("CREATE CAST"),
            N::CreateTransformStmt(_) => self.refuse("CREATE TRANSFORM"),
            N::CreateFdwStmt(_) | N::AlterFdwStmt(_) => self.refuse("FOREIGN DATA WRAPPER"),
            N::CreateForeignServerStmt(_) | N::AlterForeignServerStmt(_) => self.refuse("SERVER"),
            N::CreateForeignTableStmt(_) => self.refuse("CREATE FOREIGN TABLE"),
            N::CreateUserMappingStmt(_) | N::AlterUserMappingStmt(_) | N::DropUserMappingStmt(_) => {
                self.refuse("USER MAPPING")
            }
            N::ImportForeignSchemaStmt(_) => self.refuse("IMPORT FOREIGN SCHEMA"),
            N::CreatePublicationStmt(_) | N::AlterPublicationStmt(_) => self.refuse("PUBLICATION"),
            N::CreateSubscriptionStmt(_) | N::AlterSubscriptionStmt(_) | N::DropSubscriptionStmt(_) => {
                self.refuse("SUBSCRIPTION")
            }
            N::AlterTsdictionaryStmt(_) => self.refuse("ALTER TEXT SEARCH DICTIONARY"),
            N::AlterTsconfigurationStmt(_) => self.refuse("ALTER TEXT SEARCH CONFIGURATION"),
            N::AlterObjectDependsStmt(_) => self.refuse("DEPENDS ON EXTENSION"),
            // Parts of statements: never one by themselves.
            N::Alias(_)
            | N::RangeVar(_)
            | N::DefElem(_)
            | N::TableFunc(_)
            | N::IntoClause(_)
            | N::Var(_)
            | N::Param(_)
            | N::Aggref(_)
            | N::GroupingFunc(_)
            | N::WindowFunc(_)
            | N::WindowFuncRunCondition(_)
            | N::MergeSupportFunc(_)
            | N::SubscriptingRef(_)
            | N::FuncExpr(_)
            | N::NamedArgExpr(_)
            | N::OpExpr(_)
            | N::DistinctExpr(_)
            | N::NullIfExpr(_)
            | N::ScalarArrayOpExpr(_)
            | N::BoolExpr(_)
            | N::SubLink(_)
            | N::SubPlan(_)
            | N::AlternativeSubPlan(_)
            | N::FieldSelect(_)
            | N::FieldStore(_)
            | N::RelabelType(_)
            | N::CoerceViaIo(_)
            | N::ArrayCoerceExpr(_)
            | N::ConvertRowtypeExpr(_)
            | N::CollateExpr(_)
            | N::CaseExpr(_)
            | N::CaseWhen(_)
            | N::CaseTestExpr(_)
            | N::ArrayExpr(_)
            | N::RowExpr(_)
            | N::RowCompareExpr(_)
            | N::CoalesceExpr(_)
            | N::MinMaxExpr(_)
            | N::SqlvalueFunction(_)
            | N::XmlExpr(_)
            | N::JsonFormat(_)
            | N::JsonReturning(_)
            | N::JsonValueExpr(_)
            | N::JsonConstructorExpr(_)
            | N::JsonIsPredicate(_)
            | N::JsonBehavior(_)
            | N::JsonExpr(_)
            | N::JsonTablePath(_)
            | N::JsonTablePathScan(_)
            | N::JsonTableSiblingJoin(_)
            | N::NullTest(_)
            | N::BooleanTest(_)
            | N::MergeAction(_)
            | N::CoerceToDomain(_)
            | N::CoerceToDomainValue(_)
            | N::SetToDefault(_)
            | N::CurrentOfExpr(_)
            | N::NextValueExpr(_)
            | N::InferenceElem(_)
            | N::ReturningExpr(_)
            | N::TargetEntry(_)
            | N::RangeTblRef(_)
            | N::JoinExpr(_)
            | N::FromExpr(_)
            | N::OnConflictExpr(_)
            | N::Query(_)
            | N::TypeName(_)
            | N::ColumnRef(_)
            | N::ParamRef(_)
            | N::AExpr(_)
            | N::TypeCast(_)
            | N::CollateClause(_)
            | N::RoleSpec(_)
            | N::FuncCall(_)
            | N::AStar(_)
            | N::AIndices(_)
            | N::AIndirection(_)
            | N::AArrayExpr(_)
            | N::ResTarget(_)
            | N::MultiAssignRef(_)
            | N::SortBy(_)
            | N::WindowDef(_)
            | N::RangeSubselect(_)
            | N::RangeFunction(_)
            | N::RangeTableFunc(_)
            | N::RangeTableFuncCol(_)
            | N::RangeTableSample(_)
            | N::ColumnDef(_)
            | N::TableLikeClause(_)
            | N::IndexElem(_)
            | N::LockingClause(_)
            | N::XmlSerialize(_)
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
            | N::GroupingSet(_)
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
            | N::JsonAggConstructor(_)
            | N::JsonObjectAgg(_)
            | N::JsonArrayAgg(_)
            | N::RawStmt(_)
            | N::SetOperationStmt(_)
            | N::ReturnStmt(_)
            | N::PlassignStmt(_)
            | N::AlterTableCmd(_)
            | N::AtalterConstraint(_)
            | N::ReplicaIdentityStmt(_)
            | N::ObjectWithArgs(_)
            | N::AccessPriv(_)
            | N::Constraint(_)
            | N::CreateOpClassItem(_)
            | N::StatsElem(_)
            | N::FunctionParameter(_)
            | N::InlineCodeBlock(_)
            | N::CallContext(_)
            | N::VacuumRelation(_)
            | N::PublicationTable(_)
            | N::PublicationObjSpec(_)
            | N::Integer(_)
            | N::Float(_)
            | N::Boolean(_)
            | N::String(_)
            | N::BitString(_)
            | N::List(_)
            | N::IntList(_)
            | N::OidList(_)
            | N::AConst(_) => Err(unknown(node)),
        }
    }

    fn refuse(&self, name: &'static str) -> Walked {
        Err(kind_refused(name, self.facts.location))
    }

    fn only(&mut self, kind: Kind) -> Walked {
        self.facts.kind = kind;
        Ok(())
    }

    fn changing(&mut self, kind: Kind, statement: &'t pb::Node) -> Walked {
        self.facts.kind = kind;
        self.query(statement, false)
    }

    fn relations(&mut self, relations: &'t [pb::Node], access: Access) -> Walked {
        for relation in relations {
            match &relation.node {
                Some(N::RangeVar(relation)) => self.target(Some(relation), access)?,
                _ => return Err(node_refused("relation")),
            }
        }
        Ok(())
    }

    fn lock(&mut self, lock: &'t pb::LockStmt) -> Walked {
        self.facts.kind = Kind::Lock;
        let access = if lock.mode == ACCESS_SHARE { Access::Read } else { Access::LockTable };
        self.relations(&lock.relations, access)
    }

    /// EXPLAIN is judged by the statement inside, whether ANALYZE would run it or not.
    fn explain(&mut self, explain: &'t pb::ExplainStmt) -> Walked {
        for option in &explain.options {
            let Some(N::DefElem(option)) = &option.node else { return Err(node_refused("EXPLAIN option")) };
            if !EXPLAIN_OPTIONS.contains(&option.defname.as_str()) {
                let object = format!("EXPLAIN option {}", option.defname);
                return Err(clause_refused(&object, "Leave the option out.", option.location));
            }
        }
        let query = explain.query.as_ref().ok_or_else(|| node_refused("EXPLAIN"))?;
        match &query.node {
            Some(N::ExecuteStmt(execute)) => self.execute(execute)?,
            Some(N::CreateTableAsStmt(create)) => self.create_table_as(create)?,
            Some(N::DeclareCursorStmt(declare)) => {
                self.inner(Kind::DeclareCursor);
                let inner = declare.query.as_ref().ok_or_else(|| node_refused("EXPLAIN"))?;
                self.query(inner, false)?;
            }
            Some(N::RefreshMatViewStmt(refresh)) => {
                self.inner(Kind::RefreshMaterializedView);
                self.define(refresh.relation.as_ref(), crate::document::DefineObject::MaterializedView)?;
            }
            _ => self.query(query, false)?,
        }
        self.facts.kind = Kind::Explain;
        Ok(())
    }
}
