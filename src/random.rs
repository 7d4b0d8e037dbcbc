//! Random numbers that are the same on every machine: SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number
//! generators").

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// A sequence of random numbers.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// The sequence of a seed.
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// 64 random bits.
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        finish(self.0)
    }

    /// A number in (0, 1).
    fn uniform(&mut self) -> f64 {
        ((self.bits() >> 12) as f64 + 0.5) / (1u64 << 52) as f64
    }

    /// A standard normal number.
    pub(crate) fn normal(&mut self) -> f64 {
        (-2.0 * self.uniform().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

/// The bits of a state, or of anything else that is to be spread over all 64 of them.
pub(crate) fn finish(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Bits from coordinates alone, without a state: the first of the sequence that begins at `x`.
pub(crate) fn mix(x: u64) -> u64 {
    Random(x).bits()
}

/// A number in [0, 1), from 64 random bits.
pub(crate) fn unit(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// Number `draw`, from 0 on, of the sequence of a seed, in [0, 1).
pub(crate) fn nth(seed: u64, draw: u64) -> f64 {
    unit(mix(seed.wrapping_add(draw.wrapping_mul(STEP))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_splitmix64() {
        // Of the generator's published C code with the seed 1234567.
        let mut random = Random::new(1_234_567);
        let first = [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        assert_eq!([random.bits(), random.bits(), random.bits()], first);
        assert_eq!(nth(1_234_567, 1), unit(first[1]));
        assert_eq!(mix(1_234_567), first[0]);
    }
}
