//! The server's side of the relay: its frames go to the exchange, or past it.

use std::borrow::Cow;
use std::task::{Context, Poll};

use bytes::{Buf, BufMut, BytesMut};
use portcullis_wire::backend::shortened_fields;
use portcullis_wire::{Header, TransactionStatus};
use tokio::io::ReadBuf;

use super::{BACKLOG_BYTES, Relay, Turn};
use crate::pool::Lease;
use crate::scratch;
use crate::session::end::SessionEnd;
use crate::session::exchange::{Handled, Row};
use crate::sessions::Doing;

/// The largest message of a server that is held as a whole. Of these kinds only errors and notices can be longer.
const HELD_BYTES_MAX: usize = 1024 * 1024;
/// What is held, and passed on, of a longer error or notice (an error may repeat the value that it complains of).
const SHORTENED_BYTES: usize = 64 * 1024;
/// Any message of a server, as far as the protocol's length field goes.
const SERVER_FRAME_BYTES_MAX: usize = i32::MAX as usize;

/// A message, and how many of the server's bytes it took.
type Whole<'b> = (Cow<'b, [u8]>, usize);

impl Relay {
    pub(super) fn read_server(&mut self, cx: &mut Context<'_>) -> Turn {
        if self.client.outgoing.len() >= BACKLOG_BYTES {
            return Ok(false);
        }
        if self.lease.is_none() || self.server_blocked {
            return Ok(false);
        }
        scratch::read(0, |buffer| {
            let mut read = ReadBuf::new(buffer);
            let Some(lease) = &mut self.lease else { return Ok(false) };
            match lease.poll_read(cx, &mut read) {
                Poll::Pending => {
                    self.server_blocked = true;
                    self.stop_what_is_cut();
                    Ok(false)
                }
                Poll::Ready(Ok(())) if !read.filled().is_empty() => self.serve_server(read.filled()).map(|()| true),
                Poll::Ready(_) if self.server_is_leaving => Err(SessionEnd::UpstreamFatal),
                Poll::Ready(Ok(())) => Err(SessionEnd::UpstreamGone),
                Poll::Ready(Err(error)) => Err(SessionEnd::Upstream(error.into())),
            }
        })
    }

    /// A result is cut and the server has more of it: it is told to stop.
    fn stop_what_is_cut(&mut self) {
        if self.exchange.is_cutting() && self.cancelled_at.is_none() {
            self.stop_the_statement();
        }
    }

    /// Deals with what the server has sent; what is left over, less than a frame, waits for its rest.
    fn serve_server(&mut self, bytes: &[u8]) -> Result<(), SessionEnd> {
        let Some(mut lease) = self.lease.take() else { return Ok(()) };
        let mut earlier = std::mem::take(&mut lease.incoming);
        let result = if earlier.is_empty() {
            let used = self.server_frames(&mut lease, bytes);
            used.map(|used| earlier.extend_from_slice(&bytes[used..]))
        } else {
            earlier.extend_from_slice(bytes);
            let used = self.server_frames(&mut lease, &earlier);
            used.map(|used| earlier.advance(used))
        };
        lease.incoming = if earlier.is_empty() { BytesMut::new() } else { earlier };
        lease.tainted |= self.exchange.take_taint();
        if self.exchange.take_schema_change() {
            self.gate.pools.schema_changed(&self.route.destination);
        }
        self.lease = Some(lease);
        result
    }

    /// Deals with the frames that are there, and tells how many bytes these were. Rows that pass go on as one piece.
    fn server_frames(&mut self, lease: &mut Lease, bytes: &[u8]) -> Result<usize, SessionEnd> {
        let mut at = 0;
        loop {
            at = self.pass_rows(bytes, at)?;
            let rest = &bytes[at..];
            let Some(header) = self.server_header(rest)? else { return Ok(at) };
            let Some((frame, used)) = self.held(header, rest)? else { return Ok(at) };
            at += used;
            let out = &mut self.client.outgoing;
            match self.exchange.server_message(header.tag, &frame[Header::LEN..], lease.state_mut(), out)? {
                Handled::Forward => out.extend_from_slice(&frame),
                Handled::Swallowed => {}
                Handled::Fatal => {
                    out.extend_from_slice(&frame);
                    self.server_is_leaving = true;
                }
            }
            if header.tag == b'Z' {
                self.statement_ended(lease.status);
            } else if self.exchange.working_since().is_none() {
                // Stopped, and the client has not sent its Sync yet.
                self.cancelled_at = None;
            }
        }
    }

    /// The next message as a whole, once it is there, and how many bytes it took; the beginning of an error or notice that
    /// is too long to be held.
    fn held<'b>(&mut self, header: Header, bytes: &'b [u8]) -> Result<Option<Whole<'b>>, SessionEnd> {
        if header.body_len <= HELD_BYTES_MAX {
            return Ok(bytes.get(..header.frame_len()).map(|frame| (Cow::Borrowed(frame), frame.len())));
        }
        if !matches!(header.tag, b'E' | b'N') {
            return Err(SessionEnd::UpstreamMessage(header.tag));
        }
        let Some(head) = bytes.get(..SHORTENED_BYTES) else { return Ok(None) };
        self.server_drop = header.frame_len() - SHORTENED_BYTES;
        let body = shortened_fields(&head[Header::LEN..], header.body_len);
        let mut frame = Vec::with_capacity(Header::LEN + body.len());
        frame.put_u8(header.tag);
        frame.put_u32(u32::try_from(body.len() + 4).unwrap_or(u32::MAX));
        frame.put_slice(&body);
        Ok(Some((Cow::Owned(frame), SHORTENED_BYTES)))
    }

    fn server_header(&self, bytes: &[u8]) -> Result<Option<Header>, SessionEnd> {
        let broken = |_| SessionEnd::UpstreamMessage(bytes.first().copied().unwrap_or(0));
        Header::peek(bytes, SERVER_FRAME_BYTES_MAX).map_err(broken)
    }

    /// From `at` on, forwards rows or drops them, the last one perhaps not whole; tells where something else begins.
    fn pass_rows(&mut self, bytes: &[u8], at: usize) -> Result<usize, SessionEnd> {
        let (mut from, mut at) = (at, at);
        loop {
            let rest = bytes.len() - at;
            if self.server_drop > 0 {
                self.client.outgoing.extend_from_slice(&bytes[from..at]);
                let count = self.server_drop.min(rest);
                self.server_drop -= count;
                at += count;
                from = at;
            } else {
                let count = self.server_piece.min(rest);
                self.server_piece -= count;
                at += count;
            }
            let header = if at < bytes.len() { self.server_header(&bytes[at..])? } else { None };
            let Some(header) = header.filter(|header| self.exchange.passes_in_pieces(header.tag)) else { break };
            let length = header.frame_len();
            match self.exchange.row(length, &self.route.result_limits) {
                Row::Passes => self.server_piece = length,
                Row::Dropped => self.server_drop = length,
                Row::TooMany(limit) => {
                    self.gate.metrics.limit_hit(limit);
                    self.server_drop = length;
                }
            }
        }
        self.client.outgoing.extend_from_slice(&bytes[from..at]);
        Ok(at)
    }

    fn statement_ended(&mut self, status: TransactionStatus) {
        self.last_activity = self.now;
        self.cancelled_at = None;
        self.transaction_since = match status {
            TransactionStatus::Idle => None,
            _ => self.transaction_since.or(Some(self.last_activity)),
        };
        if self.exchange.working_since().is_some() {
            return;
        }
        if let Some(since) = self.work_since.take() {
            self.gate.metrics.query_seconds(self.now.saturating_duration_since(since));
        }
        let doing = if status == TransactionStatus::Idle { Doing::Idle } else { Doing::IdleInTransaction };
        self.registration.handle().set_doing(doing, self.now);
        self.note_pin();
    }

    pub(super) fn write_server(&mut self, cx: &mut Context<'_>) -> Turn {
        let Some(lease) = &mut self.lease else { return Ok(false) };
        match lease.poll_flush(cx) {
            Poll::Pending => Ok(false),
            Poll::Ready(Ok(moved)) => Ok(moved),
            // What the server said last is still to be read, and tells more than a broken pipe.
            Poll::Ready(Err(_)) if self.server_is_leaving => Err(SessionEnd::UpstreamFatal),
            Poll::Ready(Err(error)) => Err(SessionEnd::Upstream(error.into())),
        }
    }
}
