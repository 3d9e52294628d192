//! What the rules of the layout read: the crate's files, the order and bands of its modules, and code without its
//! comments and literals.
//!
//! This is a scanner and no parser; it knows where Rust's comments, strings and characters end, and what a whole
//! word is. That is enough for the rules, which are about words.

use std::fs;
use std::path::{Path, PathBuf};

/// The crates whose modules have an order and bands, by their folders.
pub const CRATES: [&str; 4] =
    ["", "crates/mainstay-core/", "crates/mainstay-node/", "crates/socketio-redis/"];

/// The folder of the workspace.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The files of a crate's library and programs.
pub fn sources(krate: &str) -> Vec<File> {
    files(&[&format!("{krate}src")])
}

/// All Rust files below these folders of the workspace.
pub fn files(folders: &[&str]) -> Vec<File> {
    let root = root();
    let mut paths = Vec::new();
    for folder in folders.iter().map(|folder| root.join(folder)).filter(|folder| folder.exists()) {
        collect(&folder, &mut paths);
    }
    paths.sort();
    paths
        .iter()
        .map(|path| read(path.strip_prefix(root.to_str().unwrap()).unwrap().trim_start_matches('/')))
        .collect()
}

fn collect(folder: &Path, into: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let is_foreign = path.ends_with("node_modules") || path.ends_with("target");
        if path.is_dir() && !is_foreign {
            collect(&path, into);
        } else if path.extension().is_some_and(|end| end == "rs") {
            into.push(path.to_str().unwrap().to_string());
        }
    }
}

pub fn read(path: &str) -> File {
    let whole = root().join(path);
    File::new(path, &fs::read_to_string(&whole).unwrap_or_else(|fault| panic!("{path}: {fault}")))
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Band {
    Pure,
    Mechanism,
    Plane,
}

/// The modules of lib.rs in their order, each with the band that a comment above it names.
pub struct Modules(Vec<(String, Band)>);

impl Modules {
    pub fn of_the_crate(krate: &str) -> Self {
        let modules = Self::of(&read(&format!("{krate}src/lib.rs")).text);
        for band in [Band::Pure, Band::Mechanism] {
            assert!(modules.0.iter().any(|(_, of)| *of == band), "{krate} has no modules in {band:?}");
        }
        modules
    }

    pub fn of(lib: &str) -> Self {
        let mut band = Band::Plane;
        let mut modules = Vec::new();
        for line in lib.lines() {
            let name = line.strip_prefix("pub mod ").or_else(|| line.strip_prefix("mod "));
            match name.and_then(|name| name.strip_suffix(';')) {
                Some(name) => modules.push((name.to_string(), band)),
                // What another crate of the workspace lends under a name of its own.
                None if line.starts_with("pub use mainstay_core::") => {
                    let names =
                        line.split(['{', ',', '}']).skip(1).map(str::trim).filter(|name| *name != ";");
                    let names = names.map(|name| name.rsplit(' ').next().unwrap_or(name).to_string());
                    modules.extend(names.map(|name| (name, band)));
                }
                None if line.starts_with("// pure:") => band = Band::Pure,
                None if line.starts_with("// mechanism:") => band = Band::Mechanism,
                None if line.starts_with("// planes") => band = Band::Plane,
                None => {}
            }
        }
        Self(modules)
    }

    pub fn place(&self, name: &str) -> Option<usize> {
        self.0.iter().position(|(module, _)| module == name)
    }

    pub fn band(&self, name: &str) -> Option<Band> {
        self.0.iter().find(|(module, _)| module == name).map(|(_, band)| *band)
    }
}

/// One source file.
pub struct File {
    /// From the workspace's root, with `/`.
    pub path: String,
    pub text: String,
    /// The text with every comment and literal blanked out, line by line the same.
    code: String,
    /// Where in `code` the inline tests begin; its end without any, its start when the whole file is tests.
    tests_from: usize,
}

impl File {
    pub fn new(path: &str, text: &str) -> Self {
        let code = code(text);
        let is_test = path.starts_with("tests/") || path.contains("/tests/") || path.ends_with("/tests.rs");
        let tests_from = if is_test { 0 } else { inline_tests(&code).unwrap_or(code.len()) };
        Self { path: path.into(), text: text.into(), code, tests_from }
    }

    /// The top-level module that the file belongs to; `lib` and `bin` are none of lib.rs's.
    pub fn module(&self) -> &str {
        self.inside().split('/').next().unwrap_or_default().trim_end_matches(".rs")
    }

    /// Its path below the `src` of its crate.
    fn inside(&self) -> &str {
        self.path.split_once("src/").map_or(&self.path, |(_, inside)| inside)
    }

    /// How many modules the file is deep: 1 for `src/log.rs` and `src/log/mod.rs`, 2 for `src/log/line.rs`.
    fn depth(&self) -> usize {
        self.inside().trim_end_matches("/mod.rs").trim_end_matches(".rs").split('/').count()
    }

    pub fn fault(&self, line: usize, what: &str) -> String {
        format!("{}:{line}: {what}", self.path)
    }

    fn line(&self, at: usize) -> usize {
        self.code[..at].matches('\n').count() + 1
    }

    /// Its code, tests included.
    pub fn code(&self) -> &str {
        &self.code
    }

    /// Its code without tests; nothing of a file that is tests as a whole.
    pub fn shipped(&self) -> &str {
        &self.code[..self.tests_from]
    }

    pub fn before_inline_tests(&self) -> &str {
        &self.code[..inline_tests(&self.code).unwrap_or(self.code.len())]
    }

    pub fn shipped_with<'a>(&'a self, words: &'a [&str]) -> impl Iterator<Item = (usize, &'a str)> {
        self.with(words).filter(|(at, _)| *at < self.tests_from).map(|(at, word)| (self.line(at), word))
    }

    pub fn tests_with<'a>(&'a self, words: &'a [&str]) -> impl Iterator<Item = (usize, &'a str)> {
        self.with(words).filter(|(at, _)| *at >= self.tests_from).map(|(at, word)| (self.line(at), word))
    }

    /// Where these words stand, as whole words.
    fn with<'a>(&'a self, words: &'a [&str]) -> impl Iterator<Item = (usize, &'a str)> {
        words.iter().flat_map(move |word| whole_words(&self.code, word).map(move |at| (at, *word)))
    }

    /// The identifiers that follow `before`, those in a `{group}` one by one, with their lines.
    pub fn names(&self, before: &str) -> Vec<(usize, String)> {
        let starts = whole_words(&self.code, before).map(|at| at + before.len());
        starts.flat_map(|at| self.names_at(at)).collect()
    }

    fn names_at(&self, at: usize) -> Vec<(usize, String)> {
        let rest = &self.code[at..];
        let Some(group) = rest.strip_prefix('{') else { return vec![(self.line(at), identifier(rest))] };
        let (mut depth, mut names, mut starts) = (0, Vec::new(), true);
        for (offset, c) in group.char_indices() {
            match c {
                '}' if depth == 0 => break,
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 0 => starts = true,
                c if starts && is_word(c) => {
                    names.push((self.line(at + 1 + offset), identifier(&group[offset..])));
                    starts = false;
                }
                _ => {}
            }
        }
        names
    }

    /// What `super::super::name` reaches when the chain is long enough to end at the crate's root.
    pub fn root_names_through_super(&self) -> Vec<(usize, String)> {
        let mut names = Vec::new();
        for at in whole_words(&self.code, "super::").filter(|at| !self.code[..*at].ends_with("::")) {
            let mut end = at;
            let mut ups = 0;
            while self.code[end..].starts_with("super::") {
                (end, ups) = (end + "super::".len(), ups + 1);
            }
            let depth = self.depth() + usize::from(at >= self.tests_from);
            if ups >= depth {
                names.extend(self.names_at(end));
            }
        }
        names
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn identifier(text: &str) -> String {
    text.chars().take_while(|c| is_word(*c)).collect()
}

/// Where `word` stands in `code` and is not a part of a longer word.
fn whole_words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let joined = |neighbour: Option<char>, edge: Option<char>| {
        neighbour.is_some_and(is_word) && edge.is_some_and(is_word)
    };
    code.match_indices(word).map(|(at, _)| at).filter(move |at| {
        let before = code[..*at].chars().next_back();
        let after = code[at + word.len()..].chars().next();
        !joined(before, word.chars().next()) && !joined(after, word.chars().next_back())
    })
}

/// Where the first `#[cfg(test)]` of a module stands.
fn inline_tests(code: &str) -> Option<usize> {
    code.match_indices("#[cfg(test)]").map(|(at, _)| at).find(|at| {
        let mut item = code[*at..].trim_start_matches("#[cfg(test)]").trim_start();
        while item.starts_with("#[") {
            item = item.split_once(']').map_or("", |(_, rest)| rest).trim_start();
        }
        let item = item.strip_prefix("pub").unwrap_or(item);
        let item =
            item.strip_prefix('(').and_then(|rest| rest.split_once(')')).map_or(item, |(_, rest)| rest);
        item.trim_start().starts_with("mod ")
    })
}

/// The text with comments and literals as spaces; line feeds stay.
fn code(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    let mut previous = ' ';
    while let Some(c) = rest.chars().next() {
        let hidden = comment(rest).or_else(|| literal(rest, previous)).unwrap_or(0);
        code.extend(rest[..hidden].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        if hidden == 0 {
            code.push(c);
        }
        previous = if hidden == 0 { c } else { ' ' };
        rest = &rest[hidden.max(if hidden == 0 { c.len_utf8() } else { 0 })..];
    }
    code
}

/// The length of the comment that begins here.
fn comment(text: &str) -> Option<usize> {
    if text.starts_with("//") {
        return Some(text.find('\n').unwrap_or(text.len()));
    }
    text.starts_with("/*").then(|| {
        let mut depth = 0;
        for (at, _) in text.char_indices() {
            depth += usize::from(text[at..].starts_with("/*"));
            if text[at..].starts_with("*/") {
                depth -= 1;
                if depth == 0 {
                    return at + 2;
                }
            }
        }
        text.len()
    })
}

/// The length of the string or character that begins here, after the character `previous`.
fn literal(text: &str, previous: char) -> Option<usize> {
    if !is_word(previous) {
        let raw = text.strip_prefix(['b', 'c']).unwrap_or(text).strip_prefix('r');
        let hashes = raw.map_or(0, |raw| raw.len() - raw.trim_start_matches('#').len());
        if let Some(body) = raw.and_then(|raw| raw[hashes..].strip_prefix('"')) {
            let end = format!("\"{}", "#".repeat(hashes));
            let length = body.find(&end).map_or(body.len(), |at| at + end.len());
            return Some(text.len() - body.len() + length);
        }
    }
    match text.chars().next()? {
        '"' => Some(quoted(text, '"')),
        // `'a` is a lifetime, unless a quote follows its one character.
        '\'' if text[1..].starts_with('\\') => Some(quoted(text, '\'')),
        '\'' => text.char_indices().nth(2).filter(|(_, c)| *c == '\'').map(|(at, _)| at + 1),
        _ => None,
    }
}

fn quoted(text: &str, quote: char) -> usize {
    let mut chars = text.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => drop(chars.next()),
            c if c == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod examples {
    use super::*;

    #[test]
    fn comments_and_literals_are_blank_and_every_line_stays_where_it_is() {
        let text = "a/* b /* c */ d */e\n\"f\\\"g\" h 'i' '\\'' &'j k\nr##\"l\"# \n\"## m br\"n\" for\"o\" b'p' r#q\n// r";
        let code = code(text);
        assert_eq!(code.lines().count(), text.lines().count());
        let seen: String = code.split_whitespace().collect();
        assert_eq!(seen, "aeh&'jkmforbr#q");
        for cut in ["\"open", "/* open", "r#\"open\"", "'\\", "'", "r#"] {
            assert_eq!(super::code(cut).chars().count(), cut.chars().count(), "{cut}");
        }
    }
}
