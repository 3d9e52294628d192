//! The end of a tunnel that speaks TLS: one receive or send for each read or put, as without it, and records
//! between.
//!
//! The buffers for records belong to the thread. Whatever has to be said besides the tunnel's bytes goes the same
//! way as they do, behind what waits, and there is never more than one of each: so it stays bounded, too.

use std::cell::RefCell;

use super::{Endpoint, ReadOutcome};
use crate::relay::tls::{ReceiveState, TlsConnection};

/// Bytes of records that one receive may give, with those of a record that has begun.
const RECEIVE_ROOM: usize = 64 * 1024;
/// The least room for a receive, however much came with the connection.
const MIN_RECEIVE_ROOM: usize = 16 * 1024;

thread_local! {
    static BUFFERS: RefCell<RecordBuffers> = const { RefCell::new(RecordBuffers { received: Vec::new(), outgoing: Vec::new() }) };
}

/// What a thread has for the records of all its ends.
struct RecordBuffers {
    /// Received.
    received: Vec<u8>,
    /// To be sent.
    outgoing: Vec<u8>,
}

impl Endpoint {
    /// As [`End::read`], plaintext into `plain`.
    pub(super) fn read_tls(&mut self, plain: &mut [u8]) -> ReadOutcome {
        BUFFERS.with_borrow_mut(|room| {
            loop {
                let Some(tls) = &self.tls else { return ReadOutcome::Failed };
                let (begun, behind) = (tls.partial_record().len(), tls.has_unopened());
                let fresh = match tls.receive_state() {
                    ReceiveState::Open if behind => 0,
                    ReceiveState::Open => match self.receive(room.room_after(begun)) {
                        ReadOutcome::Bytes(len) => len,
                        ReadOutcome::Eof => return self.end_of_stream(),
                        other => return other,
                    },
                    ReceiveState::CloseNotify | ReceiveState::Truncated => return self.end_of_stream(),
                    ReceiveState::Failed(_) => return self.discard_received(room),
                };
                let len = self.decrypt(room, fresh, plain);
                if len > 0 {
                    return ReadOutcome::Bytes(len);
                }
                if !self.readable {
                    return ReadOutcome::WouldBlock;
                }
            }
        })
    }

    /// Opens what stands in the room; gives the bytes of plaintext.
    #[inline]
    fn decrypt(&mut self, room: &mut RecordBuffers, fresh: usize, plain: &mut [u8]) -> usize {
        let Some(tls) = &mut self.tls else { return 0 };
        let begun = tls.partial_record().len();
        room.room_after(begun);
        room.received[..begun].copy_from_slice(tls.partial_record());
        room.outgoing.clear();
        let len = tls.open(&room.received[..begun + fresh], plain, &mut room.outgoing);
        // No event comes for what has been received already.
        self.readable |= tls.has_unopened() || tls.receive_state() != ReceiveState::Open;
        if self.unsent.is_none() {
            tls.send_owed_key_update(&mut room.outgoing);
        }
        self.write_records(&room.outgoing);
        len
    }

    /// The stream has ended, with close_notify or without.
    fn end_of_stream(&mut self) -> ReadOutcome {
        if let Some(tls) = &mut self.tls {
            tls.end_of_stream();
        }
        self.ended = true;
        ReadOutcome::Eof
    }

    /// What comes from a peer that broke TLS is read only so that no reset overtakes the alert.
    fn discard_received(&mut self, room: &mut RecordBuffers) -> ReadOutcome {
        match self.receive(room.room_after(0)) {
            ReadOutcome::Bytes(len) => ReadOutcome::Discarded(len),
            ReadOutcome::WouldBlock => ReadOutcome::Discarded(0),
            over => over,
        }
    }

    /// As [`End::put`], in records.
    pub(super) fn write_tls(&mut self, plain: &[u8]) {
        self.send_records(|tls, out| tls.seal(plain, out));
        let Some(tls) = &self.tls else { return };
        self.worn = tls.is_near_key_limit();
        if tls.is_at_key_limit() {
            self.finish();
        }
    }

    /// Does what had to wait until the socket took everything.
    pub(super) fn resume_shutdown(&mut self) {
        self.send_records(TlsConnection::send_owed_key_update);
        if self.finishing {
            self.finish();
        }
    }

    /// Says goodbye, if this is TLS and nothing was the last word yet. True when nothing waits to be sent.
    pub fn send_close_notify(&mut self) -> bool {
        self.finishing = true;
        if self.tls.is_some() {
            self.send_records(TlsConnection::close);
        }
        self.unsent.is_none()
    }

    /// Says nothing more, not even goodbye: a stream that was cut short must not end like one that was not.
    pub fn suppress_close_notify(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.suppress_close_notify();
        }
    }

    /// TLS: the peer's stream ended without its goodbye, or broke.
    pub fn was_truncated(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| {
            matches!(tls.receive_state(), ReceiveState::Truncated | ReceiveState::Failed(_))
        })
    }

    /// TLS 1.2: the peer's goodbye ends both directions.
    pub fn must_answer_close_notify(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.must_answer_close_notify())
    }

    /// Sends what `word` appends, behind what waits.
    #[inline]
    fn send_records(&mut self, word: impl FnOnce(&mut TlsConnection, &mut Vec<u8>)) {
        BUFFERS.with_borrow_mut(|room| {
            room.outgoing.clear();
            if let Some(tls) = &mut self.tls {
                word(tls, &mut room.outgoing);
            }
            self.write_records(&room.outgoing);
        });
    }

    #[inline]
    fn write_records(&mut self, records: &[u8]) {
        if !records.is_empty() {
            self.write_raw(records);
        }
    }
}

impl RecordBuffers {
    /// Room for a receive, behind `begun` bytes that are there already.
    fn room_after(&mut self, begun: usize) -> &mut [u8] {
        self.received.resize(RECEIVE_ROOM.max(begun + MIN_RECEIVE_ROOM), 0);
        &mut self.received[begun..]
    }
}
