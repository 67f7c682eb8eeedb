//! The startup parameter `options`.

use portcullis_wire::startup::PARAMETERS_MAX;
use portcullis_wire::{SqlState, parse_options};

#[test]
fn options_are_read_as_postgres_reads_them() {
    for (options, pairs) in [
        ("", &[][..]),
        ("  \t\n", &[]),
        ("-c a=b", &[("a", "b")]),
        ("-ca=b", &[("a", "b")]),
        ("--a=b", &[("a", "b")]),
        ("  -c   a=b  --c=d -ce=f\t", &[("a", "b"), ("c", "d"), ("e", "f")]),
        ("-c\u{b}a=b\u{c}-c\rc=d", &[("a", "b"), ("c", "d")]),
        ("--statement-timeout=5s", &[("statement_timeout", "5s")]),
        ("-c statement-timeout=5-s", &[("statement_timeout", "5-s")]),
        ("-c a=", &[("a", "")]),
        ("-c a=b=c", &[("a", "b=c")]),
        (r"-c DateStyle=ISO,\ DMY", &[("DateStyle", "ISO, DMY")]),
        (r"-c a=\\", &[("a", r"\")]),
        (r"-c a=x\=y\-z", &[("a", "x=y-z")]),
        (r"-c a=b\", &[("a", "b")]),
        (r"\-\c a=b", &[("a", "b")]),
        (r"-c a=\	b", &[("a", "\tb")]),
        ("-c TimeZone=+03", &[("TimeZone", "+03")]),
        ("-c a+b=c+d", &[("a+b", "c+d")]),
        ("-c a=b -c a=c", &[("a", "b"), ("a", "c")]),
        ("-c search_path=\"$user\",é", &[("search_path", "\"$user\",é")]),
        ("-c --a=b", &[("__a", "b")]),
        ("-c a\u{a0}=b", &[("a\u{a0}", "b")]), // C's isspace knows no such space
    ] {
        let read = parse_options(options).unwrap_or_else(|error| panic!("{options:?}: {error}"));
        let read: Vec<_> = read.iter().map(|(name, value)| (&name[..], &value[..])).collect();
        assert_eq!(read, pairs, "{options:?}");
    }
}

#[test]
fn nothing_else_is_an_option() {
    for options in [
        "-c",
        "-c ",
        "-c=",
        "-c=b",
        "-c =b",
        "-c a",
        "-ca",
        "--",
        "--=b",
        "--a",
        "-- a=b",
        "-c a=b --",
        "a=b",
        "-c a=b c",
        "-c+a",
        "-d 5",
        "-F",
        "-e",
        "-ec a=b",
        "-W 5",
        "-S 1",
        "-f s",
        "-tpa",
        "-",
        "---",
        "-v 3",
        "-p x",
        "+c a=b",
        "-C a",
        "-c\\ a=b c",
        "\\",
        "-c a=b \\-",
    ] {
        let error = parse_options(options).map(|read| panic!("{options:?}: {read:?}")).unwrap_err();
        assert_eq!(error.sqlstate(), SqlState::SYNTAX_ERROR, "{options:?}");
    }
}

#[test]
fn their_number_is_bounded() {
    assert_eq!(parse_options(&"-ca=b ".repeat(PARAMETERS_MAX)).unwrap().len(), PARAMETERS_MAX);
    assert!(parse_options(&"-ca=b ".repeat(PARAMETERS_MAX + 1)).is_err());
}
