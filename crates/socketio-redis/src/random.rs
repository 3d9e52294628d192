//! Random numbers and names.

use aws_lc_rs::rand;

/// A number for jitter; without a source of randomness the delays are only not spread.
pub(crate) fn random_u64() -> u64 {
    let mut bytes = [0; 8];
    let _ = rand::fill(&mut bytes);
    u64::from_be_bytes(bytes)
}

/// `N` random bytes.
fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).expect("aws-lc has a source of randomness on every system that this runs on");
    bytes
}

/// A name of the sharded and streams adapters: 16 hexadecimal digits.
pub(crate) fn hex_id() -> String {
    format!("{:016x}", u64::from_be_bytes(random_bytes()))
}

/// A name of the classic adapter: 6 of 64 letters.
pub(crate) fn short_id() -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    random_bytes::<6>().iter().map(|byte| char::from(LETTERS[usize::from(byte % 64)])).collect()
}
