//! YAML as written: a tree of scalars, lists and mappings, each with its place in the file.
//!
//! The tree is made from the parser's events rather than by serde, because serde stops at its first error. Here only
//! a syntax error, or a file that is no sane config, ends the reading; the rest (a key twice, a variable that is not
//! set) is noted and reading goes on.
//!
//! Rules: every scalar is text, the key that it is written for decides its type; `null` is the plain words of YAML
//! 1.2 and the empty value; `${NAME}` is put in after parsing, so a variable can never change the structure; what
//! aliases expand to is bounded, and so is depth.

use std::collections::HashMap;
use std::rc::Rc;

use serde_json::Value as Json;
use serde_yaml::granit_parser::{ErrorKind, Event, Marker, Parser, ScalarStyle, ScanError, Span};

use super::fault::{Fault, Position, quoted};
use super::variables::{self, Env};

/// The largest config file, in bytes.
pub(crate) const LARGEST_FILE: usize = 1 << 20;
/// The most values in a config, with what its aliases stand for.
const MOST_NODES: usize = 100_000;
/// The deepest nesting; the deepest key of the contract is at 7.
const DEEPEST: usize = 32;

/// A value, with its place.
#[derive(Debug)]
pub(super) struct YamlNode {
    /// Where it begins.
    pub at: Position,
    /// What it is.
    pub kind: Kind,
    /// How many nodes it is, with all below it.
    size: usize,
    /// How many levels there are below it.
    height: usize,
}

impl YamlNode {
    /// A value that no file has, such as a default.
    pub(super) fn of_json(json: &Json) -> Self {
        let at = Position { line: 0, column: 0 };
        let kind = match json {
            Json::Null => Kind::Null,
            Json::String(text) => Kind::Scalar(text.clone()),
            Json::Array(items) => {
                Kind::Sequence(items.iter().map(|item| Rc::new(Self::of_json(item))).collect())
            }
            Json::Object(entries) => Kind::Mapping(
                entries
                    .iter()
                    .map(|(key, value)| YamlEntry {
                        key: key.clone(),
                        at,
                        value: Rc::new(Self::of_json(value)),
                    })
                    .collect(),
            ),
            plain => Kind::Scalar(plain.to_string()),
        };
        Self { at, kind, size: 1, height: 0 }
    }
}

/// What a value is.
#[derive(Debug)]
pub(super) enum Kind {
    /// Nothing, or one of YAML's words for it.
    Null,
    /// Text, with the variables put in.
    Scalar(String),
    /// Text whose variables could not be put in, which has been said; nothing else is wrong with it.
    Unknown,
    /// A list.
    Sequence(Vec<Rc<YamlNode>>),
    /// Keys and values, in order, each key once.
    Mapping(Vec<YamlEntry>),
}

/// A key of a mapping and its value.
#[derive(Debug, Clone)]
pub(super) struct YamlEntry {
    /// The key as written.
    pub key: String,
    /// Where the key begins.
    pub at: Position,
    /// Its value.
    pub value: Rc<YamlNode>,
}

/// Reads the one document of `text`. What is wrong is added to `faults`; `None` after a fault that ends the reading.
pub(super) fn parse(text: &[u8], env: Env, faults: &mut Vec<Fault>) -> Option<Rc<YamlNode>> {
    let mut tree = Tree { env, faults, open: Vec::new(), anchors: HashMap::new(), nodes: 0, root: None };
    match checked_text(text).and_then(|text| tree.grow(text)) {
        Ok(root) => Some(root),
        Err(fault) => {
            tree.faults.push(fault);
            None
        }
    }
}

/// The file as text that a parser may be given: small enough, UTF-8, no NUL.
fn checked_text(bytes: &[u8]) -> Result<&str, Fault> {
    if bytes.len() > LARGEST_FILE {
        return Err(Fault::of_file("the file is larger than 1 MiB; a config is never that large"));
    }
    let end_of = |bytes: &[u8]| {
        let valid = String::from_utf8_lossy(bytes);
        let line = valid.rsplit('\n').next().unwrap_or_default();
        Position { line: valid.matches('\n').count() + 1, column: line.chars().count() + 1 }
    };
    let text = std::str::from_utf8(bytes).map_err(|e| {
        let at = end_of(&bytes[..e.valid_up_to()]);
        Fault::new(at, "a byte that is not UTF-8; save the file as UTF-8")
    })?;
    match text.find('\0') {
        Some(nul) => {
            Err(Fault::new(end_of(&bytes[..nul]), "a NUL byte; a config is a text file, saved as UTF-8"))
        }
        None => Ok(text),
    }
}

/// The tree while it grows.
struct Tree<'a> {
    env: Env<'a>,
    faults: &'a mut Vec<Fault>,
    /// The lists and mappings that have begun and not ended, outermost first.
    open: Vec<Open>,
    /// What `&name` stands for, by the parser's number for the name.
    anchors: HashMap<usize, Rc<YamlNode>>,
    /// How many nodes there are by now, with what aliases stand for.
    nodes: usize,
    root: Option<Rc<YamlNode>>,
}

/// A list or a mapping that has begun.
struct Open {
    at: Position,
    /// The parser's number for its `&name`; 0 for none.
    anchor: usize,
    /// As in [`YamlNode`], by now.
    size: usize,
    /// As in [`YamlNode`], by now.
    height: usize,
    content: Content,
}

/// What has begun.
enum Content {
    Sequence(Vec<Rc<YamlNode>>),
    /// `key` is the one whose value comes next.
    Mapping {
        entries: Vec<YamlEntry>,
        key: Option<(String, Position)>,
    },
}

impl Tree<'_> {
    fn grow(&mut self, text: &str) -> Result<Rc<YamlNode>, Fault> {
        let mut documents = 0;
        for event in Parser::new_from_str(text) {
            let (event, span) = event.map_err(|e| Fault::new(position(e.marker()), syntax(&e)))?;
            if matches!(event, Event::DocumentStart(..)) {
                documents += 1;
                if documents > 1 {
                    let message =
                        "a second document begins here; a config is one document, remove this `---`";
                    return Err(Fault::new(position(&span.start), message));
                }
            }
            self.take(event, &span)?;
        }
        self.root.take().filter(|root| !matches!(root.kind, Kind::Null)).ok_or_else(|| {
            let message = "the file says nothing; a config has at least `pools`, each with its `nodes`";
            Fault::new(Position { line: 1, column: 1 }, message)
        })
    }

    /// Takes one event of the parser; an error ends the reading.
    fn take(&mut self, event: Event, span: &Span) -> Result<(), Fault> {
        let at = position(&span.start);
        if let Some(tag) = event.tag() {
            let message =
                format!("the tag {} has no meaning in a config; remove it", quoted(&tag.original()));
            self.faults.push(Fault::new(span.tag_start.as_ref().map_or(at, position), message));
        }
        match event {
            Event::Scalar(text, style, anchor, _) => self.scalar(&text, style, anchor, at),
            Event::SequenceStart(_, anchor, _) => self.begin(at, anchor, Content::Sequence(Vec::new())),
            Event::MappingStart(_, anchor, _) => {
                self.begin(at, anchor, Content::Mapping { entries: Vec::new(), key: None })
            }
            Event::SequenceEnd | Event::MappingEnd => self.end(),
            Event::Alias(anchor) => match self.anchors.get(&anchor).cloned() {
                Some(node) => self.place(node, at),
                None => Err(Fault::new(
                    at,
                    "this alias stands for a value that it is itself a part of; write out what is meant",
                )),
            },
            _ => Ok(()),
        }
    }

    fn scalar(&mut self, text: &str, style: ScalarStyle, anchor: usize, at: Position) -> Result<(), Fault> {
        if let Some(Open { content: Content::Mapping { key: key @ None, .. }, .. }) = self.open.last_mut() {
            *key = Some((text.to_owned(), at));
            return Ok(());
        }
        let kind = match variables::put_in(text, self.env) {
            Ok(text) if style == ScalarStyle::Plain && is_null(&text) => Kind::Null,
            Ok(text) => Kind::Scalar(text),
            Err(wrong) => {
                self.faults.extend(wrong.into_iter().map(|message| Fault::new(at, message)));
                Kind::Unknown
            }
        };
        self.finish(YamlNode { at, kind, size: 1, height: 0 }, anchor)
    }

    fn begin(&mut self, at: Position, anchor: usize, content: Content) -> Result<(), Fault> {
        self.open.push(Open { at, anchor, size: 1, height: 1, content });
        if self.open.len() > DEEPEST { Err(too_deep(at)) } else { Ok(()) }
    }

    fn end(&mut self) -> Result<(), Fault> {
        let Some(Open { at, anchor, size, height, content }) = self.open.pop() else { return Ok(()) };
        let kind = match content {
            Content::Sequence(items) => Kind::Sequence(items),
            Content::Mapping { entries, .. } => Kind::Mapping(self.each_key_once(entries)),
        };
        self.finish(YamlNode { at, kind, size, height }, anchor)
    }

    fn finish(&mut self, node: YamlNode, anchor: usize) -> Result<(), Fault> {
        let (at, node) = (node.at, Rc::new(node));
        if anchor > 0 {
            self.anchors.insert(anchor, Rc::clone(&node));
        }
        self.place(node, at)
    }

    /// Puts a value, which the file has at `at`, into what is open.
    fn place(&mut self, node: Rc<YamlNode>, at: Position) -> Result<(), Fault> {
        self.nodes += node.size;
        if self.nodes > MOST_NODES {
            let message = format!(
                "more than {MOST_NODES} values, with what the aliases stand for; a config is never that large"
            );
            return Err(Fault::new(at, message));
        }
        if self.open.len() + node.height > DEEPEST {
            return Err(too_deep(at));
        }
        let Some(open) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        open.size += node.size;
        open.height = open.height.max(node.height + 1);
        match &mut open.content {
            Content::Sequence(items) => items.push(node),
            Content::Mapping { entries, key } => match key.take() {
                Some((key, at)) => entries.push(YamlEntry { key, at, value: node }),
                None => {
                    let message = "a key is a word, not a list, a mapping or an alias; is this the `{{ }}` of a template?";
                    return Err(Fault::new(at, message));
                }
            },
        }
        Ok(())
    }

    /// The entries with each key once (the first counts, the others are faults), then those that `<<` adds.
    fn each_key_once(&mut self, entries: Vec<YamlEntry>) -> Vec<YamlEntry> {
        let mut seen: HashMap<String, Position> = HashMap::new();
        let mut kept = Vec::new();
        let mut merged = Vec::new();
        for entry in entries {
            match seen.get(&entry.key) {
                Some(first) => {
                    let message = format!(
                        "{} is here twice; the first is on line {}, keep one",
                        quoted(&entry.key),
                        first.line
                    );
                    self.faults.push(Fault::new(entry.at, message));
                }
                None => {
                    seen.insert(entry.key.clone(), entry.at);
                    if entry.key == "<<" { merged.push(entry) } else { kept.push(entry) }
                }
            }
        }
        for entry in merged.iter().flat_map(|merge| self.merged_entries(merge)) {
            if seen.insert(entry.key.clone(), entry.at).is_none() {
                kept.push(entry);
            }
        }
        kept
    }

    /// What `<<: *base` or `<<: [*one, *two]` adds.
    fn merged_entries(&mut self, merge: &YamlEntry) -> Vec<YamlEntry> {
        let bases = match &merge.value.kind {
            Kind::Sequence(bases) => bases.as_slice(),
            _ => std::slice::from_ref(&merge.value),
        };
        let mut added = Vec::new();
        for base in bases {
            match &base.kind {
                Kind::Mapping(entries) => added.extend(entries.iter().cloned()),
                _ => {
                    let message =
                        "`<<` takes the keys of a mapping; write `<<: *NAME` with the anchor of one";
                    self.faults.push(Fault::new(merge.at, message));
                }
            }
        }
        added
    }
}

/// The words of the YAML 1.2 core schema for nothing, and no word at all.
fn is_null(plain: &str) -> bool {
    matches!(plain, "" | "~" | "null" | "Null" | "NULL")
}

fn position(mark: &Marker) -> Position {
    Position { line: mark.line(), column: mark.col() + 1 }
}

fn too_deep(at: Position) -> Fault {
    Fault::new(at, format!("nested deeper than {DEEPEST} levels; no key of a config is that deep"))
}

/// What the parser said, and what would be right where an operator commonly goes wrong.
fn syntax(error: &ScanError) -> String {
    use ErrorKind::*;
    let right = match error.kind() {
        TabNotAllowed | TabInBlockIndentation | TabInIndentation => "; indent with spaces",
        MappingValueNotAllowed | InvalidColonPlacement => {
            "; quote a value that has `: ` in it, and close every bracket before"
        }
        ExpectedBlockMappingKey | ExpectedBlockSequenceEntry | InvalidIndentation => {
            "; indent alike what belongs together, and quote a value that begins with a bracket"
        }
        UnclosedQuotedScalar => "; close the quote that begins here",
        UnclosedFlowCollection { .. } | UnexpectedEofFlowMapping | UnexpectedEofFlowSequence => {
            "; close the bracket that begins here"
        }
        UnexpectedCharacter { .. } | PlainScalarStartsWithDashFlowIndicator => "; quote the value",
        RecursionLimitExceeded => "; no key of a config is that deep",
        UnknownAnchor => {
            "; write `&NAME` before the value that `*NAME` stands for, or quote a `*` that is text"
        }
        _ => "",
    };
    format!("not YAML: {}{right}", error.info())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> (Option<Rc<YamlNode>>, Vec<Fault>) {
        let mut faults = Vec::new();
        let root = parse(text.as_bytes(), &|name| (name == "SET").then(|| "a: [b".to_owned()), &mut faults);
        (root, faults)
    }

    /// The tree in a line, each value with its place.
    fn shown(node: &YamlNode) -> String {
        let place = |at: Position| format!("@{}:{}", at.line, at.column);
        let at = place(node.at);
        match &node.kind {
            Kind::Null => format!("null{at}"),
            Kind::Unknown => format!("?{at}"),
            Kind::Scalar(text) => format!("{text:?}{at}"),
            Kind::Sequence(items) => {
                let items: Vec<String> = items.iter().map(|item| shown(item)).collect();
                format!("[{}]{at}", items.join(" "))
            }
            Kind::Mapping(entries) => {
                let entry =
                    |entry: &YamlEntry| format!("{}{}={}", entry.key, place(entry.at), shown(&entry.value));
                let entries: Vec<String> = entries.iter().map(entry).collect();
                format!("{{{}}}{at}", entries.join(" "))
            }
        }
    }

    fn tree(text: &str) -> String {
        let (root, faults) = read(text);
        assert_eq!(faults, [], "{text}");
        shown(&root.unwrap())
    }

    #[test]
    fn every_value_has_its_place_in_characters() {
        assert_eq!(
            tree("é: { ü: x,\n  b: [1, 'y'] }\n"),
            "{é@1:1={ü@1:6=\"x\"@1:9 b@2:3=[\"1\"@2:7 \"y\"@2:10]@2:6}@1:4}@1:1"
        );
    }

    #[test]
    fn windows_line_ends_and_a_byte_order_mark_change_nothing() {
        assert_eq!(tree("a:\r\n  b: c\r\n"), tree("a:\n  b: c\n"));
        assert!(tree("\u{feff}a: b\n").starts_with("{a@1:"));
    }

    #[test]
    fn only_plain_words_are_null() {
        assert_eq!(
            tree("[null, ~, '', 'null', nothing]"),
            "[null@1:2 null@1:8 \"\"@1:11 \"null\"@1:15 \"nothing\"@1:23]@1:1"
        );
    }

    #[test]
    fn a_variable_cannot_change_the_structure() {
        assert_eq!(tree("x: ${SET}"), "{x@1:1=\"a: [b\"@1:4}@1:1");
        let (root, faults) = read("x: ${GONE}\ny: ${GONE:-}");
        assert_eq!(shown(&root.unwrap()), "{x@1:1=?@1:4 y@2:1=null@2:4}@1:1");
        assert_eq!(faults.len(), 1);
    }

    #[test]
    fn a_key_is_not_expanded() {
        assert_eq!(tree("${SET}: x"), "{${SET}@1:1=\"x\"@1:9}@1:1");
    }

    #[test]
    fn an_alias_is_the_value_it_stands_for_and_a_merge_adds_what_is_not_there() {
        assert_eq!(
            tree("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: *a\n"),
            "{a@1:1={x@1:8=\"1\"@1:11 y@1:14=\"2\"@1:17}@1:7 b@2:1={y@2:13=\"3\"@2:16 x@1:8=\"1\"@1:11}@2:4 \
             c@3:1={x@1:8=\"1\"@1:11 y@1:14=\"2\"@1:17}@1:7}@1:1"
        );
    }

    #[test]
    fn the_first_of_two_equal_keys_counts_and_the_second_is_a_fault() {
        let (root, faults) = read("a: 1\nb: 2\na: 3\n");
        assert_eq!(shown(&root.unwrap()), "{a@1:1=\"1\"@1:4 b@2:1=\"2\"@2:4}@1:1");
        assert_eq!(faults.len(), 1);
        assert_eq!(faults[0].at, Some(Position { line: 3, column: 1 }));
    }

    #[test]
    fn aliases_cannot_make_a_small_file_large_or_deep() {
        let wide = format!("a0: &a0 [x, x]\n{}", chain(1..40, "[*P, *P]"));
        assert!(read(&wide).1[0].message.contains("aliases stand for"));
        let deep = format!("a0: &a0 [x]\n{}", chain(1..40, "[*P]"));
        assert!(read(&deep).1[0].message.contains("deeper"));
    }

    fn chain(range: std::ops::Range<usize>, value: &str) -> String {
        range.map(|i| format!("a{i}: &a{i} {}\n", value.replace('P', &format!("a{}", i - 1)))).collect()
    }

    #[test]
    fn the_largest_file_is_read_and_one_byte_more_is_not() {
        let text = |length: usize| format!("a: b #{}", "x".repeat(length - 6));
        assert!(read(&text(LARGEST_FILE)).0.is_some());
        assert!(read(&text(LARGEST_FILE + 1)).1[0].message.contains("1 MiB"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut faults = Vec::new();
            let root = parse(&bytes, &|_| None, &mut faults);
            prop_assert!(root.is_some() || !faults.is_empty());
        }

        #[test]
        fn whatever_looks_like_yaml_is_read_or_refused(text in "[ab:\\-\\[\\]{}&*!|>'\"%#,? \n\t<$~]{0,80}") {
            let mut faults = Vec::new();
            let root = parse(text.as_bytes(), &|_| None, &mut faults);
            prop_assert!(root.is_some() || !faults.is_empty());
        }
    }
}
