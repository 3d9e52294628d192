//! What ties a polling session to the client that opened it, beside its sid: the credentials of its first request, and
//! its address where that is asked for.
//!
//! Credentials are the Authorization field, `token` in the query and the cookie that [`SessionBinding`] names. Rules:
//! - A request that shows another value than the first request did is refused, and closes nothing.
//! - What the first request after the handshake showed has to be shown by all later ones. Not what the handshake showed:
//!   python-engineio sends its headers with the handshake alone, and a session that is opened like that is as safe as its
//!   sid. A sid is told to nobody but its client, so that second request is the client's own.
//! - A WebSocket that takes the session over need not show Authorization, because a page's script cannot set it there.
//! - A session whose client authenticates itself in CONNECT alone has no credentials to be bound to.

use std::net::IpAddr;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use http::request::Parts;

use crate::engine_io::session::connection::Connection;
use crate::engine_io::session::handshake::Handshake;
use crate::engine_io::session::urlencoded;
use crate::engine_io::settings::SessionBinding;

/// The credentials, in the order of their bits in [`PollingState::shown_credentials`](crate::engine_io::session::state::PollingState).
type Credentials = [Option<String>; 3];

/// The bit of the Authorization field.
const AUTHORIZATION: u8 = 1;

/// Whether a request of a session that polls comes from whoever opened it, as far as that can be told. `is_probe`: it is
/// a WebSocket that wants to take over.
pub(crate) fn is_from_opener(
    connection: &Connection,
    request: &Parts,
    client: IpAddr,
    is_probe: bool,
) -> bool {
    let (opened, bind) = (connection.handshake(), &connection.context.settings.binding);
    if bind.address && opened.client() != client {
        return false;
    }
    let first = credentials_of_handshake(opened, bind);
    if first.iter().all(Option::is_none) {
        return true;
    }
    let Some(shown) = matching_bits(&first, &credentials_of_request(request, bind)) else { return false };
    let is_whole = |due: u8| shown & due == due;
    let is_bound = connection.polling(|polling| match polling.shown_credentials {
        Some(due) if is_probe => is_whole(due & !AUTHORIZATION),
        None if is_probe => true,
        due => is_whole(*polling.shown_credentials.insert(due.unwrap_or(shown))),
    });
    is_bound.unwrap_or(true)
}

/// The bits of the credentials that both have; `None` when one of them is not the same.
fn matching_bits(first: &Credentials, later: &Credentials) -> Option<u8> {
    let mut bits = 0;
    for (place, pair) in first.iter().zip(later).enumerate() {
        let (Some(first), Some(later)) = pair else { continue };
        verify_slices_are_equal(first.as_bytes(), later.as_bytes()).ok()?;
        bits |= 1 << place;
    }
    Some(bits)
}

fn credentials_of_handshake(handshake: &Handshake, bind: &SessionBinding) -> Credentials {
    let query = handshake.url().split_once('?').map_or("", |(_, query)| query);
    let all =
        |name: &str| join_values(handshake.headers().filter(|(given, _)| *given == name).map(|pair| pair.1));
    credentials(all, query, bind)
}

fn credentials_of_request(request: &Parts, bind: &SessionBinding) -> Credentials {
    let all = |name: &str| {
        let values = request.headers.get_all(name).iter();
        let values: Vec<_> = values.map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
        join_values(values.iter().map(|value| &**value))
    };
    credentials(all, request.uri.query().unwrap_or_default(), bind)
}

fn credentials(header: impl Fn(&str) -> Option<String>, query: &str, bind: &SessionBinding) -> Credentials {
    let token =
        urlencoded::pairs(query).filter(|(name, _)| name == "token").map(|(_, value)| value.into_owned());
    let cookie = bind.cookie.as_deref().and_then(|name| cookie(&header("cookie")?, name));
    [header("authorization"), token.reduce(|all, one| all + "\n" + &one), cookie]
}

/// The cookie of that name, out of the lines of a Cookie field.
fn cookie(lines: &str, name: &str) -> Option<String> {
    let mut pairs = lines.split(['\n', ';']).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(given, _)| *given == name).map(|(_, value)| value.to_owned())
}

fn join_values<'a>(values: impl Iterator<Item = &'a str>) -> Option<String> {
    values.map(str::to_owned).reduce(|all, one| all + "\n" + &one)
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn credentials(uri: &str, headers: &[(&str, &str)]) -> Credentials {
        let mut request = Request::get(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let bind = SessionBinding { cookie: Some("sid".into()), ..SessionBinding::default() };
        let parts = request.body(()).unwrap().into_parts().0;
        let handshake = Handshake::from_request(&parts, "127.0.0.1:9".parse().unwrap());
        assert_eq!(credentials_of_handshake(&handshake, &bind), credentials_of_request(&parts, &bind));
        credentials_of_request(&parts, &bind)
    }

    #[test]
    fn each_credential_is_found_and_what_is_shown_is_compared() {
        let headers = [("Authorization", "Bearer a"), ("Cookie", "x=1; sid=c"), ("cookie", "sid=later")];
        let first = credentials("/socket.io/?EIO=4&token=t%20t", &headers);
        assert_eq!(first, [Some("Bearer a".into()), Some("t t".into()), Some("c".into())]);
        assert_eq!(matching_bits(&first, &first), Some(0b111));
        assert_eq!(matching_bits(&first, &credentials("/?token=t+t", &[])), Some(0b010));
        assert_eq!(matching_bits(&first, &credentials("/", &[])), Some(0));
        assert_eq!(matching_bits(&credentials("/", &[]), &first), Some(0));
        for other in ["/?token=u", "/?token=t+t&token=u"] {
            assert_eq!(matching_bits(&first, &credentials(other, &[])), None);
        }
        for other in [("authorization", "Bearer b"), ("cookie", "sid=d")] {
            assert_eq!(matching_bits(&first, &credentials("/", &[other])), None);
        }
    }
}
