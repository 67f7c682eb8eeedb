//! Prepared statements of many sessions on few connections.

use std::time::Duration;

use portcullis_tests::{
    Options, Stack,
    raw::{Pipeline, Wire, tags},
    script::{hold, words},
    wait::within,
};

const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_sessions_and_statements_on_two_connections() {
    let stack = Stack::private(Options::default().proxy("pool.size_max", 2)).await;
    let credentials = stack.workspace("storage").await.reveal("customer_db").await;
    let mut tasks = Vec::new();
    for session in 0..20_u32 {
        let credentials = credentials.clone();
        tasks.push(tokio::spawn(async move {
            // Every other session has settings of its own, so that its connections have to be brought to them.
            let mut wire = Wire::negotiate(credentials.port, &credentials.ca_pem).await.unwrap();
            let zone = if session % 2 == 0 { "UTC" } else { "Asia/Tokyo" };
            wire.authenticate(&credentials, &[("TimeZone", zone)]).await.unwrap();
            for name in 0..15_u32 {
                // Names are the same in all sessions; half of the texts are, too.
                let own = if name % 2 == 0 { session } else { 0 };
                let text = format!("SELECT concat('{own}.{name}.', $1::text)");
                let heard = hold(&mut wire, &format!("P s{name} | {text}\nDS s{name}\nS")).await;
                assert_eq!(heard.as_deref(), Ok("1 t T ZI ZI"), "session {session}, s{name}");
            }
            for round in 0..45_u32 {
                let name = (round * 7 + session) % 15;
                let own = if name % 2 == 0 { session } else { 0 };
                let heard = hold(&mut wire, &format!("B | s{name} | {round}\nE\nS")).await;
                assert_eq!(heard, Ok(format!("2 D({own}.{name}.{round}) C(SELECT 1) ZI ZI")), "session {session}");
            }
        }));
    }
    for task in tasks {
        within(PATIENCE, "a session", task).await.unwrap();
    }
}

#[tokio::test]
async fn more_statements_than_a_connection_keeps() {
    let stack =
        Stack::private(Options::default().proxy("pool.size_max", 1).proxy("limits.prepared_statements_max", 400)).await;
    let credentials = stack.workspace("storage").await.reveal("customer_db").await;
    let mut wire = Wire::login(&credentials).await;
    let mut other = Wire::login(&credentials).await;
    let mut prepare = Pipeline::new();
    for i in 0..400 {
        prepare.parse(&format!("s{i}"), &format!("SELECT {i}"));
    }
    let heard = within(PATIENCE, "400 statements", wire.run(prepare.sync())).await;
    assert_eq!(tags(&heard), "1".repeat(400) + "Z");
    // All of them work, again and again, each in its own pipeline and all in one.
    for i in (0..400).step_by(37) {
        let heard = hold(&mut wire, &format!("B | s{i}\nE\nS")).await;
        assert_eq!(heard, Ok(format!("2 D({i}) C(SELECT 1) ZI ZI")));
        other.query("SELECT 1").await;
    }
    let mut all = Pipeline::new();
    for i in 0..400 {
        all.bind("", &format!("s{i}"), &[]).execute("", 0);
    }
    let heard = within(PATIENCE, "all of them at once", wire.run(all.sync())).await;
    assert_eq!(tags(&heard), "2DC".repeat(400) + "Z");
    assert_eq!(heard.iter().filter(|m| m.tag == b'D').nth(399).unwrap().columns(), [Some("399".to_owned())]);
    // One more is one too many, the unnamed one is not; in a transaction it fails the transaction.
    let heard =
        hold(&mut wire, "P more | SELECT 1\nS\nP | SELECT 2\nB\nE\nS\nCS s0\nP more | SELECT 3\nB | more\nE\nS").await;
    assert_eq!(heard.as_deref(), Ok("E(53400) ZI 1 2 D(2) C(SELECT 1) ZI 3 1 2 D(3) C(SELECT 1) ZI ZI"));
    let heard = hold(&mut wire, "Q BEGIN\nP again | SELECT 1\nS\nQ ROLLBACK").await;
    assert_eq!(heard.as_deref(), Ok("C(BEGIN) ZT E(53400) ZE C(ROLLBACK) ZI ZI"));
    // The server has never held more than a connection keeps.
    wire.query("BEGIN").await;
    let mut many = Pipeline::new();
    for i in 0..400 {
        many.bind("", &format!("s{}", (i + 1).min(399)), &[]);
    }
    assert!(tags(&within(PATIENCE, "binds in a transaction", wire.run(many.sync())).await).ends_with("2Z"));
    wire.query("COMMIT").await;
}

/// The result type of a statement changes under it, through the gate or around it: whoever runs it gets the new one, under
/// whatever name it is prepared, and nobody hears of it (P29). Only what has happened already cannot be taken back.
#[tokio::test]
async fn a_table_changes_under_prepared_statements() {
    let stack = Stack::private(Options::default().proxy("pool.size_max", 1)).await;
    let workspace = stack.workspace("storage").await;
    let credentials = workspace.reveal("customer_db").await;
    let mut owner = Wire::login(&credentials).await;
    owner.query("CREATE TABLE storage.t (id int)").await;
    owner.query("INSERT INTO storage.t VALUES (1)").await;
    let superuser = workspace.superuser().await;
    let unnamed = "P | SELECT * FROM storage.t\nB\nE\nS\nwait Z";
    for (through_the_gate, change, row) in [
        (true, "ALTER TABLE storage.t ADD COLUMN a int", "1,NULL"),
        (false, "ALTER TABLE storage.t ADD COLUMN b int", "1,NULL,NULL"),
        (false, "ALTER TABLE storage.t ADD COLUMN c int", "1,NULL,NULL,NULL"),
    ] {
        let mut has = Wire::login(&credentials).await;
        hold(&mut has, "P s | SELECT * FROM storage.t\nB | s\nE\nS").await.unwrap();
        for _ in 0..3 {
            hold(&mut has, unnamed).await.unwrap();
        }
        match through_the_gate {
            true => drop(owner.query(change).await),
            false => superuser.batch_execute(change).await.unwrap(),
        }
        let (mut fresh, row) = (Wire::login(&credentials).await, format!("D({row}) C(SELECT 1) ZI ZI"));
        for (who, is_fresh, script, expected) in [
            ("an unnamed statement", false, unnamed, format!("1 2 {row}")),
            (
                "a fresh statement",
                true,
                "P s | SELECT * FROM storage.t\nDS s\nB | s\nE\nS\nwait Z",
                format!("1 t T 2 {row}"),
            ),
            ("one from before", false, "B | s\nE\nS\nwait Z", format!("2 {row}")),
            ("an unnamed one again", false, unnamed, format!("1 2 {row}")),
        ] {
            let wire = if is_fresh { &mut fresh } else { &mut has };
            let heard = within(PATIENCE, who, hold(wire, script)).await;
            assert_eq!(heard, Ok(expected), "{who}, {change}");
        }
    }
    // In a transaction that is on its way it is the transaction's failure, once.
    let mut wire = Wire::login(&credentials).await;
    for _ in 0..3 {
        hold(&mut wire, unnamed).await.unwrap();
    }
    wire.query("BEGIN").await;
    let change = "ALTER TABLE storage.t ADD COLUMN d int";
    superuser.batch_execute(change).await.unwrap();
    let heard = hold(&mut wire, "P | SELECT * FROM storage.t\nB\nE\nS\nwait Z\nQ ROLLBACK\nwait Z").await;
    assert_eq!(heard.as_deref(), Ok("1 E(0A000) ZE C(ROLLBACK) ZI ZI"));
    let heard = hold(&mut wire, unnamed).await;
    assert_eq!(heard.as_deref(), Ok("1 2 D(1,NULL,NULL,NULL,NULL) C(SELECT 1) ZI ZI"));
    // A change in the session's own transaction, and in the pipeline itself, is no surprise at all.
    let script = "Q BEGIN\nP | SELECT * FROM storage.t\nB\nE\nQ ALTER TABLE storage.t DROP COLUMN d\n\
                  P | SELECT * FROM storage.t\nB\nE\nS\nQ ROLLBACK\nP | SELECT * FROM storage.t\nB\nE\nS";
    let heard = hold(&mut wire, script).await;
    let row = "D(1,NULL,NULL,NULL,NULL) C(SELECT 1)";
    let expected = format!(
        "C(BEGIN) ZT 1 2 {row} C(ALTER TABLE) ZT 1 2 D(1,NULL,NULL,NULL) C(SELECT 1) ZT C(ROLLBACK) ZI 1 2 {row} ZI ZI"
    );
    assert_eq!(heard, Ok(expected));
}

/// The same text means another table under another search path, also on a connection that both sessions use.
#[tokio::test]
async fn the_same_text_under_another_search_path() {
    let stack = Stack::private(Options::default().proxy("pool.size_max", 1)).await;
    let workspace = stack.workspace("storage").await;
    let credentials = workspace.reveal("customer_db").await;
    let superuser = workspace.superuser().await;
    let tables = "CREATE TABLE storage.things (a int); INSERT INTO storage.things VALUES (1); \
                  CREATE TABLE dl_resolved.things (b text); INSERT INTO dl_resolved.things VALUES ('resolved'); \
                  GRANT SELECT ON storage.things, dl_resolved.things TO PUBLIC";
    superuser.batch_execute(tables).await.unwrap();
    let (mut one, mut two) = (Wire::login(&credentials).await, Wire::login(&credentials).await);
    assert_eq!(tags(&one.query("SET search_path = storage").await), "CZ");
    assert_eq!(tags(&two.query("SET search_path = dl_resolved").await), "CZ");
    for name in ["", "s"] {
        for round in 0..4 {
            for (wire, row) in [(&mut one, "1"), (&mut two, "resolved")] {
                let close = if round > 0 { format!("CS {name}\n") } else { String::new() };
                let script = format!("{close}P {name} | SELECT * FROM things\nB | {name}\nE\nS");
                let heard = hold(wire, &script).await.map(|heard| heard.trim_start_matches("3 ").to_owned());
                assert_eq!(heard, Ok(format!("1 2 D({row}) C(SELECT 1) ZI ZI")), "{name:?}, round {round}");
            }
        }
    }
    // Also for the time of a transaction.
    let local = "Q BEGIN\nQ SET LOCAL search_path = dl_resolved\nP | SELECT * FROM things\nB\nE\nS\nQ COMMIT\n\
                 P | SELECT * FROM things\nB\nE\nS";
    let heard = hold(&mut one, local).await;
    let expected = "C(BEGIN) ZT C(SET) ZT 1 2 D(resolved) C(SELECT 1) ZT C(COMMIT) ZI 1 2 D(1) C(SELECT 1) ZI ZI";
    assert_eq!(heard.as_deref(), Ok(expected));
}

/// What the server was asked to parse, by its own log.
fn parsed(log: &str, mark: &str) -> (usize, usize) {
    let parses = || log.lines().filter(|line| line.contains(" parse ") && line.contains(mark));
    let unnamed = parses().filter(|line| line.contains(" parse <unnamed>: ")).count();
    (unnamed, parses().count() - unnamed)
}

/// An unnamed statement that comes again is parsed once more, under a name, and then no more; one that does not is not
/// kept in the server's memory.
#[tokio::test]
async fn an_unnamed_statement_that_comes_again_is_parsed_no_more() {
    let mut stack = Stack::private(Options::default().proxy("pool.size_max", 1)).await;
    let settings = [("log_min_duration_statement", "0")];
    stack.cluster().reload(&settings, "host all all 127.0.0.1/32 scram-sha-256").await;
    let credentials = stack.workspace("storage").await.reveal("customer_db").await;
    let (mut wire, client) = (Wire::login(&credentials).await, credentials.connect().await);
    for round in 0..20_i32 {
        let script = format!("P | SELECT $1::int + 1 AS mark_a\nB | | {round}\nDP\nE\nS");
        let heard = hold(&mut wire, &script).await;
        assert_eq!(heard, Ok(format!("1 2 T D({}) C(SELECT 1) ZI ZI", round + 1)));
        // With the types of the parameters given, it is another statement.
        let types = [(&round as &(dyn tokio_postgres::types::ToSql + Sync), tokio_postgres::types::Type::INT4)];
        let rows = client.query_typed("SELECT $1 + 1 AS mark_b", &types).await.unwrap();
        assert_eq!(rows[0].get::<_, i32>(0), round + 1);
        let heard = hold(&mut wire, &format!("P | SELECT {round} AS mark_c\nB\nE\nS")).await;
        assert_eq!(heard, Ok(format!("1 2 D({round}) C(SELECT 1) ZI ZI")));
    }
    let log = stack.log("postgres");
    for (mark, expected) in [("mark_a", (1, 1)), ("mark_b", (1, 1)), ("mark_c", (20, 0))] {
        assert_eq!(parsed(&log, mark), expected, "{mark}");
    }
    let executed = log.lines().filter(|line| line.contains(" execute ") && line.contains("mark_a")).count();
    assert_eq!(executed, 20);
    // What a session says is an error of its own statement, kept or not; a dropped table is gone for everybody.
    wire.query("CREATE TABLE storage.gone (id int)").await;
    for _ in 0..3 {
        let heard = hold(&mut wire, "P | SELECT * FROM storage.gone\nB\nE\nS").await;
        assert_eq!(heard.as_deref(), Ok("1 2 C(SELECT 0) ZI ZI"));
    }
    wire.query("DROP TABLE storage.gone").await;
    for _ in 0..3 {
        let heard = hold(&mut wire, "P | SELECT * FROM storage.gone\nB\nE\nS").await;
        assert_eq!(heard.as_deref(), Ok("E(42P01) ZI ZI"));
    }
    // Closing a portal closes no statement, and leaving in the middle leaves nothing behind (P29).
    let heard = hold(&mut wire, "P s | SELECT 7\nB p | s\nCP p\nB p | s\nE p\nCP p\nS\nB | s\nE\nS").await;
    assert_eq!(heard.as_deref(), Ok("1 2 3 2 D(7) C(SELECT 1) 3 ZI 2 D(7) C(SELECT 1) ZI ZI"));
    for last in ["P | SELECT $1::int + 1 AS mark_a", "B | | 1", "E"] {
        let mut leaves = Wire::login(&credentials).await;
        for line in ["P | SELECT $1::int + 1 AS mark_a", "B | | 1", "E"] {
            leaves.send(&portcullis_tests::script::bytes(line)).await.unwrap();
            if line == last {
                break;
            }
        }
        drop(leaves);
        let heard = within(PATIENCE, last, hold(&mut wire, "P | SELECT $1::int + 1 AS mark_a\nB | | 1\nE\nS")).await;
        assert_eq!(heard.as_deref(), Ok("1 2 D(2) C(SELECT 1) ZI ZI"), "{last}");
    }
}

/// ODBC uses a name again behind an error without waiting for it: the name is free, since its first use has failed (P42).
#[tokio::test]
async fn a_name_is_used_again_behind_an_error() {
    let stack = Stack::shared().await;
    let workspace = stack.workspace("storage").await;
    let credentials = workspace.reveal("customer_db").await;
    for (script, expected) in [
        ("P s | SELECT * FROM storage.none\nS\nP s | SELECT 2\nB | s\nE\nS", "E(42P01) ZI 1 2 D(2) C(SELECT 1) ZI ZI"),
        ("P s | SELECT 1/0\nB | s\nE\nS\nP s | SELECT 2\nS", "1 E(22012) ZI E(42P05) ZI ZI"),
        (
            "P a | SELECT 1/0\nB | a\nE\nP s | SELECT 1\nS\nP s | SELECT 2\nB | s\nE\nS",
            "1 E(22012) ZI 1 2 D(2) C(SELECT 1) ZI ZI",
        ),
        (
            "Q PREPARE s AS SELECT * FROM storage.none\nP s | SELECT 2\nB | s\nE\nS",
            "E(42P01) ZI 1 2 D(2) C(SELECT 1) ZI ZI",
        ),
        ("P s | SELECT 1\nS\nP s | SELECT 2\nS", "1 ZI E(42P05) ZI ZI"),
    ] {
        let mut direct = workspace.backend_wire("customer_db").await;
        let as_postgresql = within(PATIENCE, script, hold(&mut direct, script)).await;
        assert_eq!(as_postgresql.as_deref(), Ok(expected), "PostgreSQL itself: {script}");
        let heard = within(PATIENCE, script, hold(&mut Wire::login(&credentials).await, script)).await;
        assert_eq!(heard.as_deref(), Ok(expected), "{script}");
    }
}

#[tokio::test]
async fn names_of_statements_and_portals() {
    let stack = Stack::shared().await;
    let credentials = stack.workspace("storage").await.reveal("customer_db").await;
    let mut wire = Wire::login(&credentials).await;
    let (fits, long) = ("n".repeat(63), "n".repeat(64));
    for (what, script, expected) in [
        (
            "63 bytes",
            format!("P {fits} | SELECT 1\nB {fits} | {fits}\nDS {fits}\nE {fits}\nCP {fits}\nCS {fits}\nS"),
            "1 2 t T D(1) C(SELECT 1) 3 3 ZI ZI",
        ),
        ("64 bytes, Parse", format!("P {long} | SELECT 1\nS"), "E(42622) ZI ZI"),
        ("64 bytes, Bind", format!("P | SELECT 1\nB {long}\nS"), "1 E(42622) ZI ZI"),
        ("64 bytes, Execute", format!("E {long}\nS"), "E(42622) ZI ZI"),
        (
            "the proxy's own names",
            "P _portcullis_1 | SELECT 1\nB | _portcullis_1\nE\nS".to_owned(),
            "1 2 D(1) C(SELECT 1) ZI ZI",
        ),
        (
            "the proxy's own names, not this session's",
            "B | _portcullis_2\nE\nS\nDS _portcullis_2\nS".to_owned(),
            "E(26000) ZI E(26000) ZI ZI",
        ),
        (
            "names with quotes and spaces",
            "P a\"b'c d | SELECT 1\nB p\"q'r s | a\"b'c d\nE p\"q'r s\nS".to_owned(),
            "1 2 D(1) C(SELECT 1) ZI ZI",
        ),
    ] {
        let heard = within(PATIENCE, what, hold(&mut wire, &script)).await;
        assert_eq!(heard.as_deref(), Ok(expected), "{what}");
    }
    for sql in ["EXECUTE _portcullis_1", "DEALLOCATE _portcullis_1", "PREPARE _portcullis_9 AS SELECT 1"] {
        let heard = words(&wire.query(sql).await);
        assert!(heard.starts_with("E(") || sql.starts_with("DEALLOCATE"), "{sql}: {heard}");
    }
}
