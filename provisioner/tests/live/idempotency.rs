//! D13: a repeated `Idempotency-Key` gets the first answer, whichever sidecar it reaches.

use futures_util::future::join_all;
use jiff::{SignedDuration, Timestamp};
use portcullis_catalog::{Claimed, KeyedRequest};
use portcullis_tests::cluster::{Cluster, SMALL};

use crate::fixture::{INGESTION, Sidecar};
use crate::http::Answer;

async fn provision(sidecar: &Sidecar, workspace: &str, keys: &[&str]) -> Answer {
    let bearer = format!("Bearer {}", sidecar.key);
    let mut headers = vec![("authorization", &*bearer), ("x-workspace", workspace)];
    headers.extend(keys.iter().map(|key| ("idempotency-key", *key)));
    sidecar.call("POST", &format!("{INGESTION}/provision"), &headers, "").await
}

fn is_replayed(answer: &Answer) -> bool {
    answer.headers.contains_key("idempotent-replayed")
}

#[tokio::test]
async fn d13_a_repeat_gets_the_first_answer_from_every_sidecar() {
    let sidecar = Sidecar::start().await;
    let other = Sidecar::again(sidecar.home.clone(), sidecar.catalog.clone(), sidecar.cluster, "postgres").await;
    sidecar.record("acme", "storage").await;
    let first = provision(&sidecar, "acme", &["k1"]).await;
    assert_eq!(first.expect(201)["created"], true);
    assert!(!is_replayed(&first));
    for sidecar in [&sidecar, &other] {
        let again = provision(sidecar, "acme", &["k1"]).await;
        assert_eq!((again.status, &again.text), (201, &first.text));
        assert!(is_replayed(&again));
        assert_eq!(again.headers["content-type"], "application/json");
    }
    // Another key is another request, and none is none.
    for keys in [&["k2"][..], &[]] {
        let fresh = provision(&sidecar, "acme", keys).await;
        assert_eq!(fresh.expect(200)["created"], false);
        assert!(!is_replayed(&fresh));
    }
}

#[tokio::test]
async fn d13_a_key_is_for_one_request_of_one_caller() {
    let sidecar = Sidecar::start().await;
    let workspace = sidecar.record("acme", "storage").await;
    sidecar.record("umbrella", "storage").await;
    provision(&sidecar, "acme", &["k"]).await.expect(201);
    let refused = provision(&sidecar, "umbrella", &["k"]).await.refused(422, "invalid");
    assert!(refused["error"].as_str().unwrap().contains("another request"), "{refused}");
    assert_eq!(sidecar.workspace("umbrella").await.plane.status.as_str(), "provisioning", "nothing was done");

    let bound = sidecar.key(&["admin"], Some(&workspace.id)).await;
    let headers = [("authorization", &*format!("Bearer {bound}")), ("idempotency-key", "k")];
    let theirs = sidecar.call("POST", &format!("{INGESTION}/provision"), &headers, "").await;
    assert_eq!(theirs.expect(200)["created"], false);
    assert!(!is_replayed(&theirs), "another caller's key of the same text");
}

#[tokio::test]
async fn d13_keys_that_are_none_are_refused() {
    let sidecar = Sidecar::start().await;
    sidecar.record("acme", "storage").await;
    let long = "k".repeat(256);
    for keys in [&[""][..], &["  "], &[&long], &["a", "b"]] {
        provision(&sidecar, "acme", keys).await.refused(400, "bad_request");
    }
    provision(&sidecar, "acme", &[&long[1..]]).await.expect(201);
}

#[tokio::test]
async fn d13_what_failed_may_be_tried_again_under_its_key() {
    let cluster: &'static Cluster = Box::leak(Box::new(Cluster::start(SMALL)));
    let sidecar = Sidecar::on(cluster, "postgres").await;
    sidecar.record("acme", "storage").await;
    cluster.kill();
    provision(&sidecar, "acme", &["k"]).await.refused(503, "unavailable");
    cluster.restart().await;
    assert_eq!(provision(&sidecar, "acme", &["k"]).await.expect(201)["created"], true);
}

#[tokio::test]
async fn d13_of_many_at_once_one_does_it() {
    let sidecar = Sidecar::start().await;
    sidecar.record("acme", "storage").await;
    let answers = join_all((0..8).map(|_| provision(&sidecar, "acme", &["k"]))).await;
    for answer in &answers {
        match answer.status {
            201 => assert_eq!(answer.json()["created"], true),
            _ => drop(answer.refused(409, "conflict")),
        }
    }
    let did = answers.iter().filter(|answer| answer.status == 201 && !is_replayed(answer)).count();
    assert_eq!(did, 1);
    assert!(is_replayed(&provision(&sidecar, "acme", &["k"]).await));
}

#[tokio::test]
async fn claims_end_answers_expire_and_are_forgotten() {
    let sidecar = Sidecar::start().await;
    let store = &sidecar.provisioner.store;
    let request = KeyedRequest { caller: "pk_1", key: "k", request: b"POST" };
    let start = Timestamp::now();
    let at = |seconds| start + SignedDuration::from_secs(seconds);
    let Claimed::Ours(dead) = store.claim_request(&request, at(0)).await.unwrap() else { panic!("ours") };
    assert_eq!(store.claim_request(&request, at(59)).await.unwrap(), Claimed::Running);
    // Whoever claimed it is gone: the next one takes over, and the first one's late answer changes nothing.
    let Claimed::Ours(ours) = store.claim_request(&request, at(60)).await.unwrap() else { panic!("taken over") };
    store.remember_answer(&dead, 200, "late").await.unwrap();
    store.release_claim(&dead).await.unwrap();
    assert_eq!(store.claim_request(&request, at(61)).await.unwrap(), Claimed::Running);
    store.remember_answer(&ours, 201, "{}").await.unwrap();
    store.release_claim(&ours).await.unwrap();
    let answered = Claimed::Answered { status: 201, answer: "{}".to_owned() };
    let day = 24 * 60 * 60;
    assert_eq!(store.claim_request(&request, at(day)).await.unwrap(), answered);
    store.forget_old_answers(at(day)).await.unwrap();
    assert_eq!(store.claim_request(&request, at(day)).await.unwrap(), answered, "until its time is over");
    store.forget_old_answers(at(day + 60)).await.unwrap();
    let client = sidecar.superuser(&sidecar.catalog).await;
    let left = client.query_one("SELECT count(*) FROM catalog.idempotency", &[]).await.unwrap();
    assert_eq!(left.get::<_, i64>(0), 0);
    assert!(matches!(store.claim_request(&request, at(day + 61)).await.unwrap(), Claimed::Ours(_)));
}
