//! The framing of one chunked body (RFC 9112, 7.1), byte by byte, without keeping any of it.
//!
//! It agrees with its reader on every byte: sizes are plain hexadecimal digits, lines end in CR LF, extensions and
//! trailers are bounded. What is merely odd but cannot be misread (an extension's grammar) passes.

use super::ChunkedBodyError;
use super::head::is_token_byte;

/// Digits of a chunk size: 16 fill 64 bits.
const SIZE_DIGITS: u8 = 16;

/// Bytes of one chunk's extensions, from the semicolon to the line's end.
pub(super) const MAX_EXTENSION: u16 = 256;

/// Bytes of all trailer lines together.
pub(super) const MAX_TRAILERS: u16 = 8 * 1024;

/// Where in a chunked body the next byte belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ChunkedState {
    /// In the digits of a size: how many there were, and their value.
    Size(u8, u64),
    /// In the extensions behind a size: the size, and the bytes so far.
    Extension(u64, u16),
    /// Before the LF of a size's line: the size.
    SizeLf(u64),
    /// In the data: bytes left.
    Data(u64),
    /// Before the CR behind the data.
    DataCr,
    /// Before the LF behind the data.
    DataLf,
    /// In the trailers: where in a line, and the bytes so far.
    Trailer(TrailerLine, u16),
    /// Behind the last LF.
    End,
}

/// Where in a trailer line the next byte belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TrailerLine {
    Start,
    Name,
    Value,
    Lf,
    /// Before the LF of the empty line that ends the body.
    LastLf,
}

impl ChunkedState {
    pub(super) const START: Self = Self::Size(0, 0);

    /// Takes what is sound and belongs to the body from the front of `bytes`; says how many bytes that is, and why
    /// it stopped at an error.
    pub(super) fn advance(&mut self, bytes: &[u8]) -> (usize, Option<ChunkedBodyError>) {
        let mut at = 0;
        while at < bytes.len() && *self != Self::End {
            if let Self::Data(left) = self {
                let here = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len() - at);
                *left -= here as u64;
                at += here;
                if *left == 0 {
                    *self = Self::DataCr;
                }
                continue;
            }
            match self.step(bytes[at]) {
                Ok(next) => *self = next,
                Err(error) => return (at, Some(error)),
            }
            at += 1;
        }
        (at, None)
    }

    /// The state behind one byte that is not data.
    fn step(self, byte: u8) -> Result<Self, ChunkedBodyError> {
        match (self, byte) {
            (Self::Size(1.., size), b'\r') => Ok(Self::SizeLf(size)),
            (Self::Size(1.., size), b';') => Ok(Self::Extension(size, 1)),
            (Self::Size(digits @ ..SIZE_DIGITS, size), _) => match char::from(byte).to_digit(16) {
                Some(digit) => Ok(Self::Size(digits + 1, size << 4 | u64::from(digit))),
                None => Err(ChunkedBodyError::ChunkSize),
            },
            (Self::Size(..), _) => Err(ChunkedBodyError::ChunkSize),
            (Self::Extension(size, _), b'\r') => Ok(Self::SizeLf(size)),
            (Self::Extension(size, length @ ..MAX_EXTENSION), _) if is_text(byte) => {
                Ok(Self::Extension(size, length + 1))
            }
            (Self::SizeLf(0), b'\n') => Ok(Self::Trailer(TrailerLine::Start, 0)),
            (Self::SizeLf(size), b'\n') => Ok(Self::Data(size)),
            (Self::Extension(..) | Self::SizeLf(_), _) => Err(ChunkedBodyError::ChunkLine),
            (Self::DataCr, b'\r') => Ok(Self::DataLf),
            (Self::DataLf, b'\n') => Ok(Self::START),
            (Self::DataCr | Self::DataLf, _) => Err(ChunkedBodyError::ChunkEnd),
            (Self::Trailer(TrailerLine::LastLf, _), b'\n') => Ok(Self::End),
            (Self::Trailer(_, MAX_TRAILERS..), _) => Err(ChunkedBodyError::TrailersTooLarge),
            (Self::Trailer(line, length), _) => Ok(Self::Trailer(line.step(byte)?, length + 1)),
            (Self::Data(_) | Self::End, _) => Ok(self),
        }
    }
}

impl TrailerLine {
    fn step(self, byte: u8) -> Result<Self, ChunkedBodyError> {
        match (self, byte) {
            (Self::Start, b'\r') => Ok(Self::LastLf),
            (Self::Start | Self::Name, _) if is_token_byte(byte) => Ok(Self::Name),
            (Self::Name, b':') => Ok(Self::Value),
            (Self::Value, b'\r') => Ok(Self::Lf),
            (Self::Value, _) if is_text(byte) => Ok(Self::Value),
            (Self::Lf, b'\n') => Ok(Self::Start),
            _ => Err(ChunkedBodyError::Trailer),
        }
    }
}

/// Neither a control byte nor the end of a line; a tab is text.
fn is_text(byte: u8) -> bool {
    byte == b'\t' || !byte.is_ascii_control()
}
