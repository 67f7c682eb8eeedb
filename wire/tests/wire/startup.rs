//! Startup packets: versions, parameters, cancel keys.

use bytes::BytesMut;
use portcullis_wire::startup::{PARAMETERS_MAX, PROTOCOL_MINOR_MAX};
use portcullis_wire::{CancelKey, SqlState, StartupMessage, StartupPacket, WireError, cut_startup};

use crate::samples::packet;

const V3_0: i32 = 3 << 16;

fn cut(code: i32, body: &[u8]) -> Result<StartupPacket, WireError> {
    cut_startup(&mut BytesMut::from(&packet(code, body)[..])).map(|whole| whole.expect("the packet is whole"))
}

fn message(body: &[u8]) -> Result<StartupMessage, WireError> {
    match cut(V3_0, body)? {
        StartupPacket::StartupMessage(message) => Ok(message),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_version_is_negotiated_or_refused() {
    for (major, minor, answer) in [
        (3, 0, Some(false)),
        (3, 2, Some(false)),
        (3, 3, Some(true)),
        (3, 9999, Some(true)), // what libpq sends to see whether servers negotiate
        (3, 65_535, Some(true)),
        (2, 0, None),
        (1, 0, None),
        (0, 0, None),
        (4, 0, None),
        (1234, 5677, None),
        (1234, 5681, None),
        (-1, 0, None),
    ] {
        match (cut((major << 16) | minor, b"user\0x\0\0"), answer) {
            (Ok(StartupPacket::StartupMessage(message)), Some(negotiate)) => {
                assert_eq!(i32::from(message.minor), minor);
                assert_eq!(message.needs_negotiation(), negotiate, "3.{minor}");
            }
            (Err(error), None) => assert_eq!(error.sqlstate(), SqlState::FEATURE_NOT_SUPPORTED, "{major}.{minor}"),
            (found, _) => panic!("{major}.{minor}: {found:?}"),
        }
    }
    assert_eq!(PROTOCOL_MINOR_MAX, 2);
}

#[test]
fn an_unknown_version_is_refused_before_the_rest_arrives() {
    let mut buf = BytesMut::from(&b"\0\0\x10\0\0\x02\0\0"[..]);
    assert_eq!(cut_startup(&mut buf), Err(WireError::UnsupportedProtocol { major: 2, minor: 0 }));
}

#[test]
fn parameters_are_kept_in_order_and_options_of_the_protocol_apart() {
    let decoded = message(
        b"user\0tdb_1\0_pq_.one\0x\0DateStyle\0ISO, DMY\0replication\0false\0_pq_.two\0\0application_name\0\xc3\xa9\0\0",
    )
    .unwrap();
    let pairs: Vec<_> = decoded.parameters.iter().map(|(name, value)| (&name[..], &value[..])).collect();
    assert_eq!(pairs, [("user", "tdb_1"), ("DateStyle", "ISO, DMY"), ("application_name", "é")]);
    assert_eq!(decoded.protocol_options, ["_pq_.one", "_pq_.two"]);
    assert!(decoded.needs_negotiation());
    assert_eq!((decoded.user(), decoded.database()), ("tdb_1", "tdb_1"), "the database's name is the user's");
    assert_eq!((decoded.get("DateStyle"), decoded.get("datestyle")), (Some("ISO, DMY"), None));
}

#[test]
fn the_database_is_the_users_unless_named() {
    for (body, database) in [
        (&b"user\0u\0\0"[..], "u"),
        (b"user\0u\0database\0\0\0", "u"),
        (b"user\0u\0database\0acme_workspace\0\0", "acme_workspace"),
        (b"database\0d\0user\0u\0\0", "d"),
    ] {
        assert_eq!(message(body).unwrap().database(), database, "{}", body.escape_ascii());
    }
}

#[test]
fn what_is_no_startup_message_is_refused() {
    const VIOLATION: SqlState = SqlState::PROTOCOL_VIOLATION;
    for (why, body, sqlstate) in [
        ("nothing", &b""[..], VIOLATION),
        ("no user", b"\0", SqlState::INVALID_AUTHORIZATION_SPECIFICATION),
        ("empty user", b"user\0\0\0", SqlState::INVALID_AUTHORIZATION_SPECIFICATION),
        ("only a database", b"database\0d\0\0", SqlState::INVALID_AUTHORIZATION_SPECIFICATION),
        ("user in another case", b"USER\0x\0\0", SqlState::INVALID_AUTHORIZATION_SPECIFICATION),
        ("no final NUL", b"user\0x\0", VIOLATION),
        ("name without value", b"user\0x\0database\0", VIOLATION),
        ("value without NUL", b"user\0x", VIOLATION),
        ("bytes behind the end", b"user\0x\0\0database\0y\0\0", VIOLATION),
        ("NUL behind the end", b"user\0x\0\0\0", VIOLATION),
        ("user twice", b"user\0x\0user\0y\0\0", VIOLATION),
        ("user twice, same value", b"user\0x\0user\0x\0\0", VIOLATION),
        ("a setting twice in two cases", b"user\0x\0TimeZone\0UTC\0timezone\0UTC\0\0", VIOLATION),
        ("an option of the protocol twice", b"user\0x\0_pq_.a\0\0_pq_.a\0\0\0", VIOLATION),
        ("replication twice", b"user\0x\0replication\0off\0replication\0true\0\0", VIOLATION),
        ("replication", b"user\0x\0replication\0true\0\0", SqlState::FEATURE_NOT_SUPPORTED),
        ("replication", b"user\0x\0replication\0database\0\0", SqlState::FEATURE_NOT_SUPPORTED),
        ("replication in another case", b"user\0x\0Replication\0on\0\0", SqlState::FEATURE_NOT_SUPPORTED),
        ("ambiguous replication", b"user\0x\0replication\0o\0\0", SqlState::FEATURE_NOT_SUPPORTED),
        ("empty replication", b"user\0x\0replication\0\0\0", SqlState::FEATURE_NOT_SUPPORTED),
        ("name not UTF-8", b"user\0x\0\xff\0y\0\0", SqlState::CHARACTER_NOT_IN_REPERTOIRE),
        ("value not UTF-8", b"user\0\xc3\x28\0\0", SqlState::CHARACTER_NOT_IN_REPERTOIRE),
    ] {
        let error = message(body).expect_err(why);
        assert_eq!(error.sqlstate(), sqlstate, "{why}: {error}");
    }
    for off in ["off", "OFF", "of", "false", "f", "no", "n", "0"] {
        let body = format!("user\0x\0replication\0{off}\0\0");
        assert_eq!(message(body.as_bytes()).unwrap().parameters.len(), 1, "replication={off}");
    }
}

#[test]
fn the_number_of_parameters_is_bounded() {
    let body = |count: usize| {
        let more: String = (1..count).map(|at| format!("p{at}\0\0")).collect();
        format!("user\0x\0{more}\0").into_bytes()
    };
    assert_eq!(message(&body(PARAMETERS_MAX)).unwrap().parameters.len(), PARAMETERS_MAX);
    assert!(message(&body(PARAMETERS_MAX + 1)).is_err());
}

#[test]
fn a_cancel_key_has_4_to_256_bytes() {
    const CANCEL: i32 = (1234 << 16) | 5678;
    for (len, good) in
        [(0, false), (3, false), (4, true), (5, true), (32, true), (255, true), (256, true), (257, false)]
    {
        let secret = vec![7; len];
        assert_eq!(CancelKey::new(1, &secret).is_ok(), good, "{len} bytes");
        match cut(CANCEL, &[&[0, 0, 0, 1][..], &secret].concat()) {
            Ok(StartupPacket::CancelRequest(key)) if good => {
                assert_eq!((key.process_id, key.secret()), (1, &secret[..]))
            }
            Err(_) if !good => {}
            other => panic!("{len} bytes: {other:?}"),
        }
    }
}

#[test]
fn a_cancel_key_is_equal_in_all_its_bytes_and_hidden() {
    let key = CancelKey::new(1, &[1, 2, 3, 4]).unwrap();
    for (process_id, secret, equal) in [
        (1, &[1, 2, 3, 4][..], true),
        (2, &[1, 2, 3, 4], false),
        (1, &[1, 2, 3, 5], false),
        (1, &[1, 2, 3, 4, 0], false),
    ] {
        assert_eq!(CancelKey::new(process_id, secret).unwrap() == key, equal, "{process_id} {secret:?}");
    }
    assert_eq!(format!("{key:?}"), "CancelKey(1, ***)");
}

#[test]
fn an_error_repeats_little_of_what_was_sent() {
    let name = format!("{}\n", "é".repeat(2000));
    let error = message(format!("user\0x\0{name}\0a\0{name}\0a\0\0").as_bytes()).unwrap_err();
    assert!(error.to_string().chars().count() < 200, "{error}");
    let error = portcullis_wire::parse_options("-x\n\x1b[31m").unwrap_err();
    assert!(!error.to_string().chars().any(char::is_control), "{error}");
}
