//! Who a client is: a JSON Web Token (RFC 7519) that it shows, or its own word where none is asked for.
//!
//! Rules:
//! - One key and one algorithm, both from the command line. What the token's head says is compared with it and chooses
//!   nothing, and a key is made for its algorithm alone: a public key is never used as a secret.
//! - `exp` and `sub` must be there; `exp` and `nbf` are checked, each with the leeway. A token lives until `exp` and the
//!   leeway have passed, and so does the connection: [`Identity::expires`] says when to close it.
//! - A token with `aud` is for somebody: without `--jwt-audience` it is refused (RFC 7519, section 4.1.3).
//! - Without a key, a name that a client gives itself is taken as it is, and proves nothing.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{DecodingKey, Validation, decode};
use serde::Deserialize;

/// The fewest bytes of a secret: as many as the hash of HS256 gives (RFC 7518, section 3.2).
const SHORTEST_SECRET: usize = 32;
/// The longest token that is looked at.
const LONGEST_TOKEN: usize = 8 << 10;

/// The name of a user: 1 to 128 bytes without control characters.
///
/// `connections` is not one, because the presence of everybody is kept under that key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct User(Arc<str>);

impl User {
    /// The user of this name, when it is one.
    pub fn parse(name: &str) -> Option<Self> {
        let fits = (1..=128).contains(&name.len()) && !name.chars().any(char::is_control);
        (fits && name != "connections").then(|| Self(name.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is known of a client.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Identity {
    /// Its user; without auth, the name that it gives itself, if any.
    pub user: Option<User>,
    /// When its connection must end.
    pub expires: Option<SystemTime>,
}

/// How tokens are checked.
#[derive(Debug, Clone, Default)]
pub struct AuthSettings {
    /// What verifies them; `None`: no token is asked for.
    pub key: Option<JwtKey>,
    /// The `iss` that they must have.
    pub issuer: Option<String>,
    /// The `aud` that they must have.
    pub audience: Option<String>,
    /// How far clocks may be apart.
    pub leeway: Duration,
}

/// What tokens are signed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JwtAlgorithm {
    /// HMAC with SHA-256: who can verify can sign.
    Hs256,
    /// RSA PKCS#1 v1.5 with SHA-256.
    Rs256,
    /// Ed25519.
    EdDsa,
}

impl JwtAlgorithm {
    /// As it stands in a token's head.
    pub fn word(self) -> &'static str {
        match self {
            Self::Hs256 => "HS256",
            Self::Rs256 => "RS256",
            Self::EdDsa => "EdDSA",
        }
    }
}

/// A key for one algorithm.
#[derive(Clone)]
pub struct JwtKey {
    algorithm: JwtAlgorithm,
    key: DecodingKey,
}

impl JwtKey {
    /// Reads a key file: the secret of HS256 (a line end after it does not count), or a public key in PEM.
    ///
    /// # Errors
    ///
    /// What is wrong with it; no part of it is in the message.
    pub fn parse(algorithm: JwtAlgorithm, text: &str) -> Result<Self, String> {
        let pem = text.contains("-----BEGIN ");
        let private = text.contains("PRIVATE KEY-----");
        let key = match algorithm {
            JwtAlgorithm::Hs256 if pem => {
                // Anybody has a public key, and could sign with it as the secret.
                return Err("it is a key in PEM, and HS256 has a secret; write RS256 or EdDSA".into());
            }
            JwtAlgorithm::Hs256 => {
                let secret = text.trim_end_matches(['\r', '\n']);
                if secret.len() < SHORTEST_SECRET {
                    let (has, least) = (secret.len(), SHORTEST_SECRET);
                    return Err(format!(
                        "the secret has {has} bytes; HS256 needs {least} bytes (`openssl rand -hex 32`)"
                    ));
                }
                DecodingKey::from_secret(secret.as_bytes())
            }
            _ if private => return Err("it is a private key; the node needs the public one only".into()),
            JwtAlgorithm::Rs256 => DecodingKey::from_rsa_pem(text.as_bytes())
                .map_err(|_| "it is no RSA public key in PEM (`openssl rsa -pubout`)".to_owned())?,
            JwtAlgorithm::EdDsa => DecodingKey::from_ed_pem(text.as_bytes())
                .map_err(|_| "it is no Ed25519 public key in PEM (`openssl pkey -pubout`)".to_owned())?,
        };
        Ok(Self { algorithm, key })
    }
}

impl fmt::Debug for JwtKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({} hidden)", self.algorithm.word())
    }
}

/// Why a client is not let in. The words are for the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// No token, and one is asked for.
    #[error("a token is needed")]
    Missing,
    /// Not a token, or not signed with the key.
    #[error("the token is not valid")]
    Invalid,
    /// Its `exp` has passed.
    #[error("the token has expired")]
    Expired,
    /// Its `nbf` is to come.
    #[error("the token is not valid yet")]
    Early,
    /// For or by somebody else.
    #[error("the token is not for this service")]
    Elsewhere,
    /// Without `exp` or `sub`.
    #[error("the token has no `exp` or no `sub`")]
    Incomplete,
    /// A name that cannot be one.
    #[error("a user's name has 1 to 128 bytes, no control characters, and is not `connections`")]
    Name,
}

/// Checks what clients show.
#[derive(Debug)]
pub struct Authenticator {
    /// The key and what a token must be; `None`: no token is asked for.
    check: Option<(JwtKey, Validation)>,
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
    exp: u64,
}

impl Authenticator {
    /// Auth as the settings say.
    pub fn new(settings: &AuthSettings) -> Self {
        Self { check: settings.key.clone().map(|key| (key, validation(settings))) }
    }

    /// Whether clients must show a token.
    pub fn is_on(&self) -> bool {
        self.check.is_some()
    }

    /// Who shows this `token`, or calls itself `name` where no token is asked for.
    ///
    /// # Errors
    ///
    /// Why the client is not let in.
    pub(crate) fn identify(&self, token: Option<&str>, name: Option<&str>) -> Result<Identity, AuthError> {
        let Some((key, validation)) = &self.check else {
            let user = name.map(|name| User::parse(name).ok_or(AuthError::Name)).transpose()?;
            return Ok(Identity { user, expires: None });
        };
        let token = token.filter(|token| !token.is_empty()).ok_or(AuthError::Missing)?;
        if token.len() > LONGEST_TOKEN {
            return Err(AuthError::Invalid);
        }
        let claims =
            decode::<Claims>(token, &key.key, validation).map_err(|error| auth_error(error.kind()))?.claims;
        let user = User::parse(&claims.sub).ok_or(AuthError::Name)?;
        // A year that no clock can tell is as good as no end.
        let end = Duration::from_secs(claims.exp.saturating_add(validation.leeway));
        Ok(Identity { user: Some(user), expires: UNIX_EPOCH.checked_add(end) })
    }
}

fn validation(settings: &AuthSettings) -> Validation {
    let algorithm = match settings.key.as_ref().map(|key| key.algorithm) {
        Some(JwtAlgorithm::Rs256) => jsonwebtoken::Algorithm::RS256,
        Some(JwtAlgorithm::EdDsa) => jsonwebtoken::Algorithm::EdDSA,
        Some(JwtAlgorithm::Hs256) | None => jsonwebtoken::Algorithm::HS256,
    };
    let mut validation = Validation::new(algorithm);
    validation.leeway = settings.leeway.as_secs();
    validation.validate_nbf = true;
    let mut required = vec!["exp", "sub"];
    if let Some(issuer) = &settings.issuer {
        validation.set_issuer(&[issuer]);
        required.push("iss");
    }
    if let Some(audience) = &settings.audience {
        validation.set_audience(&[audience]);
        required.push("aud");
    }
    validation.set_required_spec_claims(&required);
    validation
}

fn auth_error(kind: &ErrorKind) -> AuthError {
    match kind {
        ErrorKind::ExpiredSignature => AuthError::Expired,
        ErrorKind::ImmatureSignature => AuthError::Early,
        ErrorKind::InvalidIssuer | ErrorKind::InvalidAudience => AuthError::Elsewhere,
        ErrorKind::MissingRequiredClaim(claim) if matches!(claim.as_str(), "iss" | "aud") => {
            AuthError::Elsewhere
        }
        ErrorKind::MissingRequiredClaim(_) => AuthError::Incomplete,
        _ => AuthError::Invalid,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use jsonwebtoken::{EncodingKey, Header, encode};
    use rcgen::KeyPair;
    use serde_json::{Value, json};

    use super::*;

    pub(crate) const SECRET: &str = "0123456789abcdef0123456789abcdef";

    fn settings(key: JwtKey) -> AuthSettings {
        AuthSettings { key: Some(key), issuer: None, audience: None, leeway: Duration::from_secs(5) }
    }

    fn hs256() -> JwtKey {
        JwtKey::parse(JwtAlgorithm::Hs256, SECRET).unwrap()
    }

    /// A token of HS256 with these claims.
    pub(crate) fn token(claims: &Value) -> String {
        encode(&Header::default(), claims, &EncodingKey::from_secret(SECRET.as_bytes())).unwrap()
    }

    pub(crate) fn in_seconds(seconds: i64) -> i64 {
        i64::try_from(jsonwebtoken::get_current_timestamp()).unwrap() + seconds
    }

    #[test]
    fn a_token_that_is_in_order_names_its_user_and_its_end() {
        let auth = Authenticator::new(&settings(hs256()));
        let exp = in_seconds(60);
        let identity =
            auth.identify(Some(&token(&json!({ "sub": "alice", "exp": exp }))), Some("bob")).unwrap();
        assert_eq!(identity.user.unwrap().as_str(), "alice");
        let end = identity.expires.unwrap().duration_since(UNIX_EPOCH).unwrap();
        assert_eq!(end.as_secs(), u64::try_from(exp).unwrap() + 5);
    }

    #[test]
    fn each_broken_token_is_refused_for_its_own_reason() {
        let auth = Authenticator::new(&settings(hs256()));
        let soon = in_seconds(60);
        let cases = [
            (json!({ "sub": "a", "exp": in_seconds(-6) }), AuthError::Expired),
            (json!({ "sub": "a", "exp": soon, "nbf": in_seconds(60) }), AuthError::Early),
            (json!({ "sub": "a", "exp": soon, "aud": "others" }), AuthError::Elsewhere),
            (json!({ "sub": "a" }), AuthError::Incomplete),
            (json!({ "exp": soon }), AuthError::Incomplete),
            (json!({ "sub": "", "exp": soon }), AuthError::Name),
            (json!({ "sub": "a\u{0}b", "exp": soon }), AuthError::Name),
            (json!({ "sub": "connections", "exp": soon }), AuthError::Name),
            (json!({ "sub": 7, "exp": soon }), AuthError::Invalid),
            (json!({ "sub": "a", "exp": "soon" }), AuthError::Incomplete),
        ];
        for (claims, fault) in cases {
            let outcome = auth.identify(Some(&token(&claims)), None);
            let alike = outcome == Err(fault)
                || (fault == AuthError::Incomplete && outcome == Err(AuthError::Invalid));
            assert!(alike, "{claims}: {outcome:?}");
        }
        assert_eq!(auth.identify(None, Some("bob")), Err(AuthError::Missing));
        assert_eq!(auth.identify(Some(""), None), Err(AuthError::Missing));
        assert_eq!(auth.identify(Some("a.b.c"), None), Err(AuthError::Invalid));
        assert_eq!(auth.identify(Some(&"x".repeat(LONGEST_TOKEN + 1)), None), Err(AuthError::Invalid));
    }

    #[test]
    fn the_leeway_forgives_a_clock_and_no_more() {
        let auth = Authenticator::new(&settings(hs256()));
        assert!(auth.identify(Some(&token(&json!({ "sub": "a", "exp": in_seconds(-2) }))), None).is_ok());
        assert!(auth.identify(Some(&token(&json!({ "sub": "a", "exp": in_seconds(-8) }))), None).is_err());
    }

    #[test]
    fn a_token_of_another_algorithm_is_refused_whatever_its_head_says() {
        let auth = Authenticator::new(&settings(hs256()));
        let claims = json!({ "sub": "a", "exp": in_seconds(60) });
        let none = |head: &str| {
            use base64::Engine;
            use base64::engine::general_purpose::URL_SAFE_NO_PAD;
            let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
            format!("{}.{}.", part(head), part(&claims.to_string()))
        };
        for head in [r#"{"alg":"none"}"#, r#"{"alg":"None","typ":"JWT"}"#, r#"{"typ":"JWT"}"#] {
            assert_eq!(auth.identify(Some(&none(head)), None), Err(AuthError::Invalid), "{head}");
        }
        let longer = Header::new(jsonwebtoken::Algorithm::HS384);
        let longer = encode(&longer, &claims, &EncodingKey::from_secret(SECRET.as_bytes())).unwrap();
        assert_eq!(auth.identify(Some(&longer), None), Err(AuthError::Invalid));
    }

    #[test]
    fn eddsa_is_verified_with_the_public_key_and_the_public_key_signs_nothing() {
        let pair = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let public = pair.public_key_pem();
        let auth = Authenticator::new(&settings(JwtKey::parse(JwtAlgorithm::EdDsa, &public).unwrap()));
        let claims = json!({ "sub": "alice", "exp": in_seconds(60) });
        let signed = encode(
            &Header::new(jsonwebtoken::Algorithm::EdDSA),
            &claims,
            &EncodingKey::from_ed_der(&pair.serialize_der()),
        );
        assert!(auth.identify(Some(&signed.unwrap()), None).is_ok());
        // The classic confusion: HS256 with the public key, which everybody has, as the secret.
        let forged =
            encode(&Header::default(), &claims, &EncodingKey::from_secret(public.as_bytes())).unwrap();
        assert_eq!(auth.identify(Some(&forged), None), Err(AuthError::Invalid));
    }

    #[test]
    fn rs256_is_verified_with_the_public_key() {
        let pair = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
        let auth = Authenticator::new(&settings(
            JwtKey::parse(JwtAlgorithm::Rs256, &pair.public_key_pem()).unwrap(),
        ));
        let claims = json!({ "sub": "alice", "exp": in_seconds(60) });
        let key = EncodingKey::from_rsa_pem(pair.serialize_pem().as_bytes()).unwrap();
        let signed = encode(&Header::new(jsonwebtoken::Algorithm::RS256), &claims, &key).unwrap();
        assert!(auth.identify(Some(&signed), None).is_ok());
        let other = encode(&Header::new(jsonwebtoken::Algorithm::RS512), &claims, &key).unwrap();
        assert_eq!(auth.identify(Some(&other), None), Err(AuthError::Invalid));
    }

    #[test]
    fn a_key_that_does_not_fit_its_algorithm_says_what_would_be_right() {
        let pair = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let cases = [
            (JwtAlgorithm::Hs256, "short".to_owned(), "32 bytes"),
            (JwtAlgorithm::Hs256, pair.public_key_pem(), "RS256 or EdDSA"),
            (JwtAlgorithm::EdDsa, pair.serialize_pem(), "the public one only"),
            (JwtAlgorithm::EdDsa, SECRET.to_owned(), "Ed25519 public key"),
            (JwtAlgorithm::Rs256, pair.public_key_pem(), "RSA public key"),
        ];
        for (algorithm, text, said) in cases {
            let fault = JwtKey::parse(algorithm, &text).unwrap_err();
            assert!(fault.contains(said) && !fault.contains(SECRET), "{fault}");
        }
    }

    #[test]
    fn issuer_and_audience_must_be_there_when_they_are_asked_for() {
        let wanted = AuthSettings {
            issuer: Some("https://id.example.com".into()),
            audience: Some("chat".into()),
            ..settings(hs256())
        };
        let auth = Authenticator::new(&wanted);
        let right = json!({ "sub": "a", "exp": in_seconds(60), "iss": "https://id.example.com", "aud": ["chat", "x"] });
        assert!(auth.identify(Some(&token(&right)), None).is_ok());
        for wrong in [("iss", json!("https://evil.example")), ("aud", json!("shop")), ("iss", Value::Null)] {
            let mut claims = right.clone();
            claims[wrong.0] = wrong.1;
            let outcome = auth.identify(Some(&token(&claims)), None);
            assert_eq!(outcome, Err(AuthError::Elsewhere), "{claims}");
        }
    }

    #[test]
    fn without_a_key_a_name_is_taken_as_it_is() {
        let auth = Authenticator::new(&AuthSettings { key: None, ..settings(hs256()) });
        assert!(!auth.is_on());
        assert_eq!(auth.identify(None, None), Ok(Identity::default()));
        assert_eq!(auth.identify(None, Some("bob")).unwrap().user.unwrap().as_str(), "bob");
        assert_eq!(auth.identify(None, Some("")), Err(AuthError::Name));
    }
}
