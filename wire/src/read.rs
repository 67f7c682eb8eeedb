//! Reading the body of one message from front to back, with every length checked before it is used.
//!
//! A [`Body`] borrows and never allocates. It knows the name of its message only to be able to say what was wrong.

use std::ffi::CStr;

use crate::WireError;

/// The unread rest of a message's body.
#[derive(Clone)]
pub(crate) struct Body<'a> {
    rest: &'a [u8],
    message: &'static str,
}

impl<'a> Body<'a> {
    /// `message` is the name in PostgreSQL's docs.
    pub(crate) fn new(message: &'static str, body: &'a [u8]) -> Self {
        Body { rest: body, message }
    }

    /// What has not been read yet.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The error for this message.
    pub(crate) fn malformed(&self, reason: &'static str) -> WireError {
        WireError::Malformed { message: self.message, reason }
    }

    /// Exactly `len` bytes.
    pub(crate) fn bytes(&mut self, len: usize) -> Result<&'a [u8], WireError> {
        let Some((head, tail)) = self.rest.split_at_checked(len) else {
            return Err(self.malformed("insufficient data left in message"));
        };
        self.rest = tail;
        Ok(head)
    }

    /// Exactly `N` bytes.
    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let Some((head, tail)) = self.rest.split_first_chunk::<N>() else {
            return Err(self.malformed("insufficient data left in message"));
        };
        self.rest = tail;
        Ok(*head)
    }

    /// One byte.
    pub(crate) fn u8(&mut self) -> Result<u8, WireError> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// A count. The docs say Int16, but PostgreSQL and its clients count to 65,535.
    pub(crate) fn u16(&mut self) -> Result<u16, WireError> {
        self.array().map(u16::from_be_bytes)
    }

    /// An Int32.
    pub(crate) fn i32(&mut self) -> Result<i32, WireError> {
        self.array().map(i32::from_be_bytes)
    }

    /// A string's bytes, without the NUL that ends it.
    pub(crate) fn string(&mut self) -> Result<&'a [u8], WireError> {
        let text = CStr::from_bytes_until_nul(self.rest).map_err(|_| self.malformed("string without terminator"))?;
        let text = text.to_bytes();
        self.rest = &self.rest[text.len() + 1..];
        Ok(text)
    }

    /// A string that must be UTF-8.
    pub(crate) fn text(&mut self) -> Result<&'a str, WireError> {
        let text = self.string()?;
        std::str::from_utf8(text).map_err(|_| WireError::NotUtf8 { message: self.message })
    }

    /// A string that must be UTF-8 and fit PostgreSQL's names (NAMEDATALEN - 1).
    pub(crate) fn name(&mut self) -> Result<&'a str, WireError> {
        let text = self.string()?;
        if text.len() > crate::frontend::NAME_BYTES_MAX {
            return Err(WireError::NameTooLong { message: self.message, length: text.len() });
        }
        std::str::from_utf8(text).map_err(|_| WireError::NotUtf8 { message: self.message })
    }

    /// A string that fills the rest of the message: its only NUL is the last byte.
    pub(crate) fn last_string(&mut self) -> Result<&'a [u8], WireError> {
        let text = self.string()?;
        self.end()?;
        Ok(text)
    }

    /// Nothing may be left.
    pub(crate) fn end(&self) -> Result<(), WireError> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.malformed("data left in message")) }
    }
}
