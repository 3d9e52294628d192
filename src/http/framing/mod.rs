//! The framing of HTTP/1 requests as a client sends them: which bytes are a head, which are its body, and where the
//! next head begins. Strict, so that no two readers of the same bytes can disagree (RFC 9112, 11.2).
//!
//! It does no I/O and keeps no bytes. Its owner passes in the bytes that are not released yet ([`Framer::next`]) and
//! does what the [`FramingStep`] says. A faulty head, and whatever comes behind it, is never released; nor is anything
//! behind a head that asks for an upgrade.

mod chunked;
mod error;
mod head;

use chunked::ChunkedState;
use head::{BodyFraming, check_head};

pub use error::{ChunkedBodyError, HeadError};

/// What the owner of the bytes does next. Lengths count from the first byte that was passed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FramingStep {
    /// Undecided: call again with the same bytes and more behind them.
    More,
    /// Drop so many: the empty line that may stand before a head.
    Skip(usize),
    /// Release so many: one whole, sound head.
    Head(usize),
    /// Release so many, at least one: bytes of a body.
    Body(usize),
    /// Release nothing from here on: what should be a head is not.
    HeadError(HeadError),
    /// Release nothing from here on: the body has lost its framing.
    BodyError(ChunkedBodyError),
    /// Release nothing from here on: the last head asked for an upgrade.
    Hold,
}

/// Follows one client's stream through heads and bodies.
#[derive(Debug)]
pub struct Framer {
    state: FramerState,
    /// Bytes that one head may have, with its empty line.
    limit: usize,
    /// Bytes of the next head that were scanned already.
    scanned: usize,
    /// The empty line before the next head was skipped.
    has_skipped: bool,
}

/// What the next byte belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FramerState {
    Head,
    /// Bytes left, at least one.
    Body(u64),
    Chunks(ChunkedState),
    Upgrade,
    HeadFailed(HeadError),
    BodyFailed(ChunkedBodyError),
}

impl Framer {
    /// `limit` is the most bytes that a request head may have.
    pub fn new(limit: usize) -> Self {
        Self { state: FramerState::Head, limit, scanned: 0, has_skipped: false }
    }

    /// Decides about the bytes that are not released yet, given all of them.
    pub fn next(&mut self, bytes: &[u8]) -> FramingStep {
        match self.state {
            FramerState::Head => self.scan_head(bytes),
            _ if bytes.is_empty() => self.without_bytes(),
            FramerState::Body(left) => {
                let here = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                let left = left - here as u64;
                self.state = if left == 0 { FramerState::Head } else { FramerState::Body(left) };
                FramingStep::Body(here)
            }
            FramerState::Chunks(chunked) => self.follow_chunks(chunked, bytes),
            FramerState::Upgrade | FramerState::HeadFailed(_) | FramerState::BodyFailed(_) => {
                self.without_bytes()
            }
        }
    }

    /// The next byte belongs to a head, or stands before one.
    pub(crate) fn is_at_head(&self) -> bool {
        self.state == FramerState::Head
    }

    /// A body is being passed on.
    pub(crate) fn is_in_body(&self) -> bool {
        matches!(self.state, FramerState::Body(_) | FramerState::Chunks(_))
    }

    /// Bytes that certainly belong to the body of the current request, whatever they are.
    pub(crate) fn body_left(&self) -> u64 {
        match self.state {
            FramerState::Body(left) => left,
            _ => 0,
        }
    }

    fn without_bytes(&self) -> FramingStep {
        match self.state {
            FramerState::Head | FramerState::Body(_) | FramerState::Chunks(_) => FramingStep::More,
            FramerState::Upgrade => FramingStep::Hold,
            FramerState::HeadFailed(error) => FramingStep::HeadError(error),
            FramerState::BodyFailed(error) => FramingStep::BodyError(error),
        }
    }

    fn scan_head(&mut self, bytes: &[u8]) -> FramingStep {
        if self.scanned == 0 && bytes.starts_with(b"\r\n") {
            if self.has_skipped {
                return self.refuse(HeadError::LeadingLines);
            }
            self.has_skipped = true;
            return FramingStep::Skip(2);
        }
        match self.find_end(bytes) {
            Err(error) => self.refuse(error),
            Ok(None) if bytes.len() >= self.limit => self.refuse(HeadError::TooLarge(self.limit)),
            Ok(None) => FramingStep::More,
            Ok(Some(end)) => self.accept_head(&bytes[..end]),
        }
    }

    /// Where the head ends, if it does so within the limit. Control bytes and broken line ends are found as they
    /// come in: a head of bare LFs has no end to wait for.
    fn find_end(&mut self, bytes: &[u8]) -> Result<Option<usize>, HeadError> {
        let within = &bytes[..bytes.len().min(self.limit)];
        for at in self.scanned..within.len() {
            let after_cr = at > 0 && within[at - 1] == b'\r';
            match within[at] {
                b'\n' if !after_cr => return Err(HeadError::BareLf),
                b'\n' if within[..at].ends_with(b"\r\n\r") => return Ok(Some(at + 1)),
                b'\n' => {}
                _ if after_cr => return Err(HeadError::BareCr),
                b'\r' | b'\t' => {}
                byte if byte.is_ascii_control() => return Err(HeadError::Control(byte)),
                _ => {}
            }
        }
        // A CR at the very front may still become the empty line before the head, so it is looked at again.
        self.scanned = if within == b"\r" { 0 } else { within.len() };
        Ok(None)
    }

    fn accept_head(&mut self, head: &[u8]) -> FramingStep {
        self.state = match check_head(head) {
            Err(error) => return self.refuse(error),
            Ok(BodyFraming::Empty) => FramerState::Head,
            Ok(BodyFraming::Length(length)) => FramerState::Body(length),
            Ok(BodyFraming::Chunked) => FramerState::Chunks(ChunkedState::START),
            Ok(BodyFraming::Upgrade) => FramerState::Upgrade,
        };
        self.scanned = 0;
        self.has_skipped = false;
        FramingStep::Head(head.len())
    }

    fn refuse(&mut self, error: HeadError) -> FramingStep {
        self.state = FramerState::HeadFailed(error);
        FramingStep::HeadError(error)
    }

    fn follow_chunks(&mut self, mut chunked: ChunkedState, bytes: &[u8]) -> FramingStep {
        let (taken, error) = chunked.advance(bytes);
        self.state = match error {
            Some(error) => FramerState::BodyFailed(error),
            None if chunked == ChunkedState::End => FramerState::Head,
            None => FramerState::Chunks(chunked),
        };
        if taken == 0 { self.without_bytes() } else { FramingStep::Body(taken) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::chunked::{MAX_EXTENSION, MAX_TRAILERS};
    use super::head::MAX_FIELDS;
    use super::*;

    const LIMIT: usize = 512;

    /// What a stream led to: the released bytes, and why nothing followed (`Step::More` when more may).
    #[derive(Debug, PartialEq)]
    struct Seen {
        released: Vec<u8>,
        heads: usize,
        stop: FramingStep,
    }

    /// Shows the framer a stream in pieces of the given sizes, over and over.
    fn follow(stream: &[u8], pieces: &[usize]) -> Seen {
        let mut framer = Framer::new(LIMIT);
        let mut seen = Seen { released: Vec::new(), heads: 0, stop: FramingStep::More };
        let (mut front, mut end) = (0, 0);
        let mut sizes = pieces.iter().cycle();
        loop {
            match framer.next(&stream[front..end]) {
                FramingStep::More if end == stream.len() => return seen,
                FramingStep::More => end = stream.len().min(end + sizes.next().expect("pieces are given")),
                FramingStep::Skip(length) => front += length,
                FramingStep::Head(length) => {
                    seen.heads += 1;
                    seen.released.extend_from_slice(&stream[front..front + length]);
                    front += length;
                }
                FramingStep::Body(length) => {
                    assert!(length > 0);
                    seen.released.extend_from_slice(&stream[front..front + length]);
                    front += length;
                }
                stop => {
                    assert_eq!(framer.next(&stream[front..]), stop, "a stop is for good");
                    assert_eq!(framer.next(b""), stop, "a stop is for good");
                    seen.stop = stop;
                    return seen;
                }
            }
        }
    }

    /// The fault of a stream, whole and byte by byte, which must agree; nothing of the head may be released.
    fn fault_of(head: &[u8]) -> HeadError {
        let seen = follow(head, &[usize::MAX / 2]);
        assert_eq!(follow(head, &[1]), seen, "{}", head.escape_ascii());
        assert_eq!(seen.released, b"", "{}", head.escape_ascii());
        match seen.stop {
            FramingStep::HeadError(fault) => fault,
            other => panic!("{other:?} for {}", head.escape_ascii()),
        }
    }

    fn fault_with(fields: &str) -> HeadError {
        fault_of(format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n").as_bytes())
    }

    fn fault_with_line(line: &str) -> HeadError {
        fault_of(format!("{line}\r\nHost: a\r\n\r\n").as_bytes())
    }

    fn is_released_whole(stream: &[u8]) {
        for pieces in [&[usize::MAX / 2][..], &[1], &[3, 1, 7]] {
            let seen = follow(stream, pieces);
            assert_eq!(seen.stop, FramingStep::More, "{}", stream.escape_ascii());
            assert_eq!(seen.released, stream, "{}", stream.escape_ascii());
        }
    }

    #[test]
    fn sound_requests_are_released_as_they_are() {
        for stream in [
            &b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..],
            b"GET / HTTP/1.0\r\n\r\n",
            b"GET /a?b=c%20d HTTP/1.1\r\nhost:a.example:8080\r\nx:\t y \t\r\nempty:\r\n\r\n",
            b"GET http://A.example/x HTTP/1.1\r\nHost: a.example\r\n\r\n",
            b"OPTIONS * HTTP/1.1\r\nHost: [::1]:80\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhelloGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0A;x=\"y\"\r\n0123456789\r\n\
              000\r\nA: b\r\nc:\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\nx-latin: \xe9t\xe9\r\n\r\n",
        ] {
            is_released_whole(stream);
        }
    }

    #[test]
    fn a_line_ends_in_cr_lf_and_nothing_else() {
        assert_eq!(fault_of(b"GET / HTTP/1.1\nHost: a\n\n"), HeadError::BareLf);
        assert_eq!(fault_of(b"GET / HTTP/1.1\r\nHost: a\r\n\n"), HeadError::BareLf);
        assert_eq!(fault_of(b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"), HeadError::BareLf);
        assert_eq!(fault_of(b"GET / HTTP/1.1\r\nHost: a\rX: y\r\n\r\n"), HeadError::BareCr);
        assert_eq!(fault_of(b"\rGET / HTTP/1.1\r\nHost: a\r\n\r\n"), HeadError::BareCr);
        assert_eq!(fault_of(b"GET / HTTP/1.1\r\nHost: a\r\r\n\r\n"), HeadError::BareCr);
    }

    #[test]
    fn control_bytes_are_refused_at_once() {
        assert_eq!(fault_of(b"GET / HTTP/1.1\r\nHost: a\r\nx: a\0b"), HeadError::Control(0));
        assert_eq!(fault_of(b"GET /\x7f HTTP/1.1\r\n"), HeadError::Control(0x7f));
        // A TLS hello on a plain port.
        assert_eq!(fault_of(b"\x16\x03\x01\x02\x00"), HeadError::Control(0x16));
    }

    #[test]
    fn one_empty_line_may_stand_before_a_head_and_is_dropped() {
        let seen = follow(b"\r\nGET / HTTP/1.0\r\n\r\n\r\nGET /2 HTTP/1.0\r\n\r\n", &[1]);
        assert_eq!((seen.heads, seen.stop), (2, FramingStep::More));
        assert_eq!(seen.released, b"GET / HTTP/1.0\r\n\r\nGET /2 HTTP/1.0\r\n\r\n");
        assert_eq!(fault_of(b"\r\n\r\nGET / HTTP/1.0\r\n\r\n"), HeadError::LeadingLines);
    }

    #[test]
    fn a_request_line_is_three_words() {
        for line in
            ["GET /", "GET  / HTTP/1.1", "GET / HTTP/1.1 ", " GET / HTTP/1.1", "GET / a HTTP/1.1", "x"]
        {
            assert_eq!(fault_with_line(line), HeadError::RequestLine, "{line}");
        }
        assert_eq!(fault_with_line("G@T / HTTP/1.1"), HeadError::Method);
        assert_eq!(fault_with_line("GET\t / HTTP/1.1"), HeadError::Method);
        for version in ["HTTP/2.0", "HTTP/1.2", "HTTP/0.9", "http/1.1", "HTTP/1.1x", "ICY"] {
            assert_eq!(fault_with_line(&format!("GET / {version}")), HeadError::Version, "{version}");
        }
        assert_eq!(fault_of(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), HeadError::Http2Preface);
    }

    #[test]
    fn a_target_has_the_form_of_its_method() {
        for target in
            ["a", "*", "a.example:80", "/a#b", "/<", "ftp://a/", "http://", "http:///x", "http://u@a/", "?"]
        {
            assert_eq!(fault_with_line(&format!("GET {target} HTTP/1.1")), HeadError::Target, "{target}");
        }
        assert_eq!(fault_with_line("CONNECT / HTTP/1.1"), HeadError::Target);
        assert_eq!(fault_with_line("GET /\u{e9} HTTP/1.1"), HeadError::TargetNotAscii);
    }

    #[test]
    fn there_is_one_host_and_the_target_agrees() {
        assert_eq!(fault_of(b"GET / HTTP/1.1\r\n\r\n"), HeadError::NoHost);
        assert_eq!(fault_of(b"GET http://a/ HTTP/1.1\r\n\r\n"), HeadError::NoHost);
        assert_eq!(fault_with("host: a"), HeadError::TwoHosts);
        assert_eq!(fault_with("HOST: b"), HeadError::TwoHosts);
        assert_eq!(fault_with_line("GET http://b/ HTTP/1.1"), HeadError::HostDiffers);
        assert_eq!(fault_with_line("GET http://a:81/ HTTP/1.1"), HeadError::HostDiffers);
        assert_eq!(fault_with_line("GET http://b/ HTTP/1.0"), HeadError::HostDiffers);
        assert_eq!(fault_with_line("CONNECT b:80 HTTP/1.1"), HeadError::HostDiffers);
        for host in ["", "a b", "a/b", "u@a", "a:b", "a:99999", "a:", ":80", "a?b", "a\u{e9}"] {
            let head = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
            assert_eq!(fault_of(head.as_bytes()), HeadError::Host, "{host:?}");
        }
    }

    #[test]
    fn a_field_is_a_token_a_colon_and_a_value_on_one_line() {
        for line in ["x : y", ": y", "x", "x\ty: z", "x(: y", "\u{e9}: y"] {
            assert_eq!(fault_with(line), HeadError::FieldName, "{line}");
        }
        assert_eq!(fault_with("x: y\r\n z"), HeadError::ObsFold);
        assert_eq!(fault_with("x: y\r\n\tz"), HeadError::ObsFold);
        // Before the first field, too: some readers would make it a part of the request line.
        assert_eq!(fault_of(b"GET / HTTP/1.1\r\n Host: a\r\n\r\n"), HeadError::ObsFold);
    }

    #[test]
    fn transfer_encoding_is_chunked_once_or_nothing() {
        for value in [
            "gzip, chunked",
            "chunked, gzip",
            "xchunked",
            "identity",
            "",
            "chunked,",
            "chunked;a=b",
            "\"chunked\"",
        ] {
            assert_eq!(
                fault_with(&format!("Transfer-Encoding: {value}")),
                HeadError::TransferEncoding,
                "{value}"
            );
        }
        for again in ["chunked", "identity", "gzip"] {
            let fields = format!("Transfer-Encoding: chunked\r\ntransfer-encoding: {again}");
            assert_eq!(fault_with(&fields), HeadError::TransferEncoding);
        }
        // Vertical tabs and form feeds are control bytes, and a no-break space is no white space.
        assert_eq!(fault_with("Transfer-Encoding:\u{b}chunked"), HeadError::Control(0xb));
        assert_eq!(fault_with("Transfer-Encoding: \u{a0}chunked"), HeadError::TransferEncoding);
    }

    #[test]
    fn transfer_encoding_and_content_length_exclude_each_other() {
        let (encoding, length) = ("Transfer-Encoding: chunked", "Content-Length: 5");
        assert_eq!(fault_with(&format!("{encoding}\r\n{length}")), HeadError::EncodingAndLength);
        assert_eq!(fault_with(&format!("{length}\r\n{encoding}")), HeadError::EncodingAndLength);
        assert_eq!(
            fault_of(format!("POST / HTTP/1.0\r\n{encoding}\r\n\r\n").as_bytes()),
            HeadError::EncodingInHttp10
        );
    }

    #[test]
    fn content_length_is_one_plain_number() {
        for value in ["", "+5", "-5", "5, 5", "5,5", "0x5", "5 5", "5.0", "9223372036854775808", "\u{665}"] {
            assert_eq!(fault_with(&format!("Content-Length: {value}")), HeadError::ContentLength, "{value}");
        }
        assert_eq!(fault_with("Content-Length: 5\r\nContent-Length: 5"), HeadError::TwoLengths);
        assert_eq!(fault_with("Content-Length: 5\r\ncontent-length: 6"), HeadError::TwoLengths);
    }

    #[test]
    fn a_head_has_a_limit_in_bytes_and_fields() {
        let head = |length: usize| {
            let mut head = b"GET / HTTP/1.1\r\nHost: a\r\nx: ".to_vec();
            head.resize(length - 4, b'a');
            head.extend_from_slice(b"\r\n\r\n");
            head
        };
        is_released_whole(&head(LIMIT));
        assert_eq!(fault_of(&head(LIMIT + 1)), HeadError::TooLarge(LIMIT));
        assert_eq!(fault_of(&head(LIMIT + 4)[..LIMIT]), HeadError::TooLarge(LIMIT));
        let fields = |count: usize| format!("GET / HTTP/1.0\r\n{}\r\n", "a:\r\n".repeat(count));
        is_released_whole(fields(MAX_FIELDS).as_bytes());
        assert_eq!(fault_of(fields(MAX_FIELDS + 1).as_bytes()), HeadError::TooManyFields(MAX_FIELDS));
    }

    #[test]
    fn nothing_behind_an_upgrade_is_released() {
        for head in [
            &b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"[..],
            b"GET / HTTP/1.1\r\nHost: a\r\nUPGRADE: h2c,WebSocket\r\nContent-Length: 3\r\n\r\n",
            b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n",
        ] {
            let stream = [head, b"abcGET / HTTP/1.0\r\n\r\n"].concat();
            let seen = follow(&stream, &[5]);
            assert_eq!((seen.released.as_slice(), seen.stop), (head, FramingStep::Hold));
        }
    }

    #[test]
    fn an_upgrade_to_anything_but_websocket_changes_no_framing() {
        is_released_whole(b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nContent-Length: 3\r\n\r\nabc");
        is_released_whole(b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: TLS/1.2, websockets\r\n\r\n");
    }

    #[test]
    fn nothing_at_or_behind_a_faulty_head_is_released() {
        let good = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        let stream = [good, &b"GET /bad HTTP/1.1\r\n\r\n"[..], good].concat();
        let seen = follow(&stream, &[4]);
        assert_eq!(
            (seen.released.as_slice(), seen.stop),
            (&good[..], FramingStep::HeadError(HeadError::NoHost))
        );
    }

    fn body_fault(body: &[u8]) -> ChunkedBodyError {
        let head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        let stream = [head, body].concat();
        let seen = follow(&stream, &[usize::MAX / 2]);
        assert_eq!(follow(&stream, &[1]), seen);
        match seen.stop {
            FramingStep::BodyError(fault) => fault,
            other => panic!("{other:?} for {}", body.escape_ascii()),
        }
    }

    #[test]
    fn chunks_are_strict() {
        for size in
            ["\r\n", ";x\r\n", "g\r\n", "0x5\r\n", "+5\r\n", "-1\r\n", " 5\r\n", "5 \r\n", "5\n", "5_\r\n"]
        {
            assert_eq!(body_fault(size.as_bytes()), ChunkedBodyError::ChunkSize, "{size:?}");
        }
        assert_eq!(body_fault(b"00000000000000000\r\n"), ChunkedBodyError::ChunkSize);
        for line in ["5\r\r", "5;a\n", "5;a\0", "5;a\r\r\n"] {
            assert_eq!(body_fault(line.as_bytes()), ChunkedBodyError::ChunkLine, "{line:?}");
        }
        let extension = |length: usize| format!("1{}\r\nx\r\n", ";".repeat(length));
        assert_eq!(
            body_fault(extension(usize::from(MAX_EXTENSION) + 1).as_bytes()),
            ChunkedBodyError::ChunkLine
        );
        assert_eq!(
            body_fault((extension(usize::from(MAX_EXTENSION)) + "!").as_bytes()),
            ChunkedBodyError::ChunkSize
        );
        for data in ["1\r\nxy", "1\r\nx\n", "1\r\nx\rx"] {
            assert_eq!(body_fault(data.as_bytes()), ChunkedBodyError::ChunkEnd, "{data:?}");
        }
        // 16 digits are a size of 64 bits, which cannot wrap around to a small one.
        let whole =
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nabc";
        is_released_whole(whole);
    }

    #[test]
    fn trailers_are_strict_and_bounded() {
        for line in ["x\r\n", ":y\r\n", "x :y\r\n", " x: y\r\n", "x: y\n", "x: y\r\r", "x: \0", "\n", "\rx"] {
            assert_eq!(body_fault(format!("0\r\n{line}").as_bytes()), ChunkedBodyError::Trailer, "{line:?}");
        }
        let long = format!("0\r\nx:{}", "y".repeat(usize::from(MAX_TRAILERS)));
        assert_eq!(body_fault(long.as_bytes()), ChunkedBodyError::TrailersTooLarge);
    }

    #[test]
    fn every_fault_says_what_is_wrong_and_what_is_right() {
        use HeadError::*;
        let faults = [BareLf, BareCr, LeadingLines, RequestLine, Method, TargetNotAscii, Target, Version];
        let more = [Http2Preface, FieldName, ObsFold, NoHost, TwoHosts, Host, HostDiffers, TransferEncoding];
        let rest = [EncodingAndLength, EncodingInHttp10, TwoLengths, ContentLength, TooSlow, Control(0)];
        for fault in [&faults[..], &more, &rest, &[TooLarge(9)], &[TooManyFields(9)]].concat() {
            assert!(fault.to_string().contains("; "), "{fault:?}");
        }
    }

    fn sound_request() -> impl Strategy<Value = Vec<u8>> {
        let body = prop::collection::vec(any::<u8>(), 0..40);
        (0..3u8, body, prop::collection::vec(1..9usize, 1..4), any::<bool>()).prop_map(
            |(kind, body, sizes, blank)| {
                let mut request = if blank { b"\r\n".to_vec() } else { Vec::new() };
                request.extend_from_slice(b"POST /p HTTP/1.1\r\nHost: a\r\n");
                match kind {
                    0 => request.extend_from_slice(b"\r\n"),
                    1 => {
                        request
                            .extend_from_slice(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
                        request.extend_from_slice(&body);
                    }
                    _ => {
                        request.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
                        for chunk in body.chunks(sizes[0]) {
                            request.extend_from_slice(format!("{:X};e\r\n", chunk.len()).as_bytes());
                            request.extend_from_slice(chunk);
                            request.extend_from_slice(b"\r\n");
                        }
                        request.extend_from_slice(b"0\r\nt: v\r\n\r\n");
                    }
                }
                request
            },
        )
    }

    proptest! {
        #[test]
        fn where_a_stream_is_cut_makes_no_difference(
            requests in prop::collection::vec(sound_request(), 1..5),
            pieces in prop::collection::vec(1..60usize, 1..20),
        ) {
            let stream = requests.concat();
            let whole = follow(&stream, &[usize::MAX / 2]);
            prop_assert_eq!(whole.heads, requests.len());
            prop_assert_eq!(&whole.stop, &FramingStep::More);
            prop_assert_eq!(follow(&stream, &pieces), whole);
        }

        #[test]
        fn a_broken_byte_anywhere_reads_the_same_in_any_pieces(
            requests in prop::collection::vec(sound_request(), 1..4),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
            pieces in prop::collection::vec(1..60usize, 1..20),
        ) {
            let mut stream = requests.concat();
            let at = at.index(stream.len());
            stream[at] = byte;
            let whole = follow(&stream, &[usize::MAX / 2]);
            // What is released is the stream as it came, but for the empty lines.
            prop_assert!(whole.released.len() <= stream.len());
            prop_assert_eq!(follow(&stream, &pieces), whole);
        }

        #[test]
        fn garbage_never_panics(
            garbage in prop::collection::vec(prop_oneof![any::<u8>(), Just(b'\r'), Just(b'\n'), Just(b':')], 0..700),
            pieces in prop::collection::vec(1..90usize, 1..9),
        ) {
            let seen = follow(&garbage, &pieces);
            prop_assert!(seen.released.len() <= garbage.len());
        }

        #[test]
        fn a_faulty_head_ends_what_is_released(
            requests in prop::collection::vec(sound_request(), 0..4),
            pieces in prop::collection::vec(1..60usize, 1..20),
            behind in prop::collection::vec(any::<u8>(), 0..60),
        ) {
            let sound = requests.concat();
            let before = follow(&sound, &[1]);
            let stream = [&sound[..], b"GET /bad HTTP/1.1\r\nHost : a\r\n\r\n", &behind].concat();
            let seen = follow(&stream, &pieces);
            prop_assert_eq!(seen.released, before.released);
            prop_assert_eq!(seen.stop, FramingStep::HeadError(HeadError::FieldName));
        }
    }
}
