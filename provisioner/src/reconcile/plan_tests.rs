//! Rows: one thing is different from a finished database, and these are the steps.

use super::*;
use crate::reconcile::intent::{KindIntent, LoginIntent};
use crate::reconcile::observe::{DatabaseFact, Record};
use crate::reconcile::step::Place;

fn intent() -> Intent {
    let text = |text: &str| vec![text.to_owned()];
    Intent {
        database: "ws_1".to_owned(),
        owner: "ws_1_owner".to_owned(),
        kinds: vec![KindIntent {
            group: "ws_1_k".to_owned(),
            active: LoginIntent { name: "ws_1_k_a".to_owned(), verifier: "SCRAM-SHA-256$v".to_owned() },
            idle: "ws_1_k_b".to_owned(),
            temporary_tables: false,
            temp_file_limit: Some("9kB".to_owned()),
        }],
        internal: text("ws_1_i"),
        migrations: text("CREATE SCHEMA IF NOT EXISTS m"),
        managed_schemas: text("m"),
        customer_schemas: text("c"),
        walls: text("SELECT 'wall'"),
        closed_functions: text("pg_sleep"),
        grants: text("GRANT USAGE ON SCHEMA c TO ws_1_k"),
        event_triggers: text("SELECT 'trigger'"),
        connections_max: 100,
    }
}

/// A database as it is when everything is done.
fn finished() -> Observed {
    let role = |login: bool, inherit: bool| RoleFact {
        login,
        inherit,
        connections_max: if inherit { -1 } else { 100 },
        password: login.then(|| "SCRAM-SHA-256$v".to_owned()),
        password_known: true,
        settings: if inherit { [].into() } else { [":temp_file_limit=9kB".to_owned()].into() },
        ..RoleFact::default()
    };
    let objects: Fingerprints =
        ["schema m", "schema c", "view m.v", "grants on view m.v", "grants on schema m", "event trigger t"]
            .map(|name| (name.to_owned(), "0".to_owned()))
            .into();
    let member = |member: &str| Membership { role: "ws_1_k".to_owned(), member: member.to_owned(), unusual: false };
    Observed {
        cluster: Cluster {
            major: 15,
            superuser: true,
            me: "postgres".to_owned(),
            open_databases: Vec::new(),
            database: Some(DatabaseFact {
                owner: "ws_1_owner".to_owned(),
                privileges: ["ws_1_k=CONNECT", "ws_1_k_a=CONNECT", "ws_1_k_b=CONNECT"].map(str::to_owned).into(),
            }),
            roles: [
                ("ws_1_owner".to_owned(), role(false, true)),
                ("ws_1_i".to_owned(), role(false, true)),
                ("ws_1_k".to_owned(), role(false, true)),
                ("ws_1_k_a".to_owned(), role(true, false)),
                ("ws_1_k_b".to_owned(), role(false, false)),
            ]
            .into(),
            memberships: [member("ws_1_k_a"), member("ws_1_k_b")].into(),
        },
        inside: Some(Inside { objects: objects.clone(), functions_open: 0 }),
        record: Some(Record { intent: intent().digest(), major: 15, objects, unrepaired: Fingerprints::new() }),
    }
}

fn inside(observed: &mut Observed) -> &mut Inside {
    observed.inside.as_mut().unwrap()
}

type Change = fn(&mut Observed);

#[test]
fn one_difference_and_its_steps() {
    let rows: &[(&str, Change, &[&str])] = &[
        ("nothing", |_| {}, &[]),
        (
            "an open database",
            |o| o.cluster.open_databases = vec!["template1".to_owned()],
            &["grants on database template1"],
        ),
        ("no role", |o| drop(o.cluster.roles.remove("ws_1_k_b")), &["role ws_1_k_b"]),
        (
            "an idle login that may log in",
            |o| o.cluster.roles.get_mut("ws_1_k_b").unwrap().login = true,
            &["role ws_1_k_b"],
        ),
        ("another password", |o| o.cluster.roles.get_mut("ws_1_k_a").unwrap().password = None, &["role ws_1_k_a"]),
        (
            "a password that cannot be read",
            |o| {
                let role = o.cluster.roles.get_mut("ws_1_k_a").unwrap();
                (role.password, role.password_known) = (None, false);
            },
            &[],
        ),
        ("an elevated role", |o| o.cluster.roles.get_mut("ws_1_k").unwrap().elevated = true, &["role ws_1_k"]),
        (
            "a setting too many",
            |o| o.cluster.roles.get_mut("ws_1_k").unwrap().settings.extend(["ws_1:a=b".to_owned()]),
            &["role ws_1_k"],
        ),
        ("a setting too few", |o| o.cluster.roles.get_mut("ws_1_k_a").unwrap().settings.clear(), &["role ws_1_k_a"]),
        (
            "no membership",
            |o| o.cluster.memberships.retain(|m| m.member != "ws_1_k_a"),
            &["membership of ws_1_k_a in ws_1_k"],
        ),
        (
            "a membership too many",
            |o| {
                let (role, member) = ("pg_read_all_data".to_owned(), "ws_1_k".to_owned());
                o.cluster.memberships.insert(Membership { role, member, unusual: false });
            },
            &["membership of ws_1_k in pg_read_all_data"],
        ),
        (
            "a membership that is ours, of the provisioner",
            |o| {
                let (role, member) = ("ws_1_k".to_owned(), "postgres".to_owned());
                o.cluster.memberships.insert(Membership { role, member, unusual: true });
            },
            &[],
        ),
        ("another owner", |o| o.cluster.database.as_mut().unwrap().owner = "x".to_owned(), &["owner of database ws_1"]),
        (
            "PUBLIC may connect",
            |o| o.cluster.database.as_mut().unwrap().privileges.extend(["=CONNECT".to_owned()]),
            &["grants on database ws_1"],
        ),
        ("an altered view", |o| drop(inside(o).objects.insert("view m.v".to_owned(), "1".to_owned())), &["view m.v"]),
        (
            "an altered grant",
            |o| drop(inside(o).objects.insert("grants on schema m".to_owned(), "1".to_owned())),
            &["grants on schema m"],
        ),
        (
            "a dropped view, and its grants with it",
            |o| inside(o).objects.retain(|name, _| !name.ends_with("m.v")),
            &["view m.v"],
        ),
        (
            "a dropped schema, and all in it",
            |o| inside(o).objects.retain(|name, _| !name.ends_with(" m") && !name.contains(" m.")),
            &["schema m"],
        ),
        ("a dropped event trigger", |o| drop(inside(o).objects.remove("event trigger t")), &["event trigger t"]),
        ("an object of somebody else", |o| drop(inside(o).objects.insert("view m.x".to_owned(), "1".to_owned())), &[]),
    ];
    for (what, change, want) in rows {
        let mut observed = finished();
        change(&mut observed);
        let steps = plan(&intent(), &observed);
        let repairs: Vec<String> = steps.iter().flat_map(Step::repairs).collect();
        assert_eq!(repairs, *want, "{what}");
    }
}

#[test]
fn layouts_that_name_no_repair() {
    for (what, change) in [
        ("an open function", (|o| inside(o).functions_open = 1) as Change),
        ("never finished", |o| o.record = None),
        ("another release", |o| o.record.as_mut().unwrap().intent = "x".to_owned()),
        ("another major version", |o| o.cluster.major = 16),
    ] {
        let mut observed = finished();
        change(&mut observed);
        let steps = plan(&intent(), &observed);
        assert!(matches!(steps.as_slice(), [Step::LayOut(layout)] if layout.changed.is_empty()), "{what}: {steps:?}");
    }
}

#[test]
fn only_privileges_changed_so_nothing_is_migrated() {
    for (name, migrate) in
        [("grants on schema m", false), ("event trigger t", false), ("view m.v", true), ("schema c", true)]
    {
        let mut observed = finished();
        inside(&mut observed).objects.remove(name);
        let steps = plan(&intent(), &observed);
        assert!(matches!(steps.as_slice(), [Step::LayOut(layout)] if layout.migrate == migrate), "{name}: {steps:?}");
    }
}

#[test]
fn from_nothing_to_everything() {
    let cluster = Cluster { major: 15, superuser: true, me: "postgres".to_owned(), ..Cluster::default() };
    let steps = plan(&intent(), &Observed { cluster, ..Observed::default() });
    let places: Vec<Place> = steps.iter().map(Step::place).collect();
    let alone = places.iter().position(|place| *place == Place::ServerAlone).unwrap();
    assert_eq!(places.last(), Some(&Place::Workspace));
    assert!(places[..alone].iter().chain(&places[alone + 1..places.len() - 1]).all(|place| *place == Place::Server));
    let sql: String = steps.iter().map(|step| step.sql(&intent())).collect();
    for part in [
        "CREATE ROLE \"ws_1_owner\" NOLOGIN",
        "CREATE ROLE \"ws_1_k_a\" LOGIN NOINHERIT CONNECTION LIMIT 100 PASSWORD 'SCRAM-SHA-256$v'",
        "CREATE ROLE \"ws_1_k_b\" NOLOGIN NOINHERIT",
        "ALTER ROLE \"ws_1_k_b\" SET temp_file_limit = '9kB'",
        "GRANT \"ws_1_k\" TO \"ws_1_k_a\"",
        "CREATE DATABASE \"ws_1\" OWNER \"ws_1_owner\"",
        "REVOKE ALL ON DATABASE \"ws_1\" FROM PUBLIC",
        "GRANT CONNECT ON DATABASE \"ws_1\" TO \"ws_1_k\", \"ws_1_k_a\", \"ws_1_k_b\"",
        "SET LOCAL ROLE \"ws_1_owner\"",
        "SELECT 'wall'",
        "GRANT USAGE ON SCHEMA c TO ws_1_k",
        "SELECT 'trigger'",
    ] {
        assert!(sql.contains(part), "{part} is not in {sql}");
    }
}

#[test]
fn without_superuser_nothing_is_asked_that_only_one_may() {
    let mut observed = finished();
    observed.cluster.superuser = false;
    observed.cluster.open_databases = vec!["postgres".to_owned()];
    inside(&mut observed).functions_open = 120;
    for role in observed.cluster.roles.values_mut() {
        role.settings.clear();
        role.password_known = false;
    }
    let steps = plan(&intent(), &observed);
    assert_eq!(steps, [Step::Join { role: "ws_1_owner".to_owned(), member: "postgres".to_owned() }]);
    let cluster = Cluster { major: 15, me: "p".to_owned(), ..Cluster::default() };
    let steps = plan(&intent(), &Observed { cluster, ..Observed::default() });
    let sql: String = steps.iter().map(|step| step.sql(&intent())).collect();
    assert!(!sql.contains("temp_file_limit") && !sql.contains("SELECT 'trigger'") && !sql.contains("SUPERUSER"));
}

#[test]
fn no_verifier_shows_in_debug() {
    let observed = Observed { record: None, ..Observed::default() };
    let steps = plan(&intent(), &observed);
    assert!(!format!("{:?} {steps:?}", intent()).contains("SCRAM-SHA-256$v"));
}
