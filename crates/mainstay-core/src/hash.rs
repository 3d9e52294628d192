//! A mixer of 64 bits, for draws and orders that every process computes alike.

/// A bijection of 64 bits in which every input bit moves every output bit (Stafford's mix 13, the finaliser of
/// SplitMix64).
#[inline]
pub fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}
