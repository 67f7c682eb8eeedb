//! A client's messages: what each means, and what is refused with which SQLSTATE.

use bytes::BytesMut;
use portcullis_wire::frontend::encode;
use portcullis_wire::{Frontend, Header, SaslInitialResponse, SqlState, Target, WireError};

use crate::samples;

const NAME_63: &str = "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn";

#[test]
fn a_body_means_what_the_protocol_says() {
    use Frontend::*;
    let rest = b"\0\0\0\x01\0\0\0\0\0\0";
    for (tag, body, is) in [
        (b'Q', &b"SELECT 1\0"[..], Query { sql: b"SELECT 1" }),
        (b'Q', b"\0", Query { sql: b"" }),
        (b'Q', b"\xff\0", Query { sql: b"\xff" }), // whether this is text is for the judge to say
        (b'P', b"s\0BEGIN\0\0\0", Parse { name: "s", sql: b"BEGIN", param_types: b"\0\0" }),
        (b'P', b"\0\0\0\x01\0\0\0\x17", Parse { name: "", sql: b"", param_types: b"\0\x01\0\0\0\x17" }),
        (b'B', b"p\0s\0\0\0\0\x01\0\0\0\0\0\0", Bind { portal: "p", statement: "s", rest }),
        (b'B', b"\0\0\0\0\0\0\0\0", Bind { portal: "", statement: "", rest: &[0; 6] }),
        (b'D', b"Ss\0", Describe { target: Target::Statement, name: "s" }),
        (b'D', b"P\0", Describe { target: Target::Portal, name: "" }),
        (b'E', b"p\0\0\0\0\x05", Execute { portal: "p", max_rows: 5 }),
        (b'E', b"\0\xff\xff\xff\xff", Execute { portal: "", max_rows: -1 }),
        (b'C', "Sé\0".as_bytes(), Close { target: Target::Statement, name: "é" }),
        (b'S', b"", Sync),
        (b'H', b"", Flush),
        (b'X', b"", Terminate),
        (b'd', b"", CopyData),
        (b'd', b"any\0thing\xff", CopyData),
        (b'c', b"", CopyDone),
        (b'f', b"\0", CopyFail),
        (b'F', b"", FunctionCall),
        (b'p', b"x\0", Password { body: b"x\0" }),
    ] {
        assert_eq!(Frontend::decode(tag, body), Ok(is), "{} {}", tag.escape_ascii(), body.escape_ascii());
    }
}

#[test]
fn what_is_no_message_is_refused() {
    const VIOLATION: SqlState = SqlState::PROTOCOL_VIOLATION;
    let long_name = [NAME_63.as_bytes(), b"n\0"].concat();
    let describe_long = [b"S", &long_name[..]].concat();
    let parse_long = [&long_name[..], b"BEGIN\0\0\0"].concat();
    let bind_long = [b"\0", &long_name[..], &[0; 6]].concat();
    for (why, tag, body, sqlstate) in [
        ("no NUL", b'Q', &b"SELECT 1"[..], VIOLATION),
        ("empty body", b'Q', b"", VIOLATION),
        ("second text behind the NUL", b'Q', b"SELECT 1\0DROP TABLE t\0", VIOLATION),
        ("second NUL", b'Q', b"SELECT 1\0\0", VIOLATION),
        ("second frame inside the frame", b'Q', b"SELECT 1\0Q\0\0\0\x0aDELETE\0", VIOLATION),
        ("rest without NUL", b'Q', b"SELECT 1\0x", VIOLATION),
        ("no type count", b'P', b"s\0BEGIN\0", VIOLATION),
        ("half a type count", b'P', b"s\0BEGIN\0\0", VIOLATION),
        ("fewer types than counted", b'P', b"s\0BEGIN\0\0\x01\0\0\0", VIOLATION),
        ("more types than counted", b'P', b"s\0BEGIN\0\0\0\0\0\0\x17", VIOLATION),
        ("65,535 types announced", b'P', b"s\0BEGIN\0\xff\xff\0\0\0\x17", VIOLATION),
        ("text without NUL", b'P', b"s\0BEGIN", VIOLATION),
        ("long name", b'P', &parse_long, SqlState::NAME_TOO_LONG),
        ("name not UTF-8", b'P', b"\xff\0BEGIN\0\0\0", SqlState::CHARACTER_NOT_IN_REPERTOIRE),
        ("parameter of -2 bytes", b'B', b"\0\0\0\0\0\x01\xff\xff\xff\xfe\0\0", VIOLATION),
        ("parameter of i32::MIN bytes", b'B', b"\0\0\0\0\0\x01\x80\0\0\0\0\0", VIOLATION),
        ("parameter of 2 GiB", b'B', b"\0\0\0\0\0\x01\x7f\xff\xff\xff\0\0", VIOLATION),
        ("parameter beyond the frame", b'B', b"\0\0\0\0\0\x01\0\0\0\x03\0\0", VIOLATION),
        ("formats beyond the frame", b'B', b"\0\0\xff\xff\0\0", VIOLATION),
        ("no result formats", b'B', b"\0\0\0\0\0\0", VIOLATION),
        ("bytes behind the result formats", b'B', b"\0\0\0\0\0\0\0\0\0", VIOLATION),
        ("long statement name", b'B', &bind_long, SqlState::NAME_TOO_LONG),
        ("statement not UTF-8", b'B', b"\0\xc3\x28\0\0\0\0\0\0\0", SqlState::CHARACTER_NOT_IN_REPERTOIRE),
        ("unknown target", b'D', b"Xs\0", VIOLATION),
        ("no target", b'D', b"", VIOLATION),
        ("two names", b'D', b"Ss\0t\0", VIOLATION),
        ("long name", b'D', &describe_long, SqlState::NAME_TOO_LONG),
        ("unknown target", b'C', b"\0s\0", VIOLATION),
        ("long name", b'C', &describe_long, SqlState::NAME_TOO_LONG),
        ("no row count", b'E', b"p\0", VIOLATION),
        ("half a row count", b'E', b"p\0\0\0", VIOLATION),
        ("bytes behind the row count", b'E', b"p\0\0\0\0\0\0", VIOLATION),
        ("long name", b'E', &[&long_name[..], &[0; 4]].concat(), SqlState::NAME_TOO_LONG),
        ("not empty", b'S', b"\0", VIOLATION),
        ("not empty", b'H', b"x", VIOLATION),
        ("not empty", b'X', b"\0", VIOLATION),
        ("not empty", b'c', b"\0", VIOLATION),
        ("reason without NUL", b'f', b"why", VIOLATION),
        ("two reasons", b'f', b"a\0b\0", VIOLATION),
        ("8 KiB and a byte of password", b'p', &[b'x'; 8193], VIOLATION),
        ("long Describe", b'D', &[b'S'; 10_001], VIOLATION),
        ("unknown", b'Z', b"I", VIOLATION),
        ("unknown", 0, b"", VIOLATION),
        ("unknown", b'R', b"\0\0\0\0", VIOLATION),
    ] {
        let error = Frontend::decode(tag, body).expect_err(why);
        assert_eq!(error.sqlstate(), sqlstate, "{} with {why}: {error}", tag.escape_ascii());
        assert_eq!(error.is_fatal(), sqlstate == VIOLATION, "{} with {why}", tag.escape_ascii());
    }
}

#[test]
fn a_name_has_up_to_63_bytes() {
    let body = [b"S", NAME_63.as_bytes(), b"\0"].concat();
    assert_eq!(Frontend::decode(b'D', &body), Ok(Frontend::Describe { target: Target::Statement, name: NAME_63 }));
}

#[test]
fn all_counts_are_unsigned() {
    let types = [&b"\0\0\xff\xff"[..], &vec![0; 4 * 65_535]].concat();
    assert!(matches!(Frontend::decode(b'P', &types), Ok(Frontend::Parse { .. })));
    let nulls = [&b"\0\0\0\0\xff\xff"[..], &vec![0xff; 4 * 65_535], b"\0\0"].concat();
    assert!(matches!(Frontend::decode(b'B', &nulls), Ok(Frontend::Bind { .. })));
}

/// What is `Copy` owns no memory: decoding on the relay's path cannot have allocated any.
#[test]
fn decoding_owns_nothing() {
    fn owns_nothing<T: Copy>() {}
    owns_nothing::<Header>();
    owns_nothing::<Frontend<'_>>();
    owns_nothing::<SaslInitialResponse<'_>>();
}

#[test]
fn the_first_sasl_message() {
    let whole = b"SCRAM-SHA-256\0\0\0\0\x03n,,";
    let decoded = SaslInitialResponse::decode(whole).unwrap();
    assert_eq!((decoded.mechanism, decoded.data), ("SCRAM-SHA-256", Some(&b"n,,"[..])));
    assert_eq!(SaslInitialResponse::decode(b"X\0\xff\xff\xff\xff").unwrap().data, None);
    assert_eq!(SaslInitialResponse::decode(b"X\0\0\0\0\0").unwrap().data, Some(&b""[..]));
    for end in 0..whole.len() {
        assert!(SaslInitialResponse::decode(&whole[..end]).is_err(), "cut at {end}");
    }
    for bad in [
        &b"X\0\xff\xff\xff\xfe"[..],
        b"X\0\0\0\0\x01",
        b"X\0\0\0\0\x01ab",
        b"X\0\x7f\xff\xff\xffab",
        b"X\0\xff\xff\xff\xff\0",
        b"\xff\0\0\0\0\0",
    ] {
        assert!(SaslInitialResponse::decode(bad).is_err(), "{}", bad.escape_ascii());
    }
    assert!(SaslInitialResponse::decode(&[0; 8193]).is_err());
}

#[test]
fn a_nul_is_not_written_and_leaves_the_buffer_alone() {
    const NUL: &str = "a\0b";
    type Write = fn(&mut BytesMut) -> Result<(), WireError>;
    let writes: [(&str, Write); 16] = [
        ("startup name", |buf| encode::startup(buf, 0, &[("user", "x"), (NUL, "x")])),
        ("startup value", |buf| encode::startup(buf, 0, &[("user", NUL)])),
        ("startup, empty name", |buf| encode::startup(buf, 0, &[("", "x"), ("user", "x")])),
        ("password", |buf| encode::password(buf, NUL.as_bytes())),
        ("mechanism", |buf| encode::sasl_initial_response(buf, NUL, b"")),
        ("query", |buf| encode::query(buf, NUL)),
        ("query ending", |buf| encode::query(buf, "SELECT 1\0")),
        ("parse name", |buf| encode::parse(buf, NUL, "", &[])),
        ("parse text", |buf| encode::parse(buf, "", NUL, &[])),
        ("bind portal", |buf| encode::bind(buf, NUL, "", &[])),
        ("bind statement", |buf| encode::bind(buf, "", NUL, &[])),
        ("describe", |buf| encode::describe(buf, Target::Portal, NUL)),
        ("execute", |buf| encode::execute(buf, NUL, 0)),
        ("close", |buf| encode::close(buf, Target::Portal, NUL)),
        ("copy_fail", |buf| encode::copy_fail(buf, NUL)),
        ("copy_fail ending", |buf| encode::copy_fail(buf, "\0")),
    ];
    for (what, write) in writes {
        let mut buf = BytesMut::from(&b"before"[..]);
        assert!(write(&mut buf).is_err(), "{what}");
        assert_eq!(&buf[..], b"before", "{what}");
    }
}

#[test]
fn nothing_that_a_customer_wrote_is_printed() {
    for sample in samples::frontend() {
        let message = Frontend::decode(sample.bytes[0], &sample.bytes[5..]).unwrap();
        let printed = format!("{message:?}");
        for secret in ["secret", "SELECT", "tone", "no more", "biws"] {
            assert!(!printed.contains(secret), "{printed}");
        }
    }
}
