//! Routes: host and path to a pool, first match wins.
//!
//! A host is compared without its port, without a trailing dot and without regard to case. A path is compared
//! byte by byte as it was sent, without its query; nothing is decoded and no `..` is resolved. Which pages may open a
//! WebSocket there is in [`Origins`].

use std::sync::Arc;

pub use mainstay_core::host::Host;
pub use mainstay_core::origin::{Origin, Origins};

/// One entry of `routes`.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// The host that the request must name; `None` is any.
    pub host: Option<Host>,
    /// The path prefix that the request must have; `None` is any. One that ends in `/` is a plain prefix;
    /// any other ends at a segment: `/chat` is `/chat` and `/chat/x`, not `/chatter`.
    pub path: Option<String>,
    /// The pages that may open a WebSocket here.
    pub origins: Origins,
    /// Name of the pool.
    pub pool: Arc<str>,
}

impl Route {
    /// Whether a request for this host (as `Host` or `:authority` gives it) and path belongs here.
    pub(crate) fn covers(&self, host: &str, path: &str) -> bool {
        let host_fits = self.host.as_ref().is_none_or(|wanted| wanted.covers(host));
        host_fits && self.path.as_ref().is_none_or(|wanted| covers_path(wanted, path))
    }

    /// Whether every request that `other` covers is covered by this one, too.
    pub(crate) fn includes(&self, other: &Self) -> bool {
        let host = match (&self.host, &other.host) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(wide), Some(Host::Exact(name))) => wide.covers(name),
            (Some(wide), Some(below)) => wide == below || wide.covers(&below.to_string()),
        };
        let path = match (&self.path, &other.path) {
            (None, _) => true,
            (Some(wide), path) => wide == "/" || path.as_ref().is_some_and(|path| covers_path(wide, path)),
        };
        host && path
    }

    /// Its host and path as written, `*` for one that takes everything: the word for logs.
    pub(crate) fn name(&self) -> String {
        match (&self.host, &self.path) {
            (None, None) => "*".into(),
            (host, path) => {
                let host = host.as_ref().map(ToString::to_string).unwrap_or_default();
                format!("{host}{}", path.as_deref().unwrap_or_default())
            }
        }
    }
}

/// The `routes` of the config, in order.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Routes {
    routes: Box<[Route]>,
}

impl Routes {
    /// These routes, in this order.
    pub(crate) fn new(routes: Vec<Route>) -> Self {
        Self { routes: routes.into() }
    }

    /// The first route for a host and a path, with its index; a query behind the path does not matter.
    pub(crate) fn find(&self, host: &str, path: &str) -> Option<(usize, &Route)> {
        let path = path.split(['?', '#']).next().unwrap_or_default();
        self.routes.iter().enumerate().find(|(_, route)| route.covers(host, path))
    }
}

fn covers_path(wanted: &str, path: &str) -> bool {
    match path.strip_prefix(wanted) {
        Some(rest) => rest.is_empty() || rest.starts_with('/') || wanted.ends_with('/'),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(host: Option<&str>, path: Option<&str>, pool: &str) -> Route {
        Route {
            host: host.map(|host| host.parse().unwrap()),
            path: path.map(str::to_owned),
            origins: Origins::default(),
            pool: pool.into(),
        }
    }

    fn pool<'a>(routes: &'a Routes, host: &str, path: &str) -> Option<&'a str> {
        routes.find(host, path).map(|(_, route)| &*route.pool)
    }

    #[test]
    fn the_first_route_that_fits_wins() {
        let routes = Routes::new(vec![
            route(Some("chat.example.com"), Some("/socket.io/"), "io"),
            route(Some("*.example.com"), None, "wild"),
            route(None, Some("/chat"), "chat"),
            route(Some("chat.example.com"), None, "never"),
        ]);
        assert_eq!(pool(&routes, "chat.example.com", "/socket.io/"), Some("io"));
        assert_eq!(pool(&routes, "chat.example.com", "/socket.io/?EIO=4"), Some("io"));
        assert_eq!(pool(&routes, "chat.example.com", "/"), Some("wild"));
        assert_eq!(pool(&routes, "elsewhere.org", "/chat"), Some("chat"));
        assert_eq!(pool(&routes, "elsewhere.org", "/other"), None);
        assert_eq!(routes.find("elsewhere.org", "/chat").unwrap().0, 2);
        assert_eq!(pool(&Routes::default(), "a", "/"), None);
    }

    #[test]
    fn a_path_ends_at_a_segment_unless_it_is_written_with_a_slash() {
        for (wanted, path, fits) in [
            ("/chat", "/chat", true),
            ("/chat", "/chat/x", true),
            ("/chat", "/chatter", false),
            ("/chat", "/cha", false),
            ("/chat", "/Chat", false),
            ("/chat/", "/chat/", true),
            ("/chat/", "/chat/x", true),
            ("/chat/", "/chat", false),
            ("/", "/", true),
            ("/", "/anything", true),
            ("/", "*", false),
        ] {
            assert_eq!(route(None, Some(wanted), "p").covers("h", path), fits, "{wanted} and {path}");
        }
        let routes = Routes::new(vec![route(None, Some("/chat"), "p")]);
        assert_eq!(pool(&routes, "h", "/chat?x=/y"), Some("p"));
        assert_eq!(pool(&routes, "h", "/other?x=/chat"), None);
    }
}
