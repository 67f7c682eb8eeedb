//! The reader: it sees revisions whole and in order, learns of them in every way, and reports back.

use std::time::Duration;

use portcullis_catalog::{PlaneStatus, Reader, Refreshed, Revision, Snapshot, Termination, WorkspaceId};
use tokio::time::Instant;

use crate::fixture::{
    Catalog, NEVER, PROVISIONER, PROXY, actor, at, backend_role, reaches, rotation, server, until, workspace,
};

/// Everything that a snapshot says of these workspaces and logins.
fn contents(snapshot: &Snapshot, workspaces: &[WorkspaceId]) -> String {
    let entries = workspaces.iter().map(|id| format!("{:?}", snapshot.workspace(id)));
    let names = workspaces.iter().map(|id| format!("tdb_{}_customer_db", id.digits()));
    let logins = names.map(|name| format!("{:?}", snapshot.login(&name)));
    let counts = (snapshot.workspaces_count(), snapshot.logins_count(), snapshot.policies().count());
    format!("{} {counts:?} {:?}", snapshot.revision(), entries.chain(logins).collect::<Vec<_>>())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn revisions_commit_in_order_and_are_seen_whole() {
    let catalog = Catalog::new().await;
    let base = catalog.store.revision().await.unwrap();
    let readers = [catalog.reader(NEVER).await, catalog.reader(Duration::from_millis(100)).await];
    // From here on every revision adds one workspace, so a snapshot tells whether it is whole.
    let watchers = readers.clone().map(|reader| {
        tokio::spawn(async move {
            let (mut revisions, mut last, mut seen) = (reader.subscribe(), base, 0);
            while last < Revision(base.0 + 200) {
                revisions.changed().await.unwrap();
                let snapshot = reader.snapshot();
                assert!(snapshot.revision() >= last, "{last} then {}", snapshot.revision());
                last = snapshot.revision();
                assert_eq!(i64::try_from(snapshot.workspaces_count()).unwrap(), last.0 - base.0);
                seen += 1;
            }
            seen
        })
    });
    let writers = (0..8).map(|writer| {
        let store = catalog.store.clone();
        tokio::spawn(async move {
            let mut revisions = Vec::new();
            for number in 0..25 {
                let new = workspace(&format!("w-{writer}-{number}"));
                revisions.push(store.create_workspace(&actor(), &new).await.unwrap().1);
            }
            revisions
        })
    });
    let mut made = Vec::new();
    for writer in writers.collect::<Vec<_>>() {
        let revisions = writer.await.unwrap();
        assert!(revisions.is_sorted(), "a writer's own revisions grow");
        made.extend(revisions);
    }
    made.sort();
    assert_eq!(made, (1..=200).map(|n| Revision(base.0 + n)).collect::<Vec<_>>(), "every revision once, without gaps");
    for watcher in watchers {
        let seen = tokio::time::timeout(Duration::from_secs(20), watcher).await.expect("a reader lags").unwrap();
        assert!(seen > 1);
    }
}

#[tokio::test]
async fn a_change_is_seen_by_announcement_by_poll_and_on_demand() {
    let catalog = Catalog::new().await;
    let announced = catalog.reader(NEVER).await;
    let polled = catalog.reader(Duration::from_millis(100)).await;
    let asked = catalog.reader(NEVER).await;
    let (_, revision) = catalog.store.create_workspace(&actor(), &workspace("acme")).await.unwrap();
    reaches(&announced, revision).await;
    reaches(&asked, revision).await;

    // A change that nobody announces.
    let silent = "UPDATE catalog.revision SET value = value + 1; \
                  UPDATE catalog.workspace SET last_error = 'silent', revision = (SELECT value FROM catalog.revision)";
    catalog.client(PROVISIONER).await.batch_execute(silent).await.unwrap();
    let silent = Revision(revision.0 + 1);
    reaches(&polled, silent).await;
    assert_eq!((announced.snapshot().revision(), asked.snapshot().revision()), (revision, revision));
    let deadline = Instant::now() + Duration::from_secs(10);
    assert_eq!(asked.refresh_now(deadline).await, Refreshed::Fresh);
    assert_eq!(asked.snapshot().revision(), silent);
    assert!(asked.age() < Duration::from_secs(10) && asked.connected() && asked.ready());
}

#[tokio::test]
async fn looks_on_demand_are_shared_and_limited() {
    let catalog = Catalog::new().await;
    let reader = catalog.reader(NEVER).await;
    let (begin, far) = (Instant::now(), Instant::now() + Duration::from_secs(30));
    for _ in 0..5 {
        assert_eq!(reader.refresh_now(far).await, Refreshed::Fresh);
    }
    assert!(begin.elapsed() >= Duration::from_millis(400), "at most ten looks a second");

    let client = catalog.client("postgres").await;
    let looks = async || -> i64 {
        client
            .query_one("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'portcullis-proxy'", &[])
            .await
            .unwrap()
            .get(0)
    };
    assert!(looks().await >= 1);
    let begin = Instant::now();
    let all = (0..200).map(|_| {
        let reader = reader.clone();
        tokio::spawn(async move { reader.refresh_now(far).await })
    });
    for look in all.collect::<Vec<_>>() {
        assert_eq!(look.await.unwrap(), Refreshed::Fresh);
    }
    assert!(begin.elapsed() < Duration::from_secs(10), "200 looks that come together are not 20 seconds of looks");
    assert_eq!(reader.refresh_now(Instant::now()).await, Refreshed::Unavailable, "a deadline that has passed");
}

#[tokio::test]
async fn following_step_by_step_and_loading_afresh_are_the_same() {
    let catalog = Catalog::new().await;
    let store = &catalog.store;
    let follower = catalog.reader(NEVER).await;
    let [a, b, c] = [catalog.workspace("a").await, catalog.workspace("b").await, catalog.workspace("c").await];
    for id in [&a, &b, &c] {
        catalog.login(id, "customer_db").await;
        store.put_backend_role(&actor(), &backend_role(id, 1)).await.unwrap();
    }
    let all = [a.clone(), b.clone(), c.clone()];
    let login = store.login(&a, "customer_db").await.unwrap().unwrap().login.id;
    let same = async |what: &str, revision: Revision| {
        reaches(&follower, revision).await;
        let fresh = catalog.reader(NEVER).await;
        assert_eq!(contents(&follower.snapshot(), &all), contents(&fresh.snapshot(), &all), "{what}");
        contents(&fresh.snapshot(), &all)
    };
    let mut versions = vec![same("created", store.revision().await.unwrap()).await];
    versions
        .push(same("rotated", store.rotate_login(&actor(), &rotation(&login, 2, 60, 1)).await.unwrap().revision).await);
    versions.push(
        same("rotated again", store.rotate_login(&actor(), &rotation(&login, 3, 0, 1)).await.unwrap().revision).await,
    );
    versions.push(same("backend", store.put_backend_role(&actor(), &backend_role(&b, 2)).await.unwrap()).await);
    versions.push(same("server", store.upsert_server(&actor(), &server("10.0.0.9")).await.unwrap()).await);
    versions.push(same("policy", store.upsert_policy(&actor(), "storage", "name = 'other'").await.unwrap()).await);
    let plane = store.set_plane(&actor(), &b, PlaneStatus::Suspended, None, None, at(9)).await.unwrap();
    versions.push(same("plane", plane).await);
    versions.push(same("deleted", store.delete_workspace(&actor(), &c).await.unwrap()).await);
    catalog.login(&b, "read").await;
    versions.push(same("another kind", store.revision().await.unwrap()).await);
    let distinct: std::collections::BTreeSet<_> = versions.iter().collect();
    assert_eq!(distinct.len(), versions.len(), "every step shows");
    let snapshot = follower.snapshot();
    assert!(snapshot.workspace(&c).is_none());
    assert!(snapshot.login(&format!("tdb_{}_customer_db", c.digits())).is_none());
    assert_eq!(snapshot.workspace(&a).unwrap().server.host, "10.0.0.9");
    assert_eq!(snapshot.policy("storage").unwrap().text, "name = 'other'");
    assert_eq!(snapshot.workspace(&b).unwrap().backend["customer_db"].generation.0, 2);
}

#[tokio::test]
async fn a_reader_that_was_away_too_long_or_too_far_ahead_loads_everything() {
    let catalog = Catalog::new().await;
    let client = catalog.client(PROVISIONER).await;
    let gone = catalog.workspace("gone").await;
    let reader = catalog.reader(NEVER).await;
    // Forgotten removals: the row is gone, and nothing but the horizon tells.
    let forgotten = "UPDATE catalog.revision SET value = value + 2, horizon = value + 2; \
                     DELETE FROM catalog.workspace; NOTIFY portcullis";
    client.batch_execute(forgotten).await.unwrap();
    until("the workspace is gone", async || reader.snapshot().workspace(&gone).is_none()).await;

    // A catalog that was restored from a backup.
    let (restored, revision) = catalog.store.create_workspace(&actor(), &workspace("restored")).await.unwrap();
    reaches(&reader, revision).await;
    client
        .batch_execute(
            "DELETE FROM catalog.workspace; UPDATE catalog.revision SET value = 1, horizon = 0; NOTIFY portcullis",
        )
        .await
        .unwrap();
    until("the reader goes back", async || reader.snapshot().revision() == Revision(1)).await;
    assert!(reader.snapshot().workspace(&restored.id).is_none());
}

#[tokio::test]
async fn a_change_is_acknowledged_by_every_live_proxy() {
    let catalog = Catalog::new().await;
    let (store, second) = (&catalog.store, Duration::from_secs(1));
    let revision = store.revision().await.unwrap();
    let none = store.wait_acknowledged(revision, second).await.unwrap();
    assert_eq!((none.all, none.proxies), (true, 0));

    let (one, two) = (catalog.reader(NEVER).await, catalog.reader(NEVER).await);
    let first = store.wait_acknowledged(revision, Duration::from_secs(20)).await.unwrap();
    assert_eq!((first.all, first.proxies), (true, 2), "what a proxy starts with it acknowledges by itself");

    let acme = catalog.workspace("acme").await;
    let (login, _) = catalog.login(&acme, "customer_db").await;
    let mut last = rotation(&login, 2, 0, 100);
    last.terminate_sessions = true;
    let rotated = store.rotate_login(&actor(), &last).await.unwrap();
    let pending = store.wait_acknowledged(rotated.revision, Duration::from_millis(50)).await.unwrap();
    assert_eq!((pending.all, pending.missing.len()), (false, 2), "nobody has acknowledged");

    let consequences = |reader: Reader, sessions: u64| {
        let (login, epoch) = (login.clone(), rotated.session_epoch);
        async move {
            reaches(&reader, rotated.revision).await;
            reader.acknowledge(rotated.revision, &[Termination { login, epoch, sessions }]);
        }
    };
    consequences(one.clone(), 3).await;
    until("one is missing", async || store.acknowledged(rotated.revision).await.unwrap().missing.len() == 1).await;
    let wait = tokio::spawn({
        let store = store.clone();
        async move { store.wait_acknowledged(rotated.revision, Duration::from_secs(20)).await.unwrap() }
    });
    consequences(two.clone(), 4).await;
    let done = wait.await.unwrap();
    assert_eq!((done.all, done.proxies, done.missing.len()), (true, 2, 0));
    assert_eq!(store.sessions_terminated(&login, rotated.session_epoch).await.unwrap(), 7);
    assert_eq!(store.sessions_terminated(&login, 0).await.unwrap(), 0);

    // Who has left is not waited for.
    let (_, next) = store.create_workspace(&actor(), &workspace("next")).await.unwrap();
    two.stop().await;
    reaches(&one, next).await;
    one.acknowledge(next, &[]);
    let done = store.wait_acknowledged(next, Duration::from_secs(20)).await.unwrap();
    assert_eq!((done.all, done.proxies), (true, 1));
}

#[tokio::test]
async fn the_last_use_of_a_login_is_noted() {
    let catalog = Catalog::new().await;
    let acme = catalog.workspace("acme").await;
    let (login, _) = catalog.login(&acme, "customer_db").await;
    let reader = catalog.reader(NEVER).await;
    for second in [5, 9, 7] {
        reader.last_used(&login, 1, at(second));
    }
    reader.stop().await;
    let late = catalog.reader(NEVER).await;
    late.last_used(&login, 1, at(8));
    late.stop().await;
    let record = catalog.store.login(&acme, "customer_db").await.unwrap().unwrap();
    assert_eq!(record.last_used_at, Some(at(9)), "the latest of all that were noted");
}

#[tokio::test]
async fn old_observations_are_forgotten() {
    let catalog = Catalog::new().await;
    let [kept, gone] = [catalog.workspace("kept").await, catalog.workspace("gone").await];
    let [kept_login, gone_login] = [catalog.login(&kept, "read").await.0, catalog.login(&gone, "read").await.0];
    let reader = catalog.reader(NEVER).await;
    reader.last_used(&kept_login, 1, at(1));
    reader.last_used(&gone_login, 1, at(1));
    reader.acknowledge(Revision(1), &[Termination { login: kept_login, epoch: 1, sessions: 1 }]);
    reader.stop().await;
    catalog.store.delete_workspace(&actor(), &gone).await.unwrap();
    let client = catalog.client(PROVISIONER).await;
    let counts = async || {
        let tables =
            ["proxy", "termination", "last_used"].map(|table| format!("(SELECT count(*) FROM observed.{table})"));
        let row = client.query_one(&format!("SELECT {}", tables.join(", ")), &[]).await.unwrap();
        [row.get::<_, i64>(0), row.get(1), row.get(2)]
    };
    catalog.store.forget_old_observations().await.unwrap();
    assert_eq!(counts().await, [1, 1, 1]);
    let old = "UPDATE observed.proxy SET heartbeat_at = now() - interval '25 hours'; \
               UPDATE observed.termination SET at = now() - interval '31 days'";
    client.batch_execute(old).await.unwrap();
    catalog.store.forget_old_observations().await.unwrap();
    assert_eq!(counts().await, [0, 0, 1]);
}

#[tokio::test]
async fn a_report_that_could_not_be_written_is_written_later() {
    let catalog = Catalog::new().await;
    let acme = catalog.workspace("acme").await;
    let (login, revision) = catalog.login(&acme, "customer_db").await;
    let reader = catalog.reader(NEVER).await;
    reaches(&reader, revision).await;
    let client = catalog.client(PROVISIONER).await;
    client.batch_execute("REVOKE ALL ON observed.termination FROM portcullis_proxy").await.unwrap();
    let (_, revision) = catalog.store.create_workspace(&actor(), &workspace("next")).await.unwrap();
    reaches(&reader, revision).await;
    reader.acknowledge(revision, &[Termination { login: login.clone(), epoch: 1, sessions: 5 }]);
    until("the write fails", async || !reader.connected()).await;
    catalog.store.migrate(PROXY).await.unwrap();
    let acknowledged = catalog.store.wait_acknowledged(revision, Duration::from_secs(9)).await.unwrap();
    assert_eq!((acknowledged.all, acknowledged.proxies), (true, 1));
    assert_eq!(catalog.store.sessions_terminated(&login, 1).await.unwrap(), 5);
}
