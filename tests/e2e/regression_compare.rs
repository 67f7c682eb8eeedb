//! PostgreSQL's own regression suite through the gate and around it: the same statements in the same order, as the same
//! backend role, into databases that are alike; every message of every answer has to be the same.
//!
//! Each statement goes to three databases: to one through the gate, to two around it. Where those two differ (times, numbers
//! of processes and objects, chance) there is nothing to compare.
//!
//! The tests take every `PORTCULLIS_REGRESS_EVERY`th statement (4) of those that `policy/corpus/regress` holds; their tables
//! are missing, so half of the answers are errors with their positions. By hand, with the sources of PostgreSQL,
//! `PORTCULLIS_REGRESS=…/src/test/regress cargo test -p portcullis-tests --test e2e regression_compare -- --nocapture` runs the
//! suite's files, tables, COPY data and transactions included. What the policy refuses is left out on all sides.
#![allow(clippy::print_stderr)]

use std::{env, fs, path::Path, sync::Arc, time::Duration};

use bytes::{BufMut, BytesMut};
use portcullis_policy::{Policy, STACK_BYTES, Surface, Target, Verdict, judge};
use portcullis_tests::{
    Stack, Workspace, programs,
    raw::{Message, Pipeline, Wire},
    script::words,
};
use serde::Deserialize;
use tokio::time::timeout;

/// The kind of login that the statements run as, and its profile.
const KIND: &str = "developer";
const PROFILE: &str = "design";
/// How long one answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// One statement of the suite, with the data that psql would copy behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Statement {
    sql: String,
    copy: String,
}

#[derive(Deserialize)]
struct Row {
    sql: String,
}

/// A file of the suite.
type File = (String, Vec<Statement>);

fn vendored() -> Vec<File> {
    let text = fs::read_to_string(programs::root().join("policy/corpus/regress/statements.jsonl")).expect("the corpus");
    let every = env::var("PORTCULLIS_REGRESS_EVERY").map_or(4, |every| every.parse().expect("a number"));
    let rows = text.lines().map(|line| serde_json::from_str::<Row>(line).expect("a row"));
    let statements = rows.step_by(every).map(|row| Statement { sql: row.sql, copy: String::new() }).collect();
    vec![("statements.jsonl".to_owned(), statements)]
}

/// The files of the schedule, in its order; `PORTCULLIS_REGRESS_FILES=boolean,join` takes some only.
fn suite(folder: &Path) -> Vec<File> {
    let schedule = fs::read_to_string(folder.join("parallel_schedule")).expect("parallel_schedule");
    let tests = schedule.lines().filter_map(|line| line.strip_prefix("test:")).flat_map(str::split_whitespace);
    let read = |name: &str| fs::read_to_string(folder.join("sql").join(format!("{name}.sql"))).ok();
    let files = env::var("PORTCULLIS_REGRESS_FILES").ok();
    let wanted = |name: &&str| files.as_ref().is_none_or(|files| files.split(',').any(|file| file == *name));
    tests.filter(wanted).filter_map(|name| Some((name.to_owned(), statements(&read(name)?)))).collect()
}

/// The statements of a file for psql, as psql cuts them. Lines with its own commands are dropped, and with them what it would
/// put in place of variables.
fn statements(file: &str) -> Vec<Statement> {
    let mut all = Vec::new();
    let mut lines = file.split_inclusive('\n');
    let (mut text, mut state) = (String::new(), Cut::default());
    while let Some(line) = lines.next() {
        if state == Cut::default() && line.trim_start().starts_with('\\') {
            continue;
        }
        let mut rest = line;
        while let Some(at) = state.end_of_statement(rest) {
            text.push_str(&rest[..at]);
            let sql = std::mem::take(&mut text).trim().to_owned();
            let copies = sql.to_lowercase().contains("from stdin");
            let copy = if copies {
                lines.by_ref().take_while(|line| line.trim_end() != "\\.").collect()
            } else {
                String::new()
            };
            all.push(Statement { sql, copy });
            rest = &rest[at + 1..];
        }
        match rest.find('\\').filter(|_| state == Cut::default()) {
            // \gset and the like end a statement.
            Some(_) => text.clear(),
            None => text.push_str(rest),
        }
    }
    all.retain(|statement| !statement.sql.is_empty());
    all
}

/// Where in a text one is: within quotes, comments, brackets.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Cut {
    quote: Option<String>,
    comments: usize,
    brackets: usize,
}

impl Cut {
    /// Where the next statement ends in these bytes, if it does.
    fn end_of_statement(&mut self, text: &str) -> Option<usize> {
        let bytes = text.as_bytes();
        let mut at = 0;
        while at < bytes.len() {
            let rest = &text[at..];
            if let Some(quote) = &self.quote {
                let ends = rest.find(quote.as_str())?;
                at += ends + quote.len();
                self.quote = None;
            } else if rest.starts_with("/*") || (self.comments > 0 && rest.starts_with("*/")) {
                self.comments = if rest.starts_with("/*") { self.comments + 1 } else { self.comments - 1 };
                at += 2;
            } else if self.comments > 0 {
                at += rest.chars().next().map_or(1, char::len_utf8);
            } else if rest.starts_with("--") {
                at += rest.find('\n').unwrap_or(rest.len());
            } else {
                match bytes[at] {
                    b'\'' | b'"' => self.quote = Some(rest[..1].to_owned()),
                    b'$' => self.quote = dollar(rest),
                    b'(' => self.brackets += 1,
                    b')' => self.brackets = self.brackets.saturating_sub(1),
                    b';' if self.brackets == 0 => return Some(at),
                    _ => {}
                }
                at += match &self.quote {
                    Some(quote) => quote.len(),
                    None => rest.chars().next().map_or(1, char::len_utf8),
                };
            }
        }
        None
    }
}

/// The `$tag$` that a text begins with.
fn dollar(text: &str) -> Option<String> {
    let end = text[1..].find('$')? + 2;
    let tag = &text[1..end - 1];
    let is_tag = tag.chars().all(|c| c.is_alphanumeric() || c == '_') && !tag.starts_with(|c: char| c.is_ascii_digit());
    is_tag.then(|| text[..end].to_owned())
}

/// Those that the policy lets pass on this surface. On a thread with a stack of its own, as in the proxy.
fn passing(statements: Vec<Statement>, surface: Surface) -> Vec<Statement> {
    let path = programs::root().join("provisioner/profiles").join(PROFILE).join("policy.toml");
    let policy = Policy::parse(&fs::read_to_string(path).expect("the policy")).expect("a policy");
    let role: Arc<_> = policy.kinds().iter().find(|kind| kind.kind() == KIND).expect("its kind").clone();
    let judge_all = move || {
        let target = Target { database_names: &["regression"] };
        let passes = |statement: &Statement| {
            matches!(judge(&role, surface, statement.sql.as_bytes(), &target), Verdict::Allow(_))
        };
        statements.into_iter().filter(passes).collect()
    };
    std::thread::Builder::new().stack_size(STACK_BYTES).spawn(judge_all).expect("a thread").join().expect("verdicts")
}

/// One of the three databases.
struct Side {
    workspace: Workspace,
    through_the_gate: bool,
    /// What of its answers is its own: names that the others do not have.
    own: Vec<(String, &'static str)>,
    wire: Wire,
}

impl Side {
    async fn new(stack: &Stack, through_the_gate: bool) -> Side {
        let workspace = stack.workspace(PROFILE).await;
        let credentials = workspace.reveal(KIND).await;
        let own = vec![
            (credentials.database, "DATABASE"),
            (credentials.username, "LOGIN"),
            (workspace.id.clone(), "WORKSPACE"),
        ];
        let wire = Side::connect(&workspace, through_the_gate).await;
        Side { workspace, through_the_gate, own, wire }
    }

    async fn connect(workspace: &Workspace, through_the_gate: bool) -> Wire {
        let credentials = workspace.reveal(KIND).await;
        if through_the_gate {
            return Wire::login(&credentials).await;
        }
        let (role, login) = workspace.backend_role(KIND).await;
        let parameters = [
            ("user", login.as_str()),
            ("database", &credentials.database),
            ("role", &role),
            ("client_encoding", "UTF8"),
            ("search_path", "public"),
        ];
        Wire::around_the_gate(&workspace.access.home, workspace.access.postgres_port, &parameters).await
    }

    /// The whole answer; what was heard until then, and why there is no more.
    async fn run(&mut self, statement: &Statement, extended: bool) -> Vec<Message> {
        let mut heard = Vec::new();
        let ended = timeout(ANSWER_MAX, self.talk(statement, extended, &mut heard)).await;
        if !matches!(ended, Ok(Ok(()))) {
            heard.push(Message { tag: b'!', body: Vec::new() });
            self.wire = Side::connect(&self.workspace, self.through_the_gate).await;
        }
        let of_them_all = |message: Message| self.of_them_all(message);
        heard.into_iter().filter(|message| message.tag != b'S').map(of_them_all).collect()
    }

    async fn talk(&mut self, statement: &Statement, extended: bool, heard: &mut Vec<Message>) -> std::io::Result<()> {
        let mut pipeline = Pipeline::new();
        if extended {
            pipeline.parse("", &statement.sql).describe(b'S', "").bind("", "", &[]).describe(b'P', "");
            pipeline.execute("", 0).sync();
        } else {
            pipeline.query(&statement.sql);
        }
        self.wire.send(&pipeline.bytes).await?;
        loop {
            let message = self.wire.next().await?;
            if message.tag == b'G' {
                self.wire.send(&copy_data(&statement.copy, extended)).await?;
            }
            let done = message.tag == b'Z';
            heard.push(message);
            if done {
                return Ok(());
            }
        }
    }

    /// The message with what must differ from database to database in the words of all.
    fn of_them_all(&self, mut message: Message) -> Message {
        match message.tag {
            // Numbers of tables and of types that the suite has made.
            b'T' => without_numbers(&mut message.body),
            b'D' | b'E' | b'N' | b'd' | b'C' => {
                let mut text = String::from_utf8_lossy(&message.body).into_owned();
                for (own, common) in &self.own {
                    text = text.replace(own.as_str(), common);
                }
                message.body = text.into_bytes();
            }
            _ => {}
        }
        message
    }
}

/// RowDescription: the numbers of tables, and of types that are none of PostgreSQL's own, as zero.
fn without_numbers(body: &mut [u8]) {
    let mut at = 2;
    while let Some(name) = body[at.min(body.len())..].iter().position(|byte| *byte == 0) {
        let fields = at + name + 1;
        body[fields..fields + 4].fill(0);
        let kind = &mut body[fields + 6..fields + 10];
        if u32::from_be_bytes([kind[0], kind[1], kind[2], kind[3]]) >= 16_384 {
            kind.fill(0);
        }
        at = fields + 18;
    }
}

fn copy_data(data: &str, extended: bool) -> BytesMut {
    let mut out = BytesMut::new();
    if !data.is_empty() {
        out.put_u8(b'd');
        out.put_i32(i32::try_from(data.len() + 4).expect("short data"));
        out.put_slice(data.as_bytes());
    }
    out.put_slice(b"c\0\0\0\x04");
    if extended {
        // The one that came with the Execute was swallowed by the copy.
        out.put_slice(b"S\0\0\0\x04");
    }
    out
}

/// What a comparison found.
#[derive(Debug, Default)]
struct Report {
    compared: usize,
    errors: usize,
    /// Differences around the gate: nothing to compare.
    noise: usize,
    differences: Vec<String>,
}

/// Differences that are meant, by their reason: the statement or the answer tells.
fn is_meant(sql: &str, through: &[Message], around: &[Message]) -> Option<&'static str> {
    let lower = sql.to_lowercase();
    let gate_closes = |message: &Message| message.field(b'D').is_some_and(|detail| detail.starts_with("Rule "));
    if lower.contains("pg_prepared_statements") || lower.contains("pg_cursors") {
        return Some("the names of statements at the server are the proxy's");
    }
    let unknown_name = |heard: &[Message]| {
        let error = heard.iter().find(|message| message.field(b'C').as_deref() == Some("26000"));
        error.and_then(|error| error.field(b'M'))
    };
    if unknown_name(through).is_some()
        && unknown_name(through) == unknown_name(around)
        && words(through) == words(around)
    {
        return Some(
            "an unknown prepared statement is the proxy's own error: without the place in PostgreSQL's source",
        );
    }
    if through.iter().any(gate_closes) {
        return Some("refused when it is bound: a setting's value");
    }
    None
}

async fn compare(files: Vec<File>, extended: bool, stack: &Stack) -> Report {
    let mut report = Report::default();
    let (mut through, mut around, mut again) =
        tokio::join!(Side::new(stack, true), Side::new(stack, false), Side::new(stack, false));
    for (name, statements) in files {
        let before = report.differences.len();
        compare_file(statements, extended, [&mut through, &mut around, &mut again], &mut report).await;
        let differences = report.differences[before..].join("\n");
        eprintln!("{name} ({}): {} compared until here\n{differences}", protocol(extended), report.compared);
    }
    report
}

fn protocol(extended: bool) -> &'static str {
    if extended { "extended" } else { "simple" }
}

async fn compare_file(statements: Vec<Statement>, extended: bool, sides: [&mut Side; 3], report: &mut Report) {
    let surface = if extended { Surface::Parse } else { Surface::SimpleQuery };
    let [through, around, again] = sides;
    for statement in passing(statements, surface) {
        let (gate, server, second) = tokio::join!(
            through.run(&statement, extended),
            around.run(&statement, extended),
            again.run(&statement, extended)
        );
        if server != second {
            report.noise += 1;
            continue;
        }
        report.compared += 1;
        report.errors += usize::from(server.iter().any(|message| message.tag == b'E'));
        if gate != server && is_meant(&statement.sql, &gate, &server).is_none() {
            let clip = |text: String| text.chars().take(600).collect::<String>();
            let fields = |heard: &[Message]| {
                let errors = heard.iter().filter(|message| matches!(message.tag, b'E' | b'N'));
                errors
                    .map(|error| String::from_utf8_lossy(&error.body).replace('\0', " "))
                    .collect::<Vec<_>>()
                    .join("; ")
            };
            report.differences.push(format!(
                "{}\n  gate:   {} {}\n  server: {} {}",
                clip(statement.sql.clone()),
                clip(words(&gate)),
                fields(&gate),
                clip(words(&server)),
                fields(&server)
            ));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_gate_answers_as_postgresql_does() {
    let stack = Stack::shared().await;
    let folder = env::var_os("PORTCULLIS_REGRESS");
    let files = folder.map_or_else(vendored, |folder| suite(Path::new(&folder)));
    let count: usize = files.iter().map(|(_, statements)| statements.len()).sum();
    let (simple, extended) = tokio::join!(compare(files.clone(), false, &stack), compare(files, true, &stack));
    for (name, report) in [(protocol(false), simple), (protocol(true), extended)] {
        eprintln!(
            "{name}: of {count} statements {} compared ({} errors), {} differ by themselves, {} differences",
            report.compared,
            report.errors,
            report.noise,
            report.differences.len()
        );
        assert!(report.compared * 3 > count, "{name}: too few were compared");
        assert!(report.noise * 10 < report.compared, "{name}: too many differ by themselves");
        assert!(report.differences.is_empty(), "{name}:\n{}", report.differences.join("\n"));
    }
}

#[test]
fn a_file_is_cut_as_psql_cuts_it() {
    let file = "-- a; comment\nSELECT 'a;b', \"c;d\"; SELECT $x$;$x$ /* ; /* ; */ */;\n\\d t\n\
                COPY t FROM stdin;\n1\ta;b\n\\.\nSELECT 1 \\gset\nCREATE RULE r AS ON INSERT TO t DO (SELECT 1; SELECT 2);\n";
    let all: Vec<(String, String)> = statements(file).into_iter().map(|one| (one.sql, one.copy)).collect();
    let expected = [
        ("-- a; comment\nSELECT 'a;b', \"c;d\"", ""),
        ("SELECT $x$;$x$ /* ; /* ; */ */", ""),
        ("COPY t FROM stdin", "1\ta;b\n"),
        ("CREATE RULE r AS ON INSERT TO t DO (SELECT 1; SELECT 2)", ""),
    ];
    assert_eq!(all, expected.map(|(sql, copy)| (sql.to_owned(), copy.to_owned())));
}
