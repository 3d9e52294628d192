//! One value of a flag, from its text; the message says what would be right.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use mainstay_core::units;
use socketio_redis::client::RedisAddress;

use super::cluster::RedisUrl;

/// `500ms`, `2s`, `1h`; at most a day, which no time of a node needs.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
    match units::duration(text) {
        Some(time) if time <= LONGEST => Ok(time),
        Some(_) => Err("longer than a day; write at most 24h".into()),
        None => Err("no time; write a number and a unit, like 500ms, 30s or 2m".into()),
    }
}

/// `512B`, `16KiB`, `1MiB`; at most 1 GiB.
pub(super) fn size(text: &str) -> Result<u64, String> {
    match units::size(text) {
        Some(bytes) if bytes <= 1 << 30 => Ok(bytes),
        Some(_) => Err("more than 1GiB".into()),
        None => Err("no size; write a number and a unit, like 512B, 16KiB or 1MiB".into()),
    }
}

/// A place of Redis, in one of the forms of [`RedisAddress`].
pub(super) fn redis(text: &str) -> Result<RedisUrl, String> {
    RedisAddress::parse(text, false).map_err(|fault| fault.to_string())?;
    Ok(RedisUrl(text.into()))
}

/// A name that may stand in headers, keys and labels.
pub(super) fn id(text: &str) -> Result<String, String> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if (1..=64).contains(&text.len()) && text.bytes().all(fits) {
        return Ok(text.into());
    }
    Err("a name has 1 to 64 letters, digits, `.`, `_` and `-`".into())
}

/// The first part of keys or channels in Redis.
pub(super) fn prefix(text: &str) -> Result<String, String> {
    // A glob would make the patterns of the classic adapter match the channels of others, and braces would name a
    // slot of a Redis Cluster.
    let fits = |byte: u8| byte.is_ascii_graphic() && !b"*?[]\\#{}\"".contains(&byte);
    if (1..=128).contains(&text.len()) && text.bytes().all(fits) {
        return Ok(text.into());
    }
    Err("1 to 128 visible ASCII characters, none of * ? [ ] \\ # { } \"".into())
}

/// A Socket.IO namespace.
pub(super) fn namespace(text: &str) -> Result<String, String> {
    let fits = |c: char| !c.is_control() && c != ',' && c != '?';
    if text.starts_with('/') && text.len() <= 128 && text.chars().all(fits) {
        return Ok(text.into());
    }
    Err("a namespace begins with `/`, as in /admin, and has neither `,` nor `?`".into())
}

/// A number of things that there must be one of.
pub(super) fn count(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|count| *count > 0).ok_or_else(|| "no number; write 1 or more".into())
}

/// The name of a cookie (RFC 6265, section 4.1.1).
pub(super) fn cookie(text: &str) -> Result<String, String> {
    let fits = |byte: u8| byte.is_ascii_graphic() && !b"()<>@,;:\\\"/[]?={}".contains(&byte);
    match !text.is_empty() && text.bytes().all(fits) {
        true => Ok(text.into()),
        false => Err("no name of a cookie; write one like `session`".into()),
    }
}

/// `10.0.0.0/8`, or one address.
pub(super) fn network(text: &str) -> Result<IpNet, String> {
    let read = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    read.map_err(|_| "no network; write one like 10.0.0.0/8, or one address".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_and_what_is_none_says_what_would_be_right() {
        assert_eq!(duration("1m30s"), Ok(Duration::from_secs(90)));
        assert!(duration("30").unwrap_err().contains("30s"));
        assert!(duration("25h").unwrap_err().contains("24h"));
        assert_eq!(size("16KiB"), Ok(16_384));
        assert!(size("16k").unwrap_err().contains("16KiB"));
        assert!(size("2GiB").is_err());
    }

    #[test]
    fn networks_counts_and_names_of_cookies_are_read() {
        assert!(network("10.0.0.0/8").is_ok() && network("::1").is_ok());
        assert!(network("10.0.0.0/40").unwrap_err().contains("10.0.0.0/8"));
        assert_eq!((count("7"), count("0").is_err(), count("x").is_err()), (Ok(7), true, true));
        assert_eq!(cookie("connect.sid"), Ok("connect.sid".into()));
        for wrong in ["", "a b", "a=b", "ü"] {
            assert!(cookie(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn names_prefixes_and_namespaces_are_kept_to_what_redis_and_headers_can_carry() {
        assert!(id("ws-1.eu").is_ok());
        for wrong in ["", "a b", "ü", &"x".repeat(65), "a\n"] {
            assert!(id(wrong).is_err(), "{wrong:?}");
        }
        assert!(prefix("my:app/socket.io").is_ok());
        for wrong in ["", "a*", "a#", "{a}", "a b"] {
            assert!(prefix(wrong).is_err(), "{wrong:?}");
        }
        assert!(namespace("/admin").is_ok());
        for wrong in ["admin", "", "/a,b", "/a?x=1", "/\n"] {
            assert!(namespace(wrong).is_err(), "{wrong:?}");
        }
    }
}
