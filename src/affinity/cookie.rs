//! The affinity cookie that the balancer sets: encode, sign, verify, expire.
//!
//! Unsigned it is `v1.TAG`; signed it is `v1.KID.TAG.EXPIRY.MAC`, with the expiry in unix seconds (0: none) and
//! an HMAC-SHA256 over the pool's name and the text before the MAC. The tag names a node and gives nothing
//! away of its address. A policy with keys takes only signed values, one without takes only unsigned ones. An invalid
//! value counts as no cookie.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use http::HeaderValue;
use xxhash_rust::xxh3::xxh3_64_with_seed;
use zeroize::Zeroizing;

use super::hash;

/// The longest value that is read, in bytes; the longest that is ever set has about 110.
pub(crate) const MAX_COOKIE_VALUE: usize = 256;
/// Seed of a tag; changing it unpins every client of every fleet.
const TAG_SEED: u64 = 0x7461_676f_666e_6f64;

/// The name of a node in a cookie or in a Socket.IO session id: a hash of its pool and its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeTag(u64);

impl NodeTag {
    /// The length of a written tag.
    pub(crate) const LEN: usize = 11;

    /// The tag of the node `id` of `pool`.
    pub fn of(pool: &str, id: &str) -> Self {
        Self(xxh3_64_with_seed(&hash::pool_and_id(pool, id), TAG_SEED))
    }

    /// Reads a tag as it is shown: 11 characters of base64url, with no bit set that no byte needs.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let mut bytes = [0; 9];
        match URL_SAFE_NO_PAD.decode_slice(text, &mut bytes) {
            Ok(8) => bytes.first_chunk().map(|first| Self(u64::from_be_bytes(*first))),
            _ => None,
        }
    }
}

impl fmt::Display for NodeTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; Self::LEN];
        let written = URL_SAFE_NO_PAD.encode_slice(self.0.to_be_bytes(), &mut text).unwrap_or(0);
        f.write_str(std::str::from_utf8(&text[..written]).unwrap_or_default())
    }
}

/// How the balancer's cookie is made.
#[derive(Debug, Clone, PartialEq)]
pub struct CookiePolicy {
    /// Cookie name.
    pub name: String,
    /// Keys that sign and verify; `None` leaves the cookie unsigned.
    pub keys: Option<KeyRing>,
    /// Where the keys were read from, as written; only to be shown.
    pub secret_file: Option<String>,
    /// How long the browser keeps it; `None` is a session cookie.
    pub max_age: Option<Duration>,
    /// The `SameSite` attribute.
    pub same_site: SameSite,
    /// When the `Secure` attribute is set.
    pub secure: SecureAttribute,
    /// The `Partitioned` attribute (CHIPS); needs `Secure`.
    pub partitioned: bool,
    /// The `Path` attribute.
    pub path: String,
    /// The `Domain` attribute; `None` leaves it out (host-only).
    pub domain: Option<String>,
}

/// `SameSite` of the balancer's cookie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SameSite {
    /// `SameSite=Lax`.
    #[default]
    Lax,
    /// `SameSite=Strict`.
    Strict,
    /// `SameSite=None`, for pages of another site; browsers then want `Secure`.
    None,
}

/// When the balancer's cookie carries `Secure`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SecureAttribute {
    /// When the client came over https, as this balancer or a trusted proxy saw it.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// What a valid cookie says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CookiePin {
    /// The node that it names.
    pub tag: NodeTag,
    /// It is valid and has to be renewed: another key signs by now, or less than half of its time is left.
    pub renew: bool,
}

impl CookiePolicy {
    /// What `value` (without quotes) says at `now` (unix seconds); `None` when it is not valid.
    pub fn read(&self, pool: &str, value: &[u8], now: u64) -> Option<CookiePin> {
        let value = std::str::from_utf8(value).ok().filter(|value| value.len() <= MAX_COOKIE_VALUE)?;
        let rest = value.strip_prefix("v1.")?;
        match &self.keys {
            None => Some(CookiePin { tag: NodeTag::parse(rest.as_bytes())?, renew: false }),
            Some(keys) => self.read_signed(keys, pool, value, now),
        }
    }

    fn read_signed(&self, keys: &KeyRing, pool: &str, value: &str, now: u64) -> Option<CookiePin> {
        let (signed, mac) = value.rsplit_once('.')?;
        let mut fields = signed.split('.').skip(1);
        let (kid, tag, expiry) = (fields.next()?, fields.next()?, fields.next()?);
        if fields.next().is_some() {
            return None;
        }
        let signed_by = keys.verify(kid, &signed_bytes(pool, signed), mac)?;
        let expiry: u64 = expiry.parse().ok()?;
        if expiry != 0 && expiry <= now {
            return None;
        }
        let left = expiry.saturating_sub(now);
        let is_old = self.max_age.is_some_and(|max_age| left < max_age.as_secs() / 2);
        Some(CookiePin { tag: NodeTag::parse(tag.as_bytes())?, renew: signed_by != 0 || is_old })
    }

    /// The `Set-Cookie` that pins a client to the node of `tag`; `https` is how the client came.
    ///
    /// `None` only when name, path or domain cannot stand in a header, which the config rules out.
    pub fn set_cookie(&self, pool: &str, tag: NodeTag, now: u64, https: bool) -> Option<HeaderValue> {
        let mut text = format!("{}={}; Path={}", self.name, self.value(pool, tag, now), self.path);
        if let Some(domain) = &self.domain {
            text += &format!("; Domain={domain}");
        }
        if let Some(max_age) = self.max_age {
            text += &format!("; Max-Age={}", max_age.as_secs());
        }
        text += "; HttpOnly";
        let secure = match self.secure {
            SecureAttribute::Auto => https,
            SecureAttribute::Always => true,
            SecureAttribute::Never => false,
        };
        text += match self.same_site {
            SameSite::Lax => "; SameSite=Lax",
            SameSite::Strict => "; SameSite=Strict",
            SameSite::None if secure => "; SameSite=None",
            // Browsers drop a cookie with SameSite=None and without Secure; left out, it is Lax and works on
            // pages of the same site, over plain http on a developer's machine for instance.
            SameSite::None => "",
        };
        if secure {
            text += if self.partitioned { "; Secure; Partitioned" } else { "; Secure" };
        }
        HeaderValue::try_from(text).ok()
    }

    /// The value that pins to the node of `tag` from `now` on.
    fn value(&self, pool: &str, tag: NodeTag, now: u64) -> String {
        let Some(keys) = &self.keys else {
            return format!("v1.{tag}");
        };
        let expiry = self.max_age.map_or(0, |max_age| now.saturating_add(max_age.as_secs()));
        let key = &keys.keys.first;
        let signed = format!("v1.{}.{tag}.{expiry}", key.name);
        let mac = hmac::sign(&key.hmac, &signed_bytes(pool, &signed));
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(mac))
    }
}

/// What the MAC covers. The signed text holds no NUL, so that no two pairs give the same bytes.
fn signed_bytes(pool: &str, signed: &str) -> Vec<u8> {
    [pool.as_bytes(), &[0], signed.as_bytes()].concat()
}

/// The signing keys of a `secret_file`: the first signs, all verify.
#[derive(Clone, PartialEq)]
pub struct KeyRing {
    /// Shared, because generations of the config and their pools hold the same keys.
    keys: Arc<SigningKeys>,
}

/// The keys of a ring.
#[derive(PartialEq)]
struct SigningKeys {
    /// The key that signs.
    first: SigningKey,
    /// Keys that only verify.
    others: Vec<SigningKey>,
}

/// One line of a `secret_file`.
struct SigningKey {
    /// Goes into each value, so that the right key verifies it.
    name: String,
    /// The secret; kept so that two rings can be told apart. Never shown.
    bytes: Zeroizing<Vec<u8>>,
    /// The key made from the secret, once.
    hmac: hmac::Key,
}

impl PartialEq for SigningKey {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && self.bytes == other.bytes
    }
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter().map(|key| &key.name)).finish()
    }
}

impl KeyRing {
    /// Reads a `secret_file`: one key a line, `NAME:BASE64` of at least 32 bytes; empty lines and lines that
    /// begin with `#` are passed over. The error names the line, and never what is secret in it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut keys: Vec<SigningKey> = Vec::new();
        for (line, number) in text.lines().map(str::trim).zip(1..) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let key = SigningKey::parse(line).map_err(|error| format!("line {number}: {error}"))?;
            if keys.iter().any(|known| known.name == key.name) {
                let name = &key.name;
                return Err(format!(
                    "line {number}: the name {name:?} is taken by a line above; each key needs its own"
                ));
            }
            keys.push(key);
        }
        if keys.is_empty() {
            return Err("there is no key; write one a line, as `NAME:BASE64` of at least 32 bytes".into());
        }
        let first = keys.remove(0);
        Ok(Self { keys: Arc::new(SigningKeys { first, others: keys }) })
    }

    /// The secrets, the signing one first, for other uses of a secret file.
    pub fn secrets(&self) -> impl Iterator<Item = &[u8]> {
        self.iter().map(|key| &key.bytes[..])
    }

    /// The place (0: the one that signs) of the key `kid`, when `mac` is its MAC of `data`.
    fn verify(&self, kid: &str, data: &[u8], mac: &str) -> Option<usize> {
        let (place, key) = self.iter().enumerate().find(|(_, key)| key.name == kid)?;
        let mut bytes = [0; 33];
        let len = URL_SAFE_NO_PAD.decode_slice(mac, &mut bytes).ok()?;
        hmac::verify(&key.hmac, data, &bytes[..len]).ok().map(|()| place)
    }

    fn iter(&self) -> impl Iterator<Item = &SigningKey> {
        std::iter::once(&self.keys.first).chain(&self.keys.others)
    }
}

impl SigningKey {
    /// The fewest bytes of a secret: as many as the MAC has (RFC 2104 section 3).
    const MIN: usize = 32;

    fn parse(line: &str) -> Result<Self, String> {
        let Some((name, secret)) = line.split_once(':') else {
            return Err("there is no `:`; write the key as `NAME:BASE64`".into());
        };
        let (name, secret) = (name.trim(), secret.trim());
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if !(1..=32).contains(&name.len()) || !name.bytes().all(fits) {
            return Err("the name of a key has 1 to 32 letters, digits, `-` or `_`".into());
        }
        let Some(bytes) = decode_base64(secret) else {
            return Err(format!("the secret of {name:?} is not base64; `openssl rand -base64 32` makes one"));
        };
        if bytes.len() < Self::MIN {
            let len = bytes.len();
            return Err(format!(
                "the secret of {name:?} has {len} bytes and needs at least 32; `openssl rand -base64 32` makes one"
            ));
        }
        let hmac = hmac::Key::new(hmac::HMAC_SHA256, &bytes);
        Ok(Self { name: name.to_owned(), bytes: Zeroizing::new(bytes), hmac })
    }
}

/// Base64 in either alphabet, with or without padding: whatever a tool wrote.
fn decode_base64(secret: &str) -> Option<Vec<u8>> {
    let bare = secret.trim_end_matches('=');
    STANDARD
        .decode(secret)
        .or_else(|_| STANDARD_NO_PAD.decode(bare))
        .or_else(|_| URL_SAFE_NO_PAD.decode(bare))
        .ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 1_800_000_000;
    const DAY: u64 = 86_400;

    fn ring(names: &str) -> KeyRing {
        let line = |name: char| format!("{name}:{}\n", STANDARD.encode([name as u8; 32]));
        KeyRing::parse(&names.chars().map(line).collect::<String>()).unwrap()
    }

    fn policy(keys: Option<KeyRing>, max_age: Option<u64>) -> CookiePolicy {
        CookiePolicy {
            name: "mainstay".into(),
            keys,
            secret_file: None,
            max_age: max_age.map(Duration::from_secs),
            same_site: SameSite::Lax,
            secure: SecureAttribute::Auto,
            partitioned: false,
            path: "/".into(),
            domain: None,
        }
    }

    fn tag() -> NodeTag {
        NodeTag::of("chat", "ws1")
    }

    #[test]
    fn a_tag_is_the_same_on_every_machine() {
        for (pool, id, text) in
            [("chat", "ws1", "g34MihQ_dy4"), ("chat", "ws2", "FFIda9qBi8o"), ("", "", "BWY7d4DkYDs")]
        {
            assert_eq!(NodeTag::of(pool, id).to_string(), text, "{pool}/{id}");
        }
        assert_ne!(NodeTag::of("ab", "c"), NodeTag::of("a", "bc"));
    }

    #[test]
    fn a_tag_is_read_in_one_spelling_only() {
        let text = tag().to_string();
        assert_eq!(NodeTag::parse(text.as_bytes()), Some(tag()));
        for bad in [&text[..10], &format!("{text}="), &format!("{text}A"), &format!(" {text}"), ""] {
            assert_eq!(NodeTag::parse(bad.as_bytes()), None, "{bad:?}");
        }
        // 11 characters carry 66 bits: the two last must be zero.
        assert_eq!(NodeTag::parse(b"AAAAAAAAAAA"), Some(NodeTag(0)));
        assert_eq!(NodeTag::parse(b"AAAAAAAAAAB"), None);
        assert_eq!(NodeTag::parse("ééééé".as_bytes()), None);
    }

    #[test]
    fn an_unsigned_cookie_names_its_node() {
        let policy = policy(None, None);
        let value = policy.value("chat", tag(), NOW);
        assert_eq!(value, format!("v1.{}", tag()));
        assert_eq!(policy.read("chat", value.as_bytes(), NOW), Some(CookiePin { tag: tag(), renew: false }));
    }

    #[test]
    fn a_signed_cookie_holds_for_its_pool_until_it_expires() {
        let policy = policy(Some(ring("a")), Some(DAY));
        let value = policy.value("chat", tag(), NOW);
        let at = |pool: &str, now: u64| policy.read(pool, value.as_bytes(), now).map(|reading| reading.tag);
        assert_eq!(at("chat", NOW), Some(tag()));
        assert_eq!(at("chat", NOW + DAY - 1), Some(tag()));
        assert_eq!(at("chat", NOW + DAY), None);
        assert_eq!(at("chat", u64::MAX), None);
        assert_eq!(at("other", NOW), None);
    }

    #[test]
    fn a_signed_cookie_without_max_age_never_expires() {
        let policy = policy(Some(ring("a")), None);
        let value = policy.value("chat", tag(), NOW);
        assert!(value.contains(".0."));
        assert_eq!(
            policy.read("chat", value.as_bytes(), u64::MAX),
            Some(CookiePin { tag: tag(), renew: false })
        );
    }

    #[test]
    fn a_cookie_of_an_older_key_holds_and_is_renewed_until_the_key_is_gone() {
        let old = policy(Some(ring("a")), Some(DAY));
        let value = old.value("chat", tag(), NOW);
        let rotated = policy(Some(ring("ba")), Some(DAY));
        assert_eq!(rotated.read("chat", value.as_bytes(), NOW), Some(CookiePin { tag: tag(), renew: true }));
        assert!(rotated.value("chat", tag(), NOW).starts_with("v1.b."));
        assert_eq!(policy(Some(ring("b")), Some(DAY)).read("chat", value.as_bytes(), NOW), None);
    }

    #[test]
    fn a_cookie_is_renewed_in_the_second_half_of_its_life() {
        let policy = policy(Some(ring("a")), Some(DAY));
        let value = policy.value("chat", tag(), NOW);
        let renew = |now: u64| policy.read("chat", value.as_bytes(), now).unwrap().renew;
        assert!(!renew(NOW) && !renew(NOW + DAY / 2) && renew(NOW + DAY / 2 + 1));
    }

    #[test]
    fn a_policy_with_keys_takes_no_unsigned_value_and_one_without_takes_no_signed_one() {
        let (plain, signing) = (policy(None, None), policy(Some(ring("a")), None));
        assert_eq!(signing.read("chat", plain.value("chat", tag(), NOW).as_bytes(), NOW), None);
        assert_eq!(plain.read("chat", signing.value("chat", tag(), NOW).as_bytes(), NOW), None);
    }

    #[test]
    fn a_forged_or_cut_value_is_as_no_cookie() {
        let policy = policy(Some(ring("a")), Some(DAY));
        let good = policy.value("chat", tag(), NOW);
        let parts: Vec<&str> = good.split('.').collect();
        let [version, kid, tag, expiry, mac] = parts[..] else { panic!("five fields") };
        let other = NodeTag::of("chat", "ws2").to_string();
        let late = (NOW + 2 * DAY).to_string();
        for forged in [
            format!("{version}.{kid}.{other}.{expiry}.{mac}"),
            format!("{version}.{kid}.{tag}.{late}.{mac}"),
            format!("{version}.{kid}.{tag}.0.{mac}"),
            format!("{version}.{kid}.{tag}.+{expiry}.{mac}"),
            format!("{version}.{kid}.{tag}.{expiry}."),
            format!("{version}.{kid}.{tag}.{expiry}.{}", &mac[..22]),
            format!("{version}.{kid}.{tag}.{expiry}.{mac}A"),
            format!("{version}.{kid}.{tag}.{expiry}.{mac}="),
            format!("{version}.{kid}.{tag}.{expiry}.{mac}.{mac}"),
            format!("{version}.{kid}.{tag}.{expiry}"),
            format!("{version}.z.{tag}.{expiry}.{mac}"),
            format!("{version}..{tag}.{expiry}.{mac}"),
            format!("v2.{kid}.{tag}.{expiry}.{mac}"),
            format!("{}{}", good, " ".repeat(300)),
            "v1.".into(),
            "v1".into(),
            ".".repeat(200),
            String::new(),
        ] {
            assert_eq!(policy.read("chat", forged.as_bytes(), NOW), None, "{forged}");
        }
        assert_eq!(policy.read("chat", b"v1.\xff\xfe", NOW), None);
    }

    #[test]
    fn set_cookie_carries_the_attributes_of_the_rule() {
        let value = format!("mainstay=v1.{}", tag());
        let set = |policy: &CookiePolicy, https| {
            let header = policy.set_cookie("chat", tag(), NOW, https).unwrap();
            header.to_str().unwrap().strip_prefix(&value).unwrap().to_owned()
        };
        let mut policy = policy(None, None);
        assert_eq!(set(&policy, false), "; Path=/; HttpOnly; SameSite=Lax");
        assert_eq!(set(&policy, true), "; Path=/; HttpOnly; SameSite=Lax; Secure");
        policy.secure = SecureAttribute::Always;
        policy.same_site = SameSite::None;
        policy.partitioned = true;
        policy.max_age = Some(Duration::from_secs(DAY));
        policy.domain = Some("example.com".into());
        policy.path = "/socket.io/".into();
        assert_eq!(
            set(&policy, false),
            "; Path=/socket.io/; Domain=example.com; Max-Age=86400; HttpOnly; SameSite=None; Secure; Partitioned"
        );
        policy.secure = SecureAttribute::Never;
        assert_eq!(set(&policy, true), "; Path=/socket.io/; Domain=example.com; Max-Age=86400; HttpOnly");
        policy.same_site = SameSite::Strict;
        assert!(set(&policy, true).ends_with("; SameSite=Strict"));
        policy.path = "/\n".into();
        assert_eq!(policy.set_cookie("chat", tag(), NOW, true), None);
    }

    #[test]
    fn a_secret_file_holds_one_key_a_line() {
        let secret = STANDARD.encode([7; 32]);
        let text = format!(
            "# of 2026\n\n new : {secret} \r\n  # older\nold:{}\n",
            URL_SAFE_NO_PAD.encode([0xfb; 40])
        );
        let ring = KeyRing::parse(&text).unwrap();
        assert_eq!(format!("{ring:?}"), r#"["new", "old"]"#);
        assert_eq!(ring.keys.first.bytes[..], [7; 32]);
        assert_eq!(ring.keys.others[0].bytes[..], [0xfb; 40]);
        assert_eq!(ring, KeyRing::parse(&text).unwrap());
        assert_ne!(ring, KeyRing::parse(&format!("new:{secret}")).unwrap());
    }

    #[test]
    fn a_bad_secret_file_names_the_line_and_keeps_the_secret() {
        let secret = STANDARD.encode([7; 32]);
        for (text, says) in [
            (String::new(), "there is no key"),
            ("# only\n\n".into(), "there is no key"),
            (format!("\n{secret}"), "line 2: there is no `:`"),
            (format!(":{secret}"), "line 1: the name"),
            (format!("a.b:{secret}"), "line 1: the name"),
            (format!("{}:{secret}", "x".repeat(33)), "line 1: the name"),
            (format!("a:{secret}\na:{secret}"), "line 2: the name \"a\" is taken"),
            ("a:%%%".into(), "line 1: the secret of \"a\" is not base64"),
            ("a:".into(), "line 1: the secret of \"a\" has 0 bytes"),
            (format!("a:{}", STANDARD.encode([7; 31])), "line 1: the secret of \"a\" has 31 bytes"),
        ] {
            let error = KeyRing::parse(&text).unwrap_err();
            assert!(error.starts_with(says), "{text:?}: {error}");
            assert!(!error.contains(&secret));
        }
    }

    proptest! {
        #[test]
        fn no_value_makes_read_panic_or_believe(value in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(policy(Some(ring("a")), Some(DAY)).read("chat", &value, NOW), None);
        }

        #[test]
        fn one_changed_byte_spoils_a_signed_cookie(at in 0_usize..80, byte in 0x20_u8..0x7f) {
            let policy = policy(Some(ring("a")), Some(DAY));
            let good = policy.value("chat", tag(), NOW);
            let mut value = good.clone().into_bytes();
            let at = at % value.len();
            prop_assume!(value[at] != byte);
            value[at] = byte;
            prop_assert_eq!(policy.read("chat", &value, NOW), None);
        }
    }
}
