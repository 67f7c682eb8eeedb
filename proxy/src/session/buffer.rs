//! Writing a buffer to a socket without ever waiting on it alone.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};
use tokio::io::AsyncWrite;

/// The most that one write hands to a socket, bytes: one TLS record's worth and no long copies.
const WRITE_BYTES: usize = 16 * 1024;
/// A buffer that has grown beyond this is given back once it is empty, bytes.
const KEEP_BYTES: usize = 64 * 1024;

/// Writes what the socket takes and flushes. `Ready(true)`: something went out; `Ready(false)`: there was nothing to do.
/// `unflushed` remembers, between calls, that written bytes may still be inside the TLS layer.
pub fn poll_drain<W: AsyncWrite + Unpin>(
    io: &mut W,
    buffer: &mut BytesMut,
    unflushed: &mut bool,
    cx: &mut Context<'_>,
) -> Poll<io::Result<bool>> {
    let mut wrote = false;
    while !buffer.is_empty() {
        let piece = &buffer[..buffer.len().min(WRITE_BYTES)];
        match Pin::new(&mut *io).poll_write(cx, piece)? {
            Poll::Ready(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            Poll::Ready(count) => {
                buffer.advance(count);
                *unflushed = true;
                wrote = true;
            }
            Poll::Pending if wrote => return Poll::Ready(Ok(true)),
            Poll::Pending => return Poll::Pending,
        }
    }
    // Its capacity counts from what has been written on; what it would have from its beginning is what it holds.
    if buffer.try_reclaim(KEEP_BYTES + 1) {
        *buffer = BytesMut::new();
    }
    if *unflushed {
        match Pin::new(&mut *io).poll_flush(cx)? {
            Poll::Ready(()) => {
                *unflushed = false;
                wrote = true;
            }
            Poll::Pending if wrote => {}
            Poll::Pending => return Poll::Pending,
        }
    }
    Poll::Ready(Ok(wrote))
}
