//! Remembered verdicts against fresh ones, over every text of the corpora: whatever literals a text is sent with, the cache
//! answers as the judge would.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::PathBuf;

use pg_query::protobuf::Token;
use portcullis_policy::{Found, Permit, Policy, Scope, Surface, Target, Verdict, VerdictCache, judge};
use serde_json::Value;

const NAMES: [&str; 2] = ["own_database", "ws_0123456789abcdef"];

/// What stands in for a literal: values that some rule, somewhere, looks at.
const STRINGS: &[&str] = &[
    "''",
    "'x'",
    "'it''s'",
    "E'\\'\\n'",
    "$$ '; DROP ROLE x; -- $$",
    "$a$ $$ $a$",
    "'role'",
    "'search_path'",
    "'pg_temp'",
    "'public.s'",
    "'pg_authid'",
    "'pg_read_file(''/etc/passwd'')'",
    "'dl_meta.tenant_settings'",
    "'a'\n'b'",
    "'{1,2}'",
    "'100GB'",
    "'on'",
];
const INTEGERS: &[&str] = &["0", "1", "53", "2147483647", "0x7F", "0b11", "1_000"];
const FLOATS: &[&str] = &["1.5", ".5", "1e308", "99999999999999999999", "1."];

/// Marsaglia's xorshift: the same texts in every run.
struct Random(u64);

impl Random {
    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        from[usize::try_from(self.0 % from.len() as u64).unwrap()]
    }
}

/// The text with every literal exchanged for another one, mostly of its own kind, and with other space between tokens.
fn with_other_literals(text: &str, random: &mut Random) -> Option<String> {
    let tokens = pg_query::scan(text).ok()?.tokens;
    let mut out = String::new();
    for token in tokens {
        let own = text.get(usize::try_from(token.start).ok()?..usize::try_from(token.end).ok()?)?;
        let of_its_kind = random.pick(&["yes", "yes", "yes", "yes", "yes", "yes", "yes", "no"]) == "yes";
        out.push_str(random.pick(&[" ", "\n", "\t ", " /* x */ ", " -- y\n"]));
        out.push_str(match Token::try_from(token.token).ok()? {
            Token::Sconst if of_its_kind => random.pick(STRINGS),
            Token::Iconst if of_its_kind => random.pick(INTEGERS),
            Token::Fconst if of_its_kind => random.pick(FLOATS),
            Token::Sconst | Token::Iconst | Token::Fconst => random.pick(&["'x'", "1", "1.5", "NULL"]),
            Token::SqlComment => "",
            _ => own,
        });
    }
    Some(out)
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn texts() -> Vec<String> {
    let mut texts = Vec::new();
    for name in ["benign.jsonl", "clients.jsonl", "attack.jsonl"] {
        let rows = std::fs::read_to_string(root().join("policy/corpus").join(name)).unwrap();
        let sql = |row: &str| serde_json::from_str::<Value>(row).unwrap()["sql"].as_str().unwrap().to_owned();
        texts.extend(rows.lines().map(sql).filter(|sql| sql.len() < 20_000));
    }
    texts
}

fn kinds() -> Vec<std::sync::Arc<portcullis_policy::RolePolicy>> {
    let profiles = ["storage", "override", "design"].map(|profile| {
        let path = root().join("provisioner/profiles").join(profile).join("policy.toml");
        Policy::parse(&std::fs::read_to_string(path).unwrap()).unwrap()
    });
    profiles.iter().flat_map(|policy| policy.kinds().to_vec()).collect()
}

fn same(permit: &Permit, fresh: &Permit) -> bool {
    let of = |permit: &Permit| {
        let lists = [permit.reads(), permit.writes(), permit.functions()].map(<[String]>::to_vec);
        (permit.text().to_owned(), permit.command(), permit.statements(), permit.effects().to_vec(), lists)
    };
    of(permit) == of(fresh)
}

fn answers_as_the_judge(cache: &VerdictCache, scope: &Scope, text: &str) -> Found {
    let surface = Surface::SimpleQuery;
    let (cached, found) = cache.judge(scope, surface, text.as_bytes());
    let fresh = judge(scope.role(), surface, text.as_bytes(), &Target { database_names: &NAMES });
    match (&cached, &fresh) {
        (Verdict::Allow(cached), Verdict::Allow(fresh)) => assert!(same(cached, fresh), "{text}"),
        (Verdict::Deny(cached), Verdict::Deny(fresh)) => assert_eq!(cached, fresh, "{text}"),
        _ => panic!("{found:?}: {cached:?}, but the judge says {fresh:?}: {text}"),
    }
    found
}

#[test]
fn no_literal_changes_a_verdict_that_is_given_for_its_shape() {
    const ROUNDS: usize = 4;
    let test = || {
        let (mut random, mut by_shape, mut all) = (Random(0x9e37_79b9_7f4a_7c15), 0, 0);
        let texts = texts();
        for role in kinds() {
            let cache = VerdictCache::new(64 << 20);
            let scope = cache.scope(&role, &NAMES.map(str::to_owned));
            for text in &texts {
                answers_as_the_judge(&cache, &scope, text);
                for _ in 0..ROUNDS {
                    let Some(other) = with_other_literals(text, &mut random) else { break };
                    let found = answers_as_the_judge(&cache, &scope, &other);
                    by_shape += usize::from(found == Found::Shape);
                    all += 1;
                }
            }
        }
        println!("{by_shape} of {all} texts with other literals were answered by their shape");
        assert!(by_shape > all / 8, "the test has lost its grip: {by_shape} of {all}");
    };
    std::thread::Builder::new().stack_size(128 << 20).spawn(test).unwrap().join().unwrap();
}
