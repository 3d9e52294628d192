//! Reading the tree by what each key must be.
//!
//! An accessor gives the value, or says what is wrong and lets reading go on.
//!
//! Rules: a key is asked for by the name that its section listed as known; what is not listed is a fault with the
//! nearest name that is.

use std::cell::RefCell;
use std::fmt::Display;
use std::io;
use std::ops::RangeInclusive;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use mainstay_core::units;

use super::fault::{Fault, Position, nearest, quoted};
use super::raw::{Kind, YamlEntry, YamlNode};

/// Reads a file that the config names.
pub type ReadFile<'a> = &'a dyn Fn(&Path) -> io::Result<Vec<u8>>;

/// What one reading of a config gathers.
pub(super) struct Reader<'a> {
    /// Reads a file that the config names.
    pub read: ReadFile<'a>,
    /// Unix seconds; `None` where nothing depends on it.
    pub now: Option<i64>,
    /// The whole document, for what one key means for another.
    root: Option<&'a YamlNode>,
    faults: RefCell<Vec<Fault>>,
    warnings: RefCell<Vec<Fault>>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(read: ReadFile<'a>, now: Option<i64>, root: Option<&'a YamlNode>) -> Self {
        Self { read, now, root, faults: RefCell::default(), warnings: RefCell::default() }
    }

    /// One to whose findings nobody listens.
    pub(super) fn silent(root: Option<&'a YamlNode>) -> Self {
        Self::new(&|_| Err(io::ErrorKind::Unsupported.into()), None, root)
    }

    /// The faults and the warnings, each as they were found.
    pub(super) fn into_findings(self) -> (Vec<Fault>, Vec<Fault>) {
        (self.faults.into_inner(), self.warnings.into_inner())
    }

    pub(super) fn fault(&self, at: Position, message: impl Into<String>) {
        self.faults.borrow_mut().push(Fault::new(at, message));
    }

    pub(super) fn warn(&self, at: Position, message: impl Into<String>) {
        self.warnings.borrow_mut().push(Fault::new(at, message));
    }
}

/// A value that some key needs in some form.
#[derive(Clone, Copy)]
pub(super) struct Value<'a> {
    pub reader: &'a Reader<'a>,
    node: &'a YamlNode,
    /// The key that it belongs to, as messages name it.
    label: &'a str,
}

impl<'a> Value<'a> {
    /// The whole document.
    pub(super) fn root(reader: &'a Reader<'a>, node: &'a YamlNode) -> Self {
        Self { reader, node, label: "the config" }
    }

    /// The key that it belongs to.
    pub(super) fn key(&self) -> &'a str {
        self.label
    }

    pub(super) fn at(&self) -> Position {
        self.node.at
    }

    /// Says what is wrong here.
    pub(super) fn fault(&self, message: impl Display) {
        self.reader.fault(self.node.at, format!("{}: {message}", self.label));
    }

    /// Says what is unwise here.
    pub(super) fn warn(&self, message: impl Display) {
        self.reader.warn(self.node.at, format!("{}: {message}", self.label));
    }

    /// A key at the top of the config.
    pub(super) fn top(&self, key: &str) -> Option<Value<'a>> {
        Value { node: self.reader.root?, ..*self }.entry(key)
    }

    /// What `read` makes of it; nobody listens to what it says about it.
    pub(super) fn silently<T>(&self, read: impl FnOnce(&Value) -> Option<T>) -> Option<T> {
        read(&Value { reader: &Reader::silent(self.reader.root), ..*self })
    }

    pub(super) fn is_null(&self) -> bool {
        matches!(self.node.kind, Kind::Null)
    }

    /// What it is, for a message.
    fn shown(&self) -> String {
        match &self.node.kind {
            Kind::Null | Kind::Unknown => "nothing".into(),
            Kind::Scalar(text) if text.is_empty() => "empty text".into(),
            Kind::Scalar(text) => quoted(text),
            Kind::Sequence(items) if items.is_empty() => "an empty list".into(),
            Kind::Sequence(_) => "a list".into(),
            Kind::Mapping(entries) if entries.is_empty() => "an empty mapping".into(),
            Kind::Mapping(_) => "a mapping".into(),
        }
    }

    /// Says that another form is needed; `expected` begins as in "a duration, such as 2s".
    pub(super) fn expected(&self, expected: impl Display) {
        if matches!(self.node.kind, Kind::Unknown) {
            return;
        }
        self.fault(format_args!("{} where there must be {expected}", self.shown()));
    }

    /// The text, if it is some and not empty.
    fn scalar(&self) -> Option<&'a str> {
        match &self.node.kind {
            Kind::Scalar(text) if !text.is_empty() => Some(text),
            _ => None,
        }
    }

    /// The same, for who does not judge it.
    pub(super) fn as_text(&self) -> Option<&'a str> {
        self.scalar()
    }

    /// What a key of a mapping says, without a look at the other keys.
    pub(super) fn entry(&self, key: &str) -> Option<Value<'a>> {
        let Kind::Mapping(entries) = &self.node.kind else { return None };
        let entry = entries.iter().find(|entry| entry.key == key)?;
        Some(Value { node: &entry.value, label: &entry.key, ..*self })
    }

    /// The text made into a `T`; `expected` says what makes one.
    pub(super) fn parsed<T>(
        &self,
        expected: impl Display,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let value = self.scalar().and_then(parse);
        if value.is_none() {
            self.expected(expected);
        }
        value
    }

    /// The text made into a `T`, whose own message says what is wrong.
    pub(super) fn typed<T: FromStr<Err = String>>(&self, expected: impl Display) -> Option<T> {
        // The message of a `T` may show the text, so that of a whole novel is ours.
        let Some(text) = self.scalar().filter(|text| text.len() <= 1024) else {
            self.expected(expected);
            return None;
        };
        text.parse().map_err(|message: String| self.fault(message)).ok()
    }

    pub(super) fn text(&self, expected: impl Display) -> Option<&'a str> {
        let text = self.scalar();
        if text.is_none() {
            self.expected(expected);
        }
        text
    }

    /// One of a few words.
    pub(super) fn word<T: Copy>(&self, words: &[(&str, T)]) -> Option<T> {
        let names: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let found = self.scalar().and_then(|text| words.iter().find(|(word, _)| *word == text));
        if found.is_none() {
            let hint = self.scalar().and_then(|text| nearest(text, names.iter().copied()));
            let hint = hint.map(|word| format!("; did you mean `{word}`?")).unwrap_or_default();
            self.expected(format_args!("one of {}{hint}", names.join(", ")));
        }
        found.map(|(_, value)| *value)
    }

    pub(super) fn boolean(&self) -> Option<bool> {
        let yaml11 =
            |text: &str| ["yes", "no", "on", "off", "y", "n"].contains(&text.to_ascii_lowercase().as_str());
        let expected = match self.scalar() {
            Some(text) if yaml11(text) => {
                "true or false (yes, no, on and off were booleans in YAML 1.1 only)"
            }
            _ => "true or false",
        };
        self.parsed(expected, |text| text.parse().ok())
    }

    pub(super) fn number<T: FromStr + PartialOrd + Display>(&self, range: RangeInclusive<T>) -> Option<T> {
        let expected = format!("a number from {} to {}", range.start(), range.end());
        self.parsed(expected, |text| text.parse().ok().filter(|number| range.contains(number)))
    }

    /// What `guess` makes of the text, behind a semicolon.
    fn meant(&self, guess: impl FnOnce(&str) -> Option<String>) -> String {
        self.scalar().and_then(guess).map(|meant| format!("; {meant}")).unwrap_or_default()
    }

    pub(super) fn duration(&self, range: RangeInclusive<Duration>) -> Option<Duration> {
        let meant = self.meant(units::duration_meant);
        let expected = format_args!("a duration, such as 500ms, 2s, 5m or 1h{meant}");
        let duration = self.parsed(expected, units::duration)?;
        if !range.contains(&duration) {
            let (least, most) = (units::show_duration(range.start()), units::show_duration(range.end()));
            self.expected(format_args!("a duration from {least} to {most}"));
            return None;
        }
        Some(duration)
    }

    /// A part of all, 0 to 100 percent.
    pub(super) fn percent(&self) -> Option<u8> {
        self.parsed("a part from 0% to 100%, such as 20%", |text| {
            units::percent(text).filter(|part| *part <= 100)
        })
    }

    /// Bytes.
    pub(super) fn size(&self, range: RangeInclusive<u64>) -> Option<u64> {
        let meant = self.meant(units::size_meant);
        let size = self.parsed(format_args!("a size, such as 512B, 16KiB or 1MiB{meant}"), units::size)?;
        if !range.contains(&size) {
            let (least, most) = (units::show_size(*range.start()), units::show_size(*range.end()));
            self.expected(format_args!("a size from {least} to {most}"));
            return None;
        }
        Some(size)
    }

    /// The items of a list, which may be empty.
    pub(super) fn items(&self) -> Vec<Value<'a>> {
        if !matches!(self.node.kind, Kind::Sequence(_)) {
            self.expected("a list: `- ` before each item, or `[]` for none");
        }
        self.list()
    }

    /// The same; what is no list has none.
    pub(super) fn list(&self) -> Vec<Value<'a>> {
        let items = if let Kind::Sequence(items) = &self.node.kind { items.as_slice() } else { &[] };
        items.iter().map(|node| Value { node, ..*self }).collect()
    }

    /// The items of a list that has one at least; `example` is what a line of it looks like.
    pub(super) fn some_items(&self, example: &str) -> Vec<Value<'a>> {
        match &self.node.kind {
            Kind::Sequence(items) if !items.is_empty() => self.list(),
            _ => {
                self.expected(format_args!("a list of at least one, such as `{example}`"));
                Vec::new()
            }
        }
    }

    /// The entries of a mapping of at least one name: where each name is, the name, and its value.
    pub(super) fn named(&self, example: &str) -> Vec<(Position, &'a str, Value<'a>)> {
        let entries = self.entries();
        if entries.is_empty() {
            self.expected(example);
        }
        entries
    }

    /// The same; what is no mapping has none.
    pub(super) fn entries(&self) -> Vec<(Position, &'a str, Value<'a>)> {
        let entries = if let Kind::Mapping(entries) = &self.node.kind { entries.as_slice() } else { &[] };
        let value = |entry: &'a YamlEntry| Value { node: &entry.value, label: &entry.key, ..*self };
        entries.iter().map(|entry| (entry.at, entry.key.as_str(), value(entry))).collect()
    }

    /// A mapping with these keys. What is no mapping is a fault, and a section without keys.
    pub(super) fn section(&self, known: Vec<&'static str>) -> Section<'a> {
        let (entries, broken) = match &self.node.kind {
            Kind::Mapping(entries) => (entries.as_slice(), false),
            // What `timeouts:` is when all below it is commented out.
            Kind::Null => (&[][..], false),
            _ => (&[][..], true),
        };
        if broken {
            let meant = self.meant(|text| off_meant(self.label, text));
            self.expected(format_args!("a mapping with keys of: {}{meant}", known.join(", ")));
        }
        let section = Section { of: *self, entries, known, broken };
        section.say_unknown_keys();
        section
    }
}

/// How the section under this key is turned off, for who wrote a word for it.
fn off_meant(key: &str, text: &str) -> Option<String> {
    if !["off", "false", "no", "none", "disabled"].contains(&text.to_ascii_lowercase().as_str()) {
        return None;
    }
    match key {
        "admin" | "health" | "rebalance" | "tls" => Some(format!("`{key}: null` turns it off")),
        "access_log" => Some("`access_log: { format: off }` turns it off".into()),
        "passive" => Some("`passive: { failures: 0 }` turns it off".into()),
        _ => None,
    }
}

/// A mapping whose keys are known.
pub(super) struct Section<'a> {
    of: Value<'a>,
    entries: &'a [YamlEntry],
    known: Vec<&'static str>,
    /// It is no mapping, which has been said; nothing is missing in it.
    broken: bool,
}

impl<'a> Section<'a> {
    fn say_unknown_keys(&self) {
        for entry in self.entries.iter().filter(|entry| !self.known.contains(&entry.key.as_str())) {
            let right = match nearest(&entry.key, self.known.iter().copied()) {
                Some(key) => format!("did you mean `{key}`?"),
                None if self.known.is_empty() => "it takes none".into(),
                None => format!("its keys are {}", self.known.join(", ")),
            };
            let message = format!("unknown key {} in {}; {right}", quoted(&entry.key), self.of.label);
            self.of.reader.fault(entry.at, message);
        }
    }

    /// The value itself, to say something about the section as a whole.
    pub(super) fn whole(&self) -> Value<'a> {
        self.of
    }

    /// What the key says; `None` when it is absent.
    pub(super) fn value(&self, key: &'static str) -> Option<Value<'a>> {
        debug_assert!(self.known.contains(&key), "{key} is not among the known keys");
        let entry = self.entries.iter().find(|entry| entry.key == key)?;
        Some(Value { reader: self.of.reader, node: &entry.value, label: &entry.key })
    }

    /// The same, with null as absent.
    pub(super) fn some(&self, key: &'static str) -> Option<Value<'a>> {
        self.value(key).filter(|value| !value.is_null())
    }

    /// The same for a key that must be there; `expected` says what it is.
    pub(super) fn required(&self, key: &'static str, expected: &str) -> Option<Value<'a>> {
        let value = self.value(key);
        if value.is_none() && !self.broken {
            self.of.fault(format_args!("`{key}` is missing; write {expected}"));
        }
        value
    }

    /// How many keys there are, known or not; `None` after the fault that it is no mapping.
    pub(super) fn key_count(&self) -> Option<usize> {
        (!self.broken).then_some(self.entries.len())
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::{Config, Faults, resolve};
    use super::*;

    fn faults(text: &str) -> Vec<String> {
        let read = |_: &Path| Err(io::ErrorKind::NotFound.into());
        let result: Result<Config, Faults> = resolve("f", text.as_bytes(), &|_| None, &read);
        result
            .map(|_| Vec::new())
            .unwrap_or_else(|faults| faults.list().iter().map(|fault| fault.line("f", "")).collect())
    }

    const NODES: &str = "nodes: [{id: a, address: \"a:1\"}, {id: b, address: \"b:1\"}]";

    #[test]
    fn the_key_decides_the_type_and_not_the_quotes() {
        let text = format!(
            "pools: {{p: {{{NODES}, load_bound: \"1.5\", health: {{rise: '3', interval: \"2s\"}}}}}}"
        );
        assert_eq!(faults(&text), [""; 0]);
    }

    #[test]
    fn a_section_with_all_its_keys_commented_out_has_the_defaults() {
        let text =
            format!("limits:\nshutdown:\npools:\n  p:\n    {NODES}\n    timeouts:\n      # idle: 1h\n");
        assert_eq!(faults(&text), [""; 0]);
    }

    #[test]
    fn a_wrong_section_is_one_fault_and_nothing_is_missing_in_it() {
        assert_eq!(faults("pools: { p: 3 }").len(), 1);
        assert_eq!(faults(&format!("listeners: [x]\npools: {{p: {{{NODES}}}}}")).len(), 1);
    }

    #[test]
    fn a_range_has_both_its_ends_and_nothing_beyond() {
        let with = |weight: &str| {
            faults(&format!("pools: {{p: {{nodes: [{{id: a, address: \"a:1\", weight: {weight}}}]}}}}")).len()
        };
        assert_eq!(["1", "1000"].map(with), [0, 0]);
        assert_eq!(["0", "1001", "-1", "1.0", "1e2", "0x10", "\"\"", "[]", "{}", "null", "1 "].map(with), {
            [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0]
        });
    }

    #[test]
    fn a_very_long_value_is_shown_short() {
        let long = "x".repeat(500_000);
        let said =
            faults(&format!("listeners: [{{address: {long}}}]\npools: {{p: {{{NODES}, balance: {long}}}}}"));
        assert_eq!(said.len(), 2);
        assert!(said.iter().all(|line| line.len() < 400), "{said:?}");
    }

    #[test]
    fn the_config_never_asks_for_a_file_that_it_does_not_name() {
        let asked: RefCell<Vec<PathBuf>> = RefCell::default();
        let read = |path: &Path| {
            asked.borrow_mut().push(path.to_owned());
            Err(io::ErrorKind::PermissionDenied.into())
        };
        let text = format!("pools: {{p: {{{NODES}, affinity: [cookie: {{secret_file: keys/a}}]}}}}");
        let said = resolve("f", text.as_bytes(), &|_| None, &read).unwrap_err().to_string();
        assert!(said.contains("keys/a: it cannot be read: permission denied"), "{said}");
        assert_eq!(asked.into_inner(), [PathBuf::from("keys/a")]);
    }
}
