//! "cached plan must not change result type": what PostgreSQL says when a table has changed under a prepared statement.
//!
//! The client has mostly no idea that its statement was prepared long ago, by another session maybe, so it must not hear
//! that, unless it has learnt the columns before. Outside a transaction, where nothing but this statement's own messages came before, nothing has happened yet: the
//! statement is prepared anew, and what followed its Parse is sent again. In a transaction the error stands, as it has
//! failed the transaction; it is the only one, since every connection prepares anew afterwards.

use std::collections::VecDeque;

use bytes::BytesMut;
use portcullis_wire::{Frame, Frontend, TransactionStatus};

use super::client::Performed;
use super::{Exchange, Expect, Surroundings};
use crate::upstream::UpstreamState;

/// The most that is kept to be sent again, in messages and in bytes.
const FRAMES_MAX: usize = 16;
const BYTES_MAX: usize = 16 * 1024;

/// What was sent since the last time that the server was ready, and whether it can be sent again.
#[derive(Debug, Default)]
pub(super) struct Repeat {
    frames: VecDeque<Frame>,
    bytes: usize,
    /// More has happened than could be repeated.
    spoilt: bool,
    /// The server has been told where to stop skipping; its ReadyForQuery for that is still to come.
    awaits_ready: bool,
    /// The frames are to be sent again.
    due: bool,
}

impl Repeat {
    pub(super) fn spoil(&mut self) {
        self.spoilt = true;
        self.frames.clear();
    }

    /// Whether the client hears what the columns are by now. A driver that has described its named statement before (asyncpg,
    /// JDBC) takes the rows for what they were then: it needs the error, and prepares anew by itself.
    fn tells_the_columns(&self) -> bool {
        let named = |frame: &Frame| match Frontend::decode(frame.tag(), frame.body()) {
            Ok(Frontend::Bind { statement, .. }) => !statement.is_empty(),
            _ => false,
        };
        self.frames.iter().any(|frame| frame.tag() == b'D') || !self.frames.iter().any(named)
    }
}

impl Exchange {
    /// Whether the client's next message has to wait until the server is ready for what is sent again.
    pub fn awaits_repeat(&self) -> bool {
        self.repeat.awaits_ready
    }

    /// Whether [`super::Message::Repeat`] is to be performed before anything else.
    pub fn must_repeat(&self) -> bool {
        self.repeat.due
    }

    /// Sends again what a changed table has made the server refuse.
    pub(super) fn repeat(
        &mut self,
        mut upstream: Option<&mut UpstreamState>,
        out: &mut BytesMut,
        around: &Surroundings<'_>,
    ) -> Performed {
        let frames = std::mem::take(&mut self.repeat).frames;
        self.repeat.spoilt = true; // once is enough
        for frame in frames {
            match self.other(frame, upstream.as_deref_mut(), out, around) {
                Performed::Done => {}
                other => return other,
            }
        }
        Performed::Done
    }

    /// Notes a message of the extended protocol, other than Parse, that was sent to a server in this status.
    pub(super) fn note_sent(&mut self, frame: Frame, status: TransactionStatus) {
        let repeat = &mut self.repeat;
        let of_next_pipeline = repeat.frames.back().is_some_and(|last| last.tag() == b'S');
        repeat.bytes += frame.raw().len();
        let too_much = repeat.frames.len() >= FRAMES_MAX || repeat.bytes > BYTES_MAX;
        if of_next_pipeline || too_much || status != TransactionStatus::Idle {
            self.spoil_repeat();
        }
        if !self.repeat.spoilt {
            self.repeat.frames.push_back(frame);
        }
    }

    /// What was sent cannot be repeated any more, until the server is ready and owes nothing.
    pub(super) fn spoil_repeat(&mut self) {
        self.repeat.spoil();
    }

    /// A Parse in front of everything else is no matter: the client has its answer, or will get it.
    pub(super) fn spoil_repeat_unless_first(&mut self) {
        if !self.repeat.frames.is_empty() {
            self.spoil_repeat();
        }
    }

    /// After the server's complaint, with what it skips taken back: whether it can be healed. If so, the client hears
    /// nothing of it.
    pub(super) fn heal(&mut self, upstream: &mut UpstreamState) -> bool {
        let no_sync = match (self.pending.front(), self.pending.len()) {
            (None, _) => true,
            (Some(Expect::Sync { in_copy: false }), 1) => false,
            _ => return false,
        };
        if self.repeat.spoilt || self.repeat.frames.is_empty() || upstream.status != TransactionStatus::Idle {
            return false;
        }
        if !self.repeat.tells_the_columns() {
            return false;
        }
        if no_sync {
            // The client has not sent its Sync yet; the server has to be told where to stop skipping.
            upstream.outgoing.sync();
            self.expect(Expect::Sync { in_copy: false });
        }
        self.skip_until_sync = false;
        self.failed = false;
        self.repeat.awaits_ready = true;
        true
    }

    /// The server is ready. `true`: for what is sent again, which is not the client's matter.
    pub(super) fn ready_to_repeat(&mut self) -> bool {
        let due = std::mem::take(&mut self.repeat.awaits_ready);
        self.repeat.due = due;
        if !due {
            let spoilt = !self.pending.is_empty();
            self.repeat.frames.clear();
            (self.repeat.bytes, self.repeat.spoilt) = (0, spoilt);
        }
        due
    }
}
