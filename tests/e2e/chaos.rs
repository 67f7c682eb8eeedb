//! Networks that break, servers that die, clients that vanish, all at once and at every stage of a session. Whatever
//! happens: no wrong answer, no answer to somebody else, no acknowledged write that is gone and no other that is there, and
//! in the end nothing is left of it.
//!
//! `PORTCULLIS_CHAOS=20` makes every test twenty times as long; `PORTCULLIS_CHAOS_SEED` repeats a run.

// A run that went wrong is repeated by what it has printed.
#![allow(clippy::print_stderr)]

mod customer;

use std::{
    env, fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use portcullis_tests::{
    Options, Stack,
    cluster::{connect, socket_config},
    customer::Credentials,
    network::{Break, Fault, Network},
    process::send,
    raw::{Wire, tags},
    script::bytes,
    wait::{until, within},
};
use tokio::task::JoinSet;
use tokio_postgres::Client;

use customer::{Customer, Random, TABLES, TOUR, Tolerance};

const PATIENCE: Duration = Duration::from_secs(60);
/// A customer whose answers come at all is patient.
const PATIENT: Duration = Duration::from_secs(40);

fn number(name: &str, default: u64) -> u64 {
    env::var(name).map_or(default, |value| value.parse().expect("a number"))
}

fn seed() -> u64 {
    let seed = number("PORTCULLIS_CHAOS_SEED", 1);
    eprintln!("PORTCULLIS_CHAOS={} PORTCULLIS_CHAOS_SEED={seed}", times());
    seed
}

fn times() -> u64 {
    number("PORTCULLIS_CHAOS", 1)
}

/// A stack with a workspace in it, and what its proxy had before anything happened.
struct Scene {
    stack: Stack,
    credentials: Credentials,
    files: usize,
    memory: u64,
}

impl Scene {
    async fn new(options: Options) -> Scene {
        let stack = Stack::private(options).await;
        let workspace = stack.workspace("storage").await;
        let credentials = workspace.reveal("customer_db").await;
        let client = credentials.connect().await;
        for sql in TABLES.split(';') {
            client.batch_execute(sql).await.expect("the tables");
        }
        drop(client);
        let mut scene = Scene { stack, credentials, files: 0, memory: 0 };
        // What a process needs once for all is there before it is measured.
        scene.tours(8, Tolerance { codes: &[], patience: PATIENT }, scene.credentials.clone(), 100_000).await;
        scene.calm().await;
        (scene.files, scene.memory) = (scene.open_files(), scene.resident());
        scene
    }

    fn proc(&mut self, what: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{what}", self.stack.proxy().id()))
    }

    fn open_files(&mut self) -> usize {
        fs::read_dir(self.proc("fd")).expect("the proxy runs").count()
    }

    /// Bytes.
    fn resident(&mut self) -> u64 {
        let status = fs::read_to_string(self.proc("status")).expect("the proxy runs");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number") * 1024
    }

    /// A superuser's session in the workspace's database, once the server takes it.
    async fn superuser(&self) -> Client {
        let access = &self.stack.access;
        let config = socket_config(&access.home, access.postgres_port, "postgres", &self.credentials.database);
        until("PostgreSQL", async || connect(&config).await.ok()).await
    }

    /// The workspace's credentials, by way of a network.
    fn by_way_of(&self, network: &Network) -> Credentials {
        Credentials { port: network.port, ..self.credentials.clone() }
    }

    /// Puts a network between the proxy and PostgreSQL.
    async fn between_proxy_and_server(&mut self) -> Arc<Network> {
        let network = Network::to(self.stack.access.postgres_port).await;
        self.stack.kill_sidecar();
        self.stack.start_sidecar_with(&[("servers.main.port", network.port.to_string())]).await;
        Arc::new(network)
    }

    /// Lets so many customers take the tour side by side, and looks at what they wrote.
    async fn tours(&self, count: u32, tolerance: Tolerance, credentials: Credentials, first: u32) {
        let mut customers = JoinSet::new();
        for id in first..first + count {
            let mut customer = Customer::new(id, &credentials, tolerance);
            customers.spawn(async move {
                for step in TOUR {
                    let done = customer.does(step).await;
                    assert!(done, "customer {id} lost a connection, {step:?}: {}", customer.last_words);
                }
                customer.leaves().await;
                customer
            });
        }
        let superuser = self.superuser().await;
        while let Some(customer) = customers.join_next().await {
            within(PATIENCE, "the journal", customer.expect("a customer").settles(&superuser)).await;
        }
    }

    /// Waits until nobody is connected, waits, holds or works: sessions 0, all places free, no transaction, no lock.
    async fn calm(&mut self) {
        let idle = [
            "client_connections",
            "sessions",
            "upstream_connections{state=\"active\"}",
            "upstream_connections{state=\"connecting\"}",
            "pool_waiters",
            "pinned_sessions",
        ];
        let access = self.stack.access.clone();
        let mut last = String::new();
        let calm = until_within(PATIENCE, async || {
            let page = access.get("/metrics").without_key().try_send().await.ok()?.text;
            let value = |name: &str| {
                let series = format!("portcullis_{name} ");
                page.lines().find_map(|line| line.strip_prefix(&series)).map(str::to_owned)
            };
            let busy: Vec<String> = idle
                .iter()
                .filter(|name| value(name).as_deref() != Some("0"))
                .map(|name| format!("{name} {:?}", value(name)))
                .collect();
            last = busy.join(", ");
            busy.is_empty().then_some(())
        });
        assert!(calm.await, "it does not come to rest: {last}");
        let superuser = self.superuser().await;
        let working =
            "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND usename <> 'postgres' AND state <> 'idle'";
        let database = &self.credentials.database;
        until("transactions to end", async || {
            let row = superuser.query_one(working, &[database]).await.ok()?;
            (row.get::<_, i64>(0) == 0).then_some(())
        })
        .await;
        // The server has none that the proxy does not count; those that are dead are counted until somebody wants them.
        until("no connection that nobody counts", async || {
            let page = access.get("/metrics").without_key().try_send().await.ok()?.text;
            let series = "portcullis_upstream_connections{state=\"idle\"} ";
            let counted: i64 = page.lines().find_map(|line| line.strip_prefix(series))?.parse().ok()?;
            let all = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND usename <> 'postgres'";
            (superuser.query_one(all, &[database]).await.ok()?.get::<_, i64>(0) <= counted).then_some(())
        })
        .await;
    }

    /// After whatever has happened: calm, what the customers wrote is what they were told, others are served, and the proxy
    /// has no more than before.
    async fn aftermath(&mut self, customers: Vec<Customer>) {
        self.calm().await;
        let superuser = self.superuser().await;
        superuser
            .batch_execute("SET lock_timeout = '5s'; LOCK storage.journal, storage.shared")
            .await
            .expect("no lock is left");
        for customer in &customers {
            customer.settles(&superuser).await;
        }
        drop(superuser);
        self.tours(8, Tolerance { codes: &[], patience: PATIENT }, self.credentials.clone(), 200_000).await;
        self.calm().await;
        let (files, memory) = (self.files, self.memory);
        // Connections of the pool are files, too; they come and go.
        let settled = until_within(PATIENCE, async || (self.open_files() <= files + 12).then_some(())).await;
        assert!(settled, "{} open files, {files} before", self.open_files());
        let grown = self.resident().saturating_sub(memory) / 1024;
        eprintln!("{files} files before, {} after; {grown} KiB more", self.open_files());
        assert!(grown < 24 * 1024, "{grown} KiB more than before");
    }
}

async fn until_within(limit: Duration, mut condition: impl AsyncFnMut() -> Option<()>) -> bool {
    let started = Instant::now();
    while started.elapsed() < limit {
        if condition().await.is_some() {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    false
}

/// Customers who take the tour again and again, `rounds` times each and then for as long as `goes_on`.
fn crowd(
    count: u32,
    credentials: &Credentials,
    tolerance: Tolerance,
    goes_on: impl Fn() -> bool + Clone + Send + 'static,
) -> JoinSet<Customer> {
    let mut customers = JoinSet::new();
    for id in 1..=count {
        let (mut customer, goes_on) = (Customer::new(id, credentials, tolerance), goes_on.clone());
        customers.spawn(async move {
            let mut at = id as usize;
            while goes_on() {
                if customer.does(TOUR[at % TOUR.len()]).await {
                    at += 1;
                } else {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                // Logins are where half of the stages are.
                if at.is_multiple_of(TOUR.len()) {
                    customer.leaves().await;
                    at += 1;
                }
            }
            customer.leaves().await;
            customer
        });
    }
    customers
}

async fn all(mut customers: JoinSet<Customer>, what: &str) -> Vec<Customer> {
    let mut done = Vec::new();
    while let Some(customer) =
        within(PATIENCE * u32::try_from(times()).unwrap_or(60), what, customers.join_next()).await
    {
        done.push(customer.expect("a customer"));
    }
    let (steps, lost) = done.iter().fold((0, 0), |(steps, lost), one| (steps + one.done, lost + one.lost));
    eprintln!("{what}: {steps} steps, {lost} connections lost");
    done
}

/// Points at which connections break, as many in the first 4 kB, where logins are, as behind them; in both directions.
fn faults(count: u64, most: [u64; 2], ways: &[Break], random: &mut Random) -> Vec<Fault> {
    let mut faults = Vec::new();
    for i in 0..count {
        let to_server = i % 2 == 0;
        let most = most[usize::from(!to_server)].max(1);
        let bound = if i % 4 < 2 { most.min(4_000) } else { most };
        // Spread evenly, then moved a little: no stretch is left out.
        let step = bound / (count / 4 + 1) + 1;
        let after = (i / 4 * step + random.below(step)).min(bound);
        let way = ways[(i / 2 % ways.len() as u64) as usize];
        // Half of them with something under way; garbage comes where it is due.
        let later = if i % 8 < 4 || way == Break::Garble { 0 } else { random.below(40) };
        faults.push(Fault { to_server, after, later: Duration::from_millis(later), way });
    }
    for at in (1..faults.len()).rev() {
        faults.swap(at, random.below(at as u64 + 1) as usize);
    }
    faults
}

/// How much a connection carries at most when nothing breaks.
async fn measured(scene: &Scene, network: &Network, credentials: &Credentials) -> [u64; 2] {
    scene.tours(2, Tolerance { codes: &[], patience: PATIENT }, credentials.clone(), 300_000).await;
    network.most()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_clients_network_breaks_at_every_stage() {
    let mut random = Random::new(seed());
    let mut scene = Scene::new(Options::default().proxy("pool.size_max", 3)).await;
    let network = Arc::new(Network::to(scene.credentials.port).await);
    let credentials = scene.by_way_of(&network);
    let most = measured(&scene, &network, &credentials).await;
    network.plan(faults(160 * times(), most, &[Break::Close, Break::Reset], &mut random));
    let goes_on = {
        let network = network.clone();
        move || network.planned() > 0
    };
    let broken = crowd(8, &credentials, Tolerance { codes: &[], patience: PATIENT }, goes_on.clone());
    // They share the connections with the others and must not notice anything.
    scene.tours(2, Tolerance { codes: &[], patience: PATIENT }, scene.credentials.clone(), 400_000).await;
    let customers = all(broken, "the client's network").await;
    assert!(network.struck() as u64 > 80 * times(), "only {} connections broke", network.struck());
    scene.aftermath(customers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_clients_network_falls_silent_at_every_stage() {
    let mut random = Random::new(seed());
    let mut scene = Scene::new(
        Options::default()
            .proxy("pool.size_max", 3)
            .proxy("limits.connect_timeout_ms", 2500)
            .proxy("limits.statement_timeout_ms", 4000)
            .proxy("limits.idle_in_transaction_timeout_ms", 1000)
            .proxy("limits.idle_timeout_ms", 3000),
    )
    .await;
    let network = Arc::new(Network::to(scene.credentials.port).await);
    let credentials = scene.by_way_of(&network);
    let most = measured(&scene, &network, &credentials).await;
    network.plan(faults(48 * times(), most, &[Break::Stall], &mut random));
    let goes_on = {
        let network = network.clone();
        move || network.planned() > 0
    };
    let tolerance = Tolerance { codes: &["57014", "25P03", "57P05"], patience: Duration::from_millis(2500) };
    let customers = all(crowd(8, &credentials, tolerance, goes_on), "the client's silent network").await;
    assert!(network.struck() as u64 > 24 * times(), "only {} connections fell silent", network.struck());
    // Nobody has told the proxy that its clients are gone: the network still holds their connections.
    scene.aftermath(customers).await;
    drop(network);
}

/// What customers hear when their server is lost or lets nobody in.
const SERVER_LOST: &[&str] = &["57P01", "57P02", "57P03", "08006", "53300"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_servers_network_breaks_at_every_stage() {
    let mut random = Random::new(seed());
    let mut scene =
        Scene::new(Options::default().proxy("pool.size_max", 3).proxy("pool.query_wait_timeout_ms", 10_000)).await;
    let network = scene.between_proxy_and_server().await;
    let most = measured(&scene, &network, &scene.credentials).await;
    network.break_all(Break::Close);
    network.plan(faults(120 * times(), most, &[Break::Close, Break::Reset], &mut random));
    let goes_on = {
        let network = network.clone();
        move || network.planned() > 0
    };
    let tolerance = Tolerance { codes: SERVER_LOST, patience: PATIENT };
    let customers = all(crowd(6, &scene.credentials, tolerance, goes_on), "the server's network").await;
    assert!(network.struck() as u64 > 40 * times(), "only {} connections broke", network.struck());
    network.heal().await;
    scene.aftermath(customers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_servers_network_falls_silent_at_every_stage() {
    let mut random = Random::new(seed());
    let mut scene = Scene::new(
        Options::default()
            .proxy("pool.size_max", 3)
            .proxy("pool.connect_timeout_ms", 700)
            .proxy("pool.query_wait_timeout_ms", 5000)
            .proxy("limits.statement_timeout_ms", 1000)
            .proxy("limits.idle_in_transaction_timeout_ms", 1500),
    )
    .await;
    let network = scene.between_proxy_and_server().await;
    let most = measured(&scene, &network, &scene.credentials).await;
    network.break_all(Break::Close);
    network.plan(faults(24 * times(), most, &[Break::Stall], &mut random));
    let goes_on = {
        let network = network.clone();
        move || network.planned() > 0
    };
    let tolerance = Tolerance { codes: &["57P01", "57P03", "08006", "53300", "57014", "25P03"], patience: PATIENT };
    // A server that hears nothing keeps its transactions and their locks until its own network tells it.
    let ends = tokio::spawn({
        let network = network.clone();
        async move {
            loop {
                tokio::time::sleep(Duration::from_secs(4)).await;
                network.end_stalls();
            }
        }
    });
    let customers = all(crowd(6, &scene.credentials, tolerance, goes_on), "the server's silent network").await;
    ends.abort();
    assert!(network.struck() as u64 > 8 * times(), "only {} connections fell silent", network.struck());
    network.heal().await;
    scene.aftermath(customers).await;
}

/// P28: a server that sends garbage ends the sessions that it sends it to, and nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_breaks_the_protocol() {
    let mut random = Random::new(seed());
    let mut scene =
        Scene::new(Options::default().proxy("pool.size_max", 4).proxy("limits.statement_timeout_ms", 3000)).await;
    let network = scene.between_proxy_and_server().await;
    let most = measured(&scene, &network, &scene.credentials).await;
    network.heal().await;
    let from_server = faults(160 * times(), most, &[Break::Garble], &mut random).into_iter();
    network.plan(from_server.filter(|fault| !fault.to_server));
    let script = "Q SELECT 1\nP | SELECT $1::text\nB | | x\nE\nS\nQ COPY (SELECT 1) TO STDOUT\nQ SELECT 'last'";
    let sent: Vec<u8> = script.lines().flat_map(bytes).collect();
    let mut clients = JoinSet::new();
    for _ in 0..6 {
        let (credentials, network, sent) = (scene.credentials.clone(), network.clone(), sent.clone());
        clients.spawn(async move {
            let mut ended = 0;
            while network.planned() > 0 {
                let Ok(mut wire) = Wire::negotiate(credentials.port, &credentials.ca_pem).await else { continue };
                if wire.authenticate(&credentials, &[]).await.is_err() {
                    continue;
                }
                // What it hears may be garbage: the server's words. That it goes on, or ends, is what counts.
                let _ = wire.send(&sent).await;
                let talk = async {
                    let mut ready = 0;
                    while ready < 4 {
                        match wire.next().await {
                            Ok(message) => ready += usize::from(message.tag == b'Z'),
                            Err(_) => return 1,
                        }
                    }
                    0
                };
                ended += within(PATIENCE, "an answer or an end", talk).await;
            }
            ended
        });
    }
    let ended: usize = within(PATIENCE, "the clients", clients.join_all()).await.into_iter().sum();
    eprintln!("{} connections garbled, {ended} sessions ended", network.struck());
    assert!(ended > 0 && network.struck() as u64 > 20 * times());
    network.heal().await;
    scene.aftermath(Vec::new()).await;
}

/// A row that was cut by the end of its server's connection stays cut: no other message completes it (the client would take
/// it for an answer).
#[tokio::test]
async fn a_row_that_is_cut_is_never_completed() {
    let mut scene = Scene::new(Options::default().proxy("pool.size_max", 1)).await;
    let network = scene.between_proxy_and_server().await;
    let query = "SELECT repeat('x', 200000)";
    // The second time: what the first asks of a server once for all is known.
    for _ in 0..2 {
        network.heal().await;
        assert_eq!(tags(&Wire::login(&scene.credentials).await.query(query).await), "TDCZ");
    }
    let ordinary = network.most()[1];
    network.heal().await;
    let mut cut = 0;
    for back in [200_u64, 120, 60] {
        // The sidecar connects as well, and carries less.
        network.plan([Fault { to_server: false, after: ordinary - back, later: Duration::ZERO, way: Break::Close }; 4]);
        let mut wire = Wire::login(&scene.credentials).await;
        wire.send(&bytes(&format!("Q {query}"))).await.unwrap();
        let heard = within(PATIENCE / 4, "the end", wire.until_closed()).await;
        let row = heard.iter().find(|message| message.tag == b'D');
        assert!(row.is_none_or(|row| row.columns()[0] == Some("x".repeat(200_000))), "{back}: not the server's row");
        cut += usize::from(tags(&heard) == "T");
        network.heal().await;
    }
    assert!(cut > 0, "no row was cut");
    scene.aftermath(Vec::new()).await;
}

/// Ends backends as an administrator, as the kernel, and with the whole server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backends_die_at_every_stage() {
    let mut random = Random::new(seed());
    let mut scene = Scene::new(Options::default().proxy("pool.size_max", 3)).await;
    let going = Arc::new(AtomicBool::new(true));
    let goes_on = {
        let going = going.clone();
        move || going.load(Relaxed)
    };
    let tolerance = Tolerance { codes: SERVER_LOST, patience: PATIENT };
    let customers = crowd(6, &scene.credentials, tolerance, goes_on);
    let victims = "SELECT pid FROM pg_stat_activity WHERE datname = $1 AND backend_type = 'client backend' \
                   AND usename <> 'postgres' ORDER BY random() LIMIT 1";
    for round in 0..3 * times() {
        let mut killed = 0;
        while killed < 25 {
            let superuser = scene.superuser().await;
            tokio::time::sleep(Duration::from_millis(random.below(40))).await;
            let Ok(Some(row)) = superuser.query_opt(victims, &[&scene.credentials.database]).await else { continue };
            let pid: i32 = row.get(0);
            let _ = superuser.execute("SELECT pg_terminate_backend($1)", &[&pid]).await;
            killed += 1;
        }
        if round % 3 == 1 {
            let superuser = scene.superuser().await;
            let Ok(Some(row)) = superuser.query_opt(victims, &[&scene.credentials.database]).await else { continue };
            send("KILL", &row.get::<_, i32>(0).to_string());
        }
        if round % 3 == 2 {
            scene.stack.cluster().kill();
            scene.stack.cluster().restart().await;
        }
    }
    going.store(false, Relaxed);
    let customers = all(customers, "dying backends").await;
    scene.stack.ready().await;
    scene.aftermath(customers).await;
}

/// Everything at once, and everybody at random: a day of a busy gate, compressed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_of_churn() {
    let seed = seed();
    let mut random = Random::new(seed);
    let mut scene = Scene::new(Options::default().proxy("pool.size_max", 4)).await;
    let to_server = scene.between_proxy_and_server().await;
    let to_proxy = Network::to(scene.credentials.port).await;
    let credentials = scene.by_way_of(&to_proxy);
    let ways = [Break::Close, Break::Reset];
    let tolerance = Tolerance { codes: SERVER_LOST, patience: PATIENT };
    let mut gone = Vec::new();
    for round in 0..6 * times() {
        to_proxy.plan(faults(20, [6_000, 40_000], &ways, &mut random));
        to_server.plan(faults(4, [20_000, 200_000], &ways, &mut random));
        to_proxy.slow((round % 3 == 1).then_some(400_000));
        to_server.slow((round % 3 == 2).then_some(4_000_000));
        let mut customers = JoinSet::new();
        for i in 0..40 {
            let id = u32::try_from(round * 40 + i + 1).expect("a small number");
            let mut customer = Customer::new(id, &credentials, tolerance);
            let mut random = Random::new(seed.wrapping_add(u64::from(id)));
            customers.spawn(async move {
                for _ in 0..random.below(12) {
                    match random.below(12) {
                        0 => customer.vanish(),
                        1 => customer.vanish_within(&mut random).await,
                        2 => customer.leaves().await,
                        _ => drop(customer.does(TOUR[random.below(TOUR.len() as u64) as usize]).await),
                    }
                }
                match random.below(2) {
                    0 => customer.vanish(),
                    _ => customer.leaves().await,
                }
                customer
            });
        }
        gone.extend(all(customers, &format!("round {round}")).await);
    }
    to_proxy.heal().await;
    to_server.heal().await;
    scene.aftermath(gone).await;
}

/// As many clients as hold a connection and do nothing: 2,000, or 9,500 by hand. What they cost is there for the next ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_idle_clients() {
    let count = usize::try_from(2_000 * times()).unwrap_or(usize::MAX).min(9_500);
    let mut scene =
        Scene::new(Options::default().proxy("limits.max_connections_default", 10_000).proxy("pool.size_max", 4)).await;
    for wave in 1..=2 {
        let before = scene.resident();
        let mut idle = log_in(&scene.credentials, count).await;
        let each = scene.resident().saturating_sub(before) / count as u64;
        eprintln!("wave {wave}: {count} idle clients, {each} bytes each");
        assert!(each < 24 * 1024, "{each} bytes for each idle client");
        for (i, wire) in idle.iter_mut().enumerate().step_by(37) {
            let heard = within(PATIENCE, "an idle client's answer", wire.query(&format!("SELECT {i}"))).await;
            assert_eq!(heard[1].columns(), [Some(i.to_string())]);
        }
        drop(idle);
        scene.calm().await;
        if wave == 1 {
            scene.memory = scene.resident();
        }
    }
    scene.aftermath(Vec::new()).await;
}

/// So many sessions, each of which has had its first answer.
async fn log_in(credentials: &Credentials, count: usize) -> Vec<Wire> {
    let mut idle = Vec::new();
    while idle.len() < count {
        let mut logins = JoinSet::new();
        for _ in 0..50.min(count - idle.len()) {
            let credentials = credentials.clone();
            logins.spawn(async move {
                let mut wire = Wire::login(&credentials).await;
                assert_eq!(tags(&wire.query("SELECT 1").await), "TDCZ");
                wire
            });
        }
        idle.extend(within(PATIENCE, "fifty logins", logins.join_all()).await);
    }
    idle
}
