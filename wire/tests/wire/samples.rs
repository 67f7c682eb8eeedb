//! One good example of every message, and the two things that must hold for each of them: cut anywhere it is not yet a
//! message, and whole it is consumed to the last byte and not further.

use bytes::{BufMut, BytesMut};
use portcullis_wire::backend::encode as server;
use portcullis_wire::frontend::encode as client;
use portcullis_wire::{
    Backend, CancelKey, ErrorMessage, Frame, Frontend, SqlState, Target, TransactionStatus, WireError, cut_frame,
    cut_frontend_frame, cut_startup,
};

/// A message under a name, and whether any other length of its body must be refused.
pub struct Sample {
    pub name: &'static str,
    pub bytes: Vec<u8>,
    pub rigid: bool,
}

fn sample(name: &'static str, rigid: bool, write: impl FnOnce(&mut BytesMut)) -> Sample {
    let mut bytes = BytesMut::new();
    write(&mut bytes);
    Sample { name, bytes: bytes.to_vec(), rigid }
}

/// A frame of any type and body.
pub fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag];
    bytes.put_i32(i32::try_from(body.len()).unwrap() + 4);
    bytes.put_slice(body);
    bytes
}

/// A startup packet of any code and body.
pub fn packet(code: i32, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.put_i32(i32::try_from(body.len()).unwrap() + 8);
    bytes.put_i32(code);
    bytes.put_slice(body);
    bytes
}

pub fn startup() -> Vec<Sample> {
    let short = CancelKey::new(42, &[1, 2, 3, 4]).unwrap();
    let long = CancelKey::new(-1, &[9; 256]).unwrap();
    let parameters = [("user", "tdb_0123"), ("database", "acme_workspace"), ("options", "-c TimeZone=UTC")];
    vec![
        sample("ssl-request", true, client::ssl_request),
        sample("gssenc-request", true, client::gssenc_request),
        sample("cancel-request", false, |buf| client::cancel_request(buf, &short)),
        sample("cancel-request-3.2", false, |buf| client::cancel_request(buf, &long)),
        sample("startup", true, |buf| client::startup(buf, 0, &parameters).unwrap()),
        sample("startup-grease", true, |buf| {
            client::startup(buf, 9999, &[("user", "x"), ("_pq_.test_protocol_negotiation", "")]).unwrap();
        }),
    ]
}

pub fn frontend() -> Vec<Sample> {
    const BINARY: &[u8] = b"\0\x01\0\x01\0\x02\0\0\0\x03a\0b\xff\xff\xff\xff\0\x02\0\0\0\x01";
    vec![
        sample("query", true, |buf| client::query(buf, "SELECT 'é'").unwrap()),
        sample("query-empty", true, |buf| client::query(buf, "").unwrap()),
        sample("parse", true, |buf| client::parse(buf, "s1", "SELECT $1, $2", b"\0\x02\0\0\0\x17\0\0\0\0").unwrap()),
        sample("parse-unnamed", true, |buf| client::parse(buf, "", "BEGIN", &[]).unwrap()),
        sample("bind", true, |buf| client::bind(buf, "p1", "s1", BINARY).unwrap()),
        sample("bind-unnamed", true, |buf| client::bind(buf, "", "", &[]).unwrap()),
        sample("describe-statement", true, |buf| client::describe(buf, Target::Statement, "s1").unwrap()),
        sample("describe-portal", true, |buf| client::describe(buf, Target::Portal, "").unwrap()),
        sample("execute", true, |buf| client::execute(buf, "p1", 500).unwrap()),
        sample("close", true, |buf| client::close(buf, Target::Statement, "s1").unwrap()),
        sample("sync", true, client::sync),
        sample("flush", true, client::flush),
        sample("terminate", true, client::terminate),
        sample("copy-data", false, |buf| client::copy_data(buf, b"1\tone\n\0").unwrap()),
        sample("copy-done", true, client::copy_done),
        sample("copy-fail", true, |buf| client::copy_fail(buf, "no more").unwrap()),
        sample("function-call", false, |buf| buf.put_slice(&frame(b'F', &[0, 0, 4, 210, 0, 0, 0, 0, 0, 0]))),
        sample("password", false, |buf| client::password(buf, b"secret").unwrap()),
        sample("sasl-initial-response", false, |buf| {
            client::sasl_initial_response(buf, "SCRAM-SHA-256", b"n,,n=,r=abc").unwrap();
        }),
        sample("sasl-response", false, |buf| client::sasl_response(buf, b"c=biws,r=abcdef,p=AA==")),
    ]
}

pub fn backend() -> Vec<Sample> {
    let key = CancelKey::new(7, &[5; 32]).unwrap();
    let error = ErrorMessage::error(SqlState::INSUFFICIENT_PRIVILEGE, "no").detail("d").hint("h").position(3);
    let options = ["_pq_.a".to_owned(), "_pq_.b".to_owned()];
    vec![
        sample("authentication-ok", true, server::authentication_ok),
        sample("authentication-cleartext", true, server::authentication_cleartext_password),
        sample("authentication-md5", true, |buf| buf.put_slice(&frame(b'R', &[0, 0, 0, 5, 1, 2, 3, 4]))),
        sample("authentication-sasl", true, |buf| {
            server::authentication_sasl(buf, &["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"]);
        }),
        sample("authentication-sasl-continue", false, |buf| server::authentication_sasl_continue(buf, b"r=x,s=,i=1")),
        sample("authentication-sasl-final", false, |buf| server::authentication_sasl_final(buf, b"v=x")),
        sample("parameter-status", true, |buf| server::parameter_status(buf, "TimeZone", "UTC")),
        sample("backend-key-data", false, |buf| server::backend_key_data(buf, &key)),
        sample("ready-for-query", true, |buf| server::ready_for_query(buf, TransactionStatus::InTransaction)),
        sample("error-response", true, |buf| error.encode_error(buf)),
        sample("notice-response", true, |buf| error.encode_notice(buf)),
        sample("negotiate", true, |buf| server::negotiate_protocol_version(buf, 2, &options)),
        sample("command-complete", true, |buf| server::command_complete(buf, "INSERT 0 1")),
        sample("parse-complete", true, server::parse_complete),
        sample("bind-complete", true, server::bind_complete),
        sample("close-complete", true, server::close_complete),
        sample("empty-query-response", true, server::empty_query_response),
        sample("no-data", true, server::no_data),
        sample("portal-suspended", true, |buf| buf.put_slice(&frame(b's', &[]))),
        sample("parameter-description", false, server::parameter_description_none),
        sample("row-description", false, |buf| server::row_description_text(buf, &["a", "b"]).unwrap()),
        sample("data-row", false, |buf| server::data_row_text(buf, &[Some("x"), None]).unwrap()),
        sample("copy-in-response", false, |buf| buf.put_slice(&frame(b'G', &[0, 0, 1, 0, 0]))),
        sample("notification", false, |buf| buf.put_slice(&frame(b'A', b"\0\0\0\x07channel\0payload\0"))),
    ]
}

/// Takes one message off `buf`, or says that it is not whole.
type Cut = fn(&mut BytesMut) -> Result<Option<Option<Frame>>, WireError>;

#[test]
fn every_message_is_whole_at_its_last_byte_and_not_before() {
    let kinds: [(Vec<Sample>, Cut); 3] = [
        (startup(), |buf| Ok(cut_startup(buf)?.map(|_| None))),
        (frontend(), |buf| Ok(cut_frontend_frame(buf, 1 << 20)?.map(Some))),
        (backend(), |buf| Ok(cut_frame(buf, 1 << 20)?.map(Some))),
    ];
    for (samples, cut) in kinds {
        for Sample { name, bytes, .. } in samples {
            for end in 0..bytes.len() {
                let mut buf = BytesMut::from(&bytes[..end]);
                assert_eq!(cut(&mut buf), Ok(None), "{name} cut at {end}");
                assert_eq!(buf, bytes[..end], "{name} cut at {end} left its bytes");
            }
            let mut buf = BytesMut::from(&bytes[..]);
            buf.put_slice(b"NEXT");
            let whole = cut(&mut buf).unwrap().unwrap_or_else(|| panic!("{name} is whole"));
            assert_eq!(&buf[..], b"NEXT", "{name} took its own bytes only");
            if let Some(frame) = whole {
                assert_eq!(frame.raw()[..], bytes[..], "{name}");
                assert_eq!((frame.tag(), frame.body()), (bytes[0], &bytes[5..]), "{name}");
                assert_eq!(frame.into_raw(), bytes, "{name}");
            }
        }
    }
}

#[test]
fn a_frame_whose_content_ends_elsewhere_is_refused() {
    type Decodes = fn(u8, &[u8]) -> bool;
    let kinds: [(Vec<Sample>, Decodes); 2] = [
        (frontend(), |tag, body| Frontend::decode(tag, body).is_ok()),
        (backend(), |tag, body| Backend::decode(tag, body).is_ok()),
    ];
    for (samples, decodes) in kinds {
        for Sample { name, bytes, rigid } in samples {
            let (tag, body) = (bytes[0], &bytes[5..]);
            assert!(decodes(tag, body), "{name}");
            for end in 0..body.len() {
                let ok = decodes(tag, &body[..end]);
                assert!(!(ok && rigid), "{name} with a body of {end} bytes, {:?}", &body[..end]);
            }
            for extra in [&b"\0"[..], b"x", b"\0\0", b"x\0", b"; DROP TABLE t\0", b"Q\0\0\0\x05\0"] {
                let ok = decodes(tag, &[body, extra].concat());
                assert!(!(ok && rigid), "{name} followed by {extra:?} inside its frame");
            }
        }
    }
}

#[test]
fn a_startup_packet_whose_content_ends_elsewhere_is_refused() {
    for Sample { name, bytes, rigid } in startup().into_iter().filter(|sample| sample.rigid) {
        assert!(rigid);
        let code = i32::from_be_bytes(bytes[4..8].try_into().unwrap());
        for end in 0..bytes.len() - 8 {
            let shorter = packet(code, &bytes[8..8 + end]);
            assert!(cut_startup(&mut BytesMut::from(&shorter[..])).is_err(), "{name} with a body of {end} bytes");
        }
        for extra in [&b"\0"[..], b"x", b"user\0y\0\0"] {
            let longer = packet(code, &[&bytes[8..], extra].concat());
            assert!(cut_startup(&mut BytesMut::from(&longer[..])).is_err(), "{name} followed by {extra:?}");
        }
    }
}
