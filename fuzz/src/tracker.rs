//! The frame tracker, and the pipe around it, against a naive decoder that sees the whole stream at once.

use mainstay::relay::pipe::{Pipe, PipeError};
use mainstay_core::ws::close;
use mainstay_core::ws::tracker::{MessageCounts, PingToken, ScanEnd, ScanOptions, Tracker};

use super::input::{Input, Pieces};

/// What a stream comes to.
#[derive(Debug, PartialEq, Default)]
struct Seen {
    /// The bytes that go on.
    out: Vec<u8>,
    tally: MessageCounts,
    /// The code of the first Close.
    close: Option<u16>,
    /// The first fault; nothing goes on behind it.
    fault: Option<PipeError>,
    /// The number of the last own Ping that was answered.
    pong: Option<u8>,
}

/// What both targets have in common at the front of their input.
struct Setting {
    heed: ScanOptions,
    seed: u8,
}

impl Setting {
    fn read(input: &mut Input<'_>) -> Self {
        let (flags, seed) = (input.byte(), input.byte());
        let limit = match flags & 3 {
            0 => u64::MAX,
            1 => 0,
            2 => 125,
            _ => u64::from(input.byte()) << (flags >> 5),
        };
        let pings = (flags & 4 != 0).then_some(PingToken(0x4142_4344_4546_4700));
        Self { heed: ScanOptions { limit, pings }, seed }
    }
}

/// One input: limit and pings, how the stream is cut, then the stream.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let Setting { heed, seed } = Setting::read(&mut input);
    let stream = input.rest();
    let expected = decode(stream, heed);
    let tracked = track(stream, heed, seed);
    assert_eq!(tracked, expected, "{}", stream.escape_ascii());
}

/// The tracker by itself, as the pipe drives it, until the first fault.
fn track(stream: &[u8], heed: ScanOptions, seed: u8) -> Seen {
    let mut tracker = Tracker::default();
    let (mut seen, mut piece) = (Seen::default(), Vec::new());
    for part in Pieces::new(seed, stream.len()) {
        piece.clear();
        piece.extend_from_slice(tracker.held());
        piece.extend_from_slice(&stream[part]);
        let mut rest = &piece[..];
        loop {
            let scan = tracker.scan(rest, heed, false, &mut seen.tally);
            seen.out.extend_from_slice(&rest[..scan.pass]);
            seen.close = seen.close.or(scan.close);
            assert_eq!(tracker.has_seen_close(), seen.close.is_some());
            rest = &rest[scan.pass..];
            match scan.verdict {
                ScanEnd::UsedUp => break,
                ScanEnd::Boundary => panic!("nobody asked for one"),
                ScanEnd::OwnPong { size, number } => {
                    seen.pong = Some(number);
                    rest = &rest[usize::from(size)..];
                }
                ScanEnd::TooBig => return Seen { fault: Some(PipeError::MessageTooBig), ..seen },
                ScanEnd::Garbage => return Seen { fault: Some(PipeError::InvalidFrame), ..seen },
            }
        }
        assert_eq!(tracker.held(), rest);
        // It can be put together again where it stands.
        let again =
            Tracker::restore(tracker.left(), tracker.message(), tracker.held(), tracker.has_seen_close());
        tracker = again.expect("no more is held than ever is");
    }
    seen
}

/// The reference: frames from the front of the whole stream. Of the last one nothing goes on before it can be told
/// what it is.
fn decode(stream: &[u8], heed: ScanOptions) -> Seen {
    let (mut seen, mut at, mut message) = (Seen::default(), 0, 0_u64);
    while at < stream.len() {
        let rest = &stream[at..];
        let Some(frame) = Frame::of(rest) else { return seen };
        let Ok(frame) = frame else { return Seen { fault: Some(PipeError::InvalidFrame), ..seen } };
        let payload = &rest[frame.head.min(rest.len())..];
        let unmasked = |count: usize| -> Option<Vec<u8>> {
            let bytes = payload.get(..count)?;
            Some(bytes.iter().enumerate().map(|(at, byte)| byte ^ frame.mask[at % 4]).collect())
        };
        match (frame.opcode, heed.pings) {
            (8, _) => {
                let code = match frame.length {
                    0 | 1 => close::NO_STATUS,
                    _ => match unmasked(2) {
                        Some(code) => u16::from_be_bytes([code[0], code[1]]),
                        None => return seen,
                    },
                };
                seen.close = seen.close.or(Some(code));
            }
            (10, Some(token)) if frame.length == 8 => {
                let Some(answer) = unmasked(8) else { return seen };
                if answer[..7] == token.payload()[..7] {
                    seen.pong = Some(answer[7]);
                    at += frame.head + 8;
                    continue;
                }
            }
            _ => {}
        }
        let is_control = frame.opcode >= 8;
        if !is_control {
            // What comes between the first and the last fragment belongs to the message, whatever it is.
            let is_whole = frame.is_last && message == 0;
            let ends = is_whole || (frame.is_last && frame.opcode == 0);
            message = message.saturating_add(frame.length);
            if message > heed.limit {
                return Seen { fault: Some(PipeError::MessageTooBig), ..seen };
            }
            if ends {
                message = 0;
            }
        }
        if let Some(kind) = [1, 2, 9, 10, 8].iter().position(|opcode| *opcode == frame.opcode) {
            seen.tally[kind] += 1;
        }
        let length = frame.length.saturating_add(frame.head as u64).min(rest.len() as u64) as usize;
        seen.out.extend_from_slice(&rest[..length]);
        at += length;
    }
    seen
}

/// A header by the table of RFC 6455, section 5.2.
struct Frame {
    is_last: bool,
    opcode: u8,
    length: u64,
    head: usize,
    mask: [u8; 4],
}

impl Frame {
    /// `None` while bytes are missing, an error when no frame begins like this.
    fn of(bytes: &[u8]) -> Option<Result<Self, ()>> {
        let (&first, &second) = (bytes.first()?, bytes.get(1)?);
        let opcode = first & 15;
        let short = second & 127;
        if opcode >= 8 && (short > 125 || first < 128) {
            return Some(Err(()));
        }
        let extra = match short {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let long = bytes.get(2..2 + extra)?;
        let length = if extra == 0 {
            u64::from(short)
        } else {
            long.iter().fold(0, |length, byte| length << 8 | u64::from(*byte))
        };
        if length >> 63 != 0 {
            return Some(Err(()));
        }
        let mut mask = [0; 4];
        let masked = second >= 128;
        if masked {
            mask.copy_from_slice(bytes.get(2 + extra..6 + extra)?);
        }
        Some(Ok(Self {
            is_last: first >= 128,
            opcode,
            length,
            head: 2 + extra + if masked { 4 } else { 0 },
            mask,
        }))
    }
}

/// The frame that the pipe puts in: it cannot be mistaken for one of the stream's, as no stream here holds it.
const OWN: &[u8] = b"\x89\x10<<<own frame>>>>";
const LAST: &[u8] = b"\x88\x10\x03\xe9<<<the last>>>";

/// One input: limit and pings, how the stream is cut, before which piece what is put in, then the stream.
pub fn pipe(data: &[u8]) {
    let mut input = Input::new(data);
    let Setting { heed, seed } = Setting::read(&mut input);
    let (own_at, last_at) = (usize::from(input.byte()), usize::from(input.byte()));
    let stream = input.rest();
    if stream.windows(3).any(|window| window == b"<<<") {
        return;
    }
    let expected = decode(stream, heed);
    let (mut pipe, mut out) = (Pipe::default(), Vec::new());
    let (mut tally, mut fault, mut piece) = (MessageCounts::default(), None, Vec::new());
    let mut bytes = 0;
    for (index, part) in Pieces::new(seed, stream.len()).enumerate() {
        if index == own_at {
            pipe.inject(OWN.to_vec(), false, |part| out.extend_from_slice(part));
        }
        if index == last_at {
            pipe.inject(LAST.to_vec(), true, |part| out.extend_from_slice(part));
        }
        piece.clear();
        piece.extend_from_slice(pipe.held());
        piece.extend_from_slice(&stream[part]);
        bytes += piece.len() - pipe.held().len();
        let seen = pipe.feed(&piece, heed, &mut tally, |part| out.extend_from_slice(part));
        fault = fault.or(seen.error);
    }
    assert_eq!((pipe.bytes(), bytes), (stream.len() as u64, stream.len()));
    assert_eq!(pipe.messages(), u64::from(tally[0] + tally[1]));
    check(&out, &expected);
    if last_at > stream.len() {
        assert_eq!(fault, expected.fault, "{}", stream.escape_ascii());
    }
    assert!(expected.fault.is_some() || tally == expected.tally);
    assert!(expected.close.is_none() || pipe.close_code() == expected.close);
}

/// What came out is the head of what goes on, with our own frames between two of the peer's and nothing behind the
/// last one (invariant I6).
fn check(out: &[u8], expected: &Seen) {
    let (mut bare, mut rest, mut has_ended) = (Vec::new(), out, false);
    loop {
        let marks = [OWN, LAST].map(|own| rest.windows(own.len()).position(|window| window == own));
        let (at, own) = match marks {
            [Some(own), Some(last)] if own < last => (own, OWN),
            [_, Some(last)] => (last, LAST),
            [Some(own), None] => (own, OWN),
            [None, None] => break,
        };
        assert!(!has_ended, "something goes out behind the balancer's Close");
        bare.extend_from_slice(&rest[..at]);
        assert!(is_boundary(&bare), "a frame is put inside another one");
        has_ended = own == LAST;
        rest = &rest[at + own.len()..];
    }
    assert!(!has_ended || rest.is_empty(), "something goes out behind the balancer's Close");
    bare.extend_from_slice(rest);
    assert!(expected.out.starts_with(&bare), "{} {}", bare.escape_ascii(), expected.out.escape_ascii());
    // Behind a Close of the peer's ours is not put in, and nothing more goes on.
    let is_closed =
        is_boundary(&bare) && decode(&bare, ScanOptions { limit: u64::MAX, pings: None }).close.is_some();
    assert!(has_ended || is_closed || bare == expected.out, "something is lost");
}

/// Whether these bytes are whole frames.
fn is_boundary(mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        let Some(Ok(frame)) = Frame::of(bytes) else { return false };
        let whole = frame.length.saturating_add(frame.head as u64);
        if whole > bytes.len() as u64 {
            return false;
        }
        bytes = &bytes[whole as usize..];
    }
    true
}
