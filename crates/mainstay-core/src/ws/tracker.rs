//! The tracker: knows, in one direction of a tunnel, where the next frame header is.
//!
//! It is fed every byte that was read, in pieces of any size, and says how many of them may go on. Bytes of a
//! header that is not whole yet are *held* (at most 14) and come back in front of the next piece, so what has
//! gone on always ends inside a payload or exactly between two frames. That is what makes the boundary known at
//! which a frame may be injected (invariant I6). No payload is kept, and the whole state is 32 bytes. The one frame
//! that may be cut out of the stream, a Pong to the balancer's own Ping, is as short as a header and held like one.

use super::close;
use super::frame::{self, DecodedHeader, FrameHeader, MAX_HEADER, opcode};

/// Messages seen: text, binary, ping, pong, close. A message counts when its first header is whole.
pub type MessageCounts = [u32; 5];

/// What a scan heeds.
#[derive(Debug, Clone, Copy)]
pub struct ScanOptions {
    /// The most bytes of payload that a message may have; `u64::MAX` is no limit.
    pub limit: u64,
    /// The Pings of the balancer's own whose Pongs come back here, if it sends any.
    pub pings: Option<PingToken>,
}

/// The payload of the balancer's Pings in one tunnel: seven bytes of its own and, last, a number.
///
/// With its header and mask the Pong is as long as the longest header, 14 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PingToken(pub u64);

impl PingToken {
    /// The same tunnel's next.
    pub fn next(self) -> Self {
        Self(self.0 & !0xff | u64::from(self.number().wrapping_add(1)))
    }

    /// Which of the tunnel's Pings it is, modulo 256.
    pub fn number(self) -> u8 {
        self.0 as u8
    }

    /// The payload.
    pub fn payload(self) -> [u8; 8] {
        self.0.to_be_bytes()
    }

    /// The number of the Ping that was answered with `payload`, if it was one of this tunnel's.
    fn answered(self, payload: [u8; 8]) -> Option<u8> {
        let answer = Self(u64::from_be_bytes(payload));
        (answer.0 >> 8 == self.0 >> 8).then_some(answer.number())
    }
}

/// The position in a stream of frames: how much of the current frame, and of its message, is still to come.
#[derive(Debug, Default)]
pub struct Tracker {
    /// Bytes of the current frame's payload still to come.
    left: u64,
    /// Payload bytes of the message that is under way, by the lengths of its headers; 0 between two messages.
    message: u64,
    /// The first bytes of a header that is not whole yet.
    held: [u8; MAX_HEADER],
    /// How many bytes of `held` count.
    held_len: u8,
    /// A Close frame has gone by.
    closed: bool,
}

/// What a scan found. `pass` bytes of the piece may go on, whatever the verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scan {
    /// How many bytes of the piece may go on.
    pub pass: usize,
    /// Why the scan ended there.
    pub verdict: ScanEnd,
    /// The code of a Close frame whose header passed in this scan; [`close::NO_STATUS`] when it had none.
    pub close: Option<u16>,
}

/// Why a scan ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScanEnd {
    /// The piece is used up; what did not pass is held.
    UsedUp,
    /// Asked to stop at a boundary, and here is one. The rest of the piece has not been looked at.
    Boundary,
    /// The next `size` bytes are a Pong to the balancer's own Ping of this number: the caller drops them. The rest
    /// of the piece has not been looked at.
    OwnPong {
        /// Length of the frame.
        size: u8,
        /// Of the Ping; see [`PingToken::number`].
        number: u8,
    },
    /// The next frame would make its message longer than the limit.
    TooBig,
    /// What comes next is not a frame header.
    Garbage,
}

impl Tracker {
    /// A tracker that stands where another one stood, as that one's [`left`](Self::left),
    /// [`message`](Self::message), [`held`](Self::held) and [`has_seen_close`](Self::has_seen_close) said. `None` when more
    /// is held than ever is.
    pub fn restore(left: u64, message: u64, held: &[u8], closed: bool) -> Option<Self> {
        let mut tracker = Self { left, message, held_len: held.len() as u8, closed, ..Self::default() };
        tracker.held.get_mut(..held.len())?.copy_from_slice(held);
        Some(tracker)
    }

    /// Bytes of the current frame's payload still to come.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Payload bytes of the message that is under way, by the lengths of its headers; 0 between two messages.
    pub fn message(&self) -> u64 {
        self.message
    }

    /// The bytes that the caller puts in front of the next piece.
    pub fn held(&self) -> &[u8] {
        &self.held[..usize::from(self.held_len)]
    }

    /// What has gone on so far ends between two frames.
    pub fn at_boundary(&self) -> bool {
        self.left == 0
    }

    /// A Close frame has gone by: nothing may be injected behind it.
    pub fn has_seen_close(&self) -> bool {
        self.closed
    }

    /// Reads `piece`, which begins with what was [`held`](Self::held).
    ///
    /// With `stop` the scan ends at the first boundary, which may be right at the start.
    #[inline]
    pub fn scan(&mut self, piece: &[u8], heed: ScanOptions, stop: bool, tally: &mut MessageCounts) -> Scan {
        self.held_len = 0;
        let (mut at, mut close) = (0, None);
        loop {
            let payload = self.left.min((piece.len() - at) as u64);
            self.left -= payload;
            at += payload as usize;
            if self.left > 0 {
                return Scan { pass: at, verdict: ScanEnd::UsedUp, close };
            }
            if stop {
                return Scan { pass: at, verdict: ScanEnd::Boundary, close };
            }
            let rest = &piece[at..];
            let header = match frame::decode_header(rest) {
                DecodedHeader::Header(header) => header,
                DecodedHeader::Partial => return self.hold(rest, at, close),
                DecodedHeader::Invalid => return Scan { pass: at, verdict: ScanEnd::Garbage, close },
            };
            if header.opcode >= opcode::CLOSE {
                match control(&header, rest, heed.pings) {
                    Control::Partial => return self.hold(rest, at, close),
                    Control::Close(code) => {
                        close = close.or(Some(code));
                        self.closed = true;
                    }
                    Control::OwnPong(number) => {
                        let verdict = ScanEnd::OwnPong { size: header.size + header.len as u8, number };
                        return Scan { pass: at, verdict, close };
                    }
                    Control::Foreign => {}
                }
            }
            if self.message_with(&header) > heed.limit {
                return Scan { pass: at, verdict: ScanEnd::TooBig, close };
            }
            count(&header, tally);
            at += usize::from(header.size);
            self.left = header.len;
        }
    }

    fn hold(&mut self, rest: &[u8], at: usize, close: Option<u16>) -> Scan {
        // A header, a Close with its code or a Pong of ours is whole within 14 bytes, so what is not is shorter.
        let len = rest.len().min(MAX_HEADER);
        self.held[..len].copy_from_slice(&rest[..len]);
        self.held_len = len as u8;
        Scan { pass: at, verdict: ScanEnd::UsedUp, close }
    }

    /// Length of the message under way once this frame belongs to it. Control frames belong to none.
    ///
    /// Every other frame belongs to it, of whatever opcode, until its last fragment: what a peer puts between two
    /// fragments is a fault that its peer has to judge (section 5.4), and no way past the limit.
    fn message_with(&mut self, header: &FrameHeader) -> u64 {
        if header.opcode >= opcode::CLOSE {
            return 0;
        }
        let len = self.message.saturating_add(header.len);
        let is_last = header.opcode == opcode::CONTINUATION || self.message == 0;
        self.message = if header.fin && is_last { 0 } else { len };
        len
    }
}

/// What a control frame means here.
enum Control {
    /// More bytes are needed to tell.
    Partial,
    /// A Close with this code.
    Close(u16),
    /// The answer to our Ping of this number.
    OwnPong(u8),
    /// The peers' own business.
    Foreign,
}

/// Reads the control frame at the head of `rest`.
fn control(header: &FrameHeader, rest: &[u8], pings: Option<PingToken>) -> Control {
    match (header.opcode, pings) {
        (opcode::CLOSE, _) => close_code(header, rest).map_or(Control::Partial, Control::Close),
        (opcode::PONG, Some(token)) if header.len == 8 => {
            let payload = rest.get(usize::from(header.size)..).and_then(<[u8]>::first_chunk::<8>);
            let Some(payload) = payload else { return Control::Partial };
            let mask = header.mask.unwrap_or_default();
            let payload = std::array::from_fn(|at| payload[at] ^ mask[at % 4]);
            token.answered(payload).map_or(Control::Foreign, Control::OwnPong)
        }
        _ => Control::Foreign,
    }
}

/// The code of the Close frame at the head of `rest`; `None` while its two bytes are still to come.
fn close_code(header: &FrameHeader, rest: &[u8]) -> Option<u16> {
    if header.len < 2 {
        return Some(close::NO_STATUS);
    }
    let code = rest.get(usize::from(header.size)..)?.first_chunk::<2>()?;
    let mask = header.mask.unwrap_or_default();
    Some(u16::from_be_bytes([code[0] ^ mask[0], code[1] ^ mask[1]]))
}

#[inline]
fn count(header: &FrameHeader, tally: &mut MessageCounts) {
    let kind = match header.opcode {
        opcode::TEXT => 0,
        opcode::BINARY => 1,
        opcode::PING => 2,
        opcode::PONG => 3,
        opcode::CLOSE => 4,
        _ => return,
    };
    tally[kind] += 1;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NO_LIMIT: ScanOptions = up_to(u64::MAX);

    const fn up_to(limit: u64) -> ScanOptions {
        ScanOptions { limit, pings: None }
    }

    /// Feeds `stream` in pieces of the given sizes, as the relay does, and returns what went on.
    fn relay(
        tracker: &mut Tracker,
        stream: &[u8],
        cuts: &[usize],
        tally: &mut MessageCounts,
    ) -> (Vec<u8>, Option<u16>) {
        let (mut out, mut close, mut at, mut cut) = (Vec::new(), None, 0, 0);
        while at < stream.len() {
            let size = cuts.get(cut).copied().unwrap_or(stream.len()).clamp(1, stream.len() - at);
            let piece = [tracker.held(), &stream[at..at + size]].concat();
            let scan = tracker.scan(&piece, NO_LIMIT, false, tally);
            assert_eq!(scan.verdict, ScanEnd::UsedUp);
            out.extend_from_slice(&piece[..scan.pass]);
            close = close.or(scan.close);
            (at, cut) = (at + size, cut + 1);
        }
        (out, close)
    }

    fn data_frame(fin: bool, code: u8, payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
        let mut frame = vec![if fin { 0x80 } else { 0 } | code];
        let bit = if mask.is_some() { 0x80 } else { 0 };
        match payload.len() {
            len @ 0..=125 => frame.push(bit | len as u8),
            len @ 126..=65535 => {
                frame.push(bit | 126);
                frame.extend_from_slice(&(len as u16).to_be_bytes());
            }
            len => {
                frame.push(bit | 127);
                frame.extend_from_slice(&(len as u64).to_be_bytes());
            }
        }
        frame.extend_from_slice(&mask.map_or(vec![], |key| key.to_vec()));
        frame.extend_from_slice(payload);
        frame
    }

    #[test]
    fn the_state_is_at_most_32_bytes() {
        assert!(size_of::<Tracker>() <= 32, "{}", size_of::<Tracker>());
    }

    #[test]
    fn a_close_code_is_read_even_when_it_arrives_byte_by_byte() {
        let stream = close::encode_close(4321, "why", Some([9, 8, 7, 6]));
        let (mut tracker, mut tally) = (Tracker::default(), MessageCounts::default());
        let (out, code) = relay(&mut tracker, &stream, &[1; 20], &mut tally);
        assert_eq!((out, code, tally), (stream, Some(4321), [0, 0, 0, 0, 1]));
        assert!(tracker.has_seen_close());
    }

    #[test]
    fn a_close_without_a_code_counts_as_1005() {
        let (mut tracker, mut tally) = (Tracker::default(), MessageCounts::default());
        assert_eq!(relay(&mut tracker, &[0x88, 0], &[], &mut tally).1, Some(close::NO_STATUS));
        let mut tracker = Tracker::default();
        assert_eq!(relay(&mut tracker, &[0x88, 1, 7], &[], &mut tally).1, Some(close::NO_STATUS));
    }

    #[test]
    fn the_limit_covers_all_fragments_of_a_message_and_stops_before_the_header() {
        let first = data_frame(false, opcode::BINARY, &[0; 600], None);
        let ping = frame::encode_control(opcode::PING, b"x", None);
        let last = data_frame(true, opcode::CONTINUATION, &[0; 600], None);
        let stream = [first.clone(), ping.clone(), last].concat();
        let (mut tracker, mut tally) = (Tracker::default(), MessageCounts::default());
        let scan = tracker.scan(&stream, up_to(1000), false, &mut tally);
        assert_eq!(scan, Scan { pass: first.len() + ping.len(), verdict: ScanEnd::TooBig, close: None });
        assert!(tracker.at_boundary());
        let mut tracker = Tracker::default();
        assert_eq!(tracker.scan(&stream, up_to(1200), false, &mut tally).verdict, ScanEnd::UsedUp);
    }

    /// How much of `frames` passes with a limit of 1,000 bytes.
    fn passes(frames: &[Vec<u8>]) -> (usize, ScanEnd) {
        let scan =
            Tracker::default().scan(&frames.concat(), up_to(1000), false, &mut MessageCounts::default());
        (scan.pass, scan.verdict)
    }

    #[test]
    fn no_opcode_carries_more_than_the_limit() {
        for code in 1..8 {
            assert_eq!(passes(&[data_frame(true, code, &[0; 1001], None)]), (0, ScanEnd::TooBig), "{code}");
            assert_eq!(passes(&[data_frame(true, code, &[0; 1000], None)]).1, ScanEnd::UsedUp, "{code}");
        }
        for code in 8..16 {
            assert_eq!(passes(&[data_frame(true, code, &[0; 126], None)]), (0, ScanEnd::Garbage), "{code}");
            assert_eq!(passes(&[data_frame(false, code, &[0; 1], None)]), (0, ScanEnd::Garbage), "{code}");
        }
    }

    #[test]
    fn no_mixture_of_fragments_carries_more_than_the_limit() {
        let piece = |fin, code| data_frame(fin, code, &[0; 400], None);
        let (binary, more) = (piece(false, opcode::BINARY), piece(false, opcode::CONTINUATION));
        // What is put between two fragments counts, whether or not it says that it is whole.
        for between in
            [piece(false, opcode::TEXT), piece(true, opcode::TEXT), piece(false, 3), piece(true, 7)]
        {
            let frames = [binary.clone(), between, more.clone()];
            assert_eq!(passes(&frames), (frames[0].len() + frames[1].len(), ScanEnd::TooBig));
        }
        // Behind a last fragment a new message begins, and whole ones are each their own.
        let message = [binary, piece(true, opcode::CONTINUATION)];
        let whole = [piece(true, opcode::TEXT), piece(true, 5), piece(true, opcode::BINARY)];
        let frames = [&message[..], &message, &whole, &whole, &message].concat();
        assert_eq!(passes(&frames).1, ScanEnd::UsedUp);
    }

    #[test]
    fn garbage_stops_at_the_boundary_before_it() {
        let good = data_frame(true, opcode::TEXT, b"ok", None);
        let stream = [good.clone(), vec![0x82, 127, 0xff, 0, 0, 0, 0, 0, 0, 0]].concat();
        let (mut tracker, mut tally) = (Tracker::default(), MessageCounts::default());
        let scan = tracker.scan(&stream, NO_LIMIT, false, &mut tally);
        assert_eq!(scan, Scan { pass: good.len(), verdict: ScanEnd::Garbage, close: None });
    }

    #[test]
    fn a_pong_to_a_ping_of_our_own_is_cut_out_and_counts_nowhere() {
        let token = PingToken(0x1122_3344_5566_7788);
        let own = frame::encode_control(opcode::PONG, &token.payload(), Some([9, 8, 7, 6]));
        assert_eq!(own.len(), MAX_HEADER);
        let (mut tracker, mut tally) = (Tracker::default(), MessageCounts::default());
        let heed = ScanOptions { limit: u64::MAX, pings: Some(token.next()) };
        for cut in 1..own.len() {
            let held = tracker.scan(&own[..cut], heed, false, &mut tally);
            assert_eq!(held, Scan { pass: 0, verdict: ScanEnd::UsedUp, close: None });
            assert!(tracker.at_boundary());
            let piece = [tracker.held(), &own[cut..], &[0x81]].concat();
            let verdict = ScanEnd::OwnPong { size: 14, number: 0x88 };
            assert_eq!(tracker.scan(&piece, heed, false, &mut tally), Scan { pass: 0, verdict, close: None });
        }
        assert_eq!(tally, [0; 5]);
    }

    #[test]
    fn a_pong_that_is_not_ours_passes() {
        let token = PingToken(0x1122_3344_5566_7788);
        let heed = ScanOptions { limit: u64::MAX, pings: Some(token) };
        let other = frame::encode_control(opcode::PONG, &PingToken(!token.0).payload(), Some([1; 4]));
        let longer =
            frame::encode_control(opcode::PONG, &[&token.payload()[..], b"9"].concat(), Some([1; 4]));
        let ping = frame::encode_control(opcode::PING, &token.payload(), Some([1; 4]));
        let empty = frame::encode_control(opcode::PONG, b"", Some([1; 4]));
        for foreign in [other, longer, ping, empty] {
            let (mut tracker, mut tally) = (Tracker::default(), MessageCounts::default());
            let whole = Scan { pass: foreign.len(), verdict: ScanEnd::UsedUp, close: None };
            assert_eq!(tracker.scan(&foreign, heed, false, &mut tally), whole);
            assert_eq!(tally.iter().sum::<u32>(), 1);
        }
        // Without Pings of ours, nothing is held for them.
        let own = frame::encode_control(opcode::PONG, &token.payload(), Some([1; 4]));
        let scan = Tracker::default().scan(&own[..9], NO_LIMIT, false, &mut MessageCounts::default());
        assert_eq!(scan, Scan { pass: 9, verdict: ScanEnd::UsedUp, close: None });
    }

    fn frames() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let payload = prop::collection::vec(any::<u8>(), 0..300);
        let one = (any::<bool>(), 0u8..8, payload, any::<Option<[u8; 4]>>(), any::<bool>());
        let frame = one.prop_map(|(fin, code, payload, mask, control)| match control {
            true => frame::encode_control(8 + code % 3, &payload, mask),
            false => data_frame(fin, code, &payload, mask),
        });
        prop::collection::vec(frame, 1..12)
    }

    proptest! {
        #[test]
        fn however_a_stream_is_cut_the_same_bytes_go_on_and_the_same_messages_count(
            frames in frames(), cuts in prop::collection::vec(1usize..40, 0..200)
        ) {
            let stream = frames.concat();
            let (mut whole, mut pieces) = (Tracker::default(), Tracker::default());
            let (mut tally_whole, mut tally_pieces) = (MessageCounts::default(), MessageCounts::default());
            let at_once = relay(&mut whole, &stream, &[], &mut tally_whole);
            let cut = relay(&mut pieces, &stream, &cuts, &mut tally_pieces);
            prop_assert_eq!(&at_once.0, &stream);
            prop_assert_eq!(at_once, cut);
            prop_assert_eq!(tally_whole, tally_pieces);
            prop_assert!(pieces.at_boundary() && pieces.held().is_empty());
        }

        #[test]
        fn i6_a_boundary_is_always_between_two_frames(
            frames in frames(), cuts in prop::collection::vec(1usize..40, 0..200)
        ) {
            let mut ends = vec![0];
            for frame in &frames { ends.push(ends[ends.len() - 1] + frame.len()); }
            let stream = frames.concat();
            let (mut tracker, mut tally, mut passed, mut at, mut cut) = (Tracker::default(), MessageCounts::default(), 0, 0, 0);
            while at < stream.len() {
                let size = cuts.get(cut).copied().unwrap_or(25).min(stream.len() - at);
                let piece = [tracker.held(), &stream[at..at + size]].concat();
                let scan = tracker.scan(&piece, NO_LIMIT, false, &mut tally);
                passed += scan.pass;
                prop_assert_eq!(tracker.at_boundary(), ends.contains(&passed));
                (at, cut) = (at + size, cut + 1);
            }
        }

        #[test]
        fn any_bytes_are_scanned_without_a_panic(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 1..20), stop: bool, pings: Option<u64>) {
            let (mut tracker, mut tally) = (Tracker::default(), MessageCounts::default());
            for piece in pieces {
                let piece = [tracker.held(), &piece].concat();
                let scan = tracker.scan(&piece, ScanOptions { limit: 1000, pings: pings.map(PingToken) }, stop, &mut tally);
                prop_assert!(scan.pass <= piece.len());
                if scan.verdict != ScanEnd::UsedUp { break; }
            }
        }
    }
}
