//! What is known of a key without reading it: its name, what its value looks like, what it is for.
//!
//! The tables of the sections ([`super::entry`]) give these; the schema, the manual, the order of keys and the names
//! that a section knows are made of them.

use std::ops::RangeInclusive;

use serde_json::Value as Json;

use mainstay_core::units::show_size;

/// One key of the config.
pub(super) struct Key {
    /// As written.
    pub name: &'static str,
    /// What its value looks like.
    pub shape: Shape,
    /// What it is for.
    pub says: &'static str,
    /// What it is when it is left out; `None` where something else decides.
    pub default: Option<Json>,
    /// Whether it has to be written.
    pub is_required: bool,
}

impl Key {
    /// One of several of which a section has one, with these keys of its own.
    pub(super) fn choice(name: &'static str, keys: KeysOf, says: &'static str) -> Self {
        Self { name, shape: Shape::Section(keys), says, default: None, is_required: false }
    }
}

/// The keys of a section.
pub(super) type KeysOf = fn() -> Vec<Key>;

/// What a value looks like.
#[derive(Debug, Clone)]
pub(super) enum Shape {
    /// A mapping with these keys.
    Section(KeysOf),
    /// A mapping of names that are the operator's to sections with these keys.
    Named(KeysOf),
    /// A list of sections with these keys; at least one.
    Sections(KeysOf),
    /// A list of sections of which each has exactly one of these keys.
    Choices(KeysOf),
    /// A list of texts, each like this.
    Texts(Text),
    /// A text.
    Text(Text),
    /// One of these words.
    Word(Vec<&'static str>),
    /// true or false.
    Flag,
    /// A whole number, least and most.
    Whole(u64, u64),
    /// A number, least and most.
    Number(u64, u64),
    /// Any of these whole numbers, or one from a range.
    Codes(&'static [u64], u64, u64),
    /// A duration; at least 1ms when false, 0s as well when true.
    Duration(bool),
    /// A size, least and most.
    Size(RangeInclusive<u64>),
    /// This, or null.
    Maybe(Box<Shape>),
    /// This word, or that.
    Either(&'static str, Box<Shape>),
}

/// A text: what it is, and the pattern of the right ones (empty: any).
#[derive(Debug, Clone, Copy)]
pub(super) struct Text(pub &'static str, pub &'static str);

impl Shape {
    /// What it is, in a few words.
    pub(super) fn words(&self) -> String {
        match self {
            Self::Section(_) => "a mapping".into(),
            Self::Named(_) => "a mapping of names".into(),
            Self::Sections(_) | Self::Choices(_) => "a list of mappings".into(),
            Self::Texts(Text(what, _)) => format!("a list, each {what}"),
            Self::Text(Text(what, _)) => (*what).into(),
            Self::Word(words) => match &words[..] {
                [most @ .., last] => format!("{} or {last}", most.join(", ")),
                [] => "nothing".into(),
            },
            Self::Flag => "true or false".into(),
            Self::Whole(least, most) | Self::Number(least, most) => format!("a number, {least} to {most}"),
            Self::Codes(codes, least, most) => {
                let codes: Vec<String> = codes.iter().map(u64::to_string).collect();
                format!("{} or {least} to {most}", codes.join(", "))
            }
            Self::Duration(true) => "a duration, 0s or more".into(),
            Self::Duration(false) => "a duration".into(),
            Self::Size(range) => {
                format!("a size, {} to {}", show_size(*range.start()), show_size(*range.end()))
            }
            Self::Maybe(shape) => format!("{}, or null", shape.words()),
            Self::Either(word, shape) => format!("{word}, or {}", shape.words()),
        }
    }

    /// The keys inside, and what stands between the key and them in a path.
    pub(super) fn inner(&self) -> Option<(&'static str, Vec<Key>)> {
        match self {
            Self::Section(keys) => Some(("", keys())),
            Self::Named(keys) => Some((".NAME", keys())),
            Self::Sections(keys) | Self::Choices(keys) => Some(("[]", keys())),
            Self::Maybe(shape) => shape.inner(),
            _ => None,
        }
    }
}
