//! A server's messages, and those that the gate writes as a server.

use bytes::BytesMut;
use portcullis_wire::backend::{encode, shortened_fields};
use portcullis_wire::scram::ScramError;
use portcullis_wire::{Backend, CancelKey, ErrorMessage, Severity, SqlState, TransactionStatus, WireError};

use crate::samples;

#[test]
fn a_body_means_what_the_protocol_says() {
    use Backend::*;
    use portcullis_wire::Authentication as A;
    let negotiated = |minor, options: &[&'static str]| NegotiateProtocolVersion { minor, options: options.to_vec() };
    for (tag, body, is) in [
        (b'R', &b"\0\0\0\0"[..], Authentication(A::Ok)),
        (b'R', b"\0\0\0\x03", Authentication(A::CleartextPassword)),
        (b'R', b"\0\0\0\x05abcd", Authentication(A::Md5 { salt: *b"abcd" })),
        (b'R', b"\0\0\0\x0aA\0B\0\0", Authentication(A::Sasl { mechanisms: vec!["A", "B"] })),
        (b'R', b"\0\0\0\x0a\0", Authentication(A::Sasl { mechanisms: vec![] })),
        (b'R', b"\0\0\0\x0br=", Authentication(A::SaslContinue(b"r="))),
        (b'R', b"\0\0\0\x0cv=", Authentication(A::SaslFinal(b"v="))),
        (b'R', b"\0\0\0\x07", Authentication(A::Other(7))),
        (b'R', b"\0\0\0\x08token", Authentication(A::Other(8))),
        (b'S', b"a\0b\0", ParameterStatus { name: "a", value: "b" }),
        (b'K', b"\0\0\0\x01abcd", BackendKeyData(CancelKey::new(1, b"abcd").unwrap())),
        (b'K', &[7; 260], BackendKeyData(CancelKey::new(0x0707_0707, &[7; 256]).unwrap())),
        (b'Z', b"I", ReadyForQuery(TransactionStatus::Idle)),
        (b'Z', b"T", ReadyForQuery(TransactionStatus::InTransaction)),
        (b'Z', b"E", ReadyForQuery(TransactionStatus::Failed)),
        (b'v', b"\0\x03\0\x02\0\0\0\x01_pq_.x\0", negotiated(2, &["_pq_.x"])),
        (b'v', b"\0\x03\0\0\0\0\0\0", negotiated(0, &[])),
        (b'v', b"\0\0\0\x01\0\0\0\0", negotiated(1, &[])), // as the docs have it
        (b'C', b"SELECT 1\0", CommandComplete { tag: "SELECT 1" }),
        (b'1', b"", ParseComplete),
        (b'2', b"", BindComplete),
        (b'3', b"", CloseComplete),
        (b'n', b"", NoData),
        (b's', b"", PortalSuspended),
        (b'I', b"", EmptyQueryResponse),
        (b'c', b"", CopyDone),
        (b'T', b"?", RowDescription),
        (b't', b"?", ParameterDescription),
        (b'D', b"?", DataRow),
        (b'd', b"?", CopyData),
        (b'G', b"?", CopyInResponse),
        (b'H', b"?", CopyOutResponse),
        (b'W', b"?", CopyBothResponse),
        (b'A', b"?", NotificationResponse),
        (b'V', b"?", FunctionCallResponse),
        (b'?', b"?", Other(b'?')),
    ] {
        assert_eq!(Backend::decode(tag, body), Ok(is), "{} {}", tag.escape_ascii(), body.escape_ascii());
    }
}

#[test]
fn what_is_no_message_is_refused() {
    for (tag, body) in [
        (b'R', &b""[..]),
        (b'R', b"\0\0\0"),
        (b'R', b"\0\0\0\0x"),
        (b'R', b"\0\0\0\x05abc"),
        (b'R', b"\0\0\0\x05abcde"),
        (b'R', b"\0\0\0\x0aA\0"),
        (b'R', b"\0\0\0\x0aA\0\0x"),
        (b'S', b"a\0"),
        (b'S', b"a\0b\0c\0"),
        (b'S', b"\xff\0b\0"),
        (b'K', b"\0\0\0\x01"),
        (b'K', b"\0\0\0\x01abc"),
        (b'K', &[7; 261]),
        (b'Z', b""),
        (b'Z', b"X"),
        (b'Z', b"II"),
        (b'v', b"\0\x04\0\0\0\0\0\0"),
        (b'v', b"\0\x03\0\0\xff\xff\xff\xff"),
        (b'v', b"\0\x03\0\0\x7f\xff\xff\xff"),
        (b'v', b"\0\x03\0\0\0\0\0\x02_pq_.x\0"),
        (b'v', b"\0\x03\0\0\0\0\0\0x"),
        (b'C', b"SELECT 1"),
        (b'C', b"SELECT 1\0\0"),
        (b'1', b"x"),
        (b'c', b"x"),
        (b'E', b""),
        (b'E', b"Mtext"),
        (b'E', b"Mtext\0"),
        (b'E', b"Mtext\0\0x"),
    ] {
        let error = Backend::decode(tag, body).map(|is| panic!("{} {is:?}", tag.escape_ascii())).unwrap_err();
        assert!(error.sqlstate().class() == "08" || matches!(error, WireError::NotUtf8 { .. }), "{error}");
    }
    assert!(Backend::decode(b'R', &[b"\0\0\0\x0a", &b"A\0".repeat(33)[..], b"\0"].concat()).is_err());
}

#[test]
fn a_shortened_error_is_one_wherever_it_is_cut() {
    let body = "SERROR\0VERROR\0C22P02\0Minvalid input: \u{e9}\u{1f980}x\0Fint8.c\0L120\0Rpg_strtoint64\0\0".as_bytes();
    for at in 0..body.len() - 1 {
        let shortened = shortened_fields(&body[..at], 100_000_000);
        let Ok(Backend::ErrorResponse(fields)) = Backend::decode(b'E', &shortened) else {
            panic!("{at}: {shortened:?}")
        };
        assert!(fields.code().is_none_or(|code| code.starts_with("22P02") || at < 20), "{at}");
        let text = String::from_utf8(shortened.clone()).unwrap_or_else(|error| panic!("{at}: {error}"));
        let says = text.contains(" [cut by the gate: the whole message has 100000000 bytes]\0\0");
        assert_eq!(says, at > 1 && body[at - 1] != 0 && body[at - 2] != 0, "{at}: {text:?}");
    }
}

#[test]
fn any_field_of_an_error_may_be_missing() {
    for (body, code, message, severity, fatal) in [
        (&b"\0"[..], None, None, None, false),
        (b"Mno\0\0", None, Some("no"), None, false),
        (b"SFEHLER\0VERROR\0C42601\0Mno\0\0", Some("42601"), Some("no"), Some("ERROR"), false),
        (b"SFATAL\0C57P01\0\0", Some("57P01"), None, Some("FATAL"), true),
        (b"VPANIC\0\0", None, None, Some("PANIC"), true),
        (b"M\xff\0C\0\0", Some(""), None, None, false),
        (b"?x\0?y\0\0", None, None, None, false),
    ] {
        let Ok(Backend::ErrorResponse(fields)) = Backend::decode(b'E', body) else { panic!("{}", body.escape_ascii()) };
        assert_eq!((fields.code(), fields.message()), (code, message), "{}", body.escape_ascii());
        assert_eq!((fields.severity(), fields.is_fatal()), (severity, fatal), "{}", body.escape_ascii());
    }
    let Ok(Backend::NoticeResponse(fields)) = Backend::decode(b'N', b"Ma\xe9\0Dd\0\0") else { panic!() };
    assert_eq!(fields.bytes(b'M'), Some(&b"a\xe9"[..]));
    assert_eq!((fields.get(b'M'), fields.get(b'D')), (None, Some("d")));
    assert_eq!(fields.iter().collect::<Vec<_>>(), [(b'M', &b"a\xe9"[..]), (b'D', b"d")]);
    assert_eq!(format!("{fields:?}"), "ErrorFields(None, None)");
}

#[test]
fn our_errors_always_have_four_fields_and_no_nul() {
    let mut buf = BytesMut::new();
    ErrorMessage::error(SqlState::INSUFFICIENT_PRIVILEGE, "a\0b").encode_error(&mut buf);
    assert_eq!(&buf[..], b"E\0\0\0\x1eSERROR\0VERROR\0C42501\0Mab\0\0".as_slice());
    let full = ErrorMessage::fatal(SqlState::ADMIN_SHUTDOWN, "m").detail("d\0Hfalse").hint("\0h").position(12);
    buf.clear();
    full.encode_notice(&mut buf);
    let Ok(Backend::NoticeResponse(fields)) = Backend::decode(buf[0], &buf[5..]) else { panic!() };
    let all: Vec<_> = fields.iter().map(|(kind, value)| (char::from(kind), str::from_utf8(value).unwrap())).collect();
    let expected =
        [('S', "FATAL"), ('V', "FATAL"), ('C', "57P01"), ('M', "m"), ('D', "dHfalse"), ('H', "h"), ('P', "12")];
    assert_eq!(all, expected);
}

#[test]
fn our_errors_are_bounded_and_cut_at_a_character() {
    let mut buf = BytesMut::new();
    ErrorMessage::error(SqlState::SYNTAX_ERROR, format!("x{}", "é".repeat(50_000))).encode_error(&mut buf);
    let Ok(Backend::ErrorResponse(fields)) = Backend::decode(buf[0], &buf[5..]) else { panic!() };
    assert_eq!(fields.message().unwrap().len(), 16_383);
}

#[test]
fn an_errors_severity_says_whether_the_session_ends() {
    let long = ErrorMessage::from(&WireError::NameTooLong { message: "Parse", length: 64 });
    assert_eq!((long.severity, long.code), (Severity::Error, SqlState::NAME_TOO_LONG));
    let unknown = ErrorMessage::from(&WireError::UnknownMessage { tag: b'z' });
    assert_eq!((unknown.severity, unknown.code), (Severity::Fatal, SqlState::PROTOCOL_VIOLATION));
    let proof = ErrorMessage::from(&ScramError::Proof);
    assert_eq!((proof.severity, proof.code), (Severity::Fatal, SqlState::INVALID_PASSWORD));
    for severity in [Severity::Error, Severity::Fatal, Severity::Notice, Severity::Warning] {
        assert_eq!(severity.as_str(), format!("{severity:?}").to_uppercase());
    }
}

#[test]
fn what_is_written_is_what_the_protocol_has() {
    type Write = fn(&mut BytesMut);
    let writes: [(Write, &[u8]); 9] = [
        (encode::authentication_ok, b"R\0\0\0\x08\0\0\0\0"),
        (|buf| encode::authentication_sasl(buf, &["A"]), b"R\0\0\0\x0b\0\0\0\x0aA\0\0"),
        (|buf| encode::parameter_status(buf, "a\0", "\0b"), b"S\0\0\0\x08a\0b\0"),
        (
            |buf| encode::negotiate_protocol_version(buf, 2, &["_pq_.x".into()]),
            b"v\0\0\0\x13\0\x03\0\x02\0\0\0\x01_pq_.x\0",
        ),
        (|buf| encode::ready_for_query(buf, TransactionStatus::Failed), b"Z\0\0\0\x05E"),
        (|buf| encode::command_complete(buf, "SET"), b"C\0\0\0\x08SET\0"),
        (
            |buf| encode::data_row_text(buf, &[Some("x\0"), None]).unwrap(),
            b"D\0\0\0\x10\0\x02\0\0\0\x02x\0\xff\xff\xff\xff",
        ),
        (
            |buf| encode::row_description_text(buf, &["a"]).unwrap(),
            b"T\0\0\0\x1a\0\x01a\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0",
        ),
        (encode::parameter_description_none, b"t\0\0\0\x06\0\0"),
    ];
    for (write, bytes) in writes {
        let mut buf = BytesMut::from(&b"before"[..]);
        write(&mut buf);
        assert_eq!(buf[6..].escape_ascii().to_string(), bytes.escape_ascii().to_string());
    }
    let mut buf = BytesMut::from(&b"before"[..]);
    assert!(encode::row_description_text(&mut buf, &vec!["a"; 32_768]).is_err());
    assert!(encode::data_row_text(&mut buf, &vec![None; 32_768]).is_err());
    assert_eq!(&buf[..], b"before");
}

#[test]
fn nothing_secret_is_printed() {
    for sample in samples::backend() {
        let printed = format!("{:?}", Backend::decode(sample.bytes[0], &sample.bytes[5..]).unwrap());
        for secret in ["r=x", "v=x", "5, 5, 5", "\"no\""] {
            assert!(!printed.contains(secret), "{printed}");
        }
    }
}
