//! What values look like, as a schema and in words.

use serde_json::{Value, json};

use super::{Key, section};

/// Text with a variable in it, whatever the key wants.
pub(super) const VARIABLE: &str = r"\$\{";

/// What a value looks like.
#[derive(Debug, Clone, Copy)]
pub(super) enum Form {
    /// A mapping with these keys.
    Section(&'static [Key]),
    /// The same, or null, which turns the whole off.
    Switch(&'static [Key]),
    /// A mapping of names that are the operator's to sections with these keys.
    Named(&'static [Key]),
    /// A list of sections with these keys; at least one.
    Sections(&'static [Key]),
    /// A list of sections of which each has exactly one of these keys.
    Choices(&'static [Key]),
    /// A list of texts, each like this.
    Texts(Text),
    /// A text.
    Text(Text),
    /// One of these words.
    Word(&'static [&'static str]),
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
    /// A size, least and most in words.
    Size(&'static str),
    /// This, or null.
    Maybe(&'static Form),
    /// This word, or that.
    Either(&'static str, &'static Form),
}

/// A text: what it is, and the pattern of the right ones (empty: any).
#[derive(Debug, Clone, Copy)]
pub(super) struct Text(pub &'static str, pub &'static str);

/// Units that have one meaning only. The reader knows more; who writes `hours` is told to write `h`.
const DURATION: &str = r"([0-9]+ ?(ms|s|m|h|d|w) ?)+";
const SIZE: &str = "[0-9]+(B|KiB|MiB|GiB)";

impl Form {
    /// The schema of such a value.
    pub fn schema(self) -> Value {
        match self {
            Self::Section(keys) => section(keys),
            Self::Switch(keys) => or_null(section(keys)),
            Self::Named(keys) => json!({
                "type": "object", "minProperties": 1, "additionalProperties": section(keys),
                "propertyNames": { "pattern": whole("[A-Za-z0-9_.-]{1,64}") }
            }),
            Self::Sections(keys) => json!({ "type": "array", "minItems": 1, "items": section(keys) }),
            Self::Choices(keys) => {
                let mut item = section(keys);
                item["type"] = "object".into();
                item["minProperties"] = 1.into();
                item["maxProperties"] = 1.into();
                json!({ "type": "array", "items": item })
            }
            Self::Texts(text) => json!({ "type": "array", "items": text.schema() }),
            Self::Text(text) => text.schema(),
            Self::Word(words) => or_variable(json!({ "enum": words })),
            Self::Flag => or_variable(json!({ "type": "boolean" })),
            Self::Whole(least, most) => {
                or_variable(json!({ "type": "integer", "minimum": least, "maximum": most }))
            }
            Self::Number(least, most) => {
                or_variable(json!({ "type": "number", "minimum": least, "maximum": most }))
            }
            Self::Codes(codes, least, most) => json!({ "anyOf": [
                { "enum": codes }, { "type": "integer", "minimum": least, "maximum": most }, variable()
            ] }),
            Self::Duration(_) => Text("", DURATION).schema(),
            Self::Size(_) => Text("", SIZE).schema(),
            Self::Maybe(form) => or_null(form.schema()),
            Self::Either(word, form) => json!({ "anyOf": [{ "const": word }, form.schema()] }),
        }
    }

    /// The same in a few words.
    pub fn words(self) -> String {
        match self {
            Self::Section(_) => "a mapping".into(),
            Self::Switch(_) => "a mapping, or null".into(),
            Self::Named(_) => "a mapping of names".into(),
            Self::Sections(_) | Self::Choices(_) => "a list of mappings".into(),
            Self::Texts(Text(what, _)) => format!("a list, each {what}"),
            Self::Text(Text(what, _)) => what.into(),
            Self::Word([most @ .., last]) => format!("{} or {last}", most.join(", ")),
            Self::Word([]) => "nothing".into(),
            Self::Flag => "true or false".into(),
            Self::Whole(least, most) | Self::Number(least, most) => format!("a number, {least} to {most}"),
            Self::Codes(codes, least, most) => {
                let codes: Vec<String> = codes.iter().map(u64::to_string).collect();
                format!("{} or {least} to {most}", codes.join(", "))
            }
            Self::Duration(true) => "a duration, 0s or more".into(),
            Self::Duration(false) => "a duration".into(),
            Self::Size(range) => format!("a size, {range}"),
            Self::Maybe(form) => format!("{}, or null", form.words()),
            Self::Either(word, form) => format!("{word}, or {}", form.words()),
        }
    }

    /// The keys inside, and what stands between the key and them in a path.
    pub fn inner(self) -> Option<(&'static str, &'static [Key])> {
        match self {
            Self::Section(keys) | Self::Switch(keys) => Some(("", keys)),
            Self::Named(keys) => Some((".NAME", keys)),
            Self::Sections(keys) | Self::Choices(keys) => Some(("[]", keys)),
            _ => None,
        }
    }
}

impl Text {
    fn schema(self) -> Value {
        match self.1 {
            "" => json!({ "type": "string", "minLength": 1 }),
            pattern => json!({ "type": "string", "pattern": format!("{}|{VARIABLE}", whole(pattern)) }),
        }
    }
}

/// The pattern for all of a text.
fn whole(pattern: &str) -> String {
    format!("^({pattern})$")
}

fn variable() -> Value {
    json!({ "$ref": "#/$defs/variable" })
}

fn or_variable(schema: Value) -> Value {
    json!({ "anyOf": [schema, variable()] })
}

fn or_null(mut schema: Value) -> Value {
    match schema["type"].take() {
        Value::String(kind) => schema["type"] = json!([kind, "null"]),
        kinds @ Value::Array(_) => schema["type"] = kinds,
        _ => {
            // What has no type of its own is a choice.
            schema = json!({ "anyOf": [without_type(schema), { "type": "null" }] });
        }
    }
    schema
}

/// Taking a type that is not there has left null in its place.
fn without_type(mut schema: Value) -> Value {
    if let Some(object) = schema.as_object_mut() {
        object.remove("type");
    }
    schema
}
