//! Weighted rendezvous hashing with fixed seeds: the same answer in every process and on every machine (I4).
//!
//! For each pair of key and node there is one draw. Among equal weights the highest draw wins. With weights the draw
//! becomes a score, exponentially distributed with the weight as its rate, and the lowest wins: a node then gets exactly
//! its share, and a node that is added or removed moves only the keys that it wins or had won. Both rules put nodes of
//! one weight in the same order.
//!
//! Nothing here may differ between machines: bytes are laid out explicitly, seeds are constants, and the
//! logarithm is a fixed sum of IEEE 754 products and quotients, which are exact to the bit everywhere; `f64::ln`
//! is not. Changing any constant moves every client of every fleet: the golden vectors below must not change.

pub use mainstay_core::hash::mix;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Seed of the hash of a key.
const KEY_SEED: u64 = 0x6d61_696e_7374_6179;
/// Seed of the hash of a node.
const NODE_SEED: u64 = 0x6e6f_6465_7365_6564;

/// The hash of a key's bytes.
pub(crate) fn hash_key(bytes: &[u8]) -> u64 {
    xxh3_64_with_seed(bytes, KEY_SEED)
}

/// A node as rendezvous hashing sees it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct RendezvousNode {
    /// The hash of its pool and its id.
    seed: u64,
    /// Its weight, at least 1.
    weight: u16,
    /// 2^32 / weight, rounded down.
    inverse: u64,
}

impl RendezvousNode {
    /// The node `id` of `pool`; a weight of 0 counts as 1.
    pub(crate) fn new(pool: &str, id: &str, weight: u16) -> Self {
        let weight = weight.max(1);
        let seed = xxh3_64_with_seed(&pool_and_id(pool, id), NODE_SEED);
        Self { seed, weight, inverse: (1 << 32) / u64::from(weight) }
    }

    /// The score of this node with this draw; the lowest wins. It never rises with the draw.
    pub(crate) fn score(&self, draw: u64) -> RendezvousScore {
        RendezvousScore { value: negative_ln(draw) / f64::from(self.weight), draw }
    }

    /// A lower bound of the score with this draw, in units of 2^-64. It costs a product instead of a logarithm and is
    /// close to low scores, because -ln(u) >= 1 - u; both factors are rounded down.
    #[inline]
    pub(crate) fn score_lower_bound(&self, draw: u64) -> u64 {
        (!draw >> 32) * self.inverse
    }

    /// An upper bound of the score with this draw, in units of 2^-64, with room for the error of the logarithm (2^-20 of
    /// it, where 1e-9 would do): for up to 1/2, -ln(1 - x) <= x + x^2. Higher scores have no bound.
    #[inline]
    pub(crate) fn score_upper_bound(&self, draw: u64) -> u64 {
        let x = (!draw >> 32) + 1;
        if x > 1 << 31 {
            return u64::MAX;
        }
        let first = x * (self.inverse + 1);
        first + (first >> 20) + ((first >> 32) + 1) * x
    }
}

/// A key as rendezvous hashing sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RendezvousKey {
    hash: u64,
    /// An odd factor, another for each key.
    factor: u64,
}

impl RendezvousKey {
    /// The key with this hash.
    pub(crate) fn new(hash: u64) -> Self {
        Self { hash, factor: mix(hash) | 1 }
    }

    /// The draw of a node: uniform over 64 bits. The product is a bijection of the node's seed, so that no two
    /// nodes draw the same, and its upper bits, which decide, depend on every bit of key and seed. That a plain
    /// product is enough rests on both being hashes already and on the factor changing with the key.
    #[inline]
    pub(crate) fn draw(&self, node: &RendezvousNode) -> u64 {
        (self.hash ^ node.seed).wrapping_mul(self.factor)
    }
}

/// The score of a node for a key; the lowest wins.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct RendezvousScore {
    /// Of two nodes of one weight, the one with the higher draw never has the higher value.
    value: f64,
    /// The draw that it came from.
    draw: u64,
}

impl RendezvousScore {
    /// Whether this score wins; of two equal values the higher draw does.
    pub(crate) fn wins_over(self, other: Self) -> bool {
        self.value < other.value || (self.value == other.value && self.draw > other.draw)
    }

    /// The value in units of 2^-64, rounded up by far more than the error of the logarithm (1e-9 of it): a node whose
    /// [lower bound](RendezvousNode::score_lower_bound) is above this has a higher score.
    pub(crate) fn upper_bound(self) -> u64 {
        (self.value * (1.0 + 1.0 / 1_048_576.0) * 18_446_744_073_709_551_616.0) as u64
    }
}

/// Pool and id as bytes, apart from each other: neither can hold a NUL.
pub(super) fn pool_and_id(pool: &str, id: &str) -> Vec<u8> {
    [pool.as_bytes(), &[0], id.as_bytes()].concat()
}

/// -ln(u) for the draw as u in (0, 1], to 1e-9, and never increasing with the draw.
///
/// u = m / 2^z with m in [1/2, 1]; with x = 1 - m and s = x / (2 - x), -ln(m) = 2 artanh(s) = 2 (s + s^3/3 + ...).
/// s is at most 1/3, so that eight terms leave less than 1e-9. Every step is a correctly rounded operation on
/// positive numbers and rises with x; the cut series stays below ln 2 at m = 1/2, where z steps up.
fn negative_ln(draw: u64) -> f64 {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The names `ws0`, `ws1`, ... of the pool `chat`.
    fn nodes(weights: &[u16]) -> Vec<RendezvousNode> {
        weights
            .iter()
            .enumerate()
            .map(|(node, weight)| RendezvousNode::new("chat", &format!("ws{node}"), *weight))
            .collect()
    }

    fn order(nodes: &[RendezvousNode], key: u64) -> Vec<usize> {
        let mut order: Vec<usize> = (0..nodes.len()).collect();
        let score = |node: usize| nodes[node].score(RendezvousKey::new(key).draw(&nodes[node]));
        order.sort_by(|a, b| {
            if score(*a).wins_over(score(*b)) {
                std::cmp::Ordering::Less
            } else {
                std::cmp::Ordering::Greater
            }
        });
        order
    }

    fn winner(nodes: &[RendezvousNode], key: u64) -> usize {
        order(nodes, key)[0]
    }

    #[test]
    fn i4_the_same_key_and_the_same_nodes_give_the_same_order_on_every_machine() {
        let (equal, mixed) = (nodes(&[1; 8]), nodes(&[1, 2, 3, 5, 8, 13, 100, 1000]));
        for (name, hash, by_draw, by_weight) in GOLDEN {
            assert_eq!(hash_key(name.as_bytes()), hash, "{name:?}");
            assert_eq!(order(&equal, hash), by_draw, "{name:?}");
            assert_eq!(order(&mixed, hash), by_weight, "{name:?}");
        }
    }

    #[test]
    fn a_draw_and_its_logarithm_are_the_same_on_every_machine() {
        assert_eq!([mix(0), mix(1), mix(u64::MAX)], [0, 0x5692_161d_100b_05e5, 0xb4d0_55fc_f2cb_bd7b]);
        assert_eq!(LOGARITHMS.map(|(draw, _)| negative_ln(draw).to_bits()), LOGARITHMS.map(|(_, bits)| bits));
    }

    #[test]
    fn the_logarithm_is_right_to_a_billionth_and_never_rises() {
        let mut draws: Vec<u64> =
            (0..64).flat_map(|bit| [1 << bit, (1 << bit) - 1, !(1 << bit), !0 >> bit]).collect();
        draws.extend((0..20_000).map(mix));
        draws.sort_unstable();
        for draw in &draws {
            let exact = -((*draw as f64 + 1.0) / 18_446_744_073_709_551_616.0).ln();
            assert!((negative_ln(*draw) - exact).abs() <= 1e-9 + exact * 1e-9 || *draw < 1 << 40, "{draw:x}");
        }
        assert!(draws.windows(2).all(|pair| negative_ln(pair[0]) >= negative_ln(pair[1])));
        assert_eq!(negative_ln(u64::MAX), 0.0);
    }

    #[test]
    fn nodes_of_one_weight_stand_in_the_order_of_their_draws_whatever_that_weight() {
        for weight in [1, 7, 1000] {
            let nodes = nodes(&[weight; 16]);
            for key in (0..500).map(mix) {
                let mut by_draw: Vec<usize> = (0..16).collect();
                by_draw.sort_by_key(|node| std::cmp::Reverse(RendezvousKey::new(key).draw(&nodes[*node])));
                assert_eq!(order(&nodes, key), by_draw);
            }
        }
    }

    #[test]
    fn a_node_arrives_between_the_times_that_spare_its_logarithm() {
        let nodes = nodes(&[1, 2, 3, 5, 8, 13, 100, 1000, u16::MAX]);
        let ends = [0, 1, u64::MAX, u64::MAX - 1, u64::MAX << 32, 1 << 63, (1 << 63) - 1];
        for node in &nodes {
            for draw in (0..5_000).map(mix).chain(ends) {
                let (early, deadline) = (node.score_lower_bound(draw), node.score(draw).upper_bound());
                assert!(early <= deadline, "{node:?} {draw:x}: {early} {deadline}");
                assert!(deadline <= node.score_upper_bound(draw), "{node:?} {draw:x}: {deadline}");
            }
        }
    }

    #[test]
    fn each_node_gets_the_share_of_its_weight() {
        const KEYS: u32 = 60_000;
        for weights in [vec![1; 10], vec![1, 2, 3, 4], vec![1000, 1, 500, 250], vec![3, 3, 1]] {
            let nodes = nodes(&weights);
            let mut counts = vec![0_u32; weights.len()];
            for user in 0..KEYS {
                counts[winner(&nodes, hash_key(format!("user-{user}").as_bytes()))] += 1;
            }
            let total: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
            for (count, weight) in counts.iter().zip(&weights) {
                let p = f64::from(*weight) / total;
                // Five standard deviations of a binomial count.
                let slack = 5.0 * (f64::from(KEYS) * p * (1.0 - p)).sqrt();
                assert!((f64::from(*count) - f64::from(KEYS) * p).abs() <= slack, "{weights:?}: {counts:?}");
            }
        }
    }

    #[test]
    fn a_node_that_comes_or_goes_moves_only_its_own_keys() {
        let all = nodes(&[1, 2, 3, 5, 8, 13]);
        let without_last = &all[..5];
        let mut moved = 0;
        for key in (0..20_000).map(mix) {
            let (before, after) = (winner(without_last, key), winner(&all, key));
            assert!(after == before || after == 5);
            moved += u32::from(after == 5);
        }
        // 13 of 32 parts.
        assert!((7_800..8_450).contains(&moved), "{moved}");
    }

    #[test]
    fn a_weight_that_rises_only_draws_keys_to_its_node() {
        let (before, after) = (nodes(&[2, 2, 2, 2]), nodes(&[2, 2, 5, 2]));
        for key in (0..10_000).map(mix) {
            let (was, is) = (winner(&before, key), winner(&after, key));
            assert!(is == was || is == 2);
        }
    }

    #[test]
    fn two_pools_with_the_same_nodes_hash_apart() {
        let other: Vec<RendezvousNode> =
            (0..4).map(|node| RendezvousNode::new("other", &format!("ws{node}"), 1)).collect();
        let chat = nodes(&[1; 4]);
        let same = (0..4_000).map(mix).filter(|key| winner(&other, *key) == winner(&chat, *key)).count();
        assert!((850..1_150).contains(&same), "{same} of 4000, where chance gives 1000");
    }

    /// Key, its hash, the order of eight equal nodes, and that of nodes of weight 1, 2, 3, 5, 8, 13, 100, 1000.
    const GOLDEN: [(&str, u64, [usize; 8], [usize; 8]); 8] = [
        ("", 0x4054_7764_0d92_05c7, [0, 3, 7, 2, 6, 4, 5, 1], [7, 6, 3, 5, 4, 0, 2, 1]),
        ("a", 0xeedd_5eed_1e39_2ecb, [7, 2, 4, 6, 5, 1, 0, 3], [7, 6, 4, 5, 2, 3, 1, 0]),
        ("user-1", 0xcfc8_44ff_2086_61b6, [1, 6, 5, 0, 4, 7, 3, 2], [7, 6, 5, 1, 4, 3, 0, 2]),
        ("user-2", 0x52e5_ef27_b259_c33b, [0, 7, 1, 5, 4, 3, 6, 2], [7, 6, 0, 5, 4, 1, 3, 2]),
        ("alice@example.com", 0x12e6_b0a2_da28_5b65, [7, 5, 4, 6, 3, 0, 2, 1], [7, 6, 5, 4, 3, 2, 0, 1]),
        ("203.0.113.7", 0x6665_3e96_b98d_63e7, [3, 7, 4, 5, 0, 6, 2, 1], [7, 6, 3, 5, 4, 2, 1, 0]),
        ("é", 0xd1f2_8833_3a2c_9f3f, [7, 5, 3, 4, 0, 2, 1, 6], [7, 5, 6, 4, 3, 2, 1, 0]),
        (
            "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
            0xf27c_45f6_eeb9_b850,
            [0, 1, 3, 6, 7, 2, 4, 5],
            [7, 6, 3, 1, 0, 4, 5, 2],
        ),
    ];

    /// Draws and the bits of their logarithms.
    const LOGARITHMS: [(u64, u64); 11] = [
        (0x0000_0000_0000_0000, 0x4046_2e42_fef8_0dbe),
        (0x0000_0000_0000_0001, 0x4046_2e42_fef8_0dbe),
        (0x0000_0000_0000_0002, 0x4045_d589_f2fc_24d7),
        (0x8000_0000_0000_0000, 0x3fe6_2e42_fe6f_2dc3),
        (0x7fff_ffff_ffff_ffff, 0x3fe6_2e42_fefa_39ef),
        (0xffff_ffff_ffff_ffff, 0x0000_0000_0000_0000),
        (0xffff_ffff_ffff_fffe, 0x0000_0000_0000_0000),
        (0xffff_ffff_ffff_f7ff, 0x3ca0_0000_0000_0000),
        (0xc000_0000_0000_0000, 0x3fd2_6962_1134_db87),
        (0x0123_4567_89ab_cdef, 0x4015_aa16_394c_a6fc),
        (0xfedc_ba98_7654_3210, 0x3f72_3eb9_9135_4e4c),
    ];
}
