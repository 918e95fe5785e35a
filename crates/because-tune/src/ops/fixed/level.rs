/// The instructions that are used. All give the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    /// What the compiler makes of plain loops: fast where fused multiplication is part of the target (aarch64), slow on x86
    /// machines without it, those of before 2013.
    Portable,
    /// AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, BW and VL too.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// And VNNI, sums of products of small integers.
    #[cfg(target_arch = "x86_64")]
    Vnni,
}

impl Level {
    /// The best of this machine.
    pub(super) fn here() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            let avx512 = avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl");
            if avx512 && is_x86_feature_detected!("avx512vnni") {
                return Self::Vnni;
            }
            if avx512 {
                return Self::Avx512;
            }
            if avx2 {
                return Self::Avx2;
            }
        }
        Self::Portable
    }
}
