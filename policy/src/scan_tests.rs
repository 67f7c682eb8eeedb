//! Depths as a table. What counts is that no text is measured as shallower than its tree is.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;

fn depth(text: &str) -> usize {
    measure(text).map_or(usize::MAX, |measure| measure.depth)
}

#[test]
fn ordinary_texts_are_shallow() {
    let wide_list = format!("SELECT * FROM t WHERE x IN ({})", "1,".repeat(20_000) + "1");
    let many_conditions =
        format!("SELECT * FROM t WHERE {}", "a = 1 OR b BETWEEN 1 AND 2 AND ".repeat(5_000) + "c = 3");
    let many_rows = format!("INSERT INTO t VALUES {}", "(1, 'a' || 'b', -2),".repeat(10_000) + "(1, 'x', 3)");
    let many_whens = format!("SELECT CASE {} END", "WHEN a = 1 THEN 'x' ".repeat(5_000));
    let many_statements = "SELECT 1+1; ".repeat(5_000);
    for text in [wide_list, many_conditions, many_rows, many_whens, many_statements] {
        assert!(depth(&text) < 20, "{} in {}", depth(&text), &text[..60]);
    }
}

#[test]
fn every_way_to_nest_or_chain_is_counted() {
    let rows: &[(&str, &str, &str, &str)] = &[
        ("brackets", "SELECT ", "(", "1"),
        ("subscripts", "SELECT a", "[1]", ""),
        ("array brackets", "SELECT ARRAY", "[", "1"),
        ("plus", "SELECT 1", "+1", ""),
        ("concatenation", "SELECT ''", "||''", ""),
        ("minus in front", "SELECT ", "- ", "1"),
        ("a run of plus", "SELECT ", "+", "1"),
        ("not", "SELECT ", "NOT ", "true"),
        ("cast", "SELECT 1", "::int", ""),
        ("is null", "SELECT 1", " IS NULL", ""),
        ("collate", "SELECT 'a'", " COLLATE \"C\"", ""),
        ("at time zone", "SELECT now()", " AT TIME ZONE 'UTC'", ""),
        ("case", "SELECT ", "CASE WHEN ", "1"),
        ("case in else", "SELECT ", "CASE WHEN true THEN 1 ELSE ", "1"),
        ("join", "SELECT * FROM t", " JOIN t USING (a)", ""),
        ("union", "SELECT 1, 2", " UNION SELECT 1, 2", ""),
        ("operator()", "SELECT 1", " OPERATOR(pg_catalog.+) 1", ""),
        ("the name `when` resets nothing", "SELECT CASE WHEN 1", " + x.when", ""),
        ("the name `and` resets nothing", "SELECT 1", " + x.and", ""),
        ("not after between", "SELECT ", "NOT a BETWEEN 1 AND ", "true"),
        ("comments between", "SELECT 1", "/* ' */+/* -- */1", ""),
        ("quotes between", "SELECT 1", "+E'\\''+'\\'+$$'$$+$a$ $$ $a$+U&'\\0061'+\"\"\"\"", ""),
    ];
    for (name, head, unit, tail) in rows {
        let text = format!("{head}{}{tail}", unit.repeat(500));
        let found = depth(&text);
        assert!(found >= 500, "{name}: {found}");
        let text = format!("{head}{}{tail}", unit.repeat(2_100));
        assert!(matches!(measure(&text), Err(TooMuch::Tree(_))), "{name}");
    }
}

#[test]
fn a_deep_level_under_a_long_chain_adds_up() {
    let text = format!("SELECT {}1{}{}", "(".repeat(400), ")".repeat(400), "+1".repeat(900));
    assert!(depth(&text) >= 1_700);
}

#[test]
fn nothing_inside_literals_counts() {
    let deep = "(".repeat(3_000);
    for text in [
        format!("SELECT '{deep}'"),
        format!("SELECT E'\\'{deep}'"),
        format!("SELECT $a${deep}$a$"),
        format!("SELECT \"{deep}\""),
        format!("SELECT 1 /* {deep} */"),
        format!("SELECT 1 -- {deep}"),
    ] {
        assert!(depth(&text) < 10, "{}", &text[..20]);
    }
}

#[test]
fn nested_comments_are_bounded() {
    let nested = |depth: usize| format!("SELECT 1 {}{}", "/*".repeat(depth), "*/".repeat(depth));
    assert!(measure(&nested(16)).is_ok());
    assert_eq!(measure(&nested(17)), Err(TooMuch::Comment(9 + 32)));
}

#[test]
fn long_names_are_noticed() {
    let rows = [("a".repeat(63), false), ("a".repeat(64), true), (format!("\"{}\"", "é".repeat(32)), true)];
    for (name, long) in rows {
        assert_eq!(measure(&format!("SELECT 1 AS {name}")).unwrap().long_name, long, "{name}");
    }
}

#[test]
fn trees_that_would_take_too_much_memory_are_not_made() {
    let names = format!("SELECT {}a", "a,".repeat(200_000));
    assert!(matches!(measure(&names), Err(TooMuch::Size(_))));
    let numbers = format!("SELECT 1 WHERE 1 IN ({}123)", "123,".repeat(250_000));
    assert!(measure(&numbers).is_ok());
}
