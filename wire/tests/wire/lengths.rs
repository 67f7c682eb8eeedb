//! Lengths that are too small, too large, or impossible: refused as soon as they are seen, at no cost.

use bytes::{BufMut, BytesMut};
use portcullis_wire::{Header, WireError, cut_frame, cut_frontend_frame, cut_startup};

const MAX: usize = 64 << 20;

#[test]
fn a_frame_length_is_checked_before_its_body_arrives() {
    #[derive(Debug, PartialEq)]
    enum Is {
        Waiting,
        Invalid,
        TooLong,
        Unknown,
    }
    for (tag, length, is) in [
        (b'Q', 4, Is::Waiting), // whole, but decode refuses it
        (b'Q', 5, Is::Waiting),
        (b'Q', MAX as i32 + 4, Is::Waiting),
        (b'Q', MAX as i32 + 5, Is::TooLong),
        (b'Q', i32::MAX, Is::TooLong),
        (b'Q', 3, Is::Invalid),
        (b'Q', 0, Is::Invalid),
        (b'Q', -1, Is::Invalid),
        (b'Q', i32::MIN, Is::Invalid),
        (b'S', 4, Is::Waiting),
        (b'S', 5, Is::Invalid),
        (b'H', 5, Is::Invalid),
        (b'X', 8, Is::Invalid),
        (b'c', 5, Is::Invalid),
        (b'p', 8196, Is::Waiting),
        (b'p', 8197, Is::Invalid),
        (b'D', 10_004, Is::Waiting),
        (b'D', 10_005, Is::Invalid),
        (b'C', 10_005, Is::Invalid),
        (b'E', 10_005, Is::Invalid),
        (b'f', 10_005, Is::Invalid),
        (b'd', 1 << 20, Is::Waiting),
        (0, 4, Is::Unknown),
        (b'Z', 5, Is::Unknown),
        (0x16, 5, Is::Unknown), // a TLS handshake
        (b'G', 5, Is::Unknown), // "GET / HTTP/1.1"
        (0xff, 5, Is::Unknown),
    ] {
        let mut buf = BytesMut::with_capacity(16);
        buf.put_u8(tag);
        buf.put_i32(length);
        let capacity = buf.capacity();
        let found = match cut_frontend_frame(&mut buf, MAX) {
            Ok(_) => Is::Waiting,
            Err(WireError::InvalidLength { length: told, .. }) => {
                assert_eq!(told, length);
                Is::Invalid
            }
            Err(WireError::FrameTooLong { .. }) => Is::TooLong,
            Err(WireError::UnknownMessage { .. }) => Is::Unknown,
            Err(other) => panic!("{other}"),
        };
        assert_eq!(found, is, "{} of {length}", tag.escape_ascii());
        assert!(buf.capacity() <= capacity, "an announced length allocates nothing");
    }
}

#[test]
fn an_unknown_type_is_refused_at_its_first_byte() {
    for tag in 0..=255_u8 {
        let known = b"QPBDECSHXdcfFp".contains(&tag);
        assert_eq!(Header::peek_frontend(&[tag], MAX).is_ok(), known, "{tag}");
    }
}

#[test]
fn a_server_frame_has_only_the_receivers_bound() {
    assert_eq!(Header::peek(b"S\0\0\0\x09", 5), Ok(Some(Header { tag: b'S', body_len: 5 })));
    assert_eq!(Header::peek(b"S\0\0\0\x09", 5).unwrap().unwrap().frame_len(), 10);
    let too_long = WireError::FrameTooLong { tag: b'S', body_len: 6, body_len_max: 5 };
    assert_eq!(cut_frame(&mut BytesMut::from(&b"S\0\0\0\x0a"[..]), 5), Err(too_long));
}

#[test]
fn a_startup_length_is_checked_before_its_body_arrives() {
    for (length, good) in [
        (i32::MIN, false),
        (-1, false),
        (0, false),
        (3, false),
        (4, false),
        (7, false),
        (8, true),
        (10_000, true),
        (10_001, false),
        (i32::MAX, false),
        (0x1603_0100, false), // a TLS ClientHello
        (0x4745_5420, false), // "GET "
    ] {
        let mut buf = BytesMut::with_capacity(16);
        buf.put_i32(length);
        let capacity = buf.capacity();
        let found = cut_startup(&mut buf);
        assert_eq!(found == Ok(None), good, "{length}: {found:?}");
        assert_eq!(found == Err(WireError::StartupLength { length }), !good, "{length}");
        assert_eq!(buf.capacity(), capacity, "an announced length allocates nothing");
    }
}

#[test]
fn a_request_has_exactly_its_length() {
    const CANCEL: i32 = (1234 << 16) | 5678;
    const SSL: i32 = (1234 << 16) | 5679;
    const GSS: i32 = (1234 << 16) | 5680;
    for (code, length, good) in [
        (SSL, 8, true),
        (SSL, 9, false),
        (GSS, 8, true),
        (GSS, 12, false),
        (CANCEL, 8, false),
        (CANCEL, 12, false),
        (CANCEL, 15, false),
        (CANCEL, 16, true),
        (CANCEL, 268, true),
        (CANCEL, 269, false),
        (CANCEL, 10_000, false),
    ] {
        let mut buf = BytesMut::new();
        buf.put_i32(length);
        buf.put_i32(code);
        let found = cut_startup(&mut buf);
        assert_eq!(found.is_ok(), good, "{code:x} of {length} bytes, without its body: {found:?}");
    }
}
