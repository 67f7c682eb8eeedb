//! Which of PostgreSQL's own functions a statement may call, and what of `pg_catalog` is closed to PUBLIC.
//!
//! The gate's list and the database's revokes come from the same two sources, so that each wall holds when the other
//! falls: `functions/facts.tsv` is what the servers themselves say (generated from `pg_proc` of every supported major
//! version), `functions/reviewed.tsv` and `functions/relations.tsv` are what people decided, with the reason. The rule:
//! immutable and stable functions pass, volatile ones and those that a server closes to PUBLIC do not, unless reviewed;
//! functions over pseudo types (`internal`, `trigger`, `cstring`, …) serve no user. See `functions/README.md`.
//!
//! This module knows names only. Whether the arguments of a [`Special`] function may pass, and which functions of
//! extensions a policy adds, is decided by the walk over the statement.

mod catalogs;
#[cfg(test)]
mod derive;
#[rustfmt::skip]
mod table;

pub use catalogs::is_catalog;

/// What the list says about a name, for calls without a schema or with `pg_catalog`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Passes with any arguments.
    Allowed,
    /// Passes under a condition that the statement's walk checks.
    Special(Special),
    /// Known, and refused.
    Forbidden,
    /// No built-in function of PostgreSQL 14 to 18 has this name: refused, unless a policy lists it for an extension.
    Unknown,
}

/// A function that passes under a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// `nextval`: a constant name in the role's own schemas; an explicit call pins the session.
    NextVal,
    /// `currval`: a constant name in the role's own schemas.
    CurrVal,
    /// `setval`: a constant name in the role's own schemas.
    SetVal,
    /// `lastval`: what this session's `nextval` gave.
    LastVal,
    /// `set_config`: judged as `SET`, only as a top-level target with constant or bound arguments.
    SetConfig,
    /// `pg_advisory_unlock_all`: a reset that drivers send.
    AdvisoryUnlockAll,
    /// `pg_advisory_lock` and its family, held by the connection; only where the policy allows advisory locks.
    SessionLock,
    /// `pg_advisory_xact_lock` and its family; only where the policy allows advisory locks.
    TransactionLock,
    /// `pg_notify`: as `NOTIFY`; only where the policy allows notifications.
    Notify,
    /// `ts_rewrite`: with three arguments only; with two it runs its second argument as a query.
    TsRewrite,
    /// `jsonb_set_lax`: not with a value that may be a constant NULL, which servers read after it is freed.
    JsonbSetLax,
}

/// One line of the generated table: name, class, whether `x.name` would call it, index into the reasons.
type Row = (&'static str, Class, bool, u8);

/// The class of a function that is called without a schema, or as `pg_catalog.name`.
///
/// `name` is as PostgreSQL decodes it: folded to lower case unless it was quoted.
#[must_use]
pub fn lookup(name: &str) -> Class {
    row(name).map_or(Class::Unknown, |row| row.1)
}

/// The class of a function that is called as `schema.name`.
///
/// Beside `pg_catalog` there is one function of `information_schema` that drivers call (JDBC: `_pg_expandarray`).
#[must_use]
pub fn lookup_in(schema: &str, name: &str) -> Class {
    match (schema, name) {
        ("pg_catalog", _) => lookup(name),
        ("information_schema", "_pg_expandarray") => Class::Allowed,
        _ => Class::Unknown,
    }
}

/// Whether PostgreSQL 14 to 18 have a function (or a type that works as a cast) of this name in `pg_catalog`.
#[must_use]
pub fn is_known_function(name: &str) -> bool {
    row(name).is_some()
}

/// Whether PostgreSQL 14 to 18 have a type of this name in `pg_catalog`; an array type begins with `_`.
///
/// Types whose names begin with `pg_` (row types of the catalogs) are not listed.
#[must_use]
pub fn is_built_in_type(name: &str) -> bool {
    let element = name.strip_prefix('_').unwrap_or(name);
    BUILT_IN_TYPES.binary_search(&element).is_ok()
}

/// `typname` of `pg_type` in `pg_catalog`, without arrays and row types, sorted. The same from 14 to 18.
const BUILT_IN_TYPES: &[&str] = &[
    "aclitem",
    "any",
    "anyarray",
    "anycompatible",
    "anycompatiblearray",
    "anycompatiblemultirange",
    "anycompatiblenonarray",
    "anycompatiblerange",
    "anyelement",
    "anyenum",
    "anymultirange",
    "anynonarray",
    "anyrange",
    "bit",
    "bool",
    "box",
    "bpchar",
    "bytea",
    "char",
    "cid",
    "cidr",
    "circle",
    "cstring",
    "date",
    "datemultirange",
    "daterange",
    "event_trigger",
    "fdw_handler",
    "float4",
    "float8",
    "gtsvector",
    "index_am_handler",
    "inet",
    "int2",
    "int2vector",
    "int4",
    "int4multirange",
    "int4range",
    "int8",
    "int8multirange",
    "int8range",
    "internal",
    "interval",
    "json",
    "jsonb",
    "jsonpath",
    "language_handler",
    "line",
    "lseg",
    "macaddr",
    "macaddr8",
    "money",
    "name",
    "numeric",
    "nummultirange",
    "numrange",
    "oid",
    "oidvector",
    "path",
    "point",
    "polygon",
    "record",
    "refcursor",
    "regclass",
    "regcollation",
    "regconfig",
    "regdictionary",
    "regnamespace",
    "regoper",
    "regoperator",
    "regproc",
    "regprocedure",
    "regrole",
    "regtype",
    "table_am_handler",
    "text",
    "tid",
    "time",
    "timestamp",
    "timestamptz",
    "timetz",
    "trigger",
    "tsm_handler",
    "tsmultirange",
    "tsquery",
    "tsrange",
    "tstzmultirange",
    "tstzrange",
    "tsvector",
    "txid_snapshot",
    "unknown",
    "uuid",
    "varbit",
    "varchar",
    "void",
    "xid",
    "xid8",
    "xml",
];

/// Whether `x.name` calls a function that does not pass by itself where `x` is a value.
///
/// PostgreSQL reads `x.name` as `name(x)` where `x` has no column of that name. Ordinary column names stay usable: a
/// name is refused only if a function that takes one argument has it and is not simply allowed. Volatile functions of
/// PostgreSQL's own extensions are in the table for this question's sake.
#[must_use]
pub fn is_attribute_call(name: &str) -> bool {
    row(name).is_some_and(|row| row.2 && row.1 != Class::Allowed)
}

/// Why a known function does not simply pass, for the DETAIL of a refusal. `None` for allowed and unknown names.
#[must_use]
pub fn reason(name: &str) -> Option<&'static str> {
    row(name).filter(|row| row.1 != Class::Allowed).map(|row| table::REASONS[usize::from(row.3)])
}

/// The functions of `pg_catalog` on which EXECUTE is revoked from PUBLIC, sorted.
///
/// An entry with parentheses is one overload, as `oid::regprocedure::text` prints it with `pg_catalog` on the search
/// path; any other is a name and means every overload. Names that a server does not have are to be skipped.
#[must_use]
pub fn revoked_functions() -> &'static [&'static str] {
    table::REVOKED_FUNCTIONS
}

/// The names of the functions of `pg_catalog` of these special classes, sorted.
pub(crate) fn special_names(wanted: &[Special]) -> Vec<&'static str> {
    let is = |class: Class| matches!(class, Class::Special(special) if wanted.contains(&special));
    table::FUNCTIONS.iter().filter(|row| is(row.1)).map(|row| row.0).collect()
}

/// The relations of `pg_catalog` that tell of others: SELECT is revoked from PUBLIC, and the gate refuses them. Sorted.
///
/// Names that a server does not have are to be skipped.
#[must_use]
pub fn revoked_relations() -> &'static [&'static str] {
    table::REVOKED_RELATIONS
}

/// Relations of `pg_catalog` that PUBLIC may write as PostgreSQL ships them: everything but SELECT is to be revoked.
///
/// `UPDATE pg_settings` is `SET` in disguise.
pub const WRITABLE_RELATIONS: &[&str] = &["pg_settings"];

fn row(name: &str) -> Option<&'static Row> {
    table::FUNCTIONS.binary_search_by(|row| row.0.cmp(name)).ok().map(|at| &table::FUNCTIONS[at])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn check(names: &str, expect: Class) {
        for name in names.split_whitespace() {
            assert_eq!(lookup(name), expect, "{name}");
        }
    }

    #[test]
    fn names_that_the_grammar_puts_for_sql_syntax_pass() {
        check(
            "timezone date_part extract overlay position substring btrim ltrim rtrim xmlexists normalize is_normalized \
             pg_collation_for like_escape similar_to_escape similar_escape overlaps interval_lt jsonb_set json_object \
             system_user",
            Class::Allowed,
        );
    }

    #[test]
    fn what_applications_and_reports_call_passes() {
        check(
            "count sum avg min max string_agg array_agg json_agg jsonb_agg json_object_agg bool_and every mode \
             percentile_cont percentile_disc rank dense_rank row_number ntile lag lead first_value nth_value cume_dist \
             lower upper concat concat_ws format substr left right trim_array length replace split_part regexp_replace \
             regexp_matches string_to_array unnest generate_series generate_subscripts now clock_timestamp date_trunc \
             date_bin age to_char to_date to_timestamp to_number make_date make_interval round trunc ceil floor abs mod \
             power sqrt ln exp random gen_random_uuid md5 sha256 encode decode jsonb_build_object jsonb_path_query \
             jsonb_array_elements to_jsonb row_to_json to_tsvector plainto_tsquery ts_rank ts_headline int4range lower_inf \
             width_bucket corr stddev variance hashtext array_length cardinality array_to_string",
            Class::Allowed,
        );
    }

    #[test]
    fn what_introspection_calls_passes() {
        check(
            "format_type pg_get_expr pg_get_viewdef pg_get_indexdef pg_get_constraintdef pg_get_functiondef pg_get_userbyid \
             pg_get_serial_sequence pg_table_is_visible pg_type_is_visible pg_function_is_visible obj_description \
             shobj_description col_description pg_encoding_to_char pg_size_pretty pg_table_size pg_total_relation_size \
             pg_database_size pg_relation_size has_table_privilege has_schema_privilege has_database_privilege pg_has_role \
             current_schemas current_schema current_database current_setting version pg_backend_pid pg_is_in_recovery \
             quote_ident quote_literal to_regclass to_regtype pg_tablespace_location pg_options_to_table aclexplode \
             acldefault pg_partition_ancestors pg_partition_tree pg_sequence_last_value pg_get_keywords \
             pg_relation_is_publishable pg_stat_get_numscans pg_stat_get_live_tuples row_security_active",
            Class::Allowed,
        );
    }

    #[test]
    fn casts_in_the_form_of_a_call_pass() {
        check("int4 text uuid json jsonb inet date numeric timestamptz regclass regtype varchar", Class::Allowed);
    }

    #[test]
    fn what_reaches_beyond_the_statement_is_forbidden() {
        check(
            "pg_sleep pg_sleep_for pg_read_file pg_read_binary_file pg_ls_dir pg_stat_file pg_terminate_backend \
             pg_cancel_backend query_to_xml query_to_xml_and_xmlschema table_to_xml schema_to_xml database_to_xml \
             cursor_to_xml ts_stat txid_current pg_current_xact_id pg_export_snapshot lo_import lo_export lo_get \
             lo_from_bytea loread lowrite pg_reload_conf pg_rotate_logfile pg_switch_wal pg_create_restore_point \
             pg_logical_emit_message pg_create_logical_replication_slot pg_stat_reset pg_stat_get_activity \
             pg_stat_get_backend_activity pg_lock_status pg_blocking_pids pg_control_system pg_current_logfile \
             pg_import_system_collations pg_log_backend_memory_contexts pg_config pg_show_all_file_settings \
             pg_hba_file_rules pg_prepared_statement pg_prepared_xact setseed currtid2 dblink dblink_connect \
             dblink_exec pg_file_write crosstab array_in textin int4recv plpgsql_call_handler fmgr_c_validator",
            Class::Forbidden,
        );
    }

    #[test]
    fn what_needs_a_look_at_its_arguments_is_special() {
        for (name, special) in [
            ("nextval", Special::NextVal),
            ("currval", Special::CurrVal),
            ("setval", Special::SetVal),
            ("lastval", Special::LastVal),
            ("set_config", Special::SetConfig),
            ("pg_advisory_unlock_all", Special::AdvisoryUnlockAll),
            ("pg_advisory_lock", Special::SessionLock),
            ("pg_try_advisory_lock_shared", Special::SessionLock),
            ("pg_advisory_unlock", Special::SessionLock),
            ("pg_advisory_xact_lock", Special::TransactionLock),
            ("pg_notify", Special::Notify),
            ("ts_rewrite", Special::TsRewrite),
            ("jsonb_set_lax", Special::JsonbSetLax),
        ] {
            check(name, Class::Special(special));
            assert!(reason(name).is_some(), "{name}");
        }
    }

    #[test]
    fn schemas_other_than_the_catalog_have_no_functions_here() {
        assert_eq!(lookup_in("pg_catalog", "lower"), Class::Allowed);
        assert_eq!(lookup_in("pg_catalog", "pg_sleep"), Class::Forbidden);
        assert_eq!(lookup_in("information_schema", "_pg_expandarray"), Class::Allowed);
        assert_eq!(lookup_in("information_schema", "lower"), Class::Unknown);
        assert_eq!(lookup_in("storage", "lower"), Class::Unknown);
        assert_eq!(lookup("LOWER"), Class::Unknown);
        assert_eq!(lookup(""), Class::Unknown);
    }

    #[test]
    fn attribute_notation_is_refused_for_dangerous_names_alone() {
        for name in
            "pg_sleep pg_terminate_backend pg_read_file lo_get lo_unlink nextval currval setseed dblink crosstab \
                     dblink_exec pg_ls_dir pg_promote pg_stat_get_backend_activity pg_advisory_lock pg_stat_file"
                .split_whitespace()
        {
            assert!(is_attribute_call(name), "{name}");
        }
        for name in
            "name text date row count position id value values data type key user system bernoulli timestamp time \
                     interval json url length size lower upper version status state level path point box random now \
                     format left right rank sum min max avg age year month day lastval txid email title"
                .split_whitespace()
        {
            assert!(!is_attribute_call(name), "{name}");
        }
    }

    #[test]
    fn what_drivers_need_stays_executable_and_readable() {
        for name in
            ["set_config", "pg_advisory_unlock_all", "nextval", "currval", "lastval", "current_setting", "version"]
        {
            assert!(!revoked_functions().contains(&name), "{name}");
        }
        for name in
            ["pg_database", "pg_roles", "pg_settings", "pg_class", "pg_cursors", "pg_subscription", "pg_shdescription"]
        {
            assert!(!revoked_relations().contains(&name), "{name}");
        }
        assert!(revoked_functions().iter().all(|name| name.contains('(') || lookup(name) != Class::Allowed));
    }
}
