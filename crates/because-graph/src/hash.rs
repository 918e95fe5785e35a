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

#[cfg(test)]
mod tests {
    use super::*;

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
