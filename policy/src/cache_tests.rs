#![allow(clippy::unwrap_used)]
use super::*;
use crate::Policy;

const ONE: &str = "SELECT 1";

fn policy(schema: &str) -> Policy {
    let text = format!(
        "name = \"p\"\ncustomer_schemas = [\"{schema}\"]\n[[kind]]\nkind = \"a\"\nrole = \"a\"\nprimary = true\n\
         read = [\"{schema}\"]\nwrite = [\"{schema}\"]\n[[kind]]\nkind = \"b\"\nrole = \"b\"\nusername_suffix = \"b\"\n\
         read = [\"{schema}\"]\n"
    );
    Policy::parse(&text).unwrap()
}

fn names() -> [String; 2] {
    ["ws_1".to_owned(), "acme".to_owned()]
}

fn passes(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Allow(_))
}

#[test]
fn a_text_is_judged_once_and_then_remembered_word_for_word() {
    let (cache, policy) = (VerdictCache::new(1 << 20), policy("storage"));
    let scope = cache.scope(policy.kind("a").unwrap(), &names());
    for (text, allowed) in [(ONE, true), ("DROP ROLE x", false), ("SELEC 1", false), ("", true)] {
        assert!(cache.recall(&scope, Surface::SimpleQuery, text.as_bytes()).is_none(), "{text}");
        let (first, found) = cache.judge(&scope, Surface::SimpleQuery, text.as_bytes());
        assert_eq!((passes(&first), found), (allowed, Found::Judged), "{text}");
        let again = cache.recall(&scope, Surface::SimpleQuery, text.as_bytes()).unwrap();
        match (&first, &again) {
            (Verdict::Allow(first), Verdict::Allow(again)) => {
                assert_eq!((first.text(), again.text()), (text, text));
                assert_eq!(first.command(), again.command());
            }
            (Verdict::Deny(first), Verdict::Deny(again)) => assert_eq!(first, again),
            _ => panic!("{text}: {first:?}, then {again:?}"),
        }
        for other in [Surface::Parse, Surface::Http] {
            assert!(cache.recall(&scope, other, text.as_bytes()).is_none(), "another surface is another question");
        }
        assert!(cache.recall(&scope, Surface::SimpleQuery, format!("{text} ").as_bytes()).is_none());
    }
}

#[test]
fn texts_that_differ_in_literals_share_a_permit_but_not_their_text() {
    let (cache, policy) = (VerdictCache::new(1 << 20), policy("storage"));
    let scope = cache.scope(policy.kind("a").unwrap(), &names());
    let ask = |text: &str| cache.judge(&scope, Surface::Parse, text.as_bytes());
    assert_eq!(ask("INSERT INTO storage.t VALUES (1, 'a')").1, Found::Judged);
    let text = "INSERT INTO storage.t -- again\nVALUES (22, 'x''; DROP ROLE y')";
    let (Verdict::Allow(permit), Found::Shape) = ask(text) else { panic!("its shape is known") };
    assert_eq!(permit.text(), text);
    assert_eq!(permit.writes(), ["storage.t"]);
    for other in [
        "INSERT INTO storage.t VALUES (1, 2)",
        "INSERT INTO storage.t VALUES (1.5, 'a')",
        "INSERT INTO storage.u VALUES (1, 'a')",
        "INSERT INTO storage.t VALUES (1, 'a') ",
    ] {
        let expect = if other.ends_with(' ') { Found::Shape } else { Found::Judged };
        assert_eq!(ask(other).1, expect, "{other}");
    }
    // Refusals speak of positions and names: each is judged.
    for text in ["DELETE FROM other.t WHERE id = 1", "DELETE FROM other.t WHERE id = 22"] {
        let (verdict, found) = ask(text);
        assert_eq!((passes(&verdict), found), (false, Found::Judged));
    }
}

#[test]
fn where_a_literal_has_a_say_every_text_is_judged() {
    let (cache, policy) = (VerdictCache::new(1 << 20), policy("storage"));
    let scope = cache.scope(policy.kind("a").unwrap(), &names());
    for (harmless, harmful) in [
        ("SET work_mem = '1MB'", "SET work_mem = '100GB'"),
        ("SELECT set_config('work_mem', '1MB', false)", "SELECT set_config('role', 'postgres', false)"),
        ("COMMENT ON COLUMN storage.t.a IS 'x'", "COMMENT ON COLUMN storage.t.a IS 'y'"),
        ("SELECT 1 AS U&\"!0061\" UESCAPE '!'", "SELECT 1 AS U&\"!0061\" UESCAPE '?'"),
        ("BEGIN; SELECT 1", "BEGIN; SELECT 2"),
        ("EXPLAIN (ANALYZE 'off') SELECT 1", "EXPLAIN (ANALYZE 'on') SELECT 1"),
    ] {
        for text in [harmless, harmful] {
            assert_eq!(cache.judge(&scope, Surface::SimpleQuery, text.as_bytes()).1, Found::Judged, "{text}");
        }
    }
}

#[test]
fn scopes_share_nothing() {
    let cache = VerdictCache::new(1 << 20);
    let (first, second) = (policy("storage"), policy("other"));
    let other_names = ["ws_2".to_owned(), "umbrella".to_owned()];
    let scopes = [
        cache.scope(first.kind("a").unwrap(), &names()),
        cache.scope(first.kind("b").unwrap(), &names()),
        cache.scope(first.kind("a").unwrap(), &other_names),
        cache.scope(second.kind("a").unwrap(), &names()),
    ];
    let text = "UPDATE acme.storage.t SET a = 1";
    let verdicts = scopes.each_ref().map(|scope| {
        let (verdict, found) = cache.judge(scope, Surface::Parse, text.as_bytes());
        assert_eq!(found, Found::Judged, "{scope:?}");
        passes(&verdict)
    });
    assert_eq!(verdicts, [true, false, false, false]);
    // The same role and names are the same scope, a document read again is another.
    let same = cache.scope(first.kind("a").unwrap(), &names());
    assert!(cache.recall(&same, Surface::Parse, text.as_bytes()).is_some());
    let again = cache.scope(policy("storage").kind("a").unwrap(), &names());
    assert!(cache.recall(&again, Surface::Parse, text.as_bytes()).is_none());
}

#[test]
fn the_bound_holds_and_what_is_used_stays() {
    const BYTES: usize = 256 * 1024;
    let (cache, policy) = (VerdictCache::new(BYTES), policy("storage"));
    let scope = cache.scope(policy.kind("a").unwrap(), &names());
    let hot = "SELECT a FROM storage.hot";
    cache.judge(&scope, Surface::Parse, hot.as_bytes());
    let mut kept = 0;
    for number in 0..5_000 {
        let text = match number % 3 {
            0 => format!("SELECT c{number} FROM storage.t"),
            1 => format!("SELECT c{number} FROM secret.t"),
            _ => format!("SELECT c{number} FROM storage.t WHERE {}", "true AND ".repeat(number % 100) + "true"),
        };
        cache.judge(&scope, Surface::Parse, text.as_bytes());
        kept += usize::from(cache.recall(&scope, Surface::Parse, hot.as_bytes()).is_some());
        assert!(cache.size().bytes <= BYTES as u64, "{:?}", cache.size());
    }
    assert_eq!(kept, 5_000, "a flood of texts pushes out what is in use");
    assert!(cache.size().texts > 50, "{:?}", cache.size());
}

#[test]
fn what_is_too_long_or_no_text_is_judged_every_time() {
    let (cache, policy) = (VerdictCache::new(1 << 20), policy("storage"));
    let scope = cache.scope(policy.kind("a").unwrap(), &names());
    let long = format!("SELECT '{}'", "x".repeat(TEXT_BYTES_MAX));
    cache.judge(&scope, Surface::Parse, long.as_bytes());
    assert!(cache.recall(&scope, Surface::Parse, long.as_bytes()).is_none());
    for bytes in [&b"SELECT '\xff'"[..], b"SELECT 1\0"] {
        assert!(!passes(&cache.judge(&scope, Surface::Parse, bytes).0));
    }
    let none = VerdictCache::new(0);
    let scope = none.scope(policy.kind("a").unwrap(), &names());
    assert!(passes(&none.judge(&scope, Surface::Parse, ONE.as_bytes()).0));
    assert!(none.recall(&scope, Surface::Parse, ONE.as_bytes()).is_none());
    assert_eq!(none.size(), CacheSize::default());
}
