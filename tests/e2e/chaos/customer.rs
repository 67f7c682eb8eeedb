//! A customer who trusts nobody: every answer has to carry his own number and that of his question, and every write is
//! noted with what he was told of it, to be compared with what the database has in the end.

use std::{collections::BTreeMap, io, time::Duration};

use bytes::BytesMut;
use portcullis_tests::{
    customer::Credentials,
    raw::{Message, Wire},
    script::{bytes, words},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_postgres::Client;

/// Numbers that come again with their seed.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        random.below(1);
        random
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound.max(1)
    }
}

/// What a customer may do in one go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Ask,
    AskSlowly,
    AskPrepared,
    AskForSettings,
    AskThreeTimes,
    ReadRows,
    CopyOut,
    Insert,
    InsertPrepared,
    Transaction,
    PipelinedTransaction,
    RollBack,
    CopyIn,
    CopyInAndFail,
    Cancel,
}

/// All of them, in the order of a tour.
pub const TOUR: [Step; 16] = [
    Step::Ask,
    Step::AskSlowly,
    Step::Insert,
    Step::AskPrepared,
    Step::InsertPrepared,
    Step::AskForSettings,
    Step::Transaction,
    Step::ReadRows,
    Step::CopyIn,
    Step::AskThreeTimes,
    Step::AskSlowly,
    Step::PipelinedTransaction,
    Step::CopyOut,
    Step::RollBack,
    Step::CopyInAndFail,
    Step::Cancel,
];

/// What a customer knows of one of his writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// He was told that it is done.
    Acknowledged,
    /// He was told that it is not, or never asked for it to be kept.
    Refused,
    /// He was told nothing, or that nobody knows.
    Unknown,
}

/// The connection ended before the answer did, with its last words.
#[derive(Debug)]
pub struct Lost(pub String);

/// What a customer puts up with.
#[derive(Debug, Clone, Copy)]
pub struct Tolerance {
    /// SQLSTATEs that may come at any time.
    pub codes: &'static [&'static str],
    /// How long he waits for an answer before he hangs up.
    pub patience: Duration,
}

/// The customer.
#[derive(Debug)]
pub struct Customer {
    id: u32,
    credentials: Credentials,
    tolerance: Tolerance,
    wire: Option<Wire>,
    sequence: u32,
    prepared: bool,
    writes: BTreeMap<u32, (i64, Fate)>,
    /// How many steps went as they should.
    pub done: u32,
    /// How many connections were lost.
    pub lost: u32,
    /// What was heard of the last of them.
    pub last_words: String,
}

/// Where the customers write. The table that all of them touch shows locks that outlive their transactions.
pub const TABLES: &str = "CREATE TABLE storage.journal (client int, seq int, part int); \
                          CREATE TABLE storage.shared (n int); INSERT INTO storage.shared VALUES (0)";

impl Customer {
    pub fn new(id: u32, credentials: &Credentials, tolerance: Tolerance) -> Customer {
        Customer {
            id,
            credentials: credentials.clone(),
            tolerance,
            wire: None,
            sequence: 0,
            prepared: false,
            writes: BTreeMap::new(),
            done: 0,
            lost: 0,
            last_words: String::new(),
        }
    }

    /// Does it, on a new connection if the last one was lost. `false`: the connection was lost.
    pub async fn does(&mut self, step: Step) -> bool {
        self.sequence += 1;
        let done = async {
            self.connect().await?;
            self.perform(step).await
        };
        match done.await {
            Ok(()) => self.done += 1,
            Err(Lost(last_words)) => {
                self.last_words = last_words;
                self.lost += 1;
                self.wire = None;
                return false;
            }
        }
        true
    }

    /// Hangs up without a word.
    pub fn vanish(&mut self) {
        self.wire = None;
    }

    /// Sends the beginning of something, and hangs up.
    pub async fn vanish_within(&mut self, random: &mut Random) {
        const BEGUN: [&str; 5] = [
            "Q BEGIN\nQ UPDATE storage.shared SET n = n + 1",
            "Q COPY storage.journal FROM STDIN\nd 0\\t0\\t0\\n",
            "P | INSERT INTO storage.journal VALUES (0, 0, 0)\nB\nE",
            "Q SELECT repeat('x', 1000) FROM generate_series(1, 100000)",
            "P | SELECT 1\nB",
        ];
        if self.connect().await.is_err() {
            return;
        }
        let sent: BytesMut = BEGUN[random.below(5) as usize].lines().flat_map(bytes).collect();
        let count = 1 + random.below(sent.len() as u64) as usize;
        if let Some(wire) = &mut self.wire {
            let _ = wire.send(&sent[..count]).await;
            if random.below(2) == 0 {
                let _ = timeout(Duration::from_millis(20), wire.next()).await;
            }
        }
        self.wire = None;
    }

    /// An orderly end.
    pub async fn leaves(&mut self) {
        if let Some(mut wire) = self.wire.take() {
            let _ = wire.send(b"X\0\0\0\x04").await;
            let _ = timeout(self.tolerance.patience, wire.until_closed()).await;
        }
    }

    async fn connect(&mut self) -> Result<(), Lost> {
        if self.wire.is_some() {
            return Ok(());
        }
        let (credentials, name) = (&self.credentials, format!("c{}", self.id));
        let login = async {
            let mut wire = Wire::negotiate(credentials.port, &credentials.ca_pem).await.map_err(|e| e.to_string())?;
            wire.authenticate(credentials, &[("application_name", &name)]).await?;
            Ok::<Wire, String>(wire)
        };
        match timeout(self.tolerance.patience, login).await {
            Ok(Ok(wire)) => {
                self.wire = Some(wire);
                self.prepared = false;
                Ok(())
            }
            Ok(Err(why)) => Err(self.excused_login(why)),
            Err(_) => Err(Lost("no login in time".to_owned())),
        }
    }

    /// A login may end with its connection, or be put off; it may never be told that the password is wrong.
    fn excused_login(&self, why: String) -> Lost {
        let code = why.split_once(": ").map(|(code, _)| code).filter(|code| code.len() == 5);
        if let Some(code) = code {
            assert!(self.tolerance.codes.contains(&code), "customer {}: a login ended with {why}", self.id);
        }
        Lost(why)
    }

    fn tag(&self) -> String {
        format!("{}:{}", self.id, self.sequence)
    }

    /// Sends a script and reads as many ReadyForQuery as it owes. All rows have to be this customer's.
    async fn say(&mut self, script: &str, ready: usize) -> Result<Vec<Message>, Lost> {
        let sent: BytesMut = script.lines().flat_map(|line| bytes(line.trim())).collect();
        let (own, name) = (format!("{}:", self.tag()), format!("c{}", self.id));
        let (id, tolerance, wire) = (self.id, self.tolerance, self.wire.as_mut().expect("a connection"));
        let mut heard = Vec::new();
        let talk = async {
            wire.send(&sent).await?;
            let mut owed = ready;
            while owed > 0 {
                let message = wire.next().await?;
                let of = match message.tag {
                    b'D' => message.columns()[0].clone(),
                    b'd' => Some(String::from_utf8_lossy(&message.body).into_owned()),
                    _ => None,
                };
                if let Some(of) = of {
                    assert!(of.starts_with(&own) || of == name, "customer {id} asked {script:?} and heard {of:?}");
                }
                owed -= usize::from(message.tag == b'Z');
                // While he waits for a connection he is told so.
                if message.tag != b'N' {
                    heard.push(message);
                }
            }
            Ok::<(), std::io::Error>(())
        };
        let ended = match timeout(tolerance.patience, talk).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("no answer in time".to_owned()),
        };
        for error in heard.iter().filter(|message| message.tag == b'E') {
            let code = error.field(b'C').unwrap_or_default();
            let own_doing =
                script.contains("dl_cache") && code == "42501" || script.contains("\nf ") && code == "57014";
            let known = own_doing || tolerance.codes.contains(&code.as_str());
            assert!(known, "customer {id} said {script:?} and heard {}: {:?}", words(&heard), error.field(b'M'));
        }
        match ended {
            None => Ok(heard),
            Some(why) => Err(Lost(format!("{} … {why}", words(&heard)))),
        }
    }

    fn expect(&self, heard: &[Message], wanted: &str) {
        let failed = heard.iter().any(|message| message.tag == b'E');
        let heard = words(heard);
        assert!(failed || heard == wanted, "customer {} wanted {wanted} and heard {heard}", self.id);
    }

    async fn perform(&mut self, step: Step) -> Result<(), Lost> {
        let (tag, id, seq) = (self.tag(), self.id, self.sequence);
        match step {
            Step::Ask => {
                let heard = self.say(&format!("Q SELECT '{tag}:'"), 1).await?;
                self.expect(&heard, &format!("T D({tag}:) C(SELECT 1) ZI"));
            }
            // Still at work when the connection breaks behind the question.
            Step::AskSlowly => {
                let script = format!("Q SELECT '{tag}:' || count(*) FROM generate_series(1, 300000)");
                let heard = self.say(&script, 1).await?;
                self.expect(&heard, &format!("T D({tag}:300000) C(SELECT 1) ZI"));
            }
            Step::AskPrepared => self.ask_prepared().await?,
            Step::AskForSettings => {
                let heard = self.say("Q SHOW application_name", 1).await?;
                self.expect(&heard, &format!("T D(c{id}) C(SHOW) ZI"));
            }
            Step::AskThreeTimes => {
                let script = format!("Q SELECT '{tag}:a'\nP | SELECT '{tag}:b'\nB\nE\nS\nQ SELECT '{tag}:c'");
                let heard = self.say(&script, 3).await?;
                let one = |what: &str| format!("D({tag}:{what}) C(SELECT 1) ZI");
                self.expect(&heard, &format!("T {} 1 2 {} T {}", one("a"), one("b"), one("c")));
            }
            Step::ReadRows => {
                let heard = self.say(&format!("Q SELECT '{tag}:' || g FROM generate_series(1, 500) AS g"), 1).await?;
                self.expect_rows(&heard, b'D', 500);
            }
            Step::CopyOut => {
                let script = format!("Q COPY (SELECT '{tag}:' || g FROM generate_series(1, 500) AS g) TO STDOUT");
                let heard = self.say(&script, 1).await?;
                self.expect_rows(&heard, b'd', 500);
            }
            Step::Insert => {
                self.write(1, &format!("Q INSERT INTO storage.journal VALUES ({id}, {seq}, 0)"), 1, "INSERT 0 1")
                    .await?;
            }
            Step::InsertPrepared => {
                let script = format!("P | INSERT INTO storage.journal VALUES ({id}, $1, 0)\nB | | {seq}\nE\nS");
                self.write(1, &script, 1, "INSERT 0 1").await?;
            }
            Step::Transaction => self.transaction(true).await?,
            Step::RollBack => self.transaction(false).await?,
            Step::PipelinedTransaction => {
                let insert = |part: u32| format!("INSERT INTO storage.journal VALUES ({id}, {seq}, {part})");
                let all = ["BEGIN".to_owned(), insert(0), insert(1), "COMMIT".to_owned()];
                let script: String = all.iter().map(|text| format!("P | {text}\nB\nE\n")).collect();
                self.write(2, &(script + "S"), 1, "COMMIT").await?;
            }
            Step::CopyIn => {
                let line = |part: u32| format!("d {id}\\t{seq}\\t{part}\\n");
                let script = format!("Q COPY storage.journal FROM STDIN\n{}\n{}\n{}\nc", line(0), line(1), line(2));
                self.write(3, &script, 1, "COPY 3").await?;
            }
            Step::CopyInAndFail => {
                let script = format!("Q COPY storage.journal FROM STDIN\nd {id}\\t{seq}\\t0\\n\nf enough");
                self.note(1, Fate::Refused);
                let heard = self.say(&script, 1).await?;
                assert!(heard.iter().any(|message| message.tag == b'E'), "a copy was given up: {}", words(&heard));
            }
            Step::Cancel => self.cancels().await?,
        }
        Ok(())
    }

    /// One statement by one name in all sessions, and it is another one in each.
    async fn ask_prepared(&mut self) -> Result<(), Lost> {
        let (tag, id) = (self.tag(), self.id);
        if !self.prepared {
            let heard = self.say(&format!("P who | SELECT concat('{id}:', $1::text)\nS"), 1).await?;
            self.expect(&heard, "1 ZI");
            self.prepared = words(&heard) == "1 ZI";
        }
        if self.prepared {
            let heard = self.say(&format!("B | who | {}:\nE\nS", self.sequence), 1).await?;
            self.expect(&heard, &format!("2 D({tag}:) C(SELECT 1) ZI"));
        }
        Ok(())
    }

    fn expect_rows(&self, heard: &[Message], tag: u8, count: usize) {
        let failed = heard.iter().any(|message| message.tag == b'E');
        let rows = heard.iter().filter(|message| message.tag == tag).count();
        assert!(failed || rows == count, "customer {} got {rows} of {count} rows", self.id);
    }

    fn note(&mut self, parts: i64, fate: Fate) {
        self.writes.insert(self.sequence, (parts, fate));
    }

    /// A script that writes something at its very end, or not at all.
    async fn write(&mut self, parts: i64, script: &str, ready: usize, done: &str) -> Result<(), Lost> {
        self.note(parts, Fate::Unknown);
        let heard = self.say(script, ready).await?;
        let kept = words(&heard).ends_with(&format!("C({done}) ZI"));
        let failed = heard.iter().any(|message| message.tag == b'E');
        assert!(kept || failed, "customer {} wrote {script:?} and heard {}", self.id, words(&heard));
        self.note(parts, if kept { Fate::Acknowledged } else { Fate::Refused });
        Ok(())
    }

    /// Two parts, with a refusal and a savepoint in between, and the row that everybody locks.
    async fn transaction(&mut self, commit: bool) -> Result<(), Lost> {
        let (id, seq) = (self.id, self.sequence);
        let insert = |part: u32| format!("INSERT INTO storage.journal VALUES ({id}, {seq}, {part})");
        // Until COMMIT is sent there is nothing to be kept.
        self.note(2, Fate::Refused);
        for (script, status) in [
            ("Q BEGIN".to_owned(), b'T'),
            (format!("Q {}", insert(0)), b'T'),
            ("Q SAVEPOINT a".to_owned(), b'T'),
            ("Q DELETE FROM dl_cache.person_enrichments".to_owned(), b'E'),
            ("Q ROLLBACK TO a".to_owned(), b'T'),
            (format!("P | {}\nB\nE\nS", insert(1)), b'T'),
            ("Q UPDATE storage.shared SET n = n + 1".to_owned(), b'T'),
        ] {
            let heard = self.say(&script, 1).await?;
            if heard.last().is_none_or(|ready| ready.body != [status]) {
                // It has failed for one of the reasons that are put up with.
                assert!(heard.iter().any(|message| message.tag == b'E'), "{script}: {}", words(&heard));
                return self.say("Q ROLLBACK", 1).await.map(drop);
            }
        }
        if !commit {
            let heard = self.say("Q ROLLBACK", 1).await?;
            self.expect(&heard, "C(ROLLBACK) ZI");
            return Ok(());
        }
        self.note(2, Fate::Unknown);
        let heard = words(&self.say("Q COMMIT", 1).await?);
        let fate = if heard == "C(COMMIT) ZI" { Fate::Acknowledged } else { Fate::Refused };
        assert!(fate == Fate::Acknowledged || heard.contains("ROLLBACK") || heard.contains('E'), "{heard}");
        self.note(2, fate);
        Ok(())
    }

    /// Stops a query of its own, which is stopped or complete.
    async fn cancels(&mut self) -> Result<(), Lost> {
        let script = format!("Q SELECT '{}:' || count(*) FROM generate_series(1, 300000)", self.tag());
        let key = self.wire.as_ref().and_then(|wire| wire.cancel_key.clone());
        let tolerance = self.tolerance;
        self.tolerance.codes = CANCELLED;
        let port = self.credentials.port;
        let request = async {
            if let Some(key) = key {
                let _ = timeout(tolerance.patience, try_cancel(port, &key)).await;
            }
        };
        let (heard, ()) = tokio::join!(self.say(&script, 1), request);
        self.tolerance = tolerance;
        heard.map(drop)
    }

    /// Compares what the customer was told with what there is.
    pub async fn settles(&self, superuser: &Client) {
        let rows = "SELECT seq, count(*), count(DISTINCT part) FROM storage.journal WHERE client = $1 GROUP BY seq";
        let id = i32::try_from(self.id).expect("a small number");
        let mut there: BTreeMap<u32, (i64, i64)> = BTreeMap::new();
        for row in superuser.query(rows, &[&id]).await.expect("the journal") {
            there.insert(row.get::<_, i32>(0).unsigned_abs(), (row.get(1), row.get(2)));
        }
        for (seq, (parts, fate)) in &self.writes {
            let (count, distinct) = there.remove(seq).unwrap_or_default();
            let whole = count == *parts && distinct == *parts;
            let right = match fate {
                Fate::Acknowledged => whole,
                Fate::Refused => count == 0,
                Fate::Unknown => whole || count == 0,
            };
            assert!(right, "customer {id}, write {seq} of {parts} parts, {fate:?}: {count} rows, {distinct} different");
        }
        assert!(there.is_empty(), "customer {id} never wrote {there:?}");
    }
}

/// What a customer who stops his own query may hear besides.
const CANCELLED: &[&str] = &["57014", "57P01", "57P02", "57P03", "53300", "08006"];

/// A CancelRequest over a network that may break; waits until the proxy has closed.
async fn try_cancel(port: u16, key: &[u8]) -> io::Result<()> {
    let length = u32::try_from(8 + key.len()).map_err(io::Error::other)?.to_be_bytes();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(&[&length[..], &80_877_102_u32.to_be_bytes(), key].concat()).await?;
    stream.read_to_end(&mut Vec::new()).await.map(drop)
}
