//! The TLS half of an endpoint: one receive or send for each read or write, as without TLS, and records between.
//!
//! The record buffers belong to the thread. Alerts and KeyUpdates go the same way as the tunnel's bytes, after what
//! waits, and there is never more than one of each kind, so the buffer stays bounded.

use std::cell::RefCell;

use super::{Endpoint, ReadOutcome};
use crate::relay::tls::{ReceiveState, TlsConnection};

/// Bytes of records that one receive may return, including those of a record that has begun.
const RECEIVE_ROOM: usize = 64 * 1024;
/// The least room for a receive, however much came with the connection.
const MIN_RECEIVE_ROOM: usize = 16 * 1024;

thread_local! {
    static BUFFERS: RefCell<RecordBuffers> =
        const { RefCell::new(RecordBuffers { received: Vec::new(), outgoing: Vec::new() }) };
}

/// The record buffers of a thread, shared by all its endpoints.
struct RecordBuffers {
    received: Vec<u8>,
    outgoing: Vec<u8>,
}

impl Endpoint {
    /// [`Endpoint::read`] with TLS: plaintext goes into `plain`.
    pub(super) fn read_tls(&mut self, plain: &mut [u8]) -> ReadOutcome {
        BUFFERS.with_borrow_mut(|buffers| {
            loop {
                let Some(tls) = &self.tls else { return ReadOutcome::Failed };
                let partial_len = tls.partial_record().len();
                let received_len = match tls.receive_state() {
                    ReceiveState::Open if tls.has_unopened() => 0,
                    ReceiveState::Open => match self.receive(buffers.room_after(partial_len)) {
                        ReadOutcome::Bytes(len) => len,
                        ReadOutcome::Eof => return self.end_of_stream(),
                        other => return other,
                    },
                    ReceiveState::CloseNotify | ReceiveState::Truncated => return self.end_of_stream(),
                    ReceiveState::Failed(_) => return self.discard_received(buffers),
                };
                let len = self.decrypt(buffers, received_len, plain);
                if len > 0 {
                    return ReadOutcome::Bytes(len);
                }
                if !self.read.is_readable() {
                    return ReadOutcome::WouldBlock;
                }
            }
        })
    }

    /// Opens the records in the receive buffer. Returns the number of plaintext bytes.
    #[inline]
    fn decrypt(&mut self, buffers: &mut RecordBuffers, received_len: usize, plain: &mut [u8]) -> usize {
        let Some(tls) = &mut self.tls else { return 0 };
        let partial_len = tls.partial_record().len();
        buffers.room_after(partial_len);
        buffers.received[..partial_len].copy_from_slice(tls.partial_record());
        buffers.outgoing.clear();
        let len = tls.open(&buffers.received[..partial_len + received_len], plain, &mut buffers.outgoing);
        // Epoll reports nothing for bytes that have been received already.
        if tls.has_unopened() || tls.receive_state() != ReceiveState::Open {
            self.read.set_readable();
        }
        if self.unsent.is_none() {
            tls.send_owed_key_update(&mut buffers.outgoing);
        }
        self.write_records(&buffers.outgoing);
        len
    }

    /// The stream has ended, with close_notify or without.
    fn end_of_stream(&mut self) -> ReadOutcome {
        if let Some(tls) = &mut self.tls {
            tls.end_of_stream();
        }
        self.read.end();
        ReadOutcome::Eof
    }

    /// Bytes of a peer that broke TLS are read only so that no reset overtakes the alert.
    fn discard_received(&mut self, buffers: &mut RecordBuffers) -> ReadOutcome {
        match self.receive(buffers.room_after(0)) {
            ReadOutcome::Bytes(len) => ReadOutcome::Discarded(len),
            ReadOutcome::WouldBlock => ReadOutcome::Discarded(0),
            ended => ended,
        }
    }

    /// [`Endpoint::write`] with TLS: the bytes go out in records.
    pub(super) fn write_tls(&mut self, plain: &[u8]) {
        self.send_records(|tls, out| tls.seal(plain, out));
        let Some(tls) = &self.tls else { return };
        self.has_used_up_keys = tls.is_near_key_limit();
        if tls.is_at_key_limit() {
            self.finish();
        }
    }

    /// Sends what had to wait until the socket had taken everything.
    pub(super) fn resume_shutdown(&mut self) {
        self.send_records(TlsConnection::send_owed_key_update);
        if self.write.is_finishing() {
            self.finish();
        }
    }

    /// Sends the close_notify of TLS, unless the sending direction is closed already. Returns true when nothing waits to
    /// be sent.
    pub(crate) fn send_close_notify(&mut self) -> bool {
        self.write.begin_finish();
        if self.tls.is_some() {
            self.send_records(TlsConnection::close);
        }
        self.unsent.is_none()
    }

    /// Closes the sending direction without a close_notify: a stream that was truncated must not look complete.
    pub(crate) fn suppress_close_notify(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.suppress_close_notify();
        }
    }

    /// With TLS: the peer's stream has ended without a close_notify, or has failed.
    pub(crate) fn was_truncated(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| {
            matches!(tls.receive_state(), ReceiveState::Truncated | ReceiveState::Failed(_))
        })
    }

    /// With TLS 1.2: the peer's close_notify ends both directions.
    pub(crate) fn must_answer_close_notify(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.must_answer_close_notify())
    }

    /// Sends the records that `append` makes, after what waits.
    #[inline]
    fn send_records(&mut self, append: impl FnOnce(&mut TlsConnection, &mut Vec<u8>)) {
        BUFFERS.with_borrow_mut(|buffers| {
            buffers.outgoing.clear();
            if let Some(tls) = &mut self.tls {
                append(tls, &mut buffers.outgoing);
            }
            self.write_records(&buffers.outgoing);
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
    /// Room for a receive, after the first `len` bytes.
    fn room_after(&mut self, len: usize) -> &mut [u8] {
        self.received.resize(RECEIVE_ROOM.max(len + MIN_RECEIVE_ROOM), 0);
        &mut self.received[len..]
    }
}
