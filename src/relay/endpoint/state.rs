//! The two states of an endpoint: what is known of reading from its peer, and of writing to it.
//!
//! Every change is one named transition, and what cannot be does not exist: a stream that has ended is never readable,
//! a write that has failed never succeeds again, and a stream that is finished stays finished.

/// What is known of reading from a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ReadSide {
    readiness: ReadReadiness,
    /// The peer has hung up or failed. Whatever a short read says, more may follow.
    has_hung_up: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReadReadiness {
    /// Nothing is left in the socket; an event says when there is.
    Drained,
    /// A read may give something.
    Readable,
    /// Urgent data is among what is left, and ends a read early: only a read that would block shows that nothing is left.
    Urgent,
    /// The peer has ended its stream.
    Ended,
}

impl ReadSide {
    /// A stream that has not been polled yet.
    pub(super) const NEW: Self = Self { readiness: ReadReadiness::Readable, has_hung_up: false };

    /// As another process knew it. What the socket has, the first poll tells.
    pub(super) fn restored(is_readable: bool, has_hung_up: bool, has_ended: bool) -> Self {
        let readiness = match (has_ended, is_readable) {
            (true, _) => ReadReadiness::Ended,
            (false, true) => ReadReadiness::Readable,
            (false, false) => ReadReadiness::Drained,
        };
        Self { readiness, has_hung_up }
    }

    /// There is something to read.
    #[inline]
    pub(super) fn set_readable(&mut self) {
        if self.readiness == ReadReadiness::Drained {
            self.readiness = ReadReadiness::Readable;
        }
    }

    /// The peer has hung up or failed.
    #[inline]
    pub(super) fn set_hung_up(&mut self) {
        self.has_hung_up = true;
        self.set_readable();
    }

    /// There is urgent data.
    pub(super) fn set_urgent(&mut self) {
        if self.readiness != ReadReadiness::Ended {
            self.readiness = ReadReadiness::Urgent;
        }
    }

    /// A read gave less than there was room for.
    #[inline]
    pub(super) fn read_short(&mut self) {
        if self.readiness == ReadReadiness::Readable && !self.has_hung_up {
            self.readiness = ReadReadiness::Drained;
        }
    }

    /// A read would have blocked.
    #[inline]
    pub(super) fn would_block(&mut self) {
        if self.is_readable() {
            self.readiness = ReadReadiness::Drained;
        }
    }

    /// The peer has ended its stream.
    pub(super) fn end(&mut self) {
        self.readiness = ReadReadiness::Ended;
    }

    /// A read may give something.
    #[inline]
    pub(super) fn is_readable(self) -> bool {
        matches!(self.readiness, ReadReadiness::Readable | ReadReadiness::Urgent)
    }

    /// The peer has ended its stream.
    #[inline]
    pub(super) fn has_ended(self) -> bool {
        self.readiness == ReadReadiness::Ended
    }

    /// The peer has hung up, or its connection has failed; what it sent before may still be unread.
    #[inline]
    pub(super) fn has_hung_up(self) -> bool {
        self.has_hung_up
    }
}

/// What is known of writing to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WriteSide {
    readiness: WriteReadiness,
    shutdown: ShutdownStage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WriteReadiness {
    /// A write may be taken.
    Writable,
    /// The socket is full; an event says when it is not.
    Blocked,
    /// Writes fail: nothing reaches this peer any more.
    Broken,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum ShutdownStage {
    Open,
    /// The last bytes are on their way; the end of stream follows them.
    Finishing,
    /// The end of stream has been sent.
    Finished,
}

impl WriteSide {
    /// A stream that has not been polled yet.
    pub(super) const NEW: Self = Self { readiness: WriteReadiness::Writable, shutdown: ShutdownStage::Open };

    /// As another process knew it. Whether the socket is full, the first write tells.
    pub(super) fn restored(is_broken: bool, is_finishing: bool, is_finished: bool) -> Self {
        let readiness = if is_broken { WriteReadiness::Broken } else { WriteReadiness::Writable };
        let shutdown = match (is_finished, is_finishing) {
            (true, _) => ShutdownStage::Finished,
            (false, true) => ShutdownStage::Finishing,
            (false, false) => ShutdownStage::Open,
        };
        Self { readiness, shutdown }
    }

    /// The socket has room.
    #[inline]
    pub(super) fn set_writable(&mut self) {
        if self.readiness == WriteReadiness::Blocked {
            self.readiness = WriteReadiness::Writable;
        }
    }

    /// The socket took less than it was given.
    #[inline]
    pub(super) fn set_blocked(&mut self) {
        if self.readiness == WriteReadiness::Writable {
            self.readiness = WriteReadiness::Blocked;
        }
    }

    /// Writes fail from now on.
    pub(super) fn set_broken(&mut self) {
        self.readiness = WriteReadiness::Broken;
    }

    /// What is sent from now on is the last.
    pub(super) fn begin_finish(&mut self) {
        self.shutdown = self.shutdown.max(ShutdownStage::Finishing);
    }

    /// The end of stream is sent.
    pub(super) fn finish(&mut self) {
        self.shutdown = ShutdownStage::Finished;
    }

    /// The socket is full.
    #[inline]
    pub(super) fn is_blocked(self) -> bool {
        self.readiness == WriteReadiness::Blocked
    }

    /// Nothing reaches this peer any more.
    #[inline]
    pub(super) fn is_broken(self) -> bool {
        self.readiness == WriteReadiness::Broken
    }

    /// The last bytes are on their way, or the end of stream has been sent.
    pub(super) fn is_finishing(self) -> bool {
        self.shutdown != ShutdownStage::Open
    }

    /// The end of stream has been sent.
    pub(super) fn is_finished(self) -> bool {
        self.shutdown == ShutdownStage::Finished
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_read_drains_only_a_stream_without_an_end_or_urgent_data() {
        let after = |event: fn(&mut ReadSide)| {
            let mut read = ReadSide::NEW;
            event(&mut read);
            read.read_short();
            let is_readable = read.is_readable();
            read.would_block();
            (is_readable, read.is_readable())
        };
        assert_eq!(after(ReadSide::set_readable), (false, false));
        assert_eq!(after(ReadSide::set_hung_up), (true, false));
        assert_eq!(after(ReadSide::set_urgent), (true, false));
    }

    #[test]
    fn an_ended_stream_is_never_readable_again() {
        let mut read = ReadSide::NEW;
        read.end();
        for event in [ReadSide::set_readable, ReadSide::set_hung_up, ReadSide::set_urgent] {
            event(&mut read);
            assert!(read.has_ended() && !read.is_readable());
        }
        assert!(read.has_hung_up());
    }

    #[test]
    fn a_broken_or_finished_stream_stays_so() {
        let mut write = WriteSide::NEW;
        write.set_blocked();
        assert!(write.is_blocked());
        write.set_broken();
        for event in
            [WriteSide::set_writable, WriteSide::set_blocked, WriteSide::finish, WriteSide::begin_finish]
        {
            event(&mut write);
            assert!(write.is_broken() && !write.is_blocked());
        }
        assert!(write.is_finished() && write.is_finishing());
    }

    #[test]
    fn what_another_process_knew_is_known_again() {
        for bits in 0..8 {
            let [one, two, three] = [1, 2, 4].map(|bit| bits & bit != 0);
            let read = ReadSide::restored(one, two, three);
            assert_eq!(
                (read.is_readable(), read.has_hung_up(), read.has_ended()),
                (one && !three, two, three)
            );
            let write = WriteSide::restored(one, two, three);
            assert_eq!(
                (write.is_broken(), write.is_finishing(), write.is_finished()),
                (one, two || three, three)
            );
        }
    }
}
