//! Sessions that share connections: prepared statements follow their session, nothing of one session is seen by another.

use portcullis_tests::{
    Options, Stack,
    raw::{Pipeline, Wire, tags},
    script::hold,
};

/// A stack in which all sessions of a workspace share one upstream connection.
async fn one_connection() -> Stack {
    Stack::private(Options::default().proxy("pool.size_max", 1)).await
}

fn first_value(messages: &[portcullis_tests::raw::Message]) -> Option<String> {
    messages.iter().find(|message| message.tag == b'D').and_then(|row| row.columns().swap_remove(0))
}

#[tokio::test]
async fn settings_do_not_leak() {
    let stack = one_connection().await;
    let credentials = stack.workspace("storage").await.reveal("customer_db").await;
    let mut one = Wire::login(&credentials).await;
    let mut two = Wire::login(&credentials).await;
    for (setting, value) in [
        ("application_name", "one"),
        ("statement_timeout", "12345ms"),
        ("timezone", "Asia/Tokyo"),
        ("datestyle", "SQL, DMY"),
        ("search_path", "storage"),
        ("default_transaction_read_only", "on"),
        ("extra_float_digits", "0"),
        ("bytea_output", "escape"),
    ] {
        let show = format!("SHOW {setting}");
        let before = first_value(&two.query(&show).await);
        let set = one.query(&format!("SET {setting} = '{value}'").replace("'SQL, DMY'", "SQL, DMY")).await;
        assert!(!tags(&set).contains('E'), "SET {setting}: {set:?}");
        assert_eq!(first_value(&two.query(&show).await), before, "{setting} reached another session");
        assert_ne!(first_value(&one.query(&show).await), before, "{setting} was lost");
        one.query(&format!("RESET {setting}")).await;
        assert_eq!(first_value(&one.query(&show).await), before, "RESET {setting}");
    }
}

#[tokio::test]
async fn settings_follow_transactions() {
    let stack = one_connection().await;
    let credentials = stack.workspace("storage").await.reveal("customer_db").await;
    let mut one = Wire::login(&credentials).await;
    let mut two = Wire::login(&credentials).await;
    let utc = first_value(&one.query("SHOW timezone").await);
    for (script, kept) in [
        (&["BEGIN", "SET timezone = 'Asia/Tokyo'", "ROLLBACK"][..], false),
        (&["BEGIN", "SET LOCAL timezone = 'Asia/Tokyo'", "COMMIT"], false),
        (&["BEGIN", "SAVEPOINT s", "SET timezone = 'Asia/Tokyo'", "ROLLBACK TO s", "COMMIT"], false),
        (&["SELECT set_config('timezone', 'Asia/Tokyo', false)"], true),
        (&["RESET timezone", "BEGIN", "SET timezone = 'Asia/Tokyo'", "COMMIT"], true),
        (&["DISCARD ALL"], false),
        (&["SET timezone = 'Asia/Tokyo'", "RESET ALL"], false),
    ] {
        for statement in script {
            let messages = one.query(statement).await;
            assert!(!tags(&messages).contains('E'), "{statement}: {messages:?}");
        }
        assert_eq!(first_value(&two.query("SHOW timezone").await), utc, "{script:?} reached another session");
        let mine = first_value(&one.query("SHOW timezone").await);
        assert_eq!(mine.as_deref() == Some("Asia/Tokyo"), kept, "{script:?}: {mine:?}");
    }
}

#[tokio::test]
async fn prepared_statements_follow_their_session() {
    let stack = one_connection().await;
    let credentials = stack.workspace("storage").await.reveal("customer_db").await;
    let mut one = Wire::login(&credentials).await;
    let mut two = Wire::login(&credentials).await;
    for (wire, sql) in [(&mut one, "SELECT 'one' || $1::text"), (&mut two, "SELECT 'two' || $1::text")] {
        let messages = wire.run(Pipeline::new().parse("same", sql).describe(b'S', "same").sync()).await;
        assert_eq!(tags(&messages), "1tTZ", "{messages:?}");
    }
    for round in ["1", "2", "3"] {
        for (wire, name) in [(&mut one, "one"), (&mut two, "two")] {
            let messages = wire.run(Pipeline::new().bind("", "same", &[Some(round)]).execute("", 0).sync()).await;
            assert_eq!(tags(&messages), "2DCZ", "{messages:?}");
            assert_eq!(first_value(&messages), Some(format!("{name}{round}")));
        }
    }
    // Closed in one session, alive in the other; closing what is not there is no error.
    assert_eq!(tags(&one.run(Pipeline::new().close(b'S', "same").close(b'S', "never").sync()).await), "33Z");
    let gone = one.run(Pipeline::new().bind("", "same", &[Some("x")]).execute("", 0).sync()).await;
    assert_eq!(tags(&gone), "EZ", "{gone:?}");
    assert_eq!(gone[0].field(b'C').as_deref(), Some("26000"));
    let messages = two.run(Pipeline::new().bind("", "same", &[Some("x")]).execute("", 0).sync()).await;
    assert_eq!(tags(&messages), "2DCZ", "{messages:?}");
    // A name in use is in use; DISCARD ALL and DEALLOCATE ALL free this session's names alone.
    let messages = two.run(Pipeline::new().parse("same", "SELECT 3").sync()).await;
    assert_eq!(messages[0].field(b'C').as_deref(), Some("42P05"), "{messages:?}");
    for discard in ["DISCARD ALL", "DEALLOCATE ALL"] {
        one.run(Pipeline::new().parse("mine", "SELECT 1").sync()).await;
        let messages = one.query(discard).await;
        assert_eq!(tags(&messages), "CZ", "{discard}: {messages:?}");
        let messages = one.run(Pipeline::new().bind("", "mine", &[]).execute("", 0).sync()).await;
        assert_eq!(messages[0].field(b'C').as_deref(), Some("26000"), "{discard}: {messages:?}");
        let messages = two.run(Pipeline::new().bind("", "same", &[Some("x")]).execute("", 0).sync()).await;
        assert_eq!(tags(&messages), "2DCZ", "{messages:?}");
    }
}

#[tokio::test]
async fn sql_statements_and_cursors_are_private() {
    let stack = Stack::private(Options::default().proxy("pool.size_max", 2)).await;
    let credentials = stack.workspace("storage").await.reveal("customer_db").await;
    let mut one = Wire::login(&credentials).await;
    assert_eq!(tags(&one.query("PREPARE mine AS SELECT 'secret'").await), "CZ");
    assert_eq!(first_value(&one.query("EXECUTE mine").await).as_deref(), Some("secret"));
    one.query("BEGIN").await;
    let held = one.query("DECLARE held CURSOR WITH HOLD FOR SELECT 'secret'").await;
    assert_eq!(tags(&held), "CZ", "{held:?}");
    one.query("COMMIT").await;
    let mut two = Wire::login(&credentials).await;
    assert_eq!(two.query("EXECUTE mine").await[0].field(b'C').as_deref(), Some("26000"));
    assert_eq!(two.query("FETCH ALL FROM held").await[0].field(b'C').as_deref(), Some("34000"));
    assert_eq!(first_value(&one.query("FETCH ALL FROM held").await).as_deref(), Some("secret"));
    // The session ends; whoever gets its connection next finds nothing.
    drop(one);
    for _ in 0..10 {
        let mut next = Wire::login(&credentials).await;
        assert_eq!(next.query("EXECUTE mine").await[0].field(b'C').as_deref(), Some("26000"));
        assert_eq!(next.query("FETCH ALL FROM held").await[0].field(b'C').as_deref(), Some("34000"));
    }
}

/// Session pooling by policy: what a session leaves on its connection is there for its next statement, pinned or not, in a
/// transaction or not; when it ends all of it is gone, and the connection serves the next session.
#[tokio::test]
async fn a_policys_sessions_keep_their_connection() {
    let stack = Stack::private(Options::default().proxy("pool.size_max", 1)).await;
    let workspace = stack.workspace("storage").await;
    let credentials = workspace.reveal("customer_db").await;
    workspace.set_policy(&[("primary = true\n", "primary = true\npooling = \"session\"\n")]).await;
    let (role, _) = workspace.backend_role("customer_db").await;
    let sequence = format!("CREATE SEQUENCE storage.q; ALTER SEQUENCE storage.q OWNER TO {role}");
    let script = "Q SET timezone = 'Asia/Tokyo'\nP mine | SELECT 'prepared'\nS\nQ PREPARE sql AS SELECT 'by SQL'\n\
                  Q SELECT nextval('storage.q')\nQ BEGIN\n\
                  Q DECLARE held CURSOR WITH HOLD FOR SELECT 'held'\nQ COMMIT";
    let asks = "Q SHOW timezone\nB | mine\nE\nS\nQ EXECUTE sql\nQ SELECT currval('storage.q')\nQ FETCH held";
    stack.access.superuser(&credentials.database).await.batch_execute(&sequence).await.unwrap();
    let mut pids = Vec::new();
    for round in 0..2 {
        let mut wire = Wire::login(&credentials).await;
        let before = hold(&mut wire, asks).await.unwrap();
        let nothing = "D(Etc/UTC) C(SHOW) ZI E(26000) ZI E(26000) ZI T E(55000) ZI E(34000) ZI ZI";
        let nothing = [nothing.to_owned(), nothing.replace("Etc/", "")].map(|text| format!("T {text}"));
        assert!(nothing.contains(&before), "round {round}: {before}");
        let did = hold(&mut wire, script).await.unwrap();
        assert!(!did.contains("E("), "round {round}: {did}");
        for held in ["D(held) C(FETCH 1)", "C(FETCH 0)"] {
            let heard = hold(&mut wire, asks).await.unwrap();
            let expected = format!(
                "T D(Asia/Tokyo) C(SHOW) ZI 2 D(prepared) C(SELECT 1) ZI T D(by SQL) C(SELECT 1) ZI \
                 T D({}) C(SELECT 1) ZI T {held} ZI ZI",
                round + 1
            );
            assert_eq!(heard, expected, "round {round}");
        }
        pids.push(first_value(&wire.query("SELECT pg_backend_pid()").await).unwrap());
        assert_eq!(first_value(&wire.query("SELECT pg_backend_pid()").await).as_ref(), pids.last());
    }
    assert_eq!(pids[0], pids[1], "the connection was cleaned and used again");
}
