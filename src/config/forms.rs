//! The kinds of values that keys have, each with its bounds: what the entries of the tables are made of.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use mainstay_core::units::{show_duration, show_percent, show_size};
use serde_json::Value as Json;

use super::entry::{Form, Keys, names, read_section, shown};
use super::key::{Shape, Text};

/// A text that `parse` makes a `T` of; `expected` says of what it does.
pub(super) fn parsed<T: ToString + 'static>(
    text: Text,
    expected: impl Into<String>,
    parse: impl Fn(&str) -> Option<T> + 'static,
) -> Form<T> {
    let expected = expected.into();
    Form::new(Shape::Text(text), move |value| value.parsed(&expected, &parse), |it| it.to_string().into())
}

/// A text whose type says itself what is wrong with it.
pub(super) fn typed<T>(text: Text, expected: &'static str) -> Form<T>
where
    T: FromStr<Err = String> + ToString + 'static,
{
    Form::new(Shape::Text(text), move |value| value.typed(expected), |it: &T| it.to_string().into())
}

/// The path of a file.
pub(super) fn file(expected: &'static str) -> Form<PathBuf> {
    let show = |path: &PathBuf| path.display().to_string().into();
    Form::new(Shape::Text(FILE), move |value| value.text(expected).map(PathBuf::from), show)
}

pub(super) const FILE: Text = Text("the path of a file", "");

/// An enum that the config writes in words.
pub(super) trait Word: Copy + PartialEq + 'static {
    /// All of them.
    const WORDS: &'static [(&'static str, Self)];

    fn word(self) -> &'static str {
        Self::WORDS.iter().find(|(_, it)| *it == self).map_or("", |(word, _)| word)
    }
}

pub(super) fn word<T: Word>() -> Form<T> {
    let words = T::WORDS.iter().map(|(word, _)| *word).collect();
    Form::new(Shape::Word(words), |value| value.word(T::WORDS), |it| it.word().into())
}

/// true or false.
pub(super) fn flag() -> Form<bool> {
    Form::new(Shape::Flag, |value| value.boolean(), |it| (*it).into())
}

/// A number; a whole one if `N` is.
pub(super) fn number<N>(range: RangeInclusive<N>) -> Form<N>
where
    N: FromStr + PartialOrd + Display + Copy + Into<Json> + 'static,
{
    let bound = |bound: &N| bound.to_string().parse().expect("a bound is a whole number");
    let (least, most) = (bound(range.start()), bound(range.end()));
    let is_whole = !(*range.start()).into().is_f64();
    let shape = if is_whole { Shape::Whole(least, most) } else { Shape::Number(least, most) };
    Form::new(shape, move |value| value.number(range.clone()), |it| (*it).into())
}

pub(super) fn duration(range: RangeInclusive<Duration>) -> Form<Duration> {
    let shape = Shape::Duration(range.start().is_zero());
    Form::new(shape, move |value| value.duration(range.clone()), |it| show_duration(it).into())
}

/// Bytes.
pub(super) fn size<N: TryFrom<u64> + TryInto<u64> + Copy + 'static>(range: RangeInclusive<u64>) -> Form<N> {
    let show = |it: &N| show_size((*it).try_into().unwrap_or(u64::MAX)).into();
    let shape = Shape::Size(range.clone());
    Form::new(shape, move |value| value.size(range.clone()).and_then(|bytes| bytes.try_into().ok()), show)
}

/// A part of all, in percent.
pub(super) fn percent() -> Form<u8> {
    let shape = Shape::Text(Text("a part, 0% to 100%", "(100|[0-9]{1,2})%"));
    Form::new(shape, |value| value.percent(), |it| show_percent(*it).into())
}

/// A list of texts, each of this form. What is wrong is left out.
pub(super) fn list<T: 'static>(item: Form<T>) -> Form<Vec<T>> {
    let shape = match item.shape {
        Shape::Text(text) => Shape::Texts(text),
        other => other,
    };
    let show = move |list: &Vec<T>| list.iter().map(&item.show).collect();
    Form::new(shape, move |value| Some(value.items().iter().filter_map(&item.read).collect()), show)
}

/// A mapping with the keys of `S`.
pub(super) fn section<S: Keys>() -> Form<S> {
    Form::new(Shape::Section(S::keys), read_section, shown).compared_by(S::compare)
}

/// A list of at least one mapping with the keys of `S`; `example` is what a line of it looks like. One of which
/// something is missing is left out.
pub(super) fn sections<S: Keys>(example: &'static str) -> Form<Vec<S>> {
    let read = move |value: &super::reader::Value| {
        let known = names(&S::keys());
        let items = value.some_items(example);
        Some(items.iter().filter_map(|item| S::read(&item.section(known.clone()))).collect())
    };
    Form::new(Shape::Sections(S::keys), read, |list: &Vec<S>| list.iter().map(shown).collect())
}

impl<T: 'static> Form<T> {
    /// The same where a word is `None`; `expected` says what there may be in all.
    pub(super) fn or_word(self, word: &'static str, expected: impl Into<String>) -> Form<Option<T>> {
        let (read, show, expected) = (self.read, self.show, expected.into());
        Form::new(
            Shape::Either(word, Box::new(self.shape)),
            move |value| {
                let it = match value.as_text() {
                    Some(text) if text == word => Some(None),
                    _ => value.silently(&read).map(Some),
                };
                if it.is_none() {
                    value.expected(&expected);
                }
                it
            },
            move |it| it.as_ref().map_or(word.into(), &show),
        )
    }
}
