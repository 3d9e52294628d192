//! The affinity cookie that the balancer sets: encode, sign, verify, expire.

use std::time::Duration;

/// How the balancer's cookie is made.
#[derive(Debug, Clone, PartialEq)]
pub struct CookieRule {
    /// Cookie name.
    pub name: String,
    /// Keys that sign and verify; `None` leaves the cookie unsigned.
    pub keys: Option<KeyRing>,
    /// How long the browser keeps it; `None` is a session cookie.
    pub max_age: Option<Duration>,
    /// The `SameSite` attribute.
    pub same_site: SameSite,
    /// When the `Secure` attribute is set.
    pub secure: Secure,
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
pub enum Secure {
    /// When the client came over https, as this balancer or a trusted proxy saw it.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// The signing keys of a `secret_file`: the first signs, all verify.
#[derive(Clone, PartialEq)]
pub struct KeyRing {
    keys: Vec<(String, Vec<u8>)>,
}

impl std::fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.keys.iter().map(|(name, _)| name)).finish()
    }
}
