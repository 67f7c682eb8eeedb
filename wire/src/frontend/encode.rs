//! Writing what a client sends: the gate is the client of the servers behind it.
//!
//! Every function appends one message. A text with a NUL in it is an error and leaves the buffer as it was: to strip it
//! would forward another text than the one that was judged.

use bytes::{BufMut, BytesMut};

use super::Target;
use crate::startup::{CANCEL_REQUEST_CODE, GSSENC_REQUEST_CODE, PROTOCOL_MAJOR, SSL_REQUEST_CODE, version};
use crate::write::{bounded, checked, string};
use crate::{CancelKey, WireError};

/// StartupMessage for protocol 3.`minor`.
///
/// # Errors
/// A NUL in a name or value, or an empty name, behind which the rest would not be read.
pub fn startup(buf: &mut BytesMut, minor: u16, parameters: &[(&str, &str)]) -> Result<(), WireError> {
    const MESSAGE: &str = "StartupMessage";
    checked(buf, None, MESSAGE, |buf| {
        buf.put_i32(version(PROTOCOL_MAJOR, minor));
        for (name, value) in parameters {
            if name.is_empty() {
                return Err(WireError::Malformed { message: MESSAGE, reason: "empty parameter name" });
            }
            string(buf, MESSAGE, name.as_bytes())?;
            string(buf, MESSAGE, value.as_bytes())?;
        }
        buf.put_u8(0);
        Ok(())
    })
}

/// SSLRequest.
pub fn ssl_request(buf: &mut BytesMut) {
    request(buf, SSL_REQUEST_CODE);
}

/// GSSENCRequest.
pub fn gssenc_request(buf: &mut BytesMut) {
    request(buf, GSSENC_REQUEST_CODE);
}

fn request(buf: &mut BytesMut, code: i32) {
    buf.put_i32(8);
    buf.put_i32(code);
}

/// CancelRequest, for a connection of its own.
pub fn cancel_request(buf: &mut BytesMut, key: &CancelKey) {
    // A key has at most 256 bytes, so the length always fits.
    buf.put_i32(12 + i32::try_from(key.secret().len()).unwrap_or_default());
    buf.put_i32(CANCEL_REQUEST_CODE);
    buf.put_i32(key.process_id);
    buf.put_slice(key.secret());
}

/// PasswordMessage.
///
/// # Errors
/// A NUL in the password.
pub fn password(buf: &mut BytesMut, password: &[u8]) -> Result<(), WireError> {
    checked(buf, Some(b'p'), "PasswordMessage", |buf| string(buf, "PasswordMessage", password))
}

/// SASLInitialResponse.
///
/// # Errors
/// A NUL in the mechanism, or too much data.
pub fn sasl_initial_response(buf: &mut BytesMut, mechanism: &str, data: &[u8]) -> Result<(), WireError> {
    const MESSAGE: &str = "SASLInitialResponse";
    checked(buf, Some(b'p'), MESSAGE, |buf| {
        string(buf, MESSAGE, mechanism.as_bytes())?;
        buf.put_i32(i32::try_from(data.len()).map_err(|_| WireError::MessageTooLong { message: MESSAGE })?);
        buf.put_slice(data);
        Ok(())
    })
}

/// SASLResponse.
pub fn sasl_response(buf: &mut BytesMut, data: &[u8]) {
    bounded(buf, b'p', |buf| buf.put_slice(data));
}

/// Query.
///
/// # Errors
/// A NUL in the text.
pub fn query(buf: &mut BytesMut, sql: &str) -> Result<(), WireError> {
    checked(buf, Some(b'Q'), "Query", |buf| string(buf, "Query", sql.as_bytes()))
}

/// Parse. `param_types` is the section as [`Frontend::Parse`](super::Frontend::Parse) gave it; empty means "none".
///
/// # Errors
/// A NUL in the name or text.
pub fn parse(buf: &mut BytesMut, name: &str, sql: &str, param_types: &[u8]) -> Result<(), WireError> {
    checked(buf, Some(b'P'), "Parse", |buf| {
        string(buf, "Parse", name.as_bytes())?;
        string(buf, "Parse", sql.as_bytes())?;
        if param_types.is_empty() {
            buf.put_u16(0);
        }
        buf.put_slice(param_types);
        Ok(())
    })
}

/// Bind. `rest` is the section as [`Frontend::Bind`](super::Frontend::Bind) gave it; empty means no parameters and
/// text for all columns.
///
/// # Errors
/// A NUL in a name.
pub fn bind(buf: &mut BytesMut, portal: &str, statement: &str, rest: &[u8]) -> Result<(), WireError> {
    checked(buf, Some(b'B'), "Bind", |buf| {
        string(buf, "Bind", portal.as_bytes())?;
        string(buf, "Bind", statement.as_bytes())?;
        if rest.is_empty() {
            buf.put_slice(&[0; 6]);
        }
        buf.put_slice(rest);
        Ok(())
    })
}

/// Describe.
///
/// # Errors
/// A NUL in the name.
pub fn describe(buf: &mut BytesMut, target: Target, name: &str) -> Result<(), WireError> {
    checked(buf, Some(b'D'), "Describe", |buf| {
        buf.put_u8(target.tag());
        string(buf, "Describe", name.as_bytes())
    })
}

/// Execute; `max_rows` 0 means all rows.
///
/// # Errors
/// A NUL in the name.
pub fn execute(buf: &mut BytesMut, portal: &str, max_rows: i32) -> Result<(), WireError> {
    checked(buf, Some(b'E'), "Execute", |buf| {
        string(buf, "Execute", portal.as_bytes())?;
        buf.put_i32(max_rows);
        Ok(())
    })
}

/// Close.
///
/// # Errors
/// A NUL in the name.
pub fn close(buf: &mut BytesMut, target: Target, name: &str) -> Result<(), WireError> {
    checked(buf, Some(b'C'), "Close", |buf| {
        buf.put_u8(target.tag());
        string(buf, "Close", name.as_bytes())
    })
}

/// Sync.
pub fn sync(buf: &mut BytesMut) {
    bounded(buf, b'S', |_| ());
}

/// Flush.
pub fn flush(buf: &mut BytesMut) {
    bounded(buf, b'H', |_| ());
}

/// Terminate.
pub fn terminate(buf: &mut BytesMut) {
    bounded(buf, b'X', |_| ());
}

/// CopyData.
///
/// # Errors
/// More data than a frame can hold.
pub fn copy_data(buf: &mut BytesMut, data: &[u8]) -> Result<(), WireError> {
    checked(buf, Some(b'd'), "CopyData", |buf| {
        buf.put_slice(data);
        Ok(())
    })
}

/// CopyDone.
pub fn copy_done(buf: &mut BytesMut) {
    bounded(buf, b'c', |_| ());
}

/// CopyFail with a reason that the server repeats in its error.
///
/// # Errors
/// A NUL in the reason.
pub fn copy_fail(buf: &mut BytesMut, reason: &str) -> Result<(), WireError> {
    checked(buf, Some(b'f'), "CopyFail", |buf| string(buf, "CopyFail", reason.as_bytes()))
}
