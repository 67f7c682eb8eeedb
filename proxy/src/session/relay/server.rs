//! The server's side of the relay: its frames go to the exchange, or past it.

use std::task::{Context, Poll};
use std::time::Instant;

use bytes::{Buf, BufMut, BytesMut};
use portcullis_wire::backend::shortened_fields;
use portcullis_wire::{Header, TransactionStatus};

use super::{BACKLOG_BYTES, Relay, Turn};
use crate::pool::Lease;
use crate::session::end::SessionEnd;
use crate::session::exchange::{Handled, Row};
use crate::sessions::Doing;

/// The largest message of a server that is held as a whole. Of these kinds only errors and notices can be longer.
const HELD_BYTES_MAX: usize = 1024 * 1024;
/// What is held, and passed on, of a longer error or notice (an error may repeat the value that it complains of).
const SHORTENED_BYTES: usize = 64 * 1024;
/// Any message of a server, as far as the protocol's length field goes.
const SERVER_FRAME_BYTES_MAX: usize = i32::MAX as usize;

impl Relay {
    pub(super) fn read_server(&mut self, cx: &mut Context<'_>) -> Turn {
        if self.client.outgoing.len() >= BACKLOG_BYTES {
            return Ok(false);
        }
        let Some(lease) = &mut self.lease else { return Ok(false) };
        let moved = match lease.poll_read(cx) {
            Poll::Pending => {
                self.stop_what_is_cut();
                false
            }
            Poll::Ready(Ok(0)) => {
                return Err(if self.server_is_leaving { SessionEnd::UpstreamFatal } else { SessionEnd::UpstreamGone });
            }
            Poll::Ready(Ok(_)) => true,
            Poll::Ready(Err(_)) if self.server_is_leaving => return Err(SessionEnd::UpstreamFatal),
            Poll::Ready(Err(error)) => return Err(SessionEnd::Upstream(error.into())),
        };
        if moved {
            self.serve_server()?;
        }
        Ok(moved)
    }

    /// A result is cut and the server has more of it: it is told to stop.
    fn stop_what_is_cut(&mut self) {
        if self.exchange.is_cutting() && self.cancelled_at.is_none() {
            self.stop_the_statement();
        }
    }

    /// Deals with the frames that the server has sent.
    fn serve_server(&mut self) -> Result<(), SessionEnd> {
        let Some(mut lease) = self.lease.take() else { return Ok(()) };
        let mut incoming = std::mem::take(&mut lease.incoming);
        let result = self.server_frames(&mut lease, &mut incoming);
        lease.incoming = incoming;
        lease.tainted |= self.exchange.take_taint();
        if self.exchange.take_schema_change() {
            self.gate.pools.schema_changed(&self.route.destination);
        }
        self.lease = Some(lease);
        result
    }

    fn server_frames(&mut self, lease: &mut Lease, incoming: &mut BytesMut) -> Result<(), SessionEnd> {
        loop {
            if self.server_piece > 0 {
                let count = self.server_piece.min(incoming.len());
                if count == 0 {
                    return Ok(());
                }
                self.client.outgoing.extend_from_slice(&incoming[..count]);
                incoming.advance(count);
                self.server_piece -= count;
                continue;
            }
            if self.server_drop > 0 {
                let count = self.server_drop.min(incoming.len());
                if count == 0 {
                    return Ok(());
                }
                incoming.advance(count);
                self.server_drop -= count;
                continue;
            }
            let Some(header) = Header::peek(incoming, SERVER_FRAME_BYTES_MAX)
                .map_err(|_| SessionEnd::UpstreamMessage(incoming.first().copied().unwrap_or(0)))?
            else {
                return Ok(());
            };
            if self.exchange.passes_in_pieces(header.tag) {
                let length = header.frame_len();
                match self.exchange.row(length, &self.route.result_limits) {
                    Row::Passes => self.server_piece = length,
                    Row::Dropped => self.server_drop = length,
                    Row::TooMany(limit) => {
                        self.gate.metrics.limit_hit(limit);
                        self.server_drop = length;
                    }
                }
                continue;
            }
            let Some(frame) = self.held(header, incoming)? else { return Ok(()) };
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

    /// The next message as a whole, once it is there; the beginning of an error or notice that is too long to be held.
    fn held(&mut self, header: Header, incoming: &mut BytesMut) -> Result<Option<BytesMut>, SessionEnd> {
        if header.body_len <= HELD_BYTES_MAX {
            return Ok((incoming.len() >= header.frame_len()).then(|| incoming.split_to(header.frame_len())));
        }
        if !matches!(header.tag, b'E' | b'N') {
            return Err(SessionEnd::UpstreamMessage(header.tag));
        }
        if incoming.len() < SHORTENED_BYTES {
            return Ok(None);
        }
        let head = incoming.split_to(SHORTENED_BYTES);
        self.server_drop = header.frame_len() - SHORTENED_BYTES;
        let body = shortened_fields(&head[Header::LEN..], header.body_len);
        let mut frame = BytesMut::with_capacity(Header::LEN + body.len());
        frame.put_u8(header.tag);
        frame.put_u32(u32::try_from(body.len() + 4).unwrap_or(u32::MAX));
        frame.put_slice(&body);
        Ok(Some(frame))
    }

    fn statement_ended(&mut self, status: TransactionStatus) {
        self.last_activity = Instant::now();
        self.cancelled_at = None;
        self.transaction_since = match status {
            TransactionStatus::Idle => None,
            _ => self.transaction_since.or(Some(self.last_activity)),
        };
        if self.exchange.working_since().is_some() {
            return;
        }
        if let Some(since) = self.work_since.take() {
            self.gate.metrics.query_seconds(since.elapsed());
        }
        let doing = if status == TransactionStatus::Idle { Doing::Idle } else { Doing::IdleInTransaction };
        self.registration.handle().set_doing(doing);
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
