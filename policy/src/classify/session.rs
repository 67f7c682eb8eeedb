//! What changes a session rather than data: transactions, settings, cursors, prepared statements, COPY's direction, resets.

use pb::{DiscardMode, TransactionStmtKind, VariableSetKind, a_const::Val};
use pg_query::NodeEnum as N;
use pg_query::protobuf as pb;

use super::{
    Access, Location, Setting, SettingValue, Touched, Walked, Walker, clause_refused, kind_refused, node_refused,
    strings,
};
use crate::settings::{canonical, quote_identifier};
use crate::verdict::{Effect, Kind, PinReason, TaintReason};

/// `CURSOR_OPT_HOLD` of parsenodes.h.
const CURSOR_HOLD: i32 = 0x20;

/// A constant: text and numbers as text, NULL as `Default`; `None` for anything that is no constant.
pub(crate) fn constant(node: &pb::Node) -> Option<SettingValue> {
    match &node.node {
        Some(N::AConst(constant)) => match &constant.val {
            _ if constant.isnull => Some(SettingValue::Default),
            Some(Val::Sval(text)) => Some(SettingValue::Text(text.sval.clone())),
            Some(Val::Ival(number)) => Some(SettingValue::Text(number.ival.to_string())),
            Some(Val::Fval(number)) => Some(SettingValue::Text(number.fval.clone())),
            Some(Val::Boolval(value)) => Some(SettingValue::Text(if value.boolval { "on" } else { "off" }.to_owned())),
            Some(Val::Bsval(_)) => None,
            None => None,
        },
        Some(N::ParamRef(parameter)) => u16::try_from(parameter.number).ok().map(SettingValue::Bound),
        // 'x'::text
        Some(N::TypeCast(cast)) if cast_to(cast, &["text", "varchar", "bool"]) => constant(cast.arg.as_ref()?),
        _ => None,
    }
}

/// Whether a cast is to one of these built-in types, and leaves the value what it is: `'64MB'::varchar(2)` does not.
pub(crate) fn cast_to(cast: &pb::TypeCast, types: &[&str]) -> bool {
    let Some(pb::TypeName { names, setof, typmods, array_bounds, .. }) = &cast.type_name else { return false };
    let whole = !setof && typmods.is_empty() && array_bounds.is_empty();
    match strings(names).as_deref() {
        Some([name] | ["pg_catalog", name]) => whole && types.contains(name),
        _ => false,
    }
}

impl<'t> Walker<'t> {
    fn effect(&mut self, effect: Effect) {
        self.facts.effects.push(effect);
    }

    fn session_name(&mut self, name: &'t str) -> String {
        self.facts.session_names.push(name);
        name.to_owned()
    }

    pub(super) fn transaction(&mut self, statement: &'t pb::TransactionStmt) -> Walked {
        use TransactionStmtKind as T;
        self.facts.kind = Kind::Transaction;
        let chain = statement.chain;
        let effect = match T::try_from(statement.kind).unwrap_or(T::Undefined) {
            T::TransStmtBegin | T::TransStmtStart => {
                self.transaction_modes(&statement.options, "transaction_", true)?;
                Effect::Begin
            }
            T::TransStmtCommit => Effect::Commit { chain },
            T::TransStmtRollback => Effect::Rollback { chain },
            T::TransStmtSavepoint => Effect::Savepoint(self.session_name(&statement.savepoint_name)),
            T::TransStmtRelease => Effect::Release(self.session_name(&statement.savepoint_name)),
            T::TransStmtRollbackTo => Effect::RollbackTo(self.session_name(&statement.savepoint_name)),
            T::TransStmtPrepare => return Err(kind_refused("PREPARE TRANSACTION", self.facts.location)),
            T::TransStmtCommitPrepared => return Err(kind_refused("COMMIT PREPARED", self.facts.location)),
            T::TransStmtRollbackPrepared => return Err(kind_refused("ROLLBACK PREPARED", self.facts.location)),
            T::Undefined => return Err(node_refused("transaction command")),
        };
        self.effect(effect);
        Ok(())
    }

    /// ISOLATION LEVEL, READ ONLY and DEFERRABLE as settings; they end with the transaction when `local`.
    fn transaction_modes(&mut self, options: &'t [pb::Node], prefix: &str, local: bool) -> Walked {
        for option in options {
            let Some(N::DefElem(option)) = &option.node else { return Err(node_refused("transaction mode")) };
            let suffix = option.defname.strip_prefix("transaction_").unwrap_or(&option.defname);
            if !matches!(suffix, "isolation" | "read_only" | "deferrable") {
                return Err(node_refused("transaction mode"));
            }
            let value = option.arg.as_ref().and_then(|arg| constant(arg));
            let Some(SettingValue::Text(value)) = value else { return Err(node_refused("transaction mode")) };
            let value = match (suffix, value.as_str()) {
                ("isolation", _) => value,
                (_, "0") => "off".to_owned(),
                _ => "on".to_owned(),
            };
            let name = format!("{prefix}{suffix}");
            if !local {
                self.effect(Effect::Set { name: name.clone(), value: Some(value.clone()), local });
            }
            self.setting(name, SettingValue::Text(value), option.location);
        }
        Ok(())
    }

    fn setting(&mut self, name: String, value: SettingValue, location: Location) {
        self.facts.settings.push(Setting { name, value, location });
    }

    pub(super) fn set(&mut self, set: &'t pb::VariableSetStmt) -> Walked {
        let pb::VariableSetStmt { kind, name, args, jumble_args: _, is_local, location } = set;
        self.facts.kind = Kind::Set;
        // SET ROLE and its like give no position of their own.
        let location = if *location > 0 { *location } else { self.facts.location };
        let name = canonical(name);
        match VariableSetKind::try_from(*kind).unwrap_or(VariableSetKind::Undefined) {
            VariableSetKind::VarSetValue => {
                let value = flatten(&name, args).ok_or_else(|| value_refused(&name, location))?;
                self.effect(Effect::Set { name: name.clone(), value: Some(value.clone()), local: *is_local });
                self.setting(name, SettingValue::Text(value), location);
            }
            VariableSetKind::VarSetDefault if name == "session_authorization" => {
                self.facts.resets_authorization = true;
                self.effect(Effect::ResetSessionAuthorization);
            }
            VariableSetKind::VarSetDefault => {
                self.effect(Effect::Set { name: name.clone(), value: None, local: *is_local });
                self.setting(name, SettingValue::Default, location);
            }
            VariableSetKind::VarReset => {
                self.effect(Effect::Reset { name: name.clone() });
                self.setting(name, SettingValue::Default, location);
            }
            VariableSetKind::VarResetAll => self.effect(Effect::ResetAll),
            VariableSetKind::VarSetMulti => match name.as_str() {
                "transaction" => self.transaction_modes(args, "transaction_", true)?,
                "session characteristics" => self.transaction_modes(args, "default_transaction_", false)?,
                _ => return Err(clause_refused("SET TRANSACTION SNAPSHOT", "Use one transaction instead.", location)),
            },
            VariableSetKind::VarSetCurrent | VariableSetKind::Undefined => return Err(node_refused("SET")),
        }
        Ok(())
    }

    /// `set_config` as a target of a SELECT without FROM and the like (or pgAdmin's): a setting by another door. The other targets are
    /// walked as usual; where there are none, the statement counts as a setting.
    /// Returns whether it was such a SELECT, so that the ordinary walk need not follow.
    pub(super) fn select_of_settings(&mut self, select: &'t pb::SelectStmt) -> Result<bool, Box<super::Refusal>> {
        let call_of = |node| target_call(node).and_then(|call| function_name(call).map(|name| (name, call)));
        let sets = |node| call_of(node).is_some_and(|(name, _)| name == "set_config");
        let gives_back = |node| call_of(node).is_some_and(|(name, _)| name == "pg_advisory_unlock_all");
        let targets = &select.target_list;
        let Some(rows) = rows_of(select) else { return Ok(false) };
        if !targets.iter().any(|target| sets(target) || gives_back(target)) {
            return Ok(false);
        }
        if let Rows::OfSetting(row) = rows {
            let named = |target| call_of(target).and_then(|(_, call)| text_of(call.args.first()?));
            if !targets.iter().all(|target| sets(target) && named(target) == Some(row)) {
                return Ok(false);
            }
        }
        self.facts.only_settings = targets.iter().all(|target| sets(target) || gives_back(target));
        for target in targets {
            match call_of(target) {
                Some(("set_config", call)) => match call.args.as_slice() {
                    [name, value, local] => self.set_config(name, value, local, call.location)?,
                    _ => return Err(clause_refused("set_config", "Call it with three arguments.", call.location)),
                },
                _ => self.node(target)?,
            }
        }
        self.read_items(&select.from_clause)?;
        Ok(true)
    }

    fn set_config(
        &mut self,
        name: &'t pb::Node,
        value: &'t pb::Node,
        local: &'t pb::Node,
        location: Location,
    ) -> Walked {
        let (Some(SettingValue::Text(name)), Some(value), Some(SettingValue::Text(local))) =
            (constant(name), constant(value), constant(local))
        else {
            let hint = "Give name and is_local as constants, and the value as a constant or $n.";
            return Err(clause_refused("set_config with computed arguments", hint, location));
        };
        let name = canonical(&name);
        let local = match local.to_ascii_lowercase().as_str() {
            "on" | "true" | "t" | "1" | "yes" => true,
            "off" | "false" | "f" | "0" | "no" => false,
            _ => return Err(clause_refused("set_config", "Give is_local as true or false.", location)),
        };
        match &value {
            SettingValue::Text(text) => {
                self.effect(Effect::Set { name: name.clone(), value: Some(text.clone()), local })
            }
            SettingValue::Default => self.effect(Effect::Set { name: name.clone(), value: None, local }),
            SettingValue::Bound(parameter) => {
                self.effect(Effect::SetBound { name: name.clone(), parameter: *parameter, local });
                if !local {
                    self.effect(Effect::Taint(TaintReason::Setting));
                }
            }
        }
        self.setting(name, value, location);
        Ok(())
    }

    pub(super) fn declare(&mut self, declare: &'t pb::DeclareCursorStmt) -> Walked {
        self.facts.kind = Kind::DeclareCursor;
        let query = declare.query.as_ref().ok_or_else(|| node_refused("DECLARE"))?;
        self.query(query, false)?;
        self.facts.kind = Kind::DeclareCursor;
        let hold = declare.options & CURSOR_HOLD != 0;
        let name = self.session_name(&declare.portalname);
        self.effect(Effect::Declare { name, hold });
        if hold {
            self.effect(Effect::Pin(PinReason::HoldCursor));
            self.effect(Effect::Taint(TaintReason::SessionObject));
        }
        Ok(())
    }

    pub(super) fn fetch(&mut self, fetch: &'t pb::FetchStmt) {
        self.facts.kind = Kind::Fetch;
        let name = self.session_name(&fetch.portalname);
        self.effect(Effect::Fetch { name });
    }

    pub(super) fn close(&mut self, close: &'t pb::ClosePortalStmt) {
        self.facts.kind = Kind::CloseCursor;
        if close.portalname.is_empty() {
            self.effect(Effect::CloseAll);
        } else {
            let name = self.session_name(&close.portalname);
            self.effect(Effect::CloseCursor { name });
        }
    }

    pub(super) fn prepare(&mut self, prepare: &'t pb::PrepareStmt) -> Walked {
        self.nodes(&prepare.argtypes)?;
        let query = prepare.query.as_ref().ok_or_else(|| node_refused("PREPARE"))?;
        self.query(query, false)?;
        self.facts.kind = Kind::Prepare;
        let name = self.session_name(&prepare.name);
        self.effect(Effect::SqlPrepare { name });
        self.effect(Effect::Pin(PinReason::PreparedStatement));
        self.effect(Effect::Taint(TaintReason::SessionObject));
        Ok(())
    }

    pub(super) fn execute(&mut self, execute: &'t pb::ExecuteStmt) -> Walked {
        self.inner(Kind::Execute);
        let name = self.session_name(&execute.name);
        self.effect(Effect::SqlExecute { name });
        self.nodes(&execute.params)
    }

    pub(super) fn deallocate(&mut self, deallocate: &'t pb::DeallocateStmt) {
        self.facts.kind = Kind::Deallocate;
        if deallocate.isall {
            self.effect(Effect::DeallocateAll);
        } else {
            let name = self.session_name(&deallocate.name);
            self.effect(Effect::SqlDeallocate { name });
        }
    }

    pub(super) fn discard(&mut self, discard: &'t pb::DiscardStmt) -> Walked {
        self.facts.kind = Kind::Discard;
        match DiscardMode::try_from(discard.target).unwrap_or(DiscardMode::Undefined) {
            DiscardMode::DiscardAll => self.effect(Effect::DiscardAll),
            DiscardMode::DiscardPlans | DiscardMode::DiscardSequences | DiscardMode::DiscardTemp => {
                self.effect(Effect::DiscardOther);
            }
            DiscardMode::Undefined => return Err(node_refused("DISCARD")),
        }
        Ok(())
    }

    pub(super) fn listen(&mut self, channel: &'t str) {
        self.facts.kind = Kind::Listen;
        self.facts.notifies = true;
        self.effect(Effect::Listen(channel.to_owned()));
        self.effect(Effect::Pin(PinReason::Listen));
        self.effect(Effect::Taint(TaintReason::SessionObject));
    }

    pub(super) fn unlisten(&mut self, channel: &'t str) {
        self.facts.kind = Kind::Unlisten;
        let channel = (!channel.is_empty()).then(|| channel.to_owned());
        self.effect(Effect::Unlisten(channel));
    }

    pub(super) fn copy(&mut self, copy: &'t pb::CopyStmt) -> Walked {
        let pb::CopyStmt { relation, query, attlist, is_from, is_program, filename, options, where_clause } = copy;
        self.facts.copies = true;
        self.facts.kind = if *is_from { Kind::CopyIn } else { Kind::CopyOut };
        let location = self.facts.location;
        if *is_program {
            return Err(clause_refused("COPY … PROGRAM", "Use FROM STDIN or TO STDOUT.", location));
        }
        if !filename.is_empty() {
            return Err(clause_refused("COPY with a file on the server", "Use FROM STDIN or TO STDOUT.", location));
        }
        if let Some(relation) = relation {
            let access = if *is_from { Access::Write } else { Access::Read };
            self.target_columns(Some(relation), access, Touched::list(attlist))?;
        }
        if let Some(query) = query {
            let kind = self.facts.kind;
            self.query(query, false)?;
            self.facts.kind = kind;
        }
        for option in options {
            match &option.node {
                Some(N::DefElem(option)) => self.boxed(&option.arg)?,
                _ => return Err(node_refused("COPY option")),
            }
        }
        self.boxed(where_clause)?;
        self.effect(if *is_from { Effect::CopyIn } else { Effect::CopyOut });
        Ok(())
    }
}

fn value_refused(name: &str, location: Location) -> Box<super::Refusal> {
    clause_refused(&format!("this way of writing {name}"), "Write the value as a string.", location)
}

/// What pgAdmin sets over the one row of `pg_settings`. Only of a parameter that every version has may the effect be known
/// without looking whether there was a row.
const PGADMIN_SETTING: &str = "bytea_output";

/// How often the targets of a SELECT of settings are evaluated.
#[derive(Clone, Copy)]
enum Rows<'t> {
    /// Once: there is no FROM.
    One,
    /// Once, for the setting of this name: `FROM pg_settings WHERE name = '…'`, as pgAdmin writes it.
    OfSetting(&'t str),
}

/// The rows of a SELECT of expressions and nothing else; `None` for any other.
fn rows_of(select: &pb::SelectStmt) -> Option<Rows<'_>> {
    let plain = select.into_clause.is_none()
        && select.with_clause.is_none()
        && select.group_clause.is_empty()
        && select.having_clause.is_none()
        && select.window_clause.is_empty()
        && select.values_lists.is_empty()
        && select.sort_clause.is_empty()
        && select.limit_offset.is_none()
        && select.limit_count.is_none()
        && select.locking_clause.is_empty()
        && select.distinct_clause.is_empty()
        && select.larg.is_none()
        && select.rarg.is_none();
    match (select.from_clause.as_slice(), &select.where_clause) {
        _ if !plain => None,
        ([], None) => Some(Rows::One),
        ([from], Some(condition)) if is_settings(from) => {
            named_setting(condition).filter(|name| *name == PGADMIN_SETTING).map(Rows::OfSetting)
        }
        _ => None,
    }
}

/// `pg_settings` or `pg_show_all_settings()`.
fn is_settings(from: &pb::Node) -> bool {
    let in_catalog = |schema: &str| matches!(schema, "" | "pg_catalog");
    match &from.node {
        Some(N::RangeVar(view)) => {
            view.relname == "pg_settings" && in_catalog(&view.schemaname) && view.catalogname.is_empty()
        }
        Some(N::RangeFunction(function)) if function.coldeflist.is_empty() => {
            let [pb::Node { node: Some(N::List(pair)) }] = function.functions.as_slice() else { return false };
            match pair.items.first().and_then(|item| item.node.as_ref()) {
                Some(N::FuncCall(call)) => function_name(call) == Some("pg_show_all_settings") && call.args.is_empty(),
                _ => false,
            }
        }
        _ => false,
    }
}

/// The constant of `name = '…'`.
fn named_setting(condition: &pb::Node) -> Option<&str> {
    let Some(N::AExpr(comparison)) = &condition.node else { return None };
    let equals =
        comparison.kind == pb::AExprKind::AexprOp as i32 && matches!(strings(&comparison.name).as_deref(), Some(["="]));
    let Some(N::ColumnRef(column)) = &comparison.lexpr.as_ref()?.node else { return None };
    let by_name = matches!(strings(&column.fields).as_deref(), Some(["name"]));
    if equals && by_name { text_of(comparison.rexpr.as_ref()?) } else { None }
}

/// The text of a string constant.
fn text_of(node: &pb::Node) -> Option<&str> {
    match &node.node {
        Some(N::AConst(pb::AConst { val: Some(Val::Sval(text)), .. })) => Some(&text.sval),
        _ => None,
    }
}

fn target_call(node: &pb::Node) -> Option<&pb::FuncCall> {
    let Some(N::ResTarget(target)) = &node.node else { return None };
    match target.val.as_ref().and_then(|value| value.node.as_ref()) {
        Some(N::FuncCall(call)) => Some(call),
        _ => None,
    }
}

/// The name of a call without a schema or with `pg_catalog`, without anything but plain arguments.
fn function_name(call: &pb::FuncCall) -> Option<&str> {
    let bare = call.agg_order.is_empty() && call.agg_filter.is_none() && call.over.is_none();
    match strings(&call.funcname)?.as_slice() {
        [name] | ["pg_catalog", name] if bare => Some(name),
        _ => None,
    }
}

/// The value of SET as one string, as PostgreSQL's `flatten_set_variable_args` makes it.
fn flatten(name: &str, args: &[pb::Node]) -> Option<String> {
    let quotes = name == "search_path";
    let mut parts = Vec::with_capacity(args.len());
    for arg in args {
        match &arg.node {
            Some(N::AConst(_)) => match constant(arg)? {
                SettingValue::Text(text) if quotes => parts.push(quote_identifier(&text)),
                SettingValue::Text(text) => parts.push(text),
                SettingValue::Default | SettingValue::Bound(_) => return None,
            },
            Some(N::TypeCast(cast)) if name == "timezone" => parts.push(zone_interval(cast)?),
            _ => return None,
        }
    }
    Some(parts.join(", "))
}

/// SET TIME ZONE INTERVAL '…' HOUR TO MINUTE: hours and minutes, in a form that needs no such qualifier.
fn zone_interval(cast: &pb::TypeCast) -> Option<String> {
    let names = strings(&cast.type_name.as_ref()?.names)?;
    let SettingValue::Text(text) = constant(cast.arg.as_ref()?)? else { return None };
    let digits = text.strip_prefix(['+', '-']).unwrap_or(&text);
    let (hours, minutes) = digits.split_once(':')?;
    let two_digits = |part: &str| (1..=2).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit());
    let interval = names.last() == Some(&"interval") && two_digits(hours) && two_digits(minutes);
    interval.then(|| format!("INTERVAL '{text}'"))
}
