//! What is wrong with a config, and where.
//!
//! A fault never stops the reading: the whole file is looked at, and [`Faults`] says everything at once, one line
//! a fault, in the order of the file (invariant I8).

use std::fmt;

/// A place in the file; both numbers count from 1, columns count characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Line.
    pub line: usize,
    /// Column, in characters.
    pub column: usize,
}

/// One thing that is wrong (or, among [`super::Config::warnings`], unwise).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fault {
    /// Where; `None` when the file itself could not be read.
    pub at: Option<Position>,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl Fault {
    /// A fault at a place in the file.
    pub fn new(at: Position, message: impl Into<String>) -> Self {
        Self { at: Some(at), message: message.into() }
    }

    /// A fault of the file as a whole.
    pub(crate) fn of_file(message: impl Into<String>) -> Self {
        Self { at: None, message: message.into() }
    }

    /// `FILE:LINE:COLUMN: message`, always one line; `kind` comes before the message, `"warning: "` for instance.
    pub fn line(&self, file: &str, kind: &str) -> String {
        let message = printable(&self.message);
        match self.at {
            Some(Position { line, column }) => format!("{file}:{line}:{column}: {kind}{message}"),
            None => format!("{file}: {kind}{message}"),
        }
    }
}

/// Everything that is wrong with one file; there is at least one fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faults {
    file: String,
    list: Vec<Fault>,
}

impl Faults {
    /// The faults of `file`, put in the order of their places; the same fault is said once.
    pub fn new(file: &str, mut list: Vec<Fault>) -> Self {
        list.sort();
        list.dedup();
        Self { file: file.into(), list }
    }

    /// The file, as it was named.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// One line a fault: `FILE:LINE:COLUMN: message`.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        self.list.iter().map(|fault| fault.line(&self.file, ""))
    }

    /// The faults in the order of the file.
    pub fn list(&self) -> &[Fault] {
        &self.list
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.list.iter().enumerate() {
            let newline = if index == 0 { "" } else { "\n" };
            write!(f, "{newline}{}", fault.line(&self.file, ""))?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

/// Text that cannot break a line or speak to a terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// A value from the file as a message shows it: in backticks, short, without control characters.
pub(super) fn quoted(text: &str) -> String {
    const LONGEST: usize = 60;
    let shown: String = text.chars().take(LONGEST).collect();
    let more = if text.chars().nth(LONGEST).is_some() { "…" } else { "" };
    format!("`{}{more}`", printable(&shown))
}

/// The known word that `wrong` most likely stands for, if one is near.
pub(super) fn nearest<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Words are short; a long key is no typo of one and would only cost time.
    if wrong.chars().count() > 64 {
        return None;
    }
    let near = |word: &str| word.chars().count().max(wrong.chars().count()).div_ceil(3);
    // `least_conn` is no typo of `least_connections`, but no other word was meant either.
    let begins = |word: &str| wrong.len() >= 3 && (word.starts_with(wrong) || wrong.starts_with(word));
    known
        .into_iter()
        .map(|word| (edits(wrong, word), word))
        .filter(|(edits, word)| *edits <= near(word) || begins(word))
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, word)| word)
}

/// How many single-character edits or swaps of neighbours make `b` of `a` (optimal string alignment).
fn edits(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before = vec![0; b.len() + 1];
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let substitution = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = substitution.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(before[j - 2] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typo_finds_the_word_that_was_meant() {
        let known = ["idle", "connect", "handshake", "request"];
        assert_eq!(nearest("idel", known), Some("idle"));
        assert_eq!(nearest("handshke", known), Some("handshake"));
        assert_eq!(nearest("conect", known), Some("connect"));
        assert_eq!(nearest("idle_timeout", known), Some("idle"));
        assert_eq!(nearest("least_conn", ["random_two", "least_connections"]), Some("least_connections"));
    }

    #[test]
    fn a_word_that_is_near_to_nothing_finds_nothing() {
        assert_eq!(nearest("keepalive_requests", ["idle", "connect"]), None);
        assert_eq!(nearest("", ["idle"]), None);
        assert_eq!(nearest(&"x".repeat(100_000), ["idle"]), None);
    }

    #[test]
    fn faults_are_said_in_the_order_of_the_file_and_once() {
        let place = |line, column| Position { line, column };
        let list = vec![
            Fault::new(place(10, 1), "c"),
            Fault::new(place(2, 7), "b"),
            Fault::new(place(2, 3), "a"),
            Fault::new(place(2, 7), "b"),
        ];
        assert_eq!(Faults::new("x.yaml", list).to_string(), "x.yaml:2:3: a\nx.yaml:2:7: b\nx.yaml:10:1: c");
    }

    #[test]
    fn a_fault_of_the_file_has_no_line() {
        let faults = Faults::new("x.yaml", vec![Fault::of_file("cannot be read")]);
        assert_eq!(faults.to_string(), "x.yaml: cannot be read");
    }

    #[test]
    fn a_value_is_shown_short_and_without_control_characters() {
        assert_eq!(quoted("a\u{1b}[2Jb\n"), "`a\u{fffd}[2Jb\u{fffd}`");
        assert_eq!(quoted(&"é".repeat(61)), format!("`{}…`", "é".repeat(60)));
    }
}
