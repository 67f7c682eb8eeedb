//! Fingerprints of everything that a role must not change: catalogs, the platform's rows, the cluster's shared state and
//! the files in its data directory that no relation owns.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use crate::session::Session;

/// A place, and what it looked like.
pub type Fingerprint = BTreeMap<String, String>;

/// How a row of a catalog tells to whose object it belongs; catalogs that are not here belong to nobody but the platform.
const OWNED_BY: &[(&str, &str)] = &[
    ("pg_class", "oid"),
    ("pg_type", "oid"),
    ("pg_attribute", "attrelid"),
    ("pg_attrdef", "oid"),
    ("pg_constraint", "oid"),
    ("pg_index", "indrelid"),
    ("pg_enum", "enumtypid"),
    ("pg_range", "rngtypid"),
    ("pg_sequence", "seqrelid"),
    ("pg_statistic", "starelid"),
    ("pg_statistic_ext", "oid"),
    ("pg_statistic_ext_data", "stxoid"),
    ("pg_inherits", "inhrelid"),
    ("pg_partitioned_table", "partrelid"),
    ("pg_rewrite", "oid"),
    ("pg_trigger", "oid"),
    ("pg_description", "objoid"),
    ("pg_depend", "objid"),
    ("pg_shdepend", "objid"),
    ("pg_proc", "oid"),
    ("pg_cast", "oid"),
];

/// The question that fingerprints a database, for a role that defines in some schemas and may fill others.
pub async fn question(session: &mut Session, define: &[&str], fill: &[&str]) -> String {
    let array = |names: &[&str]| format!("'{{{}}}'::text[]", names.join(","));
    let head = include_str!("fingerprint.sql").replace(":define", &array(define));
    let mut places = Vec::new();
    let catalogs = "SELECT relname FROM pg_class WHERE relnamespace = 'pg_catalog'::regnamespace AND relkind = 'r'
                     ORDER BY relname";
    for row in session.own(catalogs).await {
        let name = row[0].clone().expect("a name");
        let owned = OWNED_BY.iter().find(|(catalog, _)| *catalog == name);
        let shared = if name == "pg_shdepend" { "dbid <> (SELECT oid FROM here) OR" } else { "" };
        let others = owned.map_or(String::new(), |(_, by)| format!("WHERE {shared} {by} NOT IN (SELECT oid FROM own)"));
        places.push(place(&format!("pg_catalog.{name}"), &others));
    }
    let tables = format!(
        "SELECT format('%I.%I', n.nspname, c.relname), c.relkind FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
          WHERE c.relkind IN ('r', 'm', 'S') AND n.nspname NOT IN ('pg_catalog', 'pg_toast')
            AND n.nspname <> ALL ({}) ORDER BY 1",
        array(&[define, fill].concat())
    );
    for row in session.own(&tables).await {
        let name = row[0].clone().expect("a name");
        if row[1].as_deref() == Some("S") {
            places.push(format!("SELECT '{name}', concat(last_value, is_called) FROM {name}"));
        } else {
            places.push(place(&name, ""));
        }
    }
    format!("{head}{}", places.join("\nUNION ALL "))
}

fn place(name: &str, others: &str) -> String {
    format!(
        "SELECT '{name}', concat(count(*), ' ', sum(hashtid(ctid)::bigint + 7 * xmin::text::bigint + 13 * xmax::text::bigint))
           FROM {name} {others}"
    )
}

/// The answer to such a question. Where it cannot even be asked any more, that is the difference.
pub async fn take(session: &mut Session, question: &str) -> Fingerprint {
    match session.ask(question).await {
        Ok(rows) => rows.into_iter().map(|row| (text(&row[0]), text(&row[1]))).collect(),
        Err(error) => Fingerprint::from([("error".to_owned(), error)]),
    }
}

fn text(value: &Option<String>) -> String {
    value.clone().unwrap_or_default()
}

/// What no transaction covers: the server's files, slots, prepared transactions, counters that were reset, settings.
pub async fn beyond(session: &mut Session, home: &Path) -> Fingerprint {
    let mut fingerprint = take(
        session,
        "SELECT 'slots', string_agg(slot_name, ',') FROM pg_replication_slots
         UNION ALL SELECT 'prepared transactions', string_agg(gid, ',') FROM pg_prepared_xacts
         UNION ALL SELECT 'large objects', count(*)::text FROM pg_largeobject_metadata
         UNION ALL SELECT 'reset of ' || coalesce(datname, 'shared objects'), stats_reset::text FROM pg_stat_database
                    WHERE datname IS DISTINCT FROM current_database()
         UNION ALL SELECT 'reset of the writer', stats_reset::text FROM pg_stat_bgwriter
         UNION ALL SELECT 'reset of the archiver', stats_reset::text FROM pg_stat_archiver
         UNION ALL SELECT 'reset of the log', stats_reset::text FROM pg_stat_wal
         UNION ALL SELECT 'configuration', concat(pg_conf_load_time())
         UNION ALL SELECT 'start', concat(pg_postmaster_start_time())
         UNION ALL SELECT 'in recovery', concat(pg_is_in_recovery())
         UNION ALL SELECT 'role ' || rolname, (to_jsonb(a) - 'oid')::text FROM pg_authid a
         UNION ALL SELECT 'member ' || roleid || ' ' || member, admin_option::text FROM pg_auth_members
         UNION ALL SELECT 'setting of ' || setdatabase || ' ' || setrole, setconfig::text FROM pg_db_role_setting
         UNION ALL SELECT 'database ' || datname, concat(datacl, datallowconn, datconnlimit, datistemplate) FROM pg_database
         UNION ALL SELECT 'other sessions', count(*)::text FROM pg_stat_activity WHERE backend_type = 'autovacuum worker'",
    )
    .await;
    let data = home.join("data");
    for name in ["pg_logical", "pg_replslot", "pg_twophase", "pg_tblspc", "pg_snapshots", "pg_commit_ts", "pg_dynshmem"]
    {
        files(&data.join(name), &mut fingerprint);
    }
    for directory in [&data, home] {
        for path in entries(directory) {
            fingerprint.insert(path.display().to_string(), String::new());
        }
    }
    for name in ["postgresql.auto.conf", "postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
        let path = data.join(name);
        fingerprint.insert(path.display().to_string(), fs::read_to_string(&path).unwrap_or_default());
    }
    fingerprint
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).map(|entries| entries.flatten().map(|entry| entry.path()).collect()).unwrap_or_default()
}

fn files(directory: &Path, into: &mut Fingerprint) {
    for path in entries(directory) {
        let Ok(metadata) = path.metadata() else { continue };
        if metadata.is_dir() {
            files(&path, into);
        } else if !path.ends_with("replorigin_checkpoint") {
            let changed = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
            into.insert(path.display().to_string(), format!("{} bytes at {changed:?}", metadata.len()));
        }
    }
}

/// The places that look different.
pub fn differences(before: &Fingerprint, after: &Fingerprint) -> Vec<String> {
    if let Some(error) = after.get("error") {
        return vec![format!("leaves {error}")];
    }
    let names: std::collections::BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let changed = names.into_iter().filter(|name| before.get(*name) != after.get(*name));
    changed.map(|name| format!("{name}: {:?} became {:?}", before.get(name), after.get(name))).collect()
}
