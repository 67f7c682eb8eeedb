//! `tests/pitfalls.md` names a test for everything that others fell into: all of them exist.

use std::{collections::BTreeSet, fs};

use portcullis_tests::programs;

/// How many rows each of the page's tables has.
const ROWS: [(&str, usize); 4] = [("", 46), ("B", 24), ("G", 8), ("V", 10)];

/// What stands between backticks.
fn quoted(row: &str) -> Vec<&str> {
    row.split('`').skip(1).step_by(2).collect()
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(programs::root().join(path)).ok()
}

/// A test of this name, not just any function.
fn is_test(path: &str, name: &str) -> bool {
    let Some(source) = read(path) else { return false };
    let Some(at) = source.find(&format!("fn {name}(")) else { return false };
    let before: Vec<&str> = source[..at].lines().rev().take(6).collect();
    before.iter().any(|line| line.trim_start().starts_with("#[test") || line.trim_start().starts_with("#[tokio::test"))
        || source[..at].rfind("proptest!").is_some()
}

#[test]
fn every_pitfall_has_tests_that_exist() {
    let page = read("tests/pitfalls.md").expect("the page");
    let mut numbers = BTreeSet::new();
    let mut wrong = Vec::new();
    for row in page.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| |")) {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let [number, what, here] = cells[..] else { panic!("three cells: {row}") };
        assert!(numbers.insert(number.to_owned()), "{number} stands there twice");
        assert!(what.len() > 10 && !here.is_empty(), "{number} says too little");
        let names = quoted(here);
        for (at, name) in names.iter().enumerate() {
            if let Some((path, test)) = name.split_once("::") {
                if !is_test(path, test) {
                    wrong.push(format!("{number}: no test {test} in {path}"));
                }
            } else if name.ends_with(".jsonl") {
                let text = names.get(at + 1).expect("a corpus and a text of it");
                if !read(name).is_some_and(|corpus| corpus.contains(*text)) {
                    wrong.push(format!("{number}: no {text:?} in {name}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let wanted = ROWS.iter().flat_map(|(kind, count)| (1..=*count).map(move |number| format!("{kind}{number}")));
    let missing: Vec<String> = wanted.filter(|number| !numbers.contains(number)).collect();
    assert!(missing.is_empty(), "no rows {missing:?}");
}
