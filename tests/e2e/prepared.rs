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

/// The result type of a statement changes under it: whoever prepares it anew gets the new one, whoever has it prepared
/// hears what PostgreSQL says, once, and goes on.
#[tokio::test]
async fn a_table_changes_under_prepared_statements() {
    let stack = Stack::private(Options::default().proxy("pool.size_max", 1)).await;
    let workspace = stack.workspace("storage").await;
    let credentials = workspace.reveal("customer_db").await;
    let mut owner = Wire::login(&credentials).await;
    owner.query("CREATE TABLE storage.t (id int)").await;
    owner.query("INSERT INTO storage.t VALUES (1)").await;
    let superuser = workspace.superuser().await;
    for (way, change, row) in [
        ("through the gate", "ALTER TABLE storage.t ADD COLUMN a int", "1,NULL"),
        ("around the gate", "ALTER TABLE storage.t ADD COLUMN b int", "1,NULL,NULL"),
    ] {
        let mut has = Wire::login(&credentials).await;
        hold(&mut has, "P s | SELECT * FROM storage.t\nB | s\nE\nS").await.unwrap();
        match way {
            "through the gate" => drop(owner.query(change).await),
            _ => superuser.batch_execute(change).await.unwrap(),
        }
        let mut fresh = Wire::login(&credentials).await;
        let script = "P s | SELECT * FROM storage.t\nDS s\nB | s\nE\nS";
        let expected = format!("1 t T 2 D({row}) C(SELECT 1) ZI ZI");
        let mut heard = hold(&mut fresh, script).await.unwrap();
        if way != "through the gate" && heard != expected {
            // The gate cannot know of it before the server says so, but that must be once for all.
            assert_eq!(heard, "1 t E(0A000) ZI ZI", "{way}");
            heard = hold(&mut fresh, script.replace("P s", "CS s\nP s").as_str()).await.unwrap();
            assert_eq!(heard, format!("3 {expected}"), "{way}, again");
            heard = hold(&mut Wire::login(&credentials).await, script).await.unwrap();
        }
        assert_eq!(heard, expected, "{way}");
        let first = hold(&mut has, "B | s\nE\nS").await.unwrap();
        let second = hold(&mut has, "B | s\nE\nS").await.unwrap();
        let works = format!("2 D({row}) C(SELECT 1) ZI ZI");
        assert!(first == works || first == "E(0A000) ZI ZI", "{way}: {first}");
        assert_eq!(second, works, "{way}");
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
