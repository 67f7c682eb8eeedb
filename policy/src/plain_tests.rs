//! Outlines against PostgreSQL's own scanner.

use super::outline;
use crate::shape::shape;

const NUMBERS: &[&str] = &["0", "1", "007", "53", "999999999", "123456789"];
const STRINGS: &[&str] =
    &["''", "'x'", "'1'", "'-- x'", "'/* x'", "'\"'", "'$$'", "'; DROP TABLE x'", "'role'", "'U&'"];

/// Every literal of an outline replaced: `{}` is how a test writes one.
fn filled(outline: &[u8], at: &mut usize) -> String {
    let mut text = String::new();
    for byte in outline {
        *at = at.wrapping_mul(31).wrapping_add(7);
        match *byte {
            super::NUMBER => text.push_str(NUMBERS[*at % NUMBERS.len()]),
            super::STRING => text.push_str(STRINGS[*at % STRINGS.len()]),
            byte => text.push(char::from(byte)),
        }
    }
    text
}

fn corpora() -> Vec<String> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let files = ["benign.jsonl", "clients.jsonl", "attack.jsonl", "columns.jsonl", "regress/statements.jsonl"];
    let mut texts = Vec::new();
    for file in files {
        let rows = std::fs::read_to_string(root.join(file)).unwrap();
        texts.extend(rows.lines().filter_map(|row| {
            let row: serde_json::Value = serde_json::from_str(row).unwrap();
            row["sql"].as_str().map(str::to_owned)
        }));
    }
    texts
}

#[test]
fn texts_of_one_outline_have_one_shape() {
    let (mut plain, mut at) = (0, 1);
    for text in corpora() {
        let Some(own) = outline(&text) else { continue };
        plain += 1;
        let expected = shape(&text);
        for _ in 0..5 {
            let other = filled(&own, &mut at);
            assert_eq!(outline(&other).as_ref(), Some(&own), "{text}\n{other}");
            assert_eq!(shape(&other), expected, "{text}\n{other}");
        }
    }
    assert!(plain > 6_000, "only {plain} texts of the corpora are plain");
}

/// Texts made of the pieces where a lexer can go wrong, in every order.
#[test]
fn no_neighbour_of_a_literal_changes_what_it_is() {
    const PIECES: &[&str] = &[
        "1", "'a'", "e", "E", "n", "x", "_", ".", "..", "-", "+", "=", "<", "!", ":", "::", "*", " ", "\n", ";", "(",
        "]", "\"q\"", "1e5", "0x1", "$1", "$$", "--", "/*", "\\", "&", "U&", "uescape", "''", "é", "\0", "float(", "@",
    ];
    let mut at = 3;
    let mut seen = 0;
    for first in PIECES {
        for second in PIECES {
            for third in PIECES {
                for fourth in ["", "'", "1", "'b'", " '!'", "e"] {
                    let text = format!("SELECT {first}{second}{third}{fourth}");
                    let Some(own) = outline(&text) else { continue };
                    seen += 1;
                    let other = filled(&own, &mut at);
                    assert_eq!(outline(&other).as_ref(), Some(&own), "{text}\n{other}");
                    assert_eq!(shape(&other), shape(&text), "{text}\n{other}");
                }
            }
        }
    }
    assert!(seen > 5_000, "{seen}");
}

#[test]
fn what_is_plain() {
    let long = format!("SELECT '{}'", "x".repeat(5_000));
    for (text, expected) in [
        ("SELECT 1", Some("SELECT \u{1}")),
        ("SELECT 'a', 22 FROM t1 WHERE a.b2=-3", Some("SELECT \u{2}, \u{1} FROM t1 WHERE a.b2=-\u{1}")),
        ("SELECT \"a 1\"", Some("SELECT \"a 1\"")),
        ("SELECT 1234567890", None),
        ("SELECT 1.5", None),
        ("SELECT 1e5", None),
        ("SELECT 1_000", None),
        ("SELECT 1a", None),
        ("SELECT 1'a'", None),
        ("SELECT 'a'1", None),
        ("SELECT 'it''s'", None),
        ("SELECT E'a'", None),
        ("SELECT'a'", None),
        ("SELECT 'a\\'", None),
        ("SELECT 'a", None),
        ("SELECT \"a\"\"b\"", None),
        ("SELECT 1 -- x", None),
        ("SELECT 1 /* x */", None),
        ("SELECT $1", None),
        ("SELECT $$a$$", None),
        ("SELECT U&'a'", None),
        ("SELECT 'é'", None),
        ("SELECT 1\0", None),
        (&long, None),
    ] {
        assert_eq!(outline(text).as_deref(), expected.map(str::as_bytes), "{text}");
    }
}
