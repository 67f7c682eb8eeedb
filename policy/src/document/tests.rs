//! Documents that pass and documents with mistakes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;

#[test]
fn every_mistake_is_reported_with_its_place() {
    let text = r#"name = "x"
managed_schemas = ["m", "pg_catalog"]
customer_schemas = ["c"]
nonsense = 1

[[kind]]
kind = "a"
role = "a"
read = ["m", "unknown"]
write = 3
define = ["m"]
batches = "all"
primary = "yes"

[kind.limits]
rows_max = 0
"#;
    let errors = Policy::parse(text).unwrap_err();
    let found: Vec<(u32, u32)> = errors.0.iter().map(|error| (error.line, error.column)).collect();
    let all = errors.to_string();
    for (line, words) in [
        (2, "pg_catalog"),
        (4, "unknown key `nonsense`"),
        (9, "`unknown`"),
        (10, "must be an array of strings"),
        (11, "schema `m`"),
        (12, "`all` is not one of"),
        (13, "must be true or false"),
        (16, "from 1 to"),
    ] {
        let hit = errors.0.iter().any(|error| error.line == line && error.message.contains(words));
        assert!(hit, "line {line}: {words}\n{all}");
    }
    assert!(found.contains(&(2, 25)), "{all}");
    assert!(all.contains("no [[kind]] is `primary = true`"), "{all}");
}

#[test]
fn broken_toml_is_located() {
    let errors = Policy::parse("name = \"x\"\nkind = [").unwrap_err();
    let unclosed = |error: &DocumentError| error.line == 2 && error.message.contains("unclosed array");
    assert!(errors.0.iter().any(unclosed), "{errors}");
}
