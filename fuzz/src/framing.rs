//! Request framing: the framer against itself in other pieces, against `httparse`, and against the small strict
//! reader of RFC 9112 in [`reference`](super::reference).

use mainstay::http::framing::{ChunkedBodyError, Framer, FramingStep, HeadError};

use super::input::{Input, Pieces};
use super::reference::{Follows, Message, Stop, follow};

/// Bytes that a head may have here.
const LIMIT: usize = 512;

/// What a stream led to.
#[derive(Debug, PartialEq)]
struct Seen {
    /// Where each released head lies in the stream.
    heads: Vec<(usize, usize)>,
    /// The bytes that were taken, those that were skipped among them.
    taken: usize,
    /// Why nothing followed; [`FramingStep::More`] when more may.
    stop: FramingStep,
}

/// One input: how the stream is cut, then the stream.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let seed = input.byte();
    let stream = input.rest();
    let seen = frame(stream, 0);
    if seed != 0 {
        assert_eq!(frame(stream, seed), seen, "in pieces it is another stream");
    }
    for &(start, end) in &seen.heads {
        agrees_with_httparse(&stream[start..end]);
    }
    compare(stream, &seen);
}

/// Shows the framer a stream in pieces.
fn frame(stream: &[u8], seed: u8) -> Seen {
    let mut framer = Framer::new(LIMIT);
    let mut seen = Seen { heads: Vec::new(), taken: 0, stop: FramingStep::More };
    let (mut end, mut pieces) = (0, Pieces::new(seed, stream.len()));
    loop {
        let shown = &stream[seen.taken..end];
        match framer.next(shown) {
            FramingStep::More => match pieces.next() {
                Some(piece) => end = piece.end,
                None => return seen,
            },
            FramingStep::Skip(length) => {
                assert!(length > 0 && length <= shown.len());
                seen.taken += length;
            }
            FramingStep::Head(length) => {
                assert!(length > 0 && length <= shown.len().min(LIMIT));
                seen.heads.push((seen.taken, seen.taken + length));
                seen.taken += length;
            }
            FramingStep::Body(length) => {
                assert!(length > 0 && length <= shown.len());
                seen.taken += length;
            }
            stop @ (FramingStep::HeadError(_) | FramingStep::BodyError(_) | FramingStep::Hold) => {
                assert_eq!(framer.next(&stream[seen.taken..]), stop, "a stop is for good");
                seen.stop = stop;
                return seen;
            }
        }
    }
}

/// What the framer has let through, another parser reads, and reads the same.
fn agrees_with_httparse(head: &[u8]) {
    let mut fields = [httparse::EMPTY_HEADER; 128];
    let mut request = httparse::Request::new(&mut fields);
    let parsed = request.parse(head);
    assert_eq!(parsed, Ok(httparse::Status::Complete(head.len())), "{}", head.escape_ascii());
    let lines: Vec<&[u8]> = super::reference::lines(head).expect("the framer looks at the ends of lines");
    let words: Vec<&[u8]> = lines[0].split(|&byte| byte == b' ').collect();
    assert_eq!(request.method.map(str::as_bytes), Some(words[0]));
    assert_eq!(request.path.map(str::as_bytes), Some(words[1]));
    assert_eq!(request.version, Some(u8::from(words[2] == b"HTTP/1.1")));
    assert_eq!(request.headers.len(), lines.len() - 1);
    for (field, line) in request.headers.iter().zip(&lines[1..]) {
        let (name, value) = super::reference::field(line).expect("the framer looks at field lines");
        assert_eq!((field.name.as_bytes(), field.value), (name, value));
    }
}

/// The framer may be stricter than the reference about what a host or a target is, and about sizes; never laxer, and
/// never of another mind about where a message ends.
fn compare(stream: &[u8], seen: &Seen) {
    let (messages, stop) = follow(stream);
    let heads: Vec<(usize, usize)> = messages.iter().map(|message| message.head).collect();
    match seen.stop {
        FramingStep::Skip(_) | FramingStep::Head(_) | FramingStep::Body(_) => {
            unreachable!("these are no stops")
        }
        FramingStep::More => {
            assert!(!matches!(stop, Stop::Fault), "the reference finds a fault: {}", stream.escape_ascii());
            assert_eq!(seen.heads, heads, "{}", stream.escape_ascii());
        }
        FramingStep::Hold => {
            assert_eq!(seen.heads[..], heads[..seen.heads.len()]);
            let last = messages[seen.heads.len() - 1];
            assert!(matches!(last.follows, Follows::Upgrade | Follows::OtherUpgrade(_)));
        }
        FramingStep::HeadError(fault) => {
            let before = seen.heads.len();
            assert_eq!(seen.heads[..], heads[..before.min(heads.len())], "{}", stream.escape_ascii());
            refused_with_reason(fault, messages.get(before), stream);
        }
        FramingStep::BodyError(fault) => {
            let before = seen.heads.len();
            assert_eq!(seen.heads[..], heads[..before]);
            // The reference knows no limits, and sees a fault in a line only once the line has ended.
            let is_size = matches!(fault, ChunkedBodyError::TrailersTooLarge | ChunkedBodyError::ChunkLine);
            assert!(is_size || heads.len() == before, "{fault:?} {}", stream.escape_ascii());
            assert!(
                messages[before - 1].follows == Follows::Chunks
                    || matches!(messages[before - 1].follows, Follows::OtherUpgrade(true))
            );
        }
    }
}

/// A head that the reference takes is refused only for what the reference does not look at.
fn refused_with_reason(fault: HeadError, message: Option<&Message>, stream: &[u8]) {
    let is_beyond_the_reference = matches!(
        fault,
        HeadError::TooLarge(_)
            | HeadError::TooManyFields(_)
            | HeadError::Target
            | HeadError::Host
            | HeadError::HostDiffers
            | HeadError::LeadingLines
    );
    assert!(message.is_none() || is_beyond_the_reference, "{fault:?} {}", stream.escape_ascii());
}
