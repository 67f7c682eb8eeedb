//! Writing messages: the length field is filled in after the body, and a message that cannot be written leaves the
//! buffer as it was.

use bytes::{BufMut, BytesMut};

use crate::WireError;

/// Appends a message whose body may turn out not to be writable. `tag` is absent in packets before the login.
pub(crate) fn checked(
    buf: &mut BytesMut,
    tag: Option<u8>,
    message: &'static str,
    body: impl FnOnce(&mut BytesMut) -> Result<(), WireError>,
) -> Result<(), WireError> {
    let start = buf.len();
    let written = open(buf, tag, body).and_then(|at| {
        let length = i32::try_from(buf.len() - at).map_err(|_| WireError::MessageTooLong { message })?;
        fill(buf, at, length);
        Ok(())
    });
    if written.is_err() {
        buf.truncate(start);
    }
    written
}

/// Appends a message of few and short fields. Callers hold at most one frame's worth of text, so the length fits; if
/// it ever did not, it would be the largest possible one, which every receiver refuses.
pub(crate) fn bounded(buf: &mut BytesMut, tag: u8, body: impl FnOnce(&mut BytesMut)) {
    buf.put_u8(tag);
    let at = buf.len();
    buf.put_i32(0);
    body(buf);
    let length = i32::try_from(buf.len() - at).unwrap_or(i32::MAX);
    fill(buf, at, length);
}

/// A string and its NUL, or an error when a NUL in it would cut it short.
pub(crate) fn string(buf: &mut BytesMut, message: &'static str, text: &[u8]) -> Result<(), WireError> {
    if text.contains(&0) {
        return Err(WireError::EmbeddedNul { message });
    }
    buf.put_slice(text);
    buf.put_u8(0);
    Ok(())
}

/// A string and its NUL for an answer that is made here: a NUL in it is left out.
pub(crate) fn stripped(buf: &mut BytesMut, text: &str) {
    for part in text.as_bytes().split(|byte| *byte == 0) {
        buf.put_slice(part);
    }
    buf.put_u8(0);
}

fn open(
    buf: &mut BytesMut,
    tag: Option<u8>,
    body: impl FnOnce(&mut BytesMut) -> Result<(), WireError>,
) -> Result<usize, WireError> {
    if let Some(tag) = tag {
        buf.put_u8(tag);
    }
    let at = buf.len();
    buf.put_i32(0);
    body(buf)?;
    Ok(at)
}

fn fill(buf: &mut BytesMut, at: usize, length: i32) {
    buf[at..at + 4].copy_from_slice(&length.to_be_bytes());
}
