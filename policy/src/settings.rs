//! Which parameters a client may set, and to what: one list for SET, SET LOCAL, RESET, `set_config`, startup parameters and
//! `options=-c` alike. It must not be consulted for what the proxy itself sends.
//!
//! Values are checked only where one of them would change a verdict (`client_encoding`, `standard_conforming_strings`,
//! `search_path`), lift a wall (`default_transaction_read_only` for roles that only read) or cost others (`work_mem`); the
//! server checks the rest. Parameters: <https://www.postgresql.org/docs/current/runtime-config-client.html>.

use crate::document::RolePolicy;
use crate::verdict::Denial;

/// What a value must be.
#[derive(Clone, Copy)]
enum Rule {
    /// Whatever the server accepts.
    Any,
    /// UTF8 under one of its names.
    Utf8,
    /// True, in one of the boolean spellings.
    On,
    /// The empty string.
    Empty,
    /// `heap`, in any case.
    Heap,
    /// Nothing, or schemas that the role may read.
    SearchPath,
    /// Anything for roles that may write; true for the others.
    ReadOnly,
    /// Only tightening: names of relation kinds.
    RelationKinds,
}

/// The allow-list, sorted by name for binary search.
const SETTINGS: &[(&str, Rule)] = &[
    ("application_name", Rule::Any),
    ("array_nulls", Rule::Any),
    ("bytea_output", Rule::Any),
    ("check_function_bodies", Rule::Any),
    ("client_connection_check_interval", Rule::Any),
    ("client_encoding", Rule::Utf8),
    ("client_min_messages", Rule::Any),
    ("constraint_exclusion", Rule::Any),
    ("cpu_index_tuple_cost", Rule::Any),
    ("cpu_operator_cost", Rule::Any),
    ("cpu_tuple_cost", Rule::Any),
    ("cursor_tuple_fraction", Rule::Any),
    ("datestyle", Rule::Any),
    ("default_statistics_target", Rule::Any),
    ("default_table_access_method", Rule::Heap),
    ("default_tablespace", Rule::Empty),
    ("default_text_search_config", Rule::Any),
    ("default_toast_compression", Rule::Any),
    ("default_transaction_deferrable", Rule::Any),
    ("default_transaction_isolation", Rule::Any),
    ("default_transaction_read_only", Rule::ReadOnly),
    ("effective_cache_size", Rule::Any),
    ("enable_async_append", Rule::Any),
    ("enable_bitmapscan", Rule::Any),
    ("enable_distinct_reordering", Rule::Any),
    ("enable_gathermerge", Rule::Any),
    ("enable_group_by_reordering", Rule::Any),
    ("enable_hashagg", Rule::Any),
    ("enable_hashjoin", Rule::Any),
    ("enable_incremental_sort", Rule::Any),
    ("enable_indexonlyscan", Rule::Any),
    ("enable_indexscan", Rule::Any),
    ("enable_material", Rule::Any),
    ("enable_memoize", Rule::Any),
    ("enable_mergejoin", Rule::Any),
    ("enable_nestloop", Rule::Any),
    ("enable_parallel_append", Rule::Any),
    ("enable_parallel_hash", Rule::Any),
    ("enable_partition_pruning", Rule::Any),
    ("enable_partitionwise_aggregate", Rule::Any),
    ("enable_partitionwise_join", Rule::Any),
    ("enable_presorted_aggregate", Rule::Any),
    ("enable_self_join_elimination", Rule::Any),
    ("enable_seqscan", Rule::Any),
    ("enable_sort", Rule::Any),
    ("enable_tidscan", Rule::Any),
    ("escape_string_warning", Rule::Any),
    ("extra_float_digits", Rule::Any),
    ("from_collapse_limit", Rule::Any),
    ("geqo", Rule::Any),
    ("geqo_effort", Rule::Any),
    ("geqo_threshold", Rule::Any),
    ("idle_in_transaction_session_timeout", Rule::Any),
    ("idle_session_timeout", Rule::Any),
    ("intervalstyle", Rule::Any),
    ("jit", Rule::Any),
    ("jit_above_cost", Rule::Any),
    ("jit_inline_above_cost", Rule::Any),
    ("jit_optimize_above_cost", Rule::Any),
    ("join_collapse_limit", Rule::Any),
    ("lc_monetary", Rule::Any),
    ("lc_numeric", Rule::Any),
    ("lc_time", Rule::Any),
    ("lock_timeout", Rule::Any),
    ("max_parallel_workers", Rule::Any),
    ("max_parallel_workers_per_gather", Rule::Any),
    ("min_parallel_index_scan_size", Rule::Any),
    ("min_parallel_table_scan_size", Rule::Any),
    ("parallel_leader_participation", Rule::Any),
    ("parallel_setup_cost", Rule::Any),
    ("parallel_tuple_cost", Rule::Any),
    ("plan_cache_mode", Rule::Any),
    ("quote_all_identifiers", Rule::Any),
    ("random_page_cost", Rule::Any),
    ("recursive_worktable_factor", Rule::Any),
    ("restrict_nonsystem_relation_kind", Rule::RelationKinds),
    ("row_security", Rule::Any),
    ("search_path", Rule::SearchPath),
    ("seq_page_cost", Rule::Any),
    ("standard_conforming_strings", Rule::On),
    ("statement_timeout", Rule::Any),
    ("synchronize_seqscans", Rule::Any),
    ("timezone", Rule::Any),
    ("transaction_deferrable", Rule::Any),
    ("transaction_isolation", Rule::Any),
    ("transaction_read_only", Rule::ReadOnly),
    ("transaction_timeout", Rule::Any),
    ("work_mem", Rule::Any),
    ("xmlbinary", Rule::Any),
    ("xmloption", Rule::Any),
];

/// Parameters that a policy may add, beside those of extensions and applications, which have a dot in their name: they cost
/// something, and nothing else depends on them.
const ADDABLE: &[&str] = &[
    "commit_delay",
    "commit_siblings",
    "gin_fuzzy_search_limit",
    "gin_pending_list_limit",
    "hash_mem_multiplier",
    "maintenance_work_mem",
    "max_parallel_maintenance_workers",
    "synchronous_commit",
];

/// What the values of a parameter with a cap count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    /// kB, where no unit is written.
    Memory,
    /// Milliseconds, where no unit is written; 0 stands for no limit at all.
    Time,
    /// Nothing.
    Number,
}

/// Parameters that can have a cap, sorted.
const CAPPABLE: &[(&str, Unit)] = &[
    ("commit_delay", Unit::Number),
    ("default_statistics_target", Unit::Number),
    ("geqo_effort", Unit::Number),
    ("geqo_threshold", Unit::Number),
    ("hash_mem_multiplier", Unit::Number),
    ("idle_in_transaction_session_timeout", Unit::Time),
    ("idle_session_timeout", Unit::Time),
    ("join_collapse_limit", Unit::Number),
    ("lock_timeout", Unit::Time),
    ("maintenance_work_mem", Unit::Memory),
    ("max_parallel_maintenance_workers", Unit::Number),
    ("max_parallel_workers_per_gather", Unit::Number),
    ("statement_timeout", Unit::Time),
    ("transaction_timeout", Unit::Time),
    ("work_mem", Unit::Memory),
];

/// The most that a parameter may be set to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cap {
    unit: Unit,
    /// In kB, ms or pieces.
    most: u64,
}

/// The cap that holds where a policy says nothing: 64 MB of `work_mem`.
pub(crate) fn default_cap() -> (String, Cap) {
    ("work_mem".to_owned(), Cap { unit: Unit::Memory, most: 65_536 })
}

impl Cap {
    /// The cap of parameter `name` as a document writes it.
    pub(crate) fn parse(name: &str, text: &str) -> Result<Self, String> {
        let Ok(at) = CAPPABLE.binary_search_by_key(&name, |(known, _)| known) else {
            let known = CAPPABLE.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
            return Err(format!("has no cap; these can have one: {known}"));
        };
        let unit = CAPPABLE[at].1;
        match amount(text, unit) {
            Some(most) if most > 0 => Ok(Self { unit, most }),
            _ => Err(match unit {
                Unit::Memory => "must be more than 0, in kB or with a unit: B, kB, MB, GB, TB".to_owned(),
                Unit::Time => "must be more than 0, in ms or with a unit: us, ms, s, min, h, d".to_owned(),
                Unit::Number => "must be a number more than 0".to_owned(),
            }),
        }
    }

    fn takes(&self, value: &str) -> bool {
        match amount(value, self.unit) {
            Some(0) => self.unit != Unit::Time,
            Some(amount) => amount <= self.most,
            None => false,
        }
    }

    fn hint(&self) -> String {
        match self.unit {
            Unit::Memory => format!("Use at most {}kB.", self.most),
            Unit::Time => format!("Use at most {}ms, and not 0.", self.most),
            Unit::Number => format!("Use at most {}.", self.most),
        }
    }
}

/// Whether the list has the parameter for every login, and a policy may take it away.
pub(crate) fn is_built_in(name: &str) -> bool {
    rule(name).is_some()
}

/// Whether a policy may add the parameter to the list.
pub(crate) fn may_be_added(name: &str) -> Result<(), String> {
    let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '.' | '$');
    let own = name.contains('.') && name.chars().all(word) && name.len() <= 63;
    if is_built_in(name) {
        return Err("may be set anyway".to_owned());
    }
    if own || ADDABLE.contains(&name) {
        return Ok(());
    }
    Err(format!("cannot be added: take one with a dot in its name, in lower case, or of {}", ADDABLE.join(", ")))
}

fn rule(name: &str) -> Option<Rule> {
    let index = SETTINGS.binary_search_by_key(&name, |(known, _)| known).ok()?;
    Some(SETTINGS[index].1)
}

/// Judges one parameter as a client sends it at startup or in `options=-c name=value`.
///
/// # Errors
/// The refusal, in the words of an error of the server.
pub fn judge_setting(role: &RolePolicy, name: &str, value: &str) -> Result<(), Box<Denial>> {
    value_allowed(role, &canonical(name), Some(value))
}

/// The name as effects carry it and the list is keyed.
pub(crate) fn canonical(name: &str) -> String {
    let lower = name.to_ascii_lowercase();
    match lower.as_str() {
        // Its old name, which PostgreSQL still accepts.
        "sort_mem" => "work_mem".to_owned(),
        _ => lower,
    }
}

/// Judges setting `name` (canonical) to `value`; `None` stands for its default, to which anything may return.
pub(crate) fn value_allowed(role: &RolePolicy, name: &str, value: Option<&str>) -> Result<(), Box<Denial>> {
    let rule = rule_for(role, name).ok_or_else(|| not_allowed(name))?;
    let Some(value) = value else { return Ok(()) };
    if value.contains('\0') {
        return Err(value_refused(name, "the value contains a zero byte", "Send the value without it."));
    }
    if let Some(cap) = role.settings_max.get(name)
        && !cap.takes(value)
    {
        return Err(value_refused(name, "the value is beyond the policy's limit", &cap.hint()));
    }
    match rule {
        Rule::Any => Ok(()),
        Rule::Utf8 if is_utf8(value) => Ok(()),
        Rule::Utf8 => {
            let hint = "Use UTF8: SET client_encoding TO 'UTF8'.";
            Err(Box::new(Denial { sqlstate: "0A000", ..*value_refused(name, "only UTF8 is supported", hint) }))
        }
        Rule::On if is_true(value) => Ok(()),
        Rule::On => Err(value_refused(name, "it must stay on", "Write escapes as E'…' where you need them.")),
        Rule::Empty if value.is_empty() => Ok(()),
        Rule::Empty => Err(value_refused(name, "only the empty value is allowed", "Leave the parameter alone.")),
        Rule::Heap if value.eq_ignore_ascii_case("heap") => Ok(()),
        Rule::Heap => Err(value_refused(name, "only heap is allowed", "Leave the parameter alone.")),
        Rule::SearchPath => search_path(role, value),
        Rule::ReadOnly if role.may_write() || is_true(value) => Ok(()),
        Rule::ReadOnly => Err(value_refused(name, "this login only reads", "Leave transactions READ ONLY.")),
        Rule::RelationKinds => Ok(()),
    }
}

/// Whether any value of the parameter passes, so that a bound one needs no look.
pub(crate) fn any_value_allowed(role: &RolePolicy, name: &str) -> bool {
    match rule_for(role, name) {
        _ if role.settings_max.contains_key(name) => false,
        Some(Rule::Any | Rule::RelationKinds) => true,
        Some(Rule::ReadOnly) => role.may_write(),
        _ => false,
    }
}

/// Whether the parameter is on the login's list at all.
pub(crate) fn is_listed(role: &RolePolicy, name: &str) -> bool {
    rule_for(role, name).is_some()
}

/// The rule of a parameter with what the policy adds and takes away.
fn rule_for(role: &RolePolicy, name: &str) -> Option<Rule> {
    if role.settings_deny.contains(name) {
        return None;
    }
    rule(name).or_else(|| role.settings_allow.contains(name).then_some(Rule::Any))
}

fn not_allowed(name: &str) -> Box<Denial> {
    let shown = shown(name);
    let hint = match name {
        "role" | "session_authorization" => "A login works with its own role only; use another login instead.",
        _ => {
            "Leave it out: the server's value applies. Parameters of formats, time zone, timeouts and planner may be set."
        }
    };
    Box::new(Denial {
        sqlstate: "42501",
        message: format!("permission denied to set parameter \"{shown}\""),
        rule: crate::Rule::SettingNotAllowed,
        detail: format!("Rule setting.not_allowed: parameter {shown} is not on the list of this login's policy."),
        object: Some(shown),
        hint: hint.to_owned(),
        position: None,
    })
}

pub(crate) fn value_refused(name: &str, why: &str, hint: &str) -> Box<Denial> {
    let shown = shown(name);
    Box::new(Denial {
        sqlstate: "42501",
        message: format!("permission denied to set parameter \"{shown}\" to this value"),
        rule: crate::Rule::SettingValue,
        detail: format!("Rule setting.value: parameter {shown}: {why}."),
        object: Some(shown),
        hint: hint.to_owned(),
        position: None,
    })
}

/// A name for messages, bounded.
fn shown(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(63).collect()
}

/// The names of UTF8, compared as PostgreSQL does: letters and digits only, in any case.
fn is_utf8(value: &str) -> bool {
    let bare: String = value.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect();
    matches!(bare.as_str(), "utf8" | "unicode")
}

fn is_true(value: &str) -> bool {
    ["on", "true", "yes", "1", "t", "y"].iter().any(|word| value.trim().eq_ignore_ascii_case(word))
}

/// A value in PostgreSQL's notation (`64MB`, `65536`, `0.5 GB`, `90s`), rounded up; less than a millisecond is 0.
fn amount(value: &str, unit: Unit) -> Option<u64> {
    let value = value.trim();
    let digits = value.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(value.len());
    let (number, written) = value.split_at(digits);
    let number: f64 = number.parse().ok()?;
    let factor = match (unit, written.trim()) {
        (_, "") | (Unit::Memory, "kB") | (Unit::Time, "ms") => 1.0,
        (Unit::Memory, "B") => 1.0 / 1024.0,
        (Unit::Memory, "MB") => 1024.0,
        (Unit::Memory, "GB") => 1024.0 * 1024.0,
        (Unit::Memory, "TB") => 1024.0 * 1024.0 * 1024.0,
        (Unit::Time, "us") => 1.0 / 1000.0,
        (Unit::Time, "s") => 1000.0,
        (Unit::Time, "min") => 60_000.0,
        (Unit::Time, "h") => 3_600_000.0,
        (Unit::Time, "d") => 86_400_000.0,
        _ => return None,
    };
    let exact = number * factor;
    // The server rounds to whole milliseconds: 400us are no limit at all.
    let amount = if unit == Unit::Time && exact < 1.0 { 0.0 } else { exact.ceil() };
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked against the bound first")]
    (amount <= 1e15).then_some(amount as u64)
}

fn search_path(role: &RolePolicy, value: &str) -> Result<(), Box<Denial>> {
    let refused = |why: &str| {
        Err(value_refused(
            "search_path",
            why,
            "Qualify names (schema.table), or list schemas that this login may read.",
        ))
    };
    let Some(schemas) = identifiers(value) else { return refused("it is not a list of names") };
    for (index, schema) in schemas.iter().enumerate() {
        match schema.as_str() {
            "public" | "$user" | "" => {}
            "pg_catalog" if index == 0 => {}
            "pg_catalog" => return refused("pg_catalog may only come first"),
            other if role.reads(other) => {}
            _ => return refused("it names a schema that this login may not read"),
        }
    }
    Ok(())
}

/// Splits a comma-separated list of identifiers as PostgreSQL's SplitIdentifierString does; `None` if it is no such list.
pub(crate) fn identifiers(value: &str) -> Option<Vec<String>> {
    let mut names = Vec::new();
    let mut rest = value.trim_matches(is_space);
    if rest.is_empty() {
        return Some(names);
    }
    loop {
        let name;
        if let Some(quoted) = rest.strip_prefix('"') {
            let mut text = String::new();
            let mut tail = quoted;
            loop {
                let end = tail.find('"')?;
                text.push_str(&tail[..end]);
                tail = &tail[end + 1..];
                match tail.strip_prefix('"') {
                    Some(more) => {
                        text.push('"');
                        tail = more;
                    }
                    None => break,
                }
            }
            name = text;
            rest = tail;
        } else {
            let end = rest.find(|c: char| c == ',' || is_space(c)).unwrap_or(rest.len());
            if end == 0 {
                return None;
            }
            name = rest[..end].to_lowercase();
            rest = &rest[end..];
        }
        if name.len() > 63 {
            return None;
        }
        names.push(name);
        rest = rest.trim_start_matches(is_space);
        if rest.is_empty() {
            return Some(names);
        }
        rest = rest.strip_prefix(',')?.trim_start_matches(is_space);
    }
}

fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r' | '\u{b}' | '\u{c}')
}

/// Quotes an identifier for SQL; always, so that keywords need no list.
pub(crate) fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
#[path = "settings_tests.rs"]
mod tests;
