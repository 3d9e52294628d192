//! A cache of AEAD contexts: a few per thread, for the connections that are busy just now.
//!
//! A context takes 600 bytes, and 200 ns to set up. So a connection keeps only its key (44 bytes with the IV), and the
//! thread keeps the contexts that it used last, a bounded number. A busy connection finds its own; one that was idle
//! sets one up in the place of another. A context is wiped and dropped with the keys it was made from ([`evict`]).

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, CHACHA20_POLY1305, LessSafeKey, UnboundKey};

use crate::net::tls::extracted::{CipherSuite, TrafficKeys};

/// The most contexts that a thread keeps: 160 KiB of them.
const CAPACITY: usize = 256;

thread_local! {
    /// Contexts in the slots of their key ids; allocated with the thread's first record.
    static CACHE: RefCell<Vec<Option<CachedContext>>> = const { RefCell::new(Vec::new()) };
}

struct CachedContext {
    key_id: u64,
    context: LessSafeKey,
}

/// An id for keys. It is unique in the process, so that no thread finds another key's context by it.
pub(super) fn next_key_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Relaxed)
}

/// Lends the context of `keys`, whose id is `key_id`.
#[inline]
pub(super) fn with_context<T>(
    key_id: u64,
    suite: CipherSuite,
    keys: &TrafficKeys,
    work: impl FnOnce(&LessSafeKey) -> T,
) -> T {
    CACHE.with_borrow_mut(|kept| {
        if kept.is_empty() {
            kept.resize_with(CAPACITY, || None);
        }
        match &mut kept[slot_of(key_id)] {
            Some(found) if found.key_id == key_id => work(&found.context),
            other => work(&other.insert(CachedContext { key_id, context: new_context(suite, keys) }).context),
        }
    })
}

/// Drops the context of keys that are no longer used.
pub(super) fn evict(key_id: u64) {
    // A thread that ends has dropped its contexts already.
    let _ = CACHE.try_with(|kept| {
        if let Some(kept) = kept.borrow_mut().get_mut(slot_of(key_id))
            && kept.as_ref().is_some_and(|kept| kept.key_id == key_id)
        {
            *kept = None;
        }
    });
}

/// Ids are given in order, so the newest connections never share a slot.
fn slot_of(key_id: u64) -> usize {
    (key_id % CAPACITY as u64) as usize
}

fn new_context(suite: CipherSuite, keys: &TrafficKeys) -> LessSafeKey {
    let algorithm = match suite {
        CipherSuite::Aes128Gcm => &AES_128_GCM,
        CipherSuite::Aes256Gcm => &AES_256_GCM,
        CipherSuite::Chacha20Poly1305 => &CHACHA20_POLY1305,
    };
    let key = UnboundKey::new(algorithm, &keys.key[..suite.key_len()]);
    LessSafeKey::new(key.expect("the key has the length of its suite"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept() -> usize {
        CACHE.with_borrow(|kept| kept.iter().flatten().count())
    }

    #[test]
    fn contexts_are_kept_up_to_a_bound_and_dropped_with_their_keys() {
        let keys = TrafficKeys { secret: [0; 48], key: [7; 32], iv: [0; 12], seq: 0 };
        let numbers: Vec<u64> = (0..10 * CAPACITY).map(|_| next_key_id()).collect();
        for &key_id in &numbers {
            with_context(key_id, CipherSuite::Aes256Gcm, &keys, |_| ());
        }
        assert!((CAPACITY / 2..=CAPACITY).contains(&kept()), "{}", kept());
        numbers.iter().for_each(|&key_id| evict(key_id));
        assert_eq!(kept(), 0);
    }
}
