//! What the judge allows does what it may and nothing else. Every text of the corpora that passes, and as many mutations as
//! `PORTCULLIS_EFFECTS` says (3,000; a million take hours), run on a scratch copy: once as a superuser, whom no grant stops,
//! and once as the backend role, whose session is then reset as the proxy resets it.
//!
//! `PORTCULLIS_EFFECTS_SEED` chooses the mutations; the seed is printed. `PORTCULLIS_EFFECTS_LOG` names a file for every
//! text that ran.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    env,
    fs::File,
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    sync::Arc,
};

use portcullis_policy::{Effect, Permit, Policy, RolePolicy, Surface, TaintReason, Target, Verdict};
use portcullis_tests::programs;
use serde::Deserialize;

use crate::{
    corpus::{self, Text},
    fingerprint::{self, Fingerprint},
    mutate::Mutator,
    names::Names,
    scratch::{DATABASE, Profile, Scratch, Stock},
    session::{Answer, Login, Session},
    trees::{self, Refers},
};

/// How many mutations are judged, unless the environment says otherwise.
const MUTATIONS: usize = 3_000;
/// After so many texts the state beyond transactions is looked at.
const BATCH: usize = 250;

#[derive(Deserialize)]
struct Row {
    role: Option<String>,
    surface: Option<String>,
    protocol: Option<String>,
    sql: String,
}

/// The corpora's texts, those that must not pass included: what they become may.
fn seeds() -> Vec<Text> {
    let mut seeds = Vec::new();
    for name in ["benign.jsonl", "clients.jsonl", "attack.jsonl"] {
        for row in corpus::read::<Row>(name) {
            let surface = row.surface.or(row.protocol).expect("a surface");
            let surface = if surface == "extended" { "parse".to_owned() } else { surface };
            let role = row.role.unwrap_or_else(|| "storage/customer_db".to_owned());
            seeds.push(Text { role, surface, sql: row.sql });
        }
    }
    seeds
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_judge_allows_has_no_other_effect() {
    let number = |name: &str| env::var(name).ok().map(|value| value.parse::<u64>().expect("a number"));
    let mutations = number("PORTCULLIS_EFFECTS").map_or(MUTATIONS, |count| usize::try_from(count).expect("a count"));
    let seed = number("PORTCULLIS_EFFECTS_SEED").unwrap_or_else(portcullis_tests::cluster::random);
    eprintln!("PORTCULLIS_EFFECTS_SEED={seed} PORTCULLIS_EFFECTS={mutations}");
    let scratch = Scratch::start().await;
    let seeds = seeds();
    let mut report = Report::default();
    for (at, name) in ["storage", "override", "design"].into_iter().enumerate() {
        let profile = scratch.profile(name);
        let mut laboratory = Laboratory::new(&scratch, profile).await;
        let mut tried = HashSet::new();
        for text in seeds.iter().filter(|text| text.profile() == name) {
            if tried.insert(text.clone()) {
                laboratory.try_text(text, &mut report).await;
            }
        }
        // The profile that most customers have gets half.
        let share = if at == 0 { mutations / 2 } else { mutations / 4 };
        let mut mutator = Mutator::new(seed ^ at as u64, seeds.clone(), &mut laboratory.superuser).await;
        for _ in 0..share {
            let text = mutator.next(profile);
            if tried.insert(text.clone()) {
                report.mutations += 1;
                laboratory.try_text(&text, &mut report).await;
            }
        }
        laboratory.look_beyond(&mut report).await;
    }
    eprintln!("{report}");
    assert!(report.executed * 3 >= report.allowed, "too little of what is allowed can run: {report}");
    assert!(report.holes.is_empty(), "seed {seed}: {} holes:\n{}", report.holes.len(), report.holes.join("\n"));
}

#[derive(Debug, Default)]
struct Report {
    texts: usize,
    mutations: usize,
    allowed: usize,
    executed: usize,
    succeeded: usize,
    wrote: usize,
    trees: usize,
    failures: BTreeMap<String, usize>,
    holes: Vec<String>,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Report { texts, mutations, allowed, executed, succeeded, wrote, trees, failures, holes } = self;
        write!(
            f,
            "{texts} texts, {mutations} of them mutations; {allowed} allowed; {executed} executed, {succeeded} without an error, \
             {wrote} wrote; {trees} trees read; {} holes; failures {failures:?}",
            holes.len()
        )
    }
}

/// A copy of one profile's database, and the sessions that try texts in it.
struct Laboratory<'a> {
    scratch: &'a Scratch,
    profile: &'a Profile,
    policy: Policy,
    /// Prints what it runs.
    superuser: Session,
    /// Looks on.
    observer: Session,
    backends: BTreeMap<String, Session>,
    names: Names,
    /// Per kind: the question, and the answer before.
    questions: BTreeMap<String, (String, Fingerprint)>,
    beyond: Fingerprint,
    batch: Vec<String>,
    log: File,
    ran: Option<File>,
}

/// How one text went in one session.
struct Run {
    answer: Option<Answer>,
    alone: bool,
    wrote: bool,
    holes: Vec<String>,
}

impl<'a> Laboratory<'a> {
    async fn new(scratch: &'a Scratch, profile: &'a Profile) -> Laboratory<'a> {
        scratch.renew(profile, Stock::Full).await;
        let path = programs::root().join("provisioner/profiles").join(profile.name).join("policy.toml");
        let policy = Policy::parse(&std::fs::read_to_string(path).unwrap()).unwrap();
        let (superuser, observer) = superusers(scratch, profile).await;
        let log = File::open(scratch.access.home.join("postgres.log")).expect("the server's log");
        let ran = env::var_os("PORTCULLIS_EFFECTS_LOG")
            .map(|path| File::options().create(true).append(true).open(path).expect("the log of what ran"));
        let mut this = Laboratory {
            scratch,
            profile,
            policy,
            superuser,
            observer,
            backends: BTreeMap::new(),
            names: Names::default(),
            questions: BTreeMap::new(),
            beyond: Fingerprint::new(),
            batch: Vec::new(),
            log,
            ran,
        };
        this.settle().await;
        this.beyond = fingerprint::beyond(&mut this.observer, &scratch.access.home).await;
        this
    }

    /// Starts over with a new copy.
    async fn renew(&mut self) {
        self.backends.clear();
        self.scratch.renew(self.profile, Stock::Full).await;
        (self.superuser, self.observer) = superusers(self.scratch, self.profile).await;
        self.settle().await;
    }

    async fn settle(&mut self) {
        self.names = Names::load(&mut self.observer).await;
        for kind in self.profile.kinds() {
            let role = self.policy.kind(kind).expect("a kind").clone();
            let define = role.definable_schemas();
            let question = fingerprint::question(&mut self.observer, &define, &role.writable_schemas()).await;
            let before = fingerprint::take(&mut self.observer, &question).await;
            self.questions.insert(kind.to_owned(), (question, before));
            let login = self.profile.login(kind, DATABASE);
            self.backends.insert(kind.to_owned(), Session::open(&self.scratch.access, &login).await);
        }
    }

    /// Judges a text and, where it passes, runs it both ways.
    async fn try_text(&mut self, text: &Text, report: &mut Report) {
        report.texts += 1;
        let role = self.policy.kind(text.kind()).expect("a kind").clone();
        let Some(permit) = judge(role.clone(), text.clone()).await else { return };
        report.allowed += 1;
        let run = self.as_superuser(text, &role, &permit, report).await;
        let code = run.answer.as_ref().map_or("lost", Answer::sqlstate).to_owned();
        // Class 42: it was never more than a text.
        let executed = !code.starts_with("42");
        report.executed += usize::from(executed);
        report.succeeded += usize::from(code.is_empty());
        report.wrote += usize::from(run.wrote);
        *report.failures.entry(code.clone()).or_default() += 1;
        if let Some(ran) = &mut self.ran {
            let _ = writeln!(ran, "{code}\t{}\t{}", text.role, text.sql.replace(['\n', '\t'], " "));
        }
        let mut holes: Vec<String> = run.holes.into_iter().map(|hole| format!("as a superuser {hole}")).collect();
        if executed {
            let own = run.wrote && !run.alone && !governs(&permit);
            let found = self.as_backend(text, &permit, own).await;
            holes.extend(found.into_iter().map(|hole| format!("as the backend role {hole}")));
        }
        report.holes.extend(holes.into_iter().map(|hole| format!("{}: {hole}: {}", text.role, text.sql)));
        self.batch.push(format!("{}: {}", text.role, text.sql));
        if self.batch.len() >= BATCH {
            self.look_beyond(report).await;
        }
    }

    async fn look_beyond(&mut self, report: &mut Report) {
        let now = fingerprint::beyond(&mut self.observer, &self.scratch.access.home).await;
        let changed = fingerprint::differences(&self.beyond, &now);
        if !changed.is_empty() {
            let texts = self.batch.join("\n    ");
            report.holes.push(format!("{}, by one of\n    {texts}", changed.join("; ")));
        }
        self.beyond = now;
        self.batch.clear();
    }

    /// In a transaction that is rolled back, unless the text has its own.
    async fn as_superuser(&mut self, text: &Text, role: &Arc<RolePolicy>, permit: &Permit, report: &mut Report) -> Run {
        let inside = !governs(permit);
        let xid = completed_xid(&mut self.observer).await;
        if inside {
            self.superuser.own("BEGIN").await;
        }
        let from = self.log.seek(SeekFrom::End(0)).expect("the log can be sought");
        let mut answer = self.superuser.run(text).await;
        let alone = inside && answer.as_ref().is_some_and(|answer| answer.sqlstate() == "25001");
        if alone {
            self.superuser.own("ROLLBACK").await;
            answer = self.superuser.run(text).await;
        }
        let mut printed = trees::printed(&self.log_since(from));
        report.trees += printed.trees;
        let mut holes = Vec::new();
        let healthy = answer.as_ref().is_some_and(|answer| answer.status == 'T' || answer.status == 'I');
        let in_transaction = answer.as_ref().is_some_and(|answer| answer.status == 'T');
        let wrote = if in_transaction {
            self.superuser.own("SELECT pg_current_xact_id_if_assigned()").await[0][0].is_some()
        } else {
            completed_xid(&mut self.observer).await != xid
        };
        if healthy {
            holes.extend(self.stray_settings(permit).await);
            holes.extend(self.stray_locks(role).await);
        }
        if healthy && wrote {
            let (question, before) = &self.questions[text.kind()];
            let now = fingerprint::take(&mut self.superuser, question).await;
            holes.extend(fingerprint::differences(before, &now));
            printed.run.add(&self.stored(role).await);
        }
        let reads = |schema: &str| {
            role.readable_schemas().contains(&schema)
                || role.writable_schemas().contains(&schema)
                || schema.starts_with("pg_t")
        };
        holes.extend(self.names.forbidden(&printed, &reads));
        if answer.as_ref().is_some_and(|answer| answer.status != 'I') {
            self.superuser.own("ROLLBACK").await;
        }
        if answer.is_some() {
            self.superuser.own("DISCARD ALL").await;
        }
        if wrote && (!inside || alone || !in_transaction) {
            self.renew().await;
        }
        Run { answer, alone, wrote, holes }
    }

    /// `inside`: in a transaction that is rolled back; otherwise as it comes, and then the proxy's reset.
    async fn as_backend(&mut self, text: &Text, permit: &Permit, inside: bool) -> Vec<String> {
        let xid = completed_xid(&mut self.observer).await;
        let backend = self.backends.get_mut(text.kind()).expect("a session");
        if inside {
            backend.own("BEGIN").await;
        }
        let answer = backend.run(text).await;
        if answer.as_ref().is_some_and(|answer| answer.status != 'I') {
            backend.own("ROLLBACK").await;
        }
        let mut holes = Vec::new();
        if answer.is_some() {
            for statement in reset(permit) {
                backend.own(&statement).await;
            }
            let state = backend.own("SELECT portcullis_check.state()").await;
            let state = state[0][0].clone().unwrap_or_default();
            if !state.is_empty() {
                holes.push(format!("leaves {state}"));
            }
            backend.own("DISCARD ALL").await;
        }
        if !inside && completed_xid(&mut self.observer).await != xid {
            let (question, before) = self.questions[text.kind()].clone();
            let now = fingerprint::take(&mut self.observer, &question).await;
            holes.extend(fingerprint::differences(&before, &now));
            self.renew().await;
        }
        holes
    }

    fn log_since(&mut self, from: u64) -> String {
        self.log.seek(SeekFrom::Start(from)).expect("the log can be sought");
        let mut bytes = Vec::new();
        self.log.read_to_end(&mut bytes).expect("the log reads");
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Settings that the text has changed without its permit saying so.
    async fn stray_settings(&mut self, permit: &Permit) -> Vec<String> {
        let effects = permit.effects();
        if effects.contains(&Effect::Taint(TaintReason::Setting)) {
            // Everything is discarded.
            return Vec::new();
        }
        let told = effects.iter().filter_map(|effect| match effect {
            Effect::Set { name, .. } | Effect::SetBound { name, .. } => Some(name.as_str()),
            _ => None,
        });
        let told: BTreeSet<&str> = told.collect();
        // The modes of a transaction end with it.
        let question = "SELECT lower(name) FROM pg_settings WHERE source = 'session' AND name NOT LIKE 'transaction%'";
        let changed = self.superuser.own(question).await;
        let names = changed.iter().filter_map(|row| row[0].as_deref());
        names.filter(|name| !told.contains(name)).map(|name| format!("sets {name}")).collect()
    }

    /// Locks on relations outside the role's schemas that hold up others.
    async fn stray_locks(&mut self, role: &RolePolicy) -> Vec<String> {
        let own: Vec<String> = role.writable_schemas().iter().map(|name| format!("'{name}'")).collect();
        let own = if own.is_empty() { "''".to_owned() } else { own.join(", ") };
        let question = format!(
            "SELECT concat(l.mode, ' on ', l.relation::regclass, l.classid::regclass, ' ', l.locktype) FROM pg_locks l
               LEFT JOIN pg_class c ON c.oid = l.relation LEFT JOIN pg_namespace n ON n.oid = c.relnamespace
              WHERE l.pid = {} AND (l.locktype = 'advisory' OR l.locktype = 'relation' AND l.mode <> 'AccessShareLock'
                    -- The lock with which pg_sequences and pg_sequence_last_value look at a sequence.
                    AND NOT (c.relkind = 'S' AND l.mode = 'RowExclusiveLock')
                    AND n.nspname NOT IN ({own}, 'pg_catalog', 'pg_toast'))",
            self.superuser.pid()
        );
        self.observer
            .own(&question)
            .await
            .iter()
            .filter_map(|row| row[0].clone())
            .map(|lock| format!("locks {lock}"))
            .collect()
    }

    /// What definitions in the role's own schemas refer to: utility statements print no tree.
    async fn stored(&mut self, role: &RolePolicy) -> Refers {
        let own: Vec<String> = role.definable_schemas().iter().map(|name| format!("'{name}'")).collect();
        let mut refers = Refers::default();
        if own.is_empty() {
            return refers;
        }
        let question = format!(
            "WITH home AS (SELECT oid FROM pg_namespace WHERE nspname IN ({}))
             SELECT adbin::text FROM pg_attrdef JOIN pg_class c ON c.oid = adrelid WHERE c.relnamespace IN (SELECT oid FROM home)
             UNION ALL SELECT conbin::text FROM pg_constraint WHERE connamespace IN (SELECT oid FROM home)
             UNION ALL SELECT concat(indexprs, indpred) FROM pg_index JOIN pg_class c ON c.oid = indexrelid
                        WHERE c.relnamespace IN (SELECT oid FROM home)
             UNION ALL SELECT concat(partexprs) FROM pg_partitioned_table JOIN pg_class c ON c.oid = partrelid
                        WHERE c.relnamespace IN (SELECT oid FROM home)
             UNION ALL SELECT relpartbound::text FROM pg_class WHERE relnamespace IN (SELECT oid FROM home)
             UNION ALL SELECT typdefaultbin::text FROM pg_type WHERE typnamespace IN (SELECT oid FROM home)
             UNION ALL SELECT stxexprs::text FROM pg_statistic_ext WHERE stxnamespace IN (SELECT oid FROM home)
             UNION ALL SELECT ev_action::text FROM pg_rewrite JOIN pg_class c ON c.oid = ev_class
                        WHERE c.relnamespace IN (SELECT oid FROM home)",
            own.join(", ")
        );
        for row in self.superuser.own(&question).await {
            if let Some(tree) = &row[0] {
                refers.read(tree);
            }
        }
        refers
    }
}

/// One that prints every tree, and one that looks on. Event triggers, which spare superusers, would print their own.
async fn superusers(scratch: &Scratch, profile: &Profile) -> (Session, Session) {
    let path = profile.search_path();
    let login = Login::new(&[("user", "postgres"), ("database", DATABASE), ("search_path", path)]);
    let mut observer = Session::open(&scratch.access, &login.clone().with("statement_timeout", "60000")).await;
    observer.own(include_str!("state.sql")).await;
    observer.own("ALTER EVENT TRIGGER portcullis_ddl_command_end DISABLE").await;
    observer.own("ALTER EVENT TRIGGER portcullis_sql_drop DISABLE").await;
    let printing = login
        .with("debug_print_parse", "on")
        .with("debug_print_rewritten", "on")
        .with("debug_print_plan", "on")
        .with("debug_pretty_print", "off")
        .with("log_min_error_statement", "panic")
        .with("log_min_messages", "log");
    (Session::open(&scratch.access, &printing).await, observer)
}

/// Moves when a transaction that has written ends.
async fn completed_xid(session: &mut Session) -> String {
    session.own("SELECT pg_snapshot_xmax(pg_current_snapshot())").await[0][0].clone().expect("a number")
}

/// Deep texts take a deep stack, as the proxy's workers have.
async fn judge(role: Arc<RolePolicy>, text: Text) -> Option<Permit> {
    let judging = std::thread::Builder::new().stack_size(portcullis_policy::STACK_BYTES).spawn(move || {
        let surface = match text.surface.as_str() {
            "simple" => Surface::SimpleQuery,
            "http" => Surface::Http,
            _ => Surface::Parse,
        };
        let target = Target { database_names: &[DATABASE] };
        match portcullis_policy::judge(&role, surface, text.sql.as_bytes(), &target) {
            Verdict::Allow(permit) => Some(permit),
            Verdict::Deny(_) => None,
        }
    });
    judging.expect("a thread").join().expect("the judge does not panic")
}

/// Whether the text begins or ends transactions itself.
fn governs(permit: &Permit) -> bool {
    permit.effects().iter().any(|effect| {
        matches!(
            effect,
            Effect::Begin
                | Effect::Commit { .. }
                | Effect::Rollback { .. }
                | Effect::Savepoint(_)
                | Effect::RollbackTo(_)
                | Effect::Release(_)
        )
    })
}

/// What the proxy sends before another session gets the connection: everything is discarded where the permit says that
/// something stays behind, and otherwise the settings that it names go back, and values of sequences are dropped.
fn reset(permit: &Permit) -> Vec<String> {
    let effects = permit.effects();
    if effects
        .iter()
        .any(|effect| matches!(effect, Effect::Pin(_) | Effect::Taint(_) | Effect::SetBound { local: false, .. }))
    {
        return vec!["DISCARD ALL".to_owned()];
    }
    let settings = effects.iter().filter_map(|effect| match effect {
        Effect::Set { name, local: false, .. } => Some(format!("RESET \"{name}\"")),
        _ => None,
    });
    settings.chain(["DISCARD SEQUENCES".to_owned()]).collect()
}
