//! Nothing of one session reaches another that uses the same connection after it, and a session finds what is its own on
//! whatever connection it gets.

use std::time::Duration;

use portcullis_tests::{
    Options, Stack,
    customer::Credentials,
    raw::Wire,
    script::{hold, words},
    wait::within,
};

const PATIENCE: Duration = Duration::from_secs(20);

async fn login(credentials: &Credentials, parameters: &[(&str, &str)]) -> Wire {
    let mut wire = Wire::negotiate(credentials.port, &credentials.ca_pem).await.unwrap();
    wire.authenticate(credentials, parameters).await.unwrap();
    wire
}

/// What one session does, what another then asks, and what that one hears.
const ROWS: &[(&str, &str, &str, &str)] = &[
    (
        "a cursor WITH HOLD",
        "Q BEGIN\nQ DECLARE c CURSOR WITH HOLD FOR SELECT 'secret'\nQ COMMIT",
        "Q FETCH c",
        "E(34000) ZI ZI",
    ),
    (
        "a cursor WITH HOLD by its portal",
        "Q BEGIN\nQ DECLARE c CURSOR WITH HOLD FOR SELECT 'secret'\nQ COMMIT",
        "E c\nS",
        "E(34000) ZI ZI",
    ),
    (
        "a prepared statement of SQL",
        "Q PREPARE x AS SELECT 'secret'",
        "Q EXECUTE x\nB | x\nE\nS\nQ DEALLOCATE x",
        "E(26000) ZI E(26000) ZI E(26000) ZI ZI",
    ),
    (
        "a prepared statement of the protocol",
        "P x | SELECT 'secret'\nS",
        "B | x\nE\nS\nQ DEALLOCATE x",
        "E(26000) ZI E(26000) ZI ZI",
    ),
    ("the unnamed statement", "P | SELECT 'secret'\nS", "B\nE\nS", "E(26000) ZI ZI"),
    ("a portal", "P | SELECT 'secret' FROM generate_series(1, 3)\nB p\nE p | 1\nS", "E p\nS", "E(34000) ZI ZI"),
    (
        "a sequence's value",
        "Q SELECT nextval('storage.q')",
        "Q SELECT currval('storage.q')\nQ SELECT lastval()",
        "T E(55000) ZI T E(55000) ZI ZI",
    ),
    (
        "a sequence's value behind a default",
        "Q INSERT INTO storage.s (v) VALUES ('x')",
        "Q SELECT lastval()\nQ BEGIN\nQ SELECT lastval()\nQ ROLLBACK\nP | SELECT currval('storage.s_id_seq')\nB\nE\nS",
        "T E(55000) ZI C(BEGIN) ZT T E(55000) ZE C(ROLLBACK) ZI 1 2 E(55000) ZI ZI",
    ),
    (
        "a session that reads only",
        "Q SET default_transaction_read_only = on",
        "Q INSERT INTO storage.t VALUES (1)\nQ DELETE FROM storage.t",
        "C(INSERT 0 1) ZI C(DELETE 1) ZI ZI",
    ),
    (
        "a session's characteristics",
        "Q SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY, ISOLATION LEVEL SERIALIZABLE",
        "Q SHOW transaction_isolation\nQ SHOW transaction_read_only",
        "T D(read committed) C(SHOW) ZI T D(off) C(SHOW) ZI ZI",
    ),
    (
        "an open transaction",
        "Q BEGIN\nQ INSERT INTO storage.t VALUES (1)",
        "Q SELECT count(*) FROM storage.t",
        "T D(0) C(SELECT 1) ZI ZI",
    ),
    ("a failed transaction", "Q BEGIN\nQ SELECT 1/0\nwait E", "Q SELECT 1", "T D(1) C(SELECT 1) ZI ZI"),
    (
        "a timeout that ends everything at once",
        "Q SET statement_timeout = 1",
        "Q SHOW statement_timeout",
        "T D(0) C(SHOW) ZI ZI",
    ),
    (
        "a timeout that ends idle sessions",
        "Q SET idle_session_timeout = 1",
        "Q SHOW idle_session_timeout",
        "T D(0) C(SHOW) ZI ZI",
    ),
    (
        "the order in dates",
        "Q SET datestyle = 'SQL, DMY'",
        "Q SHOW datestyle\nQ SELECT '02/01/2026'::date",
        "T D(ISO, MDY) C(SHOW) ZI T D(2026-02-01) C(SELECT 1) ZI ZI",
    ),
    ("set_config", "Q SELECT set_config('search_path', 'storage', false)", "Q SELECT * FROM s", "E(42P01) ZI ZI"),
    (
        "set_config with a bound value",
        "P | SELECT set_config('extra_float_digits', $1, false)\nB | | 0\nE\nS",
        "Q SHOW extra_float_digits",
        "T D(1) C(SHOW) ZI ZI",
    ),
    (
        "what pg_dump forbids itself",
        "Q SELECT set_config(name, 'view, foreign-table', false) FROM pg_settings WHERE name = 'restrict_nonsystem_relation_kind'",
        "Q SELECT count(*) >= 0 FROM dl_resolved.people",
        "T D(t) C(SELECT 1) ZI ZI",
    ),
    (
        "a half-read answer",
        "Q SELECT repeat('x', 100000) FROM generate_series(1, 1000)\nwait D",
        "Q SELECT 1",
        "T D(1) C(SELECT 1) ZI ZI",
    ),
    (
        "an open pipeline",
        "P | SELECT 1\nB\nE\nH\nwait C",
        "Q SELECT 2\nP | SELECT 3\nB\nE\nS",
        "T D(2) C(SELECT 1) ZI 1 2 D(3) C(SELECT 1) ZI ZI",
    ),
    (
        "a pipeline that has failed",
        "P | SELECT 1/0\nB\nE\nH\nwait E",
        "Q SELECT 2\nP | SELECT 3\nB\nE\nS",
        "T D(2) C(SELECT 1) ZI 1 2 D(3) C(SELECT 1) ZI ZI",
    ),
    (
        "a pipeline that has failed behind a refusal",
        "Q BEGIN\nP | SELECT 1\nB\nE\nP | DROP VIEW dl_resolved.people\nQ SELECT 5\nwait E",
        "Q SELECT 2\nP | SELECT 3\nB\nE\nS",
        "T D(2) C(SELECT 1) ZI 1 2 D(3) C(SELECT 1) ZI ZI",
    ),
];

/// Sends a script and reads only what it waits for.
async fn begin(wire: &mut Wire, script: &str) {
    let waits = script.lines().last().is_some_and(|line| line.starts_with("wait"));
    if !waits {
        hold(wire, script).await.unwrap();
        return;
    }
    for line in script.lines() {
        match line.strip_prefix("wait ") {
            Some(tag) => while [wire.next().await.unwrap().tag] != tag.as_bytes() {},
            None => wire.send(&portcullis_tests::script::bytes(line)).await.unwrap(),
        }
    }
}

#[tokio::test]
async fn nothing_reaches_the_next_session() {
    let stack = Stack::private(Options::default().proxy("pool.size_max", 1)).await;
    let credentials = stack.workspace("storage").await.reveal("customer_db").await;
    let mut setup = Wire::login(&credentials).await;
    for sql in
        ["CREATE TABLE storage.t (id int)", "CREATE TABLE storage.s (id serial, v text)", "CREATE SEQUENCE storage.q"]
    {
        assert!(!words(&setup.query(sql).await).contains("E("), "{sql}");
    }
    let mut wrong = Vec::new();
    for (what, does, asks, hears) in ROWS {
        for stays in [true, false] {
            let mut one = Wire::login(&credentials).await;
            within(PATIENCE, what, begin(&mut one, does)).await;
            // While it is there and holds the connection, others wait in any case.
            let holds = does.contains("HOLD") || does.contains("PREPARE x") || does.contains("nextval");
            let holds = holds || does.contains("$1, false") || does.contains("BEGIN") || does.contains("wait");
            if stays && holds {
                continue;
            }
            let one = stays.then_some(one);
            let mut two = Wire::login(&credentials).await;
            let heard = tokio::time::timeout(PATIENCE, hold(&mut two, asks)).await;
            let heard = heard.unwrap_or_else(|_| Err("a hang".to_owned()));
            if heard.as_deref() != Ok(hears) {
                wrong.push(format!("{what} (stays: {stays}): {heard:?}"));
            }
            if let Some(name) = two.parameters.iter().find(|(name, value)| name == "DateStyle" && value.contains("DMY"))
            {
                wrong.push(format!("{what} (stays: {stays}): was told {name:?}"));
            }
            drop(one);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What the client was told of a setting stays true, whatever connection its statements run on.
#[tokio::test]
async fn what_a_session_was_told_of_its_settings_is_true() {
    let stack = Stack::private(Options::default().proxy("pool.size_max", 1)).await;
    let credentials = stack.workspace("storage").await.reveal("customer_db").await;
    let mut one =
        login(&credentials, &[("application_name", "one"), ("TimeZone", "Asia/Tokyo"), ("DateStyle", "ISO")]).await;
    let mut two =
        login(&credentials, &[("application_name", "two"), ("options", "-c datestyle=German -c work_mem=1MB")]).await;
    let told = |wire: &Wire, name: &str| {
        wire.parameters.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.clone())
    };
    for (own, sql) in [
        (true, "SELECT 1"),
        (false, "SET timezone = 'Europe/Paris'"),
        (true, "SET datestyle = DMY"),
        (false, "RESET datestyle"),
        (true, "BEGIN; SET LOCAL timezone = 'UTC'; COMMIT"),
        (false, "RESET ALL"),
        (true, "DISCARD ALL"),
        (false, "SELECT 1"),
    ] {
        let wire = if own { &mut one } else { &mut two };
        for statement in sql.split("; ") {
            assert!(!words(&wire.query(statement).await).contains("E("), "{sql}");
        }
        for (wire, application) in [(&mut one, "one"), (&mut two, "two")] {
            for (reported, shown) in
                [("TimeZone", "timezone"), ("DateStyle", "datestyle"), ("application_name", "application_name")]
            {
                let row = wire.query(&format!("SHOW {shown}")).await[1].columns().swap_remove(0);
                if told(wire, reported).is_some() {
                    assert_eq!(told(wire, reported), row, "{reported} of {application} after {sql}");
                }
            }
            let names: Vec<_> = wire
                .parameters
                .iter()
                .filter(|(name, value)| name == "application_name" && value != application && !value.is_empty())
                .collect();
            assert!(names.is_empty(), "{application} was told {names:?}");
        }
    }
    assert_eq!(
        one.query("SHOW datestyle").await[1].columns(),
        [Some("ISO, MDY".to_owned())],
        "RESET is to the startup's"
    );
    assert_eq!(two.query("SHOW work_mem").await[1].columns(), [Some("1MB".to_owned())]);
}

#[tokio::test]
async fn a_setting_that_the_server_does_not_take_is_a_clean_refusal() {
    let stack = Stack::shared().await;
    let credentials = stack.workspace("storage").await.reveal("customer_db").await;
    for (name, value, code) in [
        ("TimeZone", "Nowhere/Nothing", "22023"),
        ("DateStyle", "wrong", "22023"),
        ("options", "-c work_mem=lots", "22023"),
        ("options", "-c", "08P01"),
        ("options", "-c=", "08P01"),
    ] {
        let mut wire = Wire::negotiate(credentials.port, &credentials.ca_pem).await.unwrap();
        let answer = within(PATIENCE, value, wire.authenticate(&credentials, &[(name, value)])).await;
        let error = answer.expect_err(value);
        assert!(error.starts_with(code) || error.starts_with("42"), "{name}={value}: {error}");
        assert!(within(PATIENCE, value, wire.until_closed()).await.is_empty(), "{value}: said more");
    }
    assert_eq!(words(&Wire::login(&credentials).await.query("SELECT 1").await), "T D(1) C(SELECT 1) ZI");
}
