//! What real clients send, on connect, to introspect, in use and to reset, replayed through the gate statement by
//! statement in the protocol noted: each passes, or is refused by the rule that the corpus notes beside it, and none
//! breaks the session. (The corpus also says why a refusal is right.)

use std::{collections::BTreeMap, time::Duration};

use portcullis_tests::{
    Stack,
    customer::Credentials,
    programs,
    raw::{Message, Pipeline, Wire},
    wait::within,
};
use serde::Deserialize;

#[derive(Deserialize)]
struct Row {
    client: String,
    protocol: String,
    sql: String,
    customer_db: String,
}

fn corpus() -> BTreeMap<String, Vec<Row>> {
    let path = programs::root().join("policy/corpus/clients.jsonl");
    let text = std::fs::read_to_string(path).expect("the corpus reads");
    let mut clients: BTreeMap<String, Vec<Row>> = BTreeMap::new();
    for line in text.lines() {
        let row: Row = serde_json::from_str(line).expect("a row");
        clients.entry(row.client.clone()).or_default().push(row);
    }
    clients
}

/// A session that gives up on what runs for long: the verdict is what counts here.
async fn login(credentials: &Credentials) -> Wire {
    let mut wire = Wire::negotiate(credentials.port, &credentials.ca_pem).await.expect("TLS");
    wire.authenticate(credentials, &[("options", "-c statement_timeout=5s")]).await.expect("logs in");
    wire
}

/// Runs one statement as a driver does and gives everything that came back. A COPY FROM is failed by the client.
async fn replay(wire: &mut Wire, row: &Row) -> Vec<Message> {
    if row.protocol == "simple" {
        wire.send(&Pipeline::new().query(&row.sql).bytes).await.expect("sent");
        return until_ready(wire, false).await;
    }
    let mut messages = wire.run(Pipeline::new().parse("", &row.sql).describe(b'S', "").sync()).await;
    let parameters = messages.iter().find(|message| message.tag == b't');
    let Some(count) = parameters.map(|message| usize::from(u16::from_be_bytes([message.body[0], message.body[1]])))
    else {
        return messages;
    };
    let mut pipeline = Pipeline::new();
    pipeline.bind("", "", &vec![None; count]).execute("", 0).sync();
    wire.send(&pipeline.bytes).await.expect("sent");
    messages.extend(until_ready(wire, true).await);
    messages
}

async fn until_ready(wire: &mut Wire, extended: bool) -> Vec<Message> {
    let mut messages = Vec::new();
    loop {
        let message =
            wire.next().await.unwrap_or_else(|error| panic!("the session broke ({error}) after {messages:?}"));
        if message.tag == b'G' {
            let mut fail = Pipeline::new();
            fail.copy_fail("a replay has no data");
            if extended {
                fail.sync();
            }
            wire.send(&fail.bytes).await.expect("sent");
        }
        let done = message.tag == b'Z';
        messages.push(message);
        if done {
            return messages;
        }
    }
}

/// The rule that an answer of the gate names, or `allow`.
fn outcome(messages: &[Message]) -> String {
    let detail = messages.iter().filter(|message| message.tag == b'E').find_map(|message| message.field(b'D'));
    let rule = detail.as_deref().and_then(|detail| detail.split_once("Rule ")).map(|(_, rest)| rest);
    let rule = rule.and_then(|rest| rest.split([' ', ':', ',', ';', '\n']).next());
    rule.map_or_else(|| "allow".to_owned(), |rule| rule.trim_end_matches('.').to_owned())
}

#[tokio::test]
async fn every_client_gets_what_the_corpus_says() {
    let workspace = Stack::shared().await.filled().await;
    let credentials = workspace.reveal("customer_db").await;
    let mut wrong = Vec::new();
    let mut count = 0;
    for (client, rows) in corpus() {
        let mut wire = login(&credentials).await;
        for row in &rows {
            count += 1;
            let what = format!("{client}: {}", row.sql);
            let messages = within(Duration::from_secs(30), &what, replay(&mut wire, row)).await;
            let got = outcome(&messages);
            if got != row.customer_db {
                let said: Vec<_> =
                    messages.iter().filter(|message| message.tag == b'E').map(|m| m.field(b'M')).collect();
                wrong.push(format!(
                    "{client} ({}): {got}, not {}: {}\n    {said:?}",
                    row.protocol, row.customer_db, row.sql
                ));
            }
        }
        // Whatever state it is in, the session still answers.
        wire.query("ROLLBACK").await;
        assert_eq!(outcome(&wire.query("SELECT 1").await), "allow", "{client}");
    }
    assert!(count > 1000, "{count} statements");
    assert!(wrong.is_empty(), "{} of {count}:\n{}", wrong.len(), wrong.join("\n"));
}
