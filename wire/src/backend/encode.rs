//! Writing what a server sends: the gate is the server of its clients.
//!
//! Every function appends one message. A NUL in a text is left out, so that no field can begin inside another one.
//! Errors are in [`ErrorMessage`](super::ErrorMessage).

use bytes::{BufMut, BytesMut};

use super::TransactionStatus;
use crate::WireError;
use crate::startup::{CancelKey, PROTOCOL_MAJOR, version};
use crate::write::{bounded, checked, stripped};

/// The type OID of `text`.
const TEXT_OID: i32 = 25;

/// AuthenticationOk.
pub fn authentication_ok(buf: &mut BytesMut) {
    authentication(buf, 0, &[]);
}

/// AuthenticationCleartextPassword.
pub fn authentication_cleartext_password(buf: &mut BytesMut) {
    authentication(buf, 3, &[]);
}

/// AuthenticationSASL with the mechanisms offered, the preferred one first.
pub fn authentication_sasl(buf: &mut BytesMut, mechanisms: &[&str]) {
    bounded(buf, b'R', |buf| {
        buf.put_i32(10);
        for mechanism in mechanisms {
            stripped(buf, mechanism);
        }
        buf.put_u8(0);
    });
}

/// AuthenticationSASLContinue.
pub fn authentication_sasl_continue(buf: &mut BytesMut, data: &[u8]) {
    authentication(buf, 11, data);
}

/// AuthenticationSASLFinal.
pub fn authentication_sasl_final(buf: &mut BytesMut, data: &[u8]) {
    authentication(buf, 12, data);
}

fn authentication(buf: &mut BytesMut, kind: i32, data: &[u8]) {
    bounded(buf, b'R', |buf| {
        buf.put_i32(kind);
        buf.put_slice(data);
    });
}

/// ParameterStatus.
pub fn parameter_status(buf: &mut BytesMut, name: &str, value: &str) {
    bounded(buf, b'S', |buf| {
        stripped(buf, name);
        stripped(buf, value);
    });
}

/// BackendKeyData.
pub fn backend_key_data(buf: &mut BytesMut, key: &CancelKey) {
    bounded(buf, b'K', |buf| {
        buf.put_i32(key.process_id);
        buf.put_slice(key.secret());
    });
}

/// ReadyForQuery.
pub fn ready_for_query(buf: &mut BytesMut, status: TransactionStatus) {
    bounded(buf, b'Z', |buf| buf.put_u8(status.tag()));
}

/// NegotiateProtocolVersion: the newest minor version spoken, and every `_pq_.` option that is not.
pub fn negotiate_protocol_version(buf: &mut BytesMut, minor: u16, options: &[String]) {
    bounded(buf, b'v', |buf| {
        // The docs speak of the minor version, but libpq expects the whole one, as servers send it.
        buf.put_i32(version(PROTOCOL_MAJOR, minor));
        // A StartupMessage holds at most PARAMETERS_MAX of them.
        buf.put_i32(i32::try_from(options.len()).unwrap_or(i32::MAX));
        for option in options {
            stripped(buf, option);
        }
    });
}

/// ParseComplete.
pub fn parse_complete(buf: &mut BytesMut) {
    bounded(buf, b'1', |_| ());
}

/// BindComplete.
pub fn bind_complete(buf: &mut BytesMut) {
    bounded(buf, b'2', |_| ());
}

/// CloseComplete.
pub fn close_complete(buf: &mut BytesMut) {
    bounded(buf, b'3', |_| ());
}

/// CommandComplete with a tag such as `SET` or `SELECT 1`.
pub fn command_complete(buf: &mut BytesMut, tag: &str) {
    bounded(buf, b'C', |buf| stripped(buf, tag));
}

/// EmptyQueryResponse.
pub fn empty_query_response(buf: &mut BytesMut) {
    bounded(buf, b'I', |_| ());
}

/// NoData.
pub fn no_data(buf: &mut BytesMut) {
    bounded(buf, b'n', |_| ());
}

/// ParameterDescription of a statement that has no parameters.
pub fn parameter_description_none(buf: &mut BytesMut) {
    bounded(buf, b't', |buf| buf.put_i16(0));
}

/// RowDescription with columns of type `text` in text format, for answers that are made here.
///
/// # Errors
/// More columns than an Int16 counts.
pub fn row_description_text(buf: &mut BytesMut, columns: &[&str]) -> Result<(), WireError> {
    checked(buf, Some(b'T'), "RowDescription", |buf| {
        put_count(buf, "RowDescription", columns.len())?;
        for column in columns {
            stripped(buf, column);
            buf.put_i32(0); // no table
            buf.put_i16(0); // no column of it
            buf.put_i32(TEXT_OID);
            buf.put_i16(-1); // variable size
            buf.put_i32(-1); // no type modifier
            buf.put_i16(0); // text format
        }
        Ok(())
    })
}

/// DataRow in text format; `None` is NULL.
///
/// # Errors
/// More columns than an Int16 counts, or more bytes than a frame holds.
pub fn data_row_text(buf: &mut BytesMut, values: &[Option<&str>]) -> Result<(), WireError> {
    const MESSAGE: &str = "DataRow";
    checked(buf, Some(b'D'), MESSAGE, |buf| {
        put_count(buf, MESSAGE, values.len())?;
        for value in values {
            let Some(value) = value else {
                buf.put_i32(-1);
                continue;
            };
            buf.put_i32(i32::try_from(value.len()).map_err(|_| WireError::MessageTooLong { message: MESSAGE })?);
            buf.put_slice(value.as_bytes());
        }
        Ok(())
    })
}

fn put_count(buf: &mut BytesMut, message: &'static str, count: usize) -> Result<(), WireError> {
    buf.put_i16(i16::try_from(count).map_err(|_| WireError::MessageTooLong { message })?);
    Ok(())
}
