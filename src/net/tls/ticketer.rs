//! Session tickets that every replica with the same secret file takes.
//!
//! A ticket is sealed with AES-256-GCM under a key of its own: HKDF of the secret, a random salt and the policy, for
//! the present epoch of twelve hours. It is taken in its epoch and the next (and the one before, for clocks that
//! differ), so keys come and go without anybody handing them out. The first key of the file seals, all open.
//!
//! The policy is in the key because resumption skips the check of the client's certificate: a ticket from where no
//! certificate was asked for must not open anything where one is.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{self, HKDF_SHA256, KeyType, Salt};
use aws_lc_rs::rand;
use rustls::server::ProducesTickets;
use zeroize::Zeroizing;

/// How long one key seals, in seconds; a ticket is good for at least this and at most twice as long.
const EPOCH_SECONDS: u64 = 12 * 60 * 60;
/// Bytes of the salt, at the front of a ticket; a stranger's secret makes another key of it.
const SALT_LEN: usize = 16;
/// Bytes that tell which key a ticket is for.
const KEY_NAME_LEN: usize = 4;

/// Seals and opens the tickets of all replicas with the same secrets.
pub(crate) struct SharedTicketer {
    /// The secrets; the first seals.
    secrets: Vec<Zeroizing<Vec<u8>>>,
    /// What a client had to prove.
    policy: [u8; 32],
    /// Unix seconds.
    now: fn() -> u64,
}

impl SharedTicketer {
    /// Tickets under `secrets`, of which there is at least one, for listeners of one policy.
    pub(crate) fn new(secrets: Vec<Zeroizing<Vec<u8>>>, policy: [u8; 32]) -> Self {
        Self { secrets, policy, now: unix_now }
    }

    fn epoch(&self) -> u64 {
        (self.now)() / EPOCH_SECONDS
    }

    /// The key of a ticket with this salt, and its name.
    fn key(&self, secret: &[u8], salt: &[u8], epoch: u64) -> Option<(LessSafeKey, [u8; KEY_NAME_LEN])> {
        struct Bytes;
        impl KeyType for Bytes {
            fn len(&self) -> usize {
                32 + KEY_NAME_LEN
            }
        }
        let (policy, epoch) = (self.policy, epoch.to_be_bytes());
        let info = [&b"mainstay ticket 1"[..], &policy, &epoch];
        let prk: hkdf::Prk = Salt::new(HKDF_SHA256, salt).extract(secret);
        let mut bytes = Zeroizing::new([0; 32 + KEY_NAME_LEN]);
        prk.expand(&info, Bytes).and_then(|okm| okm.fill(&mut bytes[..])).ok()?;
        let (key, name) = bytes.split_at(32);
        Some((LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).ok()?), name.try_into().ok()?))
    }

    /// The key is used once, because its salt is; so is the nonce.
    fn nonce() -> Nonce {
        Nonce::assume_unique_for_key([0; NONCE_LEN])
    }
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl ProducesTickets for SharedTicketer {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        EPOCH_SECONDS as u32
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let mut ticket = vec![0; SALT_LEN];
        rand::fill(&mut ticket).ok()?;
        let (key, name) = self.key(self.secrets.first()?, &ticket, self.epoch())?;
        let mut body = plain.to_vec();
        key.seal_in_place_append_tag(Self::nonce(), Aad::from(&ticket), &mut body).ok()?;
        ticket.extend_from_slice(&name);
        ticket.extend_from_slice(&body);
        Some(ticket)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (salt, rest) = ticket.split_at_checked(SALT_LEN)?;
        let (name, body) = rest.split_at_checked(KEY_NAME_LEN)?;
        let now = self.epoch();
        for secret in &self.secrets {
            for epoch in [now, now.saturating_sub(1), now.saturating_add(1)] {
                let (key, expected) = self.key(secret, salt, epoch)?;
                if name != expected {
                    continue;
                }
                let mut body = body.to_vec();
                if let Ok(plain) = key.open_in_place(Self::nonce(), Aad::from(salt), &mut body) {
                    return Some(plain.to_vec());
                }
            }
        }
        None
    }
}

impl fmt::Debug for SharedTicketer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tickets(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOON: u64 = 40_000 * EPOCH_SECONDS + EPOCH_SECONDS / 2;

    fn tickets(secrets: &[u8], policy: u8, now: fn() -> u64) -> SharedTicketer {
        let secrets = secrets.iter().map(|secret| Zeroizing::new(vec![*secret; 32])).collect();
        SharedTicketer { now, ..SharedTicketer::new(secrets, [policy; 32]) }
    }

    #[test]
    fn another_replica_with_the_same_secret_opens_a_ticket_and_one_with_another_does_not() {
        let ticket = tickets(&[1], 0, || NOON).encrypt(b"state").unwrap();
        assert_eq!(tickets(&[1], 0, || NOON).decrypt(&ticket).as_deref(), Some(&b"state"[..]));
        assert_eq!(tickets(&[2], 0, || NOON).decrypt(&ticket), None);
    }

    #[test]
    fn a_ticket_of_one_policy_opens_nothing_under_another() {
        let ticket = tickets(&[1], 0, || NOON).encrypt(b"state").unwrap();
        assert_eq!(tickets(&[1], 1, || NOON).decrypt(&ticket), None);
    }

    #[test]
    fn a_rotated_secret_still_opens_and_the_new_first_one_seals() {
        let old = tickets(&[1], 0, || NOON).encrypt(b"state").unwrap();
        let rotated = tickets(&[2, 1], 0, || NOON);
        assert!(rotated.decrypt(&old).is_some());
        let new = rotated.encrypt(b"state").unwrap();
        assert!(tickets(&[2], 0, || NOON).decrypt(&new).is_some());
        assert!(tickets(&[1], 0, || NOON).decrypt(&new).is_none());
    }

    #[test]
    fn a_ticket_is_good_in_its_epoch_and_the_ones_beside_it() {
        let ticket = tickets(&[1], 0, || NOON).encrypt(b"state").unwrap();
        let opens = |now| tickets(&[1], 0, now).decrypt(&ticket).is_some();
        assert!(opens(|| NOON - EPOCH_SECONDS) && opens(|| NOON) && opens(|| NOON + EPOCH_SECONDS));
        assert!(!opens(|| NOON - 2 * EPOCH_SECONDS) && !opens(|| NOON + 2 * EPOCH_SECONDS) && !opens(|| 0));
    }

    #[test]
    fn two_tickets_of_the_same_state_have_nothing_in_common() {
        let tickets = tickets(&[1], 0, || NOON);
        let (one, other) = (tickets.encrypt(&[0; 64]).unwrap(), tickets.encrypt(&[0; 64]).unwrap());
        assert_ne!(one[..SALT_LEN], other[..SALT_LEN]);
        assert_ne!(one[SALT_LEN..], other[SALT_LEN..]);
        assert_eq!(format!("{tickets:?}"), "Tickets(hidden)");
    }

    #[test]
    fn a_ticket_with_any_bit_changed_or_of_any_shorter_length_opens_nothing() {
        let tickets = tickets(&[1], 0, || NOON);
        let ticket = tickets.encrypt(b"state").unwrap();
        for bit in 0..ticket.len() * 8 {
            let mut changed = ticket.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(tickets.decrypt(&changed), None);
        }
        for length in 0..ticket.len() {
            assert_eq!(tickets.decrypt(&ticket[..length]), None);
        }
    }

    proptest! {
        #[test]
        fn what_is_sealed_opens_and_what_is_made_up_does_not(
            plain in prop::collection::vec(any::<u8>(), 0..300),
            made_up in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let tickets = tickets(&[1, 2], 3, || NOON);
            let ticket = tickets.encrypt(&plain).unwrap();
            prop_assert_eq!(tickets.decrypt(&ticket), Some(plain));
            prop_assert_eq!(tickets.decrypt(&made_up), None);
        }
    }
}
