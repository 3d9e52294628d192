//! The end of a tunnel that speaks TLS: one receive or send for each read or put, as without it, and records
//! between.
//!
//! The buffers for records belong to the thread. Whatever has to be said besides the tunnel's bytes goes the same
//! way as they do, behind what waits, and there is never more than one of each: so it stays bounded, too.

use std::cell::RefCell;

use super::{End, Read};
use crate::relay::tls::{Heard, Side};

/// Bytes of records that one receive may give, with those of a record that has begun.
const WIRE: usize = 64 * 1024;
/// The least room for a receive, however much came with the connection.
const FRESH: usize = 16 * 1024;

thread_local! {
    static ROOM: RefCell<Room> = const { RefCell::new(Room { wire: Vec::new(), out: Vec::new() }) };
}

/// What a thread has for the records of all its ends.
struct Room {
    /// Received.
    wire: Vec<u8>,
    /// To be sent.
    out: Vec<u8>,
}

impl End {
    /// As [`End::read`], plaintext into `plain`.
    pub(super) fn read_sealed(&mut self, plain: &mut [u8]) -> Read {
        ROOM.with_borrow_mut(|room| {
            loop {
                let Some(side) = &self.tls else { return Read::Broken };
                let (begun, behind) = (side.begun().len(), side.is_behind());
                let fresh = match side.heard() {
                    Heard::Open if behind => 0,
                    Heard::Open => match self.receive(room.behind(begun)) {
                        Read::Bytes(len) => len,
                        Read::End => return self.cut(),
                        other => return other,
                    },
                    Heard::Goodbye | Heard::Cut => return self.cut(),
                    Heard::Fault(_) => return self.drop_bytes(room),
                };
                let len = self.open(room, fresh, plain);
                if len > 0 {
                    return Read::Bytes(len);
                }
                if !self.readable {
                    return Read::Nothing;
                }
            }
        })
    }

    /// Opens what stands in the room; gives the bytes of plaintext.
    #[inline]
    fn open(&mut self, room: &mut Room, fresh: usize, plain: &mut [u8]) -> usize {
        let Some(side) = &mut self.tls else { return 0 };
        let begun = side.begun().len();
        room.behind(begun);
        room.wire[..begun].copy_from_slice(side.begun());
        room.out.clear();
        let len = side.open(&room.wire[..begun + fresh], plain, &mut room.out);
        // No event comes for what has been received already.
        self.readable |= side.is_behind() || side.heard() != Heard::Open;
        if self.pending.is_none() {
            side.settle(&mut room.out);
        }
        self.put_records(&room.out);
        len
    }

    /// The stream has ended, with close_notify or without.
    fn cut(&mut self) -> Read {
        if let Some(side) = &mut self.tls {
            side.end();
        }
        self.ended = true;
        Read::End
    }

    /// What comes from a peer that broke TLS is read only so that no reset overtakes the alert.
    fn drop_bytes(&mut self, room: &mut Room) -> Read {
        match self.receive(room.behind(0)) {
            Read::Bytes(len) => Read::Lost(len),
            Read::Nothing => Read::Lost(0),
            over => over,
        }
    }

    /// As [`End::put`], in records.
    pub(super) fn put_sealed(&mut self, plain: &[u8]) {
        self.say(|side, out| side.seal(plain, out));
        let Some(side) = &self.tls else { return };
        self.worn = side.is_worn();
        if side.is_spent() {
            self.finish();
        }
    }

    /// Does what had to wait until the socket took everything.
    pub(super) fn catch_up(&mut self) {
        self.say(Side::settle);
        if self.finishing {
            self.finish();
        }
    }

    /// Says goodbye, if this is TLS and nothing was the last word yet. True when nothing waits to be sent.
    pub fn part(&mut self) -> bool {
        self.finishing = true;
        if self.tls.is_some() {
            self.say(Side::part);
        }
        self.pending.is_none()
    }

    /// Says nothing more, not even goodbye: a stream that was cut short must not end like one that was not.
    pub fn fall_silent(&mut self) {
        if let Some(side) = &mut self.tls {
            side.fall_silent();
        }
    }

    /// TLS: the peer's stream ended without its goodbye, or broke.
    pub fn was_cut(&self) -> bool {
        self.tls.as_ref().is_some_and(|side| matches!(side.heard(), Heard::Cut | Heard::Fault(_)))
    }

    /// TLS 1.2: the peer's goodbye ends both directions.
    pub fn must_part(&self) -> bool {
        self.tls.as_ref().is_some_and(|side| side.must_part())
    }

    /// Sends what `word` appends, behind what waits.
    #[inline]
    fn say(&mut self, word: impl FnOnce(&mut Side, &mut Vec<u8>)) {
        ROOM.with_borrow_mut(|room| {
            room.out.clear();
            if let Some(side) = &mut self.tls {
                word(side, &mut room.out);
            }
            self.put_records(&room.out);
        });
    }

    #[inline]
    fn put_records(&mut self, records: &[u8]) {
        if !records.is_empty() {
            self.put_raw(records);
        }
    }
}

impl Room {
    /// Room for a receive, behind `begun` bytes that are there already.
    fn behind(&mut self, begun: usize) -> &mut [u8] {
        self.wire.resize(WIRE.max(begun + FRESH), 0);
        &mut self.wire[begun..]
    }
}
