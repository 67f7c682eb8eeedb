//! Names that mean a relation of `pg_catalog` before any other, written without a schema.
//!
//! Customers may have tables called `pg_…` too (the Rails gem pg_search makes `pg_search_documents`), so the prefix alone says
//! nothing. What is not known here falls to the grants: nobody but PostgreSQL's owner may change a catalog.

/// Whether an unqualified name is a table, view or index of `pg_catalog` in PostgreSQL 14 to 18.
///
/// Indexes have the name of their table and more behind it. The counters' views differ most between versions, so everything
/// that begins like them counts.
#[must_use]
pub fn is_catalog(name: &str) -> bool {
    let index_of = |catalog: &&str| name.strip_prefix(*catalog).is_some_and(|rest| rest.starts_with('_'));
    name.starts_with("pg_stat") || CATALOGS.binary_search(&name).is_ok() || CATALOGS.iter().any(index_of)
}

/// Tables and views of `pg_catalog`, but for those that begin with `pg_stat`. Sorted.
const CATALOGS: &[&str] = &[
    "pg_aggregate",
    "pg_aios",
    "pg_am",
    "pg_amop",
    "pg_amproc",
    "pg_attrdef",
    "pg_attribute",
    "pg_auth_members",
    "pg_authid",
    "pg_available_extension_versions",
    "pg_available_extensions",
    "pg_backend_memory_contexts",
    "pg_cast",
    "pg_class",
    "pg_collation",
    "pg_config",
    "pg_constraint",
    "pg_conversion",
    "pg_cursors",
    "pg_database",
    "pg_db_role_setting",
    "pg_default_acl",
    "pg_depend",
    "pg_description",
    "pg_enum",
    "pg_event_trigger",
    "pg_extension",
    "pg_file_settings",
    "pg_foreign_data_wrapper",
    "pg_foreign_server",
    "pg_foreign_table",
    "pg_group",
    "pg_hba_file_rules",
    "pg_ident_file_mappings",
    "pg_index",
    "pg_indexes",
    "pg_inherits",
    "pg_init_privs",
    "pg_language",
    "pg_largeobject",
    "pg_largeobject_metadata",
    "pg_locks",
    "pg_matviews",
    "pg_namespace",
    "pg_opclass",
    "pg_operator",
    "pg_opfamily",
    "pg_parameter_acl",
    "pg_partitioned_table",
    "pg_policies",
    "pg_policy",
    "pg_prepared_statements",
    "pg_prepared_xacts",
    "pg_proc",
    "pg_publication",
    "pg_publication_namespace",
    "pg_publication_rel",
    "pg_publication_tables",
    "pg_range",
    "pg_replication_origin",
    "pg_replication_origin_status",
    "pg_replication_slots",
    "pg_rewrite",
    "pg_roles",
    "pg_rules",
    "pg_seclabel",
    "pg_seclabels",
    "pg_sequence",
    "pg_sequences",
    "pg_settings",
    "pg_shadow",
    "pg_shdepend",
    "pg_shdescription",
    "pg_shmem_allocations",
    "pg_shmem_allocations_numa",
    "pg_shseclabel",
    "pg_subscription",
    "pg_subscription_rel",
    "pg_tables",
    "pg_tablespace",
    "pg_timezone_abbrevs",
    "pg_timezone_names",
    "pg_transform",
    "pg_trigger",
    "pg_ts_config",
    "pg_ts_config_map",
    "pg_ts_dict",
    "pg_ts_parser",
    "pg_ts_template",
    "pg_type",
    "pg_user",
    "pg_user_mapping",
    "pg_user_mappings",
    "pg_views",
    "pg_wait_events",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn catalogs_and_their_indexes_are_known_and_other_names_are_free() {
        assert!(CATALOGS.is_sorted_by(|a, b| a < b));
        for name in
            ["pg_class", "pg_settings", "pg_class_oid_index", "pg_stat_io", "pg_statistic_ext_data", "pg_wait_events"]
        {
            assert!(is_catalog(name), "{name}");
        }
        for name in ["pg_search_documents", "pg_lsn_tbl", "pg_classes", "class", "PG_CLASS", "pg_"] {
            assert!(!is_catalog(name), "{name}");
        }
    }
}
