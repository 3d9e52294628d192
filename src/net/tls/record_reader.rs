//! The record reader: rustls reads through it, and never gets bytes of two TLS records in one read.
//!
//! rustls has no way to say which received bytes it has not decrypted yet. The reader knows: all that it has given out
//! is of records that are done, but for the one that has begun, and of that it keeps a copy (`RecordReader::into_parts`).
//! So a connection can be taken out of rustls at any moment, also within a record ([`super::extract`]).
//!
//! It reads ahead, so that a record costs one read of the socket and not two; while nothing is there it has no buffer.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A record's header: type, version and length (RFC 8446 section 5.1).
const RECORD_HEADER_LEN: usize = 5;
/// Bytes that one read of the stream may bring.
const READ_SIZE: usize = 8 * 1024;

/// Gives a reader at most one TLS record at a time, and keeps the one that is incomplete.
#[derive(Debug)]
pub(crate) struct RecordReader<S> {
    stream: S,
    /// The bytes of the present record that have been given out.
    record: Vec<u8>,
    /// Bytes read and not given out: those from `given` on.
    ahead: Vec<u8>,
    /// How many bytes of `ahead` have been given out.
    given: usize,
}

impl<S> RecordReader<S> {
    /// Reads from a stream on which no record has begun.
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, record: Vec::new(), ahead: Vec::new(), given: 0 }
    }

    /// The stream that it reads from.
    pub(crate) fn inner(&self) -> &S {
        &self.stream
    }

    /// The stream, and all bytes from the beginning of the record that is not complete: those that were given out,
    /// then those that were read ahead.
    pub(crate) fn into_parts(self) -> (S, Vec<u8>) {
        let mut undecrypted = self.record;
        undecrypted.extend_from_slice(&self.ahead[self.given..]);
        (self.stream, undecrypted)
    }

    /// Bytes to the end of the present record; to the end of its header while that is not whole.
    fn remaining(&self) -> usize {
        match self.record.get(3..RECORD_HEADER_LEN) {
            Some(length) => RECORD_HEADER_LEN + be16(length) - self.record.len(),
            None => RECORD_HEADER_LEN - self.record.len(),
        }
    }

    /// Gives out what is there of the present record, as far as it fits.
    fn copy_record(&mut self, out: &mut ReadBuf<'_>) {
        while out.remaining() > 0 && self.given < self.ahead.len() {
            let there = &self.ahead[self.given..];
            let length = self.remaining().min(there.len()).min(out.remaining());
            out.put_slice(&there[..length]);
            self.record.extend_from_slice(&there[..length]);
            self.given += length;
            if self.record.len() >= RECORD_HEADER_LEN && self.remaining() == 0 {
                self.record = Vec::new();
                break;
            }
        }
        if self.given == self.ahead.len() {
            (self.ahead, self.given) = (Vec::new(), 0);
        }
    }
}

fn be16(bytes: &[u8]) -> usize {
    bytes.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte))
}

impl<S: AsyncRead + Unpin> AsyncRead for RecordReader<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let reader = self.get_mut();
        if reader.ahead.is_empty() {
            // Read beside the buffer first, so that waiting costs no allocation.
            let mut scratch = [const { MaybeUninit::<u8>::uninit() }; READ_SIZE];
            let mut read = ReadBuf::uninit(&mut scratch);
            ready!(Pin::new(&mut reader.stream).poll_read(cx, &mut read))?;
            reader.ahead.extend_from_slice(read.filled());
        }
        reader.copy_record(out);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for RecordReader<S> {
    forward_write!(stream);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    fn record(length: u16, fill: u8) -> Vec<u8> {
        let mut record = vec![23, 3, 3];
        record.extend_from_slice(&length.to_be_bytes());
        record.resize(RECORD_HEADER_LEN + usize::from(length), fill);
        record
    }

    /// Gives out what comes through reads of these sizes: the bytes of each read.
    fn through(reader: &mut RecordReader<&[u8]>, sizes: &mut dyn Iterator<Item = usize>) -> Vec<Vec<u8>> {
        let mut reads = Vec::new();
        let mut cx = Context::from_waker(std::task::Waker::noop());
        for size in sizes {
            let mut bytes = vec![0; size];
            let mut out = ReadBuf::new(&mut bytes);
            assert!(Pin::new(&mut *reader).poll_read(&mut cx, &mut out).is_ready());
            if out.filled().is_empty() {
                break;
            }
            reads.push(out.filled().to_vec());
        }
        reads
    }

    #[test]
    fn no_read_has_bytes_of_two_records() {
        let records = [record(0, 1), record(3, 2), record(16_384, 3), record(1, 4)];
        let wire = records.concat();
        let mut reader = RecordReader::new(&wire[..]);
        let reads = through(&mut reader, &mut std::iter::repeat_n(32_768, 100));
        assert_eq!(reads.concat(), wire);
        let mut ends = vec![0];
        records.iter().for_each(|record| ends.push(ends[ends.len() - 1] + record.len()));
        let mut at = 0;
        for read in &reads {
            let within = ends.iter().filter(|end| **end > at && **end < at + read.len()).count();
            assert_eq!(within, 0, "a record ends within a read");
            at += read.len();
        }
    }

    #[tokio::test]
    async fn a_record_that_has_begun_is_kept_from_its_first_byte_with_what_was_read_ahead() {
        let wire = [record(4, 1), record(9, 2), record(2, 3)].concat();
        for cut in 0..wire.len() {
            let (mut far, near) = duplex(64);
            far.write_all(&wire[..cut]).await.unwrap();
            let mut reader = RecordReader::new(near);
            let mut first = [0; 9];
            let taken = cut.min(9);
            reader.read_exact(&mut first[..taken]).await.unwrap();
            // Into the second record, but not to its end.
            let more = cut.saturating_sub(9).min(7);
            reader.read_exact(&mut [0; 7][..more]).await.unwrap();
            let begun = if cut >= 9 { 9 } else { 0 };
            assert_eq!(reader.into_parts().1, wire[begun..cut], "cut at {cut}");
        }
    }

    #[test]
    fn between_two_records_nothing_is_kept_and_there_is_no_buffer() {
        let wire = record(100, 1);
        let mut reader = RecordReader::new(&wire[..]);
        through(&mut reader, &mut std::iter::repeat_n(50, 10));
        assert_eq!((reader.record.capacity(), reader.ahead.capacity()), (0, 0));
        assert_eq!(reader.into_parts().1, b"");
    }

    proptest! {
        #[test]
        fn whatever_is_read_and_however_the_undecrypted_bytes_begin_with_a_record(
            lengths in prop::collection::vec(0_u16..40, 1..6),
            sizes in prop::collection::vec(1_usize..50, 0..20),
        ) {
            let records: Vec<Vec<u8>> = lengths.iter().map(|length| record(*length, 7)).collect();
            let wire = records.concat();
            let mut reader = RecordReader::new(&wire[..]);
            let given = through(&mut reader, &mut sizes.into_iter()).concat();
            prop_assert_eq!(&given, &wire[..given.len()]);
            let (rest, undecrypted) = reader.into_parts();
            let left = [&undecrypted, rest].concat();
            prop_assert!(wire.ends_with(&left));
            let mut done = 0;
            let mut ends = records.iter().map(|record| { done += record.len(); done });
            let begun = wire.len() - left.len();
            prop_assert!(begun == 0 || ends.any(|end| end == begun), "{} is no end of a record", begun);
            prop_assert!(given.len() >= begun);
        }
    }
}
