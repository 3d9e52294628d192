//! Circles between the files of a crate: a file names an item of another one, and that leads back to it.
//!
//! A path is followed to the file that defines its item, through `pub use`. Naming a module alone ties nothing, nor does
//! handing an item on with `pub use`.

use std::collections::{BTreeMap, BTreeSet};

use crate::source::File;

/// The files of each circle.
pub fn circles(files: &[File]) -> Vec<Vec<String>> {
    let house = House::of(files);
    let edges: BTreeMap<&str, BTreeSet<String>> =
        house.files.keys().map(|module| (module.as_str(), house.named_by(module))).collect();
    let reached = |from: &str| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from.to_owned()]);
        while let Some(module) = next.pop() {
            let more = edges.get(module.as_str()).into_iter().flatten();
            next.extend(more.filter(|to| seen.insert((*to).clone())).cloned());
        }
        seen
    };
    let reached: BTreeMap<&str, BTreeSet<String>> =
        edges.keys().map(|module| (*module, reached(module))).collect();
    let circle = |module: &str| -> Vec<String> {
        let both = reached[module].iter().filter(|other| reached[other.as_str()].contains(module));
        both.map(|other| house.files[other].path.clone()).collect()
    };
    let all: BTreeSet<Vec<String>> = edges.keys().map(|module| circle(module)).collect();
    all.into_iter().filter(|circle| circle.len() > 1).collect()
}

/// A crate's files by their modules, `a::b`; the root is empty.
struct House<'f> {
    files: BTreeMap<String, &'f File>,
    /// What a module hands on with `pub use`: name and path.
    handed_on: BTreeMap<String, BTreeMap<String, String>>,
}

impl<'f> House<'f> {
    fn of(files: &'f [File]) -> Self {
        let is_program = |file: &File| file.path.contains("src/bin/");
        let files = files.iter().filter(|file| !is_program(file) && !file.shipped().is_empty());
        let files: BTreeMap<String, &File> = files.map(|file| (module(&file.path), file)).collect();
        let handed_on = files.iter().map(|(module, file)| {
            let paths = uses(file.shipped()).into_iter().filter(|(public, _)| *public);
            let named = paths.map(|(_, path)| (last(&path).to_owned(), path));
            (module.clone(), named.collect())
        });
        Self { handed_on: handed_on.collect(), files }
    }

    /// The modules whose items a file names.
    fn named_by(&self, module: &str) -> BTreeSet<String> {
        let code = self.files[module].shipped();
        let own: Vec<String> =
            uses(code).into_iter().filter(|(public, _)| !public).map(|(_, path)| path).collect();
        let imported: BTreeMap<&str, &String> = own.iter().map(|path| (last(path), path)).collect();
        let written = paths(&without_uses(code)).into_iter().map(|path| match path.split_once("::") {
            Some((first, rest)) if imported.contains_key(first) => format!("{}::{rest}", imported[first]),
            _ => path,
        });
        let named = own.iter().cloned().chain(written);
        named.filter_map(|path| self.definer(module, &path, 0)).filter(|other| other != module).collect()
    }

    /// The module that defines the item at the end of a path.
    fn definer(&self, from: &str, path: &str, depth: usize) -> Option<String> {
        let mut segments: Vec<&str> = path.split("::").collect();
        let mut base: Vec<&str> = from.split("::").filter(|part| !part.is_empty()).collect();
        match segments[0] {
            "crate" => base.clear(),
            "super" => {}
            "self" => {}
            first if self.files.contains_key(&[&base[..], &[first]].concat().join("::")) => {}
            _ => return None,
        }
        while let Some(first @ ("crate" | "self" | "super")) = segments.first().copied() {
            if first == "super" {
                base.pop();
            }
            segments.remove(0);
        }
        while let Some(first) = segments.first()
            && self.files.contains_key(&[&base[..], &[*first]].concat().join("::"))
        {
            base.push(segments.remove(0));
        }
        let item = segments.first()?;
        let module = base.join("::");
        let handed_on = self.handed_on.get(&module).and_then(|names| names.get(*item)).filter(|_| depth < 8);
        handed_on
            .and_then(|path| self.definer(&module, path, depth + 1))
            .or_else(|| self.files.contains_key(&module).then_some(module))
    }
}

/// `a::b` for `src/a/b.rs` and `src/a/b/mod.rs`.
fn module(path: &str) -> String {
    let inside = path.split_once("src/").map_or(path, |(_, inside)| inside).trim_end_matches(".rs");
    let inside = inside.trim_end_matches("/mod");
    if inside == "lib" { String::new() } else { inside.replace('/', "::") }
}

fn last(path: &str) -> &str {
    path.rsplit("::").next().unwrap_or(path)
}

/// Each `use` of the code: whether it is public, and its text.
fn use_items(code: &str) -> Vec<(usize, usize)> {
    let starts = code.match_indices("use ").map(|(at, _)| at);
    let starts = starts.filter(|at| code[..*at].chars().next_back().is_none_or(|c| c.is_whitespace()));
    starts.filter_map(|at| Some((at, at + code[at..].find(';')?))).collect()
}

fn uses(code: &str) -> Vec<(bool, String)> {
    let mut paths = Vec::new();
    for (start, end) in use_items(code) {
        let before = code[..start].rsplit('\n').next().unwrap_or_default().trim_start();
        let mut flat = Vec::new();
        flatten("", &code[start + 4..end], &mut flat);
        paths.extend(flat.into_iter().map(|path| (before.starts_with("pub"), path)));
    }
    paths
}

/// The paths of a tree such as `a::{b, c::{self, d as e}}`.
fn flatten(prefix: &str, tree: &str, into: &mut Vec<String>) {
    let tree = tree.trim();
    if let Some((head, group)) = tree.split_once('{') {
        let (mut depth, mut start) = (0, 0);
        let group = group.trim_end().strip_suffix('}').unwrap_or(group);
        for (at, c) in group.char_indices().chain([(group.len(), ',')]) {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    flatten(&format!("{prefix}{head}"), &group[start..at], into);
                    start = at + 1;
                }
                _ => {}
            }
        }
        return;
    }
    let path = tree.split_whitespace().next().unwrap_or_default();
    match path {
        "" => {}
        "self" => into.push(prefix.trim_end_matches("::").to_owned()),
        path => into.push(format!("{prefix}{path}")),
    }
}

fn without_uses(code: &str) -> String {
    let mut rest = code.to_owned();
    for (start, end) in use_items(code).into_iter().rev() {
        rest.replace_range(start..end, "");
    }
    rest
}

/// Every `a::b` of the code.
fn paths(code: &str) -> Vec<String> {
    let is_part = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    let words = code.split(|c| !is_part(c)).map(|word| word.trim_matches(':'));
    words.filter(|word| word.contains("::") && !word.contains(":::")).map(str::to_owned).collect()
}

#[cfg(test)]
mod examples {
    use super::*;

    #[test]
    fn a_circle_is_seen_through_what_is_handed_on_and_a_mere_module_is_none() {
        let file = |path: &str, text: &str| File::new(path, text);
        let files = [
            file("src/lib.rs", "mod a;\npub mod b;"),
            file("src/a/mod.rs", "mod c;\nmod d;\npub use c::{Thing, self};\nuse d::run;"),
            file("src/a/c.rs", "use super::d;\npub struct Thing;\nfn f() { d::run() }"),
            file("src/a/d.rs", "use super::Thing;\nuse crate::b::{self, Other};\nfn run() {}"),
            file(
                "src/b.rs",
                "pub struct Other;\n// use crate::a::Thing;\n#[cfg(test)]\nmod tests { use crate::a::Thing; }",
            ),
        ];
        assert_eq!(circles(&files), [["src/a/c.rs", "src/a/d.rs"]]);
        let files =
            [file("src/lib.rs", "pub mod b;\nfn f() -> b::Other {}"), file("src/b.rs", "use crate::f;")];
        assert_eq!(circles(&files).len(), 1);
        let files =
            [file("src/lib.rs", "pub mod b;\npub use b::Other;"), file("src/b.rs", "pub struct Other;")];
        assert!(circles(&files).is_empty());
    }
}
