//! Every decoder behind one function of plain bytes, so that the fuzzer and an ordinary test over its corpus call the
//! same code.
//!
//! The functions panic when something that must always hold does not: that is what a fuzzer looks for. They are no part
//! of the gate.

use bytes::BytesMut;

use crate::scram::{ChannelBinding, ClientExchange, Credential, ServerExchange, mechanisms};
use crate::{
    Backend, Frontend, SaslInitialResponse, StartupPacket, WireError, cut_frame, cut_frontend_frame, cut_startup,
    frontend, parse_options,
};

/// The longest body that is accepted here; a corpus has no longer one.
const BODY_BYTES_MAX: usize = 1 << 20;

/// All of the functions below, on the same bytes.
pub fn fuzz_decode(data: &[u8]) {
    fuzz_startup(data);
    fuzz_frontend(data);
    fuzz_backend(data);
    fuzz_scram(data);
}

/// Startup packets, one after the other.
pub fn fuzz_startup(data: &[u8]) {
    let mut buf = BytesMut::from(data);
    loop {
        let before = buf.len();
        match cut_startup(&mut buf) {
            Ok(Some(packet)) => {
                assert!(buf.len() < before, "a packet was cut without consuming it");
                check_startup(&packet);
            }
            Ok(None) | Err(_) => {
                assert_eq!(buf.len(), before, "bytes are gone without a packet");
                break;
            }
        }
    }
    if let Ok(options) = std::str::from_utf8(data) {
        let _ = parse_options(options);
    }
}

fn check_startup(packet: &StartupPacket) {
    let StartupPacket::StartupMessage(message) = packet else { return };
    assert!(!message.user().is_empty());
    let pairs: Vec<_> = message.parameters.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let mut again = BytesMut::new();
    assert_eq!(frontend::encode::startup(&mut again, message.minor, &pairs), Ok(()));
    if let Ok(Some(StartupPacket::StartupMessage(decoded))) = cut_startup(&mut again) {
        assert_eq!(decoded.parameters, message.parameters);
    } else {
        panic!("a decoded StartupMessage does not encode to one");
    }
    if let Some(options) = message.get("options") {
        let _ = parse_options(options);
    }
}

/// A client's frames, one after the other.
pub fn fuzz_frontend(data: &[u8]) {
    let mut buf = BytesMut::from(data);
    while let Ok(Some(frame)) = cut_frontend_frame(&mut buf, BODY_BYTES_MAX) {
        if let Ok(message) = Frontend::decode(frame.tag(), frame.body()) {
            check_round_trip(&message, frame.raw());
        }
        let _ = SaslInitialResponse::decode(frame.body());
    }
}

/// What was decoded and is forwarded must be, byte for byte, what was sent: else something else than the frame was
/// judged.
fn check_round_trip(message: &Frontend<'_>, raw: &[u8]) {
    use frontend::encode;
    let mut again = BytesMut::new();
    let written: Result<(), WireError> = match *message {
        Frontend::Query { sql } => match std::str::from_utf8(sql) {
            Ok(sql) => encode::query(&mut again, sql),
            Err(_) => return,
        },
        Frontend::Parse { name, sql, param_types } => match std::str::from_utf8(sql) {
            Ok(sql) => encode::parse(&mut again, name, sql, param_types),
            Err(_) => return,
        },
        Frontend::Bind { portal, statement, rest } => encode::bind(&mut again, portal, statement, rest),
        Frontend::Describe { target, name } => encode::describe(&mut again, target, name),
        Frontend::Execute { portal, max_rows } => encode::execute(&mut again, portal, max_rows),
        Frontend::Close { target, name } => encode::close(&mut again, target, name),
        _ => return,
    };
    assert_eq!(written, Ok(()));
    assert_eq!(&again[..], raw, "another message than the one that was decoded");
}

/// A server's frames, one after the other.
pub fn fuzz_backend(data: &[u8]) {
    let mut buf = BytesMut::from(data);
    while let Ok(Some(frame)) = cut_frame(&mut buf, BODY_BYTES_MAX) {
        if let Ok(Backend::ErrorResponse(fields) | Backend::NoticeResponse(fields)) =
            Backend::decode(frame.tag(), frame.body())
        {
            let _ = (fields.code(), fields.message(), fields.is_fatal(), fields.iter().count());
        }
    }
}

/// The data as each of the four messages of an exchange.
pub fn fuzz_scram(data: &[u8]) {
    let bindings = [ChannelBinding::None, ChannelBinding::TlsServerEndPoint(vec![7; 32])];
    for binding in &bindings {
        for mechanism in mechanisms(binding) {
            let _ = ServerExchange::start(mechanism, data, binding, b"salt", 1, "nonce");
        }
    }
    let started = ServerExchange::start(mechanisms(&bindings[0])[0], b"n,,n=,r=x", &bindings[0], b"salt", 1, "nonce");
    if let Ok((exchange, _)) = started {
        assert!(exchange.finish(data, &[]).is_err(), "a login without a verifier");
    }
    let keys = Credential::Keys { client_key: [1; 32], server_key: [2; 32] };
    let started = ClientExchange::start(keys, mechanisms(&bindings[0]), &bindings[0], "x");
    if let Ok((exchange, _, _)) = started
        && let Ok((awaiting, _)) = exchange.on_server_first(data)
    {
        assert!(awaiting.on_server_final(data).is_err(), "one text is both messages of the server");
    }
}
