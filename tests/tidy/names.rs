//! Names and sizes of what a file defines: types that are told apart by their names, errors that say that they are some,
//! functions that are read at a glance, one way to lay out a module.

use std::collections::{BTreeMap, BTreeSet};

use crate::source::File;

/// Names that several types of a crate may have, as in std: the module says whose.
const IDIOMS: [&str; 4] = ["Builder", "Config", "Error", "Iter"];

/// Lines that a function may have.
pub const MOST_FUNCTION_LINES: usize = 50;

/// The types that a file defines, those of its tests too, with their lines. A `type` that is not at the top level is a
/// trait's.
fn types(file: &File) -> Vec<(usize, String)> {
    let own = |line: &str| {
        let is_inner_alias = line.starts_with(' ') && line.trim_start().starts_with("type ");
        type_name(line.trim_start()).filter(|_| !is_inner_alias).map(str::to_owned)
    };
    file.code().lines().enumerate().filter_map(|(at, line)| Some((at + 1, own(line)?))).collect()
}

fn type_name(line: &str) -> Option<&str> {
    let item = match line.strip_prefix("pub") {
        Some(rest) if rest.starts_with('(') => rest.split_once(") ")?.1,
        Some(rest) => rest.strip_prefix(' ')?,
        None => line,
    };
    let (keyword, rest) = item.split_once(' ')?;
    let is_type = ["struct", "enum", "trait", "type", "union"].contains(&keyword);
    let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
    is_type.then(|| &rest[..end])
}

/// Types of one crate that share a name.
pub fn shared_names(files: &[File]) -> Vec<String> {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for file in files {
        for (line, name) in types(file) {
            places.entry(name).or_default().push(format!("{}:{line}", file.path));
        }
    }
    let shared = places.into_iter().filter(|(name, at)| at.len() > 1 && !IDIOMS.contains(&name.as_str()));
    shared.map(|(name, at)| format!("{name} is {} types: {}", at.len(), at.join(", "))).collect()
}

/// Public functions of a crate that nobody outside of it names.
pub fn unused_public_functions(sources: &[File], outside: &[File]) -> Vec<String> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let named: BTreeSet<&str> = outside.iter().flat_map(|file| file.code().split(|c| !is_word(c))).collect();
    let mut faults = Vec::new();
    for file in sources.iter().filter(|file| !file.path.contains("src/bin/")) {
        let public = ["pub fn ", "pub async fn ", "pub const fn "].map(|start| file.names(start));
        let unused = public.into_iter().flatten().filter(|(_, name)| !named.contains(name.as_str()));
        faults
            .extend(unused.map(|(line, name)| {
                file.fault(line, &format!("{name} is for this crate alone: pub(crate)"))
            }));
    }
    faults
}

/// Errors that are not called so. `Fault` is what is wrong in a config file.
pub fn unnamed_errors(file: &File) -> Vec<String> {
    let code = file.shipped();
    let mut names: BTreeSet<&str> = BTreeSet::new();
    for before in ["std::error::Error for ", "impl Error for "] {
        let starts = code.match_indices(before).map(|(at, _)| &code[at + before.len()..]);
        names
            .extend(starts.map(|rest| rest.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default()));
    }
    for (at, _) in code.match_indices("#[derive(") {
        let Some((derived, rest)) = code[at..].split_once(")]") else { continue };
        let words = derived.split(|c: char| !c.is_alphanumeric());
        if words.into_iter().any(|word| word == "Error") {
            names.extend(rest.lines().find_map(type_name));
        }
    }
    let is_fault = |name: &str| file.path.starts_with("src/config/") && name.starts_with("Fault");
    let wrong = names.into_iter().filter(|name| !name.ends_with("Error") && !is_fault(name));
    wrong.map(|name| file.fault(1, &format!("{name} is an error, so it is called …Error"))).collect()
}

/// Doc comments that say nothing.
pub fn empty_comments(file: &File) -> Vec<String> {
    let lines = file.text.lines().enumerate();
    let empty = lines.filter(|(_, line)| line.trim_start().starts_with("/// See the module"));
    empty
        .map(|(at, _)| file.fault(at + 1, "says nothing: write the one sentence, or link the item"))
        .collect()
}

/// Functions that are too long to be read at a glance.
pub fn long_functions(file: &File) -> Vec<String> {
    let lines: Vec<&str> = file.shipped().lines().collect();
    let is_start = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().take(6).collect();
        words.contains(&"fn") && !line.trim_start().starts_with("//")
    };
    let starts = lines.iter().enumerate().filter(|(_, line)| is_start(line));
    let mut faults = Vec::new();
    for (start, line) in starts {
        let indent = &line[..line.len() - line.trim_start().len()];
        let end = format!("{indent}}}");
        let length = lines[start..].iter().position(|line| {
            **line == end
                || line.ends_with(';') && line.starts_with(indent) && !line[indent.len()..].starts_with(' ')
        });
        if length.is_some_and(|length| length + 1 > MOST_FUNCTION_LINES) {
            faults
                .push(file.fault(start + 1, &format!("a function of more than {MOST_FUNCTION_LINES} lines")));
        }
    }
    faults
}

/// Modules that are a file beside their folder: a folder has a `mod.rs`.
pub fn split_modules(files: &[File]) -> Vec<String> {
    let paths: BTreeSet<&str> = files.iter().map(|file| file.path.as_str()).collect();
    let has_folder = |path: &str| {
        let folder = format!("{}/", path.trim_end_matches(".rs"));
        paths.range(folder.as_str()..).next().is_some_and(|next| next.starts_with(&folder))
    };
    let split = paths.iter().filter(|path| has_folder(path));
    split.map(|path| format!("{path}: beside its folder; it goes there as mod.rs")).collect()
}

#[cfg(test)]
mod examples {
    use super::*;

    #[test]
    fn types_that_share_a_name_are_seen_and_idioms_and_inner_types_are_none() {
        let one = File::new(
            "src/a.rs",
            "pub struct Place;\npub(crate) enum State {}\npub struct Config;\nimpl X {\n    type Err = Y;\n}",
        );
        let two = File::new(
            "src/b.rs",
            "struct Place(u8);\ntype Config = u8;\n// struct State;\n#[cfg(test)]\nmod tests {\n    struct State;\n}",
        );
        let shared = shared_names(&[one, two]);
        let expected =
            ["Place is 2 types: src/a.rs:1, src/b.rs:1", "State is 2 types: src/a.rs:2, src/b.rs:6"];
        assert_eq!(shared, expected, "tests of the crate count, a trait's type and an idiom do not");
    }

    #[test]
    fn an_error_by_another_name_is_seen() {
        let text = "#[derive(Debug, Error)]\n#[error(\"x\")]\npub enum DialFault {}\n#[derive(Debug)]\nstruct Fault;\n\
                    impl std::error::Error for Fault {}\n#[derive(thiserror::Error)]\nstruct DialError;";
        assert_eq!(unnamed_errors(&File::new("src/net/dial.rs", text)).len(), 2);
        let fault = "#[derive(Debug, Error)]\npub struct Fault;";
        assert!(unnamed_errors(&File::new("src/config/fault.rs", fault)).is_empty());
    }

    #[test]
    fn a_public_function_that_nobody_else_names_is_seen() {
        let own =
            File::new("src/a.rs", "pub fn used() {}\npub async fn alone() {}\npub(crate) fn inner() {}");
        let other = File::new("tests/it/a.rs", "fn f() { used() }\n// alone");
        assert_eq!(unused_public_functions(&[own], &[other]).len(), 1);
    }

    #[test]
    fn a_comment_that_says_nothing_is_seen() {
        let text = "//! A head. See the module.\n/// See the module.\nstruct A;\n/// A thing.\nstruct B;\n";
        assert_eq!(empty_comments(&File::new("src/a.rs", text)).len(), 1);
    }

    #[test]
    fn a_long_function_and_a_module_beside_its_folder_are_seen() {
        let body = "    x();\n".repeat(MOST_FUNCTION_LINES);
        let text = format!(
            "trait T {{\n    fn none(&self);\n}}\nfn short() {{\n}}\npub async fn long(\n    a: u8,\n) {{\n{body}}}\n"
        );
        assert_eq!(long_functions(&File::new("src/a.rs", &text)).len(), 1);
        let paths = ["src/a.rs", "src/a/b.rs", "src/ab.rs", "src/c/mod.rs", "src/c/d.rs"];
        let files: Vec<File> = paths.iter().map(|path| File::new(path, "")).collect();
        assert_eq!(split_modules(&files).len(), 1);
    }
}
