//! How a target takes its input apart: numbers from the front, the rest as the stream, and where the stream is cut.

use std::ops::Range;

/// The bytes that a target was given, taken from the front.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// All of them.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next byte; 0 when there is none.
    pub fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    /// The next bytes, at most so many.
    pub fn take(&mut self, most: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(most.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// Everything that is left.
    pub fn rest(self) -> &'a [u8] {
        self.0
    }
}

/// Where a stream of `length` bytes is cut: not at all (0), every so many bytes (to 15), or by chance, which is the
/// same chance each time.
#[derive(Debug, Clone)]
pub struct Pieces {
    seed: u8,
    state: u64,
    at: usize,
    length: usize,
}

impl Pieces {
    /// By the seed.
    pub fn new(seed: u8, length: usize) -> Self {
        Self { seed, state: u64::from(seed) | 0x9e37_79b9_0000_0000, at: 0, length }
    }
}

impl Iterator for Pieces {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Range<usize>> {
        if self.at == self.length {
            return None;
        }
        let left = self.length - self.at;
        let size = match self.seed {
            0 => left,
            1..16 => usize::from(self.seed),
            _ => {
                // Xorshift.
                self.state ^= self.state << 13;
                self.state ^= self.state >> 7;
                self.state ^= self.state << 17;
                1 + (self.state % u64::from(self.seed)) as usize
            }
        };
        let start = self.at;
        self.at += size.min(left);
        Some(start..self.at)
    }
}
