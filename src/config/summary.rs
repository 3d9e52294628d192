//! What a config amounts to, in a few lines: the answer of `mainstay check`.

use std::fmt;

use super::pools::Pool;
use super::routes::route_text;
use super::sources::source_text;
use super::tls::ListenerTls;
use super::top::Config;
use crate::affinity::AffinitySource;

/// A config as an operator wants to see it confirmed.
pub struct Summary<'a>(pub &'a Config);

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Config { listeners, admin, pools, routes, .. } = self.0;
        for listener in listeners {
            write!(f, "listener  {}", listener.address)?;
            match &listener.tls {
                Some(tls) => writeln!(f, " (TLS for {})", hosts(tls))?,
                None => writeln!(f)?,
            }
        }
        match admin {
            Some(admin) => writeln!(f, "admin     {}", admin.address)?,
            None => writeln!(f, "admin     off")?,
        }
        for pool in pools {
            write_pool(f, pool)?;
        }
        routes.iter().try_for_each(|route| writeln!(f, "route     {} -> {}", route_text(route), route.pool))
    }
}

/// The hosts that the certificates are for.
fn hosts(tls: &ListenerTls) -> String {
    let mut hosts: Vec<&str> =
        tls.certificates.iter().flat_map(|one| &one.names).map(String::as_str).collect();
    hosts.dedup();
    if hosts.is_empty() { "no named host".into() } else { hosts.join(", ") }
}

fn write_pool(f: &mut fmt::Formatter<'_>, pool: &Pool) -> fmt::Result {
    let affinity: Vec<String> = pool.affinity.iter().map(source_text).collect();
    let affinity = if affinity.is_empty() { "none".into() } else { affinity.join(", ") };
    writeln!(f, "pool      {}: affinity {affinity}", pool.name)?;
    if let Some(bound) = pool.load_bound {
        writeln!(f, "  bound   {bound}: {}", bound_effect(&pool.affinity))?;
    }
    pool.nodes.iter().try_for_each(|node| {
        let weight = if node.weight == 1 { String::new() } else { format!(", weight {}", node.weight) };
        writeln!(f, "  node    {} at {}{weight}", node.id, node.address)
    })
}

/// What a load bound does under these sources.
fn bound_effect(affinity: &[AffinitySource]) -> &'static str {
    let is_key = |source: &AffinitySource| {
        matches!(source, AffinitySource::Header(_) | AffinitySource::Query(_) | AffinitySource::ClientIp(_))
    };
    if !affinity.iter().any(is_key) {
        "no effect, as no source gives a key"
    } else if affinity.contains(&AffinitySource::EngineIo) {
        "a busy key may have several nodes"
    } else {
        "a busy key may have several nodes, but for Socket.IO sessions that poll; those are placed by it with engine_io"
    }
}
