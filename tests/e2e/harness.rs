//! The harness itself: what the other modules lean on.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::{net::UnixStream, process::CommandExt as _},
    path::PathBuf,
    process::{Command, Stdio},
};

use portcullis_tests::{
    cluster::{Cluster, SMALL},
    wait::until,
};

#[tokio::test]
async fn a_private_cluster_survives_kill_minus_nine() {
    let cluster = Cluster::start(SMALL);
    let client = cluster.client("postgres", "postgres").await;
    client.batch_execute("CREATE TABLE t AS SELECT 1 AS a").await.unwrap();
    cluster.kill();
    cluster.restart().await;
    let client = cluster.client("postgres", "postgres").await;
    assert_eq!(client.query_one("SELECT a FROM t", &[]).await.unwrap().get::<_, i32>(0), 1);
}

/// Not a test by itself: the process that the next one kills.
#[test]
#[ignore = "runs inside of nothing_is_left_of_a_killed_test only"]
fn a_process_with_a_cluster() {
    let cluster = Cluster::shared();
    println!("{MARK}{} {}", cluster.home.display(), cluster.port);
    let _ = std::io::stdin().read_line(&mut String::new());
}

const MARK: &str = "the cluster: ";

#[tokio::test]
async fn nothing_is_left_of_a_killed_test() {
    for signal in ["KILL", "TERM"] {
        let mut test = Command::new(std::env::current_exe().unwrap());
        test.args(["--exact", "harness::a_process_with_a_cluster", "--ignored", "--nocapture"]);
        let mut test = test.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0).spawn().unwrap();
        let lines = BufReader::new(test.stdout.take().unwrap()).lines();
        let line = lines.map(Result::unwrap).find_map(|line| line.split_once(MARK).map(|(_, told)| told.to_owned()));
        let (home, port) =
            line.unwrap().rsplit_once(' ').map(|(home, port)| (PathBuf::from(home), port.to_owned())).unwrap();
        let socket = home.join(format!(".s.PGSQL.{port}"));
        let connected = UnixStream::connect(&socket).unwrap();
        let server = fs::read_to_string(home.join("data/postmaster.pid")).unwrap();
        let server = PathBuf::from("/proc").join(server.lines().next().unwrap());
        assert!(server.exists());
        portcullis_tests::process::send(signal, &format!("-{}", test.id()));
        test.wait().unwrap();
        until("the end of the server and its directory", async || (!server.exists() && !home.exists()).then_some(()))
            .await;
        drop(connected);
    }
}
