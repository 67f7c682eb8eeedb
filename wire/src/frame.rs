//! The typed frames that follow the startup packets: one type byte, an Int32 length that counts itself, a body.
//!
//! A frame is cut from a buffer or left there; nothing here allocates, so an announced length costs nothing until its
//! bytes have arrived. What a body means is not known here; only [`Header::peek_frontend`] looks at the type, to apply
//! the length that the protocol allows it.
//! See <https://www.postgresql.org/docs/current/protocol-overview.html#PROTOCOL-MESSAGE-CONCEPTS>.

use bytes::{Bytes, BytesMut};

use crate::{WireError, frontend};

/// Type and length of the frame at the front of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The type byte.
    pub tag: u8,
    /// Bytes after the length field (the field's value less 4).
    pub body_len: usize,
}

impl Header {
    /// Bytes of type and length field.
    pub const LEN: usize = 5;

    /// The header at the front of `buf`, or `None` while fewer than five bytes are there.
    ///
    /// # Errors
    /// A length below 4 (08P01), or a body above `body_len_max` bytes (54000).
    pub fn peek(buf: &[u8], body_len_max: usize) -> Result<Option<Header>, WireError> {
        let Some(&[tag, a, b, c, d]) = buf.first_chunk::<{ Header::LEN }>() else {
            return Ok(None);
        };
        let length = i32::from_be_bytes([a, b, c, d]);
        let Some(body_len) = length.checked_sub(4).and_then(|len| usize::try_from(len).ok()) else {
            return Err(WireError::InvalidLength { tag, length });
        };
        if body_len > body_len_max {
            return Err(WireError::FrameTooLong { tag, body_len, body_len_max });
        }
        Ok(Some(Header { tag, body_len }))
    }

    /// Like [`Header::peek`] for what a client sends: an unknown type, and a length that its type cannot have, are
    /// refused before the body has arrived.
    ///
    /// # Errors
    /// As above, and an unknown type or a length outside the type's own bounds (08P01).
    pub fn peek_frontend(buf: &[u8], body_len_max: usize) -> Result<Option<Header>, WireError> {
        if let Some(&tag) = buf.first() {
            frontend::known(tag)?;
        }
        let header = Header::peek(buf, body_len_max)?;
        if let Some(header) = header {
            frontend::check_len(header.tag, header.body_len)?;
        }
        Ok(header)
    }

    /// Bytes of the whole frame, header included.
    pub fn frame_len(&self) -> usize {
        Self::LEN + self.body_len
    }
}

/// One whole frame. It shares the memory of the buffer that it was cut from.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    raw: Bytes,
}

impl Frame {
    /// The type byte.
    pub fn tag(&self) -> u8 {
        self.raw[0]
    }

    /// What follows the length field.
    pub fn body(&self) -> &[u8] {
        &self.raw[Header::LEN..]
    }

    /// The frame as it was sent.
    pub fn raw(&self) -> &Bytes {
        &self.raw
    }

    /// The frame as it was sent.
    pub fn into_raw(self) -> Bytes {
        self.raw
    }
}

impl std::fmt::Debug for Frame {
    /// Type and length only: a body may hold a password or a customer's data.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Frame({:?}, {} bytes)", char::from(self.tag()), self.body().len())
    }
}

/// Takes the frame at the front of `buf`; `None` (and `buf` untouched) while it is not whole.
///
/// # Errors
/// As [`Header::peek`]. `buf` is then left as it was; nothing that follows can be understood.
pub fn cut_frame(buf: &mut BytesMut, body_len_max: usize) -> Result<Option<Frame>, WireError> {
    let header = Header::peek(buf, body_len_max)?;
    Ok(cut(buf, header))
}

/// [`cut_frame`] for what a client sends, with the bounds of [`Header::peek_frontend`].
///
/// # Errors
/// As [`Header::peek_frontend`].
pub fn cut_frontend_frame(buf: &mut BytesMut, body_len_max: usize) -> Result<Option<Frame>, WireError> {
    let header = Header::peek_frontend(buf, body_len_max)?;
    Ok(cut(buf, header))
}

fn cut(buf: &mut BytesMut, header: Option<Header>) -> Option<Frame> {
    let frame_len = header?.frame_len();
    if buf.len() < frame_len {
        return None;
    }
    Some(Frame { raw: buf.split_to(frame_len).freeze() })
}
