//! What goes where: the section `routes`.

use std::collections::HashMap;
use std::sync::Arc;

use super::change::{Comparison, Subject, What};
use super::entry::{Form, Keys, section};
use super::fault::{nearest, quoted};
use super::forms::{list, sections, typed};
use super::key::{Shape, Text};
use super::reader::Value;
use crate::route::{Host, Origin, Origins, Route};

section! {
    for Route {
        /// The host that the client asks for; without it, any.
        host: Option<Host> = host().or_null();
        /// What the path begins with; without it, any.
        path: Option<String> = path().or_null();
        /// Pages of these origins may open WebSockets here, pages of others get 403. The empty list asks nobody.
        origins: Origins = origins().or(Vec::<String>::new());
        /// Where it goes.
        pool: Arc<str> = pool().required("`pool:` and the name of one");
    }
}

fn host() -> Form<Host> {
    const TEXT: Text = Text("a host name, or *.example.com for all below one", r"(\*\.)?[^*/:\s]+");
    typed(TEXT, "a host name, such as chat.example.com")
}

/// The most bytes of a route's path: each of its parts is looked for among the routes before.
const LONGEST_PATH: usize = 1024;

fn path() -> Form<String> {
    let read = |value: &Value| {
        let path = value.parsed("a path that begins with `/`, without `?` and spaces", |text| {
            is_path(text).then(|| text.to_owned())
        })?;
        if path.len() > LONGEST_PATH {
            value.fault(format_args!("a path of {} bytes; write one of at most {LONGEST_PATH}", path.len()));
            return None;
        }
        Some(path)
    };
    Form::new(Shape::Text(Text("a path", r"/[^?#\s]*")), read, |path| path.as_str().into())
}

/// Whether a request's path could begin so.
fn is_path(text: &str) -> bool {
    text.starts_with('/') && text.bytes().all(|b| b.is_ascii_graphic() && b != b'?' && b != b'#')
}

fn origins() -> Form<Origins> {
    const TEXT: Text = Text("an origin (https://example.com), or \"null\" in quotes", "");
    let form = typed::<Origin>(TEXT, "an origin, such as \"https://example.com\", or \"null\"");
    let typed = form.read;
    let read = move |item: &Value| {
        if !item.is_null() {
            return typed(item);
        }
        item.fault("an entry of nothing; for the opaque origin of sandboxed pages, write \"null\" in quotes");
        None
    };
    let form = list(Form { read: Box::new(read), ..form });
    let (read, show) = (form.read, |origins: &Origins| origins.iter().map(ToString::to_string).collect());
    Form::new(form.shape, move |value| read(value).map(Origins::new), show)
}

/// The name of one of the pools.
fn pool() -> Form<Arc<str>> {
    let shape = Shape::Text(Text("the name of a pool", "[A-Za-z0-9_.-]{1,64}"));
    Form::new(shape, named_pool, |pool| (**pool).into())
}

fn named_pool(value: &Value) -> Option<Arc<str>> {
    let name = value.text("the name of a pool")?;
    let pools = pools(value);
    if pools.contains(&name) {
        return Some(name.into());
    }
    // Without any pool, that is the fault.
    if !pools.is_empty() {
        let right = match nearest(name, pools.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("the pools are: {}", pools.join(", ")),
        };
        value.fault(format_args!("there is no pool {}; {right}", quoted(name)));
    }
    None
}

/// The names of all pools, whatever is wrong with them.
fn pools<'a>(value: &Value<'a>) -> Vec<&'a str> {
    let pools = value.top("pools").map(|pools| pools.entries()).unwrap_or_default();
    pools.into_iter().map(|(_, name, _)| name).collect()
}

/// The key `routes`.
pub(super) fn routes() -> Form<Vec<Route>> {
    sections("- { path: /, pool: NAME }")
        .checked(|value, _| check_routes(value))
        .compared_by(|old, new, to| compare_routes(old, new, to))
}

/// Says which routes are never reached.
fn check_routes(value: &Value) {
    let mut lines = HashMap::new();
    for item in value.list() {
        let Some((host, path)) = taken(&item) else { continue };
        if let Some(first) = wider(&host, &path).find_map(|key| lines.get(&key)) {
            item.fault(format_args!(
                "the route on line {first} takes all that this one would, so it is never reached; \
                 write the narrower route first, or remove it"
            ));
        }
        lines.entry((host, path)).or_insert(item.at().line);
    }
}

/// The host and the path that a route takes; `None` where something is wrong with it.
fn taken(item: &Value) -> Option<(Option<String>, Option<String>)> {
    item.entry("pool")?.silently(named_pool)?;
    let host = match item.entry("host") {
        Some(value) => value.silently(&host().maybe().read)?,
        None => None,
    };
    let path = match item.entry("path") {
        Some(value) => value.silently(&path().maybe().read)?,
        None => None,
    };
    Some((host.map(|host| host.to_string()), path))
}

/// The hosts and paths of the routes that, before this one, would take all its requests.
fn wider(
    host: &Option<String>,
    path: &Option<String>,
) -> impl Iterator<Item = (Option<String>, Option<String>)> {
    let text = path.as_deref().unwrap_or_default();
    let shorter: Vec<Option<String>> =
        text.match_indices('/').map(|(slash, _)| Some(text[..=slash].to_owned())).collect();
    // Whatever request has a path is in `/`.
    let paths = [None, Some("/".to_owned()), path.clone()].into_iter().chain(shorter);
    let hosts = [None, host.clone()];
    paths.flat_map(move |path| hosts.clone().map(|host| (host, path.clone())))
}

/// The routes of a config that has none: all goes to the only pool.
pub(super) fn default_routes(root: &Value) -> Vec<Route> {
    match pools(root)[..] {
        [only] => vec![Route { host: None, path: None, origins: Origins::default(), pool: only.into() }],
        [] => Vec::new(),
        ref pools => {
            root.fault(format_args!(
                "`routes` is missing, and there are {} pools; write which host or path goes to which",
                pools.len()
            ));
            Vec::new()
        }
    }
}

/// A pool that no route leads to is a slip of the pen, or about to be used.
pub(super) fn warn_of_unused(root: &Value, routes: &[Route]) {
    // Without any routes there is only one pool, or a fault.
    let (Some(pools), Some(_)) = (root.entry("pools"), root.entry("routes")) else { return };
    for (at, name, _) in pools.entries() {
        if !routes.is_empty() && !routes.iter().any(|route| *route.pool == *name) {
            let what =
                "no route leads to this pool; write `routes: [{ .., pool: NAME }]` with it, or remove it";
            pools.reader.warn(at, format!("{name}: {what}"));
        }
    }
}

/// Whether tunnels that came by `route` still belong somewhere: a route with the same host and path is there, or one
/// to the same pool that takes all that this one took.
pub(crate) fn is_still_there(route: &Route, new: &[Route]) -> bool {
    new.iter().any(|other| is_same(other, route) || (other.pool == route.pool && other.includes(route)))
}

fn is_same(one: &Route, other: &Route) -> bool {
    one.host == other.host && one.path == other.path
}

fn compare_routes(old: &[Route], new: &[Route], to: &mut Comparison) {
    let subject = |route: &Route| Subject::Route(route_text(route));
    for route in old.iter().filter(|route| !new.iter().any(|other| is_same(route, other))) {
        to.about(subject(route), |to| to.push(What::Removed(format!("pool {}", route.pool))));
    }
    for route in new {
        to.about(subject(route), |to| match old.iter().find(|other| is_same(route, other)) {
            Some(old) => Route::compare(old, route, to),
            None => to.push(What::Added(format!("pool {}", route.pool))),
        });
    }
    let order = |routes: &[Route], others: &[Route]| -> Vec<String> {
        let both = routes.iter().filter(|route| others.iter().any(|other| is_same(route, other)));
        both.map(route_text).collect()
    };
    to.order("the order", &order(old, new), &order(new, old));
}

/// The host and the path of a route as one line has them.
pub(super) fn route_text(route: &Route) -> String {
    let host = route.host.as_ref().map_or("any host".to_owned(), Host::to_string);
    match &route.path {
        Some(path) => format!("{host}, path {path}"),
        None => host,
    }
}
