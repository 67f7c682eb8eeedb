//! Verdicts are remembered, and whoever operates the gate sees how often that helps.

use portcullis_tests::{
    Options, Stack,
    raw::{Message, Pipeline, Wire, tags},
};

/// Verdicts so far: by text, by shape, judged.
async fn verdicts(stack: &Stack) -> [u64; 3] {
    let page = stack.access.get("/metrics").without_key().send().await.text;
    ["text", "shape", "judge"].map(|from| {
        let series = format!("portcullis_verdicts_total{{from=\"{from}\"}} ");
        let line = page.lines().find_map(|line| line.strip_prefix(&series)).expect(from);
        line.parse().expect("a number")
    })
}

fn refusal(heard: &[Message]) -> [Option<String>; 4] {
    [b'C', b'M', b'D', b'P'].map(|field| heard[0].field(field))
}

#[tokio::test]
async fn a_text_is_judged_once_for_each_workspace() {
    let stack = Stack::private(Options::default()).await;
    let mut wires = Vec::new();
    for _ in 0..2 {
        wires.push(Wire::login(&stack.workspace("storage").await.reveal("customer_db").await).await);
    }
    for wire in &mut wires {
        let before = verdicts(&stack).await;
        for id in 0..20 {
            assert_eq!(tags(&wire.query("SELECT count(*) FROM dl_resolved.people").await), "TDCZ");
            let literal = format!("SELECT count(*) FROM dl_resolved.people WHERE person_id = 'x{id}' AND {id} > 0");
            assert_eq!(tags(&wire.query(&literal).await), "TDCZ");
            let parameter = Pipeline::new().statement("SELECT $1::int + 1", &[Some("1")]).sync().bytes.clone();
            wire.send(&parameter).await.unwrap();
            assert_eq!(tags(&wire.until_ready().await), "12TDCZ");
        }
        let after = verdicts(&stack).await;
        let [text, shape, judged] = [0, 1, 2].map(|at| after[at] - before[at]);
        assert_eq!((text, shape, judged), (38, 19, 3), "what another workspace asked is not known here");
    }
    // A refusal that is remembered says the same.
    let wire = &mut wires[0];
    let text = "SELECT 1; -- ü\n DELETE FROM dl_cache.person_enrichments";
    let (first, before) = (wire.query(text).await, verdicts(&stack).await);
    let again = wire.query(text).await;
    assert_eq!(refusal(&first), refusal(&again));
    assert_eq!(verdicts(&stack).await[0], before[0] + 1);
}
