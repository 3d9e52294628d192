//! One direction of a tunnel, without I/O: frame tracker, frames to be injected, counts.
//!
//! Bytes come in as they are read; what may be forwarded is handed to `out`, in order. A frame of the balancer's own
//! goes between two frames of the peer's (invariant I6): at once if the stream is at a boundary, otherwise after the
//! payload of the current frame. After the balancer's Close, or an error that causes one, nothing of the peer is
//! forwarded any more; it is still read, to see the peer's Close.

use super::tunnel_state::TunnelStateError;
use super::tunnel_state::field::{FieldReader, FieldWriter};
use crate::ws::tracker::{MessageCounts, ScanEnd, ScanOptions, Tracker};

/// Room that the reader keeps before what it reads, for the bytes that are held back from the read before. A multiple
/// of 16, because the kernel copies slower to an address that is not aligned.
pub(crate) const HEADROOM: usize = crate::ws::frame::MAX_HEADER.next_multiple_of(16);

/// What makes the balancer close a tunnel, seen in its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PipeError {
    /// A message longer than the limit.
    MessageTooBig,
    /// Bytes that are no frame: the framing is lost.
    InvalidFrame,
}

/// What was seen in a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PipeEvents {
    /// The first error.
    pub error: Option<PipeError>,
    /// The number of the last Ping of the balancer's that was answered.
    pub pong: Option<u8>,
}

/// One direction of a tunnel.
#[derive(Debug, Default)]
pub struct Pipe {
    tracker: Tracker,
    /// A frame of the balancer's own that waits for a boundary.
    queued: Option<Box<InjectedFrame>>,
    /// Bytes read from the source.
    bytes: u64,
    /// Text and binary messages seen.
    messages: u64,
    /// Code of the first Close frame seen from the source.
    close_code: Option<u16>,
    /// Whether the source's bytes are forwarded.
    flow: PipeFlow,
    /// What the source still sends is only counted.
    is_framing_lost: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum PipeFlow {
    /// They are.
    #[default]
    Open,
    /// What was forwarded ends between two frames; nothing more is.
    Stopped,
    /// As `Stopped`, and the balancer's Close is sent, or the peer cannot be reached.
    Closed,
}

impl PipeFlow {
    /// In the order of their numbers in a tunnel state.
    const ALL: [Self; 3] = [Self::Open, Self::Stopped, Self::Closed];
}

#[derive(Debug)]
struct InjectedFrame {
    frame: Vec<u8>,
    is_last: bool,
}

/// The fields of a pipe in a tunnel state.
mod tag {
    use crate::relay::tunnel_state::field::FieldTag;

    pub(super) const BYTES: FieldTag = FieldTag(1, "bytes");
    pub(super) const MESSAGES: FieldTag = FieldTag(2, "messages");
    pub(super) const CLOSE: FieldTag = FieldTag(3, "close");
    pub(super) const FLOW: FieldTag = FieldTag(4, "flow");
    pub(super) const LOST: FieldTag = FieldTag(5, "lost");
    pub(super) const WAITING: FieldTag = FieldTag(6, "waiting");
    pub(super) const WAITING_IS_LAST: FieldTag = FieldTag(7, "waiting is last");
    pub(super) const LEFT: FieldTag = FieldTag(8, "left");
    pub(super) const MESSAGE: FieldTag = FieldTag(9, "message");
    pub(super) const HELD: FieldTag = FieldTag(10, "held");
    pub(super) const CLOSED: FieldTag = FieldTag(11, "closed");
    /// The message under way. Earlier versions leave that of an ended message in `MESSAGE`.
    pub(super) const UNDER_WAY: FieldTag = FieldTag(128, "message under way");
}

impl Pipe {
    /// Bytes read from the source so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Text and binary messages seen so far.
    pub fn messages(&self) -> u64 {
        self.messages
    }

    /// The code of the Close frame that the source has sent.
    pub fn close_code(&self) -> Option<u16> {
        self.close_code
    }

    /// The bytes that the reader must put before its next read.
    pub fn held(&self) -> &[u8] {
        self.tracker.held()
    }

    /// Takes bytes that were read, after the [held](Self::held) ones, and hands to `out` what may be forwarded.
    #[inline]
    pub fn feed(
        &mut self,
        piece: &[u8],
        heed: ScanOptions,
        tally: &mut MessageCounts,
        mut out: impl FnMut(&[u8]),
    ) -> PipeEvents {
        self.bytes += (piece.len() - self.tracker.held().len()) as u64;
        let before = tally[0] + tally[1];
        let seen = self.scan(piece, heed, tally, &mut out);
        self.messages += u64::from(tally[0] + tally[1] - before);
        seen
    }

    #[inline]
    fn scan(
        &mut self,
        mut piece: &[u8],
        mut heed: ScanOptions,
        tally: &mut MessageCounts,
        out: &mut impl FnMut(&[u8]),
    ) -> PipeEvents {
        let mut seen = PipeEvents::default();
        while !self.is_framing_lost {
            let scan = self.tracker.scan(piece, heed, self.queued.is_some(), tally);
            self.close_code = self.close_code.or(scan.close);
            let (pass, mut rest) = piece.split_at(scan.pass);
            if self.flow == PipeFlow::Open && !pass.is_empty() {
                out(pass);
            }
            match scan.verdict {
                ScanEnd::UsedUp => break,
                ScanEnd::Boundary => self.send_queued(out),
                ScanEnd::TooBig => {
                    // The message is read to its end, so that the peer's Close after it is found.
                    heed.limit = u64::MAX;
                    seen.error = self.stop(PipeError::MessageTooBig);
                }
                ScanEnd::OwnPong { size, number } => {
                    rest = &rest[usize::from(size)..];
                    seen.pong = Some(number);
                }
                ScanEnd::Garbage => {
                    self.is_framing_lost = true;
                    seen.error = seen.error.or(self.stop(PipeError::InvalidFrame));
                }
            }
            piece = rest;
        }
        seen
    }

    /// Stops the flow at the boundary; an error counts only while the flow is open.
    fn stop(&mut self, error: PipeError) -> Option<PipeError> {
        if self.flow != PipeFlow::Open {
            return None;
        }
        self.flow = PipeFlow::Stopped;
        Some(error)
    }

    /// Whether a frame of the balancer's own waits for a boundary.
    pub(crate) fn has_queued_frame(&self) -> bool {
        self.queued.is_some()
    }

    /// Injects a frame at the next boundary, now if the stream is at one. With `is_last` it is the balancer's Close and
    /// replaces a frame that waits. Nothing is injected after a Close of the source.
    pub fn inject(&mut self, frame: Vec<u8>, last: bool, mut out: impl FnMut(&[u8])) {
        if self.flow == PipeFlow::Closed
            || (!last && (self.flow == PipeFlow::Stopped || self.has_queued_frame()))
        {
            return;
        }
        self.queued = Some(Box::new(InjectedFrame { frame, is_last: last }));
        if self.tracker.at_boundary() || self.flow == PipeFlow::Stopped {
            self.send_queued(&mut out);
        }
    }

    fn send_queued(&mut self, out: &mut impl FnMut(&[u8])) {
        let Some(injection) = self.queued.take() else { return };
        if !self.tracker.has_seen_close() || self.flow == PipeFlow::Stopped {
            out(&injection.frame);
        }
        if injection.is_last {
            self.flow = PipeFlow::Closed;
        }
    }

    /// The source has ended its stream: the held part of a header is forwarded as it is.
    pub(crate) fn finish(&mut self, mut out: impl FnMut(&[u8])) {
        if self.flow == PipeFlow::Open && !self.tracker.held().is_empty() {
            out(self.tracker.held());
        }
    }

    /// Forwards nothing more of the source: the peer cannot be reached.
    pub(crate) fn shut(&mut self) {
        self.flow = PipeFlow::Closed;
        self.queued = None;
    }

    /// Writes the state of the direction.
    pub(crate) fn encode(&self, writer: &mut FieldWriter) {
        writer.number(tag::BYTES, self.bytes);
        writer.number(tag::MESSAGES, self.messages);
        writer.optional(tag::CLOSE, self.close_code);
        writer.number(tag::FLOW, self.flow as u8);
        writer.flag(tag::LOST, self.is_framing_lost);
        if let Some(injection) = &self.queued {
            writer.bytes(tag::WAITING, &injection.frame);
            writer.flag(tag::WAITING_IS_LAST, injection.is_last);
        }
        writer.number(tag::LEFT, self.tracker.left());
        writer.number(tag::MESSAGE, self.tracker.message());
        writer.bytes(tag::HELD, self.tracker.held());
        writer.flag(tag::CLOSED, self.tracker.has_seen_close());
        let message = self.tracker.message();
        writer.optional(tag::UNDER_WAY, (message != 0).then_some(message));
    }

    /// Reads what [`encode`](Self::encode) wrote.
    pub(crate) fn decode(mut fields: FieldReader<'_>) -> Result<Self, TunnelStateError> {
        let (bytes, messages) = (fields.count(tag::BYTES)?, fields.count(tag::MESSAGES)?);
        let close = fields.optional(tag::CLOSE)?;
        let flow = fields.variant(tag::FLOW, &PipeFlow::ALL)?;
        let lost = fields.flag(tag::LOST)?;
        let frame = fields.find(tag::WAITING)?.map(<[u8]>::to_vec);
        let last = fields.flag(tag::WAITING_IS_LAST)?;
        let waiting = frame.map(|frame| Box::new(InjectedFrame { frame, is_last: last }));
        let left = fields.number(tag::LEFT)?;
        // Mandatory for earlier versions; `UNDER_WAY` has the value that counts.
        fields.number::<u64>(tag::MESSAGE)?;
        let (held, closed) = (fields.bytes(tag::HELD)?, fields.flag(tag::CLOSED)?);
        let message = fields.optional(tag::UNDER_WAY)?.unwrap_or(0);
        let tracker = Tracker::restore(left, message, held, closed);
        let tracker = tracker.ok_or(fields.invalid(tag::HELD))?;
        fields.finish()?;
        Ok(Self { tracker, queued: waiting, bytes, messages, close_code: close, flow, is_framing_lost: lost })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ws::tracker::PingToken;
    use crate::ws::{close, frame};

    fn up_to(limit: u64) -> ScanOptions {
        ScanOptions { limit, pings: None }
    }

    fn feed(pipe: &mut Pipe, fresh: &[u8], out: &mut Vec<u8>) -> Option<PipeError> {
        heeding(pipe, fresh, up_to(1 << 20), out).error
    }

    fn heeding(pipe: &mut Pipe, fresh: &[u8], heed: ScanOptions, out: &mut Vec<u8>) -> PipeEvents {
        let piece = [pipe.held(), fresh].concat();
        pipe.feed(&piece, heed, &mut MessageCounts::default(), |bytes| out.extend_from_slice(bytes))
    }

    fn text(payload: &str) -> Vec<u8> {
        [&[0x81, payload.len() as u8], payload.as_bytes()].concat()
    }

    #[test]
    fn i6_a_close_waits_for_the_end_of_the_current_frame() {
        let (mut pipe, mut out) = (Pipe::default(), Vec::new());
        let hello = text("hello");
        assert_eq!(feed(&mut pipe, &hello[..4], &mut out), None);
        let bye = close::encode_close(1012, "", None);
        pipe.inject(bye.clone(), true, |bytes| out.extend_from_slice(bytes));
        assert_eq!(out, hello[..4]);
        feed(&mut pipe, &[&hello[4..], &text("dropped")].concat(), &mut out);
        assert_eq!(out, [hello, bye].concat());
    }

    #[test]
    fn i6_a_close_overtakes_a_header_that_is_not_whole() {
        let (mut pipe, mut out) = (Pipe::default(), Vec::new());
        feed(&mut pipe, &[0x81], &mut out);
        let bye = close::encode_close(1001, "", None);
        pipe.inject(bye.clone(), true, |bytes| out.extend_from_slice(bytes));
        assert_eq!(out, bye);
    }

    #[test]
    fn the_stream_goes_on_after_a_ping_of_the_balancers() {
        let (mut pipe, mut out) = (Pipe::default(), Vec::new());
        let (one, two) = (text("one"), text("two"));
        feed(&mut pipe, &one[..3], &mut out);
        let ping = frame::encode_control(frame::opcode::PING, b"", None);
        pipe.inject(ping.clone(), false, |bytes| out.extend_from_slice(bytes));
        feed(&mut pipe, &[&one[3..], &two].concat(), &mut out);
        assert_eq!(out, [one, ping, two].concat());
    }

    #[test]
    fn nothing_is_injected_after_a_close_of_the_peer() {
        let (mut pipe, mut out) = (Pipe::default(), Vec::new());
        let bye = close::encode_close(1000, "", None);
        feed(&mut pipe, &bye, &mut out);
        pipe.inject(close::encode_close(1001, "", None), true, |bytes| out.extend_from_slice(bytes));
        assert_eq!(out, bye);
        assert_eq!(pipe.close_code(), Some(1000));
    }

    #[test]
    fn a_closed_pipe_still_sees_the_answer_to_its_close() {
        let (mut pipe, mut out) = (Pipe::default(), Vec::new());
        pipe.inject(close::encode_close(1001, "", None), true, |bytes| out.extend_from_slice(bytes));
        let sent = out.len();
        feed(&mut pipe, &[text("late"), close::encode_close(1001, "", Some([1; 4]))].concat(), &mut out);
        assert_eq!((out.len(), pipe.close_code()), (sent, Some(1001)));
    }

    #[test]
    fn an_ended_stream_forwards_the_part_of_a_header_it_held() {
        let (mut pipe, mut out) = (Pipe::default(), Vec::new());
        feed(&mut pipe, &[0x82, 126, 1], &mut out);
        pipe.finish(|bytes| out.extend_from_slice(bytes));
        assert_eq!(out, [0x82, 126, 1]);
        assert_eq!(pipe.bytes(), 3);
    }

    #[test]
    fn a_message_over_the_limit_is_not_forwarded_and_the_close_after_it_is_seen() {
        let (mut pipe, mut out) = (Pipe::default(), Vec::new());
        let good = text("good");
        let big = [&[0x82, 126, 1, 0][..], &[0; 256]].concat();
        let stream = [good.clone(), big, text("more"), close::encode_close(1009, "", None)].concat();
        let mut sink = |bytes: &[u8]| out.extend_from_slice(bytes);
        let error = pipe.feed(&stream[..20], up_to(100), &mut MessageCounts::default(), &mut sink);
        assert_eq!(error.error, Some(PipeError::MessageTooBig));
        let bye = close::encode_close(1009, "", Some([0; 4]));
        pipe.inject(bye.clone(), true, &mut sink);
        let seen = pipe.feed(&stream[20..], up_to(100), &mut MessageCounts::default(), &mut sink);
        assert_eq!(seen, PipeEvents::default());
        assert_eq!(out, [good, bye].concat());
        assert_eq!(pipe.close_code(), Some(1009));
    }

    #[test]
    fn lost_framing_is_one_error_and_then_nothing_is_forwarded() {
        let (mut pipe, mut out) = (Pipe::default(), Vec::new());
        assert_eq!(feed(&mut pipe, &[0x88, 0x7f, 1, 2, 3], &mut out), Some(PipeError::InvalidFrame));
        pipe.inject(close::encode_close(1002, "", None), true, |bytes| out.extend_from_slice(bytes));
        assert_eq!(feed(&mut pipe, &text("x"), &mut out), None);
        assert_eq!(out, close::encode_close(1002, "", None));
    }

    #[test]
    fn a_ping_does_not_replace_a_close_that_waits() {
        let (mut pipe, mut out) = (Pipe::default(), Vec::new());
        let hello = text("hello");
        feed(&mut pipe, &hello[..4], &mut out);
        let (ping, bye) =
            (frame::encode_control(frame::opcode::PING, b"", None), close::encode_close(1012, "", None));
        pipe.inject(ping.clone(), false, |bytes| out.extend_from_slice(bytes));
        pipe.inject(bye.clone(), true, |bytes| out.extend_from_slice(bytes));
        pipe.inject(ping, false, |bytes| out.extend_from_slice(bytes));
        feed(&mut pipe, &hello[4..], &mut out);
        assert_eq!(out, [hello, bye].concat());
    }

    /// What a stream of frames of one kind looks like to a reader.
    fn read_frames(mut stream: &[u8]) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        while let frame::DecodedHeader::Header(header) = frame::decode_header(stream) {
            let (one, rest) = stream.split_at(usize::from(header.size) + header.len as usize);
            frames.push(one.to_vec());
            stream = rest;
        }
        assert_eq!(stream, b"", "the stream ends between two frames");
        frames
    }

    proptest! {
        #[test]
        fn i6_pings_and_a_close_come_out_between_frames_and_our_pongs_not_at_all(
            sizes in prop::collection::vec((0usize..300, 0u8..3), 1..20),
            chunks in prop::collection::vec(1usize..40, 1..100),
            pings in prop::collection::vec(0usize..100, 0..6), close_at in 0usize..150,
        ) {
            let token = PingToken(0x0102_0304_0506_0708);
            let heed = ScanOptions { limit: u64::MAX, pings: Some(token) };
            let frame = |(at, &(size, kind)): (usize, &(usize, u8))| match kind {
                0 => frame::encode_control(frame::opcode::PONG, &token.payload(), Some([at as u8; 4])),
                1 => frame::encode_control(frame::opcode::PONG, &[at as u8; 8], Some([3; 4])),
                _ => [&[0x82, 126][..], &(size as u16).to_be_bytes(), &vec![at as u8; size]].concat(),
            };
            let sent: Vec<Vec<u8>> = sizes.iter().enumerate().map(frame).collect();
            let theirs: Vec<_> = sent.iter().zip(&sizes).filter(|(_, kind)| kind.1 != 0).map(|(f, _)| f).collect();
            let (ping, bye) = (frame::encode_control(frame::opcode::PING, b"ours", None), close::encode_close(1012, "", None));
            let (mut pipe, mut out, stream) = (Pipe::default(), Vec::new(), sent.concat());
            let (mut at, mut turn, mut closed_at) = (0, 0, None);
            while at < stream.len() {
                if pings.contains(&turn) {
                    pipe.inject(ping.clone(), false, |bytes| out.extend_from_slice(bytes));
                }
                if turn == close_at {
                    pipe.inject(bye.clone(), true, |bytes| out.extend_from_slice(bytes));
                    closed_at = Some(at);
                }
                let size = chunks[turn % chunks.len()].min(stream.len() - at);
                heeding(&mut pipe, &stream[at..at + size], heed, &mut out);
                (at, turn) = (at + size, turn + 1);
            }
            let seen = read_frames(&out);
            let ours = |frame: &Vec<u8>| *frame == ping || *frame == bye;
            let passed: Vec<_> = seen.iter().filter(|frame| !ours(frame)).collect();
            prop_assert_eq!(&passed[..], &theirs[..passed.len()]);
            match closed_at {
                None => prop_assert_eq!(passed.len(), theirs.len()),
                Some(at) => {
                    prop_assert_eq!(seen.last(), Some(&bye));
                    prop_assert_eq!(seen.iter().filter(|frame| **frame == bye).count(), 1);
                    // The frame that was passing is whole, and no other behind it.
                    let whole: usize = passed.iter().map(|frame| frame.len()).sum();
                    prop_assert!(whole <= at + 304);
                }
            }
        }

        #[test]
        fn i6_wherever_a_frame_is_injected_both_streams_stay_whole(
            sizes in prop::collection::vec(0usize..125, 1..10), cut in 0usize..1000, chunk in 1usize..50
        ) {
            let frames: Vec<Vec<u8>> = sizes.iter().map(|size| text(&"x".repeat(*size))).collect();
            let stream = frames.concat();
            let ping = frame::encode_control(frame::opcode::PING, b"mark", None);
            let (mut pipe, mut out, cut) = (Pipe::default(), Vec::new(), cut % (stream.len() + 1));
            let mut fed = 0;
            for piece in stream.chunks(chunk) {
                if (fed..fed + piece.len()).contains(&cut) {
                    pipe.inject(ping.clone(), false, |bytes| out.extend_from_slice(bytes));
                }
                feed(&mut pipe, piece, &mut out);
                fed += piece.len();
            }
            let whole: Vec<Vec<u8>> = (0..=frames.len())
                .map(|at| [&frames[..at].concat()[..], &ping, &frames[at..].concat()].concat())
                .collect();
            prop_assert!(whole.contains(&out) || (cut == stream.len() && out == stream));
        }
    }
}
