//! Certificates and keys: from the bytes of PEM files to what TLS is spoken with, and what is wrong with them.
//!
//! Nothing here reads a file or a clock: the bytes and the time come in. What comes out can be compared, so that a
//! renewed certificate is a difference between two configs; a key is in there as what signs with it, and a digest.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::{CertifiedKey, SigningKey};
use rustls::{Error, InconsistentKeys, RootCertStore};
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
use x509_parser::time::ASN1Time;
use zeroize::Zeroize;

/// A certificate that ends sooner than this is warned of. Most authorities renew 30 days before.
const SOON: i64 = 14 * 86_400;

/// A certificate with its chain and its key, which belong together.
#[derive(Clone)]
pub struct Identity {
    /// Where the certificate was read from, as written.
    pub cert: PathBuf,
    /// Where the key was read from, as written.
    pub key: PathBuf,
    /// The hosts that it is for, lower case, wildcards as `*.example.com`.
    pub names: Vec<String>,
    /// The last day on which it is valid, as `2027-01-31`.
    pub expires: String,
    /// What TLS is spoken with.
    pub certified: Arc<CertifiedKey>,
    /// Of the chain and the key.
    digest: [u8; 32],
}

impl Identity {
    /// The identity of a chain and its key.
    ///
    /// # Errors
    ///
    /// That they do not belong together.
    pub(super) fn new((cert, chain): (&Path, Chain), (key, signer): (&Path, Signer)) -> Result<Self, String> {
        let digest = digest_of(chain.list.iter().map(|der| der.as_ref()).chain([&signer.digest[..]]));
        let certified = CertifiedKey::new(chain.list, signer.signer);
        match certified.keys_match() {
            // Not every key tells its public part; what signs with such a one shows at the first handshake.
            Ok(()) | Err(Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
            Err(_) => {
                return Err(format!(
                    "it is not the key of {}; write the one it was made for",
                    cert.display()
                ));
            }
        }
        Ok(Self {
            cert: cert.to_owned(),
            key: key.to_owned(),
            names: chain.names,
            expires: chain.expires,
            certified: Arc::new(certified),
            digest,
        })
    }
}

impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest && (&self.cert, &self.key) == (&other.cert, &other.key)
    }
}

impl Eq for Identity {}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("cert", &self.cert)
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

/// Authorities whose certificates are believed; at least one.
#[derive(Clone)]
pub struct Authorities {
    /// Where they were read from, as written.
    pub file: PathBuf,
    /// What certificates are checked against.
    pub roots: Arc<RootCertStore>,
    /// Of their certificates.
    digest: [u8; 32],
}

impl Authorities {
    /// The authorities of a PEM file.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub(super) fn parse(file: &Path, pem: &[u8]) -> Result<Self, String> {
        let list = certificates(pem)?;
        let mut roots = RootCertStore::empty();
        for (number, der) in (1..).zip(&list) {
            let added = roots.add(der.clone());
            added.map_err(|_| format!("certificate {number} in it cannot be decoded; copy the file anew"))?;
        }
        let digest = digest_of(list.iter().map(|der| der.as_ref()));
        Ok(Self { file: file.to_owned(), roots: Arc::new(roots), digest })
    }
}

impl PartialEq for Authorities {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest && self.file == other.file
    }
}

impl Eq for Authorities {}

impl fmt::Debug for Authorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authorities").field("file", &self.file).finish_non_exhaustive()
    }
}

/// A certificate and those between it and its authority.
pub(super) struct Chain {
    list: Vec<CertificateDer<'static>>,
    names: Vec<String>,
    expires: String,
}

impl Chain {
    /// The chain of a PEM file, the host's own certificate first; `now` is Unix seconds. What is unwise about it goes
    /// to `warn`.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub(super) fn parse(pem: &[u8], now: Option<i64>, warn: &mut dyn FnMut(String)) -> Result<Self, String> {
        let list = certificates(pem)?;
        let mut own = None;
        for (number, der) in (1..).zip(&list) {
            let parsed = X509Certificate::from_der(der);
            let (_, certificate) = parsed
                .map_err(|_| format!("certificate {number} in it cannot be decoded; copy the file anew"))?;
            if let (1, Some(now)) = (number, now) {
                check_time(&certificate, now, warn)?;
            }
            let end = day(certificate.validity().not_after);
            own = own.or_else(|| Some((dns_names(&certificate), end)));
        }
        let (names, expires) = own.unwrap_or_default();
        Ok(Self { list, names, expires })
    }
}

fn check_time(
    certificate: &X509Certificate<'_>,
    now: i64,
    warn: &mut dyn FnMut(String),
) -> Result<(), String> {
    let (begin, end) = (certificate.validity().not_before, certificate.validity().not_after);
    if end.timestamp() < now {
        return Err(format!("it expired on {}; renew it", day(end)));
    }
    if begin.timestamp() > now {
        return Err(format!("it is not valid before {}; look at the clock of this machine", day(begin)));
    }
    if end.timestamp() - now < SOON {
        warn(format!("it expires on {}; renew it", day(end)));
    }
    Ok(())
}

fn day(time: ASN1Time) -> String {
    time.to_datetime().date().to_string()
}

fn dns_names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
    let dns = |name: &GeneralName| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        _ => None,
    };
    names.value.general_names.iter().filter_map(dns).collect()
}

/// A private key in the hands of the cryptographic library, which wipes it.
pub(super) struct Signer {
    signer: Arc<dyn SigningKey>,
    digest: [u8; 32],
}

impl Signer {
    /// The first private key of a PEM file: PKCS #8, PKCS #1 or SEC 1.
    ///
    /// # Errors
    ///
    /// What is wrong with it; nothing of the key is in there.
    pub(super) fn parse(pem: &[u8]) -> Result<Self, String> {
        let mut der = PrivateKeyDer::from_pem_slice(pem).map_err(|error| match error {
            pem::Error::NoItemsFound if has(pem, "ENCRYPTED PRIVATE KEY") => {
                "the key in it is encrypted; write it without a passphrase (`openssl pkey -in OLD -out NEW`)"
                    .to_owned()
            }
            pem::Error::NoItemsFound => {
                "there is no PEM private key in it, `-----BEGIN PRIVATE KEY-----`".into()
            }
            _ => "it is no sound PEM; copy the file anew".into(),
        })?;
        let (signer, digest) = (any_supported_type(&der), digest_of([der.secret_der()].into_iter()));
        der.zeroize();
        let signer = signer.map_err(
            |_| "the key in it cannot be used; write an RSA, ECDSA (P-256 to P-521) or Ed25519 key",
        )?;
        Ok(Self { signer, digest })
    }
}

/// The certificates of a PEM file; at least one.
fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let list: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(pem).collect();
    let list = list.map_err(|_| "it is no sound PEM; copy the file anew")?;
    if list.is_empty() {
        return Err("there is no PEM certificate in it, `-----BEGIN CERTIFICATE-----`".into());
    }
    Ok(list)
}

fn has(bytes: &[u8], word: &str) -> bool {
    memchr::memmem::find(bytes, word.as_bytes()).is_some()
}

/// With lengths between the parts, so that no two lists give the same bytes.
fn digest_of<'a>(parts: impl Iterator<Item = &'a [u8]>) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    for part in parts {
        context.update(&part.len().to_be_bytes());
        context.update(part);
    }
    let mut digest = [0; 32];
    digest.copy_from_slice(context.finish().as_ref());
    digest
}
