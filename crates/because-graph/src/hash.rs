/// The first eight bytes of BLAKE3 over the purpose, the seed and every field, each behind its length, so that no two
/// lists of fields read the same. It never changes between versions, machines or runs.
pub(crate) fn stable_hash(purpose: &str, seed: u64, fields: &[&[u8]]) -> u64 {
    let mut hasher = blake3::Hasher::new();
    let mut put = |field: &[u8]| {
        hasher.update(&(field.len() as u64).to_le_bytes());
        hasher.update(field);
    };
    put(purpose.as_bytes());
    put(&seed.to_le_bytes());
    for field in fields {
        put(field);
    }
    let digest = hasher.finalize();
    let mut head = [0; 8];
    head.copy_from_slice(&digest.as_bytes()[..8]);
    u64::from_le_bytes(head)
}

/// 64 bits that stand for an id in [`mix`]: worked out once for each node, so that a lot for each edge costs no hash of texts.
pub(crate) fn id_key(id: &str) -> u64 {
    stable_hash("because id", 0, &[id.as_bytes()])
}

/// A lot drawn from a seed and some keys: the same for the same ones in the same order, in every version and on every machine.
pub(crate) fn mix(seed: u64, keys: &[u64]) -> u64 {
    let mixed = |mixed: Mixed, key: &u64| mixed.with(*key);
    keys.iter().fold(Mixed::new(seed), mixed).lot()
}

/// [`mix`] with some of its keys taken in already, for lots that begin with the same ones.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mixed(u64);

impl Mixed {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn with(self, key: u64) -> Self {
        Self(scatter(self.0.wrapping_add(0x9e37_79b9_7f4a_7c15) ^ key))
    }

    pub(crate) fn lot(self) -> u64 {
        scatter(self.0)
    }

    /// The lot of one more key that is itself scattered, as [`id_key`] is. What is scattered on both sides needs one
    /// multiplication whose halves are folded together (as in wyhash) where [`Mixed::lot`] takes four.
    pub(crate) fn lot_of(self, key: u64) -> u64 {
        let product = u128::from(self.0 ^ key) * 0x9e37_79b9_7f4a_7c15;
        (product >> 64) as u64 ^ product as u64
    }
}

/// The finalizer of SplitMix64 (Steele, Lea and Flood 2014, constants of Stafford's variant 13).
fn scatter(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lot_depends_on_every_key_and_on_their_order() {
        let drawn = [
            mix(1, &[2, 3]),
            mix(1, &[3, 2]),
            mix(2, &[2, 3]),
            mix(1, &[2]),
            mix(1, &[2, 3, 0]),
        ];
        let distinct: std::collections::BTreeSet<_> = drawn.iter().collect();
        assert_eq!(distinct.len(), drawn.len());
        // Neighbouring keys share no more bits than strangers do.
        let apart = (0..1000_u64)
            .map(|key| (mix(7, &[key]) ^ mix(7, &[key + 1])).count_ones())
            .sum::<u32>();
        assert!((31_000..33_000).contains(&apart), "{apart}");
    }

    #[test]
    fn lots_of_scattered_keys_are_even_and_strangers_to_one_another() {
        let keys: Vec<u64> = (0..4000).map(|id: u32| id_key(&id.to_string())).collect();
        let lots = |node: u64| {
            let head = Mixed::new(7).with(node);
            keys.iter().map(move |&key| head.lot_of(key))
        };
        for bit in 0..64 {
            let set = lots(1).filter(|lot| lot >> bit & 1 == 1).count();
            // 2,000 expected, standard deviation about 32.
            assert!((1840..2160).contains(&set), "bit {bit}: {set}");
            let same = lots(1)
                .zip(lots(2))
                .filter(|(a, b)| (a ^ b) >> bit & 1 == 0);
            let same = same.count();
            assert!((1840..2160).contains(&same), "bit {bit}: {same}");
        }
        // Who comes first for one node comes first for another as often as anybody else does.
        let first = |node| lots(node).zip(0..).min().unwrap().1;
        let firsts: std::collections::BTreeSet<i32> = (0..300).map(first).collect();
        assert!(firsts.len() > 270, "{}", firsts.len());
    }

    #[test]
    fn fields_do_not_run_into_one_another() {
        assert_ne!(
            stable_hash("t", 1, &[b"ab", b"c"]),
            stable_hash("t", 1, &[b"a", b"bc"])
        );
        assert_ne!(stable_hash("t", 1, &[b"a"]), stable_hash("t", 2, &[b"a"]));
        assert_ne!(stable_hash("t", 1, &[b"a"]), stable_hash("u", 1, &[b"a"]));
    }
}
