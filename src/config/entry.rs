//! The tables: each key of the config once.
//!
//! ```text
//! section! {
//!     /// How long things may take.
//!     #[derive(Debug, Clone, PartialEq, Eq)]
//!     pub struct Timeouts {
//!         /// From an Upgrade to the node's answer.
//!         handshake: Duration = duration(SOME_TIME).or("10s");
//!     }
//! }
//! ```
//!
//! An entry is a field of the struct and a key of the section: what it is for (in the manual, the schema and here), its
//! type, its [`Form`] and what it is when it is left out. [`Keys`] is made of it: how the section is read, shown and
//! compared, and which keys there are. `section! { for Node { .. } }` is the same for a struct of another module.
//! Where a key has another name than its field, the name stands in parentheses behind the field.

use serde_json::{Map, Value as Json, json};

use super::change::Comparison;
use super::key::{Key, KeysOf, Shape};
use super::raw::YamlNode;
use super::reader::{Reader, Section, Value};

/// A struct whose fields are the keys of a section.
pub(super) trait Keys: Sized + PartialEq + 'static {
    /// Its keys, in the order of balancer.yaml.
    fn keys() -> Vec<Key>;
    /// Reads it; `None` after the fault that something is missing.
    fn read(section: &Section) -> Option<Self>;
    /// Its keys and values as the config file has them.
    fn show(&self, into: &mut Map<String, Json>);
    /// Says what is different in `new`.
    fn compare(old: &Self, new: &Self, to: &mut Comparison);
}

/// The mapping under a key as an `S`.
pub(super) fn read_section<S: Keys>(value: &Value) -> Option<S> {
    S::read(&value.section(names(&S::keys())))
}

/// As the config file has it.
pub(super) fn shown<S: Keys>(section: &S) -> Json {
    let mut keys = Map::new();
    section.show(&mut keys);
    keys.into()
}

pub(super) fn names(keys: &[Key]) -> Vec<&'static str> {
    keys.iter().map(|key| key.name).collect()
}

/// What a section is without keys. A test reads every default.
pub(super) fn default<S: Keys>() -> S {
    read_json(&json!({}), read_section).expect("all its keys may be left out")
}

/// What `read` makes of a value that no file has; whatever it says about it.
fn read_json<T>(json: &Json, read: impl FnOnce(&Value) -> Option<T>) -> Option<T> {
    let node = YamlNode::of_json(json);
    read(&Value::root(&Reader::silent(None), &node))
}

type Read<T> = Box<dyn Fn(&Value) -> Option<T>>;
type ReadSection<T> = Box<dyn Fn(&Section) -> Option<T>>;
type Show<T> = Box<dyn Fn(&T, &mut Map<String, Json>)>;
type Compare<T> = Box<dyn Fn(&T, &T, &mut Comparison)>;

/// How a value is read, shown and compared, and what it looks like.
pub(super) struct Form<T> {
    pub shape: Shape,
    pub read: Read<T>,
    pub show: Box<dyn Fn(&T) -> Json>,
    /// Says how two that are not equal differ; without it, both are shown.
    pub compare: Option<Compare<T>>,
}

impl<T: 'static> Form<T> {
    pub(super) fn new(
        shape: Shape,
        read: impl Fn(&Value) -> Option<T> + 'static,
        show: impl Fn(&T) -> Json + 'static,
    ) -> Self {
        Self { shape, read: Box::new(read), show: Box::new(show), compare: None }
    }

    /// The same with `check` looking at what was read.
    pub(super) fn checked(self, check: impl Fn(&Value, &T) + 'static) -> Self {
        let read = self.read;
        let read = move |value: &Value| read(value).inspect(|it| check(value, it));
        Self { read: Box::new(read), ..self }
    }

    /// The same where other words say what is different.
    pub(super) fn compared_by(self, compare: impl Fn(&T, &T, &mut Comparison) + 'static) -> Self {
        Self { compare: Some(Box::new(compare)), ..self }
    }

    /// The same where null is `None`.
    pub(super) fn maybe(self) -> Form<Option<T>> {
        let Self { shape, read, show, compare } = self;
        let maybe = Form::new(
            Shape::Maybe(Box::new(shape)),
            move |value| if value.is_null() { Some(None) } else { read(value).map(Some) },
            move |it| it.as_ref().map(&show).into(),
        );
        match compare {
            Some(compare) => maybe.compared_by(move |old, new, to| match (old, new) {
                (Some(old), Some(new)) => compare(old, new, to),
                (old, new) => to.set(on_or_off(new.is_some()), on_or_off(old.is_some())),
            }),
            None => maybe,
        }
    }

    /// A key that is null unless it is written.
    pub(super) fn or_null(self) -> TableEntry<Option<T>> {
        self.maybe().or(Json::Null)
    }

    /// A key that is this, as in the config file, when it is left out.
    pub(super) fn or(self, default: impl Into<Json>) -> TableEntry<T> {
        TableEntry::Key(self, Absent::Default(default.into()))
    }

    /// The same, where the schema has nothing to say about it.
    pub(super) fn or_silently(self, default: impl Into<Json>) -> TableEntry<T> {
        TableEntry::Key(self, Absent::Unsaid(default.into()))
    }

    /// A key that has to be written; `expected` says what.
    pub(super) fn required(self, expected: impl Into<String>) -> TableEntry<T> {
        TableEntry::Key(self, Absent::Required(expected.into()))
    }
}

fn on_or_off(is_on: bool) -> String {
    if is_on { "on" } else { "off" }.into()
}

/// What a key is that is left out.
pub(super) enum Absent {
    /// A fault; what has to be written.
    Required(String),
    /// This value, as in the config file.
    Default(Json),
    /// The same, where the keys inside have their own defaults.
    Unsaid(Json),
}

/// A field of a struct and the keys that it is made of.
pub(super) enum TableEntry<T> {
    /// One key.
    Key(Form<T>, Absent),
    /// Several, which stand among those of the struct; or none.
    Keys(Flat<T>),
}

/// A field that takes what it is made of from the section itself.
pub(super) struct Flat<T> {
    keys: Box<dyn Fn() -> Vec<Key>>,
    read: ReadSection<T>,
    show: Show<T>,
    compare: Compare<T>,
}

/// A field whose own keys stand among those of the section.
pub(super) fn flat<S: Keys>() -> Flat<S> {
    Flat {
        keys: Box::new(S::keys),
        read: Box::new(S::read),
        show: Box::new(S::show),
        compare: Box::new(S::compare),
    }
}

/// A field without a key, which is made of others.
pub(super) fn derived<T: 'static>(read: impl Fn(&Section) -> Option<T> + 'static) -> Flat<T> {
    Flat {
        keys: Box::new(Vec::new),
        read: Box::new(read),
        show: Box::new(|_, _| {}),
        compare: Box::new(|_, _, _| {}),
    }
}

impl<T: 'static> Flat<T> {
    /// The same where other words say what is different.
    pub(super) fn compared_by(self, compare: impl Fn(&T, &T, &mut Comparison) + 'static) -> Self {
        Self { compare: Box::new(compare), ..self }
    }

    /// The same with these keys, and how they are shown.
    pub(super) fn with_keys(self, keys: KeysOf, show: impl Fn(&T, &mut Map<String, Json>) + 'static) -> Self {
        Self { keys: Box::new(keys), show: Box::new(show), ..self }
    }

    /// The same where the key `name` is another thing here.
    pub(super) fn saying(self, name: &'static str, says: &'static str) -> Self {
        let keys = self.keys;
        let with = move |key: Key| if key.name == name { Key { says, ..key } } else { key };
        Self { keys: Box::new(move || keys().into_iter().map(with).collect()), ..self }
    }
}

impl<T> From<Form<T>> for TableEntry<T> {
    /// A section that may be left out: its keys have their own defaults.
    fn from(form: Form<T>) -> Self {
        Self::Key(form, Absent::Unsaid(json!({})))
    }
}

impl<T> From<Flat<T>> for TableEntry<T> {
    fn from(flat: Flat<T>) -> Self {
        Self::Keys(flat)
    }
}

impl<T: PartialEq + 'static> TableEntry<T> {
    /// What the key `name` of `section` is, or what it is without.
    pub(super) fn read(&self, name: &'static str, section: &Section) -> Option<T> {
        let (form, absent) = match self {
            Self::Key(form, absent) => (form, absent),
            Self::Keys(flat) => return (flat.read)(section),
        };
        let written = match absent {
            Absent::Required(expected) => {
                return section.required(name, expected).and_then(|it| (form.read)(&it));
            }
            _ => section.value(name).and_then(|value| (form.read)(&value)),
        };
        match absent {
            Absent::Default(json) | Absent::Unsaid(json) => written.or_else(|| read_json(json, &form.read)),
            Absent::Required(_) => written,
        }
    }

    pub(super) fn show(&self, name: &'static str, it: &T, into: &mut Map<String, Json>) {
        match self {
            Self::Key(form, _) => {
                into.insert(name.to_owned(), (form.show)(it));
            }
            Self::Keys(flat) => (flat.show)(it, into),
        }
    }

    pub(super) fn compare(&self, name: &'static str, old: &T, new: &T, to: &mut Comparison) {
        match self {
            Self::Key(form, _) if old != new => to.below(name, |to| match &form.compare {
                Some(compare) => compare(old, new, to),
                None => to.set(said(&(form.show)(new)), said(&(form.show)(old))),
            }),
            Self::Key(..) => {}
            Self::Keys(flat) => (flat.compare)(old, new, to),
        }
    }

    pub(super) fn keys(self, name: &'static str, says: &'static str) -> Vec<Key> {
        match self {
            Self::Key(form, absent) => {
                let is_required = matches!(absent, Absent::Required(_));
                let default = if let Absent::Default(json) = absent { Some(json) } else { None };
                vec![Key { name, shape: form.shape, says: says.trim_start(), default, is_required }]
            }
            Self::Keys(flat) => (flat.keys)(),
        }
    }
}

/// A value as a sentence has it.
fn said(value: &Json) -> String {
    match value {
        Json::Null => "none".into(),
        Json::String(text) => text.clone(),
        Json::Array(items) => format!("[{}]", items.iter().map(said).collect::<Vec<_>>().join(", ")),
        // As Rust writes it: 2, where JSON has 2.0.
        Json::Number(number) if number.is_f64() => number.as_f64().unwrap_or_default().to_string(),
        other => other.to_string(),
    }
}

/// A struct and the table of its keys, or the table alone; the head of this file shows one.
macro_rules! section {
    (
        $(#[$attribute:meta])* $visible:vis struct $name:ident {
            $( $(#[doc = $says:literal])+ $field:ident $(($key:literal))? : $type:ty = $entry:expr; )*
        }
    ) => {
        $(#[$attribute])*
        $visible struct $name {
            $( $(#[doc = $says])+ $visible $field: $type, )*
        }

        $crate::config::entry::section! { for $name {
            $( $(#[doc = $says])+ $field $(($key))? : $type = $entry; )*
        } }
    };
    (
        for $name:ty {
            $( $(#[doc = $says:literal])* $field:ident $(($key:literal))? : $type:ty = $entry:expr; )*
        }
    ) => {
        impl $crate::config::entry::Keys for $name {
            fn keys() -> Vec<$crate::config::key::Key> {
                let mut keys = Vec::new();
                $( keys.extend(
                    $crate::config::entry::TableEntry::<$type>::from($entry)
                        .keys($crate::config::entry::name!($field $($key)?), concat!($($says),*)),
                ); )*
                keys
            }

            fn read(section: &$crate::config::reader::Section) -> Option<Self> {
                $( let $field = $crate::config::entry::TableEntry::<$type>::from($entry)
                    .read($crate::config::entry::name!($field $($key)?), section); )*
                Some(Self { $( $field: $field?, )* })
            }

            fn show(&self, into: &mut serde_json::Map<String, serde_json::Value>) {
                $( $crate::config::entry::TableEntry::<$type>::from($entry)
                    .show($crate::config::entry::name!($field $($key)?), &self.$field, into); )*
            }

            fn compare(old: &Self, new: &Self, to: &mut $crate::config::change::Comparison) {
                $( $crate::config::entry::TableEntry::<$type>::from($entry)
                    .compare($crate::config::entry::name!($field $($key)?), &old.$field, &new.$field, to); )*
            }
        }
    };
}

/// The key of a field: its own name, unless it has another.
macro_rules! name {
    ($field:ident) => {
        stringify!($field)
    };
    ($field:ident $key:literal) => {
        $key
    };
}

pub(super) use {name, section};
