//! A server that is away, and one where the provisioner is no superuser.

use portcullis_provisioner::reconcile;
use portcullis_tests::cluster::{Cluster, SMALL};
use serde_json::{Value, json};

use crate::fixture::{Sidecar, rows};

#[tokio::test]
async fn a_server_that_is_away_is_503_and_picked_up_later() {
    let cluster: &'static Cluster = Box::leak(Box::new(Cluster::start(SMALL)));
    let sidecar = Sidecar::on(cluster, "postgres").await;
    sidecar.create("before", "storage").await;
    cluster.kill();
    let body = json!({"name": "during", "database": "PostgreSQL"});
    let refused = sidecar.admin("POST", "/workspaces", body).await.refused(503, "unavailable");
    assert_eq!(refused["reason"], "server_unreachable");
    assert!(refused["error"].as_str().unwrap().contains("server main cannot be reached"), "{refused}");
    assert!(sidecar.provisioner.store.workspace("during").await.unwrap().is_none(), "the name is still free");

    sidecar.record("recorded", "storage").await;
    let refused = sidecar.provision("recorded").await.refused(503, "unavailable");
    assert_eq!(refused["reason"], "server_unreachable");
    reconcile::everything(&sidecar.provisioner).await;
    for (name, want) in [("recorded", "provisioning"), ("before", "active")] {
        let status = sidecar.ingestion(name, "GET", "/status", Value::Null).await.expect(200);
        assert_eq!(status["plane"]["status"], want, "{name}");
        assert!(status["plane"]["last_error"].as_str().unwrap().contains("cannot be reached"), "{status}");
    }

    cluster.restart().await;
    reconcile::everything(&sidecar.provisioner).await;
    for name in ["recorded", "before"] {
        let plane = sidecar.workspace(name).await.plane;
        assert_eq!((plane.status.as_str(), plane.last_error), ("active", None), "{name}");
    }
}

#[tokio::test]
async fn without_superuser_the_walls_are_partial_and_say_so() {
    let shared = Cluster::shared();
    let client = shared.client("postgres", "postgres").await;
    client.batch_execute("CREATE ROLE plain_provisioner LOGIN CREATEDB CREATEROLE").await.unwrap();
    client.batch_execute("GRANT CONNECT ON DATABASE postgres TO plain_provisioner").await.unwrap();
    let sidecar = Sidecar::on(shared, "plain_provisioner").await;
    sidecar.record("acme", "storage").await;
    let body = sidecar.provision("acme").await.expect(201);
    assert_eq!(body["walls"], "partial");
    let workspace = sidecar.workspace("acme").await;
    let again = sidecar.provision("acme").await.expect(200);
    assert_eq!(again.get("repaired"), None);
    let inside = sidecar.superuser(&workspace.database).await;
    assert_eq!(rows(&inside, "SELECT count(*) FROM dl_resolved.people").await, ["0"]);
}
