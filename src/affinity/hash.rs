//! Weighted rendezvous hashing with fixed seeds: the same answer in every process and on every machine (I4).
//!
//! For each pair of key and node there is one draw. Among equal weights the highest draw wins. With weights the
//! draw becomes an arrival time, exponential with the weight as its rate, and the earliest wins: a node then
//! gets exactly its share, and a node that comes or goes moves only what it wins or had won. Both rules put
//! nodes of one weight in the same order.
//!
//! Nothing here may differ between machines: bytes are laid out explicitly, seeds are constants, and the
//! logarithm is a fixed sum of IEEE 754 products and quotients, which are exact to the bit everywhere; `f64::ln`
//! is not. Changing any constant moves every client of every fleet: the golden vectors below must not change.

use std::cmp::Ordering;

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Seed of the hash of a key.
const KEY_SEED: u64 = 0x6d61_696e_7374_6179;
/// Seed of the hash of a node.
const NODE_SEED: u64 = 0x6e6f_6465_7365_6564;

/// The hash of a key's bytes.
pub fn key(bytes: &[u8]) -> u64 {
    xxh3_64_with_seed(bytes, KEY_SEED)
}

/// Where a node stands: all that rendezvous hashing needs to know of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stand {
    /// The hash of its pool and its id.
    seed: u64,
    /// Its weight, at least 1.
    weight: f64,
    /// A little less than 1 / weight: what makes [`Stand::cannot_beat`] err on the safe side only.
    under: f64,
}

impl Stand {
    /// Where the node `id` of `pool` stands; a weight of 0 counts as 1.
    pub fn new(pool: &str, id: &str, weight: u16) -> Self {
        let weight = f64::from(weight.max(1));
        // 2^-20 is far above the error of the logarithm (1e-9) and of the roundings on the way to it.
        let under = (1.0 - 1.0 / 1_048_576.0) / weight;
        Self { seed: xxh3_64_with_seed(&pair(pool, id), NODE_SEED), weight, under }
    }

    /// The draw of this node for a key: uniform over 64 bits.
    #[inline]
    pub fn draw(&self, key: u64) -> u64 {
        mix(key ^ self.seed)
    }

    /// When this node arrives with this draw; the earliest wins. Never increases with the draw.
    pub fn arrival(&self, draw: u64) -> f64 {
        minus_ln(draw) / self.weight
    }

    /// Whether the node surely arrives after `best`: the cheap test that spares most nodes the logarithm,
    /// since -ln(u) >= 1 - u.
    #[inline]
    pub fn cannot_beat(&self, draw: u64, best: f64) -> bool {
        // 53 bits are exact in an f64, and dropping the lower ones can only make the bound lower.
        let below_one = ((!draw) >> 11) as i64 as f64 * (1.0 / 9_007_199_254_740_992.0);
        below_one * self.under > best
    }

    /// The order of two nodes for a key, best first, by their arrivals; two that arrive together are put in
    /// order by their draws and then by their seeds, so that their positions never matter.
    pub fn compare(&self, arrival: f64, draw: u64, other: (&Stand, f64, u64)) -> Ordering {
        let (stand, its_arrival, its_draw) = other;
        arrival.total_cmp(&its_arrival).then(its_draw.cmp(&draw)).then(self.seed.cmp(&stand.seed))
    }

    /// The weight as it counts, at least 1.
    #[inline]
    pub fn weight(&self) -> f64 {
        self.weight
    }
}

/// Pool and id as bytes, apart from each other: neither can hold a NUL.
pub(super) fn pair(pool: &str, id: &str) -> Vec<u8> {
    [pool.as_bytes(), &[0], id.as_bytes()].concat()
}

/// A bijection of 64 bits in which every input bit moves every output bit (Stafford's mix 13, the finaliser of
/// SplitMix64).
#[inline]
pub fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// -ln(u) for the draw as u in (0, 1], to 1e-9, and never increasing with the draw.
///
/// u = m / 2^z with m in [1/2, 1]; with x = 1 - m and s = x / (2 - x), -ln(m) = 2 artanh(s) = 2 (s + s^3/3 + ...).
/// s is at most 1/3, so that eight terms leave less than 1e-9. Every step is a correctly rounded operation on
/// positive numbers and rises with x; the cut series stays below ln 2 at m = 1/2, where z steps up.
fn minus_ln(draw: u64) -> f64 {
    let draw = draw.max(1);
    let z = draw.leading_zeros();
    let x = (!(draw << z) >> 11) as f64 / 9_007_199_254_740_992.0;
    let s = x / (2.0 - x);
    let square = s * s;
    let mut sum = 0.0;
    for odd in [15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0] {
        sum = sum * square + 1.0 / odd;
    }
    f64::from(z) * std::f64::consts::LN_2 + 2.0 * s * sum
}
