//! Derives `table.rs` from the servers' facts and the reviews, and fails when they no longer agree.
//!
//! `UPDATE=1 cargo test -p portcullis-policy functions` rewrites the table. It refuses to while a function that is
//! volatile or closed to PUBLIC has no review, so that a new major version brings questions, not permissions.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::PathBuf;

const INTERNAL: &str = "internal: takes or returns a type that no expression of a user has";
const EXTENSION: &str = "a volatile function of an extension";

struct Fact<'a> {
    name: &'a str,
    extension: bool,
    volatile: bool,
    pseudo: bool,
    one_argument: bool,
    public: bool,
}

struct Review<'a> {
    pattern: &'a str,
    class: &'a str,
    grant: &'a str,
    reason: &'a str,
}

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/functions").join(name)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(path(name)).unwrap()
}

fn rows(text: &str) -> Vec<Vec<&str>> {
    text.lines().filter(|line| !line.starts_with('#')).map(|line| line.split('\t').collect()).collect()
}

fn facts(text: &str) -> Vec<Fact<'_>> {
    rows(text)
        .into_iter()
        .map(|row| {
            let [name, schema, _, volatility, pseudo, one, public, _, _] = row[..] else {
                panic!("facts.tsv: {row:?}")
            };
            Fact {
                name,
                extension: schema == "extension",
                volatile: volatility == "volatile",
                pseudo: pseudo == "pseudo",
                one_argument: one == "one",
                public: public == "public",
            }
        })
        .collect()
}

fn reviews(text: &str) -> Vec<Review<'_>> {
    rows(text)
        .into_iter()
        .map(|row| {
            let [pattern, class, grant, reason] = row[..] else { panic!("reviewed.tsv: {row:?}") };
            assert!(!reason.is_empty(), "{pattern}: no reason");
            Review { pattern, class, grant, reason }
        })
        .collect()
}

/// The review of a name: its own, else that of the one pattern that covers it.
fn review<'r, 't>(reviews: &'r [Review<'t>], name: &str) -> Option<&'r Review<'t>> {
    let covers = |review: &&Review<'_>| review.pattern.strip_suffix('*').is_some_and(|start| name.starts_with(start));
    reviews.iter().find(|review| review.pattern == name).or_else(|| {
        let covering: Vec<_> = reviews.iter().filter(covers).collect();
        assert!(covering.len() <= 1, "{name} is covered by two patterns");
        covering.first().copied()
    })
}

struct Table {
    text: String,
    unreviewed: Vec<String>,
}

fn derive() -> Table {
    let (facts_text, reviewed_text, relations_text) = (read("facts.tsv"), read("reviewed.tsv"), read("relations.tsv"));
    let (facts, reviews) = (facts(&facts_text), reviews(&reviewed_text));
    let mut reasons = vec![INTERNAL, EXTENSION];
    let (mut functions, mut revoked, mut unreviewed) = (String::new(), BTreeSet::new(), Vec::new());
    for fact in &facts {
        let (class, one_argument, reason) = match review(&reviews, fact.name) {
            Some(review) => {
                match (review.grant, review.grant.strip_prefix("signature:")) {
                    ("revoke", _) if fact.public && !fact.extension => drop(revoked.insert(fact.name)),
                    (_, Some(signature)) => drop(revoked.insert(signature)),
                    _ => {}
                }
                (class(review.class), fact.one_argument, review.reason)
            }
            None if fact.extension && fact.volatile && fact.one_argument && !fact.pseudo => {
                ("Forbidden".into(), true, EXTENSION)
            }
            None if fact.extension => continue,
            None if fact.pseudo => ("Forbidden".into(), false, INTERNAL),
            None if fact.volatile || !fact.public => {
                unreviewed.push(fact.name.to_owned());
                continue;
            }
            None => ("Allowed".into(), fact.one_argument, INTERNAL),
        };
        let at = reasons.iter().position(|known| *known == reason).unwrap_or_else(|| {
            reasons.push(reason);
            reasons.len() - 1
        });
        writeln!(functions, "    ({:?}, {class}, {one_argument}, {at}),", fact.name).unwrap();
    }
    let relations: Vec<&str> = rows(&relations_text).iter().map(|row| row[0]).collect();
    let mut text = String::from(
        "//! Generated from facts.tsv, reviewed.tsv and relations.tsv by the tests of `derive`; do not edit.\n\n\
         use super::{Class::{Allowed, Forbidden, Special}, Row, Special::*};\n\n",
    );
    write!(text, "pub(super) static FUNCTIONS: &[Row] = &[\n{functions}];\n\n").unwrap();
    list(&mut text, "REASONS", &reasons);
    list(&mut text, "REVOKED_FUNCTIONS", &revoked.into_iter().collect::<Vec<_>>());
    list(&mut text, "REVOKED_RELATIONS", &relations);
    Table { text, unreviewed }
}

fn class(word: &str) -> String {
    match (word, word.strip_prefix("special:")) {
        ("allow", _) => "Allowed".into(),
        ("forbid", _) => "Forbidden".into(),
        (_, Some(special)) => format!("Special({special})"),
        _ => panic!("reviewed.tsv: unknown class {word}"),
    }
}

fn list(text: &mut String, name: &str, items: &[&str]) {
    writeln!(text, "\npub(super) static {name}: &[&str] = &[").unwrap();
    for item in items {
        writeln!(text, "    {item:?},").unwrap();
    }
    text.push_str("];\n");
}

#[test]
fn the_table_follows_from_the_facts_and_the_reviews() {
    let table = derive();
    assert!(
        table.unreviewed.is_empty(),
        "nobody has reviewed {}: add them to reviewed.tsv",
        table.unreviewed.join(", ")
    );
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path("table.rs"), &table.text).unwrap();
    }
    assert!(
        table.text == read("table.rs"),
        "table.rs is out of date: UPDATE=1 cargo test -p portcullis-policy functions"
    );
}

#[test]
fn every_list_is_sorted_unique_and_in_use() {
    let (facts_text, reviewed_text, relations_text) = (read("facts.tsv"), read("reviewed.tsv"), read("relations.tsv"));
    for (file, text) in [("facts", &facts_text), ("reviewed", &reviewed_text), ("relations", &relations_text)] {
        let names: Vec<&str> = rows(text).iter().map(|row| row[0]).collect();
        assert!(!names.is_empty() && names.is_sorted_by(|a, b| a < b), "{file}.tsv is not sorted, or not unique");
    }
    let (facts, reviews) = (facts(&facts_text), reviews(&reviewed_text));
    let used: BTreeSet<&str> = facts.iter().filter_map(|fact| review(&reviews, fact.name)).map(|r| r.pattern).collect();
    let unused: Vec<&str> = reviews.iter().map(|r| r.pattern).filter(|pattern| !used.contains(pattern)).collect();
    assert!(unused.is_empty(), "no server has what these reviews are about: {}", unused.join(", "));
    assert!(super::table::FUNCTIONS.is_sorted_by(|a, b| a.0 < b.0));
    assert!(super::revoked_functions().is_sorted_by(|a, b| a < b));
}
