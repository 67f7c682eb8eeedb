//! What the judge sees in a text is what the server sees in it: as many statements, of the same kind, that touch no relation
//! which the permit does not name. The texts are those of the corpora that pass, and `PORTCULLIS_DIFFERENTIAL` mutations
//! (12,000) of `PORTCULLIS_DIFFERENTIAL_SEED`.
//!
//! Nothing that a text says is done: it is parsed and analysed as a statement of the extended protocol, or, several together,
//! as the body of a function; and run in a transaction that may only read, where PostgreSQL names the command that it
//! refuses. The trees come as notices (`debug_print_parse` and `client_min_messages`).

use std::collections::{BTreeMap, HashMap};
use std::{env, thread};

use portcullis_policy::{Kind, Permit, Policy, RolePolicy, STACK_BYTES, Surface, Target, Verdict, fuzz};
use portcullis_tests::programs;
use portcullis_tests::raw::{Message, Pipeline};
use serde::Deserialize;

use crate::corpus::{self, Text};
use crate::mutate;
use crate::scratch::{DATABASE, Profile, Scratch, Stock};
use crate::session::{Login, Session};
use crate::trees::Refers;

/// How many mutations are compared, unless the environment says otherwise.
const MUTATIONS: u64 = 12_000;

#[derive(Deserialize)]
struct Row {
    role: Option<String>,
    sql: String,
}

/// The corpora's texts for the kinds of a profile; those that must not pass, too: what they become may.
fn seeds(profile: &str) -> Vec<String> {
    let mut seeds = Vec::new();
    for name in ["benign.jsonl", "clients.jsonl", "attack.jsonl"] {
        let rows = corpus::read::<Row>(name).into_iter();
        let of_profile = |row: &Row| row.role.as_ref().is_none_or(|role| role.starts_with(profile));
        seeds.extend(rows.filter(of_profile).map(|row| row.sql).filter(|sql| sql.len() < 8_000));
    }
    seeds.sort();
    seeds.dedup();
    seeds
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_sees_what_the_judge_sees() {
    let number = |name: &str| env::var(name).ok().map(|value| value.parse::<u64>().expect("a number"));
    let mutations = number("PORTCULLIS_DIFFERENTIAL").unwrap_or(MUTATIONS);
    let seed = number("PORTCULLIS_DIFFERENTIAL_SEED").unwrap_or(1);
    eprintln!("PORTCULLIS_DIFFERENTIAL={mutations} PORTCULLIS_DIFFERENTIAL_SEED={seed}");
    let scratch = Scratch::start().await;
    let mut report = Report::default();
    for name in ["storage", "override", "design"] {
        let profile = scratch.profile(name);
        let path = programs::root().join("provisioner/profiles").join(name).join("policy.toml");
        let policy = Policy::parse(&std::fs::read_to_string(path).unwrap()).unwrap();
        let role = policy.primary().expect("a primary kind").as_ref().clone();
        let mut server = Server::open(&scratch, profile).await;
        let seeds = seeds(name);
        let mut texts = seeds.clone();
        texts.extend(mutations_of(&seeds, seed, mutations / 3, profile, &mut server.session).await);
        for (sql, permit) in judge_all(role, texts) {
            server.compare(&sql, &permit, &mut report).await;
        }
    }
    eprintln!("{report:?}");
    assert!(report.trees * 2 > report.allowed, "too little of what is allowed is understood: {report:?}");
    assert!(report.wrong.is_empty(), "{} disagreements:\n{}", report.wrong.len(), report.wrong.join("\n"));
}

/// Half of them with other tokens, half with other functions, tables and values.
async fn mutations_of(
    seeds: &[String],
    seed: u64,
    count: u64,
    profile: &Profile,
    session: &mut Session,
) -> Vec<String> {
    let text = |sql: &String| {
        let role = format!("{}/{}", profile.name, profile.kinds()[0]);
        Text { role, surface: "simple".to_owned(), sql: sql.clone() }
    };
    let mut of_names = mutate::Mutator::new(seed, seeds.iter().map(text).collect(), session).await;
    let mut of_tokens = fuzz::Mutator::new(seed, seeds);
    (0..count).map(|at| if at % 2 == 0 { of_tokens.text() } else { of_names.next(profile).sql }).collect()
}

/// The texts that pass, with their permits.
fn judge_all(role: RolePolicy, texts: Vec<String>) -> Vec<(String, Permit)> {
    let judge = move |sql: String| {
        let target = Target { database_names: &[DATABASE] };
        match portcullis_policy::judge(&role, Surface::SimpleQuery, sql.as_bytes(), &target) {
            Verdict::Allow(permit) => Some((sql, permit)),
            Verdict::Deny(_) => None,
        }
    };
    let all = move || texts.into_iter().filter_map(judge).collect();
    thread::Builder::new().stack_size(STACK_BYTES).spawn(all).unwrap().join().unwrap()
}

#[derive(Debug, Default)]
struct Report {
    allowed: usize,
    /// Texts of which the server printed every statement.
    trees: usize,
    /// Texts of which it named the command.
    commands: usize,
    relations: usize,
    /// Texts that it did not take, by SQLSTATE.
    failures: BTreeMap<String, usize>,
    wrong: Vec<String>,
}

/// A superuser's session that prints what it reads, and the names of its database.
struct Server {
    session: Session,
    relations: HashMap<u32, (String, String)>,
}

/// What the server said of a text.
#[derive(Debug, Default)]
struct Said {
    trees: Vec<Refers>,
    command: Option<String>,
    parameters: usize,
    error: Option<(String, String)>,
}

impl Server {
    async fn open(scratch: &Scratch, profile: &Profile) -> Server {
        scratch.renew(profile, Stock::Full).await;
        let login = Login::new(&[("user", "postgres"), ("database", DATABASE), ("search_path", profile.search_path())])
            .with("client_min_messages", "log")
            .with("debug_print_parse", "on")
            .with("debug_pretty_print", "off")
            .with("default_transaction_read_only", "on");
        let mut session = Session::open(&scratch.access, &login).await;
        // So that their own queries are not among the trees.
        for row in session.own("SELECT quote_ident(evtname) FROM pg_event_trigger").await {
            let trigger = row[0].as_deref().expect("a name");
            session.own(&format!("BEGIN READ WRITE; ALTER EVENT TRIGGER {trigger} DISABLE; COMMIT")).await;
        }
        let mut relations = HashMap::new();
        for row in session.own("SELECT oid, relnamespace::regnamespace::text, relname FROM pg_class").await {
            let [Some(oid), Some(schema), Some(name)] = &row[..] else { panic!("{row:?}") };
            relations.insert(oid.parse().expect("an OID"), (schema.trim_matches('"').to_owned(), name.clone()));
        }
        Server { session, relations }
    }

    async fn compare(&mut self, sql: &str, permit: &Permit, report: &mut Report) {
        report.allowed += 1;
        let mut wrong = Vec::new();
        let parsed = if permit.statements() > 1 { self.body(sql).await } else { self.parse(sql).await };
        match &parsed.error {
            Some((code, message)) if message.contains("multiple commands") => wrong.push(format!("{code} {message}")),
            Some((code, _)) => *report.failures.entry(code.clone()).or_default() += 1,
            None => {
                report.trees += 1;
                if parsed.trees.len() != permit.statements() {
                    wrong.push(format!("{} statements, not {}", parsed.trees.len(), permit.statements()));
                }
            }
        }
        for tree in &parsed.trees {
            wrong.extend(self.unnamed(permit, tree));
            report.relations += tree.relations.len();
        }
        if parsed.error.is_none() && permit.statements() == 1 {
            let run = self.run(sql, parsed.parameters).await;
            if matches!(permit.command(), Kind::CopyOut | Kind::Prepare) {
                // Their queries are analysed as they run; so are those of functions that PostgreSQL defines in SQL.
                let own = |said: &String| !said.starts_with("pg_catalog.");
                wrong.extend(run.trees.iter().flat_map(|tree| self.unnamed(permit, tree)).filter(own));
            }
            let command = run.command();
            report.commands += usize::from(command.is_some());
            wrong.extend(command.filter(|command| !agrees(permit, command)).map(|command| format!("{command} it is")));
        }
        let shown = |what| {
            format!("{what}: {} reads {:?} writes {:?}: {sql}", permit.command(), permit.reads(), permit.writes())
        };
        report.wrong.extend(wrong.into_iter().map(shown));
    }

    /// The relations of a tree that a permit does not name, or names as read alone where they are written.
    fn unnamed(&self, permit: &Permit, tree: &Refers) -> Vec<String> {
        let [reads, writes] = [permit.reads(), permit.writes()];
        let named = |names: &[String], oid: &u32| {
            self.relations.get(oid).is_none_or(|relation| names.iter().any(|name| is(name, relation)))
        };
        let unnamed = tree.relations.iter().filter(|oid| !named(reads, oid) && !named(writes, oid));
        let unwritten = tree.written.iter().filter(|oid| !named(writes, oid));
        let shown = |oid: &u32, what| self.relations.get(oid).map(|(schema, name)| format!("{schema}.{name} {what}"));
        let unnamed = unnamed.filter_map(|oid| shown(oid, "is not named"));
        unnamed.chain(unwritten.filter_map(|oid| shown(oid, "is written"))).collect()
    }

    /// What Parse makes of a text: nothing of it runs.
    async fn parse(&mut self, sql: &str) -> Said {
        let mut pipeline = Pipeline::new();
        pipeline.parse("", sql).describe(b'S', "").sync();
        self.said(&pipeline).await
    }

    /// The same as the body of a function, which PostgreSQL analyses when it is made, statement by statement. Of the trees the
    /// first is CREATE FUNCTION itself.
    async fn body(&mut self, sql: &str) -> Said {
        let quote = format!("$portcullis{}$", sql.len());
        let create = format!("CREATE FUNCTION pg_temp.f() RETURNS void LANGUAGE sql AS {quote}{sql}{quote}");
        self.session.own("BEGIN READ WRITE").await;
        let mut pipeline = Pipeline::new();
        pipeline.query(&create);
        let mut said = self.said(&pipeline).await;
        self.session.own("ROLLBACK").await;
        if !said.trees.is_empty() {
            said.trees.remove(0);
        }
        said
    }

    /// Runs a text where it can change nothing, with NULL for every parameter.
    async fn run(&mut self, sql: &str, parameters: usize) -> Said {
        self.session.own("BEGIN READ ONLY").await;
        let mut pipeline = Pipeline::new();
        pipeline.parse("", sql).bind("", "", &vec![None; parameters]).execute("", 0).sync();
        let said = self.said(&pipeline).await;
        let mut after = Pipeline::new();
        after.query("ROLLBACK").query("DISCARD ALL");
        self.said(&after).await;
        said
    }

    async fn said(&mut self, pipeline: &Pipeline) -> Said {
        let lost = || Said { error: Some(("lost".to_owned(), "the session ended".to_owned())), ..Said::default() };
        self.session.messages(pipeline).await.map_or_else(lost, |messages| said(&messages))
    }
}

impl Said {
    /// The command: its tag, or what a transaction that may only read calls it.
    fn command(&self) -> Option<&str> {
        let refused = self.error.as_ref().filter(|(code, _)| code == "25006");
        let refused =
            refused.and_then(|(_, message)| message.strip_prefix("cannot execute ")?.split(" in a read-only").next());
        self.command.as_deref().or(refused).filter(|command| !command.ends_with("()"))
    }
}

fn said(messages: &[Message]) -> Said {
    let mut said = Said::default();
    for message in messages {
        let field = |code| message.field(code).unwrap_or_default();
        match message.tag {
            b'N' if field(b'M') == "parse tree:" => {
                let mut refers = Refers::default();
                refers.read(&field(b'D'));
                said.trees.push(refers);
            }
            b't' => {
                said.parameters =
                    message.body.get(..2).map_or(0, |count| usize::from(count[0]) << 8 | usize::from(count[1]))
            }
            b'C' => {
                said.command =
                    Some(String::from_utf8_lossy(message.body.split_last().map_or(&[], |(_, tag)| tag)).into_owned())
            }
            b'E' => said.error = Some((field(b'C'), field(b'M'))),
            _ => {}
        }
    }
    said
}

/// Whether a name in a permit may be this relation: unqualified ones are looked up in a search path.
fn is(name: &str, (schema, relation): &(String, String)) -> bool {
    let rest = name.strip_suffix(relation.as_str());
    let rest = rest.map(|rest| rest.strip_suffix('.').map_or(("", rest.is_empty()), |rest| (rest, true)));
    rest.is_some_and(|(rest, whole)| {
        whole
            && (rest.is_empty()
                || rest == schema
                || rest.strip_suffix(schema.as_str()).is_some_and(|rest| rest.ends_with('.')))
    })
}

/// Whether a command, by its tag or as PostgreSQL names it when it refuses it, is of a permit's kind.
fn agrees(permit: &Permit, command: &str) -> bool {
    const WRITES: &[&str] = &["SELECT", "INSERT", "UPDATE", "DELETE", "MERGE"];
    let (kind, own) = (permit.command(), [permit.command().name()]);
    let starts: &[&str] = match kind {
        Kind::Transaction => &["BEGIN", "START TRANSACTION", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE"],
        Kind::CopyIn | Kind::CopyOut => &["COPY"],
        Kind::CreateTableAs => &["CREATE TABLE AS", "SELECT INTO"],
        Kind::Set => &["SET", "RESET"],
        Kind::Fetch => &["FETCH", "MOVE"],
        Kind::CloseCursor => &["CLOSE CURSOR"],
        _ => &own,
    };
    // It is the statement inside that PostgreSQL refuses and names.
    let inside = matches!(kind, Kind::CopyOut | Kind::Explain | Kind::DeclareCursor) && !permit.writes().is_empty();
    let is = |start: &&str| command.strip_prefix(*start).is_some_and(|rest| rest.is_empty() || rest.starts_with(' '));
    starts.iter().any(is) || inside && WRITES.iter().any(is)
}

#[test]
fn a_name_is_a_relation_of_its_schema() {
    let relation = ("storage".to_owned(), "t".to_owned());
    for name in ["t", "storage.t", "own_database.storage.t"] {
        assert!(is(name, &relation), "{name}");
    }
    for name in ["", "tt", "xt", "x.t", "xstorage.t", "storage.tt", "storage", "storage.t.x"] {
        assert!(!is(name, &relation), "{name}");
    }
}
