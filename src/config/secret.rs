//! Files with secrets: cookie keys and ticket keys.

use std::path::Path;

use zeroize::Zeroizing;

use super::reader::Value;
use crate::affinity::cookie::KeyRing;

/// The keys of a secret file; `None` after a fault.
pub(super) fn key_ring(value: &Value) -> Option<KeyRing> {
    let path = value.text("the path of a secret file, or null")?;
    let text = match (value.reader.read)(Path::new(path)) {
        Ok(bytes) => Ok(Zeroizing::new(bytes)),
        Err(error) => Err(format!("it cannot be read: {error}")),
    };
    let ring = text.and_then(|bytes| KeyRing::parse(str::from_utf8(&bytes).map_err(|_| "not text")?));
    ring.map_err(|message| value.fault(format_args!("{path}: {message}"))).ok()
}
