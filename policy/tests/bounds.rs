//! Texts that are made to exhaust whoever reads them: each is refused at once, and the process lives.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use portcullis_policy::{Effort, Policy, Surface, Target, Verdict, effort};

/// Judges on the stack that the judge asks for; the rule that refused, or `allow`.
fn judge(text: Vec<u8>) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../provisioner/profiles/storage/policy.toml");
    let policy = Policy::parse(&std::fs::read_to_string(path).unwrap()).unwrap();
    let role = policy.primary().unwrap().clone();
    let target = Target { database_names: &[] };
    let judge = move || match portcullis_policy::judge(&role, Surface::SimpleQuery, &text, &target) {
        Verdict::Allow(_) => "allow".to_owned(),
        Verdict::Deny(denial) => format!("{} {}", denial.sqlstate, denial.rule),
    };
    let started = Instant::now();
    let outcome =
        std::thread::Builder::new().stack_size(portcullis_policy::STACK_BYTES).spawn(judge).unwrap().join().unwrap();
    assert!(started.elapsed() < Duration::from_secs(20), "took {:?}", started.elapsed());
    outcome
}

/// `depth` levels of something that nests, below the size limit.
fn nested(open: &str, core: &str, close: &str, depth: usize) -> Vec<u8> {
    format!("SELECT {}{core}{}", open.repeat(depth), close.repeat(depth)).into_bytes()
}

#[test]
fn deep_texts_are_refused_and_never_overflow_a_stack() {
    let bombs = [
        ("parentheses", "(", "1", ")"),
        ("subqueries", "(SELECT ", "1", ")"),
        ("arrays", "ARRAY[", "1", "]"),
        ("brackets of a literal array", "ARRAY[[", "1", "]]"),
        ("CASE", "CASE WHEN true THEN ", "1", " END"),
        ("calls", "abs(", "1", ")"),
        ("NOT", "NOT ", "true", ""),
        ("minus", "- ", "1", ""),
        ("tilde", "~ ", "1", ""),
        ("named operator", "@ ", "1", ""),
        ("addition", "", "1", "+1"),
        ("concatenation", "", "'a'", "||'a'"),
        ("casts", "", "1", "::int"),
        ("IS NULL", "", "true", " IS NULL"),
        ("COLLATE", "", "'a'", " COLLATE \"C\""),
        ("AT TIME ZONE", "", "now()", " AT TIME ZONE 'UTC'"),
        ("subscripts", "", "a", "[1]"),
        ("UNION", "", "1", " UNION SELECT 1"),
        ("UNION in parentheses", "(SELECT ", "1", " UNION SELECT 1)"),
        ("joins", "1 FROM a", "", " JOIN b ON true"),
        ("joins on the right", "1 FROM a JOIN (", "b", " ON true)"),
        ("WITH", "(WITH x AS (SELECT 1) SELECT ", "1", ")"),
        ("row", "ROW(", "1", ")"),
        ("LIKE", "", "'a'", " LIKE 'a'"),
        ("IN", "1 IN (", "1", ")"),
        ("EXISTS", "EXISTS (SELECT ", "1", ")"),
        ("lateral", "1 FROM LATERAL (SELECT ", "1", ") x"),
        ("xml", "XMLCONCAT(", "NULL", ")"),
        ("json", "JSON_ARRAY(", "1", ")"),
        ("comparison", "", "1", " = 1"),
        ("exponent", "", "1", " ^ 1"),
        ("dots", "(a)", "", ".b"),
    ];
    for (name, open, core, close) in bombs {
        for depth in [20_000, 100_000] {
            let text = nested(open, core, close, depth.min(1_000_000 / (open.len() + close.len())));
            let outcome = judge(text);
            assert_ne!(outcome, "allow", "{name} at {depth}");
        }
    }
}

/// The deepest text of each kind that is still parsed: it must fit the stack.
#[test]
fn the_deepest_texts_that_are_parsed_fit_the_stack() {
    for (open, core, close) in [
        ("", "1", "+1"),
        ("NOT ", "true", ""),
        ("CASE WHEN ", "1", " THEN 1 END"),
        ("abs(", "1", ")"),
        ("(SELECT ", "1", ")"),
        ("1 FROM f((SELECT ", "1", "))"),
        ("sum(1) OVER (ORDER BY ", "1", ")"),
        ("json_object(1: json_array(", "1", "))"),
        ("a[", "1", "]"),
        ("", "1 FROM t", " JOIN t ON true"),
        ("", "1", " UNION SELECT 1"),
    ] {
        let too_deep = |depth: usize| judge(nested(open, core, close, depth)).contains("text.too_deep");
        let (mut passes, mut fails) = (1, 3_000);
        while fails - passes > 1 {
            let middle = usize::midpoint(passes, fails);
            if too_deep(middle) { fails = middle } else { passes = middle }
        }
        assert!((300..2_001).contains(&passes), "{open}{core}{close}: {passes}");
    }
}

#[test]
fn moderate_depth_passes() {
    for (open, core, close) in [
        ("(", "1", ")"),
        ("", "1", "+1"),
        ("", "'a'", "||'a'"),
        ("abs(", "1", ")"),
        ("CASE WHEN true THEN ", "1", " END"),
    ] {
        assert_eq!(judge(nested(open, core, close, 300)), "allow", "{open}{core}{close}");
    }
}

#[test]
fn wide_texts_pass() {
    let list = (0..20_000).map(|n| n.to_string()).collect::<Vec<_>>().join(", ");
    assert_eq!(judge(format!("SELECT count(*) FROM dl_resolved.people WHERE id IN ({list})").into_bytes()), "allow");
    let conditions = vec!["id = 1"; 5_000].join(" OR ");
    assert_eq!(judge(format!("SELECT * FROM dl_resolved.people WHERE {conditions}").into_bytes()), "allow");
    let rows = vec!["(1, 'a')"; 20_000].join(", ");
    assert_eq!(judge(format!("INSERT INTO storage.t VALUES {rows}").into_bytes()), "allow");
    assert_eq!(judge(format!("SELECT '{}'", "x".repeat(900_000)).into_bytes()), "allow");
}

#[test]
fn long_texts_are_refused() {
    assert!(judge(format!("SELECT '{}'", "x".repeat(1 << 20)).into_bytes()).starts_with("54000 "));
}

#[test]
fn nested_comments_are_bounded() {
    let nested = |depth: usize| format!("SELECT {}{} 1", "/*".repeat(depth), "*/".repeat(depth)).into_bytes();
    assert_eq!(judge(nested(16)), "allow");
    assert_ne!(judge(nested(17)), "allow");
    assert_ne!(judge(nested(200_000)), "allow");
    assert_ne!(judge(format!("SELECT {}", "/*".repeat(400_000)).into_bytes()), "allow");
}

#[test]
fn bytes_that_are_no_text_are_refused() {
    let refused: [&[u8]; 8] = [
        b"SELECT '\xff'",
        b"SELECT '\xc0\xaf'",
        b"SELECT '\xed\xa0\x80'",
        b"SELECT '\xf5\x80\x80\x80'",
        b"SELECT '\xe2\x82'",
        b"SELECT 1\0; DELETE FROM storage.t",
        b"\0",
        b"SELECT '\x95\x5c'; DELETE FROM t; --'",
    ];
    for text in refused {
        assert_ne!(judge(text.to_vec()), "allow", "{text:?}");
    }
}

#[test]
fn what_costs_much_is_told_beforehand() {
    let names = |count: usize| format!("SELECT a{}", ",a".repeat(count));
    for (text, expect) in [
        ("SELECT 1".to_owned(), Effort::Small),
        (names(900), Effort::Small),
        // Short in bytes, yet a tree of many nodes.
        (names(1_100), Effort::Medium),
        (format!("SELECT '{}'", "x".repeat(9_000)), Effort::Medium),
        (format!("SELECT 1{}", "+1".repeat(50)), Effort::Medium),
        (names(20_000), Effort::Large),
        (format!("SELECT '{}'", "x".repeat(200_000)), Effort::Large),
        // Refused before they are parsed.
        (names(400_000), Effort::Small),
        (format!("SELECT '{}'", "x".repeat(2 << 20)), Effort::Small),
    ] {
        assert_eq!(effort(text.as_bytes()), expect, "{}…", &text[..text.len().min(40)]);
    }
    assert_eq!(effort(b"SELECT '\xff'"), Effort::Small);
}
