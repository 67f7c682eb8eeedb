//! Much data and little memory: whatever a client sends without reading, or reads slowly, the proxy holds next to none
//! of it.

use std::{fs, time::Duration};

use bytes::{BufMut, BytesMut};
use portcullis_tests::{
    Options, Stack,
    raw::{Pipeline, Wire, tags},
    script::bytes,
    wait::{until, within},
};

const PATIENCE: Duration = Duration::from_secs(240);
const MIB: u64 = 1 << 20;

/// How many times as much data by hand: `PORTCULLIS_MEMORY=4` makes it more than a gigabyte.
fn scale() -> usize {
    std::env::var("PORTCULLIS_MEMORY").map_or(1, |times| times.parse().expect("a number"))
}

/// What the proxy has in memory, and the most that it ever had.
fn resident(stack: &mut Stack) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", stack.proxy().id())).expect("the proxy runs");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number") * 1024
}

/// Follows the proxy's memory until `work` is done; gives the most it had beyond what it began with.
async fn growth<T>(stack: &mut Stack, work: impl Future<Output = T>) -> (T, u64) {
    let before = resident(stack);
    let mut most = before;
    let mut tick = tokio::time::interval(Duration::from_millis(20));
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return (done, most - before),
            _ = tick.tick() => most = most.max(resident(stack)),
        }
    }
}

/// A session in a stack of its own that has been warmed up.
async fn session(stack: &Stack) -> Wire {
    let credentials = stack.workspace("storage").await.reveal("customer_db").await;
    let mut wire = Wire::login(&credentials).await;
    wire.query("CREATE TABLE storage.t (id int, v text)").await;
    wire.query("SELECT repeat('x', 1000) FROM generate_series(1, 10000)").await;
    wire
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_megabytes_of_queries_before_the_first_is_read() {
    let mut stack = Stack::private(Options::default()).await;
    for (what, one) in [
        ("queries", Pipeline::new().query(&format!("SELECT '{}'", "x".repeat(2000))).bytes.clone()),
        ("statements", Pipeline::new().statement("SELECT $1::text", &[Some(&"y".repeat(2000))]).sync().bytes.clone()),
    ] {
        let count = (100 << 20) / one.len();
        let (mut reader, mut writer) = session(&stack).await.split();
        let sending = async {
            let many: BytesMut = std::iter::repeat_n(&one[..], 64).flatten().copied().collect();
            for _ in 0..count / 64 {
                writer.send(&many).await.expect("it is sent");
            }
            count / 64 * 64
        };
        let reading = async {
            // Not before the proxy has stopped reading: what the client then has sent does not change any more.
            tokio::time::sleep(Duration::from_millis(500)).await;
            let mut ready = 0;
            while ready < count / 64 * 64 {
                ready += usize::from(reader.next().await.expect("the server goes on").tag == b'Z');
            }
            ready
        };
        let both = async { tokio::join!(sending, reading) };
        let ((sent, ready), grown) = within(PATIENCE, what, growth(&mut stack, both)).await;
        assert_eq!(sent, ready);
        assert!(grown < 8 * MIB, "{what}: {} KiB more", grown / 1024);
    }
}

/// Beyond the budget new sessions and long texts are refused, and what is open goes on.
#[tokio::test]
async fn beyond_the_memory_budget_new_work_is_refused() {
    /// 64 MiB by connections of 16 KiB.
    const MANY: usize = 64 * 64;
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let options = Options::default().proxy("limits.memory_bytes_max", 64 * MIB);
    let stack = Stack::private(options.proxy("limits.connect_timeout_ms", 120_000)).await;
    let credentials = stack.workspace("storage").await.reveal("customer_db").await;
    let mut open = Wire::login(&credentials).await;
    // Its tree might take 64 MiB.
    let long = format!("SELECT 1 WHERE 1 IN ({})", vec!["1"; 50_000].join(","));
    let heard = open.query(&long).await;
    assert_eq!((tags(&heard).as_str(), heard[0].field(b'C').as_deref()), ("EZ", Some("53200")), "{heard:?}");
    assert_eq!(tags(&open.query("SELECT 1").await), "TDCZ");

    let mut silent = Vec::new();
    for _ in 0..MANY {
        silent.push(tokio::net::TcpStream::connect(("127.0.0.1", credentials.port)).await.unwrap());
    }
    let refused = until("the budget to be used up", async || credentials.try_connect().await.err()).await;
    assert_eq!(refused.code().map(|code| code.code()), Some("53200"), "{refused:?}");
    assert_eq!(tags(&open.query("SELECT 1").await), "TDCZ");
    let page = stack.access.get("/metrics").without_key().send().await.text;
    let line = page.lines().find(|line| line.starts_with("portcullis_memory_budget_bytes{held=\"connections\"}"));
    let held: u64 = line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).expect("the metric");
    assert!(held >= 63 * MIB, "{held}");
    drop(silent);
    until("room again", async || credentials.try_connect().await.ok().map(drop)).await;
}

/// The shortest messages there are, behind a statement that does not end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_small_messages_behind_one_that_waits() {
    let mut stack = Stack::private(Options::default()).await;
    let credentials = stack.workspace("storage").await.reveal("customer_db").await;
    let mut holder = Wire::login(&credentials).await;
    holder.query("CREATE TABLE storage.t (id int)").await;
    for (what, begin, one) in [
        ("Syncs", "Q SELECT * FROM storage.t", "S"),
        ("Closes of nothing", "Q SELECT * FROM storage.t", "CS x"),
        ("Closes of nothing in a pipeline", "P | SELECT * FROM storage.t\nB\nE\nH", "CS x"),
        ("Executes", "P | SELECT * FROM storage.t\nB\nE", "E"),
        ("empty queries", "Q SELECT * FROM storage.t", "Q "),
        ("queries behind a copy", "Q COPY storage.t FROM STDIN", "Q SELECT 1"),
        ("parameters", "P | SELECT * FROM storage.t\nB\nE", "P x | SELECT 1"),
    ] {
        holder.query("BEGIN").await;
        assert_eq!(tags(&holder.query("LOCK storage.t IN ACCESS EXCLUSIVE MODE").await), "CZ");
        let (reader, mut writer) = Wire::login(&credentials).await.split();
        let begin: BytesMut = begin.lines().flat_map(bytes).collect();
        writer.send(&begin).await.unwrap();
        let one = bytes(one);
        let many: BytesMut = std::iter::repeat_n(&one[..], 16_384).flatten().copied().collect();
        let sending = async {
            // Until nobody takes any more.
            let mut sent = 0;
            while sent < 40_000_000
                && tokio::time::timeout(Duration::from_millis(700), writer.send(&many))
                    .await
                    .is_ok_and(|sent| sent.is_ok())
            {
                sent += many.len();
            }
            sent
        };
        let (sent, grown) = within(PATIENCE, what, growth(&mut stack, sending)).await;
        assert!(grown < 12 * MIB, "{what}: {} KiB more after {sent} bytes", grown / 1024);
        holder.query("ROLLBACK").await;
        drop((reader, writer));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_result_and_a_slow_reader() {
    let rows_wanted = 30_000 * scale();
    let mut stack = Stack::private(Options::default()).await;
    let mut wire = session(&stack).await;
    let query = format!("Q SELECT repeat('x', 10000) FROM generate_series(1, {rows_wanted})");
    let work = async {
        wire.send(&bytes(&query)).await.unwrap();
        let mut rows = 0;
        loop {
            let message = wire.next().await.unwrap();
            match message.tag {
                b'D' => rows += 1,
                b'Z' => return rows,
                _ => {}
            }
            if rows % 3000 == 1 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    };
    let (rows, grown) = within(PATIENCE, "300 MB", growth(&mut stack, work)).await;
    assert_eq!(rows, rows_wanted);
    assert!(grown < 6 * MIB, "{} KiB more", grown / 1024);
    // A row as large as a message of PostgreSQL's can be, nearly.
    let mut wire = session(&stack).await;
    let (heard, grown) = growth(&mut stack, wire.query("SELECT repeat('x', 200000000)")).await;
    assert_eq!(tags(&heard), "TDCZ");
    assert!(grown < 6 * MIB, "one row: {} KiB more", grown / 1024);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fast_copy_into_a_slow_server() {
    let mut stack = Stack::private(Options::default()).await;
    let mut wire = session(&stack).await;
    let line = format!("1\t{}\n", "z".repeat(8000));
    let mut data = BytesMut::new();
    data.put_u8(b'd');
    data.put_i32(i32::try_from(4 + 100 * line.len()).unwrap());
    data.extend_from_slice(line.repeat(100).as_bytes());
    let work = async {
        wire.send(&bytes("Q COPY storage.t FROM STDIN")).await.unwrap();
        for _ in 0..250 * scale() {
            wire.send(&data).await.unwrap(); // 200 MB
        }
        wire.send(&bytes("c")).await.unwrap();
        wire.until_ready().await
    };
    let (heard, grown) = within(PATIENCE, "200 MB", growth(&mut stack, work)).await;
    assert_eq!(tags(&heard), "GCZ");
    assert!(grown < 6 * MIB, "{} KiB more", grown / 1024);
    // One message as large as they may be passes in pieces, too.
    let size = 60 << 20;
    let mut data = BytesMut::from(&b"d"[..]);
    data.put_i32(4 + size);
    data.extend_from_slice(b"1\t");
    data.resize(4 + size as usize, b'z');
    data.put_u8(b'\n');
    let work = async {
        wire.send(&bytes("Q COPY storage.t FROM STDIN")).await.unwrap();
        wire.send(&data).await.unwrap();
        wire.send(&bytes("c")).await.unwrap();
        wire.until_ready().await
    };
    let (heard, grown) = within(PATIENCE, "60 MB in one message", growth(&mut stack, work)).await;
    assert_eq!(tags(&heard), "GCZ");
    assert!(grown < 6 * MIB, "one message: {} KiB more", grown / 1024);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_for_its_length_is_not_held() {
    let mut stack = Stack::private(Options::default()).await;
    let mut wire = session(&stack).await;
    for (what, size) in [("1 MiB and a byte", (1 << 20) + 1), ("60 MiB", 60 << 20)] {
        let text = format!("SELECT '{}'", "x".repeat(size));
        for (pipeline, expected) in [
            (Pipeline::new().query(&text), "EZ"),
            (Pipeline::new().parse("", &text).bind("", "", &[]).execute("", 0).sync(), "EZ"),
        ] {
            let (heard, grown) = within(PATIENCE, what, growth(&mut stack, wire.run(pipeline))).await;
            assert_eq!(tags(&heard), expected, "{what}");
            assert_eq!(heard[0].field(b'C').as_deref(), Some("54000"), "{what}");
            assert!(grown < 8 * MIB, "{what}: {} KiB more", grown / 1024);
        }
    }
    // In a transaction it fails the transaction.
    wire.query("BEGIN").await;
    let heard = wire.query(&format!("SELECT '{}'", "x".repeat(2 << 20))).await;
    assert_eq!((tags(&heard).as_str(), heard.last().unwrap().body.as_slice()), ("EZ", &b"E"[..]));
    assert_eq!(tags(&wire.query("ROLLBACK").await), "CZ");
}

/// P34: an error that repeats the value it complains of is as long as the value: its beginning reaches the client, says that
/// it was cut, and the session goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_as_long_as_what_it_complains_of() {
    let mut stack = Stack::private(Options::default()).await;
    let mut wire = session(&stack).await;
    let sql = |length: usize| format!("SELECT repeat('\u{e9}', {length})::int");
    for length in [400_000, 600_000, 50_000_000] {
        let one = bytes(&format!("Q {}", sql(length)));
        let extended = Pipeline::new().statement(&sql(length), &[]).statement("SELECT 1", &[]).sync().bytes.clone();
        let (begin, rollback) = (bytes("Q BEGIN"), bytes("Q ROLLBACK"));
        for (sent, status) in [(&one, b'I'), (&extended, b'I'), (&begin, b'T'), (&one, b'E'), (&rollback, b'I')] {
            let talk = async {
                wire.send(sent).await.unwrap();
                wire.until_ready().await
            };
            let (heard, grown) = within(PATIENCE, "a long error", growth(&mut stack, talk)).await;
            assert_eq!(heard.last().unwrap().body, [status], "{}", tags(&heard));
            assert!(grown < 6 * MIB, "{length}: {} KiB more", grown / 1024);
            let Some(error) = heard.iter().find(|message| message.tag == b'E') else { continue };
            assert_eq!(error.field(b'C').as_deref(), Some("22P02"), "{length}");
            let text = error.field(b'M').unwrap();
            let cut = text.ends_with(" bytes]") && text.contains("\u{e9} [cut by the gate: the whole message has ");
            assert_eq!(cut, length > 500_000, "{length}: {}", text.chars().rev().take(80).collect::<String>());
        }
    }
    assert_eq!(tags(&wire.query("SELECT 1").await), "TDCZ");
}

/// A parameter as long as a message may be costs its own length once, and gives it back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parameter_of_sixty_megabytes() {
    let mut stack = Stack::private(Options::default()).await;
    let mut wire = session(&stack).await;
    let before = resident(&mut stack);
    let value = "v".repeat(60 << 20);
    for _ in 0..3 {
        let mut pipeline = Pipeline::new();
        pipeline.statement("SELECT length($1::text)", &[Some(&value)]).sync();
        let talk = growth(&mut stack, wire.run(&pipeline));
        let (heard, grown) = within(PATIENCE, "a long parameter", talk).await;
        assert_eq!(tags(&heard), "12TDCZ");
        assert_eq!(heard[3].columns(), [Some((60 << 20).to_string())]);
        assert!(grown < 160 * MIB, "{} KiB more", grown / 1024);
    }
    let kept = resident(&mut stack).saturating_sub(before);
    // The allocator's own, of the steps in which a buffer grew; far less than any of the values.
    assert!(kept < 24 * MIB, "{} KiB are kept", kept / 1024);
    // One that is longer is refused before it is read.
    let mut long = BytesMut::from(&b"B"[..]);
    long.put_i32(100 << 20);
    wire.send(&long).await.unwrap();
    let heard = within(PATIENCE, "a parameter that is too long", wire.until_closed()).await;
    assert_eq!(tags(&heard), "E");
    assert_eq!(heard[0].field(b'C').as_deref(), Some("54000"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_are_bounded_in_number_and_length() {
    let mut stack = Stack::private(Options::default()).await;
    let mut wire = session(&stack).await;
    let work = async {
        let long = "x".repeat(900_000);
        let mut refused = None;
        for i in 0..100 {
            let text = format!("SELECT {i}, '{long}'");
            let heard = wire.run(Pipeline::new().parse(&format!("s{i}"), &text).sync()).await;
            if tags(&heard) != "1Z" {
                refused = heard[0].field(b'C');
                break;
            }
        }
        refused
    };
    let (refused, grown) = within(PATIENCE, "long statements", growth(&mut stack, work)).await;
    assert_eq!(refused.as_deref(), Some("53400"));
    assert!(grown < 64 * MIB, "{} KiB more", grown / 1024);
    // Closing one makes room again.
    let heard = wire.run(Pipeline::new().close(b'S', "s0").close(b'S', "s1").parse("s", "SELECT 1").sync()).await;
    assert_eq!(tags(&heard), "331Z");
}
