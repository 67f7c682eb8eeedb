//! What holds for all bytes and for all messages.

use bytes::BytesMut;
use portcullis_wire::frontend::encode as client;
use portcullis_wire::fuzz::{fuzz_backend, fuzz_decode, fuzz_frontend, fuzz_startup};
use portcullis_wire::{
    Backend, CancelKey, ErrorMessage, Frontend, SqlState, StartupPacket, Target, cut_frame, cut_frontend_frame,
    cut_startup, parse_options,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::samples::{self, frame, packet};

/// Bytes in which NULs, counts and type bytes are frequent enough to get past the first check.
fn likely() -> impl Strategy<Value = Vec<u8>> {
    let telling = select(b"SPQBEDabc=,;-\\ ".to_vec());
    vec(prop_oneof![3 => Just(0_u8), 2 => 0..8_u8, 1 => Just(0xff), 3 => telling, 1 => any::<u8>()], 0..200)
}

/// A text without NUL, such as all strings of the protocol are.
fn text(len_max: usize) -> impl Strategy<Value = String> {
    vec(any::<char>().prop_filter("no NUL", |character| *character != '\0'), 0..=len_max)
        .prop_map(|characters| characters.into_iter().collect())
}

/// A name that fits 63 bytes.
fn name() -> impl Strategy<Value = String> {
    text(15)
}

proptest! {
    #[test]
    fn no_bytes_panic(data in vec(any::<u8>(), 0..300)) {
        fuzz_decode(&data);
    }

    #[test]
    fn no_body_panics(tag in any::<u8>(), body in likely()) {
        let _ = Frontend::decode(tag, &body);
        let _ = Backend::decode(tag, &body);
        fuzz_frontend(&frame(tag, &body));
        fuzz_backend(&frame(tag, &body));
        fuzz_startup(&packet(3 << 16, &body));
    }

    /// A good message with some bytes changed: nearest to what somebody would try.
    #[test]
    fn no_damaged_message_panics(pick in any::<prop::sample::Index>(), damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let samples: Vec<_> = samples::startup().into_iter().chain(samples::frontend()).chain(samples::backend()).collect();
        let mut bytes = pick.get(&samples).bytes.clone();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        fuzz_decode(&bytes);
    }

    #[test]
    fn a_query_is_the_text(sql in text(300)) {
        let mut buf = BytesMut::new();
        client::query(&mut buf, &sql).unwrap();
        let frame = cut_frontend_frame(&mut buf, 1 << 20).unwrap().unwrap();
        prop_assert_eq!(Frontend::decode(frame.tag(), frame.body()), Ok(Frontend::Query { sql: sql.as_bytes() }));
    }

    #[test]
    fn parse_and_bind_round_trip(
        statement in name(), portal in name(), sql in text(100), types in vec(any::<u32>(), 0..5),
        formats in vec(0..2_u16, 0..3), values in vec(proptest::option::of(vec(any::<u8>(), 0..50)), 0..5), max_rows in any::<i32>(),
    ) {
        let mut param_types = u16::try_from(types.len()).unwrap().to_be_bytes().to_vec();
        param_types.extend(types.iter().flat_map(|oid| oid.to_be_bytes()));
        let mut codes = u16::try_from(formats.len()).unwrap().to_be_bytes().to_vec();
        codes.extend(formats.iter().flat_map(|code| code.to_be_bytes()));
        let mut rest = codes.clone();
        rest.extend(u16::try_from(values.len()).unwrap().to_be_bytes());
        for value in &values {
            rest.extend(value.as_ref().map_or(-1, |value| i32::try_from(value.len()).unwrap()).to_be_bytes());
            rest.extend(value.iter().flatten());
        }
        rest.extend(&codes);
        let target = Target::Portal;
        let messages = [
            Frontend::Parse { name: &statement, sql: sql.as_bytes(), param_types: &param_types },
            Frontend::Bind { portal: &portal, statement: &statement, rest: &rest },
            Frontend::Describe { target, name: &portal },
            Frontend::Execute { portal: &portal, max_rows },
            Frontend::Close { target: Target::Statement, name: &statement },
        ];
        let mut buf = BytesMut::new();
        client::parse(&mut buf, &statement, &sql, &param_types).unwrap();
        client::bind(&mut buf, &portal, &statement, &rest).unwrap();
        client::describe(&mut buf, target, &portal).unwrap();
        client::execute(&mut buf, &portal, max_rows).unwrap();
        client::close(&mut buf, Target::Statement, &statement).unwrap();
        for message in messages {
            let frame = cut_frontend_frame(&mut buf, 1 << 20).unwrap().unwrap();
            prop_assert_eq!(Frontend::decode(frame.tag(), frame.body()), Ok(message));
        }
        prop_assert!(buf.is_empty());
    }

    #[test]
    fn a_startup_message_round_trips(minor in any::<u16>(), user in "[a-z]{1,20}", values in vec(text(20), 0..10)) {
        let names: Vec<_> = (0..values.len()).map(|at| format!("p{at}")).collect();
        let mut pairs = vec![("user", &user[..])];
        pairs.extend(names.iter().map(|name| &name[..]).zip(values.iter().map(|value| &value[..])));
        let mut buf = BytesMut::new();
        client::startup(&mut buf, minor, &pairs).unwrap();
        let Ok(Some(StartupPacket::StartupMessage(message))) = cut_startup(&mut buf) else { panic!("no StartupMessage") };
        let decoded: Vec<_> = message.parameters.iter().map(|(name, value)| (&name[..], &value[..])).collect();
        prop_assert_eq!(decoded, pairs);
        prop_assert_eq!(message.minor, minor);
    }

    #[test]
    fn a_cancel_request_round_trips(process_id in any::<i32>(), secret in vec(any::<u8>(), 4..=256)) {
        let key = CancelKey::new(process_id, &secret).unwrap();
        let mut buf = BytesMut::new();
        client::cancel_request(&mut buf, &key);
        prop_assert_eq!(cut_startup(&mut buf), Ok(Some(StartupPacket::CancelRequest(key))));
        prop_assert!(buf.is_empty());
    }

    #[test]
    fn an_error_round_trips(message in text(50), detail in text(50), position in any::<u32>()) {
        let mut buf = BytesMut::new();
        ErrorMessage::error(SqlState::SYNTAX_ERROR, &message[..]).detail(&detail[..]).position(position).encode_error(&mut buf);
        let frame = cut_frame(&mut buf, 1 << 20).unwrap().unwrap();
        let Ok(Backend::ErrorResponse(fields)) = Backend::decode(frame.tag(), frame.body()) else { panic!("no error") };
        prop_assert_eq!((fields.code(), fields.message(), fields.get(b'D')), (Some("42601"), Some(&message[..]), Some(&detail[..])));
        let position = position.to_string();
        prop_assert_eq!(fields.get(b'P'), Some(&position[..]));
    }

    /// What is escaped as a client's library escapes it comes back as it was.
    #[test]
    fn escaped_options_round_trip(values in vec(text(20), 0..5)) {
        let escape = |value: &str| value.chars().flat_map(|character| ['\\', character]).collect::<String>();
        let options: String = values.iter().map(|value| format!(" -c n={}", escape(value))).collect();
        let read: Vec<_> = parse_options(&options).unwrap().into_iter().map(|(_, value)| value).collect();
        prop_assert_eq!(read, values);
    }
}
