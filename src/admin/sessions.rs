//! `/api/sessions`: the query, and the sessions that it lists.
//!
//! Sessions are listed in the order of their ids, which is no order in time and stays the same while others come and
//! go; a page begins after the last id of the one before.

use std::net::IpAddr;

use serde::Serialize;

use crate::log;
use crate::pool::NodeId;
use crate::relay::{CloseReason, PacedClose, SessionSnapshot, TunnelSelector};
use crate::ws::close;

/// Sessions of a page unless the query says otherwise.
pub const DEFAULT_PAGE_SIZE: usize = 100;
/// The most sessions of a page.
pub const MAX_PAGE_SIZE: usize = 1000;

/// Which sessions are listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionQuery {
    /// Only those of this pool.
    pub pool: Option<String>,
    /// Only those on this node.
    pub node: Option<String>,
    /// Only ids greater than this.
    pub after: Option<u64>,
    /// The most sessions, 1 to [`MAX_PAGE_SIZE`].
    pub limit: usize,
}

impl SessionQuery {
    /// Selects the tunnels of the pool and of the node, where they are given.
    pub(crate) fn selector(&self) -> TunnelSelector {
        let (pool, node) = (self.pool.clone(), self.node.clone());
        let is = |wanted: &Option<String>, name: &str| wanted.as_deref().is_none_or(|wanted| wanted == name);
        TunnelSelector::new(move |session| {
            is(&pool, &session.node_connection.pool) && is(&node, &session.node_connection.node)
        })
    }
}

/// Closes one session as an operator does. The client may come back, so not with 1000.
pub(super) fn close_order(id: u64) -> PacedClose {
    let session = TunnelSelector::sessions([id].into());
    PacedClose::new(session, CloseReason::Killed, close::SERVICE_RESTART, "closed by an operator")
}

/// A live session.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SessionResponse {
    /// 16 hex digits, as in the access log.
    pub id: String,
    /// The client's address, as the balancer believes it.
    pub client: IpAddr,
    /// Its pool.
    pub pool: String,
    /// Its node.
    pub node: String,
    /// The route that its request matched.
    pub route: String,
    /// The generation of the config that it was opened under.
    pub generation: u32,
    /// When the upgrade request was read (RFC 3339).
    pub opened_at: String,
    /// What placed it.
    pub affinity: SessionAffinity,
    /// Bytes from the client and from the node.
    pub bytes: InOut,
    /// Messages from the client and from the node.
    pub messages: InOut,
    /// When the last message began, from either side (RFC 3339); `None` before the first.
    pub last_message_at: Option<String>,
    /// How long the client took to answer the balancer's last ping, in seconds; `None` before that.
    pub round_trip: Option<f64>,
    /// A Close has been sent, and its answers are waited for.
    pub closing: bool,
}

/// What placed a session: the labels of `affinity_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct SessionAffinity {
    /// The source that decided.
    pub source: &'static str,
    /// What came of it.
    pub outcome: &'static str,
}

/// A number for each direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct InOut {
    /// From the client.
    pub r#in: u64,
    /// From the node.
    pub out: u64,
}

impl From<SessionSnapshot> for SessionResponse {
    fn from(of: SessionSnapshot) -> Self {
        let in_out = |[from_client, from_node]: [u64; 2]| InOut { r#in: from_client, out: from_node };
        Self {
            id: format!("{:016x}", of.id),
            client: of.client.to_canonical(),
            pool: of.pool.to_string(),
            node: of.node.to_string(),
            route: of.route.to_string(),
            generation: of.generation,
            opened_at: log::format_time(of.opened_at),
            affinity: SessionAffinity { source: of.affinity.0, outcome: of.affinity.1 },
            bytes: in_out(of.bytes),
            messages: in_out(of.messages),
            last_message_at: of.last_message_at.map(log::format_time),
            round_trip: of.round_trip.map(|time| time.as_secs_f64()),
            closing: of.is_closing,
        }
    }
}

/// One page.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct SessionPage {
    sessions: Vec<SessionResponse>,
    /// The value of `after` for the next page; `None` on the last.
    next: Option<String>,
}

impl SessionPage {
    /// The page of `limit` out of one session more, where there is one.
    pub(super) fn of(mut sessions: Vec<SessionResponse>, limit: usize) -> Self {
        let has_more = sessions.len() > limit;
        sessions.truncate(limit);
        let next = sessions.last().filter(|_| has_more).map(|session| session.id.clone());
        Self { sessions, next }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }
}

/// The id of a session as it is written: 16 hex digits.
pub(super) fn parse_id(text: &str) -> Option<u64> {
    let is_hex = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    u64::from_str_radix(text, 16).ok().filter(|_| is_hex)
}

/// What a query asks for. A key with an empty value is as none.
///
/// # Errors
///
/// What is wrong with it, and what would be right.
pub(super) fn parse_query(query: &str) -> Result<SessionQuery, String> {
    let mut parsed = SessionQuery { pool: None, node: None, after: None, limit: DEFAULT_PAGE_SIZE };
    let mut seen = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let Some(key) = ["pool", "node", "limit", "after"].into_iter().find(|known| *known == key) else {
            return Err("an unknown key in the query; the keys are pool, node, limit and after".into());
        };
        if seen.contains(&key) {
            return Err(format!("`{key}` is given twice; give it once"));
        }
        seen.push(key);
        if value.is_empty() {
            continue;
        }
        let value = decoded(value).ok_or_else(|| format!("the value of `{key}` is badly percent-encoded"))?;
        match key {
            "pool" => parsed.pool = Some(name(key, value)?),
            "node" => parsed.node = Some(name(key, value)?),
            "after" => {
                let after =
                    parse_id(&value).ok_or("`after` is no id of a session; write the `next` of a page")?;
                parsed.after = Some(after);
            }
            _ => {
                let limit = value.parse().ok().filter(|limit| (1..=MAX_PAGE_SIZE).contains(limit));
                parsed.limit = limit.ok_or(format!("`limit` is a number from 1 to {MAX_PAGE_SIZE}"))?;
            }
        }
    }
    Ok(parsed)
}

fn name(key: &str, value: String) -> Result<String, String> {
    match value.parse::<NodeId>() {
        Ok(_) => Ok(value),
        Err(_) => Err(format!("`{key}` is a name: 1 to 64 of A-Z a-z 0-9 _ . -")),
    }
}

/// Percent-decoded; `None` where it is badly encoded or not UTF-8.
fn decoded(text: &str) -> Option<String> {
    let mut parts = text.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        let (digits, rest) = part.split_at_checked(2)?;
        if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        bytes.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_query_selects_sessions() {
        let all = SessionQuery { pool: None, node: None, after: None, limit: DEFAULT_PAGE_SIZE };
        assert_eq!(parse_query(""), Ok(all.clone()));
        assert_eq!(parse_query("pool=&node=&limit="), Ok(all));
        let query = parse_query("pool=chat&node=ws%2D1&limit=1000&after=00000000000000fF").unwrap();
        assert_eq!((query.pool.as_deref(), query.node.as_deref()), (Some("chat"), Some("ws-1")));
        assert_eq!((query.after, query.limit), (Some(255), 1000));
    }

    #[test]
    fn a_bad_query_is_explained() {
        for (query, said) in [
            ("pol=chat", "the keys are"),
            ("pool=a&pool=b", "twice"),
            ("pool=a%2", "percent-encoded"),
            ("pool=a%zz", "percent-encoded"),
            ("pool=%+1", "percent-encoded"),
            ("pool=%ff", "percent-encoded"),
            ("pool=a/b", "a name"),
            ("node=%0a", "a name"),
            ("limit=0", "1 to 1000"),
            ("limit=1001", "1 to 1000"),
            ("limit=-1", "1 to 1000"),
            ("after=1", "`next` of a page"),
            ("after=+00000000000000f", "`next` of a page"),
        ] {
            let message = parse_query(query).unwrap_err();
            assert!(message.contains(said), "{query}: {message}");
        }
    }

    proptest! {
        #[test]
        fn any_query_is_read_or_refused(query in "[a-z=&%0-9+/. é]{0,40}") {
            let _ = parse_query(&query);
        }

        #[test]
        fn an_id_reads_back_as_it_is_written(number: u64) {
            prop_assert_eq!(parse_id(&format!("{number:016x}")), Some(number));
        }
    }
}
