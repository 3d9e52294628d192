//! Fields, of which tunnel states are made.
//!
//! A field is a tag (one byte), a length (four bytes, big endian) and that many bytes; a section is a field of fields.
//! Tags rise within a section, so that each occurs at most once and one pass reads them. A number is eight bytes, big
//! endian; a flag is a field without bytes.
//!
//! How a version extends the form: a field that the tunnel cannot do without gets a tag below [`FIRST_OPTIONAL_TAG`],
//! and a reader that does not know it refuses the tunnel; an optional field gets a tag from there on, and such a reader
//! skips it. A tag is never reused, and a field that an earlier version does not write is read with a default.
//!
//! The bytes may hold keys: a writer that grows wipes its old buffer.

use thiserror::Error;
use zeroize::Zeroizing;

/// The first tag that readers skip when they do not know it.
pub(crate) const FIRST_OPTIONAL_TAG: u8 = 128;

/// The length of a field's tag and length.
const HEADER_LEN: usize = 5;
/// The first capacity of a writer: most tunnels need no more.
const INITIAL_CAPACITY: usize = 1024;
/// More than any counter reaches, so that counting on from it cannot overflow.
const MAX_COUNT: u64 = 1 << 62;

/// Why bytes are not decoded as a tunnel. The writer is to blame, or its version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum TunnelStateError {
    /// The bytes do not begin like a tunnel state.
    #[error("not a tunnel state: it does not begin with `MSTN`")]
    NotTunnelState,
    /// Another version of the form.
    #[error("tunnel state has version {found}, and this build reads version {read}")]
    Version {
        /// The one that was found.
        found: u16,
        /// The one that is read.
        read: u16,
    },
    /// The bytes end within a field.
    #[error("{section} ends within a field")]
    Truncated {
        /// The section.
        section: &'static str,
    },
    /// A field that this version does not know and may not skip, or one that is out of order.
    #[error("{section} has a field {tag} that this build does not know")]
    UnknownField {
        /// The section.
        section: &'static str,
        /// The field's tag.
        tag: u8,
    },
    /// A mandatory field is missing.
    #[error("{section} lacks its field `{name}`")]
    MissingField {
        /// The section.
        section: &'static str,
        /// The field.
        name: &'static str,
    },
    /// A field whose value this version does not understand.
    #[error("the field `{name}` of {section} has an invalid value")]
    InvalidValue {
        /// The section.
        section: &'static str,
        /// The field.
        name: &'static str,
    },
}

/// A field's tag, and its name in errors.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FieldTag(pub u8, pub &'static str);

/// Writes fields.
#[derive(Default)]
pub(crate) struct FieldWriter(Zeroizing<Vec<u8>>);

impl FieldWriter {
    /// Writes bytes that are not a field.
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        let (len, more) = (self.0.len(), bytes.len());
        if self.0.capacity() - len < more {
            let mut larger = Zeroizing::new(Vec::with_capacity(INITIAL_CAPACITY.max(2 * (len + more))));
            larger.extend_from_slice(&self.0);
            self.0 = larger;
        }
        self.0.extend_from_slice(bytes);
    }

    /// Writes a field with these bytes.
    pub(crate) fn bytes(&mut self, tag: FieldTag, value: &[u8]) {
        self.raw(&[tag.0]);
        self.raw(&length(value.len()));
        self.raw(value);
    }

    /// Writes a field with a number.
    pub(crate) fn number(&mut self, tag: FieldTag, value: impl Into<u64>) {
        self.bytes(tag, &value.into().to_be_bytes());
    }

    /// Writes a field with a number, if there is one.
    pub(crate) fn optional(&mut self, tag: FieldTag, value: Option<impl Into<u64>>) {
        if let Some(value) = value {
            self.number(tag, value);
        }
    }

    /// Writes a field without bytes, if `is_so`.
    pub(crate) fn flag(&mut self, tag: FieldTag, is_so: bool) {
        if is_so {
            self.bytes(tag, &[]);
        }
    }

    /// Writes a field of fields.
    pub(crate) fn section(&mut self, tag: FieldTag, write: impl FnOnce(&mut Self)) {
        self.bytes(tag, &[]);
        let start = self.0.len();
        write(self);
        let len = length(self.0.len() - start);
        self.0[start - len.len()..start].copy_from_slice(&len);
    }

    /// The bytes that were written.
    pub(crate) fn finish(self) -> Zeroizing<Vec<u8>> {
        self.0
    }
}

fn length(len: usize) -> [u8; 4] {
    u32::try_from(len).expect("a state of more than `MAX_SIZE` bytes is not written").to_be_bytes()
}

/// A field, and the bytes that follow it.
struct RawField<'a> {
    tag: u8,
    value: &'a [u8],
    rest: &'a [u8],
}

/// Reads the fields of one section, in their order.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FieldReader<'a> {
    rest: &'a [u8],
    /// The section, for errors.
    section: &'static str,
    /// The tag of the field that was read last.
    last: Option<u8>,
}

impl<'a> FieldReader<'a> {
    /// A reader of these bytes, the section of this name.
    pub(crate) fn new(bytes: &'a [u8], section: &'static str) -> Self {
        Self { rest: bytes, section, last: None }
    }

    /// Reads the bytes of an optional field.
    pub(crate) fn find(&mut self, tag: FieldTag) -> Result<Option<&'a [u8]>, TunnelStateError> {
        while let Some(next) = self.peek()? {
            if next.tag > tag.0 {
                break;
            }
            (self.rest, self.last) = (next.rest, Some(next.tag));
            if next.tag == tag.0 {
                return Ok(Some(next.value));
            }
            if next.tag < FIRST_OPTIONAL_TAG {
                return Err(TunnelStateError::UnknownField { section: self.section, tag: next.tag });
            }
        }
        Ok(None)
    }

    /// The next field, which is not consumed.
    fn peek(&self) -> Result<Option<RawField<'a>>, TunnelStateError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let short = TunnelStateError::Truncated { section: self.section };
        let (&[tag, a, b, c, d], behind) = self.rest.split_first_chunk::<HEADER_LEN>().ok_or(short)?;
        let len = u32::from_be_bytes([a, b, c, d]) as usize;
        let (value, behind) = behind.split_at_checked(len).ok_or(short)?;
        if self.last.is_some_and(|last| last >= tag) {
            return Err(TunnelStateError::UnknownField { section: self.section, tag });
        }
        Ok(Some(RawField { tag, value, rest: behind }))
    }

    /// Reads the bytes of a field.
    pub(crate) fn bytes(&mut self, tag: FieldTag) -> Result<&'a [u8], TunnelStateError> {
        self.find(tag)?.ok_or(TunnelStateError::MissingField { section: self.section, name: tag.1 })
    }

    /// Reads the bytes of a field of fixed length.
    pub(crate) fn array<const N: usize>(&mut self, tag: FieldTag) -> Result<&'a [u8; N], TunnelStateError> {
        self.bytes(tag)?.try_into().map_err(|_| self.invalid(tag))
    }

    /// Reads the text of a field.
    pub(crate) fn text(&mut self, tag: FieldTag) -> Result<&'a str, TunnelStateError> {
        str::from_utf8(self.bytes(tag)?).map_err(|_| self.invalid(tag))
    }

    /// Reads the number of a field.
    pub(crate) fn number<T: TryFrom<u64>>(&mut self, tag: FieldTag) -> Result<T, TunnelStateError> {
        self.optional(tag)?.ok_or(TunnelStateError::MissingField { section: self.section, name: tag.1 })
    }

    /// Reads the number of an optional field.
    pub(crate) fn optional<T: TryFrom<u64>>(&mut self, tag: FieldTag) -> Result<Option<T>, TunnelStateError> {
        let Some(value) = self.find(tag)? else { return Ok(None) };
        let value = <[u8; 8]>::try_from(value).ok().map(u64::from_be_bytes);
        value.and_then(|value| T::try_from(value).ok()).map(Some).ok_or(self.invalid(tag))
    }

    /// Reads a number that is counted on from.
    pub(crate) fn count(&mut self, tag: FieldTag) -> Result<u64, TunnelStateError> {
        let count = self.number(tag)?;
        if count < MAX_COUNT { Ok(count) } else { Err(self.invalid(tag)) }
    }

    /// Reads a flag.
    pub(crate) fn flag(&mut self, tag: FieldTag) -> Result<bool, TunnelStateError> {
        match self.find(tag)? {
            None => Ok(false),
            Some([]) => Ok(true),
            Some(_) => Err(self.invalid(tag)),
        }
    }

    /// Reads a field whose number is an index into `all`.
    pub(crate) fn variant<T: Copy>(&mut self, tag: FieldTag, all: &[T]) -> Result<T, TunnelStateError> {
        let number: usize = self.number(tag)?;
        all.get(number).copied().ok_or(self.invalid(tag))
    }

    /// Reads the fields of a section.
    pub(crate) fn section(&mut self, tag: FieldTag) -> Result<Self, TunnelStateError> {
        self.bytes(tag).map(|bytes| Self::new(bytes, tag.1))
    }

    /// Checks that only optional fields are left.
    pub(crate) fn finish(mut self) -> Result<(), TunnelStateError> {
        self.find(FieldTag(u8::MAX, "the end")).map(drop)
    }

    /// The error for a field with an invalid value.
    pub(crate) fn invalid(&self, tag: FieldTag) -> TunnelStateError {
        TunnelStateError::InvalidValue { section: self.section, name: tag.1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: FieldTag = FieldTag(1, "one");
    const TWO: FieldTag = FieldTag(2, "two");
    const FOUR: FieldTag = FieldTag(4, "four");
    const LATE: FieldTag = FieldTag(200, "late");

    fn written(write: impl FnOnce(&mut FieldWriter)) -> Vec<u8> {
        let mut writer = FieldWriter::default();
        write(&mut writer);
        writer.finish().to_vec()
    }

    fn fields(bytes: &[u8]) -> FieldReader<'_> {
        FieldReader::new(bytes, "the test")
    }

    #[test]
    fn what_is_written_is_read_and_what_is_missing_is_named() {
        let bytes = written(|writer| {
            writer.number(ONE, 7u8);
            writer.optional(TWO, None::<u64>);
            writer.section(FOUR, |writer| writer.flag(ONE, true));
        });
        let mut read = fields(&bytes);
        assert_eq!((read.number(ONE), read.optional::<u8>(TWO)), (Ok(7u8), Ok(None)));
        let mut section = read.section(FOUR).unwrap();
        assert_eq!((section.flag(ONE), section.flag(TWO), section.finish()), (Ok(true), Ok(false), Ok(())));
        assert_eq!(read.finish(), Ok(()));
        let missing = fields(&bytes).bytes(TWO).unwrap_err();
        assert_eq!(
            missing,
            TunnelStateError::UnknownField { section: "the test", tag: 1 },
            "what is before it was not asked for"
        );
        let mut read = fields(&bytes);
        read.bytes(ONE).unwrap();
        assert_eq!(read.bytes(TWO).unwrap_err().to_string(), "the test lacks its field `two`");
    }

    #[test]
    fn a_reader_skips_what_may_be_skipped_and_refuses_the_rest() {
        let later = written(|writer| {
            writer.number(ONE, 1u8);
            writer.bytes(FieldTag(150, ""), b"a later version's");
            writer.bytes(FieldTag(220, ""), b"and another");
        });
        let mut read = fields(&later);
        assert_eq!((read.number(ONE), read.find(LATE)), (Ok(1u8), Ok(None)));
        assert_eq!(read.finish(), Ok(()));
        let stricter = written(|writer| {
            writer.number(ONE, 1u8);
            writer.bytes(FieldTag(3, ""), b"not to be left out");
            writer.number(FOUR, 1u8);
        });
        let mut read = fields(&stricter);
        read.bytes(ONE).unwrap();
        let unknown = Err(TunnelStateError::UnknownField { section: "the test", tag: 3 });
        assert_eq!(({ read }.find(FOUR), read.finish()), (unknown, unknown.map(drop)));
    }

    #[test]
    fn tags_rise() {
        for tags in [[ONE, ONE], [TWO, ONE]] {
            let bytes = written(|writer| tags.into_iter().for_each(|tag| writer.flag(tag, true)));
            let mut read = fields(&bytes);
            read.bytes(tags[0]).unwrap();
            assert_eq!(read.finish(), Err(TunnelStateError::UnknownField { section: "the test", tag: 1 }));
        }
    }

    #[test]
    fn a_field_that_is_cut_or_has_another_length_or_value_is_a_fault() {
        let bytes = written(|writer| writer.number(ONE, 300u64));
        for cut in 1..bytes.len() {
            assert_eq!(
                fields(&bytes[..cut]).finish(),
                Err(TunnelStateError::Truncated { section: "the test" }),
                "{cut}"
            );
        }
        let wrong = TunnelStateError::InvalidValue { section: "the test", name: "one" };
        assert_eq!(fields(&bytes).number::<u8>(ONE), Err(wrong));
        assert_eq!(fields(&bytes).array::<7>(ONE), Err(wrong));
        assert_eq!(fields(&bytes).flag(ONE), Err(wrong));
        assert_eq!(fields(&bytes).variant(ONE, &[0; 300]), Err(wrong));
        let many = written(|writer| writer.number(ONE, u64::MAX));
        assert_eq!((fields(&many).count(ONE), fields(&many).number(ONE)), (Err(wrong), Ok(u64::MAX)));
    }

    #[test]
    fn a_writer_grows() {
        let long = vec![7; 10 * INITIAL_CAPACITY];
        let bytes = written(|writer| (1..5).for_each(|tag| writer.bytes(FieldTag(tag, "some"), &long)));
        let mut read = fields(&bytes);
        assert!((1..5).all(|tag| read.bytes(FieldTag(tag, "some")).unwrap() == long));
    }
}
