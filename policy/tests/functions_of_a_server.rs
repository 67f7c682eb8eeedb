//! The list of functions against a server that runs, when one is named by `PORTCULLIS_FUNCTIONS_URL` (a connection URL
//! for psql). A server must not have a built-in function that the list misses or knows as less dangerous: after a minor
//! release, or on a fork of PostgreSQL, this is where one learns of it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::PathBuf;
use std::process::Command;

use portcullis_policy::functions::{self, Class};

const URL: &str = "PORTCULLIS_FUNCTIONS_URL";

fn ask(url: &str, arguments: &[&str]) -> Vec<Vec<String>> {
    let output = Command::new("psql")
        .args([url, "-X", "-q", "-A", "-t", "-F", "\t", "-v", "ON_ERROR_STOP=1"])
        .args(arguments)
        .output()
        .expect("psql is on the path");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| line.split('\t').map(str::to_owned).collect()).collect()
}

#[test]
fn the_server_has_no_function_that_the_list_misjudges() {
    let Ok(url) = std::env::var(URL) else { return };
    let facts = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/functions/facts.sql");
    let rows = ask(&url, &["-f", facts.to_str().unwrap()]);
    assert!(rows.len() > 2_500, "only {} functions", rows.len());
    let reviewed = std::fs::read_to_string(facts.with_file_name("reviewed.tsv")).unwrap();
    let allowed_by_review = |name: &str| {
        reviewed.lines().filter_map(|line| line.split_once("\tallow\t")).any(|(pattern, _)| {
            match pattern.strip_suffix('*') {
                Some(start) => name.starts_with(start),
                None => name == pattern,
            }
        })
    };
    let mut wrong = Vec::new();
    for row in rows.iter().filter(|row| row[1] == "pg_catalog") {
        let [name, _, _, volatility, pseudo, _, public] = &row[..] else { panic!("{row:?}") };
        let careful = (volatility == "volatile" || public != "public") && pseudo != "pseudo";
        match functions::lookup(name) {
            Class::Unknown => wrong.push(format!("{name} is not on the list")),
            Class::Allowed if careful && !allowed_by_review(name) => wrong.push(format!("{name} is {volatility} here")),
            _ => {}
        }
    }
    assert!(wrong.is_empty(), "run policy/src/functions/generate: {}", wrong.join(", "));
}

#[test]
fn what_is_revoked_exists_and_what_public_may_write_is_known() {
    let Ok(url) = std::env::var(URL) else { return };
    let names = |sql: &str| ask(&url, &["-c", sql]).into_iter().map(|row| row[0].clone()).collect::<Vec<_>>();
    let functions = names(
        "SET search_path = pg_catalog; SELECT DISTINCT proname FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace
         UNION SELECT oid::regprocedure::text FROM pg_proc WHERE proname = 'ts_rewrite'",
    );
    let missing = functions::revoked_functions().iter().filter(|name| !functions.iter().any(|have| have == *name));
    let missing: Vec<_> = missing.collect();
    assert!(missing.len() < 80, "most of the list is not there: {missing:?}");
    assert!(!missing.contains(&&"ts_rewrite(tsquery,text)"));
    let writable = names(
        "SELECT DISTINCT c.oid::regclass::text FROM pg_class c, aclexplode(c.relacl) a
         WHERE c.relnamespace = 'pg_catalog'::regnamespace AND a.grantee = 0 AND a.privilege_type <> 'SELECT'",
    );
    assert!(writable.iter().all(|name| functions::WRITABLE_RELATIONS.contains(&name.as_str())), "{writable:?}");
    let catalogs =
        names("SELECT relname FROM pg_class WHERE relnamespace = 'pg_catalog'::regnamespace AND relkind <> 'c'");
    let unknown: Vec<_> = catalogs.iter().filter(|name| !functions::is_catalog(name)).collect();
    assert!(catalogs.len() > 200 && unknown.is_empty(), "functions/catalogs.rs misses {unknown:?}");
}
