//! What is wrong with the bytes of a client, in words from which the client's author can correct it.
//!
//! The errors are the client's, never the balancer's. Which status answers them is decided in `reply`.

use std::fmt;

/// Why a request head is refused. Nothing at or after a refused head is ever passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HeadError {
    /// A line feed without a carriage return before it (RFC 9112, 2.2: a proxy may not guess).
    BareLf,
    /// A carriage return without a line feed behind it (RFC 9112, 2.2).
    BareCr,
    /// NUL or another control byte, which is given.
    Control(u8),
    /// More than one empty line before the request line (RFC 9112, 2.2).
    LeadingLines,
    /// The request line is not three words with one space between them (RFC 9112, 3).
    RequestLine,
    /// The method is not a token (RFC 9110, 9.1).
    Method,
    /// The target has a byte outside ASCII (RFC 9112, 3.2).
    TargetNotAscii,
    /// The target is in none of the four forms, or not in the one that its method needs (RFC 9112, 3.2).
    Target,
    /// The third word is not `HTTP/1.1` or `HTTP/1.0`.
    Version,
    /// The preface of HTTP/2 on a connection that speaks HTTP/1.
    Http2Preface,
    /// A field name that is empty or not a token, or a line without a colon (RFC 9112, 5.1).
    FieldName,
    /// A field value that goes on in a second line (RFC 9112, 5.2).
    ObsFold,
    /// More field lines than the limit, which is given.
    TooManyFields(usize),
    /// The head is longer than the limit in bytes, which is given.
    TooLarge(usize),
    /// HTTP/1.1 without a Host line (RFC 9112, 3.2).
    NoHost,
    /// More than one Host line (RFC 9112, 3.2).
    TwoHosts,
    /// The Host value is not a host with an optional port (RFC 9110, 7.2).
    Host,
    /// The target names another authority than Host does (RFC 9112, 3.2.2).
    HostDiffers,
    /// Transfer-Encoding is anything but `chunked`, once (RFC 9112, 6.1).
    TransferEncoding,
    /// Transfer-Encoding and Content-Length in one request (RFC 9112, 6.1 and 11.2).
    EncodingAndLength,
    /// Transfer-Encoding in HTTP/1.0 (RFC 9112, 6.1).
    EncodingInHttp10,
    /// More than one Content-Length line, equal or not (RFC 9110, 8.6).
    TwoLengths,
    /// Content-Length is not plain digits, or is over 2^63 − 1 (RFC 9110, 8.6).
    ContentLength,
    /// The head was begun and not whole in time.
    TooSlow,
}

impl fmt::Display for HeadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::BareLf => "a line of the head ends in LF alone; lines end in CR LF",
            Self::BareCr => "a CR in the head has no LF behind it; lines end in CR LF",
            Self::Control(byte) => {
                return write!(
                    f,
                    "the head has the control byte {byte:#04x}; control bytes must be left out"
                );
            }
            Self::LeadingLines => "several empty lines before the request line; at most one is allowed",
            Self::RequestLine => {
                "the request line is malformed; it is a method, a target and a version, one space between them"
            }
            Self::Method => "the method has a character that is not allowed; it is a token like GET",
            Self::TargetNotAscii => "the target has a byte outside ASCII; percent-encode it",
            Self::Target => {
                "the target is malformed; it is a path that begins with /, or http:// with an authority, \
                 and has no fragment"
            }
            Self::Version => "the version is not supported; it is HTTP/1.1 or HTTP/1.0",
            Self::Http2Preface => "this is the HTTP/2 preface; speak HTTP/1.1 on this connection",
            Self::FieldName => {
                "a field name is malformed; it is a token with the colon right behind it, one field to a line"
            }
            Self::ObsFold => "a field goes on in a second line; put its value on one line",
            Self::TooManyFields(limit) => return write!(f, "too many fields; at most {limit} are allowed"),
            Self::TooLarge(limit) => {
                return write!(f, "the request head is too large; at most {limit} bytes are allowed");
            }
            Self::NoHost => "there is no Host; HTTP/1.1 needs exactly one",
            Self::TwoHosts => "there are several Host lines; HTTP/1.1 needs exactly one",
            Self::Host => "Host is malformed; it is a host name or address, with an optional :port",
            Self::HostDiffers => "the target names another authority than Host; they must be the same",
            Self::TransferEncoding => "Transfer-Encoding is not supported; only chunked, once, is",
            Self::EncodingAndLength => {
                "both Transfer-Encoding and Content-Length are given; send one of them"
            }
            Self::EncodingInHttp10 => "HTTP/1.0 has no Transfer-Encoding; send Content-Length, or HTTP/1.1",
            Self::TwoLengths => "there are several Content-Length lines; send exactly one",
            Self::ContentLength => "Content-Length is malformed; it is one number in plain digits",
            Self::TooSlow => "the request head did not arrive in time; send it at once",
        };
        f.write_str(text)
    }
}

impl std::error::Error for HeadError {}

/// Why a chunked body is cut off. What came before the error was passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChunkedBodyError {
    /// The chunk size is not 1 to 16 hexadecimal digits (RFC 9112, 7.1).
    ChunkSize,
    /// The line of a chunk is too long, has a control byte, or does not end in CR LF (RFC 9112, 7.1.1).
    ChunkLine,
    /// The data of a chunk is not followed by CR LF (RFC 9112, 7.1).
    ChunkEnd,
    /// A trailer line is not a field line that ends in CR LF (RFC 9112, 7.1.2).
    Trailer,
    /// The trailers together are longer than the limit.
    TrailersTooLarge,
}

impl fmt::Display for ChunkedBodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ChunkSize => "a chunk size is malformed; it is 1 to 16 hexadecimal digits",
            Self::ChunkLine => "the line of a chunk size is malformed or too long; it ends in CR LF",
            Self::ChunkEnd => "the data of a chunk is longer than its size; CR LF must follow it",
            Self::Trailer => "a trailer is malformed; it is a token, a colon and a value, and ends in CR LF",
            Self::TrailersTooLarge => "the trailers are too large; send fewer or shorter ones",
        })
    }
}

impl std::error::Error for ChunkedBodyError {}
