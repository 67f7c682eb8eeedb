//! The second wall alone: the whole attack corpus, sent straight to PostgreSQL with the login and role that the proxy
//! uses. `policy/corpus/walls.jsonl` lists every row that the grants do not stop, with the rule of the judge that does.
//!
//! The list may only shrink. `UPDATE=1` takes out what is stopped by now; `WALLS=grow` puts in what is not, without the
//! `why` that a person has to write.

use std::{collections::HashMap, env, fs};

use serde::{Deserialize, Serialize};

use crate::{
    corpus::{self, Text},
    scratch::{DATABASE, Profile, Scratch, Stock},
    session::Session,
};

const LIST: &str = "walls.jsonl";

/// Refusals that no change of a name or a value would turn into a success: no right, no schema in which the role may
/// create, nothing that this server does at all, no SQL.
const STOPS: &[&str] = &["42501", "3F000", "0A000", "42601"];

/// What a row did that ran.
const RAN: &str = "ran";

/// Why the grants let something through: see the README of the corpora.
const REASONS: &[&str] = &[
    "setting",
    "own role",
    "several statements",
    "session state",
    "notification",
    "unqualified target",
    "own objects",
    "lock",
    "sequence",
    "call at rest",
    "no call",
    "cost",
    "harmless",
    "skipped",
    "fails of itself",
];

/// The major version of PostgreSQL that the list was made with: others fail in other ways.
const MAJOR: &str = "15";

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Attack {
    #[allow(dead_code, reason = "the corpus has it")]
    class: String,
    role: String,
    surface: String,
    sql: String,
    rule: String,
}

/// A row that the grants do not stop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Listed {
    role: String,
    surface: String,
    sql: String,
    /// The judge's rule that stops it.
    rule: String,
    /// `ran`, or the SQLSTATE with which PostgreSQL failed for a reason other than the grants.
    outcome: String,
    /// One of [`REASONS`].
    why: String,
}

impl Attack {
    fn text(&self) -> Text {
        Text { role: self.role.clone(), surface: self.surface.clone(), sql: self.sql.clone() }
    }
}

impl Listed {
    fn text(&self) -> Text {
        Text { role: self.role.clone(), surface: self.surface.clone(), sql: self.sql.clone() }
    }
}

#[tokio::test]
async fn what_the_grants_do_not_stop_is_listed() {
    let scratch = Scratch::start().await;
    let attacks: Vec<Attack> = corpus::read("attack.jsonl");
    let before = shared_state(&scratch).await;
    let mut outcomes = HashMap::new();
    for name in ["storage", "override", "design"] {
        let profile = scratch.profile(name);
        let mut left: Vec<&Attack> = attacks.iter().filter(|row| row.text().profile() == name).collect();
        // What fails for want of something, or because it is there, or because its name has no schema, tries again.
        for (stock, at_home) in [(Stock::Full, false), (Stock::Empty, false), (Stock::Full, true)] {
            let mut runner = Runner::new(&scratch, profile, stock, at_home).await;
            for row in std::mem::take(&mut left) {
                let outcome = runner.attack(&row.text()).await;
                let decided = outcome == RAN || STOPS.contains(&outcome.as_str());
                outcomes.entry(row.text()).and_modify(|first| better(first, &outcome)).or_insert(outcome);
                if !decided {
                    left.push(row);
                }
            }
        }
    }
    assert_eq!(shared_state(&scratch).await, before, "an attack has changed roles, databases or their settings");
    let version = scratch.access.superuser("postgres").await.query_one("SHOW server_version", &[]).await.unwrap();
    let same_major = version.get::<_, String>(0).starts_with(MAJOR);
    compare(&attacks, &outcomes, same_major);
}

/// A further try counts where it ran, or was stopped where the first only failed.
fn better(first: &mut String, further: &str) {
    if further == RAN || STOPS.contains(&further) {
        *first = further.to_owned();
    }
}

fn compare(attacks: &[Attack], outcomes: &HashMap<Text, String>, same_major: bool) {
    let listed: Vec<Listed> = corpus::read(LIST);
    let mut known: HashMap<Text, Listed> = HashMap::new();
    for row in listed {
        assert!(REASONS.contains(&row.why.as_str()), "no such reason: {row:?}");
        assert!(known.insert(row.text(), row.clone()).is_none(), "listed twice: {row:?}");
    }
    let (shrink, grow) = (env::var_os("UPDATE").is_some(), env::var("WALLS").is_ok_and(|value| value == "grow"));
    let (mut after, mut wrong): (Vec<Listed>, Vec<String>) = (Vec::new(), Vec::new());
    for attack in attacks {
        let Some(outcome) = outcomes.get(&attack.text()) else { continue };
        let row = known.remove(&attack.text());
        if STOPS.contains(&outcome.as_str()) {
            if row.is_some() && same_major && !shrink {
                wrong.push(format!("is stopped now ({outcome}), take it out (UPDATE=1): {}", attack.sql));
            }
            continue;
        }
        match row {
            Some(row) if row.outcome == *outcome && row.rule == attack.rule => after.push(row),
            // Another version, another reason to fail; what runs must be listed as running.
            Some(row) if !same_major && (row.outcome == RAN || outcome != RAN) => after.push(row),
            Some(row) if outcome != RAN || row.outcome == RAN => {
                if !shrink {
                    wrong.push(format!("is {outcome} by {} now (UPDATE=1): {row:?}", attack.rule));
                }
                after.push(Listed { outcome: outcome.clone(), rule: attack.rule.clone(), ..row });
            }
            row if grow => after.push(Listed {
                role: attack.role.clone(),
                surface: attack.surface.clone(),
                sql: attack.sql.clone(),
                rule: attack.rule.clone(),
                outcome: outcome.clone(),
                why: row.map(|row| row.why).unwrap_or_default(),
            }),
            None if !same_major && outcome != RAN => {}
            row => {
                wrong.push(format!("the grants do not stop it ({outcome}): {}: {}", attack.role, attack.sql));
                after.extend(row);
            }
        }
    }
    if !shrink {
        wrong.extend(known.values().map(|row| format!("is in no corpus any more (UPDATE=1): {}", row.sql)));
    }
    if shrink || grow {
        let lines: Vec<String> = after.iter().map(|row| serde_json::to_string(row).unwrap() + "\n").collect();
        fs::write(corpus::path(LIST), lines.concat()).unwrap();
    }
    assert!(wrong.is_empty(), "{} rows:\n{}", wrong.len(), wrong.join("\n"));
}

/// Sends attacks one after the other, none of which finds anything that another has left.
struct Runner<'a> {
    scratch: &'a Scratch,
    profile: &'a Profile,
    stock: Stock,
    /// Names without a schema are looked up in the role's own, as a client may have them.
    at_home: bool,
    sessions: HashMap<String, Session>,
}

impl<'a> Runner<'a> {
    async fn new(scratch: &'a Scratch, profile: &'a Profile, stock: Stock, at_home: bool) -> Runner<'a> {
        let mut runner = Runner { scratch, profile, stock, at_home, sessions: HashMap::new() };
        runner.renew().await;
        runner
    }

    async fn renew(&mut self) {
        self.sessions.clear();
        self.scratch.renew(self.profile, self.stock).await;
    }

    async fn session(&mut self, kind: &str) -> &mut Session {
        if !self.sessions.contains_key(kind) {
            let login = self.profile.login(kind, DATABASE);
            self.sessions.insert(kind.to_owned(), Session::open(&self.scratch.access, &login).await);
        }
        self.sessions.get_mut(kind).expect("it is there")
    }

    /// `ran` or an SQLSTATE.
    async fn attack(&mut self, text: &Text) -> String {
        let path = self.at_home.then(|| format!("SET LOCAL search_path = {}", self.profile.schema));
        let session = self.session(text.kind()).await;
        session.own("BEGIN").await;
        if let Some(path) = path {
            session.own(&path).await;
        }
        let mut answer = session.run(text).await;
        let alone = answer.as_ref().is_some_and(|answer| answer.sqlstate() == "25001");
        if alone {
            session.own("ROLLBACK").await;
            session.own("DISCARD ALL").await;
            answer = session.run(text).await;
        }
        let left_it = answer.as_ref().is_none_or(|answer| answer.status == 'I');
        if alone || left_it {
            // Whatever it did is done.
            self.renew().await;
        } else {
            session.own("ROLLBACK").await;
            session.own("DISCARD ALL").await;
        }
        match answer {
            None => RAN.to_owned(),
            // It ran until the limit.
            Some(answer) if answer.sqlstate() == "57014" => RAN.to_owned(),
            Some(answer) => answer.error.map_or_else(|| RAN.to_owned(), |(code, _)| code),
        }
    }
}

/// Roles, memberships, databases and settings: what a scratch copy does not contain.
async fn shared_state(scratch: &Scratch) -> Vec<String> {
    let superuser = scratch.access.superuser("postgres").await;
    let question = "SELECT a::text FROM pg_authid a UNION ALL SELECT m::text FROM pg_auth_members m
                    UNION ALL SELECT s::text FROM pg_db_role_setting s
                    UNION ALL SELECT d.datname::text FROM pg_database d WHERE d.datname <> 'own_database' ORDER BY 1";
    superuser.query(question, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}
