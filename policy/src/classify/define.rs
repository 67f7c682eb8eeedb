//! CREATE, ALTER, DROP and COMMENT of what lives in a schema, option by option: what is not listed is refused.

use pb::{AlterTableType as At, ConstrType, ObjectType as Obj};
use pg_query::NodeEnum as N;
use pg_query::protobuf as pb;

use super::{Access, Location, Name, Refusal, Walked, Walker, clause_refused, kind_refused, node_refused, strings};
use crate::document::DefineObject;
use crate::verdict::Kind;

/// Storage parameters that a table may have.
const TABLE_PARAMETERS: &[&str] = &[
    "fillfactor",
    "autovacuum_vacuum_threshold",
    "autovacuum_vacuum_scale_factor",
    "autovacuum_vacuum_insert_threshold",
    "autovacuum_vacuum_insert_scale_factor",
    "autovacuum_analyze_threshold",
    "autovacuum_analyze_scale_factor",
];

/// Storage parameters that an index may have.
const INDEX_PARAMETERS: &[&str] = &[
    "fillfactor",
    "deduplicate_items",
    "fastupdate",
    "gin_pending_list_limit",
    "buffering",
    "pages_per_range",
    "autosummarize",
];

const COLUMN_PARAMETERS: &[&str] = &["n_distinct", "n_distinct_inherited"];
const VIEW_PARAMETERS: &[&str] = &["security_barrier", "security_invoker", "check_option"];
const PARAMETER_HINT: &str = "Leave the parameter out; fillfactor and autovacuum thresholds may be set.";
const TABLESPACE_HINT: &str = "Leave TABLESPACE out; there is one.";
const INDEX_METHODS: &[&str] = &["", "btree", "hash", "gist", "gin", "spgist", "brin"];

impl<'t> Walker<'t> {
    pub(super) fn define(&mut self, relation: Option<&'t pb::RangeVar>, object: DefineObject) -> Walked {
        let temporary = relation.is_some_and(|relation| relation.relpersistence == "t");
        self.target(relation, if temporary { Access::DefineTemporary } else { Access::Define(object) })
    }

    /// An object given by a list of strings: `[database.][schema.]name`, of which the last `drop_last` parts are something
    /// inside the object (a column, a constraint).
    fn define_parts(&mut self, name: &'t [pb::Node], drop_last: usize, object: DefineObject) -> Walked {
        let parts = strings(name).ok_or_else(|| node_refused("object name"))?;
        let parts = parts.get(..parts.len().saturating_sub(drop_last)).unwrap_or_default();
        let name = Name::of_parts(parts).ok_or_else(|| node_refused("object name"))?;
        self.record(name, Access::Define(object), -1);
        Ok(())
    }

    fn parameters(&mut self, options: &'t [pb::Node], allowed: &[&str]) -> Walked {
        for option in options {
            let Some(N::DefElem(option)) = &option.node else { return Err(node_refused("storage parameter")) };
            let known = option.defnamespace.is_empty() && allowed.contains(&option.defname.as_str());
            if !known {
                let object = format!("storage parameter {}", option.defname);
                return Err(clause_refused(&object, PARAMETER_HINT, option.location));
            }
            self.boxed(&option.arg)?;
        }
        Ok(())
    }

    fn no_tablespace(&self, name: &str) -> Walked {
        if name.is_empty() { Ok(()) } else { Err(clause_refused("TABLESPACE", TABLESPACE_HINT, self.facts.location)) }
    }

    fn heap_only(&self, method: &str) -> Walked {
        match method {
            "" | "heap" => Ok(()),
            _ => Err(clause_refused("table access method", "Leave USING out.", self.facts.location)),
        }
    }

    pub(super) fn create_table(&mut self, create: &'t pb::CreateStmt) -> Walked {
        let pb::CreateStmt {
            relation,
            table_elts,
            inh_relations,
            partbound,
            partspec,
            of_typename,
            constraints,
            nnconstraints,
            options,
            oncommit: _,
            tablespacename,
            access_method,
            if_not_exists: _,
        } = create;
        self.facts.kind = Kind::CreateTable;
        self.define(relation.as_ref(), DefineObject::Table)?;
        self.no_tablespace(tablespacename)?;
        self.heap_only(access_method)?;
        self.parameters(options, TABLE_PARAMETERS)?;
        for parent in inh_relations {
            match &parent.node {
                Some(N::RangeVar(parent)) => self.target(Some(parent), Access::Reference)?,
                _ => return Err(node_refused("INHERITS")),
            }
        }
        self.type_name(of_typename.as_ref())?;
        self.deferred(|walker| {
            walker.table_elements(table_elts)?;
            walker.table_elements(constraints)?;
            walker.table_elements(nnconstraints)?;
            walker.partition_bound(partbound.as_ref())?;
            walker.partition_spec(partspec.as_ref())
        })
    }

    fn table_elements(&mut self, elements: &'t [pb::Node]) -> Walked {
        for element in elements {
            match &element.node {
                Some(N::ColumnDef(column)) => self.column_definition(column)?,
                Some(N::Constraint(constraint)) => self.constraint(constraint)?,
                Some(N::TableLikeClause(like)) => self.like(like)?,
                _ => return Err(node_refused("table element")),
            }
        }
        Ok(())
    }

    /// LIKE reads the other table; INCLUDING DEFAULTS and the like copy expressions, which only own tables have been judged
    /// for.
    fn like(&mut self, like: &'t pb::TableLikeClause) -> Walked {
        // CREATE_TABLE_LIKE_CONSTRAINTS, _DEFAULTS, _GENERATED, _INDEXES and _STATISTICS, see parsenodes.h.
        const WITH_EXPRESSIONS: u32 = (1 << 2) | (1 << 3) | (1 << 4) | (1 << 6) | (1 << 7);
        self.target(like.relation.as_ref(), Access::Read)?;
        if like.options & WITH_EXPRESSIONS != 0 {
            self.target(like.relation.as_ref(), Access::Reference)?;
        }
        Ok(())
    }

    pub(super) fn column_definition(&mut self, column: &'t pb::ColumnDef) -> Walked {
        self.type_name(column.type_name.as_ref())?;
        if let Some(clause) = &column.coll_clause {
            self.collate(clause)?;
        }
        if !column.fdwoptions.is_empty() {
            return Err(clause_refused("column OPTIONS", "Leave OPTIONS out.", column.location));
        }
        self.boxed(&column.raw_default)?;
        self.boxed(&column.cooked_default)?;
        self.table_elements(&column.constraints)
    }

    fn constraint(&mut self, constraint: &'t pb::Constraint) -> Walked {
        let location = constraint.location;
        match ConstrType::try_from(constraint.contype).unwrap_or(ConstrType::Undefined) {
            ConstrType::ConstrNull
            | ConstrType::ConstrNotnull
            | ConstrType::ConstrDefault
            | ConstrType::ConstrGenerated
            | ConstrType::ConstrCheck
            | ConstrType::ConstrPrimary
            | ConstrType::ConstrUnique
            | ConstrType::ConstrExclusion
            | ConstrType::ConstrAttrDeferrable
            | ConstrType::ConstrAttrNotDeferrable
            | ConstrType::ConstrAttrDeferred
            | ConstrType::ConstrAttrImmediate
            | ConstrType::ConstrAttrEnforced
            | ConstrType::ConstrAttrNotEnforced => self.parameters(&constraint.options, INDEX_PARAMETERS)?,
            ConstrType::ConstrIdentity => self.sequence_options(&constraint.options)?,
            ConstrType::ConstrForeign => self.target(constraint.pktable.as_ref(), Access::Reference)?,
            ConstrType::Undefined => return Err(node_refused("constraint")),
        }
        self.no_tablespace(&constraint.indexspace)?;
        if !INDEX_METHODS.contains(&constraint.access_method.as_str()) {
            return Err(clause_refused("index access method", "Use btree, hash, gist, gin, spgist or brin.", location));
        }
        self.boxed(&constraint.raw_expr)?;
        self.boxed(&constraint.where_clause)?;
        for exclusion in &constraint.exclusions {
            // A pair of an index element and an operator's name.
            let Some(N::List(pair)) = &exclusion.node else { return Err(node_refused("EXCLUDE")) };
            let [element, operator] = pair.items.as_slice() else { return Err(node_refused("EXCLUDE")) };
            self.node(element)?;
            match &operator.node {
                Some(N::List(name)) => self.operator(&name.items, location)?,
                _ => return Err(node_refused("EXCLUDE")),
            }
        }
        Ok(())
    }

    fn partition_bound(&mut self, bound: Option<&'t pb::PartitionBoundSpec>) -> Walked {
        let Some(bound) = bound else { return Ok(()) };
        for datum in bound.listdatums.iter().chain(&bound.lowerdatums).chain(&bound.upperdatums) {
            match &datum.node {
                Some(N::PartitionRangeDatum(range)) => self.boxed(&range.value)?,
                _ => self.node(datum)?,
            }
        }
        Ok(())
    }

    fn partition_spec(&mut self, spec: Option<&'t pb::PartitionSpec>) -> Walked {
        let Some(spec) = spec else { return Ok(()) };
        for element in &spec.part_params {
            let Some(N::PartitionElem(element)) = &element.node else { return Err(node_refused("PARTITION BY")) };
            self.boxed(&element.expr)?;
            self.optional_name("collation", &element.collation, element.location)?;
            self.optional_name("operator class", &element.opclass, element.location)?;
        }
        Ok(())
    }

    fn optional_name(&mut self, what: &'static str, name: &'t [pb::Node], location: Location) -> Walked {
        if name.is_empty() { Ok(()) } else { self.other(what, name, location) }
    }

    pub(super) fn create_index(&mut self, index: &'t pb::IndexStmt) -> Walked {
        self.facts.kind = Kind::CreateIndex;
        self.define(index.relation.as_ref(), DefineObject::Index)?;
        self.no_tablespace(&index.table_space)?;
        if !INDEX_METHODS.contains(&index.access_method.as_str()) {
            return Err(clause_refused(
                "index access method",
                "Use btree, hash, gist, gin, spgist or brin.",
                self.facts.location,
            ));
        }
        self.parameters(&index.options, INDEX_PARAMETERS)?;
        self.deferred(|walker| {
            walker.nodes(&index.index_params)?;
            walker.nodes(&index.index_including_params)?;
            walker.boxed(&index.where_clause)
        })
    }

    pub(super) fn index_element(&mut self, element: &'t pb::IndexElem) -> Walked {
        self.boxed(&element.expr)?;
        self.optional_name("collation", &element.collation, -1)?;
        self.optional_name("operator class", &element.opclass, -1)?;
        for option in &element.opclassopts {
            let Some(N::DefElem(option)) = &option.node else { return Err(node_refused("operator class option")) };
            self.boxed(&option.arg)?;
        }
        Ok(())
    }

    pub(super) fn sequence(&mut self, sequence: Option<&'t pb::RangeVar>, options: &'t [pb::Node]) -> Walked {
        self.define(sequence, DefineObject::Sequence)?;
        self.sequence_options(options)
    }

    fn sequence_options(&mut self, options: &'t [pb::Node]) -> Walked {
        for option in options {
            let Some(N::DefElem(option)) = &option.node else { return Err(node_refused("sequence option")) };
            match option.defname.as_str() {
                "owned_by" => self.owned_by(option)?,
                "sequence_name" => match option.arg.as_ref().and_then(|arg| arg.node.as_ref()) {
                    Some(N::List(name)) => self.define_parts(&name.items, 0, DefineObject::Sequence)?,
                    _ => return Err(node_refused("SEQUENCE NAME")),
                },
                "as" | "cache" | "cycle" | "increment" | "maxvalue" | "minvalue" | "start" | "restart" | "logged"
                | "unlogged" | "generated" => self.boxed(&option.arg)?,
                _ => {
                    let object = format!("sequence option {}", option.defname);
                    return Err(clause_refused(&object, "Leave the option out.", option.location));
                }
            }
        }
        Ok(())
    }

    fn owned_by(&mut self, option: &'t pb::DefElem) -> Walked {
        let Some(N::List(name)) = option.arg.as_ref().and_then(|arg| arg.node.as_ref()) else {
            return Err(node_refused("OWNED BY"));
        };
        match strings(&name.items).as_deref() {
            Some(["none"]) => Ok(()),
            _ => {
                let parts = strings(&name.items).ok_or_else(|| node_refused("OWNED BY"))?;
                let table = parts.get(..parts.len().saturating_sub(1)).and_then(Name::of_parts);
                let table = table.ok_or_else(|| node_refused("OWNED BY"))?;
                self.record(table, Access::Reference, -1);
                Ok(())
            }
        }
    }

    /// SELECT … INTO and CREATE TABLE … AS.
    pub(super) fn into(&mut self, into: &'t pb::IntoClause) -> Walked {
        self.define_into(into, DefineObject::Table)?;
        self.inner(Kind::CreateTableAs);
        self.facts.kind = Kind::CreateTableAs;
        Ok(())
    }

    fn define_into(&mut self, into: &'t pb::IntoClause, object: DefineObject) -> Walked {
        self.define(into.rel.as_ref(), object)?;
        self.no_tablespace(&into.table_space_name)?;
        self.heap_only(&into.access_method)?;
        self.parameters(&into.options, TABLE_PARAMETERS)
    }

    pub(super) fn create_table_as(&mut self, create: &'t pb::CreateTableAsStmt) -> Walked {
        let (object, kind) = match Obj::try_from(create.objtype) {
            Ok(Obj::ObjectMatview) => (DefineObject::MaterializedView, Kind::CreateMaterializedView),
            Ok(Obj::ObjectTable) => (DefineObject::Table, Kind::CreateTableAs),
            _ => return Err(node_refused("CREATE … AS")),
        };
        self.inner(kind);
        self.facts.kind = kind;
        let into = create.into.as_ref().ok_or_else(|| node_refused("CREATE … AS"))?;
        self.define_into(into, object)?;
        let query = create.query.as_ref().ok_or_else(|| node_refused("CREATE … AS"))?;
        match &query.node {
            Some(N::ExecuteStmt(execute)) => self.execute(execute),
            _ => self.query(query, false),
        }
    }

    pub(super) fn create_view(&mut self, view: &'t pb::ViewStmt) -> Walked {
        self.facts.kind = Kind::CreateView;
        self.define(view.view.as_ref(), DefineObject::View)?;
        self.parameters(&view.options, VIEW_PARAMETERS)?;
        let query = view.query.as_ref().ok_or_else(|| node_refused("CREATE VIEW"))?;
        self.deferred(|walker| walker.query(query, false))
    }

    pub(super) fn alter_table(&mut self, alter: &'t pb::AlterTableStmt) -> Walked {
        let (object, kind) = match Obj::try_from(alter.objtype) {
            Ok(Obj::ObjectTable) => (DefineObject::Table, Kind::AlterTable),
            Ok(Obj::ObjectIndex) => (DefineObject::Index, Kind::AlterIndex),
            Ok(Obj::ObjectSequence) => (DefineObject::Sequence, Kind::AlterSequence),
            Ok(Obj::ObjectView) => (DefineObject::View, Kind::AlterView),
            Ok(Obj::ObjectMatview) => (DefineObject::MaterializedView, Kind::AlterMaterializedView),
            Ok(Obj::ObjectType) => (DefineObject::Type, Kind::AlterType),
            Ok(Obj::ObjectForeignTable) => return Err(kind_refused("ALTER FOREIGN TABLE", self.facts.location)),
            _ => return Err(kind_refused("ALTER", self.facts.location)),
        };
        self.facts.kind = kind;
        self.define(alter.relation.as_ref(), object)?;
        self.deferred(|walker| {
            for command in &alter.cmds {
                let Some(N::AlterTableCmd(command)) = &command.node else { return Err(node_refused("ALTER TABLE")) };
                walker.alter_command(command, object)?;
            }
            Ok(())
        })
    }

    fn alter_command(&mut self, command: &'t pb::AlterTableCmd, object: DefineObject) -> Walked {
        let refuse = |what: &str, hint| Err(clause_refused(what, hint, self.facts.location));
        let subtype = At::try_from(command.subtype).unwrap_or(At::Undefined);
        match subtype {
            At::AtAddColumn
            | At::AtColumnDefault
            | At::AtDropNotNull
            | At::AtSetNotNull
            | At::AtSetExpression
            | At::AtDropExpression
            | At::AtSetStatistics
            | At::AtSetStorage
            | At::AtSetCompression
            | At::AtDropColumn
            | At::AtAddConstraint
            | At::AtAlterConstraint
            | At::AtValidateConstraint
            | At::AtDropConstraint
            | At::AtAlterColumnType
            | At::AtClusterOn
            | At::AtDropCluster
            | At::AtSetLogged
            | At::AtSetUnLogged
            | At::AtDropOids
            | At::AtAddIdentity
            | At::AtDropIdentity
            | At::AtAddOf
            | At::AtDropOf => self.alter_definition(command),
            At::AtSetIdentity => match command.def.as_ref().and_then(|def| def.node.as_ref()) {
                Some(N::List(options)) => self.sequence_options(&options.items),
                _ => Err(node_refused("ALTER COLUMN … SET")),
            },
            At::AtSetOptions | At::AtResetOptions => self.parameter_list(command, COLUMN_PARAMETERS),
            At::AtSetRelOptions | At::AtResetRelOptions => {
                let allowed = match object {
                    DefineObject::Index => INDEX_PARAMETERS,
                    DefineObject::View => VIEW_PARAMETERS,
                    _ => TABLE_PARAMETERS,
                };
                self.parameter_list(command, allowed)
            }
            At::AtAddInherit | At::AtDropInherit => match command.def.as_ref().and_then(|def| def.node.as_ref()) {
                Some(N::RangeVar(parent)) => self.target(Some(parent), Access::Reference),
                _ => Err(node_refused("INHERIT")),
            },
            At::AtAttachPartition | At::AtDetachPartition | At::AtDetachPartitionFinalize => {
                match command.def.as_ref().and_then(|def| def.node.as_ref()) {
                    Some(N::PartitionCmd(partition)) => {
                        self.target(partition.name.as_ref(), Access::Define(object))?;
                        self.partition_bound(partition.bound.as_ref())
                    }
                    _ => Err(node_refused("PARTITION")),
                }
            }
            At::AtChangeOwner => refuse("OWNER TO", "Objects belong to the role that makes them; leave OWNER TO out."),
            At::AtSetTableSpace => refuse("SET TABLESPACE", TABLESPACE_HINT),
            At::AtSetAccessMethod => refuse("SET ACCESS METHOD", "Leave it out; tables are heaps."),
            At::AtEnableTrig
            | At::AtEnableAlwaysTrig
            | At::AtEnableReplicaTrig
            | At::AtDisableTrig
            | At::AtEnableTrigAll
            | At::AtDisableTrigAll
            | At::AtEnableTrigUser
            | At::AtDisableTrigUser => refuse("ENABLE/DISABLE TRIGGER", "Leave it out; own tables have no triggers."),
            At::AtEnableRule | At::AtEnableAlwaysRule | At::AtEnableReplicaRule | At::AtDisableRule => {
                refuse("ENABLE/DISABLE RULE", "Leave it out; own tables have no rules.")
            }
            At::AtEnableRowSecurity | At::AtDisableRowSecurity | At::AtForceRowSecurity | At::AtNoForceRowSecurity => {
                refuse("ROW LEVEL SECURITY", "Leave it out; filter rows in the query.")
            }
            At::AtReplicaIdentity => refuse("REPLICA IDENTITY", "Leave it out."),
            At::AtGenericOptions | At::AtAlterColumnGenericOptions => refuse("OPTIONS", "Leave it out."),
            // Made by PostgreSQL itself, never by its grammar.
            At::Undefined
            | At::AtAddColumnToView
            | At::AtCookedColumnDefault
            | At::AtAddIndex
            | At::AtReAddIndex
            | At::AtReAddConstraint
            | At::AtReAddDomainConstraint
            | At::AtAddIndexConstraint
            | At::AtReAddComment
            | At::AtReplaceRelOptions
            | At::AtReAddStatistics => Err(node_refused("ALTER TABLE command")),
        }
    }

    fn alter_definition(&mut self, command: &'t pb::AlterTableCmd) -> Walked {
        match command.def.as_ref().and_then(|def| def.node.as_ref()) {
            None => Ok(()),
            Some(N::ColumnDef(column)) => self.column_definition(column),
            Some(N::Constraint(constraint)) => self.constraint(constraint),
            Some(N::AtalterConstraint(_)) => Ok(()),
            Some(_) => self.boxed(&command.def),
        }
    }

    fn parameter_list(&mut self, command: &'t pb::AlterTableCmd, allowed: &[&str]) -> Walked {
        match command.def.as_ref().and_then(|def| def.node.as_ref()) {
            Some(N::List(options)) => self.parameters(&options.items, allowed),
            _ => Err(node_refused("SET (…)")),
        }
    }

    pub(super) fn rename(&mut self, rename: &'t pb::RenameStmt) -> Walked {
        let by_relation = |object| match object {
            Ok(Obj::ObjectTable) => Some((DefineObject::Table, Kind::AlterTable)),
            Ok(Obj::ObjectIndex) => Some((DefineObject::Index, Kind::AlterIndex)),
            Ok(Obj::ObjectSequence) => Some((DefineObject::Sequence, Kind::AlterSequence)),
            Ok(Obj::ObjectView) => Some((DefineObject::View, Kind::AlterView)),
            Ok(Obj::ObjectMatview) => Some((DefineObject::MaterializedView, Kind::AlterMaterializedView)),
            _ => None,
        };
        let kind = Obj::try_from(rename.rename_type);
        let relation = match kind {
            Ok(Obj::ObjectColumn) => by_relation(Obj::try_from(rename.relation_type)),
            Ok(Obj::ObjectTabconstraint) => Some((DefineObject::Table, Kind::AlterTable)),
            Ok(Obj::ObjectAttribute) => Some((DefineObject::Type, Kind::AlterType)),
            other => by_relation(other),
        };
        if let Some((object, kind)) = relation {
            self.facts.kind = kind;
            return self.define(rename.relation.as_ref(), object);
        }
        let (object, kind) = match kind {
            Ok(Obj::ObjectType) => (DefineObject::Type, Kind::AlterType),
            Ok(Obj::ObjectDomain | Obj::ObjectDomconstraint) => (DefineObject::Domain, Kind::AlterDomain),
            Ok(Obj::ObjectStatisticExt) => (DefineObject::Statistics, Kind::AlterStatistics),
            _ => return Err(kind_refused("ALTER … RENAME", self.facts.location)),
        };
        self.facts.kind = kind;
        self.define_list(rename.object.as_deref(), 0, object)
    }

    /// SET SCHEMA: both the old and the new name must be the role's to define.
    pub(super) fn set_schema(&mut self, alter: &'t pb::AlterObjectSchemaStmt) -> Walked {
        let object = match Obj::try_from(alter.object_type) {
            Ok(Obj::ObjectTable) => DefineObject::Table,
            Ok(Obj::ObjectSequence) => DefineObject::Sequence,
            Ok(Obj::ObjectView) => DefineObject::View,
            Ok(Obj::ObjectMatview) => DefineObject::MaterializedView,
            _ => return Err(kind_refused("ALTER … SET SCHEMA", self.facts.location)),
        };
        self.facts.kind = Kind::AlterTable;
        self.define(alter.relation.as_ref(), object)?;
        let name = alter.relation.as_ref().map_or("", |relation| &relation.relname);
        let moved = Name { database: "", schema: &alter.newschema, name };
        self.record(moved, Access::Define(object), -1);
        Ok(())
    }

    /// An object as a list of strings or a type's name.
    fn define_list(&mut self, object: Option<&'t pb::Node>, drop_last: usize, kind: DefineObject) -> Walked {
        match object.and_then(|object| object.node.as_ref()) {
            Some(N::List(name)) => self.define_parts(&name.items, drop_last, kind),
            Some(N::TypeName(name)) => self.define_parts(&name.names, drop_last, kind),
            _ => Err(node_refused("object name")),
        }
    }

    pub(super) fn drop_objects(&mut self, drop: &'t pb::DropStmt) -> Walked {
        let (object, kind) = match Obj::try_from(drop.remove_type) {
            Ok(Obj::ObjectTable) => (DefineObject::Table, Kind::DropTable),
            Ok(Obj::ObjectIndex) => (DefineObject::Index, Kind::DropIndex),
            Ok(Obj::ObjectSequence) => (DefineObject::Sequence, Kind::DropSequence),
            Ok(Obj::ObjectView) => (DefineObject::View, Kind::DropView),
            Ok(Obj::ObjectMatview) => (DefineObject::MaterializedView, Kind::DropMaterializedView),
            Ok(Obj::ObjectType) => (DefineObject::Type, Kind::DropType),
            Ok(Obj::ObjectDomain) => (DefineObject::Domain, Kind::DropDomain),
            Ok(Obj::ObjectStatisticExt) => (DefineObject::Statistics, Kind::DropStatistics),
            Ok(Obj::ObjectSchema) => return Err(kind_refused("DROP SCHEMA", self.facts.location)),
            Ok(Obj::ObjectFunction | Obj::ObjectProcedure | Obj::ObjectRoutine) => {
                return Err(kind_refused("DROP FUNCTION", self.facts.location));
            }
            Ok(Obj::ObjectExtension) => return Err(kind_refused("DROP EXTENSION", self.facts.location)),
            _ => return Err(kind_refused("DROP", self.facts.location)),
        };
        self.facts.kind = kind;
        drop.objects.iter().try_for_each(|name| self.define_list(Some(name), 0, object))
    }

    pub(super) fn comment(&mut self, comment: &'t pb::CommentStmt) -> Walked {
        self.facts.kind = Kind::Comment;
        let (object, drop_last) = match Obj::try_from(comment.objtype) {
            Ok(Obj::ObjectTable) => (DefineObject::Table, 0),
            Ok(Obj::ObjectColumn | Obj::ObjectTabconstraint) => (DefineObject::Table, 1),
            Ok(Obj::ObjectIndex) => (DefineObject::Index, 0),
            Ok(Obj::ObjectSequence) => (DefineObject::Sequence, 0),
            Ok(Obj::ObjectView) => (DefineObject::View, 0),
            Ok(Obj::ObjectMatview) => (DefineObject::MaterializedView, 0),
            Ok(Obj::ObjectType) => (DefineObject::Type, 0),
            Ok(Obj::ObjectDomain) => (DefineObject::Domain, 0),
            Ok(Obj::ObjectStatisticExt) => (DefineObject::Statistics, 0),
            Ok(Obj::ObjectDomconstraint) => return self.comment_on_domain_constraint(comment),
            _ => return Err(kind_refused("COMMENT ON", self.facts.location)),
        };
        self.define_list(comment.object.as_deref(), drop_last, object)
    }

    /// COMMENT ON CONSTRAINT … ON DOMAIN: the domain as a type, then the constraint's name.
    fn comment_on_domain_constraint(&mut self, comment: &'t pb::CommentStmt) -> Walked {
        let Some(N::List(parts)) = comment.object.as_ref().and_then(|object| object.node.as_ref()) else {
            return Err(node_refused("object name"));
        };
        self.define_list(parts.items.first(), 0, DefineObject::Domain)
    }

    pub(super) fn create_enum(&mut self, create: &'t pb::CreateEnumStmt) -> Walked {
        self.facts.kind = Kind::CreateType;
        self.define_parts(&create.type_name, 0, DefineObject::Type)
    }

    pub(super) fn alter_enum(&mut self, alter: &'t pb::AlterEnumStmt) -> Walked {
        self.facts.kind = Kind::AlterType;
        self.define_parts(&alter.type_name, 0, DefineObject::Type)
    }

    pub(super) fn create_composite(&mut self, create: &'t pb::CompositeTypeStmt) -> Walked {
        self.facts.kind = Kind::CreateType;
        self.define(create.typevar.as_ref(), DefineObject::Type)?;
        self.deferred(|walker| walker.table_elements(&create.coldeflist))
    }

    /// Range types without functions of their own: the difference must be one that may be called anyway. CANONICAL takes a
    /// function that is written for the type.
    pub(super) fn create_range(&mut self, create: &'t pb::CreateRangeStmt) -> Walked {
        self.facts.kind = Kind::CreateType;
        self.define_parts(&create.type_name, 0, DefineObject::Type)?;
        for option in &create.params {
            let Some(N::DefElem(option)) = &option.node else { return Err(node_refused("range option")) };
            match option.defname.as_str() {
                "subtype" => self.boxed(&option.arg)?,
                "subtype_diff" => self.call_by_name(range_option_name(option)?, option.location)?,
                "subtype_opclass" => built_in_operator_class(range_option_name(option)?, option.location)?,
                "collation" => self.other("collation", range_option_name(option)?, option.location)?,
                "multirange_type_name" => match option.arg.as_ref().and_then(|arg| arg.node.as_ref()) {
                    Some(N::TypeName(name)) => self.define_parts(&name.names, 0, DefineObject::Type)?,
                    _ => return Err(node_refused("range option")),
                },
                _ => {
                    return Err(clause_refused(
                        "range option",
                        "Give SUBTYPE, SUBTYPE_DIFF, SUBTYPE_OPCLASS or COLLATION only.",
                        option.location,
                    ));
                }
            }
        }
        Ok(())
    }

    pub(super) fn create_domain(&mut self, create: &'t pb::CreateDomainStmt) -> Walked {
        self.facts.kind = Kind::CreateDomain;
        self.define_parts(&create.domainname, 0, DefineObject::Domain)?;
        self.type_name(create.type_name.as_ref())?;
        if let Some(clause) = &create.coll_clause {
            self.collate(clause)?;
        }
        self.deferred(|walker| walker.table_elements(&create.constraints))
    }

    pub(super) fn alter_domain(&mut self, alter: &'t pb::AlterDomainStmt) -> Walked {
        self.facts.kind = Kind::AlterDomain;
        self.define_parts(&alter.type_name, 0, DefineObject::Domain)?;
        self.deferred(|walker| match alter.def.as_ref().and_then(|def| def.node.as_ref()) {
            Some(N::Constraint(constraint)) => walker.constraint(constraint),
            _ => walker.boxed(&alter.def),
        })
    }

    pub(super) fn create_statistics(&mut self, create: &'t pb::CreateStatsStmt) -> Walked {
        self.facts.kind = Kind::CreateStatistics;
        if !create.defnames.is_empty() {
            self.define_parts(&create.defnames, 0, DefineObject::Statistics)?;
        }
        for relation in &create.relations {
            match &relation.node {
                Some(N::RangeVar(relation)) => self.target(Some(relation), Access::Define(DefineObject::Statistics))?,
                _ => return Err(node_refused("CREATE STATISTICS")),
            }
        }
        self.deferred(|walker| {
            for element in &create.exprs {
                let Some(N::StatsElem(element)) = &element.node else { return Err(node_refused("CREATE STATISTICS")) };
                walker.boxed(&element.expr)?;
            }
            Ok(())
        })
    }

    /// ANALYZE of tables by name. Without names it takes every table that the role may, and says so for all the others.
    pub(super) fn analyze(&mut self, analyze: &'t pb::VacuumStmt) -> Walked {
        if analyze.rels.is_empty() {
            return Err(kind_refused("ANALYZE", self.facts.location));
        }
        self.facts.kind = Kind::Analyze;
        for option in &analyze.options {
            let Some(N::DefElem(option)) = &option.node else { return Err(node_refused("ANALYZE option")) };
            if !matches!(option.defname.as_str(), "verbose" | "skip_locked") {
                let object = format!("ANALYZE option {}", option.defname);
                return Err(clause_refused(&object, "Leave the option out.", option.location));
            }
            self.boxed(&option.arg)?;
        }
        for relation in &analyze.rels {
            match &relation.node {
                Some(N::VacuumRelation(pb::VacuumRelation { relation, oid: 0, va_cols: _ })) => {
                    self.target(relation.as_ref(), Access::Define(DefineObject::Statistics))?;
                }
                _ => return Err(node_refused("ANALYZE")),
            }
        }
        Ok(())
    }

    pub(super) fn alter_statistics(&mut self, alter: &'t pb::AlterStatsStmt) -> Walked {
        self.facts.kind = Kind::AlterStatistics;
        self.define_parts(&alter.defnames, 0, DefineObject::Statistics)
    }
}

/// The name that an option of CREATE TYPE … AS RANGE gives; the grammar reads it as a type's.
fn range_option_name(option: &pb::DefElem) -> Result<&[pb::Node], Box<Refusal>> {
    match option.arg.as_ref().and_then(|arg| arg.node.as_ref()) {
        Some(N::TypeName(name)) => Ok(&name.names),
        _ => Err(node_refused("range option")),
    }
}

/// An operator class by its name alone, or with `pg_catalog`: one of another schema brings functions along.
fn built_in_operator_class(name: &[pb::Node], location: Location) -> Walked {
    match strings(name).as_deref() {
        Some([_] | ["pg_catalog", _]) => Ok(()),
        _ => Err(clause_refused("operator class", "Use one of PostgreSQL's own.", location)),
    }
}
