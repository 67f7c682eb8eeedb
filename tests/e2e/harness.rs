//! The harness itself: what the other modules lean on.

use portcullis_tests::cluster::{Cluster, connect};

#[tokio::test]
async fn a_private_cluster_survives_kill_minus_nine() {
    let mut cluster = Cluster::start().await;
    let client = connect(&cluster.config("postgres", "postgres")).await.unwrap();
    client.batch_execute("CREATE TABLE t AS SELECT 1 AS a").await.unwrap();
    cluster.kill();
    cluster.restart().await;
    let client = connect(&cluster.config("postgres", "postgres")).await.unwrap();
    assert_eq!(client.query_one("SELECT a FROM t", &[]).await.unwrap().get::<_, i32>(0), 1);
}
